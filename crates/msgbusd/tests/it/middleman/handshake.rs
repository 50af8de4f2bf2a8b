//! Sections 1 and 2 of the facts: the listener, the key and the id of the connection.

use std::time::Duration;

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{Broker, message};
use crate::{
    keys::key,
    support::{Connection, soon, until},
    tls::Files,
};
use futures_util::SinkExt as _;
use msgbusd::{
    Bind,
    config::{DoorBind, Protocol},
};
use tokio::net::{TcpStream, UnixStream};

/// The bytes of a text frame from a client.
fn masked(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126);
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

#[tokio::test]
async fn a_good_key_is_confirmed_and_then_comes_the_id() {
    let broker = Broker::start();
    let mut connection = broker.raw().await;
    connection.write(&masked("xyzzy")).await;
    assert_eq!(connection.frame().await, (0x81, b"MM OK".to_vec()));
    let (first, guid) = connection.frame().await;
    assert_eq!((first, guid.len()), (0x81, 20));
    assert!(guid.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'v')), "{guid:?}");
    // Each connection has its own, and later ones are greater in another second.
    assert_ne!(broker.peer().await.guid.as_bytes(), guid);
    assert_eq!(broker.metric("msgbus_door_connections_total{door=\"middleman\"}").await, 2);
}

#[tokio::test]
async fn a_bad_key_gets_no_text_and_no_close_frame() {
    let service = key("service", &["serve:**"]);
    let broker = Broker::with_keys(&[&service], |_| {});
    for first in [masked("plugh"), masked(""), masked(&format!("{}\n", service.secret))] {
        let mut connection = broker.raw().await;
        connection.write(&first).await;
        assert_eq!(connection.rest().await, b"");
    }
    let mut connection = broker.raw().await;
    let mut binary = masked(&service.secret);
    binary[0] = 0x82;
    connection.write(&binary).await;
    assert_eq!(connection.rest().await, b"", "a key is text");
    assert_eq!(broker.metric("msgbus_server_refused_total{code=\"wrong_key\"}").await, 3);
    broker.login(&service.secret).await;
}

#[tokio::test]
async fn the_id_is_left_out_for_keys_whose_clients_do_not_know_it() {
    let (python, browser) = (key("python", &["serve:**"]), key("browser", &["subscribe:t"]));
    let broker = Broker::with_keys(&[&python, &browser], |config| {
        config.middleman.without_id = vec!["browser".to_owned()];
    });
    let mut service = broker.login(&python.secret).await;
    let mut page = broker.open().await;
    page.send(&*browser.secret).await;
    page.gets("MM OK").await;
    page.command("SUB t").await;
    page.is_idle().await;
    service.send("PUB t\n\nhello\n.\n").await;
    page.gets(&message("PUB t", &service.guid, "", "\r\nhello")).await;

    let broker = Broker::with(|config| config.middleman.without_id = vec!["*".to_owned()]);
    let mut page = broker.open().await;
    page.send("any").await;
    page.gets("MM OK").await;
    page.is_idle().await;
}

#[tokio::test]
async fn every_path_and_every_program_is_served_and_foreign_pages_are_not() {
    let broker = Broker::with(|config| config.allowed_origins = vec!["https://ok.example".into()]);
    let own = format!("http://{}", broker.address);
    for (name, value, status) in [
        ("origin", "https://ok.example", None),
        ("origin", &*own, None),
        ("origin", "https://evil.example", Some(403)),
        ("origin", "null", Some(403)),
        ("host", "rebound.example", Some(421)),
        ("sec-websocket-version", "12", Some(400)),
    ] {
        let opened = broker.open_with(&[(name, value)]).await;
        assert_eq!(opened.err(), status, "{name}: {value}");
    }
    for (request, answer) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 400 "),
        ("rubbish\r\n\r\n", "HTTP/1.1 400 "),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nOrigin: http://a\r\n\r\n",
            "HTTP/1.1 400 ",
        ),
    ] {
        let mut connection = Connection(TcpStream::connect(broker.address).await.unwrap());
        connection.write(request.as_bytes()).await;
        let text = String::from_utf8(connection.rest().await).unwrap();
        assert!(text.starts_with(answer) && text.ends_with('\n'), "{text}");
    }
    let mut connection = Connection(TcpStream::connect(broker.address).await.unwrap());
    connection.write(format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000)).as_bytes()).await;
    assert!(connection.rest().await.starts_with(b"HTTP/1.1 431 "));
}

