//! TLS: trusted certificates, and the errors for others.

use std::fs;

use msgbus_client::{Client, ClientError, Roots};
use msgbusd::{Bind, CertificateFiles};
use rcgen::{BasicConstraints, IsCa, date_time_ymd};
use tokio::{io::AsyncReadExt as _, net::TcpListener};

use crate::{
    relay::{Authority, TlsRelay},
    support::{Daemon, Finished, Proxy, Running, msgbus, name, run},
};

/// Runs a command with a file of trusted certificates.
async fn ask(uri: &str, ca_file: &str, args: &[&str]) -> Finished {
    let mut command = msgbus(args);
    command.env("MSGBUS_URI", uri);
    if !ca_file.is_empty() {
        command.env("MSGBUS_CA_FILE", ca_file);
    }
    run(command).await
}

#[tokio::test]
async fn every_command_speaks_tls() {
    let (daemon, authority) = (Daemon::start(), Authority::new());
    let relay = authority.relay(daemon.address).await;
    for (args, out) in [
        (&["pub", "t", "hi"][..], ""),
        (&["sub", "t", "--all", "-n1", "-oraw"], "hi\n"),
        (&["sub", "t", "--poll", "-oraw"], "hi\n"),
        (&["tail", "t", "-n1", "-oraw", "--timeout", "4s"], "hi\n"),
        (&["pull", "t", "-oraw"], "hi\n"),
        (&["rm", "t"], ""),
        (&["topics", "t"], "TOPIC  MESSAGES  TO PULL  BYTES  SUBSCRIBERS  PUBLISHED  MISSED\n"),
    ] {
        let said = ask(&relay.uri(), &authority.file(), args).await;
        assert_eq!((said.code, &*said.out, &*said.err), (Some(0), out, ""), "{args:?}");
    }
    for work in ["pub --msgs 500 --pipeline 8", "pull --msgs 100", "fanout --msgs 100 --subs 3"] {
        let line = format!("bench {work}");
        let args: Vec<&str> = line.split(' ').collect();
        let said = ask(&relay.uri(), &authority.file(), &args).await;
        assert_eq!((said.code, &*said.err), (Some(0), ""), "{work}");
        assert!(said.out.contains("0 lost, 0 repeated, 0 reordered"), "{}", said.out);
    }
    // The certificate must contain the address, as it must contain a name.
    let uri = format!("https://127.0.0.1:{}/front", relay.port);
    ask(&uri, &authority.file(), &["pub", "t", "x"]).await.is_silent();
    assert_eq!(daemon.bus.topics(), [name("front/t")]);
}

#[tokio::test]
async fn the_daemon_speaks_tls_and_listens_on_a_socket_itself() {
    let folder = tempfile::tempdir().unwrap();
    let [chain, key, socket] = ["chain", "key", "socket"].map(|name| folder.path().join(name));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&chain, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let ca_file = chain.to_str().unwrap().to_owned();
    let daemon = Daemon::with(|config| {
        config.bind.push(Bind::Unix(socket.clone()));
        config.certificate = Some(CertificateFiles { chain, key });
    });
    let port = daemon.address.port();
    let secure = format!("https://localhost:{port}");
    for uri in [&secure, &format!("unix:{}", socket.display())] {
        ask(uri, &ca_file, &["pub", "t", "hi"]).await.is_silent();
        for args in [&["sub", "t", "--all", "-n1", "-oraw"][..], &["pull", "t", "-oraw"]] {
            let said = ask(uri, &ca_file, args).await;
            assert_eq!((said.code, &*said.out, &*said.err), (Some(0), "hi\n", ""), "{args:?}");
        }
        let bench = ["bench", "fanout", "--msgs", "100", "--subs", "3"];
        let said = ask(uri, &ca_file, &bench).await;
        assert_eq!((said.code, &*said.err), (Some(0), ""), "{said:?}");
    }
    for args in [&["pub", "t", "x"][..], &["sub", "t"]] {
        let said = ask(&format!("http://localhost:{port}"), &ca_file, args).await;
        said.fails(1, "400: this port speaks TLS: use https://");
    }
}

