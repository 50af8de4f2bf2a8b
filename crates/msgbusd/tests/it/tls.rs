//! docs/operations.md, TLS and unix sockets: HTTP/1.1 and HTTP/2 over TLS, reloading the certificate, several listeners
//! at once.

use std::{
    convert::Infallible,
    fs,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body, Frame, Incoming},
    client::conn::http2::{self, SendRequest},
    header::{HeaderName, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use msgbus_core::json;
use msgbusd::{Bind, CertificateFiles};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};
use tokio_tungstenite::tungstenite;

use crate::{
    binary::{Running, msgbusd},
    support::{Daemon, soon},
};

/// A certificate for localhost in two files.
pub(crate) struct Files {
    folder: TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap() };
        files.renew();
        files
    }

    /// Replaces the certificate.
    fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(self.chain(), made.cert.pem()).unwrap();
        fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
    }

    fn chain(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    pub(crate) fn config(&self) -> CertificateFiles {
        CertificateFiles { chain: self.chain(), key: self.key() }
    }

    fn flags(&self) -> String {
        format!("--tls-cert={} --tls-key={}", self.chain().display(), self.key().display())
    }

    /// A client that trusts the certificate that is there now, and no other.
    fn client(&self, protocol: &str) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.chain()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !protocol.is_empty() {
            config.alpn_protocols = vec![protocol.into()];
        }
        Arc::new(config).into()
    }

    pub(crate) async fn connect(&self, daemon: &Daemon, protocol: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(daemon.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        soon(self.client(protocol).connect(name, stream)).await.unwrap()
    }

    fn daemon(&self) -> Daemon {
        Daemon::with(|config| config.certificate = Some(self.config()))
    }
}

/// Sends a request, and reads until the server closes the connection.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

type Http2 = SendRequest<Full<Bytes>>;

