//! Topics and services are those of all doors.

use futures_util::SinkExt as _;
use serde_json::{Value, json};

use super::{Broker, header, message};
use crate::support::soon;

#[tokio::test]
async fn curl_sees_what_clients_publish_and_the_other_way_round() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    peer.command("SUB a/b").await;
    let mut plain = broker.subscribe("/a/b").await;
    peer.send("PUB a/b\nroom: red\nReqID: 7\n\nhi\n.\n").await;
    let guid = peer.guid.clone();
    peer.gets(&message("PUB a/b", &guid, "", "room: red\r\nReqID: 7\r\n\r\nhi")).await;
    let seen = plain.message().await;
    assert_eq!(seen.payload(), "hi");
    let headers: Vec<_> = seen.headers().iter().collect();
    assert_eq!(headers, [("Cid", &*guid), ("Uid", ""), ("room", "red"), ("ReqID", "7")]);
    assert_eq!(broker.get("/a/b").await.message().payload(), "hi");

    let headers = ["Content-Type: text/plain", "Correlation-Id: 9", "Msgbus-Header-Room: blue"];
    assert_eq!(broker.send("PUT", "/a/b", &headers, b"from\r\ncurl").await.status, 202);
    let got = peer.frame().await;
    assert!(got.starts_with("PUB a/b\r\nCid: \r\nUid: \r\n"), "{got}");
    assert_eq!(header(&got, "content-type"), "text/plain");
    assert_eq!(header(&got, "correlation-id"), "9");
    assert!(got.to_lowercase().contains("\r\nroom: blue\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\nfrom\r\ncurl\r\n.\r\n"), "{got}");
}

/// A target that is no name of a topic is one with escapes for others.
#[tokio::test]
async fn targets_that_are_no_names_are_escaped() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    for (target, path) in [("/x", "/%252Fx"), ("metrics", "/%256Detrics"), ("a b", "/a%20b")] {
        peer.command(&format!("SUB {target}")).await;
        peer.is_idle().await;
        assert_eq!(broker.put(path, "x").await.status, 202);
        peer.gets(&message(&format!("PUB {target}"), "", "", "\r\nx")).await;
    }
}

/// A body that is no text is in base64: a text frame cannot have it.
#[tokio::test]
async fn binary_payloads_arrive_whole() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    peer.command("SUB t").await;
    peer.is_idle().await;
    broker.put("/t", b"\xff\x00").await;
    let rest = "Content-Transfer-Encoding: base64\r\n\r\n/wA=";
    peer.gets(&message("PUB t", "", "", rest)).await;
    let large = "x".repeat(300_000);
    broker.put("/t", &large).await;
    peer.gets(&message("PUB t", "", "", &format!("\r\n{large}"))).await;
}

#[tokio::test]
async fn curl_asks_a_service_of_middleman() {
    let broker = Broker::start();
    let mut server = broker.peer().await;
    server.command("EREQ upper").await;
    server.is_idle().await;
    let asking = broker.send("POST", "/-/request/upper", &["Correlation-Id: 5"], b"hello");
    let serving = async {
        let request = server.frame().await;
        assert!(request.starts_with("REQ upper\r\nCid: \r\nUid: \r\nRid: 1\r\n"), "{request}");
        assert_eq!(header(&request, "correlation-id"), "5");
        server.send("RES upper\nrid: 1\nmood: good\n\nHELLO\n.\n").await;
    };
    let (reply, ()) = soon(async { tokio::join!(asking, serving) }).await;
    assert_eq!((reply.status, reply.text()), (200, "HELLO"));
    assert_eq!(reply.header("Msgbus-Header-mood"), Some("good"));
    assert_eq!(reply.header("Msgbus-Header-Cid"), Some(&*server.guid));
}

#[tokio::test]
async fn a_request_is_answered_over_http() {
    let broker = Broker::start();
    let mut client = broker.peer().await;
    let serving = async {
        let request = broker.get("/-/serve/upper?wait=60s").await;
        assert_eq!(request.text(), "hello");
        assert_eq!(request.header("Msgbus-Header-cmd"), Some("Up"));
        let token = request.header("Msgbus-Reply").unwrap().to_owned();
        let headers = ["Msgbus-Header-mood: good"];
        broker.send("POST", &format!("/-/reply/{token}"), &headers, b"HELLO").await
    };
    let asking = async {
        let name = "upper".parse().unwrap();
        crate::support::until(|| broker.bus.is_served(&name)).await;
        client.send("REQ upper\ncmd: Up\nReqID: 1\n\nhello\n.\n").await;
        client.frame().await
    };
    let (replied, reply) = soon(async { tokio::join!(serving, asking) }).await;
    assert_eq!(replied.status, 204);
    assert_eq!(
        reply.to_lowercase(),
        message("RES upper", "", "", "mood: good\r\nReqID: 1\r\n\r\nHELLO").to_lowercase()
    );
    assert!(reply.contains("\r\nReqID: 1\r\n"), "{reply}");

    // A failure is an error.
    let failing = async {
        let request = broker.get("/-/serve/upper?wait=60s").await;
        let token = request.header("Msgbus-Reply").unwrap().to_owned();
        broker.send("POST", &format!("/-/reply/{token}?error=no"), &[], b"").await
    };
    let asking = async {
        client.command("REQ upper").await;
        client.frame().await
    };
    let (_, error) = soon(async { tokio::join!(failing, asking) }).await;
    assert_eq!(error, "PUB ERROR\r\n\r\nREQ upper: the responder failed: no\r\n.\r\n");
}

#[tokio::test]
async fn users_of_msgbus_v1_meet_clients() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    let protocol = [("sec-websocket-protocol", "msgbus.v1")];
    let (mut v1, _) = broker.subscribe_with("/", &protocol).await;
    let send = |line: Value| tokio_tungstenite::tungstenite::Message::text(line.to_string());
    v1.0.send(send(json!({"op": "sub", "sid": 1, "topic": "t", "rid": 1}))).await.unwrap();
    v1.frame().await;
    peer.command("SUB t").await;
    peer.send("PUB t\nk: v\n\nhi\n.\n").await;
    let text = v1.frame().await.into_text().unwrap();
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["message"]["headers"]["k"], "v", "{line}");
    peer.frame().await;
    let publish = json!({"op": "pub", "topic": "t", "text": "ho", "headers": {"K": "w"}});
    v1.0.send(send(publish)).await.unwrap();
    peer.gets(&message("PUB t", "", "", "K: w\r\n\r\nho")).await;
}
