//! docs/operations.md, TLS: HTTP/1.1 over TLS, certificates, and reloading them.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use msgbus_core::json;
use msgbusd::CertificateFiles;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};
use tokio_tungstenite::tungstenite;

use crate::{
    binary::{Running, msgbusd},
    http2::{http2, send},
    support::{Daemon, soon},
};

/// A certificate for localhost in two files.
pub(crate) struct Files {
    pub(crate) folder: TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap() };
        files.renew();
        files
    }

    /// Replaces the certificate.
    fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(self.chain(), made.cert.pem()).unwrap();
        fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
    }

    fn chain(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    pub(crate) fn config(&self) -> CertificateFiles {
        CertificateFiles { chain: self.chain(), key: self.key() }
    }

    pub(crate) fn flags(&self) -> String {
        format!("--tls-cert={} --tls-key={}", self.chain().display(), self.key().display())
    }

    /// A client that trusts the certificate that is there now, and no other.
    pub(crate) fn client(&self, protocol: &str) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.chain()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !protocol.is_empty() {
            config.alpn_protocols = vec![protocol.into()];
        }
        Arc::new(config).into()
    }

    pub(crate) async fn connect(&self, daemon: &Daemon, protocol: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(daemon.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        soon(self.client(protocol).connect(name, stream)).await.unwrap()
    }

    pub(crate) fn daemon(&self) -> Daemon {
        Daemon::with(|config| config.certificate = Some(self.config()))
    }
}

/// Sends a request, and reads until the server closes the connection.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn http_1_and_websockets_are_spoken_in_tls() {
    let files = Files::new();
    let daemon = files.daemon();
    for protocol in ["http/1.1", ""] {
        let mut stream = files.connect(&daemon, protocol).await;
        let put = "PUT /t HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                   Content-Length: 2\r\n\r\nhi";
        assert!(ask(&mut stream, put).await.starts_with("HTTP/1.1 202 "));
    }
    let stream = files.connect(&daemon, "http/1.1").await;
    let (mut socket, _) =
        tokio_tungstenite::client_async("wss://localhost/t?since=all", stream).await.unwrap();
    // More than TLS writes at once: the rest must not wait for the next message.
    let large = vec![b'x'; 900 << 10];
    daemon.bus.put(&"t".parse().unwrap(), large.clone()).unwrap();
    for expected in [&b"hi"[..], b"hi", &large] {
        let frame = soon(socket.next()).await.unwrap().unwrap();
        let message = json::read_message(&frame.into_data()).unwrap();
        assert_eq!(message.payload(), expected);
    }
    socket.send(tungstenite::Message::Ping("a".into())).await.unwrap();
    let pong = soon(socket.next()).await.unwrap().unwrap();
    assert_eq!(pong, tungstenite::Message::Pong("a".into()));
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_in_tls() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut stream = files.connect(&daemon, "http/1.1").await;
    let put =
        |close| format!("PUT /t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n{close}\r\nhi");
    let answers = ask(&mut stream, &(put("").repeat(99) + &put("Connection: close\r\n"))).await;
    assert_eq!(answers.matches("HTTP/1.1 202 ").count(), 100, "{answers}");
}

