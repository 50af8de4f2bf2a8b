//! Section 14: groups that are shown, created, moved and removed; their limits, grants and metrics.

use msgbusd::auth::KeyFile;
use serde_json::{Value, json};

use crate::{
    keys::{File, bearer, key},
    support::{Daemon, Reply},
};

impl Daemon {
    async fn set_group(&self, target: &str) -> Reply {
        self.send("PUT", &format!("/-/groups/{target}"), &[], b"").await
    }

    async fn show_group(&self, group: &str) -> Value {
        let reply = self.get(&format!("/-/groups/{group}")).await;
        assert_eq!(reply.header("Content-Type"), Some("application/json"));
        assert_eq!((reply.status, reply.header("Cache-Control")), (200, Some("no-store")));
        reply.json()
    }
}

#[tokio::test]
async fn a_group_shows_its_counters_settings_and_leases() {
    let daemon = Daemon::start();
    for n in 0..5 {
        daemon.put("/jobs", n.to_string()).await;
    }
    let leases = daemon.get("/jobs?group=workers&max=4").await.leases();
    daemon.ack(&leases[0].2).await;
    daemon.post(&format!("/-/nack/{}?delay=1h", leases[2].2)).await;
    let mut group = daemon.show_group("workers/jobs").await;
    let fields = [
        "group",
        "topic",
        "next_id",
        "pending",
        "leased",
        "waiting",
        "delivered",
        "acked",
        "nacked",
        "lease_expired",
        "redelivered",
        "dead_lettered",
        "dead_letters_refused",
        "expired",
        "evicted",
        "oldest_unacked",
        "max_deliveries",
        "max_leases",
        "dead_letters",
        "waiters",
        "leases",
    ];
    let text = group.to_string();
    assert_eq!(group.as_object().unwrap().len(), fields.len(), "{text}");
    assert!(fields.iter().all(|field| group.get(field).is_some()), "{text}");
    assert!(group["oldest_unacked"].take().as_str().unwrap().ends_with('Z'));
    for lease in group["leases"].as_array_mut().unwrap() {
        let holder = lease["holder"].take();
        assert!(holder.as_str().unwrap().starts_with("127.0.0.1:"), "{holder}");
        assert!(
            lease["since"].take().as_str().unwrap() < lease["expires"].take().as_str().unwrap()
        );
    }
    let lease =
        |id| json!({"id": id, "deliveries": 1, "holder": null, "since": null, "expires": null});
    let expected = json!({
        "group": "workers", "topic": "jobs", "next_id": 4, "pending": 1, "leased": 2, "waiting": 1,
        "delivered": 4, "acked": 1, "nacked": 1, "lease_expired": 0, "redelivered": 0,
        "dead_lettered": 0, "dead_letters_refused": 0, "expired": 0, "evicted": 0,
        "oldest_unacked": null, "max_deliveries": 10, "max_leases": 1024,
        "dead_letters": "jobs/dead-letters", "waiters": 0, "leases": [lease(1), lease(3)],
    });
    assert_eq!(group, expected);
}

#[tokio::test]
async fn at_most_a_hundred_leases_are_shown_and_the_oldest_first() {
    let daemon = Daemon::start();
    for n in 0..150 {
        daemon.bus.put(&"t".parse().unwrap(), n.to_string()).unwrap();
    }
    daemon.get("/t?group=g&max=150").await;
    let group = daemon.show_group("g/t").await;
    let ids: Vec<_> =
        group["leases"].as_array().unwrap().iter().map(|lease| &lease["id"]).collect();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    assert_eq!(group["leased"], 150);
}

#[tokio::test]
async fn a_group_can_be_created_before_its_topic() {
    let daemon = Daemon::start();
    let created = daemon.set_group("g/a/b?max_deliveries=0&max_leases=2&dead_letters=failed").await;
    assert_eq!(created.status, 201);
    let group = daemon.show_group("g/a/b").await;
    assert_eq!(created.json(), group);
    assert_eq!(group["topic"], "a/b");
    assert_eq!((&group["max_deliveries"], &group["max_leases"]), (&json!(0), &json!(2)));
    assert_eq!((&group["dead_letters"], &group["leases"]), (&json!("failed"), &json!([])));
    assert_eq!(daemon.get("/").await.text(), "a/b\n");
    let changed = daemon.send("PUT", "/-/groups/%67/a%2Fb?max_leases=3", &[], b"ignored").await;
    assert_eq!((changed.status, &changed.json()["max_leases"]), (200, &json!(3)));
    assert_eq!(changed.json()["dead_letters"], "failed", "other settings stay");
}

