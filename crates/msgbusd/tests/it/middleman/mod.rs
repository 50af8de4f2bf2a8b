//! The door of middleman (docs/compatibility.md), with clients written from the facts of its protocol.

mod bounds;
mod clients;
mod crossing;
mod errors;
mod frames;
mod handshake;
mod keys;
mod publish;
mod reference;
mod requests;
mod users;

use std::{net::SocketAddr, ops::Deref};

use futures_util::{SinkExt as _, StreamExt as _};
use msgbusd::{
    Bind,
    auth::{KeyFile, NewKey},
    config::{Config, DoorBind, Protocol},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _, protocol::frame::coding::CloseCode},
};

use crate::{
    keys::File,
    support::{Connection, Daemon, HANDSHAKE, soon},
};

/// A server with the door of middleman.
pub(crate) struct Broker {
    pub(crate) daemon: Daemon,
    pub(crate) address: SocketAddr,
    keys: Option<File>,
}

impl Deref for Broker {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl Broker {
    /// Without keys: every client is trusted.
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(set: impl FnOnce(&mut Config)) -> Self {
        Self::of(None, set)
    }

    pub(crate) fn with_keys(keys: &[&NewKey], set: impl FnOnce(&mut Config)) -> Self {
        let file = File::new(&["inspect:**"], keys);
        let read = KeyFile::read(file.path()).unwrap();
        Self::of(Some(file), |config| {
            config.keys = Some(read);
            set(config);
        })
    }

    fn of(keys: Option<File>, set: impl FnOnce(&mut Config)) -> Self {
        let daemon = Daemon::on_threads(2, |config| {
            let bind = Bind::Tcp(([127, 0, 0, 1], 0).into());
            config.doors = vec![DoorBind { protocol: Protocol::Middleman, bind }];
            set(config);
        });
        let Bind::Tcp(address) = daemon.doors[0].bind else { panic!("not TCP") };
        Self { daemon, address, keys }
    }

    pub(crate) fn keys(&self) -> &File {
        self.keys.as_ref().unwrap()
    }

    /// A websocket on which nothing was sent.
    pub(crate) async fn open(&self) -> Peer {
        self.open_with(&[]).await.unwrap()
    }

    /// A websocket with these headers in its handshake; or the status with which it is refused.
    async fn open_with(&self, headers: &[(&'static str, &str)]) -> Result<Peer, u16> {
        let mut request = format!("ws://{}/any/path", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        match soon(tokio_tungstenite::client_async(request, stream)).await {
            Ok((socket, _)) => Ok(Peer { socket, guid: String::new() }),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                Err(response.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A client that has sent a key and got the id of its connection.
    pub(crate) async fn login(&self, key: &str) -> Peer {
        let mut peer = self.open().await;
        peer.send(key).await;
        assert_eq!(peer.frame().await, "MM OK");
        peer.guid = peer.frame().await;
        peer
    }

    /// A client of a server without keys.
    pub(crate) async fn peer(&self) -> Peer {
        self.login("any").await
    }

    /// A websocket without a library.
    async fn raw(&self) -> Connection {
        let mut connection = Connection(TcpStream::connect(self.address).await.unwrap());
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n");
        connection.write(request.as_bytes()).await;
        let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "RFC 6455, section 1.3: {head}");
        connection
    }
}

/// A client.
pub(crate) struct Peer {
    pub(crate) socket: WebSocketStream<TcpStream>,
    /// The id of the connection.
    pub(crate) guid: String,
}

impl Peer {
    pub(crate) async fn send(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).await.unwrap();
    }

    /// Sends a message without headers and body.
    pub(crate) async fn command(&mut self, line: &str) {
        self.send(format!("{line}\r\n\r\n.\r\n")).await;
    }

    /// The next message of the websocket, which is no ping.
    async fn next(&mut self) -> Option<Message> {
        loop {
            match soon(self.socket.next()).await?.ok()? {
                Message::Ping(_) => {}
                message => return Some(message),
            }
        }
    }

    pub(crate) async fn frame(&mut self) -> String {
        match self.next().await {
            Some(Message::Text(text)) => text.as_str().to_owned(),
            other => panic!("not text: {other:?}"),
        }
    }

    /// Asserts that the next message is exactly this one.
    pub(crate) async fn gets(&mut self, text: &str) {
        assert_eq!(self.frame().await, text);
    }

    /// Asserts that the next message is this error.
    pub(crate) async fn fails(&mut self, text: &str) {
        self.gets(&format!("PUB ERROR\r\n\r\n{text}\r\n.\r\n")).await;
    }

    /// Waits until the server has handled everything that was sent. No other message comes before.
    pub(crate) async fn is_idle(&mut self) {
        self.command("SUB ").await;
        self.fails("SUB : a topic name must not be empty").await;
    }

    /// The code and the reason with which the server closes. `None` if it does not say.
    pub(crate) async fn close(&mut self) -> Option<(CloseCode, String)> {
        match self.next().await? {
            Message::Close(Some(close)) => Some((close.code, close.reason.as_str().to_owned())),
            Message::Close(None) => None,
            other => panic!("not a close: {other:?}"),
        }
    }
}

/// A message with the headers that the server adds.
pub(crate) fn message(line: &str, guid: &str, user: &str, rest: &str) -> String {
    format!("{line}\r\nCid: {guid}\r\nUid: {user}\r\n{rest}\r\n.\r\n")
}

/// The value of a header.
pub(crate) fn header<'a>(frame: &'a str, name: &str) -> &'a str {
    let value = frame.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    value.unwrap_or_else(|| panic!("no {name} in {frame:?}"))
}
