//! `msgbus sub --cursor`.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use crate::{
    subscribe::sub,
    support::{Daemon, name, run, soon},
};

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
    assert_eq!(run(&["--timeout", "4s"]).await, (Some(0), vec![7, 8, 9], String::new()));

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
            "--timeout=4s",
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
    bad.fails(
        2,
        "rubbish: not a position: \"what?\"; is it another file? Remove it to start at --since",
    );

    let nowhere = folder.path().join("no/such/folder");
    let bad = sub(&daemon.uri(), &["t", "--cursor", nowhere.to_str().unwrap()]).end().await;
    bad.fails(1, "cannot write --cursor");
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
