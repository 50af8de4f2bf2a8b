//! Section 13: keys and grants.

use std::{fs, path::PathBuf, time::Duration};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use msgbusd::auth::{KeyFile, NewKey};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    binary::{Running, msgbusd},
    process::refuses,
    support::{Connection, Daemon, Subscriber, soon},
};

const HANDSHAKE: [&str; 4] = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// A key file that can be rewritten.
pub(crate) struct File {
    folder: tempfile::TempDir,
}

impl File {
    pub(crate) fn new(anonymous: &[&str], keys: &[&NewKey]) -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        file.write(anonymous, keys);
        file
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("keys.toml")
    }

    pub(crate) fn write(&self, anonymous: &[&str], keys: &[&NewKey]) {
        let lines: String = keys.iter().map(|key| &*key.lines).collect();
        fs::write(self.path(), format!("[anonymous]\nallow = {anonymous:?}\n{lines}")).unwrap();
    }

    pub(crate) fn daemon(&self) -> Daemon {
        Daemon::on_threads(2, |config| config.keys = Some(KeyFile::read(self.path()).unwrap()))
    }
}

pub(crate) fn key(name: &str, allow: &[&str]) -> NewKey {
    let grants: Vec<_> = allow.iter().map(|grant| grant.parse().unwrap()).collect();
    NewKey::make(name, &grants).unwrap()
}

pub(crate) fn bearer(key: &NewKey) -> String {
    format!("Authorization: Bearer {}", key.secret)
}

pub(crate) async fn follow(daemon: &Daemon, target: &str, key: &NewKey) -> Subscriber {
    daemon.subscribe_with(target, &[("authorization", &format!("Bearer {}", key.secret))]).await.0
}

