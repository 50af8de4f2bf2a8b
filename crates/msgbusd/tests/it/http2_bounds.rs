//! HTTP/2 is inside the limit on memory in flight: unread bodies, waiting requests and unread responses.
//! docs/operations.md, "Limits".

use std::{
    convert::Infallible,
    fs,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request,
    body::{Body, Frame},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use msgbusd::Bind;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::sleep,
};
use tokio_rustls::rustls::pki_types::ServerName;

use crate::{
    binary::{Running, msgbusd},
    bounds::INFLIGHT,
    http2::{Http2, http2, send, text},
    support::{Daemon, soon},
    tls::Files,
};

/// A body that begins and does not go on.
struct Unfinished(Option<Bytes>);

impl Body for Unfinished {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.take().map_or(Poll::Pending, |bytes| Poll::Ready(Some(Ok(Frame::data(bytes)))))
    }
}

#[tokio::test]
async fn who_leaves_an_answer_alone_is_cut_in_http_2_too() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.timeouts.write = Duration::from_secs(3);
        let path = files.folder.path().join("bus.sock");
        config.bind.push(Bind::Unix(path));
    });
    let topic = "t".parse().unwrap();
    for _ in 0..8 {
        daemon.bus.put(&topic, vec![b'x'; 1 << 20]).unwrap();
    }
    // No chunk of the first is taken; some of the others, and of a stream.
    for (target, window) in
        [("/t?peek&max=8", 0), ("/t?peek&max=8", 60_000), ("/t?stream=raw&since=all", 60_000)]
    {
        let stream = files.connect(&daemon, "h2").await;
        let (mut client, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let _waits = client.send_request(
            Request::get("https://localhost/none?wait=60s").body(Full::<Bytes>::default()).unwrap(),
        );
        let unread = send(&mut client, "GET", target, "").await;
        assert_eq!(unread.status(), 200);
        assert!(number(&files, INFLIGHT).await > 1 << 19, "{target}");
        let _ = soon(connection).await;
        soon(async { while number(&files, INFLIGHT).await > 0 {} }).await;
        assert_eq!(number(&files, "msgbus_server_subscriptions").await, 0);
    }
    assert_eq!(number(&files, "msgbus_server_timeouts_total{which=\"write\"}").await, 3);
}

/// The value of a series, read from the unix socket.
async fn number(files: &Files, series: &str) -> u64 {
    let mut stream = UnixStream::connect(files.folder.path().join("bus.sock")).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut page = String::new();
    soon(stream.read_to_string(&mut page)).await.unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap().parse().unwrap()
}

#[tokio::test]
async fn small_requests_count_in_http2() {
    const EACH: usize = 40_000;
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.max_inflight_bytes = 1 << 20;
        config.bind.push(Bind::Unix(files.folder.path().join("bus.sock")));
    });
    let (mut clients, mut bodies) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let stream = files.connect(&daemon, "h2").await;
        let (mut client, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..30 {
            let body = Unfinished(Some(vec![b'x'; EACH].into()));
            let request = Request::put("https://localhost/t").body(body).unwrap();
            bodies.push(tokio::spawn(client.send_request(request)));
        }
        clients.push(client);
    }
    // Requests for which there is no memory are refused.
    soon(async {
        while number(&files, "msgbus_server_refused_total{code=\"too_much_in_flight\"}").await < 50
        {
        }
    })
    .await;
    assert!(number(&files, INFLIGHT).await <= 1 << 20);
    drop((clients, bodies));
    soon(async { while number(&files, INFLIGHT).await > 0 {} }).await;

    // Unread responses count, too.
    daemon.bus.put(&"t".parse().unwrap(), vec![b'x'; EACH]).unwrap();
    daemon.bus.put(&"tiny".parse().unwrap(), "hi").unwrap();
    let (mut clients, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let stream = files.connect(&daemon, "h2").await;
        let (mut client, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(0)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        for _ in 0..30 {
            answers.push(send(&mut client, "GET", "/t?peek", "").await);
        }
        clients.push(client);
    }
    let taken = answers.iter().filter(|answer| answer.status() == 200).count();
    assert!(taken < 40, "{taken}");
    assert!(number(&files, INFLIGHT).await < 2 << 20);
    assert_eq!(
        daemon_says(&files, "GET /tiny").await,
        "HTTP/1.1 200 OK",
        "tiny requests are still served"
    );
}