#[tokio::test]
async fn a_client_without_tls_gets_an_unencrypted_error() {
    let files = Files::new();
    let daemon = files.daemon();
    daemon.get("/").await.refuses(400, "https://");
    let mut connection = daemon.connect().await;
    connection.write(b"\x16\x03\x01 rubbish").await;
    connection.rest().await;
    assert_eq!(send(&mut http2(&files, &daemon).await, "GET", "/", "").await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_must_finish_within_ten_seconds() {
    let files = Files::new();
    let daemon = files.daemon();
    for sent in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut connection = daemon.connect().await;
        let start = Instant::now();
        connection.write(sent).await;
        assert_eq!(connection.rest().await, b"");
        let waited = start.elapsed();
        assert!((10..12).contains(&waited.as_secs()), "{waited:?}");
    }
}

#[tokio::test]
async fn at_the_connection_limit_tls_connections_are_closed_without_a_response() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.max_connections = 1;
    });
    let mut only = http2(&files, &daemon).await;
    assert_eq!(send(&mut only, "GET", "/", "").await.status(), StatusCode::OK);
    assert_eq!(daemon.connect().await.rest().await, b"");
    assert_eq!(send(&mut only, "GET", "/", "").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_stalled_reader_in_tls_is_cut() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.timeouts.write = Duration::from_millis(100);
    });
    let topic = "t".parse().unwrap();
    let stream = files.connect(&daemon, "http/1.1").await;
    let (socket, _) = tokio_tungstenite::client_async("wss://localhost/t", stream).await.unwrap();
    soon(async {
        while daemon.bus.topic(&topic).unwrap().subscribers > 0 {
            daemon.bus.put(&topic, vec![0; 1 << 20]).unwrap();
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(socket);
}

/// Over TLS, any host name belongs to this server: a browser has verified the certificate for it.
#[tokio::test]
async fn a_page_of_the_server_itself_needs_no_allow_origin() {
    let files = Files::new();
    let daemon = files.daemon();
    let foreign = ["https://evil.example", "http://localhost"];
    for (origin, status) in [("https://localhost", 202), (foreign[0], 403), (foreign[1], 403)] {
        let mut stream = files.connect(&daemon, "http/1.1").await;
        let put = format!(
            "PUT /t HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n"
        );
        let answer = ask(&mut stream, &put).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");

        let request = Request::put("https://localhost/t").header("origin", origin);
        let request = request.body(Full::default()).unwrap();
        let mut client = http2(&files, &daemon).await;
        assert_eq!(soon(client.send_request(request)).await.unwrap().status(), status);
    }
    // In HTTP/2 the name is in the URI; over TLS one of a domain is ours too.
    let mut client = http2(&files, &daemon).await;
    let request = Request::put("https://bus.example/t").header("origin", "https://bus.example");
    let answer = client.send_request(request.body(Full::default()).unwrap());
    assert_eq!(soon(answer).await.unwrap().status(), 202);
}

#[test]
fn a_signal_reloads_the_certificate() {
    let files = Files::new();
    let flags = files.flags();
    let args: Vec<&str> =
        ["-d", "--bind", "127.0.0.1:0"].into_iter().chain(flags.split(' ')).collect();
    let mut daemon = Running::start(&mut msgbusd(&args));
    let address = daemon.address;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connect = |client: TlsConnector| {
        runtime.block_on(async {
            let stream = TcpStream::connect(address).await.unwrap();
            soon(client.connect(ServerName::try_from("localhost").unwrap(), stream)).await
        })
    };
    let old = files.client("http/1.1");
    let mut open = connect(old.clone()).unwrap();

    fs::write(files.key(), "rubbish").unwrap();
    daemon.signal("-HUP");
    let line = daemon.logs("the certificate stays as it was");
    assert!(line.contains("key.pem"), "{line}");
    assert!(connect(old.clone()).is_ok());

    files.renew();
    daemon.signal("-HUP");
    daemon.logs("SIGHUP: certificate: from");
    assert!(connect(files.client("http/1.1")).is_ok());
    assert!(connect(old).is_err(), "it does not trust the new one");
    let answer = runtime
        .block_on(ask(&mut open, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "open connections go on: {answer}");
}

#[test]
fn mismatched_certificate_files_are_reported_in_one_line() {
    let (files, others) = (Files::new(), Files::new());
    let empty = files.folder.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (chain, key, empty) = (text(files.chain()), text(files.key()), text(empty));
    let other_key = text(others.key());
    for (args, mention) in [
        (&["--tls-cert", &chain][..], &["--tls-cert", "--tls-key"][..]),
        (&["--tls-key", &key], &["--tls-key", "--tls-cert"]),
        (&["--tls-cert", "/not/there", "--tls-key", &key], &["--tls-cert: /not/there", "No such"]),
        (&["--tls-cert", &chain, "--tls-key", &other_key], &["--tls-key", "not the key of"]),
        (&["--tls-cert", &chain, "--tls-key", &chain], &["--tls-key", "no private key"]),
        (&["--tls-cert", &empty, "--tls-key", &key], &["--tls-cert", "no certificate"]),
        (&["--tls-cert", "", "--tls-key", &key], &["--tls-cert", "the name of the file is empty"]),
    ] {
        let output = msgbusd(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in mention {
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        }
    }
    let output = msgbusd(&[]).env("MSGBUSD_TLS_CERT", "").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "not unencrypted by mistake");
}

#[tokio::test]
async fn any_host_name_is_allowed_with_tls_but_not_http_urls() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut client = http2(&files, &daemon).await;
    for (uri, host, status) in [
        ("https://bus.example/healthz", None, 200),
        ("https://bus.example/t", None, 404),
        ("https://bus.example/t", Some("BUS.example"), 404),
        ("https://bus.example/t", Some("other.example"), 400),
        ("http://localhost/t", None, 421),
    ] {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(Full::default()).unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), status, "{uri} {host:?}");
    }
    let mut stream = files.connect(&daemon, "http/1.1").await;
    let request = "GET http://localhost/t HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(ask(&mut stream, request).await.starts_with("HTTP/1.1 421 "));
}
