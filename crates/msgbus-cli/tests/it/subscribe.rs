//! `msgbus sub`: printing, commands, cursors, cut connections, restarts and shutdown.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use tokio::time::timeout;

use crate::support::{Daemon, Proxy, Running, msgbus, name, run, soon};

fn sub(uri: &str, args: &[&str]) -> Running {
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
    let late =
        sub(&daemon.uri(), &["t", "--since=all", "-n", "9", "--timeout", "300ms"]).end().await;
    assert_eq!((late.code, late.out.lines().count()), (Some(5), 5));
    let ended = sub(&daemon.uri(), &["t", "--timeout", "100ms"]).end().await;
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
    let daemon = Daemon::start();
    let address = daemon.address;
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
async fn a_command_runs_once_per_message_in_order_one_at_a_time() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // The output shows if two run at the same time, or in the wrong order.
    let script = format!(
        "echo \"begin $MSGBUS_ID $MSGBUS_TOPIC $1\" >> {0}; cat >> {0}; sleep 0.02; echo \"end $MSGBUS_ID\" >> {0}",
        log.display()
    );
    let running = sub(&daemon.uri(), &["t/u", "-n", "3", "sh", "-c", &script, "-n", "--count"]);
    daemon.subscribers(1).await;
    for payload in ["a", "b", "c"] {
        daemon.put("t/u", payload);
    }
    let ended = running.end().await;
    assert_eq!((ended.code, &ended.out[..], &ended.err[..]), (Some(0), "", ""));
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 9, "{log}");
    for (id, part) in lines.chunks(3).enumerate() {
        assert_eq!(part[0], format!("begin {id} t/u --count"), "the dashes are the command's");
        let message = msgbus_core::json::read_message(part[1].as_bytes()).unwrap();
        assert_eq!(message.id(), id as u64);
        assert_eq!(part[2], format!("end {id}"));
    }
}

#[tokio::test]
async fn output_of_a_command_is_passed_on_and_failures_are_reported() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        daemon.put("t", "x");
    }
    // It does not read its input, and fails on one of them.
    let script = "echo out $MSGBUS_ID; echo err $MSGBUS_ID >&2; test $MSGBUS_ID != 1";
    let ended =
        sub(&daemon.uri(), &["t", "--since=all", "-n", "3", "--", "sh", "-c", script]).end().await;
    assert_eq!((ended.code, &ended.out[..]), (Some(0), "out 0\nout 1\nout 2\n"));
    assert!(ended.err.contains("err 2\n"), "{}", ended.err);
    assert!(
        ended.err.contains("msgbus: sh failed on message 1: exit status: 1\n"),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_an_error() {
    let daemon = Daemon::start();
    daemon.put("t", "x");
    let missing = sub(&daemon.uri(), &["t", "--since=all", "no-such-command"]).end().await;
    missing.fails(1, "cannot run no-such-command: there is no such program");
    assert_eq!(daemon.bus.topic(&name("t")).unwrap().counters.delivered, 0, "said at the start");
    let line = sub(&daemon.uri(), &["t", "echo hi"]).end().await;
    line.fails(1, "use sh -c");
}

#[tokio::test]
async fn large_messages_pass_through_a_command_that_answers_as_it_reads() {
    let daemon = Daemon::start();
    daemon.put("t", vec![b'x'; 500_000]);
    let ended = sub(&daemon.uri(), &["t", "--since=all", "-n", "1", "cat"]).end().await;
    assert_eq!(ended.code, Some(0));
    assert_eq!(
        msgbus_core::json::read_message(ended.out.as_bytes()).unwrap().payload().len(),
        500_000
    );
}

#[tokio::test]
async fn a_cursor_resumes_where_the_last_run_ended() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    let path = file.to_str().unwrap();
    for _ in 0..10 {
        daemon.put("t", "x");
    }
    let run = async |args: &[&str]| {
        let args = [&["t", "--cursor", path, "-o", "json"], args].concat();
        let ended = sub(&daemon.uri(), &args).end().await;
        let ids: Vec<u64> = ended
            .out
            .lines()
            .map(|line| msgbus_core::json::read_message(line.as_bytes()).unwrap().id())
            .collect();
        (ended.code, ids, ended.err)
    };
    assert_eq!(run(&["--since=all", "-n", "3"]).await, (Some(0), vec![0, 1, 2], String::new()));
    let epoch = daemon.bus.topic(&name("t")).unwrap().topic.epoch;
    let expected = format!("{epoch}-2\ntopic: t\nserver: {}\n", daemon.uri());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
    // An existing cursor overrides --since.
    assert_eq!(run(&["--since=all", "-n", "4"]).await.1, [3, 4, 5, 6]);
    assert_eq!(run(&["--timeout", "300ms"]).await, (Some(0), vec![7, 8, 9], String::new()));

    daemon.bus.delete(&name("t")).wait().unwrap();
    daemon.put("t", "new");
    let (code, ids, notes) = run(&["-n", "1"]).await;
    assert_eq!((code, ids), (Some(0), vec![0]));
    assert!(notes.contains("topic was reset"), "{notes}");
}

