//! Section 14: ack, nack and extend, one lease at a time and many at once.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::{Daemon, Reply};

/// A server with messages in the topic t, and the tokens of their leases for the group g.
async fn with_leases(count: usize, target: &str) -> (Daemon, Vec<String>) {
    let daemon = Daemon::start();
    let topic = "t".parse().unwrap();
    for n in 0..count {
        daemon.bus.put(&topic, n.to_string()).unwrap();
    }
    let leases = daemon.get(target).await.leases();
    assert_eq!(leases.len(), count);
    (daemon, leases.into_iter().map(|lease| lease.2).collect())
}

impl Daemon {
    async fn settle_all(&self, target: &str, body: impl AsRef<[u8]>) -> Reply {
        self.send("POST", target, &[], body.as_ref()).await
    }

    /// Checks that a token settles nothing any more.
    async fn is_lost(&self, token: &str) {
        for verb in ["ack", "nack", "extend"] {
            let target = format!("/-/{verb}/{token}");
            self.post(&target).await.refuses(410, "the lease is over");
            let accept = ["Accept: application/json"];
            let problem = self.send("POST", &target, &accept, b"").await.json();
            assert_eq!((&problem["code"], &problem["status"]), (&json!("lease_lost"), &json!(410)));
        }
        let many = self.settle_all("/-/ack", token).await;
        assert_eq!(many.json(), json!({"lease": token, "error": "lease_lost"}));
    }
}

fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!((reply.status, reply.header("Content-Type")), (200, Some("application/x-ndjson")));
    assert!(reply.body.is_empty() || reply.text().ends_with('\n'), "{reply:?}");
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn an_ack_is_done_once() {
    let (daemon, tokens) = with_leases(1, "/t?group=g&max=9").await;
    let reply = daemon.post(&format!("/-/ack/{}", tokens[0])).await;
    assert_eq!(
        (reply.status, &reply.body[..], reply.header("Msgbus-Lease-Expires")),
        (204, &b""[..], None)
    );
    daemon.is_lost(&tokens[0]).await;
    let group = daemon.group("g", "t").unwrap();
    assert_eq!((group.counters.acked, group.leased, group.waiting), (1, 0, 0));
    assert_eq!(group.oldest_unacked, None);
}

#[tokio::test]
async fn a_nack_gives_the_message_back_at_once_or_later() {
    let (daemon, tokens) = with_leases(2, "/t?group=g&max=9").await;
    let nack = format!("/-/nack/{}?delay=5s&reason=disk%20full", tokens[0]);
    assert_eq!(daemon.post(&nack).await.status, 204);
    daemon.is_lost(&tokens[0]).await;
    assert_eq!(daemon.get("/t?group=g").await.status, 404, "not yet");
    assert_eq!(daemon.group("g", "t").unwrap().waiting, 1);
    assert_eq!(daemon.post(&format!("/-/nack/{}", tokens[1])).await.status, 204);
    let (id, deliveries, _) = daemon.lease("/t?group=g").await;
    assert_eq!((id, deliveries), (1, 2));
    let (id, deliveries, _) = daemon.lease("/t?group=g&wait=60s").await;
    assert_eq!((id, deliveries), (0, 2));
    assert_eq!(daemon.group("g", "t").unwrap().counters.nacked, 2);
}

#[tokio::test]
async fn an_extended_lease_goes_on() {
    let (daemon, tokens) = with_leases(1, "/t?group=g&max=9&lease=3s").await;
    let reply = daemon.post(&format!("/-/extend/{}?lease=1h", tokens[0])).await;
    assert_eq!(reply.status, 204);
    let expires = |reply: &Reply| -> chrono::DateTime<chrono::Utc> {
        reply.header("Msgbus-Lease-Expires").unwrap().parse().unwrap()
    };
    let left = expires(&reply) - chrono::Utc::now();
    assert!((3000..=3600).contains(&left.num_seconds()), "{left}");
    assert_eq!(daemon.get("/t?group=g&wait=3500ms").await.status, 204, "longer than it was");
    let reply = daemon.post(&format!("/-/extend/{}", tokens[0])).await;
    let left = expires(&reply) - chrono::Utc::now();
    assert!((15..=30).contains(&left.num_seconds()), "30 s is the default: {left}");
    assert_eq!(daemon.ack(&tokens[0]).await, 204);
}

