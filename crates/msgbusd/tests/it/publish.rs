//! Section 4: publishing.

use std::time::Duration;

use msgbus_core::{Overflow, TopicRule};

use tokio::io::AsyncWriteExt as _;

use crate::support::{Daemon, soon};

#[tokio::test]
async fn put_and_post_return_the_id_of_the_message() {
    let daemon = Daemon::start();
    let first = daemon.put("/t", "a").await;
    let second = daemon.send("POST", "/t", &[], b"b").await;
    for (id, reply) in [(0, &first), (1, &second)] {
        assert_eq!((reply.status, reply.number("Msgbus-Id")), (202, id));
        assert_eq!(reply.body, b"");
        assert_eq!(reply.number("Content-Length"), 0);
    }
    assert_eq!(first.header("Msgbus-Epoch"), second.header("Msgbus-Epoch"));
}

#[tokio::test]
async fn any_bytes_are_a_payload_also_none() {
    let daemon = Daemon::start();
    let every_byte: Vec<u8> = (0..=255).collect();
    for payload in [&b""[..], b"\0", &every_byte] {
        assert_eq!(daemon.put("/t", payload).await.status, 202);
        assert_eq!(daemon.get("/t").await.message().payload(), payload);
    }
}

#[tokio::test]
async fn the_payload_limit_is_inclusive_with_and_without_a_length() {
    let daemon = Daemon::with(|config| config.max_payload = 100);
    assert_eq!(daemon.put("/t", [0; 100]).await.status, 202);
    let reply = daemon.put("/t", [0; 101]).await;
    reply.refuses(413, "payload exceeds max-payload-size");
    assert_eq!(reply.header("Connection"), Some("close"));

    let chunked = |size: usize| {
        let half = "x".repeat(size / 2);
        format!("{0:x}\r\n{half}\r\n{0:x}\r\n{half}\r\n0\r\n\r\n", size / 2)
    };
    for (size, status) in [(100, 202), (102, 413), (100_000, 413)] {
        let mut connection = daemon.connect().await;
        let head =
            "PUT /t HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.write(head.as_bytes()).await;
        connection.write(chunked(size).as_bytes()).await;
        assert_eq!(connection.reply().await.status, status, "{size}");
    }
    assert_eq!(daemon.bus.stats().counters.published, 2);
}

#[tokio::test]
async fn a_huge_upload_is_refused_before_it_is_read() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    connection.write(b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n").await;
    // No byte of the body was sent before the response; some of it is sent after it.
    connection.write(&vec![0; 100_000]).await;
    connection.reply().await.refuses(413, "1048576");
}