#[tokio::test]
async fn a_subscription_resumes_when_the_connection_is_cut() {
    let (daemon, authority) = (Daemon::start(), Authority::new());
    let proxy = Proxy::to(daemon.address).await;
    let relay = authority.relay(proxy.address).await;
    let mut command = msgbus(&["sub", "t", "--ca-file", &authority.file(), "--since", "all"]);
    command.env("MSGBUS_URI", relay.uri());
    let mut running = Running::start(command);
    for round in 0..3 {
        daemon.put("t", "x");
        assert_eq!(running.ids(1).await, [round]);
        proxy.cut();
        let note = running.note().await;
        assert!(note.contains("lost the connection to https://"), "{note}");
        assert!(note.contains("closed without TLS close_notify"), "{note}");
        assert_eq!(running.note().await, "msgbus: connected again\n");
    }
}

#[tokio::test]
async fn the_options_roots_replace_those_of_the_system() {
    let (daemon, authority) = (Daemon::start(), Authority::new());
    let (stranger, namesake) = (Authority::named("stranger"), Authority::new());
    let relay = authority.relay(daemon.address).await;
    let publish = async |system: &str, option: &str, config: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        fs::write(&file, config).unwrap();
        let mut command = msgbus(&["pub", "t", "x", "--config", file.to_str().unwrap()]);
        command.env("MSGBUS_URI", relay.uri()).env("SSL_CERT_FILE", system);
        if !option.is_empty() {
            command.args(["--ca-file", option]);
        }
        run(command).await
    };
    let (good, bad) = (&*authority.file(), &*stranger.file());
    let distrust = "its certificate is signed by an unknown authority; if you trust it, name the \
        authority's certificate with --ca-file";
    publish(good, "", "").await.is_silent();
    publish(bad, "", "").await.fails(3, distrust);
    publish(&namesake.file(), "", "").await.fails(3, distrust);
    publish(bad, good, "").await.is_silent();
    publish(good, bad, "").await.fails(3, distrust);
    publish(bad, "", &format!("ca-file: {good}")).await.is_silent();
    publish(good, good, &format!("ca-file: {bad}")).await.is_silent();
    publish("/does/not/exist", "", "").await.fails(3, "no system root certificates found");
    publish("/does/not/exist", good, "").await.is_silent();
}

#[tokio::test]
async fn a_file_without_certificates_is_an_error() {
    let daemon = Daemon::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for (text, mention) in [
        ("", "contains no PEM certificate"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "contains an invalid certificate",
        ),
    ] {
        fs::write(path, text).unwrap();
        let said = ask("https://localhost:1", path, &["pub", "t", "x"]).await;
        said.fails(2, "MSGBUS_CA_FILE: /");
        said.fails(2, mention);
    }
    let absent = ["pub", "t", "x", "--ca-file", "/does/not/exist"];
    ask("https://localhost:1", "", &absent).await.fails(2, "--ca-file: cannot read /does/not");
    // Without TLS, the file is not read.
    ask(&daemon.uri(), "/does/not/exist", &["pub", "t", "x"]).await.is_silent();
}

#[tokio::test]
async fn a_self_signed_certificate_can_be_trusted() {
    let daemon = Daemon::start();
    let (relay, certificate) = TlsRelay::self_signed(daemon.address).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), certificate).unwrap();
    ask(&relay.uri(), "", &["pub", "t", "x"]).await.fails(3, "--ca-file");
    ask(&relay.uri(), file.path().to_str().unwrap(), &["pub", "t", "x"]).await.is_silent();
}

