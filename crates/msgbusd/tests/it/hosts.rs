//! Sections 1.8 and 9.3: host names of the server, and ambiguous heads.

use msgbusd::auth::KeyFile;

use crate::{
    keys::{File, key},
    support::{Daemon, Reply},
};

async fn say(daemon: &Daemon, request: &str) -> Reply {
    let mut connection = daemon.connect().await;
    connection.write(request.as_bytes()).await;
    connection.reply().await
}

/// Sends a request without a body, with these header lines, on a connection that is closed after it.
async fn ask(daemon: &Daemon, request: &str, lines: &[&str]) -> Reply {
    let head = [&["Connection: close"], lines].concat().join("\r\n");
    say(daemon, &format!("{request} HTTP/1.1\r\n{head}\r\n\r\n")).await
}

#[tokio::test]
async fn a_foreign_host_name_can_neither_read_nor_pull() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    for target in ["/t", "/t?max=10000", "/t?peek", "/t?stream=raw", "/", "/metrics", "/-/stats"] {
        let reply = ask(&daemon, &format!("GET {target}"), &["Host: evil.example:80"]).await;
        reply.refuses(421, "\"evil.example\" is not allowed; allow it with --allow-host");
    }
    for method in ["PUT", "POST", "DELETE"] {
        let reply = ask(&daemon, &format!("{method} /t"), &["Host: evil.example"]).await;
        reply.refuses(421, "--allow-host");
    }
    let absolute = ask(&daemon, "GET http://evil.example/t", &["Host: localhost"]).await;
    absolute.refuses(421, "evil.example");
    for name in ["127.0.0.1.evil.example", "localhost.evil", "notlocalhost", "xlocalhost", "::1:x"]
    {
        let reply = ask(&daemon, "GET /t", &[&format!("Host: {name}")]).await;
        assert_eq!(reply.status, 421, "{name}");
    }
    assert_eq!(ask(&daemon, "GET /healthz", &["Host: evil.example"]).await.status, 200);
    for name in [
        "localhost",
        "LOCALHOST:1",
        "bus.localhost",
        "localhost.",
        "10.0.0.1:8000",
        "[::1]:8000",
        "",
    ] {
        let reply = ask(&daemon, "GET /t?peek", &[&format!("Host: {name}")]).await;
        assert_eq!(reply.status, 200, "{name:?}");
    }
    let answer = say(&daemon, "GET /t?peek HTTP/1.0\r\n\r\n").await;
    assert_eq!(answer.status, 200, "no browser speaks HTTP/1.0 without Host");
    assert_eq!(daemon.bus.stats().counters.pulled, 0);
}

#[tokio::test]
async fn a_name_can_be_allowed() {
    let daemon = Daemon::with(|config| {
        config.allowed_hosts = vec!["bus.lan".to_owned()];
        config.allowed_origins = vec!["https://bus.example.com".to_owned()];
    });
    daemon.put("/t", "x").await;
    for name in ["bus.lan:8000", "BUS.lan", "bus.lan.", "bus.example.com", "bus.example.com:8000"] {
        let reply = ask(&daemon, "GET /t?peek", &[&format!("Host: {name}")]).await;
        assert_eq!(reply.status, 200, "{name}");
    }
    let reply = ask(&daemon, "GET /t?peek", &["Host: other.lan"]).await;
    reply.refuses(421, "other.lan");

    let own = ["Host: bus.lan:8000", "Origin: http://bus.lan:8000"];
    assert_eq!(ask(&daemon, "PUT /t", &own).await.status, 202);
    // An unencrypted page can be forged on its way.
    let clear = ["Host: bus.example.com", "Origin: http://bus.example.com"];
    ask(&daemon, "PUT /t", &clear).await.refuses(403, "http://bus.example.com");
    let secure = ["Host: bus.example.com", "Origin: https://bus.example.com"];
    assert_eq!(ask(&daemon, "PUT /t", &secure).await.status, 202);
}

#[tokio::test]
async fn a_client_with_a_key_may_use_any_host_name() {
    let key = key("k", &["pull:**"]);
    let file = File::new(&["subscribe:**"], &[&key]);
    let daemon = Daemon::with(|config| config.keys = Some(KeyFile::read(file.path()).unwrap()));
    let host = "Host: bus.example";
    let bearer = format!("Authorization: Bearer {}", key.secret);
    ask(&daemon, "GET /t", &[host]).await.refuses(401, "needs a key");
    ask(&daemon, "GET /t?peek", &[host]).await.refuses(421, "--allow-host");
    ask(&daemon, "GET /t", &[host, &bearer]).await.refuses(404, "no messages");
    ask(&daemon, "GET /t?peek", &[host, &bearer]).await.refuses(404, "no messages");
}

#[tokio::test]
async fn a_request_of_http_1_1_names_one_host() {
    let daemon = Daemon::start();
    ask(&daemon, "GET /healthz", &[]).await.refuses(400, "needs a Host header");
    ask(&daemon, "GET /healthz", &["Host: a", "Host: b"]).await.refuses(400, "Host");
    ask(&daemon, "GET /healthz", &["Host: a", "Host: a"]).await.refuses(400, "more than once");
    for odd in ["a b", "user@localhost", "http://localhost", "localhost/x", "\"a\"", "größe"] {
        let reply = ask(&daemon, "GET /healthz", &[&format!("Host: {odd}")]).await;
        reply.refuses(400, "header Host");
    }
    assert_eq!(say(&daemon, "GET /healthz HTTP/1.0\r\n\r\n").await.status, 200);
}

#[tokio::test]
async fn single_headers_must_not_be_repeated() {
    let daemon = Daemon::start();
    for line in [
        "Content-Type: text/plain",
        "TTL: 5",
        "Last-Event-ID: 1-1",
        "Authorization: Bearer x",
        "Origin: http://localhost",
        "Sec-Fetch-Site: none",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ] {
        let name = line.split(':').next().unwrap();
        let reply = ask(&daemon, "PUT /t", &["Host: localhost", line, line]).await;
        reply.refuses(400, &format!("header {name} is given more than once"));
    }
    let lists = ["Host: localhost", "Accept: a/b", "Accept: c/d", "X: 1", "X: 2"];
    assert_eq!(ask(&daemon, "PUT /t", &lists).await.status, 202);
}

#[tokio::test]
async fn only_chunked_is_decoded() {
    let daemon = Daemon::start();
    for (coding, status) in [
        ("gzip, chunked", 501),
        ("identity, chunked", 501),
        ("chunked, chunked", 400),
        ("chunked", 202),
        ("CHUNKED", 202),
    ] {
        let reply = say(
            &daemon,
            &format!(
                "PUT /t HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                 Transfer-Encoding: {coding}\r\n\r\n1\r\nx\r\n0\r\n\r\n"
            ),
        )
        .await;
        assert_eq!(reply.status, status, "{coding}: {reply:?}");
    }
    assert_eq!(daemon.bus.stats().counters.published, 2);
}
