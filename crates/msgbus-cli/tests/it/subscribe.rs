//! `msgbus sub`: printing, cut connections, restarts and shutdown.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::{Daemon, Proxy, Running, free_address, msgbus, run, soon};

pub(crate) fn sub(uri: &str, args: &[&str]) -> Running {
    let mut command = msgbus(&[&["sub"], args].concat());
    command.env("MSGBUS_URI", uri);
    Running::start(command)
}

#[tokio::test]
async fn messages_are_lines_of_json_as_they_come() {
    let daemon = Daemon::start();
    let mut running = sub(&daemon.uri(), &["t"]);
    daemon.subscribers(1).await;
    for id in 0..3 {
        daemon.put("t", "x");
        assert_eq!(running.ids(1).await, [id], "printed at once, not when a buffer is full");
    }
    let payload = vec![b'x'; 300_000];
    daemon.put("t", payload);
    assert_eq!(running.ids(1).await, [3]);
}

#[tokio::test]
async fn count_and_timeout_end_it() {
    let daemon = Daemon::start();
    for _ in 0..5 {
        daemon.put("t", "x");
    }
    let counted = sub(&daemon.uri(), &["t", "--since", "1", "-n", "3", "-o", "raw"]).end().await;
    assert_eq!((counted.code, &counted.out[..], &counted.err[..]), (Some(0), "x\nx\nx\n", ""));
    // The timeout includes the time to connect.
    let late = sub(&daemon.uri(), &["t", "--since=all", "-n", "9", "--timeout", "4s"]);
    let ended = sub(&daemon.uri(), &["t", "--timeout", "4s"]);
    let (late, ended) = (late.end().await, ended.end().await);
    assert_eq!((late.code, late.out.lines().count()), (Some(5), 5));
    assert_eq!((ended.code, &ended.out[..]), (Some(0), ""));
    daemon.subscribers(0).await;
}

#[tokio::test]
async fn a_cut_connection_loses_and_repeats_nothing() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let mut running = sub(&proxy.uri(), &["t"]);
    daemon.subscribers(1).await;
    let mut expected = 0;
    for round in 0..4 {
        for _ in 0..100 {
            daemon.put("t", "x");
        }
        // Some are printed, some in flight, some not yet sent.
        let some = running.ids(20 * round + 1).await;
        proxy.cut();
        for _ in 0..50 {
            daemon.put("t", "y");
        }
        let rest = running.ids(150 - some.len()).await;
        for id in some.into_iter().chain(rest) {
            assert_eq!(id, expected);
            expected += 1;
        }
        let note = running.note().await;
        assert!(note.contains("trying again in 0."), "{note}");
        assert_eq!(running.note().await, "msgbus: connected again\n");
    }
}

#[tokio::test]
async fn a_restart_of_the_server_is_noticed_and_followed() {
    let address = free_address();
    let daemon = Daemon::at(address, |_| {});
    let mut running = sub(&daemon.uri(), &["t"]);
    daemon.subscribers(1).await;
    daemon.put("t", "before");
    daemon.put("t", "before");
    assert_eq!(running.ids(2).await, [0, 1]);

    daemon.stop().await;
    let note = running.note().await;
    assert!(note.contains("shutting down"), "{note}");
    let daemon = Daemon::at(address, |_| {});
    daemon.put("t", "after");
    assert_eq!(running.ids(1).await, [0], "everything of the new life");
    let mut notes = String::new();
    while !notes.contains("topic was reset") {
        notes.push_str(&running.note().await);
    }
    assert!(notes.contains("connected again"), "{notes}");
}

#[tokio::test]
async fn missed_messages_are_reported() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 10);
    let proxy = Proxy::to(daemon.address).await;
    let mut running = sub(&proxy.uri(), &["t", "-q"]);
    daemon.subscribers(1).await;
    daemon.put("t", "x");
    assert_eq!(running.ids(1).await, [0]);
    // Published before the client can reconnect: the test has only one thread.
    proxy.cut();
    for _ in 0..30 {
        daemon.put("t", "x");
    }
    assert_eq!(running.ids(10).await, (21..31).collect::<Vec<_>>());
    let note = running.note().await;
    assert_eq!(
        note,
        "msgbus: t: missed 20 messages: the server dropped them before they were delivered (topic limit or TTL)\n"
    );
}

#[tokio::test]
async fn a_closed_pipe_ends_it_quietly() {
    let daemon = Daemon::start();
    let mut running = sub(&daemon.uri(), &["t"]);
    daemon.subscribers(1).await;
    daemon.put("t", "x");
    running.ids(1).await;
    let Running { mut child, out, .. } = running;
    drop(out);
    daemon.put("t", "y");
    daemon.put("t", "z");
    assert_eq!(soon(child.wait()).await.unwrap().code(), Some(0));
    daemon.subscribers(0).await;
}