/// 14.8
#[tokio::test]
async fn since_moves_a_group_and_nothing_else_does() {
    let daemon = Daemon::start();
    for n in 0..3 {
        daemon.put("/t", n.to_string()).await;
    }
    let (_, _, token) = daemon.lease("/t?group=g").await;
    assert_eq!(daemon.set_group("g/t?max_deliveries=7").await.status, 200);
    let group = daemon.group("g", "t").unwrap();
    assert_eq!((group.leased, group.counters.delivered, group.next_id), (1, 1, 1));

    let moved = daemon.set_group("g/t?since=2").await;
    let group = moved.json();
    assert_eq!((moved.status, &group["next_id"], &group["pending"]), (200, &json!(2), &json!(1)));
    assert_eq!((&group["leased"], &group["delivered"]), (&json!(0), &json!(0)));
    assert_eq!(group["max_deliveries"], 7, "settings stay");
    assert_eq!(daemon.ack(&token).await, 410);
    assert_eq!(daemon.lease("/t?group=g").await.0, 2);
    assert_eq!(daemon.set_group("g/t?since=all").await.json()["pending"], 3);
    let (id, deliveries, _) = daemon.lease("/t?group=g").await;
    assert_eq!((id, deliveries), (0, 1));
    assert_eq!(daemon.set_group("new/t?since=new").await.json()["pending"], 0);
}

#[tokio::test]
async fn a_removed_group_is_gone() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    daemon.lease("/t?group=g").await;
    let remove = async || daemon.send("DELETE", "/-/groups/g/t", &[], b"").await;
    let removed = remove().await;
    assert_eq!((removed.status, &removed.body[..]), (204, &b""[..]));
    remove().await.refuses(404, "no such group: g of topic t");
    daemon.get("/-/groups/g/t").await.refuses(404, "no such group: g of topic t");
    daemon.get("/-/groups/g/none").await.refuses(404, "no such group: g of topic none");
    let accept = ["Accept: application/json"];
    let problem = daemon.send("GET", "/-/groups/g/t", &accept, b"").await.json();
    assert_eq!(problem["code"], "no_such_group");
    assert_eq!(daemon.lease("/t?group=g").await.0, 0, "the next pull creates it again");
}

#[tokio::test]
async fn a_bad_setting_is_refused_and_creates_nothing() {
    let daemon = Daemon::start();
    for (target, mention) in [
        ("g/t?max_deliveries=-1", "whole number, 0 to 4294967295"),
        ("g/t?max_deliveries=4294967296", "whole number"),
        ("g/t?max_leases=0", "whole number, 1 to 65536"),
        ("g/t?max_leases=65537", "whole number, 1 to 65536"),
        ("g/t?max_leases=1.5", "whole number"),
        ("g/t?dead_letters=", "must not be empty"),
        ("g/t?dead_letters=a//b", "empty"),
        ("g/t?since=yesterday", "since"),
        ("g/t?max-leases=1", "unknown parameter"),
        ("g/t?since=1&since=2", "more than once"),
        ("gr%C3%B6%C3%9Fe/t", "bad group name"),
        ("../t", "bad group name"),
        ("/t", "bad group name: a group name must not be empty"),
        ("g/", "bad topic name"),
        ("g/a/../b", "bad topic name"),
        ("g/*", "bad topic name"),
    ] {
        daemon.set_group(target).await.refuses(400, mention);
    }
    daemon.set_group("g").await.refuses(404, "/-/groups/<group>/<topic>");
    assert_eq!(daemon.get("/").await.text(), "");
    let reply = daemon.post("/-/groups/g/t").await;
    assert_eq!((reply.status, reply.header("Allow")), (405, Some("GET, HEAD, PUT, DELETE")));
    daemon.get("/-/groups/g/t?x=1").await.refuses(400, "takes no parameters");
}

/// 14.5
#[tokio::test]
async fn at_the_limit_of_leases_a_pull_is_refused_or_waits() {
    let daemon = Daemon::start();
    daemon.set_group("g/t?max_leases=2").await;
    for n in 0..4 {
        daemon.put("/t", n.to_string()).await;
    }
    let leases = daemon.get("/t?group=g&max=9").await.leases();
    assert_eq!(leases.len(), 2);
    let refused = daemon.get("/t?group=g").await;
    refused.refuses(429, "2 live leases");
    assert_eq!(refused.number("Retry-After"), 1);
    let accept = ["Accept: application/json"];
    let problem = daemon.send("GET", "/t?group=g", &accept, b"").await.json();
    assert_eq!(problem["code"], "too_many_leases");
    assert_eq!(daemon.get("/t?group=g&wait=1ms").await.status, 204);
    let mut waiting = daemon.begin("/t?group=g&wait=60s").await;
    daemon.group_waits("g", "t", 1).await;
    daemon.ack(&leases[1].2).await;
    assert_eq!(waiting.reply().await.message().id(), 2);
}

