//! The real server on its own port, and clients that can also misbehave.

use std::{fmt::Write as _, ops::Deref};

use futures_util::StreamExt as _;
use msgbus_core::{Message, json};
use msgbusd::{Bind, Drained, Server, Workers, config::Config};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, client::IntoClientRequest as _, handshake::client::Response,
        protocol::frame::coding::CloseCode,
    },
};

pub(crate) use msgbus_testkit::{free_address, soon, until};

/// The headers of RFC 6455, section 1.3.
pub(crate) const HANDSHAKE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The headers that the Fetch standard adds to the request of an `EventSource`.
pub(crate) const EVENT_SOURCE: &str = "Cache-Control: no-cache\r\nPragma: no-cache\r\n";

/// The encoded length of a websocket frame: its second byte and those after it.
pub(crate) fn frame_length(length: usize) -> Vec<u8> {
    if let Ok(length @ ..126) = u8::try_from(length) {
        vec![length]
    } else if let Ok(length) = u16::try_from(length) {
        [&[126][..], &length.to_be_bytes()].concat()
    } else {
        [&[127][..], &(length as u64).to_be_bytes()].concat()
    }
}

/// Uses its own port, and allows the host names `a` and `x` of handwritten heads.
fn config() -> Config {
    Config {
        bind: vec![Bind::Tcp(([127, 0, 0, 1], 0).into())],
        allowed_hosts: vec!["a".to_owned(), "x".to_owned()],
        ..Config::default()
    }
}

/// A running server, and clients of it.
pub(crate) struct Daemon(msgbus_testkit::Daemon);

impl Deref for Daemon {
    type Target = msgbus_testkit::Daemon;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// A server whose connections are on the runtime of the test.
    pub(crate) fn with(set: impl FnOnce(&mut Config)) -> Self {
        Self(msgbus_testkit::Daemon::serve(Self::bind(set, Workers::current)))
    }

    /// A server whose connections are distributed over its own threads.
    pub(crate) fn on_threads(threads: usize, set: impl FnOnce(&mut Config)) -> Self {
        let workers = || Workers::pinned(threads).unwrap();
        Self(msgbus_testkit::Daemon::serve(Self::bind(set, workers)))
    }

    fn bind(set: impl FnOnce(&mut Config), workers: impl Fn() -> Workers) -> Server {
        let mut config = config();
        set(&mut config);
        msgbus_testkit::bind(&config, workers)
    }

    /// Tells the server to stop; the handle waits for it.
    pub(crate) fn stop(self) -> JoinHandle<Drained> {
        self.0.shut_down()
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection(TcpStream::connect(self.address).await.unwrap())
    }

    /// A websocket without a library, for sending invalid bytes.
    pub(crate) async fn raw_websocket(&self, target: &str) -> Connection {
        self.raw_websocket_with(target, "").await
    }

    /// A `msgbus.v1` websocket without a library.
    pub(crate) async fn raw_v1(&self) -> Connection {
        self.raw_websocket_with("/", "Sec-WebSocket-Protocol: msgbus.v1\r\n").await
    }

    async fn raw_websocket_with(&self, target: &str, headers: &str) -> Connection {
        let mut connection = self.connect().await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}{headers}\r\n");
        connection.write(request.as_bytes()).await;
        let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "RFC 6455, section 1.3: {head}");
        connection
    }

    /// Sends one request on its own connection.
    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: &[u8],
    ) -> Reply {
        let mut connection = self.connect().await;
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        if !body.is_empty() {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        head.push_str("Connection: close\r\n\r\n");
        connection.write(head.as_bytes()).await;
        connection.write(body).await;
        connection.reply().await
    }

    pub(crate) async fn get(&self, target: &str) -> Reply {
        self.send("GET", target, &[], b"").await
    }

    pub(crate) async fn put(&self, target: &str, body: impl AsRef<[u8]>) -> Reply {
        self.send("PUT", target, &[], body.as_ref()).await
    }

    pub(crate) async fn subscribe(&self, target: &str) -> Subscriber {
        self.subscribe_with(target, &[]).await.0
    }

    pub(crate) async fn subscribe_with(
        &self,
        target: &str,
        headers: &[(&'static str, &str)],
    ) -> (Subscriber, Response) {
        let mut request = format!("ws://{}{target}", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        (Subscriber(socket), response)
    }
}

/// A connection on which a test can send any bytes.
pub(crate) struct Connection(pub(crate) TcpStream);

impl Connection {
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        // The server may have closed the connection already. Only its response matters.
        let _ = self.0.write_all(bytes).await;
    }

    /// Everything until the server closes the connection, or resets it because the client wrote more than it read.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = soon(self.0.read_to_end(&mut bytes)).await {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
        bytes
    }

    /// The response on a connection that is closed after it.
    pub(crate) async fn reply(&mut self) -> Reply {
        Reply::parse(&self.rest().await)
    }

    /// The next frame of a websocket: its first byte and its payload.
    pub(crate) async fn frame(&mut self) -> (u8, Vec<u8>) {
        let [first, form] = self.bytes().await;
        assert_eq!(first & 0x70, 0, "a reserved bit");
        let length = match form {
            126 => u16::from_be_bytes(self.bytes().await).into(),
            127 => usize::try_from(u64::from_be_bytes(self.bytes().await)).unwrap(),
            short => short.into(),
        };
        assert_eq!(form, frame_length(length)[0], "not masked, and as short as it can be");
        let mut payload = vec![0; length];
        soon(self.0.read_exact(&mut payload)).await.unwrap();
        (first, payload)
    }

    async fn bytes<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut bytes = [0; COUNT];
        soon(self.0.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Reads up to and including `end`.
    pub(crate) async fn read_until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end) {
            bytes.push(soon(self.0.read_u8()).await.unwrap());
        }
        bytes
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let end = text.find("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let head = text[..end].to_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 100 {
            return Self::parse(&bytes[end + 4..]);
        }
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.header(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).parse().unwrap()
    }

    pub(crate) fn message(&self) -> Message {
        assert_eq!(self.status, 200, "{self:?}");
        json::read_message(&self.body).unwrap()
    }

    /// Asserts the status, and that the text contains `mention`.
    #[track_caller]
    pub(crate) fn refuses(&self, status: u16, mention: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.text().contains(mention), "{:?} does not say {mention:?}", self.text());
        assert!(
            self.text().ends_with('\n') && self.text().lines().count() == 1,
            "one line: {self:?}"
        );
    }
}

/// A websocket client.
pub(crate) struct Subscriber(pub(crate) WebSocketStream<TcpStream>);

impl Subscriber {
    /// The next frame that is not a ping.
    pub(crate) async fn frame(&mut self) -> tungstenite::Message {
        loop {
            match soon(self.0.next()).await.unwrap().unwrap() {
                tungstenite::Message::Ping(_) => {}
                frame => return frame,
            }
        }
    }

    pub(crate) async fn message(&mut self) -> Message {
        let frame = self.frame().await;
        let tungstenite::Message::Text(text) = frame else { panic!("not text: {frame:?}") };
        assert!(text.ends_with("}\n"), "the JSON and a line feed: {text:?}");
        json::read_message(text.as_bytes()).unwrap()
    }

    /// The ids of the next messages.
    pub(crate) async fn ids(&mut self, count: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        while ids.len() < count {
            ids.push(self.message().await.id());
        }
        ids
    }

    /// The code with which the server closes.
    pub(crate) async fn close_code(&mut self) -> CloseCode {
        let frame = self.frame().await;
        let tungstenite::Message::Close(Some(close)) = frame else {
            panic!("not a close: {frame:?}")
        };
        close.code
    }
}
