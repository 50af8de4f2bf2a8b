//! `msgbus topics`, `info` and `rm`.

use msgbus_client::{Client, Position};

use crate::support::{Daemon, Finished, msgbus, name, run};

fn client(daemon: &Daemon) -> Client {
    Client::new(&daemon.uri()).unwrap()
}

async fn on(daemon: &Daemon, args: &[&str]) -> Finished {
    let mut command = msgbus(args);
    command.env("MSGBUS_URI", daemon.uri());
    run(command).await
}

#[tokio::test]
async fn topics_are_a_table_or_json() {
    let daemon = Daemon::start();
    let empty = on(&daemon, &["topics"]).await;
    assert_eq!(empty.out.lines().count(), 1, "only the heads: {}", empty.out);
    for topic in ["b", "a/long/name", "a"] {
        daemon.put(topic, "x");
    }
    daemon.bus.get(&name("a")).unwrap().unwrap();
    let table = on(&daemon, &["ls"]).await;
    assert_eq!((table.code, &table.err[..]), (Some(0), ""));
    let lines: Vec<Vec<&str>> =
        table.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["a", "1", "0", "129", "0", "1", "0"]);
    assert_eq!(lines[2][0], "a/long/name");
    let widths: Vec<usize> = table.out.lines().map(str::len).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "columns: {}", table.out);

    let json = on(&daemon, &["topics", "a/", "--json"]).await.out;
    let topic: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&topic["name"], &topic["published"]), (&"a/long/name".into(), &1.into()));
}

#[tokio::test]
async fn a_long_list_comes_whole() {
    let daemon = Daemon::start();
    for n in 0..10_050 {
        daemon.put(&format!("t{n:05}"), "x");
    }
    let topics = client(&daemon).topics("").await.unwrap();
    assert_eq!(topics.len(), 10_050);
    assert!(topics.is_sorted_by(|a, b| a.name < b.name));
}

#[tokio::test]
async fn info_shows_who_follows() {
    let daemon = Daemon::start();
    let mut subscription = client(&daemon).subscribe(&name("a b"), Position::New);
    subscription.next().await.unwrap();
    daemon.put("a b", "x");
    let shown = on(&daemon, &["info", "a b"]).await.out;
    for line in [
        "topic            a b",
        "ttl              1h",
        "messages         1, 1 of them to pull",
        "PEER",
    ] {
        assert!(shown.lines().any(|shown| shown.starts_with(line)), "no {line:?} in {shown}");
    }
    let json = on(&daemon, &["info", "a b", "--json"]).await.out;
    let topic: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(topic["subscriptions"][0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    on(&daemon, &["info", "none"]).await.fails(1, "no such topic: none");
}

#[tokio::test]
async fn rm_deletes() {
    let daemon = Daemon::start();
    daemon.put("t", "x");
    on(&daemon, &["rm", "t"]).await.is_silent();
    assert_eq!(daemon.bus.topics(), []);
    on(&daemon, &["rm", "t"]).await.fails(1, "no such topic: t");
}

#[tokio::test]
async fn a_purge_discards_messages_not_yet_taken_and_keeps_the_topic() {
    let daemon = Daemon::start();
    let topics = async |args: &[&str]| {
        let mut command = msgbus(args);
        command.env("MSGBUS_URI", daemon.uri());
        run(command).await
    };
    for _ in 0..12_000 {
        daemon.put("t", "x");
    }
    daemon.bus.get(&name("t")).unwrap().unwrap();
    assert_eq!(topics(&["purge", "t"]).await.out, "11999 messages discarded\n");
    let stats = daemon.bus.topic(&name("t")).unwrap();
    assert_eq!(stats.counters.pulled, 12_000);
    assert_eq!(topics(&["purge", "t"]).await.out, "0 messages discarded\n");
    assert_eq!(topics(&["purge", "absent"]).await.out, "0 messages discarded\n");
    daemon.put("t", "x");
    topics(&["purge", "-q", "t"]).await.is_silent();
}
