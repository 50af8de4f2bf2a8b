//! `--data`: what was accepted is there after a restart, a crash, and a full disk. docs/storage.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use msgbus_engine_testkit::server::send_signal;
use tempfile::TempDir;

use crate::{
    binary::{Running, msgbusd},
    process::refuses,
};

pub(crate) fn start(data: &Path, args: &[&str]) -> Running {
    let data = data.to_str().unwrap();
    let args = [&["--bind", "127.0.0.1:0", "--data", data], args].concat();
    Running::start(&mut msgbusd(&args))
}

/// Ends the process without a chance to write anything.
fn kill(mut daemon: Running) {
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
}

pub(crate) fn status(answer: &str) -> u16 {
    answer.get(9..12).unwrap().parse().unwrap()
}

fn header<'a>(answer: &'a str, name: &str) -> &'a str {
    let mut lines = answer.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(other, _)| other.eq_ignore_ascii_case(name)).unwrap().1
}

pub(crate) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

/// Publishes one message on a connection of its own.
pub(crate) fn put(daemon: &Running, target: &str, body: &str) -> String {
    let length = body.len();
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    let head = "Host: localhost\r\nConnection: close\r\nX-Kept: yes\r\nContent-Type: text/plain";
    write!(stream, "PUT {target} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn everything_is_there_after_a_kill() {
    let data = TempDir::new().unwrap();
    let daemon = start(data.path(), &["--keep-headers", "X-Kept"]);
    for text in ["zero", "one", "two"] {
        let answer = put(&daemon, "/t", text);
        assert_eq!((status(&answer), header(&answer, "Msgbus-Durability")), (202, "synced"));
    }
    assert_eq!(body(&daemon.say("GET /t?raw")), "zero");
    assert_eq!(status(&put(&daemon, "/deleted", "x")), 202);
    assert_eq!(status(&daemon.say("DELETE /deleted")), 204);
    let before = daemon.say("GET /-/topics/t");
    kill(daemon);

    let daemon = start(data.path(), &[]);
    assert_eq!(body(&daemon.say("GET /")), "t\n");
    let after = daemon.say("GET /-/topics/t");
    for field in ["epoch", "created", "next_id", "published", "pulled", "unpulled"] {
        let value = |answer: &str| {
            let object: serde_json::Value = serde_json::from_str(body(answer)).unwrap();
            object.get(field).cloned().unwrap_or_else(|| panic!("no {field} in {object}"))
        };
        assert_eq!(value(&before), value(&after), "{field}");
    }
    let epoch = header(&daemon.say("HEAD /t"), "Msgbus-Epoch").to_owned();
    let rest = daemon.say(&format!("GET /t?peek&since={epoch}-0&max=10"));
    assert!(rest.contains("\"id\":1") && rest.contains("\"id\":2"), "{rest}");
    assert!(!rest.contains("\"id\":0"), "{rest}");
    let one = daemon.say("GET /t?raw");
    assert_eq!((body(&one), header(&one, "Content-Type")), ("one", "text/plain"));
    assert_eq!(header(&one, "Msgbus-Header-X-Kept"), "yes");
    assert_eq!(header(&put(&daemon, "/t", "three"), "Msgbus-Id"), "3");
    kill(daemon);
    let daemon = start(data.path(), &[]);
    assert_eq!(body(&daemon.say("GET /t?raw")), "two", "a pulled message does not come again");
}

#[test]
fn groups_and_their_leases_are_there_after_a_kill() {
    let data = TempDir::new().unwrap();
    let daemon = start(data.path(), &[]);
    assert_eq!(status(&daemon.say("PUT /-/groups/g/t?max_leases=7&max_deliveries=5")), 201);
    for text in ["zero", "one", "two", "three"] {
        assert_eq!(status(&put(&daemon, "/t", text)), 202);
    }
    let leased = |daemon: &Running, id: &str| {
        let answer = daemon.say("GET /t?group=g&lease=1h&raw");
        assert_eq!((status(&answer), header(&answer, "Msgbus-Id")), (200, id), "{answer}");
        header(&answer, "Msgbus-Lease").to_owned()
    };
    let tokens = ["0", "1", "2"].map(|id| leased(&daemon, id));
    let settle = |daemon: &Running, verb: &str, token: &str| {
        status(&daemon.say(&format!("POST /-/{verb}/{token}")))
    };
    assert_eq!(settle(&daemon, "ack", &tokens[0]), 204);
    assert_eq!(settle(&daemon, "nack", &tokens[1]), 204);
    // A nack waits for nothing: only the ack that follows is sure to be kept, and all before it.
    let again = leased(&daemon, "1");
    let group = |daemon: &Running| -> serde_json::Value {
        let mut group: serde_json::Value =
            serde_json::from_str(body(&daemon.say("GET /-/groups/g/t"))).unwrap();
        for lease in group["leases"].as_array_mut().unwrap() {
            for lost in ["holder", "since", "expires"] {
                assert!(lease.as_object_mut().unwrap().remove(lost).is_some(), "{lost}");
            }
        }
        group
    };
    let before = group(&daemon);
    assert_eq!(
        (&before["leased"], &before["acked"], &before["nacked"]),
        (&2.into(), &1.into(), &1.into())
    );
    kill(daemon);

    let daemon = start(data.path(), &[]);
    assert_eq!(group(&daemon), before);
    assert_eq!(settle(&daemon, "ack", &tokens[0]), 410, "acknowledged before the kill");
    assert_eq!(settle(&daemon, "ack", &tokens[1]), 410, "given back before the kill");
    assert_eq!(settle(&daemon, "ack", &again), 204);
    assert_eq!(settle(&daemon, "extend", &tokens[2]), 204);
    leased(&daemon, "3");
    assert_eq!(status(&daemon.say("GET /t?group=g")), 404, "the other lease goes on");
    kill(daemon);
    let daemon = start(data.path(), &[]);
    let after = group(&daemon);
    assert_eq!(
        (&after["leased"], &after["acked"], &after["delivered"]),
        (&2.into(), &2.into(), &5.into())
    );
}

#[test]
fn a_subscriber_resumes_across_a_kill() {
    let data = TempDir::new().unwrap();
    let daemon = start(data.path(), &[]);
    put(&daemon, "/t", "zero");
    let follow = |daemon: &Running, header: &str| {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        write!(stream, "GET /t?stream=sse HTTP/1.1\r\nHost: localhost\r\n{header}\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        // Only with the response it is certain that the subscription has its position.
        read_head(&mut reader).unwrap();
        reader
    };
    let event = |reader: &mut BufReader<TcpStream>| {
        let (mut id, mut line) = (String::new(), String::new());
        while !line.starts_with("data: ") {
            line.clear();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0);
            assert!(!line.starts_with("event:"), "{line}");
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.trim_end().to_owned();
            }
        }
        (id, line)
    };
    let mut stream = follow(&daemon, "");
    put(&daemon, "/t", "one");
    let (last, data_line) = event(&mut stream);
    assert!(data_line.contains("\"id\":1"), "{data_line}");
    put(&daemon, "/t", "two");
    kill(daemon);
    let daemon = start(data.path(), &[]);
    put(&daemon, "/t", "three");
    let mut stream = follow(&daemon, &format!("Last-Event-ID: {last}\r\n"));
    for id in [2, 3] {
        let (_, line) = event(&mut stream);
        assert!(line.contains(&format!("\"id\":{id}")), "{line}");
    }
}