#[tokio::test]
async fn a_cursor_is_kept_from_the_first_connection_on() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    let args = ["t", "--cursor", file.to_str().unwrap()];
    daemon.put("t", "old");
    let idle = sub(&daemon.uri(), &args);
    daemon.subscribers(1).await;
    soon(async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    drop(idle);
    daemon.subscribers(0).await;
    daemon.put("t", "in between");
    let mut running = sub(&daemon.uri(), &args);
    assert_eq!(running.ids(1).await, [1], "neither the old one, nor too late");
}

#[tokio::test]
async fn a_killed_run_repeats_one_message_at_most() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    let args = ["t", "--since=all", "--cursor", file.to_str().unwrap()];
    for _ in 0..1000 {
        daemon.put("t", "x");
    }
    let mut next = 0;
    for _ in 0..5 {
        let mut running = sub(&daemon.uri(), &args);
        let ids = running.ids(50).await;
        assert!(ids[0] == next || ids[0] + 1 == next, "{} after {next}", ids[0]);
        running.child.kill().await.unwrap();
        // Lines that it printed before it was killed count as printed.
        let rest = running.end().await.out;
        let last = rest
            .lines()
            .filter_map(|l| msgbus_core::json::read_message(l.as_bytes()).ok())
            .next_back();
        next = last.map_or(ids[49], |message| message.id()) + 1;
    }
}

#[tokio::test]
async fn with_a_cursor_a_failed_command_is_tried_again_the_next_time() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    for _ in 0..3 {
        daemon.put("t", "x");
    }
    let run = async |script: &str| {
        let args = [
            "t",
            "--since=all",
            "--cursor",
            file.to_str().unwrap(),
            "--timeout=500ms",
            "sh",
            "-c",
            script,
        ];
        sub(&daemon.uri(), &args).end().await
    };
    let failed = run("echo $MSGBUS_ID; test $MSGBUS_ID != 1").await;
    assert_eq!((failed.code, &failed.out[..]), (Some(1), "0\n1\n"));
    assert!(failed.err.contains("sh failed on message 1"), "{}", failed.err);
    assert_eq!(run("echo $MSGBUS_ID").await.out, "1\n2\n");
}

#[tokio::test]
async fn a_cursor_that_cannot_be_used_is_named() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let rubbish = folder.path().join("rubbish");
    std::fs::write(&rubbish, "what?\n").unwrap();
    let bad = sub(&daemon.uri(), &["t", "--cursor", rubbish.to_str().unwrap()]).end().await;
    bad.fails(2, "rubbish: not a position");

    let nowhere = folder.path().join("no/such/folder");
    let bad = sub(&daemon.uri(), &["t", "--cursor", nowhere.to_str().unwrap()]).end().await;
    bad.fails(1, "cannot write --cursor");
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
async fn a_script_can_be_the_command() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("on-message");
    std::fs::write(&script, "#!/bin/sh\necho \"$1:$MSGBUS_ID\"\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    daemon.put("t", "x");
    let mut command =
        msgbus(&["reg", "-n", "1", "t", "--since", "all", script.to_str().unwrap(), "got"]);
    command.env("MSGBUS_URI", daemon.uri());
    assert_eq!(run(command).await.out, "got:0\n");
}

