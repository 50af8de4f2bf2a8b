//! A client of a door for other systems: one connection, with one request at a time, or one service.

use std::{io, net::SocketAddr};

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memmem};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::{
    raw_client::{Cut, Endpoint, RawClient, invalid},
    topics::Topic,
    transport::{next_frame, websocket},
};

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Middleman,
    DrsWebsocket,
    DrsTcp,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Middleman, Self::DrsWebsocket, Self::DrsTcp];

    /// The flag that opens its door.
    pub(super) fn flag(self, address: SocketAddr) -> [String; 2] {
        let (flag, scheme) = match self {
            Self::Middleman => ("--middleman", ""),
            Self::DrsWebsocket => ("--drs", "ws://"),
            Self::DrsTcp => ("--drs", "tcp://"),
        };
        [flag.to_owned(), format!("{scheme}{address}")]
    }

    /// The answer of a responder that fails; `None` if the protocol has none.
    pub(super) fn failure(self, reason: &str) -> Option<String> {
        (self != Self::Middleman).then(|| reason.to_owned())
    }
}

/// What the server sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// To be answered with the id. The payload begins with the number.
    Request { id: String, number: u64 },
    /// A reply, with the number of its request and its payload; or a failure with its text.
    Answer { number: Option<u64>, text: String },
}

pub(super) struct DoorClient {
    kind: Kind,
    client: RawClient,
}

impl DoorClient {
    /// Connects and logs in.
    pub(super) async fn open(kind: Kind, endpoint: &Endpoint, key: &str) -> io::Result<Self> {
        let mut client = RawClient::open(endpoint).await?;
        if kind != Kind::DrsTcp {
            client.send(websocket("/socket", "").as_bytes()).await?;
            let status = client.read_head().await?.status;
            if status != 101 {
                return Err(io::Error::other(format!("a websocket: {status}")));
            }
        }
        let mut client = Self { kind, client };
        match kind {
            Kind::Middleman => {
                client.send(&text(key)).await?;
                for expected in ["MM OK".len(), 20] {
                    let confirmed = client.message().await?;
                    if confirmed.len() != expected {
                        return Err(invalid(format!("instead of a greeting: {confirmed:?}")));
                    }
                }
            }
            Kind::DrsWebsocket | Kind::DrsTcp => {
                let login = json!({"key": "login", "action": "auth.upgrade", "body": key});
                client.send(&client.command(&login)).await?;
                let said: Value = serde_json::from_slice(&client.message().await?)?;
                if said["action"] != "drs.response" {
                    return Err(invalid(format!("a login: {said}")));
                }
            }
        }
        Ok(client)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn cut(self, how: Cut) {
        self.client.cut(how);
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.client.send(bytes).await
    }

    /// A request whose payload has about this size.
    pub(super) fn request(&self, service: &Topic, number: u64, size: usize) -> Vec<u8> {
        let service = service.name();
        if self.kind == Kind::Middleman {
            return text(&format!(
                "REQ {service}\nReqID: {number}\n\n{number} {:.>size$}\n.\n",
                ""
            ));
        }
        // Responders of all doors find the number in it: a body is JSON.
        self.command(&json!({"key": number.to_string(), "action": service, "body": number}))
    }

    pub(super) fn serve(&self, service: &Topic) -> Vec<u8> {
        let service = service.name();
        if self.kind == Kind::Middleman {
            return text(&format!("EREQ {service}\n\n.\n"));
        }
        self.command(&json!({"key": "serve", "action": "drs.serve", "body": service}))
    }

    /// The answer to a request, with its number or with the reason of a failure.
    pub(super) fn answer(
        &self,
        service: &Topic,
        id: &str,
        number: u64,
        failure: Option<&str>,
    ) -> Vec<u8> {
        if self.kind == Kind::Middleman {
            return text(&format!("RES {}\nrid: {id}\n\n{number} .\n.\n", service.name()));
        }
        self.command(&match failure {
            None => json!({"key": id, "action": "drs.response", "body": number}),
            Some(why) => json!({"key": id, "action": "drs.exception", "body": {"message": why}}),
        })
    }

    fn command(&self, command: &Value) -> Vec<u8> {
        match self.kind {
            Kind::DrsTcp => format!("{command}\n").into_bytes(),
            _ => text(&command.to_string()),
        }
    }

    /// The next event. Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Event> {
        let message = self.message().await?;
        let said = str::from_utf8(&message).map_err(invalid)?;
        match self.kind {
            Kind::Middleman => read_middleman(said),
            Kind::DrsWebsocket | Kind::DrsTcp => read_drs(said),
        }
        .ok_or_else(|| invalid(format!("at {:?}: {said:.200}", self.kind)))
    }

    async fn message(&mut self) -> io::Result<Bytes> {
        loop {
            let found = match self.kind {
                Kind::DrsTcp => line(&mut self.client.input),
                _ => data(&mut self.client.input)?,
            };
            if let Some(message) = found {
                return Ok(message);
            }
            if self.client.read_more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// A text frame of a client, whose mask is zero.
fn text(content: &str) -> Vec<u8> {
    let opcode = OpCode::Data(Data::Text);
    let header = FrameHeader { opcode, mask: Some([0; 4]), ..FrameHeader::default() };
    let mut frame = Vec::new();
    // A Vec cannot fail.
    let _ = header.format(content.len() as u64, &mut frame);
    frame.extend_from_slice(content.as_bytes());
    frame
}

fn line(input: &mut BytesMut) -> Option<Bytes> {
    let end = memchr(b'\n', input)?;
    Some(input.split_to(end + 1).freeze())
}

/// The next text. Connections are too short for pings to need an answer.
fn data(input: &mut BytesMut) -> io::Result<Option<Bytes>> {
    while let Some((opcode, content)) = next_frame(input)? {
        match opcode {
            OpCode::Data(Data::Text) => return Ok(Some(content)),
            OpCode::Control(Control::Ping) => {}
            OpCode::Control(Control::Close) => return Err(io::ErrorKind::UnexpectedEof.into()),
            other => return Err(invalid(format!("a frame of kind {other}"))),
        }
    }
    Ok(None)
}

fn read_middleman(said: &str) -> Option<Event> {
    let end = memmem::find(said.as_bytes(), b"\r\n\r\n")?;
    let (head, body) = (&said[..end], said[end + 4..].strip_suffix("\r\n.\r\n")?);
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let text = body.to_owned();
    match head.get(..4)? {
        "REQ " => Some(Event::Request { id: header("Rid: ")?.to_owned(), number: number(body)? }),
        "RES " => Some(Event::Answer { number: Some(header("ReqID: ")?.parse().ok()?), text }),
        _ if head == "PUB ERROR" => Some(Event::Answer { number: None, text }),
        _ => None,
    }
}

fn read_drs(said: &str) -> Option<Event> {
    let command: Value = serde_json::from_str(said).ok()?;
    let (key, body) = (command["key"].as_str()?, &command["body"]);
    // Replies of other doors are text, or a number that is JSON.
    let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    match command["action"].as_str()? {
        "drs.response" => Some(Event::Answer { number: key.parse().ok(), text }),
        "drs.error" | "drs.exception" => {
            let text = body["message"].as_str()?.to_owned();
            Some(Event::Answer { number: None, text })
        }
        _ => Some(Event::Request { id: key.to_owned(), number: number(&text)? }),
    }
}

/// The number at the beginning of a payload.
fn number(payload: &str) -> Option<u64> {
    payload.split(' ').next()?.parse().ok()
}
