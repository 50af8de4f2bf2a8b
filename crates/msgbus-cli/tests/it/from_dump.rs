//! `msgbus pub --from-dump`.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use chrono::{TimeDelta, Utc};
use msgbus_core::{Event, Headers, Message, MessageBus, NewMessage, Options, Position, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::{Daemon, Finished, Running, in_memory, msgbus, name, run_with, soon};

async fn publish(daemon: &Daemon, input: impl AsRef<[u8]>) -> Finished {
    let command = msgbus(&["pub", "--from-dump", "--uri", &daemon.uri()]);
    run_with(command, input.as_ref()).await
}

/// A message as a server has it.
fn message(topic: &str, message: impl Into<NewMessage>) -> Message {
    let bus = MessageBus::new(Options::default());
    bus.put(&name(topic), message).unwrap();
    bus.get(&name(topic)).unwrap().unwrap()
}

/// The message as it is printed.
fn object(message: &Message) -> serde_json::Value {
    let mut line = Vec::new();
    json::write_message(&mut line, message);
    serde_json::from_slice(&line).unwrap()
}

/// A message of half an hour ago as a line.
fn line(topic: &str, payload: &str, lifetime: TimeDelta) -> String {
    let created = Utc::now() - TimeDelta::minutes(30);
    let mut line = object(&message(topic, payload.to_owned()));
    line["created"] = json::format_time(created).into();
    line["expires"] = json::format_time(created + lifetime).into();
    format!("{line}\n")
}

fn pulled(daemon: &Daemon, topic: &str) -> Vec<Message> {
    std::iter::from_fn(|| daemon.bus.get(&name(topic)).unwrap()).collect()
}

fn payloads(daemon: &Daemon, topic: &str) -> Vec<Vec<u8>> {
    pulled(daemon, topic).iter().map(|message| message.payload().to_vec()).collect()
}

#[tokio::test]
async fn every_message_goes_to_its_topic_in_order() {
    let daemon = Daemon::start();
    let (mut input, mut before) = (String::new(), Vec::new());
    let payloads: [&[u8]; 8] =
        [b"plain", b"", b"two\nlines", b"\n", b"\r", b"ends with \r", b"\xff\0", b"last"];
    for (number, payload) in payloads.into_iter().cycle().take(2000).enumerate() {
        let mut new = NewMessage::new(payload.to_vec());
        if number % 7 == 0 {
            new = new.header("content-type", "text/plain").unwrap();
            new = new.header("x-number", &number.to_string()).unwrap();
            new = new.header("x-number", "again").unwrap();
        } else if number % 7 < 4 {
            new = new.header("content-encoding", "gzip").unwrap();
        }
        let message = message(["a", "b/ü c"][number % 3 % 2], new);
        input += &format!("{}\n", object(&message));
        before.push(message);
    }
    publish(&daemon, &input).await.is_silent();
    let content = |message: &Message| (message.payload().clone(), message.headers().clone());
    for topic in ["a", "b/ü c"] {
        let before = before.iter().filter(|message| message.topic().name == name(topic));
        let before: Vec<_> = before.map(content).collect();
        let after: Vec<_> = pulled(&daemon, topic).iter().map(content).collect();
        assert!(before.len() > 500 && before == after, "{topic}: {} {}", before.len(), after.len());
    }
}

#[tokio::test]
async fn the_ttl_that_is_left_is_kept() {
    let daemon = Daemon::with(|config| config.bus.topic.ttl = None);
    let hour = TimeDelta::hours(1);
    let mut input = [
        line("t", "expired", TimeDelta::minutes(29)),
        line("t", "short", TimeDelta::minutes(31)),
        line("t", "long", hour),
        line("t", "long too", hour + TimeDelta::milliseconds(500)),
        line("u", "expired too", TimeDelta::minutes(30)),
    ]
    .concat();
    let mut forever: serde_json::Value = serde_json::from_str(&line("t", "forever", hour)).unwrap();
    forever.as_object_mut().unwrap().remove("expires");
    input += &forever.to_string();
    let said = publish(&daemon, &input).await;
    let note = "msgbus: 2 messages had expired and were not published\n";
    assert_eq!((said.code, &said.err[..]), (Some(0), note), "{said:?}");
    let messages = pulled(&daemon, "t");
    let left: Vec<_> = messages.iter().map(Message::expires).collect();
    let minutes = |minutes| Utc::now() + TimeDelta::minutes(minutes);
    assert_eq!(messages.len(), 4, "{messages:?}");
    for (expires, about) in [(left[0], minutes(1)), (left[1], minutes(30)), (left[2], minutes(30))]
    {
        let error = expires.unwrap() - about;
        // The time of this test makes it earlier; the common ttl of a batch up to a second later.
        assert!(error > TimeDelta::seconds(-20) && error < TimeDelta::seconds(20), "{error}");
    }
    assert_eq!(left[3], None);
}

#[tokio::test]
async fn a_line_that_is_no_message_is_named() {
    let daemon = Daemon::start();
    let good = line("t", "x", TimeDelta::hours(1));
    for (bad, mention) in [
        ("hello", "line 4 is not a message: expected value at column 1; expected JSON as msgbusd"),
        ("{\"id\":1}", "line 4 is not a message: missing field `topic`"),
        (&good.replace("\"t\"", "\"\"")[..], "line 4 is not a message: "),
        (&good.replace("eA==", "?"), "line 4 is not a message: the payload is not base64"),
        (&good[..40], "line 4 is not a message: EOF while parsing"),
    ] {
        let input = [&good, "\n", &good, bad, "\n", &good].concat();
        let said = publish(&daemon, input).await;
        said.fails(1, mention);
        let progress = "line 4 was not published, 2 messages were; to go on, start at line 4\n";
        assert!(said.err.ends_with(progress), "{said:?}");
        assert_eq!(payloads(&daemon, "t"), [b"x", b"x"], "{bad}");
    }
    publish(&daemon, "").await.is_silent();
}

/// What streams send beside messages is skipped.
#[tokio::test]
async fn a_recorded_stream_is_a_dump() {
    let daemon = Daemon::start();
    let good = line("t", "x", TimeDelta::hours(1));
    let gap = "{\"event\":\"gap\",\"missed\":7}\n";
    let restart = "{\"event\":\"restart\",\"epoch\":1,\"first\":0}\n";
    let said = publish(&daemon, [restart, &good, "\n", gap, &good].concat()).await;
    let note = "msgbus: the input says that 7 messages are missing in it\n";
    assert_eq!((said.code, &said.err[..]), (Some(0), note), "{said:?}");
    assert_eq!(payloads(&daemon, "t"), [b"x", b"x"]);
}

#[tokio::test]
async fn a_refused_message_is_named() {
    let daemon = Daemon::with(|config| config.max_payload = 5);
    let hour = TimeDelta::hours(1);
    let input =
        [line("t", "one", hour), line("t", "too long", hour), line("t", "three", hour)].concat();
    let said = publish(&daemon, input).await;
    said.fails(1, "413");
    let progress =
        "line 2 was not published, 1 message was; to go on, start at line 1, which repeats 1\n";
    assert!(said.err.ends_with(progress), "{said:?}");
    assert_eq!(payloads(&daemon, "t"), [b"one"]);
}

#[tokio::test]
async fn batches_shrink_to_what_the_server_accepts() {
    let hour = TimeDelta::hours(1);
    let input: String = (0..500).map(|n| line("t", &format!("{n:0>100}"), hour)).collect();
    for daemon in [
        Daemon::with(|config| config.max_payload = 3000),
        Daemon::with(|config| config.bus.topic.max_messages = 10),
    ] {
        publish(&daemon, &input).await.is_silent();
        let stats = daemon.bus.topic(&name("t")).unwrap();
        assert_eq!(stats.counters.published, 500, "each once");
        let last = payloads(&daemon, "t");
        assert_eq!(last.last().unwrap(), format!("{:0>100}", 499).as_bytes());
    }
}

/// A message is not held back until more of them arrive.
#[tokio::test]
async fn a_message_is_published_when_it_arrives() {
    let daemon = Daemon::start();
    let mut command = msgbus(&["pub", "--from-dump", "--uri", &daemon.uri()]);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    let mut stdin = running.stdin.take().unwrap();
    let mut subscription = daemon.bus.subscribe(&name("t"), Position::New).unwrap();
    for text in ["one", "two"] {
        // With the keep-alive of a stream.
        let sent = line("t", text, TimeDelta::hours(1)) + "\n";
        stdin.write_all(sent.as_bytes()).await.unwrap();
        match soon(subscription.recv()).await.unwrap() {
            Event::Message { message, .. } => assert_eq!(message.payload(), text),
            missed @ Event::Missed { .. } => panic!("{missed:?}"),
        }
    }
    drop(stdin);
    running.end().await.is_silent();
}

#[tokio::test]
async fn a_message_may_be_large_and_other_input_is_refused_early() {
    let daemon = Daemon::with(|config| config.max_payload = 4 << 20);
    let long = "x".repeat(4 << 20);
    let hour = TimeDelta::hours(1);
    let large = format!("{}\n", object(&message("t", long.clone())));
    publish(&daemon, [&large, &line("t", "short", hour)[..]].concat()).await.is_silent();
    assert!(payloads(&daemon, "t") == [long.as_bytes(), b"short"]);

    let mut command = in_memory(24_000, &["pub", "--from-dump", "--uri", &daemon.uri()]);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    let mut stdin = running.stdin.take().unwrap();
    let feed = async { while stdin.write_all(&[0; 1 << 14]).await.is_ok() {} };
    soon(feed).await;
    running.end().await.fails(1, "line 1 is not a message");
}

/// The daemon's binary, if it was built: a test of the workspace builds it.
fn msgbusd(args: &[&str]) -> Option<Command> {
    let binary = Path::new(env!("CARGO_BIN_EXE_msgbus")).with_file_name("msgbusd");
    if !binary.exists() {
        assert!(std::env::var_os("MSGBUS_TEST_ALL").is_none(), "needs {}", binary.display());
        return None;
    }
    let mut command = Command::new(binary);
    command.args(args).env_clear();
    Some(command)
}

#[tokio::test]
async fn a_dump_of_one_server_fills_another() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let first = Daemon::with(|config| {
        config.data = Some(folder.path().to_owned());
        config.bus.topic.promise = config.sync;
    });
    let headers = Headers::new([("content-type", "text/plain"), ("reply-to", "answers")]).unwrap();
    let put = |topic: &str, text: String| {
        let message = NewMessage::new(text).headers(headers.clone());
        first.bus.put(&name(topic), message).unwrap();
    };
    for number in 0..100 {
        put("with/headers", format!("{number}\nline"));
        put("with/headers/lines", number.to_string());
        first.put("plain", number.to_string());
    }
    first.bus.put(&name("plain"), NewMessage::new("gone").ttl(Duration::from_millis(1))).unwrap();

    // While the first server still runs.
    let Some(mut dump) = msgbusd(&["data", "dump", data]) else { return };
    let dump = soon(tokio::task::spawn_blocking(move || dump.output())).await.unwrap().unwrap();
    assert!(dump.status.success(), "is msgbusd built from this source? {dump:?}");
    let second = Daemon::start();
    let said = publish(&second, &dump.stdout).await;
    assert_eq!((said.code, &said.out[..]), (Some(0), ""), "{said:?}");
    for topic in ["with/headers", "with/headers/lines", "plain"] {
        let (before, after) = (pulled(&first, topic), pulled(&second, topic));
        assert_eq!((before.len(), after.len()), (100, 100), "{topic}");
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((before.payload(), before.headers()), (after.payload(), after.headers()));
            let later = after.expires().unwrap() - before.expires().unwrap();
            assert!(later.abs() <= TimeDelta::seconds(20), "{later}");
        }
    }
    first.stop().await;
}
