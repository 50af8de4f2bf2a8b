//! `msgbus sub` and `msgbus tail` of several topics and of patterns.

use crate::{
    subscribe::sub,
    support::{Daemon, Proxy, Running, free_address, msgbus, name, run},
};

/// The lines of the output, sorted: topics have no common order.
fn sorted(out: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn several_topics_are_followed_in_one_run() {
    let daemon = Daemon::start();
    for n in 0..3 {
        daemon.put("a", format!("a{n}"));
        daemon.put("b/c", format!("b{n}"));
    }
    let args = ["a", "b/c", "none", "--all", "--poll", "-o", "raw"];
    let ended = sub(&daemon.uri(), &args).end().await;
    let note = "msgbus: following 3 topics; a command to run goes behind --\n";
    assert_eq!((ended.code, &ended.err[..]), (Some(0), note));
    let lines = ["a\ta0", "a\ta1", "a\ta2", "b/c\tb0", "b/c\tb1", "b/c\tb2"];
    assert_eq!(sorted(&ended.out), lines);

    let mut live = sub(&daemon.uri(), &["a", "b/c", "--", "sh", "-c", "echo $MSGBUS_TOPIC"]);
    daemon.subscribers(2).await;
    for topic in ["a", "b/c", "a"] {
        daemon.put(topic, "x");
        assert_eq!(live.line().await, format!("{topic}\n"));
    }
    live.signal("-INT");
    live.end().await.is_silent();
    daemon.subscribers(0).await;
}

#[tokio::test]
async fn count_timeout_and_strict_are_those_of_one_topic() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 2);
    let run =
        async |args: &[&str]| sub(&daemon.uri(), &[&["a", "b", "-q"], args].concat()).end().await;
    assert_eq!(run(&["-n", "1", "--timeout", "3s"]).await.code, Some(5));
    let first = run(&["--all", "--poll"]).await;
    assert_eq!((first.code, &first.out[..]), (Some(0), ""));
    daemon.put("a", "x");
    daemon.put("b", "x");
    assert_eq!(run(&["--all", "-n", "2"]).await.out.lines().count(), 2);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    let path = file.to_str().unwrap();
    assert_eq!(run(&["--all", "-n", "2", "--cursor", path]).await.code, Some(0));
    for _ in 0..5 {
        daemon.put("b", "y");
    }
    let late = run(&["--strict", "-n", "2", "--cursor", path]).await;
    assert_eq!((late.code, late.out.lines().count()), (Some(6), 2));
    assert!(late.err.contains("b: missed 3 messages"), "{late:?}");
    let away = sub("localhost:1", &["a", "b", "-q"]).end().await;
    away.fails(3, "cannot connect");
}

#[tokio::test]
async fn cut_connections_lose_and_repeat_nothing() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let mut running = sub(&proxy.uri(), &["a", "b", "--all", "-q", "-o", "raw"]);
    daemon.subscribers(2).await;
    let mut next = [0, 0];
    for round in 0..3 {
        for n in 0..100 {
            daemon.put(["a", "b"][n % 2], (round * 50 + n / 2).to_string());
        }
        proxy.cut();
        while next != [round * 50 + 50; 2] {
            let line = running.line().await;
            let (topic, number) = line.trim_end().split_once('\t').unwrap();
            let expected = &mut next[usize::from(topic == "b")];
            assert_eq!(number, expected.to_string(), "{topic}");
            *expected += 1;
        }
    }
}

#[tokio::test]
async fn a_cursor_keeps_a_position_for_each_topic() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    let path = file.to_str().unwrap();
    for n in 0..4 {
        daemon.put("a", n.to_string());
    }
    // The file of a single topic is taken over.
    let one = sub(&daemon.uri(), &["a", "--all", "-n", "2", "--cursor", path]).end().await;
    assert_eq!(one.code, Some(0));
    daemon.put("b", "x");
    let args = ["-q", "a", "b", "--all", "--poll", "-o", "raw", "--cursor", path];
    let both = sub(&daemon.uri(), &args).end().await;
    assert_eq!(sorted(&both.out), ["a\t2", "a\t3", "b\tx"], "{both:?}");
    let text = std::fs::read_to_string(&file).unwrap();
    let epoch = |topic| daemon.bus.topic(&name(topic)).unwrap().topic.epoch;
    let positions = format!("{}-3 a\n{}-0 b\n", epoch("a"), epoch("b"));
    assert!(text.ends_with(&positions), "{text}");
    daemon.put("b", "y");
    assert_eq!(sub(&daemon.uri(), &args).end().await.out, "b\ty\n");
    let one = sub(&daemon.uri(), &["a", "--cursor", path]).end().await;
    one.fails(2, "it belongs to several topics or a pattern; use a separate file");
}