#[tokio::test]
async fn an_extended_lease_ends_with_its_message() {
    let daemon = Daemon::start();
    daemon.put("/t?ttl=60s", "x").await;
    daemon.put("/t", "y").await;
    let reply = daemon.get("/t?group=g&lease=30s&max=2").await;
    let tokens: Vec<_> = reply.leases().into_iter().map(|lease| lease.2).collect();
    let first: Value = serde_json::from_str(reply.text().lines().next().unwrap()).unwrap();
    let one = daemon.post(&format!("/-/extend/{}?lease=1h", tokens[0])).await;
    let many = daemon.settle_all("/-/extend?lease=1h", tokens.join("\n")).await;
    for reply in [one, many] {
        assert_eq!(reply.header("Msgbus-Lease-Expires"), first["expires"].as_str(), "{reply:?}");
    }
    let acks = daemon.settle_all("/-/ack", tokens.join("\n")).await;
    assert_eq!((acks.status, acks.header("Msgbus-Lease-Expires")), (200, None));
}

#[tokio::test]
async fn a_token_dies_with_its_lease() {
    let (daemon, tokens) = with_leases(3, "/t?group=g&max=9").await;
    // Moved.
    assert_eq!(daemon.send("PUT", "/-/groups/g/t?since=all", &[], b"").await.status, 200);
    daemon.is_lost(&tokens[0]).await;
    // Removed with its group, which is made again with the same number.
    let (_, _, token) = daemon.lease("/t?group=g").await;
    assert_eq!(daemon.send("DELETE", "/-/groups/g/t", &[], b"").await.status, 204);
    daemon.is_lost(&token).await;
    let (_, _, again) = daemon.lease("/t?group=h").await;
    daemon.is_lost(&token).await;
    // Deleted with its topic, which is made again.
    assert_eq!(daemon.send("DELETE", "/t", &[], b"").await.status, 204);
    daemon.is_lost(&again).await;
    daemon.put("/t", "x").await;
    daemon.lease("/t?group=h").await;
    daemon.is_lost(&again).await;
    // Of another server.
    let (other, tokens) = with_leases(1, "/t?group=h&max=9").await;
    daemon.is_lost(&tokens[0]).await;
    assert_eq!(other.ack(&tokens[0]).await, 204);
    assert_eq!(daemon.group("h", "t").unwrap().counters.acked, 0);
}

#[tokio::test]
async fn a_token_dies_with_its_message() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 1);
    daemon.put("/t?ttl=3s", "expires").await;
    let (_, _, token) = daemon.lease("/t?group=g").await;
    crate::support::until(|| daemon.group("g", "t").unwrap().counters.expired == 1).await;
    daemon.is_lost(&token).await;
    daemon.put("/t", "evicted").await;
    let (_, _, token) = daemon.lease("/t?group=g").await;
    daemon.put("/t", "x").await;
    daemon.is_lost(&token).await;
    let counters = daemon.group("g", "t").unwrap().counters;
    assert_eq!((counters.evicted, counters.acked, counters.nacked), (1, 0, 0));
}

/// Nobody can settle a lease by guessing: all parts of a token have to be right.
#[tokio::test]
async fn a_changed_token_settles_nothing() {
    let (daemon, tokens) = with_leases(1, "/t?group=g&max=9").await;
    let token = &tokens[0];
    let bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
    for index in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[index] ^= 1;
        let changed = URL_SAFE_NO_PAD.encode(changed);
        let status = daemon.ack(&changed).await;
        assert_eq!(status, if index == 0 { 400 } else { 410 }, "byte {index}");
    }
    for length in 0..token.len() {
        let status = daemon.ack(&token[..length]).await;
        assert!(matches!(status, 400 | 410), "{length}: {status}");
    }
    let escaped: Vec<_> = token.bytes().map(|byte| format!("%{byte:02X}")).collect();
    assert_eq!(daemon.ack(&escaped.concat()).await, 204, "an escaped path is the same path");
}