#[tokio::test]
async fn a_client_that_writes_everything_before_it_reads_gets_its_response() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    connection.write(b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n").await;
    for _ in 0..4 {
        // A connection that is closed too early is reset by this.
        soon(connection.0.write_all(&vec![0; 500_000])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    connection.reply().await.refuses(413, "1048576");
}

#[tokio::test]
async fn an_expectation_of_a_refused_request_gets_no_continue() {
    let daemon = Daemon::with(|config| config.max_payload = 10);
    let mut connection = daemon.connect().await;
    connection
        .write(b"PUT /t HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n")
        .await;
    let answer = connection.rest().await;
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_body_that_stops_half_way_publishes_nothing() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    connection.write(b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
    drop(connection);
    let mut connection = daemon.connect().await;
    connection
        .write(b"PUT /t HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        .await;
    connection.reply().await.refuses(400, "error reading payload");
    daemon.get("/t").await.refuses(404, "no messages");
    assert_eq!(daemon.bus.topics(), []);
}

#[tokio::test]
async fn messages_expire_by_parameter_header_and_topic() {
    let rule = TopicRule {
        ttl: Some(Some(Duration::from_millis(1))),
        ..TopicRule::new("short/*".parse().unwrap())
    };
    let daemon = Daemon::with(|config| config.bus.rules = vec![rule]);
    let lifetime = async |target, headers: &[&str]| {
        daemon.send("PUT", target, headers, b"x").await;
        let message = daemon.get("/t").await.message();
        (message.expires().unwrap() - message.created()).num_milliseconds()
    };
    assert_eq!(lifetime("/t", &[]).await, 3_600_000);
    assert_eq!(lifetime("/t?ttl=30s", &[]).await, 30_000);
    assert_eq!(lifetime("/t", &["TTL: 30"]).await, 30_000);
    assert_eq!(lifetime("/t?ttl=10s", &["TTL: 30"]).await, 10_000);
    assert_eq!(lifetime("/t?ttl=2h", &[]).await, 3_600_000);

    for target in ["/t?ttl=0", "/t?ttl=-1s", "/t?ttl=", "/t?ttl=soon", "/t?ttl=30"] {
        daemon.put(target, "x").await.refuses(400, "ttl");
    }
    for header in ["TTL: 0", "TTL: 30s", "TTL: -1", "TTL: +5", "TTL: x"] {
        daemon.send("PUT", "/t", &[header], b"x").await.refuses(400, "TTL");
    }

    daemon.put("/short/1", "x").await;
    let short = "short/1".parse().unwrap();
    soon(async {
        while daemon.bus.topic(&short).unwrap().retained > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    daemon.get("/short/1").await.refuses(404, "no messages");
    assert_eq!(daemon.bus.topic(&short).unwrap().counters.expired.unpulled, 1);
}

#[tokio::test]
async fn at_its_limit_a_topic_drops_the_oldest_or_refuses() {
    let strict = TopicRule {
        overflow: Some(Overflow::Reject),
        ..TopicRule::new("strict/**".parse().unwrap())
    };
    let daemon = Daemon::with(|config| {
        config.bus.topic.max_messages = 3;
        config.bus.rules = vec![strict];
    });
    for payload in ["0", "1", "2", "3", "4"] {
        assert_eq!(daemon.put("/t", payload).await.status, 202);
    }
    for expected in ["2", "3", "4"] {
        assert_eq!(daemon.get("/t").await.message().payload(), expected);
    }

    for payload in ["0", "1", "2"] {
        assert_eq!(daemon.put("/strict/t", payload).await.status, 202);
    }
    daemon.put("/strict/t", "3").await.refuses(507, "full");
    assert_eq!(daemon.get("/strict/t").await.message().payload(), "0");
    assert_eq!(daemon.put("/strict/t", "3").await.status, 202, "pulled messages are evicted");
    daemon.put("/strict/t", "4").await.refuses(507, "full");
}

#[tokio::test]
async fn a_payload_that_its_topic_can_never_hold_evicts_nothing() {
    let daemon = Daemon::with(|config| config.bus.topic.max_bytes = 1000);
    daemon.put("/t", [0; 300]).await;
    daemon.put("/t", [0; 300]).await;
    daemon.put("/t", [0; 900]).await.refuses(413, "at most 1000");
    assert_eq!(daemon.bus.stats().retained, 2);
}

#[tokio::test]
async fn at_the_topic_limit_new_names_are_refused_and_the_bus_keeps_serving() {
    let daemon = Daemon::with(|config| config.bus.max_topics = 1000);
    let mut connection = daemon.connect().await;
    let mut accepted = 0;
    for batch in 0..100 {
        for n in 0..100 {
            let head =
                format!("PUT /t{batch}-{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
            connection.write(head.as_bytes()).await;
        }
        for _ in 0..100 {
            let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
            if head.starts_with("HTTP/1.1 202 ") {
                accepted += 1;
                continue;
            }
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            assert!(head.contains("retry-after: 1"), "{head}");
            connection.read_until(b"\n").await;
        }
    }
    assert_eq!(accepted, 1000);
    assert_eq!(daemon.put("/t0-0", "more").await.status, 202, "old topics go on");
    daemon.put("/new", "x").await.refuses(503, "1000 topics");
    assert_eq!(daemon.send("DELETE", "/t0-0", &[], b"").await.status, 204);
    assert_eq!(daemon.put("/new", "x").await.status, 202);
}

#[tokio::test]
async fn lines_are_published_as_messages_all_or_none() {
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 5);
    let payloads = || {
        std::iter::from_fn(|| daemon.bus.get(&"t".parse().unwrap()).unwrap())
            .map(|message| message.payload().to_vec())
            .collect::<Vec<_>>()
    };
    let reply = daemon.put("/t?split=lines&ttl=10s", "one\r\ntwo\n\nfour\n").await;
    assert_eq!(
        (reply.status, reply.number("Msgbus-First-Id"), reply.number("Msgbus-Last-Id")),
        (202, 0, 3)
    );
    assert!(reply.number("Msgbus-Epoch") > 0);
    assert_eq!(payloads(), [&b"one"[..], b"two", b"", b"four"]);

    daemon.put("/t?split=lines", "1\n2\n3\n4\n5\n6").await.refuses(413, "6 messages");
    assert_eq!(daemon.bus.stats().counters.published, 4);
    assert_eq!(daemon.put("/t?split=lines", "").await.number("Msgbus-Last-Id"), 4);
    assert_eq!(payloads(), [b""], "an empty body is an empty line");
    daemon.put("/t?split=words", "x").await.refuses(400, "use lines");
}

#[tokio::test]
async fn a_full_bus_takes_from_the_topic_itself_or_says_503() {
    let daemon = Daemon::with(|config| config.bus.max_bytes = 10_000);
    for _ in 0..100 {
        assert_eq!(daemon.put("/large", [0; 500]).await.status, 202, "it drops its own");
    }
    let refused = daemon.put("/other", [0; 5000]).await;
    refused.refuses(503, "10000 bytes");
    assert_eq!(refused.header("Retry-After"), Some("1"));
    assert!(daemon.bus.stats().bytes <= 10_000);
    assert!(daemon.bus.stats().retained > 5);
}

#[tokio::test]
async fn a_202_is_never_lost_to_a_delete() {
    let daemon = Daemon::start();
    let publish = async {
        let mut connection = daemon.connect().await;
        for _ in 0..2000 {
            connection.write(b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
            let head = connection.read_until(b"\r\n\r\n").await;
            assert!(head.starts_with(b"HTTP/1.1 202 "));
        }
    };
    let delete = async {
        for _ in 0..200 {
            daemon.send("DELETE", "/t", &[], b"").await;
        }
    };
    tokio::join!(publish, delete);
    let stats = daemon.bus.stats();
    assert_eq!(stats.counters.published, 2000);
    assert_eq!(stats.retained + stats.counters.deleted.total, 2000);
}
