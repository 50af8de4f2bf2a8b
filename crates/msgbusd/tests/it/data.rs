//! `msgbusd data`, and the start on a directory of data. docs/operations.md, "Keeping messages".

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStderr, ExitStatus},
    sync::Arc,
    thread,
    time::Duration,
};

use msgbus_core::{MessageBus, NewMessage, Options, TopicSettings, store::Promise};
use msgbus_engine_testkit::server::send_signal;
use msgbus_store::{LogStore, StoreOptions};
use tempfile::TempDir;

use crate::{
    binary::msgbusd,
    durable::{Load, body, peek_all, put, start, status},
};

fn data(args: &[&str]) -> (ExitStatus, String) {
    let output = msgbusd(&[&["data"], args].concat()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8(text).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_backup_under_load_has_everything_that_was_confirmed_before() {
    const ROUNDS: usize = 3;
    let folder = TempDir::new().unwrap();
    let live = folder.path().join("live");
    let flags = ["--ttl", "0", "--max-queue-size", "10000000", "--max-queue-bytes", "1GiB"];
    let daemon = start(&live, &flags);
    // Large enough that the log goes on to other files meanwhile.
    let load = Load::of_size(4 << 10);
    let mut backups = Vec::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load.publisher(&daemon));
        }
        for _ in 0..2 {
            scope.spawn(|| load.puller(&daemon));
        }
        let _stop = load.stop_when_dropped();
        for round in 0..ROUNDS {
            load.wait_for_more(100);
            let confirmed = load.confirmed();
            let copy = folder.path().join(format!("copy-{round}"));
            backups.push((data(&["backup", text(&live), text(&copy)]), copy, confirmed));
        }
    });
    for ((exit, said), copy, (published, pulled)) in backups {
        assert!(exit.success() && said.contains("all records are good"), "{said}");
        let second = start(&copy, &flags);
        let answer = second.say("GET /t?peek&since=all&max=10000");
        let kept: BTreeMap<_, _> = peek_all(&second, &answer).into_iter().collect();
        for (id, text) in published {
            assert_eq!(kept.get(&id), Some(&text), "message {id} was confirmed before the backup");
        }
        let next = second.say("GET /t?raw");
        if status(&next) == 200 {
            assert!(
                !pulled.iter().any(|text| text == body(&next)),
                "a message comes a second time"
            );
        }
    }
}

#[test]
fn a_dump_says_nothing_about_a_ttl_that_was_not_kept() {
    let folder = TempDir::new().unwrap();
    let daemon = start(folder.path(), &["--ttl", "1h"]);
    put(&daemon, "/t", "x");
    let (exit, line) = data(&["dump", text(folder.path())]);
    let message: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(exit.success() && message["topic"].get("ttl").is_none(), "{line}");
    assert_eq!((message["payload"].as_str(), line.lines().count()), (Some("eA=="), 1));
    msgbus_core::json::read_message(line.as_bytes()).unwrap();
    let (_, said) = data(&["check", text(folder.path())]);
    assert!(said.contains(": 1 message in 1 topic; all records are good\n"), "{said}");
}

#[test]
fn a_directory_without_data_is_named_once_and_not_made() {
    let folder = TempDir::new().unwrap();
    let nowhere = folder.path().join("nowhere");
    for command in ["check", "dump", "compact"] {
        let (exit, said) = data(&[command, text(&nowhere)]);
        let name = nowhere.display();
        let expected = format!(
            "msgbusd: there is no data of msgbusd in {name}; name the directory of --data\n"
        );
        assert_eq!((exit.code(), said), (Some(1), expected));
    }
    assert!(!nowhere.exists());
    std::fs::write(&nowhere, "").unwrap();
    let output = msgbusd(&["--bind", "127.0.0.1:0", "--data", text(&nowhere)]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("is not a directory").count(), 1, "{said}");
}

/// Changes one bit of the first place in the log that holds `text`.
fn damage(directory: &Path, text: &str) {
    for entry in directory.join("log").read_dir().unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(text.len()).position(|part| part == text.as_bytes());
        if let Some(at) = found {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("{text} is nowhere");
}

#[test]
fn what_a_repair_skipped_is_in_the_metrics() {
    let folder = TempDir::new().unwrap();
    let daemon = start(folder.path(), &[]);
    for text in ["first message", "second message", "third message"] {
        put(&daemon, "/t", text);
    }
    daemon.signal("-TERM");
    assert!(daemon.end().0.success());
    damage(folder.path(), "second message");
    let (exit, said) = data(&["check", text(folder.path())]);
    assert!(exit.code() == Some(1) && said.contains("1 part is damaged"), "{said}");

    let daemon = start(folder.path(), &["--repair"]);
    let page = daemon.say("GET /metrics");
    let value = |name: &str| -> u64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    };
    assert_eq!(value("msgbus_store_skipped_parts"), 1);
    assert!((14..200).contains(&value("msgbus_store_skipped_bytes")), "{page}");
    assert_eq!(value("msgbus_store_unreadable"), 0);
    assert_eq!(body(&daemon.say("GET /t?raw")), "first message");
    assert_eq!(body(&daemon.say("GET /t?raw")), "third message");
}

/// Fills a directory, so that reading it takes a while.
fn fill(directory: &Path, messages: usize) {
    let store = LogStore::open(directory, StoreOptions::default()).unwrap();
    let promise = Promise::Written { sync_every: Duration::from_secs(60) };
    let topic = TopicSettings { promise, max_messages: messages, ..TopicSettings::default() };
    let bus = MessageBus::open(Options { topic, ..Options::default() }, Arc::new(store)).unwrap();
    for _ in 0..messages / 1000 {
        let batch = (0..1000).map(|_| NewMessage::new("x")).collect();
        bus.put_batch(&"t".parse().unwrap(), batch).unwrap();
    }
    bus.close().unwrap();
}

/// A server that has just begun to read its directory.
struct Starting {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Starting {
    fn on(directory: &Path) -> Self {
        let mut child =
            msgbusd(&["--open", "--bind", "0.0.0.0:0", "--data", text(directory)]).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        // This warning comes after signals are listened to, and before the directory is read.
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        assert!(line.contains("--open: any client"), "{line}");
        Self { child, log }
    }

    fn signal(&self, name: &str) {
        assert!(send_signal(self.child.id(), name));
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_signal_is_heard_while_the_directory_is_read() {
    const ATTEMPTS: usize = 50;
    let folder = TempDir::new().unwrap();
    fill(folder.path(), 300_000);
    let mut hung_up = Starting::on(folder.path());
    hung_up.signal("-HUP");
    let mut log = String::new();
    while !log.contains("listening on") {
        assert_ne!(hung_up.log.read_line(&mut log).unwrap(), 0, "it ended: {log}");
    }
    drop(hung_up);
    // On a slow machine, everything may be read before the signal comes.
    let stopped_early = (0..ATTEMPTS).any(|_| {
        let mut stopped = Starting::on(folder.path());
        stopped.signal("-TERM");
        let mut log = String::new();
        stopped.log.read_to_string(&mut log).unwrap();
        assert!(stopped.child.wait().unwrap().success(), "{log}");
        let is_early = log.contains("received SIGTERM before the start was complete: stopped");
        assert_ne!(is_early, log.contains("listening on"), "{log}");
        is_early
    });
    assert!(stopped_early, "it reads everything before it looks at signals");
    let daemon = start(folder.path(), &[]);
    assert_eq!(status(&daemon.say("GET /t?raw")), 200);
}
