//! Section 9: what foreign pages may do through a user's browser.

use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};

use crate::support::Daemon;

const FOREIGN: &str = "Origin: https://evil.example";

#[tokio::test]
async fn a_foreign_page_can_neither_publish_nor_pull_nor_delete() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    for method in ["PUT", "POST", "GET", "DELETE", "OPTIONS"] {
        let reply = daemon.send(method, "/t", &[FOREIGN], b"").await;
        reply.refuses(403, "\"https://evil.example\" are not allowed; --allow-origin");
        assert_eq!(reply.header("Access-Control-Allow-Origin"), None);
    }
    let null = daemon.send("GET", "/t", &["Origin: null"], b"").await;
    null.refuses(403, "pages opened as files cannot be allowed; serve them over HTTP");
    daemon
        .send("GET", "/t", &["Sec-Fetch-Site: cross-site"], b"")
        .await
        .refuses(403, "another site");
    assert_eq!(daemon.get("/t").await.message().id(), 0, "nothing was eaten");
}

#[tokio::test]
async fn a_foreign_page_cannot_subscribe() {
    let daemon = Daemon::start();
    let mut request = format!("ws://{}/t", daemon.address).into_client_request().unwrap();
    request.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
    let stream = tokio::net::TcpStream::connect(daemon.address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 403),
        other => panic!("{other:?}"),
    }
    assert_eq!(daemon.bus.topics(), []);
}

#[tokio::test]
async fn own_pages_and_links_are_allowed() {
    let daemon = Daemon::start();
    let own = format!("Origin: http://{}", daemon.address);
    assert_eq!(daemon.send("PUT", "/t", &[&own], b"x").await.status, 202);
    let frame = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: iframe"];
    assert_eq!(daemon.send("GET", "/t", &frame, b"").await.status, 403);
    let link = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document"];
    assert_eq!(daemon.send("GET", "/t?peek", &link, b"").await.status, 200);
    assert_eq!(daemon.send("POST", "/t", &link, b"x").await.status, 403, "no link publishes");
}

/// A foreign name that points to this server (DNS rebinding) is not a name of this server.
#[tokio::test]
async fn a_page_with_a_rebound_name_is_not_an_own_page() {
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let say = async |headers: &str| {
        let mut connection = daemon.connect().await;
        let head = format!("GET /t HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        connection.write(head.as_bytes()).await;
        connection.reply().await.status
    };
    assert_eq!(say("Host: evil.example:80\r\nOrigin: http://evil.example:80\r\n").await, 403);
    assert_eq!(say("Host: evil.example\r\nSec-Fetch-Site: same-origin\r\n").await, 403);
    assert_eq!(say("Origin: http://\r\nHost: \r\n").await, 403);
    assert_eq!(say("Host: localhost:80\r\nOrigin: http://localhost:80\r\n").await, 200);
    assert_eq!(say("Host: [::1]\r\nSec-Fetch-Site: same-origin\r\n").await, 404);
    assert_eq!(say("Host: bus.example\r\n").await, 421);
}

/// Section 9.4: no message is taken by a link on another site, a prefetch, or an unknown page.
#[tokio::test]
async fn a_browser_pulls_only_for_its_user_or_an_own_page() {
    const FIREFOX: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0";
    let daemon = Daemon::start();
    daemon.put("/t", "x").await;
    let get = async |target: &str, headers: &[&str]| daemon.send("GET", target, headers, b"").await;
    let navigation = ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    for site in ["cross-site", "same-site", "odd"] {
        let site = format!("Sec-Fetch-Site: {site}");
        let link = [&navigation[..], &[&*site, FIREFOX]].concat();
        for target in ["/t", "/t?max=10000", "/t?raw", "/t?wait=1s"] {
            get(target, &link).await.refuses(403, "takes no message");
        }
        for target in ["/t?peek", "/", "/metrics", "/-/topics/t"] {
            assert_eq!(get(target, &link).await.status, 200, "{target}");
        }
    }
    for ahead in [
        "Sec-Purpose: prefetch",
        "Sec-Purpose: prefetch;prerender",
        "Sec-Purpose: prefetch; anonymous-client-ip",
        "Purpose: prefetch",
        "Purpose: Preview",
        "X-Purpose: preview",
        "X-Moz: prefetch",
    ] {
        let headers = [&navigation[..], &["Sec-Fetch-Site: none", ahead]].concat();
        let reply = get("/t?raw", &headers).await;
        reply.refuses(503, "a prefetch takes no message");
        assert_eq!(reply.number("Retry-After"), 1);
        get("/t", &[ahead]).await.refuses(503, "prefetch");
    }
    // An image or a frame on an unencrypted page: browsers send no headers about it to another machine.
    get("/t?max=10", &[FIREFOX, "Accept: image/*"]).await.refuses(403, "X-Requested-With");
    get("/t", &[FIREFOX, "Authorization: Basic OmtleQ=="]).await.refuses(403, "takes no message");
    assert_eq!(daemon.bus.stats().counters.pulled, 0);

    let by_hand = [&navigation[..], &["Sec-Fetch-Site: none", FIREFOX]].concat();
    assert_eq!(get("/t", &by_hand).await.status, 200);
    for headers in [
        &["Sec-Fetch-Site: same-origin", FIREFOX][..],
        &["X-Requested-With: fetch", FIREFOX],
        &["Authorization: Bearer k", FIREFOX],
        &["User-Agent: Mozilla/5.0 (Windows NT 10.0) WindowsPowerShell/5.1"],
        &["User-Agent: curl/8.0"],
    ] {
        assert_eq!(get("/t", headers).await.status, 404, "{headers:?}");
    }
}

#[tokio::test]
async fn an_allowed_origin_gets_cors_headers() {
    let daemon =
        Daemon::with(|config| config.allowed_origins = vec!["https://app.example".to_owned()]);
    let origin = "Origin: https://app.example";
    let published = daemon.send("PUT", "/t", &[origin], b"x").await;
    assert_eq!(published.status, 202);
    assert_eq!(published.header("Access-Control-Allow-Origin"), Some("https://app.example"));
    assert_eq!(published.header("Vary"), Some("origin"));
    assert!(published.header("Access-Control-Expose-Headers").unwrap().contains("msgbus-id"));

    let preflight =
        daemon.send("OPTIONS", "/t", &[origin, "Access-Control-Request-Method: PUT"], b"").await;
    assert_eq!(preflight.status, 204);
    assert!(preflight.header("Access-Control-Allow-Methods").unwrap().contains("PUT"));

    let error = daemon.send("GET", "/none", &[origin], b"").await;
    assert_eq!(
        (error.status, error.header("Access-Control-Allow-Origin")),
        (404, Some("https://app.example"))
    );
    daemon.send("GET", "/t", &[FOREIGN], b"").await.refuses(403, "evil");
    assert_eq!(daemon.get("/t").await.header("Vary"), Some("origin"));
}
