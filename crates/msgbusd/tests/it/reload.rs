//! SIGHUP, and files that block: clients are not affected. docs/operations.md, "Signals".

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    binary::{Running, msgbusd},
    process::refuses,
};

/// Long enough for anything that a test waits for.
const LIMIT: Duration = Duration::from_secs(300);
const PUT: &str = "[anonymous]\nallow = [\"publish:**\"]\n";
const PUT_AND_GET: &str = "[anonymous]\nallow = [\"publish:**\", \"pull:**\"]\n";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Writes a file, or creates a pipe without a writer.
    fn put(&self, name: &str, text: Option<&str>) -> String {
        let path = self.0.path().join(name);
        let _ = fs::remove_file(&path);
        match text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => pipe(&path),
        }
        path.into_os_string().into_string().unwrap()
    }
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn start(args: &[&str]) -> Running {
    let all: Vec<&str> = ["--bind", "127.0.0.1:0"].iter().chain(args).copied().collect();
    Running::start(&mut msgbusd(&all))
}

fn is_refused(daemon: &Running, request: &str) -> bool {
    daemon.say(request).starts_with("HTTP/1.1 401 ")
}

#[test]
fn a_blocked_key_file_does_not_block_clients() {
    let folder = Folder::new();
    let keys = folder.put("keys.toml", Some(PUT));
    let mut daemon = start(&["--keys", &keys]);
    folder.put("keys.toml", None);
    daemon.signal("-HUP");
    let begin = Instant::now();
    // Until the deadline is over, and after it.
    while begin.elapsed() < Duration::from_secs(2) {
        assert!(daemon.say("PUT /t").starts_with("HTTP/1.1 202 "));
    }
    let line = daemon.logs("SIGHUP");
    let says = "keys.toml: cannot read the file: no answer within 10s; the keys stay as they were";
    assert!(line.contains(says), "{line}");
    assert!(is_refused(&daemon, "GET /t"));

    folder.put("keys.toml", Some(PUT_AND_GET));
    daemon.signal("-HUP");
    daemon.logs("SIGHUP: keys: 0 from");
    assert!(daemon.say("GET /t").starts_with("HTTP/1.1 200 "));

    folder.put("keys.toml", None);
    daemon.signal("-HUP");
    daemon.signal("-TERM");
    let (status, log) = daemon.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("no answer"), "it does not wait for the file: {log}");
}

#[test]
fn a_blocked_certificate_file_keeps_the_old_certificate_until_a_later_reload() {
    let folder = Folder::new();
    let keys = folder.put("keys.toml", Some(PUT));
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let chain = folder.put("chain.pem", Some(&certificate.cert.pem()));
    let key = folder.put("key.pem", Some(&certificate.signing_key.serialize_pem()));
    let mut daemon = start(&["--keys", &keys, "--tls-cert", &chain, "--tls-key", &key]);
    folder.put("chain.pem", None);
    for _ in 0..2 {
        daemon.signal("-HUP");
        daemon.logs("SIGHUP: keys: 0 from");
        let line = daemon.logs("certificate stays");
        assert!(line.contains("chain.pem: cannot read the file: no answer within 10s"), "{line}");
    }
    folder.put("chain.pem", Some(&certificate.cert.pem()));
    daemon.signal("-HUP");
    daemon.logs("SIGHUP: certificate: from");
}

#[test]
fn the_start_names_a_blocked_file() {
    let folder = Folder::new();
    let pipe = folder.put("pipe", None);
    thread::scope(|scope| {
        for (flag, says) in [
            ("--keys", format!("{pipe}: cannot read the file: no answer within 10s")),
            ("--config", format!("cannot read {pipe}: no answer within 10s")),
        ] {
            let pipe = &pipe;
            scope.spawn(move || refuses(&mut msgbusd(&[flag, pipe]), &[flag, &says]));
        }
    });
}