#[tokio::test]
async fn an_invalid_certificate_is_explained() {
    let (daemon, authority) = (Daemon::start(), Authority::new());
    let to = daemon.address;
    let here = &["localhost"][..];
    let other = authority.relay_with(&["bus.example", "10.1.2.3"], to, |_| {}).await;
    let none = authority.relay_with(&[], to, |_| {}).await;
    let old = authority
        .relay_with(here, to, |params| params.not_after = date_time_ymd(2020, 2, 29))
        .await;
    let young = authority
        .relay_with(here, to, |params| params.not_before = date_time_ymd(3000, 1, 2))
        .await;
    let own = authority
        .relay_with(here, to, |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        })
        .await;
    for (relay, mention) in [
        (other, "its certificate is for bus.example, 10.1.2.3, not for localhost"),
        (none, "its certificate names no host, so it is not valid for localhost"),
        (old, "its certificate has expired: 2020-02-29 00:00 UTC"),
        (young, "its certificate is not valid yet: 3000-01-02 00:00 UTC"),
        (
            own,
            "(CA:TRUE); make the server's with openssl req -x509 -addext basicConstraints=critical,CA:FALSE",
        ),
    ] {
        for args in [&["pub", "t", "x"][..], &["pull", "t"], &["sub", "t"], &["bench", "pub"]] {
            ask(&relay.uri(), &authority.file(), args).await.fails(3, mention);
        }
    }
    assert_eq!(daemon.bus.topics(), []);
}

#[tokio::test]
async fn the_wrong_scheme_is_explained() {
    let (daemon, authority) = (Daemon::start(), Authority::new());
    let relay = authority.relay(daemon.address).await;
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closes = format!("https://{}", closing.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = closing.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let (plain, secure) =
        (daemon.uri().replace("http", "https"), relay.uri().replace("https", "http"));
    for (uri, mention) in [
        (plain, "it does not speak TLS; is it http:// and not https://?"),
        (secure, "it speaks TLS; is it https:// and not http://?"),
        (closes, "it closed the connection instead of speaking TLS; is it http://"),
    ] {
        for args in [&["pub", "t", "x"][..], &["pull", "t"], &["sub", "t"], &["topics"]] {
            ask(&uri, &authority.file(), args).await.fails(3, mention);
        }
    }
}

#[tokio::test]
async fn an_unencrypted_key_gets_a_warning_unless_the_server_is_local() {
    let unencrypted = "http://no-such-host.invalid";
    for (uri, args, warned) in [
        (unencrypted, &["topics"][..], true),
        (unencrypted, &["topics", "-q"], false),
        (unencrypted, &["sub", "t", "-q"], false),
        ("https://no-such-host.invalid", &["topics"], false),
        ("http://localhost:1", &["topics"], false),
    ] {
        let mut command = msgbus(args);
        command.env("MSGBUS_URI", uri).env("MSGBUS_KEY", "mbk_secret");
        let said = run(command).await;
        assert_eq!(said.code, Some(3), "{said:?}");
        let warning = "the key is sent to http://no-such-host.invalid:80 unencrypted";
        assert_eq!(said.err.contains(warning), warned, "{uri} {args:?} {said:?}");
        assert_eq!(said.err.lines().count(), 1 + usize::from(warned), "{uri} {args:?} {said:?}");
        assert!(!said.err.contains("mbk_"), "{said:?}");
    }
}

#[tokio::test]
async fn the_library_trusts_the_given_roots() {
    let (daemon, authority) = (Daemon::start(), Authority::new());
    let relay = authority.relay(daemon.address).await;
    let roots = Roots::from_pem(&fs::read(authority.file()).unwrap()).unwrap();
    let client = Client::new(&relay.uri()).unwrap();
    let trusting = client.clone().with_roots(roots);
    trusting.publish(&name("t"), "hi").await.unwrap();
    assert_eq!(trusting.pull(&name("t")).await.unwrap().unwrap().payload(), "hi");
    let error = client.publish(&name("t"), "hi").await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}
