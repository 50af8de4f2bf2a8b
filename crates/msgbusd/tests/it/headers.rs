//! Sections 3.1, 4.7 and 5.3: headers stay with a message.

use msgbus_core::{BatchLimit, Message, json};
use tokio::process::Command;

use crate::support::{Daemon, soon};

const TEXT: &str = "hi there, hi there, hi there\n";
/// [`TEXT`] as gzip writes it.
const GZIP: &[u8] =
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xcb\xc8\x54\x28\xc9\x48\x2d\x4a\xd5\x51\xc8\xc0\
    \x60\x71\x01\x00\x2e\x79\x75\x63\x1d\x00\x00\x00";
const BOTH: [&str; 2] = ["Content-Type: text/plain", "Content-Encoding: gzip"];

fn is_kept(message: &Message) {
    assert_eq!(message.content_type(), Some("text/plain"));
    assert_eq!(message.content_encoding(), Some("gzip"));
    assert_eq!(message.payload(), GZIP);
}

#[tokio::test]
async fn headers_are_returned_in_every_format() {
    let daemon = Daemon::start();
    let mut websocket = daemon.subscribe("/t").await;
    for _ in 0..3 {
        assert_eq!(daemon.send("PUT", "/t", &BOTH, GZIP).await.status, 202);
    }
    let peeked = daemon.get("/t?peek").await;
    let field = r#","headers":{"content-type":"text/plain","content-encoding":"gzip"}}"#;
    assert!(peeked.text().ends_with(field), "after `created`: {}", peeked.text());
    is_kept(&peeked.message());
    is_kept(&daemon.get("/t").await.message());
    is_kept(&websocket.message().await);
    let batch = daemon.get("/t?max=1").await;
    is_kept(&json::read_message(batch.text().trim_end().as_bytes()).unwrap());

    let raw = daemon.get("/t?raw").await;
    assert_eq!(raw.header("Content-Type"), Some("text/plain"));
    assert_eq!(raw.header("Content-Encoding"), Some("gzip"));
    assert_eq!(raw.body, GZIP);

    for (form, before) in [("sse", "data: "), ("ndjson", "")] {
        let mut stream = daemon.connect().await;
        let request = format!("GET /t?stream={form}&since=all HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write(request.as_bytes()).await;
        let lines = stream.read_until(b"\"gzip\"}}\n").await;
        let lines = String::from_utf8(lines).unwrap();
        let object = lines.lines().last().unwrap().strip_prefix(before).unwrap();
        is_kept(&json::read_message(object.as_bytes()).unwrap());
    }
}

#[tokio::test]
async fn a_message_without_headers_has_no_field_for_them() {
    let daemon = Daemon::start();
    for headers in [
        &[][..],
        &["Content-Type: application/x-www-form-urlencoded"],
        &["Content-Encoding: identity"],
        &["Content-Encoding:"],
    ] {
        daemon.send("PUT", "/t", headers, b"x").await;
        let reply = daemon.get("/t?peek").await;
        assert!(!reply.text().contains("headers"), "{}", reply.text());
        let raw = daemon.get("/t?raw").await;
        assert_eq!(raw.header("Content-Type"), Some("application/octet-stream"));
        assert_eq!(raw.header("Content-Encoding"), None);
    }
}

#[tokio::test]
async fn codings_are_one_list_and_one_that_cannot_be_kept_is_refused() {
    let daemon = Daemon::start();
    let two = ["Content-Encoding: br", "Content-Encoding: gzip"];
    daemon.send("PUT", "/t", &two, b"x").await;
    assert_eq!(daemon.get("/t").await.message().content_encoding(), Some("br, gzip"));

    let long = format!("Content-Encoding: {}", "x".repeat(256));
    daemon.send("PUT", "/t", &[&long], b"x").await.refuses(400, "Content-Encoding: at most 255");
    let odd = "Content-Encoding: gzíp";
    daemon.send("PUT", "/t", &[odd], b"x").await.refuses(400, "such as gzip");
    let lines = daemon.send("PUT", "/t?split=lines", &BOTH, GZIP).await;
    lines.refuses(415, "cannot be split");
    assert_eq!(lines.header("Accept-Encoding"), Some("identity"));
    assert_eq!(daemon.bus.stats().counters.published, 1);
}

#[tokio::test]
async fn the_messages_of_a_batch_share_their_content_type() {
    let daemon = Daemon::start();
    daemon.send("PUT", "/t?split=lines", &["Content-Type: text/csv"], b"1,2\n3,4").await;
    let limit = BatchLimit { events: 2, bytes: usize::MAX };
    let messages = daemon.bus.get_batch(&"t".parse().unwrap(), limit).unwrap();
    let content_types: Vec<_> = messages.iter().map(|message| message.content_type()).collect();
    assert_eq!(content_types, [Some("text/csv"); 2]);
    let kept = |content_type: Option<&str>| content_type.unwrap().as_ptr();
    assert_eq!(kept(content_types[0]), kept(content_types[1]), "it is kept once");
}

#[tokio::test]
async fn curl_decodes_what_was_published_compressed() {
    let daemon = Daemon::start();
    daemon.send("PUT", "/t", &BOTH, GZIP).await;
    let url = format!("http://{}/t?raw", daemon.address);
    let curl = Command::new("curl").args(["-sS", "--compressed", &url]).output();
    let output = soon(curl).await.expect("curl is installed");
    assert_eq!(String::from_utf8_lossy(&output.stdout), TEXT, "{output:?}");
}

/// What is kept by its own name, and by another.
#[tokio::test]
async fn a_fixed_list_of_headers_is_kept_and_returned() {
    let daemon = Daemon::start();
    let sent = [
        "Correlation-Id: 17",
        "Idempotency-Key: k",
        "ce-type: a.b",
        "CE-Source: /s",
        "Msgbus-Header-Reply-To: replies",
        "Msgbus-Header-Tag: a",
        "Msgbus-Header-Tag: \u{e9}",
        "X-GitHub-Event: push",
        "Authorization: Bearer nothing",
        "User-Agent: me",
    ];
    for _ in 0..2 {
        assert_eq!(daemon.send("POST", "/t", &sent, b"x").await.status, 202);
    }
    let field = r#","headers":{"correlation-id":"17","idempotency-key":"k","ce-type":"a.b","ce-source":"/s","reply-to":"replies","tag":["a","é"]}}"#;
    let seen = daemon.get("/t").await;
    assert!(seen.text().ends_with(field), "{}", seen.text());
    let raw = daemon.get("/t?raw").await;
    for (name, value) in [
        ("Correlation-Id", "17"),
        ("Idempotency-Key", "k"),
        ("ce-type", "a.b"),
        ("ce-source", "/s"),
        ("Msgbus-Header-Reply-To", "replies"),
        ("Msgbus-Header-Tag", "a"),
    ] {
        assert_eq!(raw.header(name), Some(value), "{name}");
    }
    assert_eq!(raw.header("Content-Type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn the_lines_of_a_batch_have_the_same_headers() {
    let daemon = Daemon::start();
    daemon.send("PUT", "/t?split=lines", &["ce-id: 1"], b"a\nb").await;
    for _ in 0..2 {
        assert_eq!(daemon.get("/t").await.message().headers().get("ce-id"), Some("1"));
    }
}

#[tokio::test]
async fn headers_that_cannot_be_kept_are_refused_with_their_limit() {
    let daemon = Daemon::start();
    let many: Vec<_> = (0..65).map(|n| format!("ce-a{n}: x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(daemon.send("PUT", "/t", &many[1..], b"x").await.status, 202);
    let long = format!("Msgbus-Header-A: {}", "x".repeat(8192));
    for (headers, status, text) in [
        (&many[..], 431, "at most 64 headers"),
        (&[long.as_str()], 431, "at most 8192 bytes"),
        (&["Msgbus-Header-: x"], 400, "header name"),
        (&["Msgbus-Header-Content-Type: x"], 400, "use Content-Type"),
    ] {
        daemon.send("PUT", "/t", headers, b"x").await.refuses(status, text);
    }
    let accept = ["Accept: application/json", long.as_str()];
    let problem = daemon.send("PUT", "/t", &accept, b"x").await;
    assert!(problem.text().contains("message_headers_too_large"), "{}", problem.text());
    assert_eq!(daemon.bus.stats().counters.published, 1);
}

#[tokio::test]
async fn a_topic_can_keep_more_headers() {
    let daemon = Daemon::with(|config| {
        let keep = vec!["X-GitHub-*".parse().unwrap(), "x-hub-signature-256".parse().unwrap()];
        config.keep_headers.rules = vec![("hooks/**".parse().unwrap(), keep)];
    });
    let sent = ["X-GitHub-Event: push", "X-Hub-Signature-256: sha256=0", "X-Other: 1"];
    for topic in ["/hooks/a", "/other"] {
        daemon.send("POST", topic, &sent, b"x").await;
    }
    let raw = daemon.get("/hooks/a?raw").await;
    assert_eq!(raw.header("Msgbus-Header-X-GitHub-Event"), Some("push"));
    assert_eq!(raw.header("Msgbus-Header-X-Hub-Signature-256"), Some("sha256=0"));
    assert_eq!(raw.header("Msgbus-Header-X-Other"), None);
    assert!(daemon.get("/other").await.message().headers().is_empty());
}
