//! Sections 1 and 8: names, parameters, methods, errors.

use crate::support::{Daemon, Reply};

#[tokio::test]
async fn names_are_decoded_once_and_trimmed() {
    let daemon = Daemon::start();
    for (target, name) in [
        ("/hello", "hello"),
        ("/a/b/", "a/b"),
        ("//outer//", "outer"),
        ("/%61%2Fb", "a/b"),
        ("/%2541", "%41"),
        ("/gr%C3%B6%C3%9Fe", "größe"),
        ("/a%20b?ignored=on-put", "a b"),
        ("/-", ""),
        ("/x*y", "x*y"),
    ] {
        let reply = daemon.put(target, name).await;
        if name.is_empty() {
            reply.refuses(400, "reserved");
            continue;
        }
        assert_eq!(reply.status, 202, "{target}: {reply:?}");
        let message = daemon.get(target.split('?').next().unwrap()).await.message();
        assert_eq!(message.topic().name.as_str(), name);
        assert_eq!(message.payload(), name);
    }
}

#[tokio::test]
async fn bad_names_are_refused_by_every_method_and_create_nothing() {
    let daemon = Daemon::start();
    let too_long = format!("/{}", "x".repeat(256));
    for (target, mention) in [
        ("/a//b", "segment"),
        ("/a/../b", "segment"),
        ("/.", "segment"),
        ("/a/*", "patterns"),
        ("/**", "patterns"),
        ("/metrics/", "reserved"),
        ("/%2D/topics", "reserved"),
        ("/a%00b", "control"),
        ("/a%0Ab", "control"),
        ("/a%zz", "percent-encoding"),
        ("/a%4", "percent-encoding"),
        ("/a%ff", "percent-encoding"),
        (too_long.as_str(), "at most 255 bytes, this one has 256"),
    ] {
        for method in ["GET", "PUT", "POST", "DELETE"] {
            daemon.send(method, target, &[], b"").await.refuses(400, mention);
        }
        // That of a pattern gives sums.
        let status = if mention == "patterns" { 200 } else { 400 };
        assert_eq!(daemon.send("HEAD", target, &[], b"").await.status, status);
    }
    for method in ["PUT", "POST", "DELETE"] {
        daemon.send(method, "/", &[], b"").await.refuses(400, "/<topic>");
        daemon.send(method, "///", &[], b"").await.refuses(400, "empty");
    }
    assert_eq!(daemon.get("/").await.text(), "");
}

#[tokio::test]
async fn unknown_methods_are_refused_with_allow() {
    let daemon = Daemon::start();
    for method in ["PATCH", "OPTIONS", "TRACE", "BREW"] {
        for (target, allow) in [
            ("/hello", "GET, HEAD, PUT, POST, DELETE"),
            ("/", "GET, HEAD"),
            ("*", "GET, HEAD, PUT, POST, DELETE"),
            ("/metrics", "GET, HEAD"),
        ] {
            let reply = daemon.send(method, target, &[], b"").await;
            reply.refuses(405, "method not allowed");
            assert_eq!(reply.header("Allow"), Some(allow));
        }
    }
    for target in ["/metrics", "/healthz"] {
        daemon.put(target, "x").await.refuses(405, "GET, HEAD");
    }
    assert_eq!(daemon.get("/").await.text(), "");
}

#[tokio::test]
async fn parameters_are_checked_where_a_misspelt_one_would_do_harm() {
    let daemon = Daemon::start();
    daemon.put("/t?whatever=1&secret=2", "x").await;
    for (target, mention) in [
        (
            "/t?rwa",
            "unknown parameter \"rwa\"; expected one of: raw, max, wait, peek, group, stream",
        ),
        ("/t?raw=maybe", "bad value of parameter \"raw\""),
        ("/t?raw&raw", "more than once"),
        ("/?topics=1", "expected one of: prefix, after, max"),
        ("/?max=0", "1 or more"),
        ("/?max=-1", "1 or more"),
    ] {
        daemon.get(target).await.refuses(400, mention);
    }
    daemon.send("DELETE", "/t?force", &[], b"").await.refuses(400, "takes no parameters");
    daemon.put("/t?ttl=1", "x").await.refuses(400, "not a duration");
    assert_eq!(daemon.get("/t?_=1760000000").await.message().id(), 0, "nothing was eaten");
}

