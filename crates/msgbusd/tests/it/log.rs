//! Whatever happens to standard error, the server serves, handles signals and exits as documented. docs/operations.md,
//! "Logs".

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, PipeReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use msgbus_engine_testkit::server::send_signal;

use crate::binary::msgbusd;

/// Long enough for anything that a test waits for.
const LIMIT: Duration = Duration::from_secs(300);
/// The capacity of a pipe on Linux, in bytes.
const PIPE: usize = 64 << 10;

/// What standard error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// A pipe whose reader is closed.
    NoReader,
    /// A full pipe that is not read.
    Full,
    /// A file on a full disk.
    DiskFull,
    /// It was closed before the start.
    Closed,
}

const FATES: [Fate; 4] = [Fate::NoReader, Fate::Full, Fate::DiskFull, Fate::Closed];

/// A daemon on a unix socket, whose log cannot say where it listens; killed when dropped.
struct Unheard {
    child: Child,
    folder: tempfile::TempDir,
    /// Kept open where the pipe must have a reader.
    unread: Option<PipeReader>,
}

const KEYS: &str = "[anonymous]\nallow = [\"publish:**\", \"inspect:**\"]\n";

impl Unheard {
    fn start(fate: Fate, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("keys.toml"), KEYS).unwrap();
        let bind = format!("unix:{}", folder.path().join("socket").display());
        let keys = folder.path().join("keys.toml");
        let mut all = vec!["--bind", &bind, "--keys", keys.to_str().unwrap(), "--threads", "2"];
        all.extend(args);
        let mut command = match fate {
            Fate::Closed => {
                let mut command = Command::new("sh");
                let script = "exec \"$0\" \"$@\" 2>&-";
                command.args(["-c", script, env!("CARGO_BIN_EXE_msgbusd")]).args(&all);
                command.env_clear().stdin(Stdio::null());
                command
            }
            _ => msgbusd(&all),
        };
        let (reader, mut writer) = io::pipe().unwrap();
        let unread = match fate {
            Fate::Full => {
                writer.write_all(&vec![b'\n'; PIPE]).unwrap();
                Some(reader)
            }
            Fate::NoReader | Fate::DiskFull | Fate::Closed => None,
        };
        match fate {
            Fate::DiskFull => {
                command.stderr(File::options().write(true).open("/dev/full").unwrap());
            }
            _ => {
                command.stderr(writer);
            }
        }
        let child = command.spawn().unwrap();
        drop(command);
        let daemon = Self { child, folder, unread };
        soon("it listens", || daemon.connect().is_ok());
        daemon
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.folder.path().join("socket"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Publishes as many messages on one connection.
    fn publish(&self, count: usize, topic: &str) {
        let mut stream = BufReader::new(self.connect().unwrap());
        let request =
            format!("PUT /{topic} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        for _ in 0..count {
            stream.get_mut().write_all(request.as_bytes()).unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            assert!(line.starts_with("HTTP/1.1 202 "), "{line}");
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).unwrap();
            }
        }
    }

    fn dropped_lines(&self) -> u64 {
        let page = self.ask("GET /metrics");
        let line =
            page.lines().find(|line| line.starts_with("msgbus_server_log_lines_dropped_total "));
        line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    fn signal(&self, name: &str) {
        assert!(send_signal(self.child.id(), name));
    }

    /// Sends the head of a request and waits until the server handles it.
    fn half_a_request(&self) -> UnixStream {
        let mut stream = self.connect().unwrap();
        let head = "PUT /t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nConnection: close\r\n\
                    Expect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).unwrap();
        assert!(go_on.starts_with(b"HTTP/1.1 100 "));
        stream
    }

    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < LIMIT, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a condition holds.
fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "it takes too long: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn with_a_broken_log_the_server_serves_reloads_and_drains() {
    for fate in FATES {
        for args in [&[][..], &["-d"]] {
            let mut daemon = Unheard::start(fate, args);
            daemon.publish(100, "t");
            let denied = daemon.ask("GET /t");
            assert!(denied.starts_with("HTTP/1.1 401 "), "{denied}");

            // Twice, because the first must not end the signal handler.
            for (action, request) in [("pull", "GET /t"), ("delete", "DELETE /t")] {
                let keys = KEYS.replace("\"publish", &format!("\"{action}:**\", \"publish"));
                fs::write(daemon.folder.path().join("keys.toml"), keys).unwrap();
                daemon.signal("-HUP");
                soon("the keys are read again", || {
                    !daemon.ask(request).starts_with("HTTP/1.1 401 ")
                });
            }

            let mut held = daemon.half_a_request();
            daemon.signal("-TERM");
            soon("it drains", || daemon.connect().is_err());
            held.write_all(b"last").unwrap();
            let mut answer = String::new();
            held.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 202 "), "{fate:?} {args:?}: {answer:?}");
            assert_eq!(daemon.end().code(), Some(0), "{fate:?} {args:?}");
        }
    }
}