#[tokio::test]
async fn what_is_no_token_is_a_bad_request() {
    let daemon = Daemon::start();
    let long = "A".repeat(8000);
    for rubbish in ["", "x", "workers", "AAAA", "%C3%A9", "a/b", "mbk_secret", &long] {
        for verb in ["ack", "nack", "extend"] {
            let reply = daemon.post(&format!("/-/{verb}/{rubbish}")).await;
            reply.refuses(400, "not a lease token");
            assert!(!reply.text().contains("secret"));
        }
    }
    daemon.post("/-/ack/%zz").await.refuses(400, "percent-encoding");
    let accept = ["Accept: application/json"];
    let problem = daemon.send("POST", "/-/ack/x", &accept, b"").await.json();
    assert_eq!(problem["code"], "invalid_lease");
}

#[tokio::test]
async fn parameters_and_methods_of_settling_are_checked() {
    let (daemon, tokens) = with_leases(1, "/t?group=g&max=9").await;
    let token = &tokens[0];
    for (target, mention) in [
        (format!("/-/ack/{token}?delay=1s"), "takes no parameters"),
        (format!("/-/nack/{token}?delay=13h"), "use 0s to 12h"),
        (format!("/-/nack/{token}?delay=3650d"), "use 0s to 12h"),
        (format!("/-/nack/{token}?delay=-1s"), "not a duration"),
        (format!("/-/nack/{token}?lease=1s"), "unknown parameter \"lease\""),
        (format!("/-/extend/{token}?lease=0"), "use 1s to 12h"),
        (format!("/-/extend/{token}?lease=13h"), "use 1s to 12h"),
        (format!("/-/extend/{token}?lease=1s&lease=2s"), "more than once"),
        ("/-/nack?delay=13h".to_owned(), "use 0s to 12h"),
        ("/-/ack?x".to_owned(), "takes no parameters"),
    ] {
        daemon.settle_all(&target, token).await.refuses(400, mention);
    }
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        for target in [format!("/-/ack/{token}"), "/-/nack".to_owned(), "/-/extend".to_owned()] {
            let reply = daemon.send(method, &target, &[], b"").await;
            assert_eq!(
                (reply.status, reply.header("Allow")),
                (405, Some("POST")),
                "{method} {target}"
            );
        }
    }
    daemon.post("/-/acks").await.refuses(404, "/-/ack/<token>");
    assert_eq!(daemon.ack(token).await, 204, "nothing of this has settled it");
}

#[tokio::test]
async fn many_leases_are_settled_at_once_and_the_others_named() {
    let (daemon, tokens) = with_leases(4, "/t?group=g&max=9").await;
    daemon.ack(&tokens[1]).await;
    let long = "r".repeat(1000);
    let body = format!(
        "{}\r\n\n  {}  \n{}\nrubbish \"1\"\n{}\n{}\nmbk_é\u{1}\n{long}",
        tokens[0], tokens[1], tokens[2], tokens[0], tokens[3]
    );
    let reply = daemon.settle_all("/-/ack", body).await;
    assert_eq!(reply.header("Cache-Control"), Some("no-store"));
    let expected = [
        json!({"lease": tokens[1], "error": "lease_lost"}),
        json!({"lease": "rubbish \"1\"", "error": "invalid_lease"}),
        json!({"lease": tokens[0], "error": "lease_lost"}),
        json!({"lease": "mbk_é\u{fffd}", "error": "invalid_lease"}),
        json!({"lease": &long[..100], "error": "invalid_lease"}),
    ];
    assert_eq!(lines(&reply), expected);
    let group = daemon.group("g", "t").unwrap();
    assert_eq!((group.counters.acked, group.leased), (4, 0));
}

