//! Help, wrong usage, and servers that are unreachable or not msgbus.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{Daemon, free_address, msgbus, nowhere, run};

#[tokio::test]
async fn wrong_usage_is_reported_in_one_line_and_exits_with_2() {
    for (args, mention) in [
        (&["pull", "t", "--timeout", "5"][..], "1h30m"),
        (&["sub", "t", "--since", "yesterday"], "not a position"),
        (&["pub", "a//b", "x"], "bad topic"),
        (&["pub", "metrics", "x"], "reserved"),
        (&["pub", "t", "x", "-u", "ftp://host"], "--uri"),
        (&["pub", "t", "x", "-u", "http://host:port"], "http://host:port"),
    ] {
        run(msgbus(args)).await.fails(2, mention);
    }
}

#[tokio::test]
async fn help_is_there_for_all_and_each() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["pub", "--help"],
        &["sub", "-h"],
        &["get", "--help"],
        &["help"],
        &["help", "pub"],
    ] {
        let help = run(msgbus(args)).await;
        assert_eq!((help.code, &help.err[..]), (Some(0), ""));
        for part in ["Usage: msgbus ", "Exit codes:\n  0 ", "msgbus "] {
            assert!(help.out.contains(part), "{args:?}: {}", help.out);
        }
    }
    for args in ["--version", "version"] {
        let version = run(msgbus(&[args])).await;
        assert_eq!(version.out, concat!("msgbus ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}

/// docs/cli.md shows the help of each command as it is printed.
#[tokio::test]
async fn the_documentation_shows_the_real_help() {
    let page = include_str!("../../../../docs/cli.md");
    for command in [
        "",
        "pub",
        "sub",
        "pull",
        "ack",
        "nack",
        "extend",
        "work",
        "dead",
        "redrive",
        "group",
        "tail",
        "topics",
        "info",
        "purge",
        "rm",
        "ping",
        "bench",
        "completion",
        "man",
        "version",
    ] {
        let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let shown = format!("$ msgbus {}\n{}```", args.join(" "), run(msgbus(&args)).await.out);
        assert!(page.contains(&shown), "docs/cli.md does not show this:\n{shown}");
    }
}

#[tokio::test]
async fn the_server_comes_from_option_environment_or_file() {
    let daemon = Daemon::start();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, format!("uri: {}\n", daemon.uri()).as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let wrong = format!("http://{}", nowhere());

    run(msgbus(&["pub", "t", "1", "--config", path])).await.is_silent();
    let mut by_environment = msgbus(&["pub", "t", "2"]);
    by_environment.env("MSGBUS_URI", daemon.uri());
    run(by_environment).await.is_silent();
    let uri = daemon.uri();
    let mut by_option = msgbus(&["--uri", &uri, "pub", "t", "3", "--config", path]);
    by_option.env("MSGBUS_URI", &wrong);
    run(by_option).await.is_silent();
    assert_eq!(daemon.bus.stats().counters.published, 3);

    let mut bad = msgbus(&["pub", "t", "4"]);
    bad.env("MSGBUS_URI", "gopher://old");
    run(bad).await.fails(2, "MSGBUS_URI: cannot speak \"gopher\"");
}

#[tokio::test]
async fn a_server_that_is_not_there_exits_with_3() {
    let uri = format!("http://{}", nowhere());
    for args in [&["pub", "t", "x", "-q", "--timeout=1s"][..], &["pull", "t"], &["sub", "t"]] {
        let mut command = msgbus(args);
        command.env("MSGBUS_URI", &uri);
        run(command).await.fails(3, "connection refused; is msgbusd running there?");
    }
    let unknown = run(msgbus(&["pull", "t", "-u", "http://no-such-host.invalid"])).await;
    // Without a name server, the error is a different one.
    unknown.fails(3, "no-such-host.invalid");
    let is_known = ["unknown host ", "cannot resolve ", "no response within"]
        .iter()
        .any(|say| unknown.err.contains(say));
    assert!(is_known, "{unknown:?}");
}

/// A server that sends the same answer to every client.
async fn says(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    uri
}

#[tokio::test]
async fn a_server_that_is_something_else_is_recognised() {
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>";
    let not_found =
        "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\n<h1>404\n\n";
    let redirect =
        "HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let ssh = "SSH-2.0-OpenSSH_9.2\r\n";
    for (answer, command, code, mention) in [
        (page, "pull", 1, "unexpected response from"),
        (page, "sub", 1, "unexpected response from"),
        (not_found, "pull", 1, "unexpected response from http://"),
        (not_found, "sub", 1, "instead of a websocket"),
        (redirect, "pub", 1, "301"),
        (redirect, "sub", 1, "301"),
        (ssh, "pub", 1, "unexpected response from"),
        (ssh, "sub", 1, "unexpected response from"),
    ] {
        let uri = says(answer).await;
        let args: &[&str] = if command == "pub" { &["pub", "t", "x"] } else { &[command, "t"] };
        let mut command = msgbus(args);
        command.env("MSGBUS_URI", uri);
        run(command).await.fails(code, mention);
    }
}

#[tokio::test]
async fn a_refusal_shows_the_servers_text() {
    let daemon = Daemon::with(|config| config.max_payload = 10);
    let mut command = msgbus(&["pub", "t", "more than ten bytes"]);
    command.env("MSGBUS_URI", daemon.uri());
    run(command).await.fails(1, "413: payload exceeds max-payload-size");
}

#[tokio::test]
async fn a_value_is_never_taken_for_an_option() {
    let daemon = Daemon::start();
    let mut command = msgbus(&["pub", "t", "x", "--content-type", "--help"]);
    command.env("MSGBUS_URI", daemon.uri());
    run(command).await.fails(2, "not a media type: \"--help\"");
    let folder = tempfile::tempdir().unwrap();
    daemon.put("t", "x");
    let mut command = msgbus(&["sub", "t", "--since=all", "-n1", "-oraw", "--cursor", "-v"]);
    command.env("MSGBUS_URI", daemon.uri()).current_dir(folder.path());
    assert_eq!(run(command).await.out, "x\n");
    assert!(folder.path().join("-v").exists());
}

#[tokio::test]
async fn rate_limited_publishing_waits_as_long_as_the_server_says() {
    let daemon = Daemon::with(|config| config.publish_rate = std::num::NonZeroU32::new(1));
    for _ in 0..3 {
        let mut command = msgbus(&["pub", "t", "x"]);
        command.env("MSGBUS_URI", daemon.uri());
        assert_eq!(run(command).await.code, Some(0));
    }
}

#[tokio::test]
async fn a_huge_retry_after_does_not_panic() {
    let busy = "HTTP/1.1 503 Busy\r\nRetry-After: 18446744073709551615\r\nContent-Length: 5\r\n\
        Connection: close\r\n\r\nlater";
    let uri = says(busy).await;
    let mut command = msgbus(&["pub", "t", "x"]);
    command.env("MSGBUS_URI", &uri);
    run(command).await.fails(1, "the server says 503: later");
    let mut command = msgbus(&["pull", "t", "--timeout", "300ms"]);
    command.env("MSGBUS_URI", &uri);
    run(command).await.fails(1, "the server says 503: later");
}

#[tokio::test]
async fn completions_and_the_manual_know_every_option() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(msgbus(&["completion", shell])).await.out;
        for option in ["cursor", "fail-empty", "content-type", "uri"] {
            assert!(script.contains(option), "{shell}: no {option}");
        }
    }
    let manual = run(msgbus(&["man"])).await.out;
    assert!(manual.starts_with(".TH MSGBUS 1"));
    assert!(manual.contains("\\fB\\-n, \\-\\-count\\fR \\fIN\\fR"), "{manual}");
}

/// The completions of bash for command lines.
async fn complete(lines: &str, uri: &str) -> String {
    let script = format!(
        r#"
        source <(msgbus completion bash)
        try() {{ COMP_WORDS=(msgbus "$@"); COMP_CWORD=$#; _msgbus; echo "${{COMPREPLY[*]}}"; }}
        {lines}
    "#
    );
    let mut bash = tokio::process::Command::new("bash");
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_msgbus")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    bash.args(["-c", &script]).env("PATH", path).env("MSGBUS_URI", uri);
    bash.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let said = run(bash).await;
    assert_eq!(said.err, "");
    said.out
}

#[tokio::test]
async fn bash_completes_commands_options_and_values() {
    let lines = "try pu; try sub --cu; try pull -o p; try -u http : //x : 1 pul; try completion f
        try get --fail; try ping --ti";
    assert_eq!(
        complete(lines, "localhost:1").await,
        "pub put pull purge\n--cursor\npretty\npull\nfish\n--fail-empty\n--timeout\n"
    );
}

#[tokio::test]
async fn topics_are_completed() {
    let daemon = Daemon::start();
    for topic in ["orders/eu", "orders/us", "or der", "a:b", "other"] {
        daemon.put(topic, "x");
    }
    let lines =
        "try sub ord; try pull ot; try sub or; try pub a : ; try sub ord --al; try sub t ord";
    assert_eq!(
        complete(lines, &daemon.uri()).await,
        "orders/eu orders/us\nother\nor\\ der orders/eu orders/us\nb\n--all\norders/eu orders/us\n"
    );
    // The server on the command line is used.
    let lines = format!("try -u {} rm oth; try rm --uri={0} oth", daemon.uri());
    assert_eq!(complete(&lines, "localhost:1").await, "other\nother\n");
    // Errors print nothing.
    assert_eq!(complete("try sub ord", "localhost:1").await, "\n");
    run(msgbus(&["__topics", "x", "-u", "localhost:1"])).await.is_silent();
}

#[tokio::test]
async fn a_server_is_found_by_its_name() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let text = format!(
        "uri: http://localhost:1\nhere: # this one\n  uri: {}\nodd:\n  key: x\n",
        daemon.uri()
    );
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    run(msgbus(&["-q", "pub", "t", "x", "--config", file, "-u", "@here"])).await.is_silent();
    let mut command = msgbus(&["-q", "pub", "t", "x", "--config", file]);
    command.env("MSGBUS_URI", "@here");
    run(command).await.is_silent();
    assert_eq!(daemon.bus.stats().counters.published, 2);
    let wrong = run(msgbus(&["-q", "topics", "--config", file, "-u", "@there"])).await;
    wrong.fails(2, &format!("--uri: no server \"there\" in {file}; it names here, odd"));
    let wrong = run(msgbus(&["-q", "topics", "--config", file, "-u", "@odd"])).await;
    wrong.fails(2, "--uri: server \"odd\" has no uri");
    let open = run(msgbus(&["topics", "--config", file, "-u", "@here"])).await;
    assert!(open.err.contains("other users can read the key in"), "{open:?}");
}

#[tokio::test]
async fn a_server_is_pinged() {
    let daemon = Daemon::start();
    let ping = async |args: &[&str]| run(msgbus(&[&["ping"], args].concat())).await;
    let answered = ping(&["-u", &daemon.uri()]).await;
    assert!(answered.out.starts_with(&format!("{} answered in ", daemon.uri())), "{answered:?}");
    ping(&["-q", "-u", &daemon.uri()]).await.is_silent();
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    ping(&["-u", &says(page).await]).await.fails(1, "unexpected response from");
    let address = free_address();
    ping(&["-u", &address.to_string()]).await.fails(3, "connection refused");
    let (address, uri) = (address, address.to_string());
    let waiting =
        tokio::spawn(
            async move { run(msgbus(&["ping", "-q", "-u", &uri, "--timeout=60s"])).await },
        );
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let late = Daemon::at(address, |_| {});
    waiting.await.unwrap().is_silent();
    late.stop().await;
}