#[tokio::test]
async fn a_topic_has_a_limit_of_groups() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    for n in 0..64 {
        assert_eq!(daemon.lease(&format!("/t?group=g{n}")).await.0, 0);
    }
    let accept = ["Accept: application/json"];
    for (method, target) in [
        ("GET", "/t?group=g64"),
        ("GET", "/t?group=g64&wait=1s"),
        ("GET", "/t?group=g64&max=9"),
        ("PUT", "/-/groups/g64/t"),
    ] {
        daemon.send(method, target, &[], b"").await.refuses(429, "64 groups");
        let problem = daemon.send(method, target, &accept, b"").await.json();
        assert_eq!(problem["code"], "too_many_groups", "{method} {target}");
    }
    assert_eq!(daemon.set_group("g3/t?max_leases=1").await.status, 200);
    assert_eq!(daemon.send("DELETE", "/-/groups/g3/t", &[], b"").await.status, 204);
    assert_eq!(daemon.lease("/t?group=g64").await.0, 0);
}

/// 10.3
#[tokio::test]
async fn a_topic_shows_its_groups_if_it_has_any() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    assert_eq!(daemon.get("/-/topics/t").await.json().get("groups"), None);
    for n in 0..20 {
        daemon.lease(&format!("/t?group=g{n}")).await;
    }
    let topic = daemon.get("/-/topics/t").await.json();
    let groups = topic["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 20);
    let mut shown = daemon.show_group("g0/t").await;
    shown.as_object_mut().unwrap().remove("leases");
    assert!(groups.contains(&shown), "{topic}");
}

/// 10.1
#[tokio::test]
async fn metrics_have_series_of_the_busiest_groups() {
    let daemon = Daemon::with(|config| config.max_metric_topics = 2);
    daemon.put("/t", "x").await;
    assert!(
        !daemon.get("/metrics").await.text().contains("msgbus_group_"),
        "only if there are any"
    );
    let (_, _, token) = daemon.lease("/t?group=busy").await;
    daemon.post(&format!("/-/nack/{token}")).await;
    daemon.lease("/t?group=busy").await;
    daemon.lease("/t?group=other").await;
    daemon.set_group("idle/t?max_leases=9").await;
    daemon.put("/t", "y").await;
    let page = daemon.get("/metrics").await;
    let page = page.text();
    let labels = "{topic=\"t\",group=\"busy\"}";
    for line in [
        format!("msgbus_group_pending{labels} 1"),
        format!("msgbus_group_leased{labels} 1"),
        format!("msgbus_group_waiting{labels} 0"),
        format!("msgbus_group_delivered_total{labels} 2"),
        format!("msgbus_group_acked_total{labels} 0"),
        format!("msgbus_group_nacked_total{labels} 1"),
        format!("msgbus_group_lease_expired_total{labels} 0"),
        format!("msgbus_group_redelivered_total{labels} 1"),
        format!("msgbus_group_dead_lettered_total{labels} 0"),
        format!("msgbus_group_dead_letters_refused_total{labels} 0"),
        format!("msgbus_group_expired_total{labels} 0"),
        format!("msgbus_group_evicted_total{labels} 0"),
        "msgbus_group_leased{topic=\"t\",group=\"other\"} 1".to_owned(),
    ] {
        assert!(page.lines().any(|l| l == line), "no {line:?} in\n{page}");
    }
    assert!(!page.contains("group=\"idle\""), "only the two busiest");
    let oldest = format!("msgbus_group_oldest_unacked_seconds{labels} ");
    let age = page.lines().find_map(|line| line.strip_prefix(&oldest)).unwrap();
    assert!((0.0..300.0).contains(&age.parse::<f64>().unwrap()), "{age}");
}

