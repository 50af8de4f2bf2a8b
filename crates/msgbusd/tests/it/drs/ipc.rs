//! `msgbusd drs-ipc`, and `--drs` on the command line. Its transcripts are those of the others.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::Stdio,
};

use super::{Over, Peer, daemon, key_of};
use crate::{
    binary::{Running, msgbusd},
    process::refuses,
    support::soon,
};

#[tokio::test]
async fn a_parent_serves_through_its_child() {
    let daemon = daemon();
    let mut parent = daemon.drs(Over::Ipc).await;
    parent.on("drs.serve", "s").await;
    let (reply, ()) = tokio::join!(daemon.put("/-/request/s", "[1]"), async {
        let key = key_of(&parent.text().await);
        parent.send(&format!(r#"{{"key":"{key}","action":"drs.response","body":[2]}}"#)).await;
    });
    assert_eq!((reply.status, reply.text()), (200, "[2]"));
    // The end of its input ends the connection, and the process.
    let Peer::Ipc(mut child, _) = parent else { panic!() };
    drop(child.stdin.take());
    assert!(soon(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn it_ends_with_the_server() {
    let daemon = daemon();
    let mut parent = daemon.drs(Over::Ipc).await;
    parent.is_idle().await;
    let stopped = daemon.stop();
    parent.is_closed().await;
    assert_eq!(soon(stopped).await.unwrap().cut, 0);
}

#[test]
fn its_arguments_are_checked() {
    for (args, mention) in [
        (&["drs-ipc", "localhost"][..], &["drs-ipc", "HOST:PORT"][..]),
        (&["drs-ipc", "a", "b"], &["drs-ipc", "tcp://HOST:PORT"]),
        (&["drs-ipc", "--token"], &["drs-ipc", "tcp://HOST:PORT"]),
        (&["--drs", "localhost:1"], &["--drs", "ws://HOST:PORT or tcp://HOST:PORT"]),
        (&["--drs", "http://localhost:1"], &["--drs", "ws://HOST:PORT or tcp://HOST:PORT"]),
        (&["--drs", "ws://0.0.0.0:1"], &["--drs", "other machines", "--keys"]),
        (&["--drs-timeout", "2m"], &["--drs-timeout", "between 1ms and 1m"]),
        (&["--drs-broadcast", "a//b"], &["--drs-broadcast", "empty"]),
    ] {
        refuses(&mut msgbusd(args), mention);
    }
    let nowhere = format!("tcp://{}", msgbus_testkit::nowhere());
    let failed = msgbusd(&["drs-ipc", &nowhere]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("cannot connect to 127.0.0.1:"));
    let help = msgbusd(&["drs-ipc", "--help"]).output().unwrap();
    assert!(help.status.success() && help.stdout.starts_with(b"Pass drs commands"));
}

#[test]
fn the_log_says_where_drs_is_served() {
    let args =
        ["--bind", "127.0.0.1:0", "--drs", "tcp://127.0.0.1:0", "--drs", "ws://127.0.0.1:0/"];
    let mut running = Running::start(msgbusd(&args).stdin(Stdio::null()));
    let line = running.logs("drs-tcp clients are served at ");
    running.logs("drs-ws clients are served at 127.0.0.1:");
    let address = line.trim().rsplit(' ').next().unwrap().to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"{\"key\":\"k\",\"action\":\"x\"}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(answer.contains("No handlers for x"), "{answer}");
    running.signal("-TERM");
    assert!(running.end().0.success());
}
