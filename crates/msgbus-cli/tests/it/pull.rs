//! `msgbus pull`, and how messages are printed.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{Daemon, Finished, Running, free_address, msgbus, name, nowhere, run, soon};

async fn pull(daemon: &Daemon, args: &[&str]) -> Finished {
    let mut command = msgbus(&[&["pull", "t"], args].concat());
    command.env("MSGBUS_URI", daemon.uri()).env("TZ", "UTC");
    run(command).await
}

#[tokio::test]
async fn a_message_is_one_line_of_json_in_a_pipe() {
    let daemon = Daemon::start();
    daemon.put("t", "hi\nthere");
    let said = pull(&daemon, &[]).await;
    assert_eq!((said.code, &said.err[..]), (Some(0), ""));
    let message = msgbus_core::json::read_message(said.out.as_bytes()).unwrap();
    assert_eq!(message.payload(), "hi\nthere");
    assert!(said.out.ends_with("}\n") && said.out.lines().count() == 1);
}

#[tokio::test]
async fn an_empty_topic_is_silent_unless_fail_empty() {
    let daemon = Daemon::start();
    pull(&daemon, &[]).await.is_silent();
    assert_eq!(pull(&daemon, &["--fail-empty"]).await.code, Some(5));
    daemon.put("t", "x");
    assert_eq!(pull(&daemon, &["--fail-empty"]).await.code, Some(0));
}

#[tokio::test]
async fn raw_and_pretty_formats() {
    let daemon = Daemon::start();
    for payload in [&b"a"[..], b"b\x1b[2J", b"\xff\x00", b""] {
        daemon.put("t", payload);
        daemon.put("t", payload);
    }
    let mut raw = Vec::new();
    for _ in 0..2 {
        let one = pull(&daemon, &["-o", "raw"]).await;
        raw.push(one.out);
    }
    assert_eq!(raw, ["a\n", "a\n"]);
    assert_eq!(pull(&daemon, &["-o", "raw", "-N"]).await.out, "b\x1b[2J");
    let pretty = pull(&daemon, &["-o", "pretty", "-n", "10"]).await.out;
    let shown: Vec<&str> = pretty.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(
        shown,
        [
            "t #3 b\\u{1b}[2J",
            "t #4 (2 bytes) ff 00",
            "t #5 (2 bytes) ff 00",
            "t #6 (empty)",
            "t #7 (empty)"
        ]
    );
}

#[tokio::test]
async fn count_takes_as_many_as_there_are() {
    let daemon = Daemon::start();
    for _ in 0..5 {
        daemon.put("t", "x");
    }
    assert_eq!(pull(&daemon, &["-n", "3"]).await.out.lines().count(), 3);
    let rest = pull(&daemon, &["-n", "3"]).await;
    assert_eq!((rest.out.lines().count(), rest.code), (2, Some(0)));
}