/// 13.2
#[tokio::test]
async fn who_may_pull_a_topic_may_settle_its_leases() {
    let (worker, other) = (key("worker", &["pull:a/*"]), key("other", &["pull:b", "publish:**"]));
    let file = File::new(&[], &[&worker, &other]);
    let keys = KeyFile::read(file.path()).unwrap();
    let daemon = Daemon::on_threads(2, |config| config.keys = Some(keys));
    let ask = async |key, method: &str, target: &str, body: &str| {
        daemon.send(method, target, &[&bearer(key)], body.as_bytes()).await
    };
    for topic in ["a/1", "b"] {
        for n in 0..3 {
            daemon.bus.put(&topic.parse().unwrap(), n.to_string()).unwrap();
        }
    }
    let leases = ask(&worker, "GET", "/a/1?group=g&max=2", "").await.leases();
    let others = ask(&other, "GET", "/b?group=g&max=2", "").await.leases();
    let (own, foreign) = (&leases[0].2, &others[0].2);
    for verb in ["ack", "nack", "extend"] {
        let target = format!("/-/{verb}/{foreign}");
        ask(&worker, "POST", &target, "").await.refuses(403, "does not allow pull:b");
        daemon.post(&target).await.refuses(401, "pull:b needs a key");
        daemon.post(&format!("/-/{verb}")).await.refuses(401, "pull:** needs a key");
    }
    let body = format!("{own}\n{foreign}\nx\n{own}\n{foreign}");
    let reply = ask(&worker, "POST", "/-/ack", &body).await;
    let lines: Vec<Value> =
        reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = [
        json!({"lease": foreign, "error": "not_granted"}),
        json!({"lease": "x", "error": "invalid_lease"}),
        json!({"lease": own, "error": "lease_lost"}),
        json!({"lease": foreign, "error": "not_granted"}),
    ];
    assert_eq!(lines, expected);
    assert_eq!(daemon.group("g", "b").unwrap().counters.acked, 0);
    assert_eq!(daemon.group("g", "a/1").unwrap().counters.acked, 1);
    assert_eq!(ask(&other, "POST", &format!("/-/ack/{foreign}"), "").await.status, 204);

    let group = daemon.bus.group_stats(&"a/1".parse().unwrap(), &"g".parse().unwrap(), 9).unwrap();
    let holder = group.1[0].holder.as_deref().unwrap();
    assert!(holder.starts_with("worker@127.0.0.1:"), "{holder}");
}

/// Otherwise a key could make the server publish where it may not.
#[tokio::test]
async fn dead_letters_elsewhere_need_the_grant_to_publish_there() {
    let admin = key("admin", &["admin:jobs", "publish:failed/*"]);
    let file = File::new(&[], &[&admin]);
    let keys = KeyFile::read(file.path()).unwrap();
    let daemon = Daemon::on_threads(2, |config| config.keys = Some(keys));
    let set = async |parameter: &str| {
        let target = format!("/-/groups/g/jobs?{parameter}");
        daemon.send("PUT", &target, &[&bearer(&admin)], b"").await
    };
    set("dead_letters=other").await.refuses(403, "does not allow publish:other");
    assert_eq!(daemon.bus.topics().len(), 0);
    assert_eq!(set("dead_letters=failed/jobs").await.status, 201);
    assert_eq!(set("dead_letters=jobs/dead-letters").await.status, 200);
    let delete = async |target| daemon.send("DELETE", target, &[&bearer(&admin)], b"").await;
    assert_eq!(delete("/-/groups/g/jobs").await.status, 204);
    assert_eq!(delete("/jobs").await.status, 204, "admin covers delete");
    delete("/failed/jobs").await.refuses(403, "does not allow delete:failed/jobs");
}

/// 13.8
#[tokio::test]
async fn a_lease_that_waits_ends_with_its_grant() {
    let worker = key("worker", &["pull:t"]);
    let file = File::new(&[], &[&worker]);
    let keys = KeyFile::read(file.path()).unwrap();
    let daemon = Daemon::on_threads(2, |config| config.keys = Some(keys));
    daemon.bus.put(&"t".parse().unwrap(), "x").unwrap();
    let lease = async |target| daemon.send("GET", target, &[&bearer(&worker)], b"").await;
    let token = lease("/t?group=g").await.token();
    let mut waiting = daemon.connect().await;
    let request = format!(
        "GET /t?group=g&wait=60s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n\r\n",
        bearer(&worker)
    );
    waiting.write(request.as_bytes()).await;
    daemon.group_waits("g", "t", 1).await;
    file.write(&[], &[&key("worker", &["publish:t"])]);
    let keyring = daemon.keyring.clone().unwrap();
    tokio::task::spawn_blocking(move || keyring.reload().unwrap()).await.unwrap();
    assert_eq!(waiting.reply().await.status, 204);
    let ack = daemon.send("POST", &format!("/-/ack/{token}"), &[&bearer(&worker)], b"").await;
    assert_eq!(ack.status, 401);
    assert_eq!(daemon.group("g", "t").unwrap().leased, 1);
}