async fn http2(files: &Files, daemon: &Daemon) -> Http2 {
    let stream = files.connect(daemon, "h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn send(
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

async fn text(response: Response<Incoming>) -> String {
    let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn http_1_and_websockets_are_spoken_in_tls() {
    let files = Files::new();
    let daemon = files.daemon();
    for protocol in ["http/1.1", ""] {
        let mut stream = files.connect(&daemon, protocol).await;
        let put = "PUT /t HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                   Content-Length: 2\r\n\r\nhi";
        assert!(ask(&mut stream, put).await.starts_with("HTTP/1.1 202 "));
    }
    let stream = files.connect(&daemon, "http/1.1").await;
    let (mut socket, _) =
        tokio_tungstenite::client_async("wss://localhost/t?since=all", stream).await.unwrap();
    // More than TLS writes at once: the rest must not wait for the next message.
    let large = vec![b'x'; 900 << 10];
    daemon.bus.put(&"t".parse().unwrap(), large.clone()).unwrap();
    for expected in [&b"hi"[..], b"hi", &large] {
        let frame = soon(socket.next()).await.unwrap().unwrap();
        let message = json::read_message(&frame.into_data()).unwrap();
        assert_eq!(message.payload(), expected);
    }
    socket.send(tungstenite::Message::Ping("a".into())).await.unwrap();
    let pong = soon(socket.next()).await.unwrap().unwrap();
    assert_eq!(pong, tungstenite::Message::Pong("a".into()));
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_in_tls() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut stream = files.connect(&daemon, "http/1.1").await;
    let put =
        |close| format!("PUT /t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n{close}\r\nhi");
    let answers = ask(&mut stream, &(put("").repeat(99) + &put("Connection: close\r\n"))).await;
    assert_eq!(answers.matches("HTTP/1.1 202 ").count(), 100, "{answers}");
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

#[tokio::test]
async fn a_client_without_tls_gets_an_unencrypted_error() {
    let files = Files::new();
    let daemon = files.daemon();
    daemon.get("/").await.refuses(400, "https://");
    let mut connection = daemon.connect().await;
    connection.write(b"\x16\x03\x01 rubbish").await;
    connection.rest().await;
    assert_eq!(send(&mut http2(&files, &daemon).await, "GET", "/", "").await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_must_finish_within_ten_seconds() {
    let files = Files::new();
    let daemon = files.daemon();
    for sent in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut connection = daemon.connect().await;
        let start = Instant::now();
        connection.write(sent).await;
        assert_eq!(connection.rest().await, b"");
        let waited = start.elapsed();
        assert!((10..12).contains(&waited.as_secs()), "{waited:?}");
    }
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
async fn at_the_connection_limit_tls_connections_are_closed_without_a_response() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.max_connections = 1;
    });
    let mut only = http2(&files, &daemon).await;
    assert_eq!(send(&mut only, "GET", "/", "").await.status(), StatusCode::OK);
    assert_eq!(daemon.connect().await.rest().await, b"");
    assert_eq!(send(&mut only, "GET", "/", "").await.status(), StatusCode::OK);
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
async fn a_stalled_reader_in_tls_is_cut() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.timeouts.write = Duration::from_millis(100);
    });
    let topic = "t".parse().unwrap();
    let stream = files.connect(&daemon, "http/1.1").await;
    let (socket, _) = tokio_tungstenite::client_async("wss://localhost/t", stream).await.unwrap();
    soon(async {
        while daemon.bus.topic(&topic).unwrap().subscribers > 0 {
            daemon.bus.put(&topic, vec![0; 1 << 20]).unwrap();
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(socket);
}

/// Over TLS, any host name belongs to this server: a browser has verified the certificate for it.
#[tokio::test]
async fn a_page_of_the_server_itself_needs_no_allow_origin() {
    let files = Files::new();
    let daemon = files.daemon();
    let foreign = ["https://evil.example", "http://localhost"];
    for (origin, status) in [("https://localhost", 202), (foreign[0], 403), (foreign[1], 403)] {
        let mut stream = files.connect(&daemon, "http/1.1").await;
        let put = format!(
            "PUT /t HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n"
        );
        let answer = ask(&mut stream, &put).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");

        let request = Request::put("https://localhost/t").header("origin", origin);
        let request = request.body(Full::default()).unwrap();
        let mut client = http2(&files, &daemon).await;
        assert_eq!(soon(client.send_request(request)).await.unwrap().status(), status);
    }
    // In HTTP/2 the name is in the URI; over TLS one of a domain is ours too.
    let mut client = http2(&files, &daemon).await;
    let request = Request::put("https://bus.example/t").header("origin", "https://bus.example");
    let answer = client.send_request(request.body(Full::default()).unwrap());
    assert_eq!(soon(answer).await.unwrap().status(), 202);
}

#[test]
fn a_signal_reloads_the_certificate() {
    let files = Files::new();
    let flags = files.flags();
    let args: Vec<&str> =
        ["-d", "--bind", "127.0.0.1:0"].into_iter().chain(flags.split(' ')).collect();
    let mut daemon = Running::start(&mut msgbusd(&args));
    let address = daemon.address;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connect = |client: TlsConnector| {
        runtime.block_on(async {
            let stream = TcpStream::connect(address).await.unwrap();
            soon(client.connect(ServerName::try_from("localhost").unwrap(), stream)).await
        })
    };
    let old = files.client("http/1.1");
    let mut open = connect(old.clone()).unwrap();

    fs::write(files.key(), "rubbish").unwrap();
    daemon.signal("-HUP");
    let line = daemon.logs("the certificate stays as it was");
    assert!(line.contains("key.pem"), "{line}");
    assert!(connect(old.clone()).is_ok());

    files.renew();
    daemon.signal("-HUP");
    daemon.logs("SIGHUP: certificate: from");
    assert!(connect(files.client("http/1.1")).is_ok());
    assert!(connect(old).is_err(), "it does not trust the new one");
    let answer = runtime
        .block_on(ask(&mut open, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "open connections go on: {answer}");
}

#[test]
fn mismatched_certificate_files_are_reported_in_one_line() {
    let (files, others) = (Files::new(), Files::new());
    let empty = files.folder.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (chain, key, empty) = (text(files.chain()), text(files.key()), text(empty));
    let other_key = text(others.key());
    for (args, mention) in [
        (&["--tls-cert", &chain][..], &["--tls-cert", "--tls-key"][..]),
        (&["--tls-key", &key], &["--tls-key", "--tls-cert"]),
        (&["--tls-cert", "/not/there", "--tls-key", &key], &["--tls-cert: /not/there", "No such"]),
        (&["--tls-cert", &chain, "--tls-key", &other_key], &["--tls-key", "not the key of"]),
        (&["--tls-cert", &chain, "--tls-key", &chain], &["--tls-key", "no private key"]),
        (&["--tls-cert", &empty, "--tls-key", &key], &["--tls-cert", "no certificate"]),
        (&["--tls-cert", "", "--tls-key", &key], &["--tls-cert", "the name of the file is empty"]),
    ] {
        let output = msgbusd(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in mention {
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        }
    }
    let output = msgbusd(&[]).env("MSGBUSD_TLS_CERT", "").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "not unencrypted by mistake");
}

#[tokio::test]
async fn a_unix_socket_listens_beside_other_addresses() {
    let files = Files::new();
    let path = files.folder.path().join("bus.sock");
    let daemon = Daemon::with(|config| {
        config.bind.push(Bind::Unix(path.clone()));
        config.certificate = Some(files.config());
    });
    let mut tls = http2(&files, &daemon).await;
    assert_eq!(send(&mut tls, "PUT", "/t", "hi").await.status(), StatusCode::ACCEPTED);

    // No TLS on the unix socket: it does not leave the machine.
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /t?raw HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhi"), "{answer}");

    let stream = UnixStream::connect(&path).await.unwrap();
    let (mut socket, _) =
        tokio_tungstenite::client_async("ws://localhost/t", stream).await.unwrap();
    assert_eq!(send(&mut tls, "PUT", "/t", "you").await.status(), StatusCode::ACCEPTED);
    let frame = soon(socket.next()).await.unwrap().unwrap();
    assert_eq!(json::read_message(&frame.into_data()).unwrap().payload(), "you");
    let inspected = text(send(&mut tls, "GET", "/-/topics/t", "").await).await;
    assert!(inspected.contains("\"peer\":\"unix\""), "{inspected}");

    drop((socket, tls));
    assert_eq!(soon(daemon.stop()).await.unwrap().cut, 0);
    assert!(!path.exists(), "it takes its file along");
}

#[test]
fn a_unix_socket_in_use_or_of_another_kind_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    for path in [file, folder.path().join("not/there")] {
        let bind = format!("unix:{}", path.display());
        let output = msgbusd(&["--bind", &bind]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&bind) && text.contains("--bind"), "{text}");
    }
}

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

const INFLIGHT: &str = "msgbus_server_inflight_bytes";

#[tokio::test]
async fn who_leaves_an_answer_alone_is_cut_in_http_2_too() {
    let files = Files::new();
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.timeouts.write = Duration::from_millis(500);
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
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let grown = resident().saturating_sub(before);
    let most = CONNECTIONS * (31 * (8 << 10) + (128 << 10));
    assert!(grown < most, "{grown} for {} requests", waiting.len());
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

#[tokio::test]
async fn any_host_name_is_allowed_with_tls_but_not_http_urls() {
    let files = Files::new();
    let daemon = files.daemon();
    let mut client = http2(&files, &daemon).await;
    for (uri, host, status) in [
        ("https://bus.example/healthz", None, 200),
        ("https://bus.example/t", None, 404),
        ("https://bus.example/t", Some("BUS.example"), 404),
        ("https://bus.example/t", Some("other.example"), 400),
        ("http://localhost/t", None, 421),
    ] {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(Full::default()).unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), status, "{uri} {host:?}");
    }
    let mut stream = files.connect(&daemon, "http/1.1").await;
    let request = "GET http://localhost/t HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(ask(&mut stream, request).await.starts_with("HTTP/1.1 421 "));
}

#[tokio::test]
async fn host_names_are_checked_on_unix_sockets_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus");
    let _daemon = Daemon::with(|config| config.bind.push(Bind::Unix(path.clone())));
    for (host, status) in [("localhost", 404), ("evil.example", 421)] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let request = format!("GET /t HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
}