#[tokio::test]
async fn with_a_timeout_it_waits_for_the_count() {
    let daemon = Daemon::start();
    let start = Instant::now();
    let short = pull(&daemon, &["--timeout", "200ms"]).await;
    assert_eq!((short.code, &short.out[..]), (Some(5), ""));
    assert!(start.elapsed() >= Duration::from_millis(200));

    let later = async {
        daemon.waits_after("t", 0).await;
        daemon.put("t", "1");
        daemon.waits_after("t", 1).await;
        daemon.put("t", "2");
    };
    let (both, ()) = tokio::join!(pull(&daemon, &["-n", "2", "--timeout", "5m"]), later);
    assert_eq!((both.code, both.out.lines().count()), (Some(0), 2));
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_at_the_timeout() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = msgbus(&["pull", "t", "--timeout", "200ms"]);
    command.env("MSGBUS_URI", format!("http://{}", silent.local_addr().unwrap()));
    let start = Instant::now();
    assert_eq!(run(command).await.code, Some(5));
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn max_wait_and_peek_are_passed_to_the_server() {
    let daemon = Daemon::start();
    for n in 0..5 {
        daemon.put("t", n.to_string());
    }
    let raw = async |args: &[&str]| pull(&daemon, &[args, &["-o", "raw"]].concat()).await.out;
    assert_eq!(raw(&["--peek"]).await, "0\n");
    assert_eq!(raw(&["--peek", "--max", "3"]).await, "0\n1\n2\n");
    assert_eq!(raw(&["--max", "3"]).await, "0\n1\n2\n");
    assert_eq!(raw(&["--max", "30"]).await, "3\n4\n");
    assert_eq!(pull(&daemon, &["--peek", "--fail-empty"]).await.code, Some(5));
    let later = async {
        daemon.waits_after("t", 5).await;
        daemon.put("t", "late");
    };
    let (waited, ()) = tokio::join!(raw(&["--wait", "5m"]), later);
    assert_eq!(waited, "late\n");
    let nothing = pull(&daemon, &["--wait", "100ms", "--fail-empty"]).await;
    assert_eq!(nothing.code, Some(5));
}

#[tokio::test]
async fn count_is_the_most_that_max_takes() {
    let daemon = Daemon::start();
    for n in 0..9 {
        daemon.put("t", n.to_string());
    }
    let raw = async |args: &[&str]| pull(&daemon, &[args, &["-o", "raw"]].concat()).await.out;
    assert_eq!(raw(&["--peek", "--max", "3", "--count", "2"]).await, "0\n1\n");
    assert_eq!(raw(&["--max", "3", "--count", "4"]).await, "0\n1\n2\n3\n");
    assert_eq!(raw(&["--max", "9", "--count", "1"]).await, "4\n");
    assert_eq!(daemon.bus.topic(&name("t")).unwrap().unpulled, 4);
}

#[tokio::test]
async fn a_peek_ends_at_the_timeout_and_at_a_signal() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = silent.local_addr().unwrap().to_string();
    let timeout = run(msgbus(&["pull", "t", "--peek", "--timeout", "200ms", "-u", &uri])).await;
    assert_eq!((timeout.code, &timeout.out[..], &timeout.err[..]), (Some(5), "", ""));

    let peeking = Running::start(msgbus(&["pull", "t", "--peek", "-u", &uri]));
    // Once it has connected, it handles signals. The earlier connection is that of the other run.
    let _connections = (soon(silent.accept()).await.unwrap(), soon(silent.accept()).await.unwrap());
    peeking.signal("-INT");
    peeking.end().await.is_silent();
}

/// Answers one request, and returns the request.
async fn answer(listener: &TcpListener, answer: &str) -> String {
    let (mut stream, _) = soon(listener.accept()).await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(soon(stream.read_u8()).await.unwrap());
    }
    let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_wait_beyond_the_servers_limit_is_repeated() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = server.local_addr().unwrap().to_string();
    let waiting = Running::start(msgbus(&["pull", "t", "--wait", "5m", "-u", &uri]));
    for _ in 0..3 {
        assert_eq!(answer(&server, "204 No Content").await, "GET /t?wait=1m HTTP/1.1");
    }
    answer(&server, "410 Gone").await;
    waiting.end().await.fails(1, "410");
}

/// Retrying is safe: without a connection nothing has been taken.
#[tokio::test]
async fn an_unreachable_server_is_retried_if_there_is_time() {
    for time in ["--timeout=60s", "--wait=60s"] {
        let address = free_address();
        let uri = address.to_string();
        let waiting = tokio::spawn(async move {
            run(msgbus(&["pull", "t", "-o", "raw", "-u", &uri, time])).await
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let daemon = Daemon::at(address, |_| {});
        daemon.put("t", "x");
        let ended = waiting.await.unwrap();
        assert_eq!((ended.code, &ended.out[..], &ended.err[..]), (Some(0), "x\n", ""), "{time}");
        daemon.stop().await;
    }
    let uri = nowhere().to_string();
    let away = run(msgbus(&["pull", "t", "-u", &uri, "--timeout=700ms"])).await;
    away.fails(3, "connection refused");
}