#[tokio::test]
async fn errors_are_problem_documents_for_clients_that_prefer_json() {
    let daemon = Daemon::start();
    for accept in ["application/json", "text/html, application/problem+json;q=0.9"] {
        let header = format!("Accept: {accept}");
        let reply = daemon.send("GET", "/none", &[&header], b"").await;
        assert_eq!(reply.status, 404);
        assert_eq!(reply.header("Content-Type"), Some("application/problem+json"));
        let problem: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["code"], "empty");
        assert_eq!(problem["status"], 404);
        assert_eq!(problem["detail"], "no messages enqueued for topic: none");
    }
    let reply = daemon.get("/none").await;
    assert_eq!(reply.header("Content-Type"), Some("text/plain; charset=utf-8"));
    assert_eq!(reply.header("X-Content-Type-Options"), Some("nosniff"));
}

#[tokio::test]
async fn a_type_of_quality_0_is_not_wanted() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let content_type = async |target: &str, accept: &str| {
        let mut connection = daemon.connect().await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n");
        connection.write(request.as_bytes()).await;
        let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
        let mut lines = head.lines();
        lines.find_map(|line| line.strip_prefix("content-type: ")).unwrap().to_owned()
    };
    let (json, text) = ("application/json", "text/plain; charset=utf-8");
    for (target, accept, expected) in [
        ("/t?peek", "application/json;q=0", json),
        ("/none", "application/json;q=0, */*", text),
        ("/none", "application/problem+json; q=0.000", text),
        ("/none", "application/json;q=0, application/problem+json", "application/problem+json"),
        ("/none", "application/x-ndjson;q=0", text),
        ("/none", "text/event-stream;charset=utf-8 ; Q=0., */*", text),
        ("/none", "text/event-stream;q=0.001", "text/event-stream"),
        ("/", "application/json;q=0", text),
        ("/", "text/plain;q=0, application/json", json),
        ("/t", "application/octet-stream;q=0.0, text/event-stream;q=0", json),
    ] {
        assert_eq!(content_type(target, accept).await, expected, "{target} for {accept}");
    }
}

async fn say(daemon: &Daemon, bytes: &[u8]) -> Reply {
    let mut connection = daemon.connect().await;
    connection.write(bytes).await;
    connection.reply().await
}

#[tokio::test]
async fn invalid_or_too_large_requests_are_refused_and_the_bus_keeps_serving() {
    let daemon = Daemon::start();
    assert_eq!(say(&daemon, b"hello?\r\n\r\n").await.status, 400);
    assert_eq!(say(&daemon, b"GET /a b HTTP/1.1\r\n\r\n").await.status, 400);
    assert_eq!(say(&daemon, b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 400);

    let wide = format!("GET /t HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(say(&daemon, wide.as_bytes()).await.status, 431);
    let many = format!("GET /t HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
    assert_eq!(say(&daemon, many.as_bytes()).await.status, 431);

    let smuggled =
        b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx";
    assert_eq!(say(&daemon, smuggled).await.status, 400);
    assert_eq!(daemon.put("/t", "x").await.status, 202);
}

#[tokio::test]
async fn http_1_0_and_absolute_targets_are_understood() {
    let daemon = Daemon::start();
    let old = say(&daemon, b"PUT /t HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!(old.status, 202);
    let absolute = say(
        &daemon,
        b"GET http://localhost/t HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(absolute.message().payload(), "hi");
}

#[tokio::test]
async fn a_request_is_not_mistaken_for_the_one_before_it() {
    let daemon = Daemon::on_threads(1, |_| {});
    for (head, status) in [
        ("PUT /a%2520b HTTP/1.1\r\nHost: localhost\r\n", 202),
        ("PUT /a%20b HTTP/1.1\r\nHost: localhost\r\n", 202),
        ("PUT /a%20b HTTP/1.1\r\nHost: other.example\r\n", 421),
        ("PUT /a%20b HTTP/1.1\r\nHost: localhost\r\nOrigin: http://other.example\r\n", 403),
        ("PUT /a%20b HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        ("PUT /a%20b HTTP/1.1\r\nHost: localhost\r\nTTL: 0\r\n", 400),
    ] {
        let request = format!("{head}Connection: close\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(say(&daemon, request.as_bytes()).await.status, status, "{head}");
    }
    assert_eq!(daemon.get("/").await.text(), "a b\na%20b\n");
}
