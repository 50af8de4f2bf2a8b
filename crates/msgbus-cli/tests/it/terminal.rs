//! The binary on a pseudo-terminal, created by script(1).

use crate::support::{Daemon, Running, msgbus, name, soon};

/// The binary on a terminal of its own.
fn on_terminal(daemon: &Daemon, args: &str) -> Running {
    // exec, because a shell in between would also be ended by Ctrl-C.
    let command = format!("exec {} {args}", env!("CARGO_BIN_EXE_msgbus"));
    let mut script = tokio::process::Command::new("script");
    script.args(["-q", "-e", "-f", "-c", &command, "/dev/null"]);
    script
        .env("MSGBUS_URI", daemon.uri())
        .env("TERM", "xterm")
        .env("TZ", "UTC")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    Running::start(script)
}

#[tokio::test]
async fn a_terminal_shows_lines_for_people_and_nothing_it_would_obey() {
    let daemon = Daemon::start();
    let mut running = on_terminal(&daemon, "sub t -n 3");
    daemon.subscribers(1).await;
    daemon.put("t", "hi there");
    daemon.put("t", "\x1b[2J\x07");
    daemon.put("t", b"\xff\xfe".to_vec());
    let first = running.line().await;
    assert!(first.contains("\x1b[36mt\x1b[0m") && first.contains(" hi there\r\n"), "{first:?}");
    let second = running.line().await;
    assert!(second.contains("\\u{1b}[2J\\u{7}\r\n"), "{second:?}");
    let third = running.line().await;
    assert!(third.contains("(2 bytes) ff fe"), "{third:?}");
    assert_eq!(running.end().await.code, Some(0));
}

#[tokio::test]
async fn no_color_is_respected() {
    let daemon = Daemon::start();
    daemon.put("t", "plain");
    let mut running = on_terminal(&daemon, "pull t --color never");
    let line = running.line().await;
    assert!(!line.contains('\x1b') && line.ends_with(" t #0 plain\r\n"), "{line:?}");
    running.end().await;
}

#[tokio::test]
async fn a_message_can_be_typed() {
    let daemon = Daemon::start();
    let mut running = on_terminal(&daemon, "pub t");
    let hint = running.line().await;
    assert!(hint.contains("Ctrl-D"), "{hint:?}");
    let mut keyboard = running.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut keyboard, b"typed\n\x04").await.unwrap();
    running.stdin = Some(keyboard);
    soon(async {
        while daemon.bus.topic(&name("t")).is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    assert_eq!(daemon.bus.get(&name("t")).unwrap().unwrap().payload(), "typed\n");
    assert_eq!(running.end().await.code, Some(0));
}

#[tokio::test]
async fn ctrl_c_on_the_terminal_ends_in_order() {
    let daemon = Daemon::start();
    let mut running = on_terminal(&daemon, "sub t");
    daemon.subscribers(1).await;
    let mut keyboard = running.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut keyboard, b"\x03").await.unwrap();
    running.stdin = Some(keyboard);
    assert_eq!(running.end().await.code, Some(0));
    daemon.subscribers(0).await;
}

#[tokio::test]
async fn ctrl_c_lets_a_command_finish() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done");
    let script = format!("echo began; sleep 0.5; echo x > {}", done.display());
    let mut running = on_terminal(&daemon, &format!("sub t sh -c '{script}'"));
    daemon.subscribers(1).await;
    daemon.put("t", "x");
    assert_eq!(running.line().await, "began\r\n");
    let mut keyboard = running.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut keyboard, b"\x03").await.unwrap();
    running.stdin = Some(keyboard);
    assert_eq!(running.end().await.code, Some(0));
    assert!(done.exists());
}

#[tokio::test]
async fn the_help_fits_a_pipe_that_is_closed() {
    let mut sh = tokio::process::Command::new("sh");
    sh.arg("-c").arg(format!("{} --help | head -n 1", env!("CARGO_BIN_EXE_msgbus")));
    let said = crate::support::run({
        sh.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        sh
    })
    .await;
    assert_eq!((said.out.lines().count(), &said.err[..]), (1, ""));
    drop(msgbus(&[]));
}
