//! The fuzz target for bytes from a websocket client.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{
    end::End,
    link,
    outgoing::Outgoing,
    transport::{Received, Transport},
};
use crate::fuzzing::block_on;

/// Reads `data` as the bytes of a client after the handshake. The result does not depend on how the bytes are split;
/// the server replies with pongs and at most one close frame, and never with more than was received.
///
/// # Panics
/// When a property does not hold.
pub fn websocket(data: &[u8]) {
    let whole = Dialogue::of(data, 0, usize::MAX);
    assert_eq!(whole, Dialogue::of(data, 0, 1));
    assert_eq!(whole, Dialogue::of(data, data.len() / 2, 7));
    whole.is_right(data.len());
    let whole = read_inbox(data, 0, usize::MAX);
    assert_eq!(whole, read_inbox(data, 0, 1));
    assert_eq!(whole, read_inbox(data, data.len() / 2, 7));
}

/// Reads with an inbox: the text messages, and the end as logged.
fn read_inbox(data: &[u8], already_read: usize, piece: usize) -> (Vec<String>, String) {
    const MAX: usize = 1 << 10;
    let (already_read, to_come) = data.split_at(already_read);
    let (mut texts, mut sent) = (Vec::new(), Vec::new());
    let wire = Wire { to_come, piece, sent: &mut sent };
    let mut transport = Transport::with_inbox(wire, already_read.to_vec(), MAX);
    let cx = &mut Context::from_waker(Waker::noop());
    let end = loop {
        match transport.next_received() {
            Ok(None) => match transport.poll_fill(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => break error,
                Poll::Pending => unreachable!("the wire is always ready"),
            },
            Ok(Some(Received::Text)) => {
                let inbox = transport.inbox().expect("an inbox");
                match str::from_utf8(inbox.text().unwrap_or_default()) {
                    Ok(text) => texts.push(text.to_owned()),
                    Err(error) => break Error::Utf8(error.to_string()),
                }
                inbox.rest();
            }
            Ok(Some(Received::Binary | Received::Control(_))) => {}
            Err(error) => break error,
        }
    };
    assert!(texts.iter().all(|text| text.len() <= MAX));
    (texts, format!("{:?}", End::from(end)))
}

#[derive(Debug, PartialEq, Eq)]
struct Dialogue {
    received: Vec<Message>,
    /// The end as logged.
    end: String,
    sent: Vec<u8>,
}

impl Dialogue {
    /// Runs a session that reads the first bytes with the handshake and the others in pieces.
    fn of(data: &[u8], already_read: usize, piece: usize) -> Self {
        let (already_read, to_come) = data.split_at(already_read);
        let (mut received, mut sent) = (Vec::new(), Vec::new());
        let end = block_on(async {
            let wire = Wire { to_come, piece, sent: &mut sent };
            let mut transport = Transport::new(wire, already_read.to_vec());
            let mut outgoing = Outgoing::default();
            let end = poll_fn(|cx| {
                // Like `Session::poll_read`.
                while let Poll::Ready(message) = transport.poll_read(cx) {
                    match message {
                        Ok(Message::Close(_)) => return Poll::Ready(End::ClosedByClient),
                        Ok(message) => received.push(message),
                        Err(error) => return Poll::Ready(End::from(error)),
                    }
                    let _ = transport.poll_write(cx, &mut outgoing);
                }
                Poll::Pending
            })
            .await;
            if !matches!(end, End::Broken) {
                link::close(transport, outgoing, end.close_frame(None)).await;
            }
            end
        });
        Self { received, end: format!("{end:?}"), sent }
    }

    fn is_right(&self, given: usize) {
        assert!(self.received.iter().map(Message::len).sum::<usize>() <= given);
        let frames = frames(&self.sent);
        let pings = self.received.iter().filter_map(|message| match message {
            Message::Ping(text) => Some(text),
            _ => None,
        });
        let pongs: Vec<_> = frames.iter().filter(|(first, _)| *first == PONG).collect();
        assert!(pongs.iter().map(|(_, text)| *text).eq(pings.map(|text| &text[..])));
        let is_closed = frames.last().is_some_and(|(first, _)| *first == CLOSE);
        assert_eq!(frames.len(), pongs.len() + usize::from(is_closed), "{frames:x?}");
        assert!(is_closed || self.end == "Broken", "{}", self.end);
        if let Some((CLOSE, text)) = frames.last()
            && let Some((code, reason)) = text.split_first_chunk()
        {
            let code = u16::from_be_bytes(*code);
            assert!(matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999), "{code}");
            assert!(str::from_utf8(reason).is_ok());
        }
    }
}

const PONG: u8 = 0x8a;
const CLOSE: u8 = 0x88;

/// Splits a server's short unmasked frames: the first byte and the payload of each.
fn frames(mut sent: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let [first, length, rest @ ..] = sent {
        assert!(*length <= 125, "{sent:x?}");
        let (payload, rest) = rest.split_at(usize::from(*length));
        frames.push((*first, payload));
        sent = rest;
    }
    assert!(sent.is_empty(), "half a frame");
    frames
}

/// A connection with known input.
struct Wire<'a> {
    to_come: &'a [u8],
    piece: usize,
    sent: &'a mut Vec<u8>,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.to_come.len().min(self.piece).min(buffer.remaining());
        let (now, later) = self.to_come.split_at(count);
        buffer.put_slice(now);
        self.to_come = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sent.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