#[tokio::test]
async fn a_killed_run_repeats_one_message_at_most() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cursor");
    let args = ["-q", "a", "b", "--all", "-o", "raw", "--cursor", file.to_str().unwrap()];
    for n in 0..600 {
        daemon.put("a", n.to_string());
    }
    let mut next = 0;
    for _ in 0..4 {
        let mut running = sub(&daemon.uri(), &args);
        let first: u64 = running.line().await.trim_end()[2..].parse().unwrap();
        assert!(first == next || first + 1 == next, "{first} after {next}");
        for _ in 0..50 {
            running.line().await;
        }
        running.child.kill().await.unwrap();
        let rest = running.end().await.out;
        let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
        next = first + 51 + whole.lines().count() as u64;
    }
}

#[tokio::test]
async fn tail_shows_the_last_messages_of_all_topics() {
    let daemon = Daemon::start();
    for n in 0..20 {
        daemon.put(["a", "b"][n % 2], n.to_string());
    }
    let mut command = msgbus(&["tail", "a", "b", "-n", "4", "-o", "raw"]);
    command.env("MSGBUS_URI", daemon.uri());
    let mut running = Running::start(command);
    for n in 16..20 {
        assert_eq!(running.line().await, format!("{}\t{n}\n", ["a", "b"][n % 2]));
    }
    daemon.subscribers(2).await;
    daemon.put("a", "new");
    assert_eq!(running.line().await, "a\tnew\n");
}

#[tokio::test]
async fn topics_are_listed_by_pattern() {
    let daemon = Daemon::start();
    for topic in ["orders", "orders/eu", "orders/eu/x", "ordersx"] {
        daemon.put(topic, "x");
    }
    let list = async |pattern: &str| {
        let mut command = msgbus(&["topics", pattern]);
        command.env("MSGBUS_URI", daemon.uri());
        let out = run(command).await.out;
        let names = out.lines().skip(1).filter_map(|line| line.split(' ').next());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(list("orders/*").await, ["orders/eu"]);
    assert_eq!(list("orders/**").await, ["orders/eu", "orders/eu/x"]);
    assert_eq!(list("orders/").await, ["orders/eu", "orders/eu/x"]);
}

#[tokio::test]
async fn a_pattern_is_followed_with_topics_that_are_made_later() {
    let daemon = Daemon::start();
    daemon.put("orders/eu", "old");
    let all = sub(&daemon.uri(), &["orders/**", "--all", "--poll", "-o", "raw"]).end().await;
    assert_eq!((all.code, &all.out[..], &all.err[..]), (Some(0), "orders/eu\told\n", ""));
    let empty = sub(&daemon.uri(), &["none/*", "--poll"]).end().await;
    empty.is_silent();

    let mut command = msgbus(&["tail", "orders/*", "-o", "raw"]);
    command.env("MSGBUS_URI", daemon.uri());
    let mut running = Running::start(command);
    assert_eq!(running.line().await, "orders/eu\told\n");
    for topic in ["orders/us", "other", "orders/eu"] {
        daemon.put(topic, "new");
    }
    assert_eq!(running.line().await, "orders/us\tnew\n");
    assert_eq!(running.line().await, "orders/eu\tnew\n");
    let mut json = sub(&daemon.uri(), &["orders/**", "--since", "1h"]);
    let line = json.line().await;
    assert!(line.contains(r#""topic":{"name":"orders/eu""#), "{line}");
}

/// A server that keeps its messages; the order of a pattern does not survive its restart.
#[tokio::test]
async fn a_cursor_of_a_pattern_survives_a_restart_of_the_server() {
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |address| {
        Daemon::at(address, |config| {
            config.data = Some(data.path().to_owned());
            config.bus.topic.promise = config.sync;
        })
    };
    let address = free_address();
    let daemon = start(address);
    let file = folder.path().join("cursor");
    let path = file.to_str().unwrap();
    let args = ["orders/*", "--all", "--poll", "-o", "raw", "--cursor", path];
    for topic in ["orders/eu", "orders/us", "orders/eu"] {
        daemon.put(topic, "1");
    }
    let first = sub(&daemon.uri(), &args).end().await;
    assert_eq!((first.out.lines().count(), &first.err[..]), (3, ""), "{first:?}");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(lines[2..], ["orders/*", "orders/eu", "orders/us"], "{text}");
    daemon.stop().await;

    let daemon = start(address);
    daemon.put("orders/us", "2");
    daemon.put("orders/new", "2");
    let second = sub(&daemon.uri(), &args).end().await;
    assert_eq!(sorted(&second.out), ["orders/new\t2", "orders/us\t2"], "{second:?}");
    assert!(second.err.contains("orders/*: its order began anew"), "{second:?}");
    let third = sub(&daemon.uri(), &args).end().await;
    third.is_silent();
}