#[tokio::test]
async fn many_leases_are_given_back_or_extended_at_once() {
    let (daemon, tokens) = with_leases(3, "/t?group=g&max=9&lease=1m").await;
    let reply = daemon.settle_all("/-/extend?lease=1h", tokens.join("\n")).await;
    assert_eq!((lines(&reply).len(), reply.status), (0, 200));
    let stats = daemon.get("/-/groups/g/t").await.json();
    for lease in stats["leases"].as_array().unwrap() {
        let time = |field: &str| -> chrono::DateTime<chrono::Utc> {
            lease[field].as_str().unwrap().parse().unwrap()
        };
        assert!((time("expires") - time("since")).num_minutes() > 50, "{lease}");
    }
    let reply = daemon.settle_all("/-/nack?delay=1h&reason=x", tokens[..2].join("\n")).await;
    assert_eq!(lines(&reply), [] as [Value; 0]);
    let group = daemon.group("g", "t").unwrap();
    assert_eq!((group.leased, group.waiting, group.counters.nacked), (1, 2, 2));
}

#[tokio::test]
async fn a_body_without_tokens_is_a_bad_request() {
    let daemon = Daemon::start();
    for body in ["", "\n", " \r\n\n"] {
        for verb in ["ack", "nack", "extend"] {
            let reply = daemon.settle_all(&format!("/-/{verb}"), body).await;
            reply.refuses(400, "the body has no lease tokens");
        }
    }
    let binary = daemon.settle_all("/-/ack", b"\xff\xfe\n\x00").await;
    assert_eq!(lines(&binary).len(), 2);
    assert!(lines(&binary).iter().all(|line| line["error"] == "invalid_lease"));
}

#[tokio::test]
async fn ten_thousand_leases_are_settled_in_one_request_and_no_more() {
    const MOST: usize = 10_000;
    let daemon = Daemon::start();
    let topic = "t".parse().unwrap();
    let put = |count: usize| {
        for _ in 0..count {
            daemon.bus.put(&topic, "x").unwrap();
        }
    };
    put(MOST + 1);
    let set = daemon.send("PUT", "/-/groups/g/t?max_leases=65536", &[], b"").await;
    assert_eq!(set.status, 201);
    let mut tokens = daemon.get("/t?group=g&lease=1h&max=10000").await.leases();
    tokens.extend(daemon.get("/t?group=g&lease=1h&max=10000").await.leases());
    let tokens: Vec<_> = tokens.into_iter().map(|lease| lease.2).collect();
    assert_eq!(tokens.len(), MOST + 1);
    let too_many = daemon.settle_all("/-/ack", tokens.join("\n")).await;
    too_many.refuses(413, "at most 10000 tokens");
    assert_eq!(too_many.header("Connection"), Some("close"));
    assert_eq!(daemon.group("g", "t").unwrap().counters.acked, 0, "none of them");

    let reply = daemon.settle_all("/-/ack", tokens[..MOST].join("\n")).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    let reply = daemon.settle_all("/-/ack", tokens[1..].join("\n")).await;
    assert_eq!(lines(&reply).len(), MOST - 1);
    assert_eq!(lines(&reply)[0]["lease"], json!(tokens[1]));
    assert_eq!(daemon.group("g", "t").unwrap().counters.acked, MOST as u64 + 1);

    let empty = daemon.settle_all("/-/ack", "\n".repeat(MOST + 1)).await;
    empty.refuses(413, "at most 10000 tokens");
    // 100,000 tokens, and a body that never ends.
    let many = format!("{}\n", tokens[0]).repeat(100_000);
    daemon.settle_all("/-/ack", many).await.refuses(413, "at most 10000 tokens");
    let mut connection = daemon.connect().await;
    connection
        .write(b"POST /-/ack HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n")
        .await;
    connection.write(&vec![b'A'; 0x10_0000]).await;
    for _ in 0..4 {
        connection.write(b"\r\n100000\r\n").await;
        connection.write(&vec![b'A'; 0x10_0000]).await;
    }
    connection.reply().await.refuses(413, "at most 10000 tokens");
}
