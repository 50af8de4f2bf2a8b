//! `msgbus pub`.

use std::{os::unix::ffi::OsStrExt as _, time::Duration};

use crate::support::{Daemon, Finished, msgbus, name, nowhere, run, run_with};

async fn publish(daemon: &Daemon, args: &[&str], input: &[u8]) -> Finished {
    let mut command = msgbus(&[&["pub"], args].concat());
    command.env("MSGBUS_URI", daemon.uri());
    run_with(command, input).await
}

fn pulled(daemon: &Daemon, topic: &str) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| daemon.bus.get(&name(topic))).map(|m| m.payload().to_vec()).collect()
}

#[tokio::test]
async fn a_message_comes_from_the_argument_or_the_input() {
    let daemon = Daemon::start();
    publish(&daemon, &["t", "argument"], b"not read").await.is_silent();
    publish(&daemon, &["t"], b"piped\n\x00\xff").await.is_silent();
    publish(&daemon, &["t", "-"], b"dash").await.is_silent();
    publish(&daemon, &["t", ""], b"not read").await.is_silent();
    publish(&daemon, &["t", "--", "--dashes"], b"").await.is_silent();
    publish(&daemon, &["/t/", "-w", "slashes"], b"").await.is_silent();
    let expected: [&[u8]; 6] =
        [b"argument", b"piped\n\x00\xff", b"dash", b"", b"--dashes", b"slashes"];
    assert_eq!(pulled(&daemon, "t"), expected);
}

#[tokio::test]
async fn an_argument_need_not_be_utf_8() {
    let daemon = Daemon::start();
    let mut command = msgbus(&["put", "t"]);
    command.arg(std::ffi::OsStr::from_bytes(b"\xff\xfe")).env("MSGBUS_URI", daemon.uri());
    run(command).await.is_silent();
    assert_eq!(pulled(&daemon, "t"), [b"\xff\xfe"]);
}

#[tokio::test]
async fn lines_are_messages() {
    let daemon = Daemon::start();
    publish(&daemon, &["t", "--lines"], b"one\r\ntwo\n\nfour").await.is_silent();
    assert_eq!(pulled(&daemon, "t"), [&b"one"[..], b"two", b"", b"four"]);
    publish(&daemon, &["t", "-l"], b"").await.is_silent();
    assert_eq!(pulled(&daemon, "t"), [b""; 0]);
}

#[tokio::test]
async fn of_lines_the_one_that_failed_is_named() {
    let daemon = Daemon::with(|config| config.max_payload = 5);
    for how in ["--lines", "--split"] {
        let said = publish(&daemon, &["t", how], b"one\ntwo\ntoo long\nfour\n").await;
        said.fails(1, "line 3 and what follows have not been published; lines 1 to 2 have been");
        assert!(said.err.contains("413"), "{said:?}");
        assert_eq!(pulled(&daemon, "t"), [b"one", b"two"]);
    }
    let away =
        run_with(msgbus(&["pub", "t", "--split", "-u", &nowhere().to_string()]), b"one").await;
    away.fails(3, "line 1 and what follows may not have been published");
}

#[tokio::test]
async fn ttl_and_content_type_go_with_it() {
    let daemon = Daemon::start();
    publish(&daemon, &["t", "x", "--ttl=90s", "-t", "text/plain"], b"").await.is_silent();
    let message = daemon.bus.get(&name("t")).unwrap();
    assert_eq!((message.expires().unwrap() - message.created()).num_seconds(), 90);
    assert_eq!(message.content_type(), Some("text/plain"));
}

#[tokio::test]
async fn odd_names_arrive_as_they_are() {
    let daemon = Daemon::start();
    for topic in ["größe/日本", "a b?c#d%20", "x+y&z=1"] {
        publish(&daemon, &[topic, "x"], b"").await.is_silent();
        assert_eq!(pulled(&daemon, topic).len(), 1, "{topic}");
    }
}

#[tokio::test]
async fn a_busy_server_is_waited_for_within_the_timeout() {
    let daemon = Daemon::with(|config| config.bus.max_topics = 1);
    daemon.put("full", "x");
    let refused = publish(&daemon, &["t", "x", "--timeout", "500ms"], b"").await;
    refused.fails(1, "the server is busy");

    let patient = publish(&daemon, &["t", "x", "--timeout", "30s"], b"");
    let make_room = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(daemon.bus.delete(&name("full")));
    };
    let (patient, ()) = tokio::join!(patient, make_room);
    patient.is_silent();
    assert_eq!(pulled(&daemon, "t"), [b"x"]);
}

#[tokio::test]
async fn many_lines_go_by_the_batch() {
    let daemon = Daemon::start();
    let lines: String = (0..2500).map(|n| n.to_string() + "\n").collect();
    publish(&daemon, &["t", "--split"], lines.as_bytes()).await.is_silent();
    let expected: Vec<Vec<u8>> = (0..2500).map(|n| n.to_string().into_bytes()).collect();
    assert_eq!(pulled(&daemon, "t"), expected);
    publish(&daemon, &["t", "--split"], b"").await.is_silent();
    publish(&daemon, &["t", "--wait", "as ever"], b"").await.is_silent();
    assert_eq!(pulled(&daemon, "t"), [b"as ever"]);

    let small = Daemon::with(|config| config.bus.topic.max_messages = 1500);
    let refused = publish(&small, &["t", "--split", "--timeout=1s"], lines.as_bytes()).await;
    assert_eq!(refused.code, Some(0), "each batch fits: {refused:?}");
}

#[tokio::test]
async fn batches_are_as_small_as_the_server_wants_them() {
    let lines: Vec<Vec<u8>> = (0..2500).map(|n| format!("{n:0>100}").into_bytes()).collect();
    let input = lines.join(&b'\n');
    for daemon in [
        Daemon::with(|config| config.max_payload = 3000),
        Daemon::with(|config| config.bus.topic.max_bytes = 20_000),
        Daemon::with(|config| config.bus.topic.max_messages = 10),
    ] {
        publish(&daemon, &["t", "--split"], &input).await.is_silent();
        let stats = daemon.bus.topic(&name("t")).unwrap();
        assert_eq!(stats.counters.published, 2500, "each once");
        let last = pulled(&daemon, "t");
        assert!(last.len() >= 10 && lines.ends_with(&last), "in order");
    }
}

#[tokio::test]
async fn a_long_line_goes_apart() {
    let daemon = Daemon::start();
    let short = vec![b"short".to_vec(); 200];
    let longest = vec![b'x'; 1 << 20];
    let lines = [short, vec![longest, vec![], b"last".to_vec()]].concat();
    publish(&daemon, &["t", "--split"], &lines.join(&b'\n')).await.is_silent();
    assert!(pulled(&daemon, "t") == lines);
}