#[tokio::test]
async fn connections_that_never_finish_the_handshake_are_ended_at_the_limit() {
    let broker = Broker::with(|config| config.timeouts.header = Duration::from_millis(300));
    let start = Instant::now();
    let mut silent = Connection(TcpStream::connect(broker.address).await.unwrap());
    let mut half = Connection(TcpStream::connect(broker.address).await.unwrap());
    half.write(b"GET / HTTP/1.1\r\nHost: a\r\n").await;
    let mut keyless = broker.raw().await;
    let mut half_key = broker.raw().await;
    half_key.write(&masked("secret")[..5]).await;
    let mut pinging = broker.raw().await;
    pinging.write(&[0x89, 0x80, 0, 0, 0, 0]).await;
    for connection in [&mut silent, &mut half, &mut keyless, &mut half_key, &mut pinging] {
        assert_eq!(connection.rest().await, b"");
    }
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(broker.metric("msgbus_server_timeouts_total{which=\"header\"}").await, 5);
    let mut large = broker.raw().await;
    large.write(&[&[0x81, 0xfe, 0x20, 0, 0, 0, 0, 0][..], &[b'k'; 0x2000]].concat()).await;
    assert_eq!(large.rest().await, b"", "a key is short");
}

#[tokio::test]
async fn the_number_of_connections_is_limited() {
    let broker = Broker::with(|config| config.max_connections = 2);
    let (_one, two) = (broker.peer().await, broker.peer().await);
    assert_eq!(broker.open_with(&[]).await.err(), Some(503));
    drop(two);
    soon(async {
        while broker.open_with(&[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_number_of_subscriptions_is_limited() {
    let broker = Broker::with(|config| config.max_subscriptions = 1);
    let _one = broker.peer().await;
    let mut two = broker.open().await;
    two.send("any").await;
    let (code, why) = two.close().await.unwrap();
    assert_eq!(
        (code, &*why),
        (CloseCode::Again, "too many subscriptions: at most 1 may be open at a time")
    );
}

#[tokio::test]
async fn tls_is_as_configured() {
    let files = Files::new();
    let broker = Broker::with(|config| config.certificate = Some(files.config()));
    let stream = TcpStream::connect(broker.address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let stream = soon(files.client("http/1.1").connect(name, stream)).await.unwrap();
    let uri = format!("wss://localhost:{}/", broker.address.port());
    let (mut socket, _) =
        Box::pin(soon(tokio_tungstenite::client_async(uri, stream))).await.unwrap();
    socket.send(Message::text("any")).await.unwrap();
    let next = soon(futures_util::StreamExt::next(&mut socket)).await.unwrap().unwrap();
    assert_eq!(next, Message::text("MM OK"));
}

/// A unix socket beside TLS needs none.
#[tokio::test]
async fn unix_sockets_are_served() {
    let files = Files::new();
    let path = files.folder.path().join("middleman");
    let _broker = Broker::with(|config| {
        config.certificate = Some(files.config());
        let bind = Bind::Unix(path.clone());
        config.doors.push(DoorBind { protocol: Protocol::Middleman, bind });
    });
    let stream = UnixStream::connect(&path).await.unwrap();
    let opening = Box::pin(tokio_tungstenite::client_async("ws://localhost/", stream));
    let (mut socket, _) = soon(opening).await.unwrap();
    socket.send(Message::text("any")).await.unwrap();
    let next = soon(futures_util::StreamExt::next(&mut socket)).await.unwrap().unwrap();
    assert_eq!(next, Message::text("MM OK"));
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_disconnected() {
    let broker = Broker::with(|config| config.timeouts.ping = Duration::from_secs(1));
    let mut connection = broker.raw().await;
    connection.write(&masked("any")).await;
    connection.frame().await;
    connection.frame().await;
    let (first, _) = connection.frame().await;
    assert_eq!(first, 0x89, "a ping");
    let close = loop {
        let (first, payload) = connection.frame().await;
        if first == 0x88 {
            break payload;
        }
    };
    assert_eq!(close[..2], 1001u16.to_be_bytes());
    drop(connection);
    until(|| broker.bus.stats().subscribers == 0).await;
}