#[test]
fn some_topics_promise_less() {
    let (data, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = folder.path().join("bus.toml");
    let rules = "[topics.\"memory/**\"]\ndurable = false\n[topics.fast]\nsync = \"1s\"\n";
    std::fs::write(&file, rules).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let daemon = start(data.path(), &config);
    for (target, durability) in [("/t", "synced"), ("/fast", "written"), ("/memory/t", "memory")] {
        assert_eq!(header(&put(&daemon, target, "x"), "Msgbus-Durability"), durability);
    }
    kill(daemon);
    let daemon = start(data.path(), &config);
    assert_eq!(body(&daemon.say("GET /")), "fast\nt\n");
    assert!(daemon.opening.contains(&format!("keeping messages in {}", data.path().display())));

    let refused = |args: &[&str], mention: &[&str]| refuses(&mut msgbusd(args), mention);
    refused(&["--sync", "always"], &["--sync", "needs --data DIR"]);
    refused(&["--data", "x", "--sync", "never"], &["--sync", "use always, or 1s"]);
    refused(&config, &["bus.toml:4: sync", "needs --data DIR"]);
}

#[test]
fn a_stop_keeps_everything_and_says_so() {
    let data = TempDir::new().unwrap();
    let daemon = start(data.path(), &["--sync", "1h"]);
    let answer = put(&daemon, "/t", "x");
    assert_eq!(header(&answer, "Msgbus-Durability"), "written");
    daemon.signal("-TERM");
    let (exit, log) = daemon.end();
    assert!(exit.success() && log.contains("stopped; kept 1 message on disk"), "{log}");
    let daemon = start(data.path(), &[]);
    assert_eq!(body(&daemon.say("GET /t?raw")), "x");
}

#[test]
fn a_directory_that_cannot_be_used_is_one_line() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let daemon = start(&data, &[]);
    put(&daemon, "/t", "x");
    let mode = std::fs::metadata(&data).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    let fails = |path: &Path, mention: &str| {
        let args = ["--bind", "127.0.0.1:0", "--data", path.to_str().unwrap()];
        let output = msgbusd(&args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(mention) && text.contains("data"), "{text:?}: no {mention:?}");
        let problems = text.lines().filter(|line| line.starts_with("msgbusd: ")).count();
        assert_eq!(problems, 1, "{text}");
    };
    fails(&data, &format!("(pid {})", daemon.child.id()));
    kill(daemon);
    let file = folder.path().join("data-file");
    std::fs::write(&file, "").unwrap();
    fails(&file, "not a directory");
}

