//! Section 14: messages that were delivered too often.

use crate::support::{Daemon, until};

impl Daemon {
    /// Creates the group g of the topic t.
    async fn group_with(&self, parameters: &str) {
        let reply = self.send("PUT", &format!("/-/groups/g/t?{parameters}"), &[], b"").await;
        assert_eq!(reply.status, 201, "{reply:?}");
    }

    fn retained(&self, topic: &str) -> u64 {
        self.bus.topic(&topic.parse().unwrap()).map_or(0, |topic| topic.retained)
    }
}

#[tokio::test]
async fn the_last_nack_makes_a_dead_letter_with_its_origin() {
    let daemon = Daemon::start();
    daemon.group_with("max_deliveries=2").await;
    let headers = ["Content-Type: text/plain", "Correlation-Id: 7"];
    daemon.send("PUT", "/t", &headers, b"job").await;
    for deliveries in 1..=2 {
        let (_, count, token) = daemon.lease("/t?group=g").await;
        assert_eq!(count, deliveries);
        let nack = format!("/-/nack/{token}?reason=no%0Aroom%20{deliveries}%C3%A9");
        assert_eq!(daemon.post(&nack).await.status, 204);
    }
    until(|| daemon.retained("t/dead-letters") == 1).await;
    let group = daemon.group("g", "t").unwrap();
    assert_eq!((group.counters.dead_lettered, group.waiting, group.leased), (1, 0, 0));
    let letter = daemon.get("/t/dead-letters?raw&peek").await;
    assert_eq!(letter.text(), "job");
    for (name, value) in [
        ("Content-Type", "text/plain"),
        ("Correlation-Id", "7"),
        ("Msgbus-Header-dead-letter-topic", "t"),
        ("Msgbus-Header-dead-letter-id", "0"),
        ("Msgbus-Header-dead-letter-group", "g"),
        ("Msgbus-Header-dead-letter-deliveries", "2"),
        ("Msgbus-Header-dead-letter-reason", "no room 2é"),
    ] {
        assert_eq!(letter.header(name), Some(value), "{name}");
    }
    let topic = daemon.get("/-/topics/t/dead-letters").await.json();
    assert_eq!((&topic["ttl"], &topic["overflow"]), (&0.into(), &"reject".into()));
    assert_eq!(daemon.get("/t").await.message().payload(), "job", "plain pulls are not affected");
}

#[tokio::test]
async fn the_end_of_the_last_lease_does_so_too() {
    let daemon = Daemon::start();
    daemon.group_with("max_deliveries=1&dead_letters=failed/t").await;
    daemon.put("/t", "job").await;
    daemon.lease("/t?group=g&lease=1s").await;
    let letter = daemon.get("/failed/t?wait=60s&raw").await;
    assert_eq!(letter.text(), "job");
    let reason = letter.header("Msgbus-Header-dead-letter-reason");
    assert_eq!(reason, Some("the lease expired"));
    assert_eq!(daemon.get("/t?group=g").await.status, 404);
}

#[tokio::test]
async fn without_a_limit_there_are_no_dead_letters() {
    let daemon = Daemon::start();
    daemon.group_with("max_deliveries=0").await;
    daemon.put("/t", "job").await;
    for expected in 1..=30 {
        let (_, deliveries, token) = daemon.lease("/t?group=g").await;
        assert_eq!(deliveries, expected);
        daemon.post(&format!("/-/nack/{token}")).await;
    }
    assert_eq!(daemon.group("g", "t").unwrap().counters.dead_lettered, 0);
    assert_eq!(daemon.retained("t/dead-letters"), 0);
}

/// A message that finds no room stays, and is tried again.
#[tokio::test]
async fn a_refused_dead_letter_is_kept_and_counted() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 1);
    daemon.put("/t/dead-letters", "in the way").await;
    daemon.group_with("max_deliveries=1").await;
    daemon.put("/t", "job").await;
    let (_, _, token) = daemon.lease("/t?group=g").await;
    assert_eq!(daemon.post(&format!("/-/nack/{token}")).await.status, 204);
    until(|| daemon.group("g", "t").unwrap().counters.dead_letters_refused > 0).await;
    let group = daemon.group("g", "t").unwrap();
    assert_eq!((group.counters.dead_lettered, daemon.retained("t")), (0, 1));
    assert_eq!(daemon.get("/t?group=g").await.status, 404, "it is not delivered again");
    assert_eq!(daemon.get("/t?peek&group=g").await.message().payload(), "job", "it is not lost");
    let metric = "msgbus_group_dead_letters_refused_total{topic=\"t\",group=\"g\"} ";
    assert!(daemon.get("/metrics").await.text().contains(metric));

    assert_eq!(daemon.get("/t/dead-letters").await.message().payload(), "in the way");
    until(|| daemon.group("g", "t").unwrap().counters.dead_lettered == 1).await;
    let letter = daemon.get("/t/dead-letters?wait=60s").await;
    assert_eq!(letter.message().headers().get("dead-letter-topic"), Some("t"));
}

#[tokio::test]
async fn a_dead_letter_does_not_die_again() {
    let daemon = Daemon::start();
    let header = ["Msgbus-Header-Dead-Letter-Topic: elsewhere"];
    daemon.group_with("max_deliveries=1").await;
    daemon.send("PUT", "/t", &header, b"job").await;
    let (_, _, token) = daemon.lease("/t?group=g").await;
    assert_eq!(daemon.post(&format!("/-/nack/{token}")).await.status, 204);
    let (id, deliveries, _) = daemon.lease("/t?group=g&wait=60s").await;
    assert_eq!((id, deliveries), (0, 2));
    assert_eq!(daemon.retained("t/dead-letters"), 0);
    assert_eq!(daemon.group("g", "t").unwrap().counters.dead_lettered, 0);
}

/// Groups of dead letters deliver without end, unless they are set to something else.
#[tokio::test]
async fn a_group_of_dead_letters_has_no_limit_of_deliveries() {
    let daemon = Daemon::start();
    daemon.put("/t/dead-letters", "x").await;
    daemon.lease("/t/dead-letters?group=redrive").await;
    let group = daemon.get("/-/groups/redrive/t/dead-letters").await.json();
    assert_eq!(group["max_deliveries"], 0);
}

/// 2.3
#[tokio::test]
async fn a_topic_that_rejects_keeps_what_a_group_needs() {
    let daemon = Daemon::with(|config| {
        config.bus.topic.max_messages = 2;
        config.bus.topic.overflow = msgbus_core::Overflow::Reject;
    });
    daemon.put("/t", "0").await;
    let (_, _, first) = daemon.lease("/t?group=g").await;
    daemon.put("/t", "1").await;
    daemon.put("/t", "2").await.refuses(507, "acknowledged");
    daemon.ack(&first).await;
    assert_eq!(daemon.put("/t", "2").await.status, 202, "plain pulls do not count: there are none");
    let leases = daemon.get("/t?group=g&max=9").await.leases();
    assert_eq!(leases.len(), 2);
    daemon.ack(&leases[1].2).await;
    assert_eq!(daemon.put("/t", "3").await.status, 507, "the oldest is still leased");
    daemon.ack(&leases[0].2).await;
    assert_eq!(daemon.put("/t", "3").await.status, 202);
}
