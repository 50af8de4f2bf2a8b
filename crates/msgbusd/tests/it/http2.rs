//! docs/operations.md, TLS: HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    header::{HeaderName, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use msgbus_core::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};

use crate::{
    support::{Daemon, soon},
    tls::Files,
};

pub(crate) type Http2 = SendRequest<Full<Bytes>>;

pub(crate) async fn http2(files: &Files, daemon: &Daemon) -> Http2 {
    let stream = files.connect(daemon, "h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn send(
    client: &mut Http2,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> Response<Incoming> {
    let request = Request::builder()
        .method(method)
        .uri(format!("https://localhost{path}"))
        .body(Full::new(body.into()))
        .unwrap();
    soon(client.send_request(request)).await.unwrap()
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn everything_but_websockets_is_spoken_in_http_2() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut client = http2(&files, &daemon).await;

    let answer = send(&mut client, "GET", "/a/b?stream=ndjson&since=all", "").await;
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
    let mut following = answer.into_body();
    let waiting = {
        let mut client = client.clone();
        tokio::spawn(async move { send(&mut client, "GET", "/w?wait=60s", "").await })
    };
    // All on one connection, at the same time.
    let answer = send(&mut client, "PUT", "/a/b", "x".repeat(1 << 20)).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert_eq!(answer.headers()["msgbus-id"], "0");
    assert_eq!(send(&mut client, "POST", "/w", "now").await.status(), StatusCode::ACCEPTED);
    assert!(text(waiting.await.unwrap()).await.contains("bm93"));
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let piece = soon(following.frame()).await.unwrap().unwrap();
        line.extend_from_slice(&piece.into_data().unwrap());
    }
    assert_eq!(json::read_message(&line).unwrap().payload().len(), 1 << 20);

    let pulled = text(send(&mut client, "GET", "/a/b?raw", "").await).await;
    assert_eq!(pulled.len(), 1 << 20);
    assert_eq!(send(&mut client, "GET", "/a/b", "").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(text(send(&mut client, "GET", "/", "").await).await, "a/b\nw\n");
    let deleted = send(&mut client, "DELETE", "/a/b", "").await;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    let told = soon(following.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(told, "{\"event\":\"deleted\"}\n");

    let mut handshake = Request::get("https://localhost/w").body(Full::default()).unwrap();
    handshake.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    let refused = soon(client.send_request(handshake)).await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert!(text(refused).await.contains("HTTP/1.1"), "it says what would be right");
}

#[tokio::test]
async fn a_refused_body_does_not_hide_the_error() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut client = http2(&files, &daemon).await;
    let answer = send(&mut client, "PUT", "/t", vec![0; 3 << 20]).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(text(answer).await.contains("at most 1048576 bytes"));
    assert_eq!(send(&mut client, "PUT", "/t", "x").await.status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn one_connection_has_at_most_32_requests_at_a_time() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut client = http2(&files, &daemon).await;
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(send(&mut client, "GET", "/t?stream=sse", "").await);
    }
    let mut one_more = {
        let mut client = client.clone();
        tokio::spawn(async move { send(&mut client, "PUT", "/t", "x").await })
    };
    // The others get messages while this one waits.
    let mut other = http2(&files, &daemon).await;
    assert_eq!(send(&mut other, "PUT", "/t", "y").await.status(), StatusCode::ACCEPTED);
    for stream in &mut streams {
        let mut seen = Vec::new();
        while !seen.windows(4).any(|bytes| bytes == b"data") {
            seen.extend(soon(stream.frame()).await.unwrap().unwrap().into_data().unwrap());
        }
    }
    assert!(!one_more.is_finished());
    drop(streams.pop());
    assert_eq!(soon(&mut one_more).await.unwrap().status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_too_large_head_is_refused_and_the_connection_stays_open() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut client = http2(&files, &daemon).await;
    let request = Request::get("https://localhost/t")
        .header("x", "x".repeat(17 << 10))
        .body(Full::default())
        .unwrap();
    // The client may know the limit and refuse by itself.
    if let Ok(answer) = soon(client.send_request(request)).await {
        assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    assert_eq!(send(&mut client, "PUT", "/t", "x").await.status(), StatusCode::ACCEPTED);
}

/// RFC 9113, section 6.8.
const GOAWAY: u8 = 7;

/// Frames that are not requests do not keep a connection open.
#[tokio::test]
async fn an_idle_connection_of_http_2_is_closed() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.timeouts.idle = Duration::from_millis(300);
    });
    let mut stream = files.connect(&daemon, "h2").await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // GET / in HPACK (RFC 7541, appendix A): method, scheme, path, and an authority of one letter.
    let head = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x87\x84\x41\x01a";
    stream.write_all(head).await.unwrap();
    let ping = b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut said = Vec::new();
    soon(async {
        while stream.write_all(ping).await.is_ok() {
            match stream.read_buf(&mut said).await {
                Ok(0) | Err(_) => return,
                Ok(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    let mut frames = &said[..];
    let mut kinds = Vec::new();
    while let [a, b, c, kind, ..] = *frames {
        kinds.push(kind);
        frames = &frames[9 + usize::from(c) + (usize::from(b) << 8) + (usize::from(a) << 16)..];
    }
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
}

#[tokio::test]
async fn the_end_lets_http_2_finish() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut client = http2(&files, &daemon).await;
    let mut following = send(&mut client, "GET", "/t?stream=sse", "").await.into_body();
    assert_eq!(send(&mut client, "PUT", "/t", "x").await.status(), StatusCode::ACCEPTED);
    let waiting = {
        let mut client = client.clone();
        tokio::spawn(async move { send(&mut client, "GET", "/w?wait=60s", "").await })
    };
    soon(async {
        while daemon.bus.topic(&"w".parse().unwrap()).is_none_or(|topic| topic.waiters == 0) {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let stopped = daemon.stop();
    while let Some(Ok(_)) = soon(following.frame()).await {}
    assert_eq!(soon(waiting).await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(soon(stopped).await.unwrap().cut, 0);
}

#[tokio::test]
async fn who_takes_an_answer_slowly_in_http_2_gets_all_of_it() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.timeouts.write = Duration::from_secs(1);
    });
    let topic = "t".parse().unwrap();
    daemon.bus.put(&topic, vec![b'x'; 200_000]).unwrap();
    let mut client = http2(&files, &daemon).await;
    let mut answer = send(&mut client, "GET", "/t?raw", "").await.into_body();
    let mut count = 0;
    while let Some(frame) = soon(answer.frame()).await {
        count += frame.unwrap().into_data().unwrap().len();
        // Slow in total, but not for a chunk.
        sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(count, 200_000);
    // An idle stream is not a timeout.
    let stream = send(&mut client, "GET", "/t?stream=raw", "").await;
    sleep(Duration::from_millis(1500)).await;
    daemon.bus.put(&topic, "hi").unwrap();
    let frame = soon(stream.into_body().frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "hi\n");
}

#[tokio::test]
async fn a_head_has_at_most_100_headers_in_http_2_too() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut client = http2(&files, &daemon).await;
    for (count, status) in [(100, 202), (101, 431)] {
        let mut request = Request::put("https://localhost/t").body(Full::default()).unwrap();
        for n in 0..count {
            let name = format!("x-{n}").parse::<HeaderName>().unwrap();
            request.headers_mut().insert(name, HeaderValue::from_static("y"));
        }
        // What the client adds by itself.
        request.headers_mut().remove("x-0");
        request.headers_mut().insert("content-length", HeaderValue::from_static("0"));
        assert_eq!(soon(client.send_request(request)).await.unwrap().status(), status, "{count}");
    }
}

#[tokio::test]
async fn a_drain_does_not_wait_for_an_idle_http2_client() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.timeouts.drain = Duration::from_secs(30);
    });
    let mut mute = files.connect(&daemon, "h2").await;
    mute.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    mute.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    // PUT /t, without a body.
    let head = b"\x42\x03PUT\x87\x44\x02/t\x41\x01a";
    mute.write_all(
        &[&[0, 0, u8::try_from(head.len()).unwrap(), 1, 5, 0, 0, 0, 1], &head[..]].concat(),
    )
    .await
    .unwrap();
    soon(async {
        while daemon.bus.topics().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(soon(daemon.stop()).await.unwrap().cut, 0);
}