/// A connection with a waiting pull from the topic t.
pub(crate) async fn wait_for_message(daemon: &Daemon, key: &NewKey) -> Connection {
    let mut connection = daemon.connect().await;
    connection.write(request("GET", "/t?wait=60s", key).as_bytes()).await;
    let topic = "t".parse().unwrap();
    soon(async {
        while daemon.bus.topic(&topic).is_none_or(|topic| topic.waiters == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    connection
}

/// The head of a request with the key, on a connection that stays open.
pub(crate) fn request(method: &str, target: &str, key: &NewKey) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", bearer(key))
}

#[tokio::test]
async fn each_request_needs_its_grant_and_no_other() {
    let actions =
        ["publish", "pull", "subscribe", "delete", "inspect", "admin", "request", "serve"];
    let without = |action: &str| {
        let covers = |other: &str| other == action || (other, action) == ("admin", "delete");
        let others = actions.iter().filter(|other| !covers(other));
        others.map(|other| format!("{other}:**")).collect::<Vec<_>>()
    };
    for (action, method, target, headers, granted) in [
        ("publish", "PUT", "/a/t", &[][..], 202),
        ("publish", "POST", "/a/t?split=lines", &[], 202),
        ("pull", "GET", "/a/t", &[], 404),
        ("pull", "GET", "/a/t?max=2", &[], 404),
        ("pull", "GET", "/a/t?wait=1ms", &[], 204),
        ("pull", "GET", "/a/t?peek=0", &[], 404),
        ("pull", "GET", "/a/t?max=2", &["Accept: text/event-stream"], 404),
        ("pull", "GET", "/a/t?group=g", &[], 404),
        ("pull", "GET", "/a/t?group=g&wait=1ms", &[], 204),
        ("subscribe", "GET", "/a/t?peek", &[], 404),
        ("subscribe", "GET", "/a/t?peek&group=g", &[], 404),
        ("subscribe", "GET", "/a/t?peek&max=2&stream=sse", &[], 400),
        ("subscribe", "GET", "/a/t?stream=sse&since=x", &[], 400),
        ("subscribe", "GET", "/a/t?index=x", &["Accept: application/x-ndjson"], 400),
        ("subscribe", "GET", "/a/t", &["Sec-WebSocket-Version: 13"], 400),
        ("subscribe", "GET", "/a/t?since=x", &HANDSHAKE, 400),
        ("delete", "DELETE", "/a/t", &[], 404),
        ("admin", "PUT", "/-/groups/g/a/t?max_leases=0", &[], 400),
        ("admin", "DELETE", "/-/groups/g/a/t", &[], 404),
        ("inspect", "GET", "/-/groups/g/a/t", &[], 404),
        ("inspect", "HEAD", "/a/t", &[], 404),
        ("inspect", "GET", "/-/topics/a/t", &[], 404),
        ("request", "POST", "/-/request/a/t", &[], 503),
        ("request", "HEAD", "/-/request/a/t", &[], 503),
        ("serve", "GET", "/-/serve/a/t", &[], 204),
    ] {
        let others = without(action);
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let (own, other) = (key("own", &[&format!("{action}:a/*")]), key("other", &others));
        let daemon = File::new(&[], &[&own, &other]).daemon();
        let say = async |authorization: Option<&str>| {
            let all: Vec<&str> = headers.iter().copied().chain(authorization).collect();
            daemon.send(method, target, &all, b"").await
        };
        let what = format!("{method} {target} {headers:?}");
        assert_eq!(say(Some(&bearer(&own))).await.status, granted, "{what}");

        let unknown = say(None).await;
        assert_eq!(unknown.status, 401, "{what}");
        assert_eq!(unknown.header("WWW-Authenticate"), Some("Bearer realm=\"msgbus\""), "{what}");
        let wrong = say(Some("Authorization: Bearer mbk_0")).await;
        assert_eq!(wrong.status, 401, "{what}");
        assert!(wrong.header("WWW-Authenticate").is_some());
        let lacking = say(Some(&bearer(&other))).await;
        assert_eq!(lacking.status, 403, "{what}");
        if method != "HEAD" {
            unknown.refuses(401, &format!("{action}:a/t needs a key"));
            wrong.refuses(401, "invalid key");
            lacking.refuses(403, &format!("the key \"other\" does not allow {action}:a/t"));
        }
    }
}

#[tokio::test]
async fn requests_about_the_whole_bus_need_inspect_on_all_topics() {
    let (all, some) = (key("all", &["inspect:**"]), key("some", &["inspect:a/**", "pull:**"]));
    let none = key("none", &["pull:**"]);
    let daemon = File::new(&[], &[&all, &some, &none]).daemon();
    for topic in ["a/1", "a/2", "b"] {
        daemon.bus.put(&topic.parse().unwrap(), "x").unwrap();
    }
    let get = async |target, key: Option<&NewKey>| {
        let authorization = key.map(bearer);
        let headers: Vec<&str> = authorization.as_deref().into_iter().collect();
        daemon.send("GET", target, &headers, b"").await
    };
    for target in ["/metrics", "/-/stats"] {
        assert_eq!(get(target, Some(&all)).await.status, 200);
        get(target, Some(&some)).await.refuses(403, "does not allow inspect:**");
        get(target, None).await.refuses(401, "inspect:** needs a key");
    }
    assert_eq!(get("/", Some(&all)).await.text(), "a/1\na/2\nb\n");
    assert_eq!(get("/", Some(&some)).await.text(), "a/1\na/2\n");
    assert_eq!(get("/?max=1&after=a/2", Some(&some)).await.header("Link"), None);
    get("/", Some(&none)).await.refuses(403, "inspect:**");
    get("/", None).await.refuses(401, "inspect:** needs a key");

    assert_eq!(get("/healthz", None).await.status, 200);
    let wrong = daemon.send("GET", "/healthz", &["Authorization: Bearer x"], b"").await;
    assert_eq!(wrong.status, 200, "always open");
}

#[tokio::test]
async fn the_response_does_not_reveal_whether_a_topic_exists() {
    let key = key("k", &["publish:elsewhere"]);
    let daemon = File::new(&[], &[&key]).daemon();
    daemon.bus.put(&"here".parse().unwrap(), "x").unwrap();
    for authorization in [None, Some(bearer(&key))] {
        let headers: Vec<&str> = authorization.as_deref().into_iter().collect();
        for method in ["GET", "DELETE", "PUT"] {
            let here = daemon.send(method, "/here", &headers, b"").await;
            let gone = daemon.send(method, "/gone", &headers, b"").await;
            assert_eq!(here.status, gone.status);
            assert_eq!(here.text().replace("here", "gone"), gone.text());
        }
    }
    assert_eq!(daemon.bus.topics().len(), 1);
}

#[tokio::test]
async fn a_key_is_sent_as_a_bearer_token_or_a_password() {
    let key = key("k", &["publish:t"]);
    let daemon = File::new(&[], &[&key]).daemon();
    let secret = &key.secret;
    let basic = |pair: String| format!("Authorization: Basic {}", STANDARD.encode(pair));
    for (header, status) in [
        (bearer(&key), 202),
        (format!("authorization: bearer {secret}"), 202),
        (basic(format!(":{secret}")), 202),
        (basic(format!("anybody:{secret}")), 202),
        (basic(format!("{secret}:")), 401),
        (basic(secret.clone()), 401),
        (basic(format!(":{secret}x")), 401),
        (format!("Authorization: Digest {secret}"), 401),
        (format!("Authorization: {secret}"), 401),
        ("Authorization: Basic %".to_owned(), 401),
        ("Authorization: Bearer".to_owned(), 401),
        (format!("{}\r\n{}", bearer(&key), bearer(&key)), 400),
        (format!("X-Api-Key: {secret}"), 401),
    ] {
        assert_eq!(daemon.send("PUT", "/t", &[&header], b"x").await.status, status, "{header}");
    }
    for parameter in ["key", "ticket", "access_token"] {
        let reply = daemon.put(&format!("/t?{parameter}={secret}"), "x").await;
        reply.refuses(401, "needs a key");
    }
}

#[tokio::test]
async fn what_needs_no_key_is_open_to_all_clients() {
    let key = key("k", &["publish:t"]);
    let daemon = File::new(&["publish:public/**", "inspect:**"], &[&key]).daemon();
    assert_eq!(daemon.put("/public/a", "x").await.status, 202);
    assert_eq!(daemon.get("/metrics").await.status, 200);
    assert_eq!(daemon.send("PUT", "/public/a", &[&bearer(&key)], b"x").await.status, 202);
    let wrong = daemon.send("PUT", "/public/a", &["Authorization: Bearer x"], b"x").await;
    wrong.refuses(401, "invalid key");
}

#[tokio::test]
async fn authorization_comes_before_the_body_is_read() {
    let daemon = File::new(&[], &[]).daemon();
    let mut connection = daemon.connect().await;
    connection
        .write(b"PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let answer = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let large = daemon.put("/t", vec![0; 2 << 20]).await;
    large.refuses(401, "publish:t needs a key");
}

#[tokio::test]
async fn a_browser_websocket_sends_its_key_in_a_subprotocol() {
    let key = key("k", &["subscribe:t"]);
    let daemon = File::new(&[], &[&key]).daemon();
    let encoded = URL_SAFE_NO_PAD.encode(&key.secret);
    let offer = format!("msgbus, bearer.{encoded}");
    let (mut subscriber, response) =
        daemon.subscribe_with("/t", &[("sec-websocket-protocol", &offer)]).await;
    assert_eq!(response.headers()["sec-websocket-protocol"], "msgbus");
    daemon.bus.put(&"t".parse().unwrap(), "hi").unwrap();
    assert_eq!(subscriber.message().await.payload(), "hi");

    for wrong in ["msgbus, bearer.0".to_owned(), format!("msgbus, bearer.{}", key.secret)] {
        let header = format!("Sec-WebSocket-Protocol: {wrong}");
        let headers: Vec<&str> = HANDSHAKE.into_iter().chain([&*header]).collect();
        daemon.send("GET", "/t", &headers, b"").await.refuses(401, "invalid key");
    }
    // It is for websockets only.
    let header = format!("Sec-WebSocket-Protocol: {offer}");
    daemon.send("DELETE", "/t", &[&header], b"").await.refuses(401, "needs a key");
}

/// A page need not know whether the server has keys.
#[tokio::test]
async fn without_keys_the_same_page_works() {
    let daemon = Daemon::start();
    let offer = [("sec-websocket-protocol", "msgbus, bearer.eA")];
    let (_, response) = daemon.subscribe_with("/t?ticket=x", &offer).await;
    assert_eq!(response.headers()["sec-websocket-protocol"], "msgbus");
    daemon.send("POST", "/-/ticket", &[], b"").await.refuses(404, "not found");
    assert_eq!(daemon.send("PUT", "/t", &["Authorization: Bearer x"], b"x").await.status, 202);
}

async fn ticket(daemon: &Daemon, key: &NewKey) -> String {
    let reply = daemon.send("POST", "/-/ticket", &[&bearer(key)], b"").await;
    assert_eq!((reply.status, reply.header("Cache-Control")), (200, Some("no-store")));
    let answer: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(answer["expires_in"], 30);
    answer["ticket"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_ticket_is_redeemed_once() {
    let key = key("k", &["subscribe:t", "pull:t"]);
    let file = File::new(&[], &[&key]);
    let daemon = file.daemon();
    let first = ticket(&daemon, &key).await;
    let mut subscriber = daemon.subscribe(&format!("/t?ticket={first}&raw")).await;
    daemon.bus.put(&"t".parse().unwrap(), "hi").unwrap();
    assert_eq!(subscriber.frame().await, Message::Binary("hi".into()));
    daemon.get(&format!("/t?stream=sse&ticket={first}")).await.refuses(401, "single-use");

    let second = ticket(&daemon, &key).await;
    let mut stream = daemon.connect().await;
    let target = format!("/t?stream=raw&since=all&ticket={second}");
    stream.write(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
    stream.read_until(b"hi\n").await;

    let other_topic = ticket(&daemon, &key).await;
    daemon
        .get(&format!("/u?stream=sse&ticket={other_topic}"))
        .await
        .refuses(403, "the key \"k\" does not allow subscribe:u");
    let unused = ticket(&daemon, &key).await;
    daemon.get(&format!("/t?ticket={unused}")).await.refuses(401, "pull:t needs a key");
    daemon.send("GET", "/-/ticket", &[&bearer(&key)], b"").await.refuses(405, "POST");
    daemon.send("POST", "/-/ticket", &[], b"").await.refuses(401, "a ticket needs a key");

    file.write(&[], &[]);
    daemon.keyring.as_ref().unwrap().reload().unwrap();
    daemon.get(&format!("/t?stream=sse&ticket={unused}")).await.refuses(401, "single-use");
}

#[tokio::test]
async fn an_allowed_page_may_send_a_key() {
    let key = key("k", &["publish:t"]);
    let file = File::new(&[], &[&key]);
    let daemon = Daemon::with(|config| {
        config.keys = Some(KeyFile::read(file.path()).unwrap());
        config.allowed_origins = vec!["https://app.example".to_owned()];
    });
    let origin = "Origin: https://app.example";
    let preflight = daemon.send("OPTIONS", "/t", &[origin], b"").await;
    assert_eq!(preflight.status, 204, "a browser sends no key with it");
    assert!(preflight.header("Access-Control-Allow-Headers").unwrap().contains("authorization"));
    let refused = daemon.send("PUT", "/t", &[origin], b"x").await;
    assert_eq!(refused.header("Access-Control-Allow-Origin"), Some("https://app.example"));
    refused.refuses(401, "needs a key");
    assert_eq!(daemon.send("PUT", "/t", &[origin, &bearer(&key)], b"x").await.status, 202);
}

#[tokio::test]
async fn errors_have_distinct_codes() {
    let key = key("k", &["publish:t"]);
    let daemon = File::new(&[], &[&key]).daemon();
    let json = "Accept: application/json";
    for (headers, code) in [
        (vec![json], "key_needed"),
        (vec![json, "Authorization: Bearer x"], "wrong_key"),
        (vec![json, &bearer(&key)], "not_granted"),
    ] {
        let reply = daemon.send("GET", "/t", &headers, b"").await;
        let problem: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["code"], code);
    }
    let reply = daemon.send("GET", "/t?stream=sse&ticket=x", &[json], b"").await;
    assert!(reply.text().contains("\"wrong_ticket\""), "{reply:?}");
}

#[tokio::test]
async fn tickets_are_limited_per_key_and_the_bus_keeps_serving() {
    let key = key("page", &["subscribe:t"]);
    let daemon = File::new(&["publish:t"], &[&key]).daemon();
    let mut connection = daemon.connect().await;
    let request = format!("POST /-/ticket HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", bearer(&key));
    // Pipelined, so that all are made before the first one expires.
    for _ in 0..10 {
        connection.write(request.repeat(100).as_bytes()).await;
        for _ in 0..100 {
            let ticket = connection.read_until(b"\"}").await;
            assert!(ticket.starts_with(b"HTTP/1.1 200 "));
        }
    }
    let refused = daemon.send("POST", "/-/ticket", &[&bearer(&key)], b"").await;
    refused.refuses(503, "too many tickets");
    assert_eq!(refused.number("Retry-After"), 1);
    assert_eq!(daemon.put("/t", "x").await.status, 202);
}

#[test]
fn an_invalid_key_file_is_reported_in_one_line() {
    let file = File::new(&["pull:a", "publsh:b"], &[]);
    let path = file.path();
    let path = path.to_str().unwrap();
    let mention = [&format!("--keys: {path}:2: anonymous: \"publsh:b\": unknown action")[..]];
    refuses(&mut msgbusd(&["--keys", path]), &mention);
    refuses(msgbusd(&[]).env("MSGBUSD_KEYS", path), &[&format!("MSGBUSD_KEYS: {path}:2: ")]);
    // An address of no machine, so that the process ends in any case.
    let mut unnamed = msgbusd(&["--open", "--bind", "192.0.2.1:1"]);
    refuses(unnamed.env("MSGBUSD_KEYS", ""), &["MSGBUSD_KEYS: the name of the file is empty"]);
    // Without the key file, --open would let any client in.
    let mut misspelt = msgbusd(&["--open", "--bind", "192.0.2.1:1"]);
    let mention = ["MSGBUSD_KEY: unknown setting", "did you mean MSGBUSD_KEYS", "--open"];
    refuses(misspelt.env("MSGBUSD_KEY", path), &mention);
    refuses(&mut msgbusd(&["--keys", "/does/not/exist"]), &["/does/not/exist", "No such file"]);
    refuses(&mut msgbusd(&["--bind", ":0"]), &["--keys", "--open"]);

    let config = file.folder.path().join("bus.toml");
    fs::write(&config, format!("keys = {path:?}\n")).unwrap();
    refuses(&mut msgbusd(&["--config", config.to_str().unwrap()]), &["bus.toml:1: keys: "]);
}

#[test]
fn a_new_key_is_shown_once_and_works() {
    let output =
        msgbusd(&["key", "new", "deploy", "--allow", "publish:orders/**", "--allow=pull:a"])
            .output()
            .unwrap();
    assert!(output.status.success());
    let secret = String::from_utf8(output.stderr).unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(secret.starts_with("mbk_") && secret.lines().count() == 1, "{secret}");
    assert!(lines.starts_with("[keys.deploy]\nhash = \"sha256:"), "{lines}");
    assert!(lines.ends_with("allow = [\"publish:orders/**\", \"pull:a\"]\n"), "{lines}");
    assert!(!lines.contains(secret.trim()));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    fs::write(&path, lines).unwrap();
    let daemon =
        Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--keys", path.to_str().unwrap()]));
    let header = format!("Authorization: Bearer {}", secret.trim());
    assert!(daemon.say_with("PUT /orders/eu", &header).starts_with("HTTP/1.1 202 "));
    assert!(daemon.say("PUT /orders/eu").starts_with("HTTP/1.1 401 "));

    for (args, mention) in [
        (&["key"][..], &["key: use msgbusd key new NAME --allow ACTION:TOPIC"][..]),
        (&["key", "new"], &["key new NAME"]),
        (&["key", "old", "a"], &["key new NAME"]),
        (&["key", "new", "a"], &["--allow", "nothing"]),
        (&["key", "new", "a", "--alow", "pull:a"], &["key new NAME"]),
        (&["key", "new", "a", "--allow", "pul:a"], &["\"pul:a\": unknown action"]),
        (&["key", "new", "a b", "--allow", "pull:a"], &["key new a b: a key name"]),
    ] {
        refuses(&mut msgbusd(args), mention);
    }
    let help = String::from_utf8(msgbusd(&["key", "--help"]).output().unwrap().stdout).unwrap();
    assert!(help.contains("--allow ACTION:TOPIC"), "{help}");
}

#[test]
fn a_signal_reloads_the_keys_and_no_log_has_a_secret() {
    let (one, two) = (key("one", &["*:**"]), key("two", &["*:**"]));
    let file = File::new(&[], &[&one]);
    let path = file.path();
    let mut daemon =
        Running::start(&mut msgbusd(&["-d", "--bind", ":0", "--keys", path.to_str().unwrap()]));
    assert!(daemon.opening.contains("put TLS in front"), "{}", daemon.opening);
    let mut log = daemon.opening.clone();
    assert!(log.contains("keys: 1 from"), "{log}");
    let put = |daemon: &Running, key: &NewKey| daemon.say_with("PUT /t", &bearer(key));
    assert!(put(&daemon, &two).starts_with("HTTP/1.1 401 "));

    fs::write(&path, "[key]\n").unwrap();
    daemon.signal("-HUP");
    log += &daemon.logs("keys stay as they were");
    assert!(put(&daemon, &one).starts_with("HTTP/1.1 202 "));

    file.write(&[], &[&two]);
    daemon.signal("-HUP");
    log += &daemon.logs("SIGHUP: keys: 1 from");
    assert!(put(&daemon, &one).starts_with("HTTP/1.1 401 "));
    assert!(put(&daemon, &two).starts_with("HTTP/1.1 202 "));
    let secret = &two.secret;
    for target in [
        format!("/t?{secret}"),
        format!("/t?key={secret}"),
        format!("/t?wait={secret}"),
        format!("/t?stream={secret}"),
        format!("/t?stream=sse&since={secret}"),
        format!("/t?stream=sse&ticket={secret}&since=x"),
        format!("http://user:{secret}@host/t?x"),
    ] {
        let request = format!("GET {target}");
        assert!(daemon.say(&request).starts_with("HTTP/1.1 4"), "{target}");
        assert!(daemon.say_with(&request, &bearer(&two)).starts_with("HTTP/1.1 4"), "{target}");
    }
    daemon.signal("-TERM");
    log += &daemon.end().1;
    assert!(log.contains("refused") && log.contains("path=/t "), "{log}");
    for key in [&one, &two] {
        assert!(!log.contains(&key.secret[..20]), "{log}");
    }
}
