//! The door for drs, docs/compatibility.md. The peers here follow the descriptions of its clients and share no code with
//! them.

mod bounds;
mod calls;
mod fires;
mod ipc;
mod keys;
mod library;
mod listeners;
mod reference;
mod stats;
mod transcripts;

use std::{net::SocketAddr, process::Stdio};

use futures_util::SinkExt as _;
use msgbus_testkit::name;
use msgbusd::{
    Bind,
    config::{Config, DoorBind, Protocol},
};
use serde_json::{Value, value::RawValue};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
};
use tokio_tungstenite::tungstenite::Message;

use crate::binary::msgbusd;
use crate::support::{Connection, Daemon, Subscriber, soon, until};

/// The ways to transport commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Websocket,
    Tcp,
    /// The pipes of `msgbusd drs-ipc`, which is connected to the port for TCP.
    Ipc,
}

const ALL: [Over; 2] = [Over::Websocket, Over::Tcp];
const WITH_IPC: [Over; 3] = [Over::Websocket, Over::Tcp, Over::Ipc];

/// A server with both.
fn daemon() -> Daemon {
    daemon_with(|_| {})
}

fn daemon_with(set: impl FnOnce(&mut Config)) -> Daemon {
    Daemon::on_threads(2, |config| {
        listen(config);
        set(config);
    })
}

fn listen(config: &mut Config) {
    for protocol in [Protocol::DrsWebsocket, Protocol::DrsStream] {
        config.doors.push(DoorBind { protocol, bind: Bind::Tcp(([127, 0, 0, 1], 0).into()) });
    }
}

/// One connection, which sends and receives whole commands as text.
enum Peer {
    Websocket(Box<Subscriber>),
    Tcp(BufReader<TcpStream>),
    Ipc(Box<Child>, BufReader<ChildStdout>),
}

impl Daemon {
    fn drs_address(&self, over: Over) -> SocketAddr {
        let protocol = match over {
            Over::Websocket => Protocol::DrsWebsocket,
            Over::Tcp | Over::Ipc => Protocol::DrsStream,
        };
        let door = self.doors.iter().find(|door| door.protocol == protocol).unwrap();
        let Bind::Tcp(address) = door.bind else { panic!("not TCP") };
        address
    }

    async fn drs(&self, over: Over) -> Peer {
        match over {
            Over::Websocket => self.drs_at("/socket").await,
            Over::Tcp => {
                Peer::Tcp(BufReader::new(TcpStream::connect(self.drs_address(over)).await.unwrap()))
            }
            Over::Ipc => {
                let server = format!("tcp://{}", self.drs_address(over));
                let mut child = Command::from(msgbusd(&["drs-ipc", &server]))
                    .stdin(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()
                    .unwrap();
                let output = BufReader::new(child.stdout.take().unwrap());
                Peer::Ipc(Box::new(child), output)
            }
        }
    }

    async fn drs_at(&self, target: &str) -> Peer {
        let address = self.drs_address(Over::Websocket);
        let stream = TcpStream::connect(address).await.unwrap();
        let uri = format!("ws://{address}{target}");
        let (socket, _) = tokio_tungstenite::client_async(uri, stream).await.unwrap();
        Peer::Websocket(Box::new(Subscriber(socket)))
    }

    /// Waits until a responder waits.
    async fn served(&self, service: &str) {
        let service = name(service);
        until(|| self.bus.service(&service).is_some_and(|stats| stats.responders == 1)).await;
    }

    /// A connection on which a test sends any bytes.
    async fn drs_raw(&self, over: Over) -> Connection {
        Connection(TcpStream::connect(self.drs_address(over)).await.unwrap())
    }
}

impl Peer {
    /// Sends something. The server may have closed the connection already; only what it has sent matters.
    async fn send(&mut self, text: &str) {
        match self {
            Self::Websocket(socket) => {
                let _ = soon(socket.0.send(Message::text(text.to_owned()))).await;
            }
            Self::Tcp(stream) => drop(soon(stream.write_all(text.as_bytes())).await),
            Self::Ipc(child, _) => {
                let input = child.stdin.as_mut().unwrap();
                let _ = soon(input.write_all(text.as_bytes())).await;
                let _ = soon(input.flush()).await;
            }
        }
    }

    /// The next command, without its line feed.
    async fn text(&mut self) -> String {
        self.text_or_end().await.expect("the connection has ended")
    }

    /// The next command, or `None` at the end of the connection.
    async fn text_or_end(&mut self) -> Option<String> {
        match self {
            Self::Websocket(socket) => match socket.frame().await {
                Message::Text(text) => {
                    let command = text.strip_suffix('\n').expect("a line feed").to_owned();
                    // Node and browser clients parse each frame as one value.
                    let _: &RawValue = serde_json::from_str(&command).expect("one value");
                    Some(command)
                }
                Message::Close(_) => None,
                frame => panic!("{frame:?}"),
            },
            Self::Tcp(stream) => line(stream).await,
            Self::Ipc(_, output) => line(output).await,
        }
    }

    async fn value(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// Sends a command and asserts the next one.
    #[track_caller]
    fn gives(&mut self, command: &str, answer: &str) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            self.send(command).await;
            assert_eq!(self.text().await, answer, "{at}: {command}");
        }
    }

    /// Waits until everything that was sent has been handled. No other command comes before.
    async fn is_idle(&mut self) {
        self.send(r#"{"key":"idle","action":"drs.ping"}"#).await;
        let answer = self.value().await;
        assert_eq!((&answer["key"], &answer["action"]), (&"idle".into(), &"drs.response".into()));
    }

    /// Handles calls or fires: `drs.serve` or `drs.subscribe`.
    async fn on(&mut self, action: &str, name: &str) {
        self.gives(
            &format!(r#"{{"key":"on","action":"{action}","body":"{name}"}}"#),
            r#"{"key":"on","action":"drs.response"}"#,
        )
        .await;
    }

    /// Asserts that the server has closed the connection.
    async fn is_closed(&mut self) {
        match self {
            Self::Websocket(socket) => {
                assert!(matches!(socket.frame().await, Message::Close(_)));
            }
            Self::Tcp(stream) => {
                let mut rest = Vec::new();
                let _ = soon(stream.read_to_end(&mut rest)).await;
                assert_eq!(String::from_utf8_lossy(&rest), "");
            }
            Self::Ipc(child, output) => {
                assert_eq!(line(output).await, None);
                assert!(soon(child.wait()).await.unwrap().success());
            }
        }
    }
}

async fn line(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut line = String::new();
    let count = soon(stream.read_line(&mut line)).await.unwrap_or_default();
    (count > 0).then(|| line.strip_suffix('\n').expect("a line feed").to_owned())
}

/// The key of a call that the server makes.
fn key_of(command: &str) -> String {
    let command: Value = serde_json::from_str(command).unwrap();
    command["key"].as_str().unwrap().to_owned()
}