#[tokio::test]
async fn a_signal_ends_it_with_a_close_frame_and_after_the_command() {
    let daemon = Daemon::start();
    for signal in ["-INT", "-TERM"] {
        let running = sub(&daemon.uri(), &["t"]);
        daemon.subscribers(1).await;
        running.signal(signal);
        running.end().await.is_silent();
        daemon.subscribers(0).await;
    }

    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done");
    let script = format!("echo began; sleep 0.5; touch {}", done.display());
    let mut running = sub(&daemon.uri(), &["t", "sh", "-c", &script]);
    daemon.subscribers(1).await;
    daemon.put("t", "x");
    assert_eq!(running.line().await, "began\n");
    running.signal("-TERM");
    assert_eq!(running.end().await.code, Some(0));
    assert!(done.exists(), "the command was let finish");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let daemon = Daemon::start();
    daemon.put("t", "x");
    let mut running =
        sub(&daemon.uri(), &["t", "--since=all", "sh", "-c", "echo began; exec sleep 30"]);
    assert_eq!(running.line().await, "began\n");
    // A second signal that is too close to the first does not count.
    let ended = soon(async {
        loop {
            running.signal("-TERM");
            if let Ok(ended) = timeout(Duration::from_millis(50), running.child.wait()).await {
                return ended;
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), Some(130));
}

#[tokio::test]
async fn a_reader_that_leaves_ends_it_before_the_next_message() {
    let daemon = Daemon::start();
    daemon.put("t", "x");
    let mut sh = tokio::process::Command::new("sh");
    sh.arg("-c")
        .arg(format!("{} sub t --since all -o raw | head -n 1", env!("CARGO_BIN_EXE_msgbus")));
    sh.env("MSGBUS_URI", daemon.uri());
    sh.stdin(std::process::Stdio::null());
    sh.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ended = run(sh).await;
    assert_eq!((&ended.out[..], &ended.err[..]), ("x\n", ""));
}

#[tokio::test]
async fn a_connection_that_ends_within_its_handshake_is_tried_again() {
    let daemon = Daemon::start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let server = daemon.address;
    tokio::spawn(async move {
        for turn in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
                let (mut from_near, mut to_near) = near.split();
                let (mut from_far, mut to_far) = far.split();
                let request = tokio::io::copy(&mut from_near, &mut to_far);
                // The first connection breaks after some messages, the next two within the response head.
                let most = [700, 60, 0][..].get(turn).copied().unwrap_or(u64::MAX);
                let mut limited = tokio::io::AsyncReadExt::take(&mut from_far, most);
                let answer = tokio::io::copy(&mut limited, &mut to_near);
                tokio::select! { _ = request => {}, _ = answer => {} }
            });
        }
    });
    for _ in 0..5 {
        daemon.put("t", "x");
    }
    let mut running = sub(&uri, &["t", "--since", "all"]);
    assert_eq!(running.ids(5).await, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_busy_server_is_retried_at_the_start_too() {
    let daemon = Daemon::with(|config| config.max_connections = 1);
    let held = tokio::net::TcpStream::connect(daemon.address).await.unwrap();
    let mut running = sub(&daemon.uri(), &["t", "--timeout", "50s"]);
    let note = running.note().await;
    assert!(note.contains("too many connections") && note.contains("trying again"), "{note}");
    drop(held);
    daemon.subscribers(1).await;
}

#[tokio::test]
async fn no_connection_in_time_is_an_exit_of_3() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", silent.local_addr().unwrap());
    let ended = sub(&uri, &["t", "--timeout", "300ms"]).end().await;
    ended.fails(3, "no connection within --timeout");
}

#[tokio::test]
async fn a_closed_standard_error_is_no_reason_to_end() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let mut command = msgbus(&["sub", "t"]);
    command.env("MSGBUS_URI", proxy.uri());
    let mut child = command.spawn().unwrap();
    drop(child.stderr.take());
    daemon.subscribers(1).await;
    let mut out = tokio::io::BufReader::new(child.stdout.take().unwrap());
    for id in 0..2 {
        daemon.put("t", "x");
        let mut line = String::new();
        soon(tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line)).await.unwrap();
        assert_eq!(msgbus_core::json::read_message(line.as_bytes()).unwrap().id(), id);
        proxy.cut();
    }
}

/// It waits, and skips the messages before that id.
#[tokio::test]
async fn an_id_that_is_not_reached_yet_is_waited_for() {
    let daemon = Daemon::start();
    daemon.put("t", "0");
    let args = ["t", "--since", "3", "-n", "2", "-o", "raw"];
    let mut running = sub(&daemon.uri(), &args);
    assert_eq!(running.note().await, "msgbus: t has no message 3 yet (next id is 1)\n");
    daemon.subscribers(1).await;
    for payload in ["1", "2", "3", "4"] {
        daemon.put("t", payload);
    }
    let ended = running.end().await;
    assert_eq!((&ended.out[..], &ended.err[..]), ("3\n4\n", ""));
    // If the id is the next one, nothing is skipped.
    let mut running = sub(&daemon.uri(), &["t", "--since", "5", "-n", "1", "-o", "raw"]);
    daemon.subscribers(1).await;
    daemon.put("t", "5");
    assert_eq!(running.line().await, "5\n");
    running.end().await.is_silent();
    let mut running = sub(&daemon.uri(), &["new", "--since", "1", "-n", "1", "-o", "raw"]);
    assert_eq!(running.note().await, "msgbus: new has no message 1 yet (next id is 0)\n");
    daemon.subscribers(1).await;
    daemon.put("new", "0");
    daemon.put("new", "1");
    assert_eq!(running.end().await.out, "1\n");
    let none = sub(&daemon.uri(), &["t", "--since", "9", "--poll"]).end().await;
    assert_eq!((none.code, &none.out[..]), (Some(0), ""));
    assert_eq!(none.err, "msgbus: t has no message 9 yet (next id is 6)\n");
}

/// A message of the server's default size limit, in base64 with the JSON around it.
#[tokio::test]
async fn the_largest_message_is_received() {
    let daemon = Daemon::start();
    let payload = vec![b'x'; 1 << 20];
    daemon.put("t", payload.clone());
    let ended = sub(&daemon.uri(), &["t", "--all", "-n", "1", "-N", "-o", "raw"]).end().await;
    assert!(ended.out.as_bytes() == payload);
}
