//! The binary itself: flags, variables and files, signals and exit codes. docs/operations.md.

use std::{
    io::{BufRead as _, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::binary::{Running, msgbusd};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Runs a command line that must be refused: one line on stderr, nothing on stdout, exit 2.
#[track_caller]
pub(crate) fn refuses(command: &mut Command, mention: &[&str]) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("msgbusd: "), "{text}");
    for mention in mention {
        assert!(text.contains(mention), "{text:?} does not say {mention:?}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_flags_are_named_in_one_line() {
    for (args, mention) in [
        (&["--tll", "1h"][..], &["--tll", "did you mean --ttl?"][..]),
        (&["--frobnicate"], &["--frobnicate", "see --help"]),
        (&["serve"], &["serve", "flags only"]),
        (&["--ttl"], &["--ttl", "needs a value"]),
        (&["--ttl", "soon"], &["--ttl", "1h30m"]),
        (&["--ttl", "1h", "--ttl", "2h"], &["--ttl", "more than once"]),
        (&["-ttl=60"], &["--ttl", "not a duration"]),
        (&["--max-queue-size", "0"], &["--max-queue-size", "1 or more"]),
        (&["--max-payload-size", "huge"], &["--max-payload-size", "64KiB"]),
        (&["--max-header-size", "1"], &["--max-header-size", "between"]),
        (&["--max-queue-bytes", "128"], &["--max-queue-bytes", "more than 128"]),
        (&["--open=perhaps"], &["--open", "true or false"]),
        (&["--two\nlines"], &["--two\\nlines"]),
        (&["--publish-rate", "0"], &["--publish-rate", "from 1 to 10000000", "omit it"]),
        (&["--max-connections-per-address", "0"], &["--max-connections-per-address", "1 or more"]),
        (&["--max-subscriptions", "0"], &["--max-subscriptions", "1 or more"]),
        (
            &["--max-inflight-bytes", "1KiB"],
            &["--max-inflight-bytes (1KiB) must be at least --max-payload-size (1MiB)"],
        ),
        (&["--max-payload-size", "1GiB"], &["--max-inflight-bytes (256MiB) must be at least"]),
        (&["--overflow", "block"], &["--overflow", "drop-oldest or reject"]),
        (&["--bind", "localhost"], &["--bind", "HOST:PORT"]),
        (
            &["--bind", "9999"],
            &["--bind", "did you mean :9999 (all interfaces) or 127.0.0.1:9999?"],
        ),
        (&["--bind", "http://127.0.0.1:1"], &["--bind", "leave out http://"]),
        (&["--port", "9999"], &["--port: no such flag; use --bind :9999"]),
        (&["--port=9999"], &["--port=9999: no such flag; use --bind :9999"]),
        (&["-p"], &["-p: no such flag; use --bind :PORT"]),
        (&["--listen", ":9999"], &["--listen: no such flag; use --bind :9999"]),
        (&["--data-dir", "/var"], &["--data-dir", "use --data /var"]),
        (&["--log-level", "debug"], &["--log-level", "use -d"]),
        (&["--max-payload-size", "5MB"], &["not a size: \"5MB\"; write 5M or 5MiB"]),
        (&["--ttl", "forever"], &["not a duration", "0 keeps messages for ever"]),
        (&["completion", "tcsh"], &["completion: expected bash, zsh or fish"]),
        (&["completion"], &["usage: msgbusd completion bash|zsh|fish"]),
        (&["man", "x"], &["man", "flags only"]),
        (&["--bind", ":0"], &["--bind", "--open"]),
        (&["--bind", "0.0.0.0:0"], &["--bind", "other machines", "--open"]),
        (&["--allow-origin", "*"], &["--allow-origin", "scheme://host"]),
        (
            &["--config", "/does/not/exist.toml"],
            &["--config", "/does/not/exist.toml", "No such file"],
        ),
    ] {
        refuses(&mut msgbusd(args), mention);
    }
}

#[test]
fn wrong_variables_and_files_are_named_in_one_line() {
    refuses(msgbusd(&[]).env("MSGBUSD_TTL", "never"), &["MSGBUSD_TTL", "not a duration"]);
    refuses(msgbusd(&[]).env("MSGBUSD_OPEN", "perhaps"), &["MSGBUSD_OPEN", "true or false"]);

    for (text, mention) in [
        (
            "ttl = \"1h\"\nmax-topic = 5\n",
            ":2: no such setting: \"max-topic\"; did you mean \"max-topics\"?",
        ),
        ("ttl = \"1h\n", ":1: "),
        ("\n\n[topics.\"a/*\"]\nttl = \"x\"\n", ":4: ttl: not a duration"),
        ("max-topics = -1\n", ":1: max-topics: not a whole number"),
    ] {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        refuses(&mut msgbusd(&["--config", path]), &[&format!("{path}{mention}")]);
    }
}

#[test]
fn a_misspelt_variable_is_reported() {
    let mut command = msgbusd(&["--bind", "127.0.0.1:0"]);
    command.env("MSGBUSD_MAX_TOPIC", "10").env("MSGBUSD_WORKDIR", "x").env("MSGBUSD_LISTEN", ":1");
    // Variables of Kubernetes and Docker for a service named msgbusd.
    for (name, value) in [
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT_HTTP", "80"),
        ("PORT", "tcp://10.0.0.1:80"),
        ("PORT_80_TCP_ADDR", "10.0.0.1"),
    ] {
        command.env(format!("MSGBUSD_{name}"), value);
    }
    let daemon = Running::start(&mut command);
    let warning = "unknown setting MSGBUSD_MAX_TOPIC; did you mean MSGBUSD_MAX_TOPICS?";
    assert!(daemon.opening.contains(warning), "{}", daemon.opening);
    assert!(daemon.opening.contains("unknown setting MSGBUSD_WORKDIR; "), "{}", daemon.opening);
    let bind = "unknown setting MSGBUSD_LISTEN; did you mean MSGBUSD_BIND?";
    assert!(daemon.opening.contains(bind), "{}", daemon.opening);
    assert_eq!(daemon.opening.matches("unknown setting").count(), 3, "{}", daemon.opening);
    let mut command = msgbusd(&["--bind", "127.0.0.1:0"]);
    let daemon = Running::start(command.env("MSGBUSD_PORT", "9000"));
    let port = "unknown setting MSGBUSD_PORT; did you mean MSGBUSD_BIND?";
    assert!(daemon.opening.contains(port), "{}", daemon.opening);
}

#[test]
fn help_and_version_go_to_stdout() {
    for flag in ["-h", "--help", "-help"] {
        let output = msgbusd(&[flag]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        for flag in [
            "--bind ADDRESS",
            "[127.0.0.1:8000]",
            "-d, --debug",
            "--max-connections-per-address COUNT\n",
            "MSGBUSD_MAX_TOPICS",
            "Exit codes",
        ] {
            assert!(text.contains(flag), "no {flag} in {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
    for flag in ["-v", "--version", "-version"] {
        let output = msgbusd(&[flag]).output().unwrap();
        assert_eq!(output.stdout, concat!("msgbusd ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    }
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let file = file(
        "ttl = \"1m\"\nmax-queue-size = 11\nmax-topics = 22\n[topics.\"a/**\"]\nttl = \"500s\"\n",
    );
    let mut command = msgbusd(&["-bind", "127.0.0.1:0", "--ttl=3m"]);
    command
        .env("MSGBUSD_CONFIG", file.path())
        .env("MSGBUSD_TTL", "2m")
        .env("MSGBUSD_MAX_QUEUE_SIZE", "33");
    let daemon = Running::start(&mut command);
    for said in ["ttl 3m", "per topic 33 messages", "in all 22 topics", "payload 1MiB"] {
        assert!(daemon.opening.contains(said), "no {said:?} in {}", daemon.opening);
    }
    daemon.say("PUT /a/b");
    assert!(daemon.say("GET /a/b").contains(r#""ttl":500000000000,"#), "the rule of the file");
    daemon.say("PUT /b");
    assert!(daemon.say("GET /b").contains(r#""ttl":180000000000,"#));
}

#[test]
fn the_command_line_of_prologic_msgbus_works_and_is_explained() {
    let daemon = Running::start(&mut msgbusd(&[
        "-d",
        "-debug=true",
        "-open=false",
        "-bind",
        "127.0.0.1:0",
        "-buffer-length",
        "100",
        "-max-queue-size",
        "1000",
        "-max-payload-size=8192",
        "-ttl",
        "1m0s",
    ]));
    assert!(daemon.opening.contains("--buffer-length is no longer needed"), "{}", daemon.opening);
    assert!(daemon.opening.contains("ttl 1m, per topic 1000 messages"), "{}", daemon.opening);
    daemon.say("PUT /hello");
    daemon.say("GET /hello");
    daemon.say("GET /hello");
    daemon.signal("-TERM");
    let (_, log) = daemon.end();
    for line in
        ["DEBUG publish", "DEBUG pull", "topic=hello id=0", "refused", "no messages enqueued"]
    {
        assert!(log.contains(line), "no {line:?} in {log}");
    }
}

#[test]
fn requests_are_logged_only_with_debug() {
    let daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0"]));
    daemon.say("PUT /hello");
    daemon.signal("-INT");
    let (status, log) = daemon.end();
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains("hello"), "{log}");
    assert!(log.contains("received SIGINT, shutting down"), "{log}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_connection_limit_is_lowered_to_the_available_file_descriptors() {
    use crate::binary::msgbusd_of_files;
    let running = Running::start(&mut msgbusd_of_files(400, "--threads 64"));
    let threads = format!("/proc/{}/fd", running.child.id());
    let own = std::fs::read_dir(threads).unwrap().count();
    let connections = running.opening.split("lowered to ").nth(1).unwrap();
    let connections: usize = connections.split(':').next().unwrap().parse().unwrap();
    assert!(own + connections <= 400, "{own} files besides {connections} connections");

    let advice = "open files; raise it with ulimit -n, or LimitNOFILE= in a systemd unit";
    assert!(running.opening.contains(advice), "{}", running.opening);

    for (files, threads) in [(400, 1000), (4, 1), (5, 1), (6, 2), (8, 2), (12, 4), (16, 8)] {
        let output = msgbusd_of_files(files, &format!("--threads {threads}")).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let advice = format!("the system allows {files} {advice}, or lower --threads");
        assert!(text.contains(&advice), "{text}");
    }
    let running = Running::start(&mut msgbusd_of_files(64, "--threads 2"));
    assert!(running.opening.contains("lowered to 27"), "{}", running.opening);
}

#[test]
fn a_port_in_use_is_reported_with_a_hint() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = msgbusd(&["--bind", &address]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains(&address) && text.contains("in use") && text.contains("--bind"),
        "{text}"
    );
}

#[test]
fn all_interfaces_means_both_protocols_and_logs_a_warning() {
    let daemon = Running::start(&mut msgbusd(&["--bind", ":0", "--open"]));
    assert!(daemon.opening.contains("any client that can reach"), "{}", daemon.opening);
    let port = daemon.address.port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    if TcpListener::bind("[::1]:0").is_ok() {
        assert!(TcpStream::connect(("::1", port)).is_ok());
    }
}

#[test]
fn cut_connections_are_logged_and_a_second_signal_exits_at_once() {
    let half =
        b"PUT /t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    let hold = |daemon: &Running| {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        stream.write_all(half).unwrap();
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).unwrap();
        stream
    };

    let daemon =
        Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--drain-timeout", "100ms"]));
    let held = hold(&daemon);
    daemon.signal("-TERM");
    let (status, log) = daemon.end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("cut at the end of --drain-timeout") && log.contains("connections=1"),
        "{log}"
    );
    drop(held);

    let mut daemon =
        Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--drain-timeout", "1h"]));
    let held = hold(&daemon);
    daemon.signal("-TERM");
    let mut log = String::new();
    while !log.contains("draining") {
        assert_ne!(daemon.log.read_line(&mut log).unwrap(), 0, "{log}");
    }
    // Within 200 ms a second signal is part of the first.
    let begin = Instant::now();
    while daemon.child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(300), "it does not end");
        daemon.signal("-TERM");
        thread::sleep(Duration::from_millis(100));
    }
    let (status, log) = daemon.end();
    assert_eq!(status.code(), Some(130), "{log}");
    assert!(log.contains("stopped at once"), "{log}");
    drop(held);
}

/// A process that was suspended sees its timers before the bytes that arrived meanwhile.
#[test]
fn bytes_that_arrived_while_the_process_was_suspended_are_not_late() {
    let flags = ["--body-timeout=5s", "--header-timeout=5s", "--idle-timeout=5s"];
    let args: Vec<&str> = ["--bind", "127.0.0.1:0"].into_iter().chain(flags).collect();
    let daemon = Running::start(&mut msgbusd(&args));
    let put = "PUT /t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n";
    let mut connections = Vec::new();
    // In the middle of a body, in the middle of a head, between two requests.
    for (first, rest) in [
        (format!("{put}bo"), "dy".to_owned()),
        (put[..20].to_owned(), format!("{}body", &put[20..])),
        (format!("{put}body"), format!("{put}body")),
    ] {
        let mut connection = TcpStream::connect(daemon.address).unwrap();
        connection.write_all(first.as_bytes()).unwrap();
        connections.push((connection, rest));
    }
    read_answer(&mut connections[2].0);
    // Nothing but time shows that everything has been read.
    thread::sleep(Duration::from_millis(100));
    daemon.signal("-STOP");
    for (connection, rest) in &mut connections {
        connection.write_all(rest.as_bytes()).unwrap();
    }
    thread::sleep(Duration::from_millis(6500));
    daemon.signal("-CONT");
    for (connection, _) in &mut connections {
        assert_eq!(read_answer(connection), "HTTP/1.1 202 Accepted");
    }
}

/// The first line of a response without a body.
fn read_answer(connection: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(connection.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&answer));
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap().lines().next().unwrap().to_owned()
}
