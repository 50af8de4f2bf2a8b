//! `msgbus sub TOPIC COMMAND`: a command for each message.

use std::os::unix::fs::PermissionsExt as _;

use crate::{
    subscribe::sub,
    support::{Daemon, msgbus, name, run},
};

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
    let missing = sub(&daemon.uri(), &["t", "--since=all", "--", "no-such-command"]).end().await;
    missing.fails(
        1,
        "cannot run no-such-command: there is no such program; this argument is the command to run",
    );
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