#[tokio::test]
async fn the_cursor_does_not_pass_a_message_that_could_not_be_written() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let cursor = folder.path().join("cursor");
    for _ in 0..3 {
        daemon.put("t", "x");
    }
    let shell = |script: &str| {
        let mut sh = tokio::process::Command::new("sh");
        sh.arg("-c")
            .arg(script.replace("msgbus", env!("CARGO_BIN_EXE_msgbus")))
            .env("MSGBUS_URI", daemon.uri())
            .env("CURSOR", &cursor)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        sh
    };
    let full = run(shell("msgbus sub t --since 1 --cursor $CURSOR -o raw > /dev/full")).await;
    assert_eq!(full.code, Some(1), "{full:?}");
    assert!(full.err.contains("cannot write"), "{full:?}");
    let epoch = daemon.bus.topic(&name("t")).unwrap().topic.epoch;
    assert!(std::fs::read_to_string(&cursor).unwrap().starts_with(&format!("{epoch}-0\n")));

    let rest = run(shell("msgbus sub t --cursor $CURSOR -n 2 -o json")).await;
    assert_eq!(rest.out.lines().count(), 2, "{rest:?}");
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
async fn a_surviving_child_of_a_command_blocks_nothing() {
    let daemon = Daemon::start();
    for _ in 0..2 {
        daemon.put("t", vec![b'x'; 300_000]);
    }
    // A grandchild keeps standard input open without reading it.
    let script = "sleep 20 > /dev/null 2>&1 & echo $MSGBUS_ID";
    let ended =
        sub(&daemon.uri(), &["t", "--since=all", "-n", "2", "sh", "-c", script]).end().await;
    assert_eq!((ended.code, &ended.out[..]), (Some(0), "0\n1\n"));
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

#[tokio::test]
async fn a_cursor_keeps_its_link_and_its_mode() {
    let daemon = Daemon::start();
    daemon.put("t", "x");
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    std::fs::write(&real, "0\n").unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let args = ["t", "-n", "1", "--cursor", link.to_str().unwrap()];
    assert_eq!(sub(&daemon.uri(), &args).end().await.code, Some(0));
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert!(std::fs::read_to_string(&real).unwrap().lines().next().unwrap().ends_with("-0"));
    assert_eq!(real.metadata().unwrap().permissions().mode() & 0o777, 0o640);

    std::fs::write(&real, "").unwrap();
    sub(&daemon.uri(), &args).end().await.fails(2, "it is empty; remove it");
}

#[tokio::test]
async fn all_new_and_poll_set_the_start_and_the_end() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    let path = file.to_str().unwrap();
    for n in 0..2500 {
        daemon.put("t", n.to_string());
    }
    let polled = sub(&daemon.uri(), &["t", "--all", "--poll", "-o", "raw"]).end().await;
    assert_eq!((polled.code, polled.out.lines().count()), (Some(0), 2500));
    assert_eq!(polled.out.lines().last(), Some("2499"));
    assert_eq!(sub(&daemon.uri(), &["none", "--all", "--poll"]).end().await.code, Some(0));

    // With a cursor, each poll resumes where the last one ended.
    let poll = async |count: &str| {
        let args = ["t", "--all", "--poll", "--cursor", path, "-n", count, "-o", "raw"];
        sub(&daemon.uri(), &args).end().await.out
    };
    assert_eq!(poll("2").await, "0\n1\n");
    assert_eq!(poll("1").await, "2\n");
    let mut new = sub(&daemon.uri(), &["t", "--new", "--cursor", path]);
    daemon.subscribers(1).await;
    daemon.put("t", "newest");
    assert_eq!(new.ids(1).await, [2500]);
    sub(&daemon.uri(), &["t", "--all", "--since", "3"]).end().await.fails(2, "one of --since");
    sub(&daemon.uri(), &["t", "--poll", "cat"]).end().await.fails(2, "cannot run a command");
}

#[tokio::test]
async fn strict_makes_a_gap_an_exit_of_6() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 3);
    for _ in 0..10 {
        daemon.put("t", "x");
    }
    for how in [&["-n", "3"][..], &["--poll"], &["--timeout", "300ms"]] {
        let args = [&["t", "--strict", "--since", "5"], how].concat();
        let gap = sub(&daemon.uri(), &args).end().await;
        assert_eq!(gap.code, Some(6), "{gap:?}");
        assert!(gap.err.contains("missed 2 messages: "), "{gap:?}");
        let args = [&["t", "--strict", "--since", "7"], how].concat();
        assert_eq!(sub(&daemon.uri(), &args).end().await.code, Some(0));
    }
}