/// The first line of a response on the unix socket.
async fn daemon_says(files: &Files, request: &str) -> String {
    let mut stream = UnixStream::connect(files.folder.path().join("bus.sock")).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// Starts `count` waiting requests, each with a head of `size` bytes.
fn wait_with_heads(client: &mut Http2, count: usize, size: usize) -> Vec<JoinHandle<u16>> {
    let mut waiting = Vec::new();
    for _ in 0..count {
        let request = Request::get("https://localhost/w?wait=60s")
            .header("x", "x".repeat(size))
            .body(Full::default())
            .unwrap();
        let answer = client.send_request(request);
        waiting.push(tokio::spawn(async move {
            answer.await.map_or(0, |answer| answer.status().as_u16())
        }));
    }
    waiting
}

#[tokio::test]
async fn requests_of_http_2_are_inside_the_bound_of_memory_in_flight() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.max_inflight_bytes = 1 << 20;
        config.bind.push(Bind::Unix(files.folder.path().join("bus.sock")));
    });
    let (mut clients, mut waiting) = (Vec::new(), Vec::new());
    // 128 of 8 KiB fill it.
    for _ in 0..4 {
        let mut client = http2(&files, &daemon).await;
        waiting.extend(wait_with_heads(&mut client, 32, 0));
        clients.push(client);
    }
    soon(async { while number(&files, INFLIGHT).await < 1 << 20 {} }).await;
    let mut other = http2(&files, &daemon).await;
    let refused = send(&mut other, "PUT", "/t", "x").await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(send(&mut other, "GET", "/healthz", "").await.status(), 200);
    assert_eq!(send(&mut other, "GET", "/metrics", "").await.status(), 200);
    assert_eq!(daemon_says(&files, "PUT /t").await, "HTTP/1.1 202 Accepted");
    assert_eq!(number(&files, "msgbus_server_refused_total{code=\"too_much_in_flight\"}").await, 1);

    drop(clients);
    for task in &waiting {
        task.abort();
    }
    soon(async { while number(&files, INFLIGHT).await > 0 {} }).await;
    assert_eq!(send(&mut other, "PUT", "/t", "x").await.status(), 202);
    // An unread body counts as much as its sender may send of it.
    let body = Unfinished(Some(vec![b'x'; 100].into()));
    let stream = files.connect(&daemon, "h2").await;
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/w?wait=60s").body(body).unwrap();
    let _waiting = tokio::spawn(client.send_request(request));
    soon(async { while number(&files, INFLIGHT).await != 72 << 10 {} }).await;
}

/// docs/operations.md, "Memory in the worst case": a request that waits has released the memory of its head.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn requests_that_wait_in_http_2_take_no_more_memory_than_they_count() {
    const CONNECTIONS: usize = 16;
    let files = Files::new();
    let flags = files.flags();
    let args: Vec<&str> = ["--bind", "127.0.0.1:0"].into_iter().chain(flags.split(' ')).collect();
    let daemon = Running::start(&mut msgbusd(&args));
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    };
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(daemon.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = soon(files.client("h2").connect(name, stream)).await.unwrap();
        let (mut client, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(send(&mut client, "GET", "/healthz", "").await.status(), 200);
        clients.push(client);
    }
    let before = resident();
    let mut waiting = Vec::new();
    for client in &mut clients {
        waiting.extend(wait_with_heads(client, 31, 15 << 10));
    }
    soon(async {
        loop {
            let page = text(send(&mut clients[0], "GET", "/metrics", "").await).await;
            let counted =
                page.lines().find_map(|line| line.strip_prefix(INFLIGHT)?.strip_prefix(' '));
            // That of this request is one of them.
            if counted.unwrap().parse::<usize>().unwrap() >= (CONNECTIONS * 31 + 1) * (8 << 10) {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    let grown = resident().saturating_sub(before);
    let most = CONNECTIONS * (31 * (8 << 10) + (128 << 10));
    assert!(grown < most, "{grown} for {} requests", waiting.len());
}
