//! `msgbus sub --poll`, `--strict` and `msgbus tail`: what is there, what is missed, and where it ends.

use std::time::Duration;

use crate::{
    subscribe::sub,
    support::{Daemon, Proxy, Running, msgbus, name, soon},
};

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
    for how in [&["-n", "3"][..], &["--poll"], &["--timeout", "4s"]] {
        let since = |id| sub(&daemon.uri(), &[&["t", "--strict", "--since", id], how].concat());
        let (gap, none) = (since("5"), since("7"));
        let (gap, none) = (gap.end().await, none.end().await);
        assert_eq!(gap.code, Some(6), "{gap:?}");
        assert!(gap.err.contains("missed 2 messages: "), "{gap:?}");
        assert_eq!(none.code, Some(0), "{none:?}");
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
    assert_eq!(tail(&["-n", "100", "--timeout", "4s"]).end().await.out.lines().count(), 21);
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