#[test]
fn with_a_broken_log_a_second_signal_exits_at_once() {
    for fate in FATES {
        let mut daemon = Unheard::start(fate, &["-d", "--drain-timeout", "1h"]);
        let held = daemon.half_a_request();
        daemon.signal("-TERM");
        soon("it drains", || daemon.connect().is_err());
        // Within 200 ms it would be part of the first.
        let start = Instant::now();
        while daemon.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < LIMIT, "it does not end");
            daemon.signal("-TERM");
            thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(daemon.end().code(), Some(130), "{fate:?}");
        drop(held);
    }
}

#[test]
fn dropped_lines_are_counted_and_reported_later() {
    const LINES: usize = 10_000;
    let mut daemon = Unheard::start(Fate::Full, &["-d"]);
    let topic = "t".repeat(200);
    daemon.publish(LINES, &topic);
    let dropped = daemon.dropped_lines();
    assert!(dropped > 0, "a mebibyte waits, and no more");

    let (sender, heard) = std::sync::mpsc::channel();
    let unread = daemon.unread.take().unwrap();
    thread::spawn(move || {
        for line in BufReader::new(unread).lines() {
            // The test may have seen enough.
            let _ = sender.send(line.unwrap());
        }
    });
    let mut lines = 0;
    let report = loop {
        let line = heard.recv_timeout(LIMIT).unwrap();
        lines += usize::from(line.contains(" publish "));
        if line.contains("dropped") {
            break line;
        }
    };
    let said: u64 =
        report.split("dropped ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(said >= dropped && report.contains(" WARN dropped"), "{report}");
    assert_eq!(lines as u64 + said, LINES as u64 + said - dropped, "nothing is lost uncounted");
    daemon.publish(1, "after");
    while !heard.recv_timeout(LIMIT).unwrap().contains("topic=after") {}
    daemon.signal("-TERM");
    assert_eq!(daemon.end().code(), Some(0));
    let last: Vec<String> = heard.iter().collect();
    let last = last.last().unwrap();
    assert!(
        last.ends_with(&format!("discarded {} messages in memory, in 2 topics", LINES + 1)),
        "{last}"
    );
}

/// Connections beyond the limit of open files, and a warning that is not read.
#[test]
fn without_file_descriptors_and_a_log_reader_it_serves_again_later() {
    let daemon = Unheard::start(Fate::NoReader, &[]);
    let pid = daemon.child.id().to_string();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() + 3;
    let limit = format!("--nofile={open}:{open}");
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    let crowd: Vec<_> = (0..8).map(|_| daemon.connect().unwrap()).collect();
    soon("a line is dropped", || {
        let path = PathBuf::from(format!("/proc/{pid}/fd"));
        fs::read_dir(path).unwrap().count() >= open
    });
    drop(crowd);
    assert!(daemon.ask("GET /healthz").starts_with("HTTP/1.1 200 "));
    assert!(daemon.dropped_lines() > 0);
}

#[test]
fn no_topic_forges_a_field_or_a_line() {
    let mut daemon = msgbusd(&["-d", "--bind", "127.0.0.1:0"]);
    let daemon = crate::binary::Running::start(&mut daemon);
    daemon.say("PUT /a%20id=7%20bytes=9%22");
    daemon.say("PUT /a%E2%80%AEb");
    daemon.say("GET /%0A2026-01-01T00:00:00Z%20%20INFO%20forged");
    daemon.say(&format!("GET //{}", "x".repeat(5000)));
    daemon.signal("-TERM");
    let (_, log) = daemon.end();
    assert!(log.contains(r#" topic="a id=7 bytes=9\"" id=0 bytes=0"#), "{log}");
    assert!(log.contains(" path=/%0A2026-"), "{log}");
    assert!(log.contains(r#" topic="a\u{202e}b" id=0"#), "{log}");
    assert!(log.lines().all(|line| line.len() < 3000), "{log}");
}

#[test]
fn colours_are_only_for_terminals_that_support_them() {
    let check = |variables: &str, has_colour| {
        let binary = env!("CARGO_BIN_EXE_msgbusd");
        let run = format!("env -i {variables} timeout -s TERM 10 {binary} --bind 127.0.0.1:0 2>&1");
        let output = Command::new("script").args(["-qec", &run, "/dev/null"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("listening on"), "{text}");
        assert_eq!(text.contains('\u{1b}'), has_colour, "{variables}: {text:?}");
    };
    thread::scope(|scope| {
        for (variables, has_colour) in
            [("TERM=xterm", true), ("TERM=dumb", false), ("NO_COLOR=1", false), ("NO_COLOR=", true)]
        {
            scope.spawn(move || check(variables, has_colour));
        }
    });
}

#[test]
fn a_key_that_cannot_be_written_is_an_error_and_shows_no_secret() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let args = ["key", "new", "deploy", "--allow", "publish:**"];
    let output = msgbusd(&args).stdout(full()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("cannot write the key to standard output: No space left"), "{text}");
    assert!(!text.contains("mbk_"), "{text}");
    assert_eq!(msgbusd(&args).stderr(full()).output().unwrap().status.code(), Some(1));

    let output = msgbusd(&["--help"]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    assert!(msgbusd(&["--help"]).stdout(writer).status().unwrap().success());
    assert_eq!(msgbusd(&["--tll"]).stderr(full()).status().unwrap().code(), Some(2));
}