/// Publishes and pulls from several connections, and records what the server has answered.
pub(crate) struct Load {
    /// The size of each message, or more if its number is longer.
    size: usize,
    stop: AtomicBool,
    /// Confirmed messages of each topic, by id.
    published: Mutex<BTreeMap<u64, String>>,
    pulled: Mutex<Vec<String>>,
    unknown_pulls: AtomicUsize,
    next: AtomicUsize,
}

impl Load {
    pub(crate) fn of_size(size: usize) -> Self {
        Self {
            size,
            stop: AtomicBool::new(false),
            published: Mutex::default(),
            pulled: Mutex::default(),
            unknown_pulls: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        }
    }

    /// Stops the load when the result is dropped, also by a panic.
    pub(crate) fn stop_when_dropped(&self) -> impl Drop {
        StopWhenDropped(&self.stop)
    }

    /// Waits until so many more messages are confirmed.
    pub(crate) fn wait_for_more(&self, count: usize) {
        let confirmed = || self.published.lock().unwrap().len();
        let (before, start) = (confirmed(), Instant::now());
        while confirmed() < before + count {
            assert!(start.elapsed() < Duration::from_secs(300), "only {}", confirmed() - before);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What was confirmed so far: the messages that were published, by id, and those that were pulled.
    pub(crate) fn confirmed(&self) -> (BTreeMap<u64, String>, Vec<String>) {
        (self.published.lock().unwrap().clone(), self.pulled.lock().unwrap().clone())
    }

    pub(crate) fn publisher(&self, daemon: &Running) {
        let Ok(stream) = TcpStream::connect(daemon.address) else { return };
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while !self.stop.load(Relaxed) {
            let text = format!("m{:0width$}", self.next.fetch_add(1, Relaxed), width = self.size);
            let length = text.len();
            let request = format!(
                "PUT /t HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{text}"
            );
            let Ok(()) = stream.write_all(request.as_bytes()) else { return };
            let Some(head) = read_head(&mut reader) else { return };
            let id = header(&head, "Msgbus-Id").parse().unwrap();
            let before = self.published.lock().unwrap().insert(id, text);
            assert_eq!(before, None, "id {id} was given twice");
        }
    }

    pub(crate) fn puller(&self, daemon: &Running) {
        let Ok(stream) = TcpStream::connect(daemon.address) else { return };
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while !self.stop.load(Relaxed) {
            let request = "GET /t?raw HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let Ok(()) = stream.write_all(request.as_bytes()) else { return };
            self.unknown_pulls.fetch_add(1, Relaxed);
            let Some(head) = read_head(&mut reader) else { return };
            let mut content = vec![0; header(&head, "Content-Length").parse().unwrap()];
            let Ok(()) = reader.read_exact(&mut content) else { return };
            self.unknown_pulls.fetch_sub(1, Relaxed);
            if status(&head) == 200 {
                self.pulled.lock().unwrap().push(String::from_utf8(content).unwrap());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn read_head(reader: &mut impl std::io::BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if !matches!(reader.read_line(&mut head), Ok(1..)) {
            return None;
        }
    }
    Some(head)
}

/// The number of kills; more in CI.
fn kills() -> usize {
    if std::env::var_os("MSGBUS_TEST_ALL").is_some() { 200 } else { 20 }
}

#[test]
fn kills_under_load_lose_nothing() {
    let data = TempDir::new().unwrap();
    let load = Load::of_size(1);
    let args = ["--ttl", "0", "--max-queue-size", "10000000", "--max-queue-bytes", "1GiB"];
    for round in 0..kills() {
        let args = [&args[..], &["--sync", ["always", "1s"][round % 2]]].concat();
        let mut daemon = start(data.path(), &args);
        let pid = daemon.child.id();
        load.stop.store(false, Relaxed);
        thread::scope(|scope| {
            let daemon = &daemon;
            for _ in 0..4 {
                scope.spawn(|| load.publisher(daemon));
            }
            for _ in 0..2 {
                scope.spawn(|| load.puller(daemon));
            }
            thread::sleep(Duration::from_millis(10 + 7 * (round as u64 % 13)));
            assert!(send_signal(pid, "-9"));
            load.stop.store(true, Relaxed);
        });
        daemon.child.wait().unwrap();
    }
    let daemon = start(data.path(), &args);
    let answer = daemon.say("GET /t?peek&since=all&max=10000000");
    let (published, pulled) = (load.published.lock().unwrap(), load.pulled.lock().unwrap());
    let mut kept = BTreeMap::new();
    for object in peek_all(&daemon, &answer) {
        kept.insert(object.0, object.1);
    }
    for (id, text) in &*published {
        assert_eq!(kept.get(id), Some(text), "message {id} was confirmed");
    }
    let distinct: BTreeSet<_> = pulled.iter().collect();
    assert_eq!(distinct.len(), pulled.len(), "a message was pulled twice");
    let details: serde_json::Value =
        serde_json::from_str(body(&daemon.say("GET /-/topics/t"))).unwrap();
    let counted = usize::try_from(details["pulled"].as_u64().unwrap()).unwrap();
    let range = pulled.len()..=pulled.len() + load.unknown_pulls.load(Relaxed);
    assert!(range.contains(&counted), "{counted} pulled, expected {range:?}");
}

/// All messages of the topic, in pages of the maximum size.
pub(crate) fn peek_all(daemon: &Running, first: &str) -> Vec<(u64, String)> {
    let mut all: Vec<(u64, String)> = Vec::new();
    let mut page = first.to_owned();
    let epoch = header(first, "Msgbus-Epoch").to_owned();
    loop {
        let before = all.len();
        for line in body(&page).lines().filter(|line| line.starts_with('{')) {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            let message = msgbus_core::json::read_message(line.as_bytes()).unwrap();
            let text = String::from_utf8(message.payload().to_vec()).unwrap();
            all.push((object["id"].as_u64().unwrap(), text));
        }
        if all.len() == before {
            return all;
        }
        let last = all[all.len() - 1].0;
        page = daemon.say_with(&format!("GET /t?peek&since={epoch}-{last}&max=10000"), "");
    }
}