#[test]
fn a_sighup_never_ends_the_server() {
    let mut daemon = start(&[]);
    daemon.say("PUT /t");
    daemon.signal("-HUP");
    daemon.logs("SIGHUP: nothing to reload without --keys, --tls-cert or --config");
    assert!(daemon.say("GET /t").starts_with("HTTP/1.1 200 "));

    let folder = Folder::new();
    let config = folder.put("bus.toml", Some("ttl = \"2h\"\nmax-topics = 5\n"));
    let mut daemon = start(&["--config", &config, "--max-topics", "7"]);
    for (text, says) in [
        ("ttl = \"2h\"\nmax-topics = 6\n", "bus.toml: no setting has changed"),
        (
            "ttl = \"3h\"\noverflow = \"reject\"\n[topics.a]\nttl = 0\n",
            "bus.toml: changes of overflow, ttl, topics take effect at the next start",
        ),
        ("ttl = 3h\n", "bus.toml:1: ttl must be a string: ttl = \"3h\"; the settings stay"),
        ("open = \"perhaps\"\n", "bus.toml:1: open: must be true or false"),
    ] {
        folder.put("bus.toml", Some(text));
        daemon.signal("-HUP");
        let line = daemon.logs("SIGHUP");
        assert!(line.contains(says), "{line}");
    }
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
}

/// An editor or a full disk may leave such a file.
#[test]
fn a_file_without_keys_does_not_lock_all_clients_out() {
    let folder = Folder::new();
    let keys = folder.put("keys.toml", Some(PUT));
    let mut daemon = start(&["--keys", &keys]);
    for text in ["", "\n# nothing\n", "[keys]\n"] {
        folder.put("keys.toml", Some(text));
        daemon.signal("-HUP");
        let line = daemon.logs("the keys stay as they were");
        assert!(line.contains("keys.toml:1: the file has neither [anonymous] nor a key"), "{line}");
        assert!(daemon.say("PUT /t").starts_with("HTTP/1.1 202 "));
    }
    refuses(&mut msgbusd(&["--keys", &keys]), &["neither [anonymous] nor a key"]);
    folder.put("keys.toml", Some("[anonymous]\n"));
    daemon.signal("-HUP");
    daemon.logs("SIGHUP: keys: 0 from");
    assert!(is_refused(&daemon, "PUT /t"));
}

#[test]
fn a_stop_logs_what_it_discards() {
    for (puts, says) in [
        (0, "stopped; no messages were discarded"),
        (1, "stopped; discarded 1 message in memory, in 1 topic"),
        (3, "stopped; discarded 3 messages in memory, in 3 topics"),
    ] {
        let daemon = start(&[]);
        for put in 0..puts {
            daemon.say(&format!("PUT /t{put}"));
        }
        daemon.signal("-TERM");
        let (_, log) = daemon.end();
        assert!(log.contains(says), "{log}");
        assert!(
            log.contains("received SIGTERM, shutting down (repeat to exit immediately)"),
            "{log}"
        );
        // The connections of the publishes may still be closing.
        assert!(log.contains("draining ") && log.contains(", up to 10s"), "{log}");
    }

    let mut daemon = start(&["--drain-timeout", "1h"]);
    daemon.say("PUT /t");
    let mut held = std::net::TcpStream::connect(daemon.address).unwrap();
    held.set_read_timeout(Some(LIMIT)).unwrap();
    let half =
        "PUT /t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    held.write_all(half.as_bytes()).unwrap();
    std::io::Read::read_exact(&mut held, &mut [0; 25]).unwrap();
    daemon.signal("-TERM");
    daemon.logs("draining");
    let begin = Instant::now();
    let line = loop {
        daemon.signal("-TERM");
        thread::sleep(Duration::from_millis(100));
        if daemon.child.try_wait().unwrap().is_some() {
            break daemon.logs("stopped at once");
        }
        assert!(begin.elapsed() < LIMIT, "it does not end");
    };
    let says =
        "received SIGTERM again, stopped at once without draining; discarded 1 message in memory";
    assert!(line.contains(says), "{line}");
}
