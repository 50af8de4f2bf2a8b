//! The transports of a subscription: their requests, and how they frame messages.

use std::io::{self, Cursor};

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use msgbus_core::{Message, json};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::raw_client::invalid;

/// The close code 4403.
const REVOKED: [u8; 2] = 4403_u16.to_be_bytes();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Websocket,
    WebsocketRaw,
    Sse,
    Ndjson,
    RawStream,
}

/// A received item.
#[derive(Debug)]
pub(super) enum Item {
    Message(Message),
    /// The payload of a message, on a raw transport.
    Payload(Bytes),
    /// The number of missed messages.
    Gap(u64),
    /// To be answered with a pong of the same content.
    Ping(Bytes),
    /// The server has ended the subscription, with a reason.
    End,
    /// The server has ended the subscription because of the keys.
    Revoked,
    /// Anything else.
    Other,
}

/// An event in NDJSON or SSE that is not a message.
#[derive(Deserialize)]
struct StreamEvent {
    event: Option<String>,
    missed: Option<u64>,
}

impl Transport {
    pub(super) const ALL: [Self; 5] =
        [Self::Websocket, Self::WebsocketRaw, Self::Sse, Self::Ndjson, Self::RawStream];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Websocket => "subscriptions by websocket",
            Self::WebsocketRaw => "subscriptions by websocket, raw",
            Self::Sse => "subscriptions by server-sent events",
            Self::Ndjson => "subscriptions by NDJSON",
            Self::RawStream => "subscriptions by raw lines",
        }
    }

    pub(super) fn is_websocket(self) -> bool {
        matches!(self, Self::Websocket | Self::WebsocketRaw)
    }

    /// Whether messages carry ids.
    pub(super) fn has_ids(self) -> bool {
        !matches!(self, Self::WebsocketRaw | Self::RawStream)
    }

    /// Whether gaps are reported as events.
    pub(super) fn reports_gaps(self) -> bool {
        matches!(self, Self::Sse | Self::Ndjson)
    }

    /// The request for a topic, with an additional query and additional headers. Streams use HTTP/1.`version`; with 1.1
    /// their body is chunked.
    pub(super) fn request(self, topic: &str, query: &str, headers: &str, version: u8) -> String {
        let own = match self {
            Self::Websocket => "",
            Self::WebsocketRaw => "raw&",
            Self::Sse => "stream=sse&",
            Self::Ndjson => "stream=ndjson&",
            Self::RawStream => "stream=raw&",
        };
        let query = format!("{own}{query}");
        let target = format!("/{topic}?{}", query.trim_end_matches('&'));
        if self.is_websocket() {
            websocket(&target, headers)
        } else {
            format!("GET {target} HTTP/1.{version}\r\nHost: soak.localhost\r\n{headers}\r\n")
        }
    }

    /// Removes the next complete item from the input.
    pub(super) fn next(self, input: &mut BytesMut) -> io::Result<Option<Item>> {
        match self {
            Self::Websocket | Self::WebsocketRaw => frame(input),
            Self::Sse => Ok(match take_until(input, b"\n\n") {
                Some(event) => Some(sse(&event)?),
                None => None,
            }),
            Self::Ndjson => Ok(match take_until(input, b"\n") {
                Some(line) => Some(ndjson(&line)?),
                None => None,
            }),
            Self::RawStream => Ok(take_until(input, b"\n").map(Item::Payload)),
        }
    }
}

/// The handshake of a websocket, with additional headers.
pub(super) fn websocket(target: &str, headers: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: soak.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bXNnYnVzIGlzIG1lYXN1cg==\r\n{headers}\r\n"
    )
}

fn take_until(input: &mut BytesMut, end: &[u8]) -> Option<Bytes> {
    let length = memmem::find(input, end)?;
    let piece = input.split_to(length).freeze();
    let _ = input.split_to(end.len());
    Some(piece)
}

/// Removes the next complete frame of the server from the input.
pub(super) fn next_frame(input: &mut BytesMut) -> io::Result<Option<(OpCode, Bytes)>> {
    let mut rest = Cursor::new(&input[..]);
    let Some((header, length)) = FrameHeader::parse(&mut rest).map_err(invalid)? else {
        return Ok(None);
    };
    let begin = usize::try_from(rest.position()).map_err(invalid)?;
    let length = usize::try_from(length).map_err(invalid)?;
    if input.len() < begin + length {
        return Ok(None);
    }
    let _ = input.split_to(begin);
    Ok(Some((header.opcode, input.split_to(length).freeze())))
}

fn frame(input: &mut BytesMut) -> io::Result<Option<Item>> {
    let Some((opcode, content)) = next_frame(input)? else { return Ok(None) };
    Ok(Some(match opcode {
        OpCode::Data(Data::Text) => ndjson(&content)?,
        OpCode::Data(Data::Binary) => Item::Payload(content),
        OpCode::Control(Control::Ping) => Item::Ping(content),
        OpCode::Control(Control::Pong) => Item::Other,
        OpCode::Control(Control::Close) if content.starts_with(&REVOKED) => Item::Revoked,
        OpCode::Control(Control::Close) => Item::End,
        other => return Err(invalid(format!("a frame of kind {other}"))),
    }))
}

fn message(json: &[u8]) -> io::Result<Item> {
    json::read_message(json).map(Item::Message).map_err(invalid)
}

fn ndjson(line: &Bytes) -> io::Result<Item> {
    if line.is_empty() {
        return Ok(Item::Other);
    }
    if !line.starts_with(b"{\"event\":") {
        return message(line);
    }
    let note: StreamEvent = serde_json::from_slice(line).map_err(invalid)?;
    stream_event(note.event.as_deref(), note.missed, line)
}

fn sse(event: &Bytes) -> io::Result<Item> {
    let (mut name, mut data, mut id) = (None, None, None);
    for line in event.split(|byte| *byte == b'\n') {
        if let Some(text) = line.strip_prefix(b"event: ") {
            name = std::str::from_utf8(text).ok();
        } else if let Some(text) = line.strip_prefix(b"data: ") {
            data = Some(text);
        } else if let Some(text) = line.strip_prefix(b"id: ") {
            id = std::str::from_utf8(text).ok();
        }
    }
    let Some(data) = data else { return Ok(Item::Other) };
    if name.is_some() {
        let note: StreamEvent = serde_json::from_slice(data).map_err(invalid)?;
        return stream_event(name, note.missed, event);
    }
    let item = message(data)?;
    if let Item::Message(message) = &item {
        let end = format!("-{}", message.id());
        if !id.is_some_and(|id| id.ends_with(&end)) {
            return Err(invalid(format!("#{} has the event id {id:?}", message.id())));
        }
    }
    Ok(item)
}

fn stream_event(event: Option<&str>, missed: Option<u64>, whole: &Bytes) -> io::Result<Item> {
    match (event, missed) {
        (Some("gap"), Some(count)) => Ok(Item::Gap(count)),
        (Some("restart" | "stalled" | "resumed"), _) => Ok(Item::Other),
        (Some("deleted" | "lagged"), _) => Ok(Item::End),
        (Some("revoked"), _) => Ok(Item::Revoked),
        _ => Err(invalid(format!("an unknown event: {}", String::from_utf8_lossy(whole)))),
    }
}