#[tokio::test]
async fn tail_shows_the_last_messages_and_follows() {
    let daemon = Daemon::start();
    let tail = |args: &[&str]| {
        let mut command = msgbus(&[&["tail", "t"], args].concat());
        command.env("MSGBUS_URI", daemon.uri());
        Running::start(command)
    };
    let mut first = tail(&[]);
    daemon.subscribers(1).await;
    for _ in 0..20 {
        daemon.put("t", "x");
    }
    assert_eq!(first.ids(20).await.len(), 20, "it was there from the first on");
    let mut ten = tail(&[]);
    assert_eq!(ten.ids(10).await, (10..20).collect::<Vec<_>>());
    let mut three = tail(&["-n", "3"]);
    assert_eq!(three.ids(3).await, [17, 18, 19]);
    daemon.put("t", "x");
    assert_eq!(three.ids(1).await, [20]);
    assert_eq!(tail(&["-n", "100", "--timeout", "500ms"]).end().await.out.lines().count(), 21);
}

#[tokio::test]
async fn a_poll_counts_what_expired_between_others() {
    let daemon = Daemon::start();
    let short = msgbus_core::NewMessage::new("gone").ttl(Duration::from_millis(1));
    daemon.put("t", "0");
    daemon.bus.put(&name("t"), short).unwrap();
    daemon.put("t", "2");
    soon(async {
        while daemon.bus.topic(&name("t")).unwrap().retained > 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let polled = sub(&daemon.uri(), &["t", "--poll", "--since", "0", "--strict"]).end().await;
    assert_eq!((polled.code, polled.out.lines().count()), (Some(6), 2));
    assert!(polled.err.contains("missed 1 message: "), "{}", polled.err);
}

#[tokio::test]
async fn a_cursor_survives_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    std::fs::write(&file, "1-1\n").unwrap();
    let path = file.to_str().unwrap();
    let wrong = sub("localhost:1", &["t", "--new", "--cursor", path, "--count", "abc"]).end().await;
    wrong.fails(2, "--count");
    let away = sub("localhost:1", &["t", "--new", "--cursor", path]).end().await;
    away.fails(3, "cannot connect");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1-1\n");
}

/// Waits until the topic retains at most `count` messages.
async fn retained(daemon: &Daemon, count: u64) {
    soon(async {
        while daemon.bus.topic(&name("t")).unwrap().retained > count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn put_short(daemon: &Daemon) {
    let short = msgbus_core::NewMessage::new("gone").ttl(Duration::from_millis(1));
    daemon.bus.put(&name("t"), short).unwrap();
}

#[tokio::test]
async fn a_poll_reports_missed_messages_once() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cursor");
    let args = ["t", "--poll", "--strict", "--cursor", path.to_str().unwrap(), "-o", "raw"];
    daemon.put("t", "stays");
    assert_eq!(sub(&daemon.uri(), &args).end().await.out, "stays\n");
    for _ in 0..3 {
        put_short(&daemon);
    }
    retained(&daemon, 1).await;
    let missed = sub(&daemon.uri(), &args).end().await;
    missed.fails(6, "missed 3 messages: ");
    sub(&daemon.uri(), &args).end().await.is_silent();

    // The same if the gap is the first thing that a new cursor sees.
    std::fs::remove_file(&path).unwrap();
    let since = [&args[..], &["--since", "2"]].concat();
    sub(&daemon.uri(), &since).end().await.fails(6, "missed 2 messages: ");
    let place = std::fs::read_to_string(&path).unwrap();
    assert!(place.lines().next().unwrap().ends_with("-3"), "{place}");
}

#[tokio::test]
async fn a_poll_ends_with_what_was_there_when_it_began() {
    let daemon = Daemon::start();
    for _ in 0..5000 {
        daemon.put("t", "x");
    }
    let mut polling = sub(&daemon.uri(), &["t", "--poll"]);
    let mut shown = 0;
    while !polling.line().await.is_empty() {
        shown += 1;
        // Publishing stays ahead of it: its output blocks in a pipe until the test reads it.
        for _ in 0..2 {
            daemon.put("t", "x");
        }
        assert!(shown < 20_000, "it has no end");
    }
    assert!(shown >= 5000, "{shown}");
    assert_eq!(polling.end().await.code, Some(0));
}

#[tokio::test]
async fn tail_shows_the_last_retained_messages_and_misses_no_others() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 5000);
    daemon.put("t", "0");
    for _ in 0..1500 {
        put_short(&daemon);
    }
    daemon.put("t", "1501");
    put_short(&daemon);
    daemon.put("t", "1503");
    put_short(&daemon);
    retained(&daemon, 3).await;
    let proxy = Proxy::to(daemon.address).await;
    let tail = |args: &[&str]| {
        let mut command = msgbus(&[&["tail", "t", "--strict"], args].concat());
        command.env("MSGBUS_URI", proxy.uri());
        Running::start(command)
    };
    for (count, expected) in [("1", &[1503][..]), ("2", &[1501, 1503]), ("3", &[0, 1501, 1503])] {
        let mut last = tail(&["-n", count]);
        assert_eq!(last.ids(expected.len()).await, expected);
        daemon.subscribers(1).await;
        last.signal("-INT");
        last.end().await.is_silent();
        daemon.subscribers(0).await;
    }

    // Messages that leave the topic from now on are missed.
    let mut last = tail(&["-n", "1"]);
    assert_eq!(last.ids(1).await, [1503]);
    daemon.subscribers(1).await;
    daemon.put("t", "1505");
    assert_eq!(last.ids(1).await, [1505]);
    proxy.cut();
    for _ in 0..5001 {
        daemon.put("t", "x");
    }
    assert_eq!(last.ids(1).await, [1507]);
    last.signal("-INT");
    assert_eq!(last.end().await.code, Some(6));
}

/// With `-o raw` and in `MSGBUS_PAYLOAD`.
#[tokio::test]
async fn a_command_gets_the_payload_if_it_wants_it() {
    let daemon = Daemon::start();
    let long = "x".repeat(4097);
    for payload in
        ["short größe".as_bytes(), b"a\0b", b"\xff", b"", long.as_bytes(), &long.as_bytes()[1..]]
    {
        daemon.put("t", payload);
    }
    let script = "wc -c; echo \"${MSGBUS_PAYLOAD-none}\"";
    let args = ["--all", "-n6", "-o", "raw", "t", "sh", "-c", script];
    let mut running = msgbus(&[&["sub", "-u", &daemon.uri()], &args[..]].concat());
    running.env("MSGBUS_PAYLOAD", "of another");
    let ended = run(running).await;
    let short = &long[1..];
    let expected = format!("13\nshort größe\n3\nnone\n1\nnone\n0\n\n4097\nnone\n4096\n{short}\n");
    assert_eq!(ended.out, expected);
    let json = run(msgbus(&["sub", "-u", &daemon.uri(), "--all", "-n1", "t", "cat"])).await;
    assert!(json.out.starts_with("{\"id\":0,"), "{json:?}");
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

/// A file in use, or of another topic, is rejected; another server only gets a note.
#[tokio::test]
async fn a_cursor_is_for_one_run_and_one_topic() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    let path = file.to_str().unwrap();
    daemon.put("t", "x");
    let mut first = sub(&daemon.uri(), &["t", "--all", "--cursor", path, "-o", "raw"]);
    assert_eq!(first.line().await, "x\n");
    soon(async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let second = sub(&daemon.uri(), &["t", "--cursor", path]).end().await;
    let said =
        format!("--cursor {path}: another run is using it; use a separate file for each run");
    second.fails(2, &said);
    first.signal("-INT");
    first.end().await.is_silent();
    let other = sub(&daemon.uri(), &["u", "--cursor", path]).end().await;
    other.fails(2, "it belongs to topic t, not u; use a separate file for each topic");
    let text = std::fs::read_to_string(&file).unwrap().replace("http://", "http://other.");
    std::fs::write(&file, text).unwrap();
    let moved = sub(&daemon.uri(), &["t", "--poll", "--cursor", path]).end().await;
    assert!(moved.err.contains("the position is from http://other."), "{moved:?}");
    assert_eq!(moved.code, Some(0));
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
