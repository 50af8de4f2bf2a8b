//! A subscription to a topic.

use std::task::{Context, Poll};

use msgbus_core::{RecvError, store::StoreError};

use super::{
    answer::{Answer, number, write_sid},
    identifier::Label,
    output::Output,
};
use crate::service::follower::{self, Feed, Follower, Item};

/// One subscription.
#[derive(Debug)]
pub(super) struct Follow {
    pub(super) sid: Label,
    follower: Follower,
}

/// Why a subscription ended.
#[derive(Debug)]
pub(super) enum End {
    Deleted,
    Lagged {
        missed: u64,
    },
    Revoked,
    StoreFailed,
    /// The engine of the topic refuses.
    EngineFailed,
    /// The server stops.
    Closed,
}

impl Follow {
    pub(super) fn new(sid: Label, mut follower: Follower) -> Self {
        follower.wake_directly();
        Self { sid, follower }
    }

    /// The answer to the `sub`.
    pub(super) fn answer(&self) -> Answer {
        let subscription = self.follower.subscription();
        let (epoch, start) = (subscription.epoch(), subscription.start());
        Answer::Subscribed { sid: self.sid.clone(), epoch, start }
    }

    /// Sends a batch of messages.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Output<'_>,
    ) -> Poll<Result<(), End>> {
        let Self { sid, follower } = self;
        follower
            .poll_batch(cx, |item, next_id| match item {
                Item::Frame(frame) => {
                    begin_message(output.text(), sid, next_id - 1);
                    output.text().extend_from_slice(br#","message":"#);
                    for piece in frame.into_pieces() {
                        output.push(piece);
                    }
                    output.text().push(b'}');
                    output.end_line();
                }
                Item::Missed(count) => write_gap(sid, count, next_id, output),
                Item::Feed(feed) => write_feed(sid, feed, output),
            })
            .map_err(End::from)
    }

    /// Tells the client whether the engine of the topic delivers, if there is something to say.
    pub(super) fn say_feed(&mut self, output: &mut Output<'_>) {
        if let Some(feed) = self.follower.feed() {
            write_feed(&self.sid, feed, output);
        }
    }

    pub(super) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.follower.poll_revoked(cx)
    }

    /// Lets others have what it waits for, while the client accepts no messages.
    pub(super) fn hold_back(&mut self) {
        self.follower.stop_waiting_for_memory();
    }

    pub(super) fn log_end(&self, why: &str) {
        self.follower.log_end(&why);
    }
}

/// Writes the beginning of a message with this position.
pub(super) fn begin_message(text: &mut Vec<u8>, sid: &str, id: u64) {
    text.extend_from_slice(br#"{"op":"msg""#);
    write_sid(text, sid);
    text.extend_from_slice(br#","id":"#);
    number(text, id);
}

fn write_gap(sid: &str, missed: u64, next_id: u64, output: &mut Output<'_>) {
    let text = output.text();
    text.extend_from_slice(br#"{"op":"gap""#);
    write_sid(text, sid);
    text.extend_from_slice(br#","missed":"#);
    number(text, missed);
    text.extend_from_slice(br#","next_id":"#);
    number(text, next_id);
    text.push(b'}');
    output.end_line();
}

fn write_feed(sid: &str, feed: Feed, output: &mut Output<'_>) {
    let text = output.text();
    text.extend_from_slice(br#"{"op":""#);
    text.extend_from_slice(feed.word().as_bytes());
    text.push(b'"');
    write_sid(text, sid);
    text.push(b'}');
    output.end_line();
}

impl From<follower::End> for End {
    fn from(end: follower::End) -> Self {
        match end {
            follower::End::Revoked => Self::Revoked,
            follower::End::Over(RecvError::Lagged { missed }) => Self::Lagged { missed },
            follower::End::Over(RecvError::Closed | RecvError::Store(StoreError::Closed)) => {
                Self::Closed
            }
            follower::End::Over(RecvError::Store(StoreError::Engine(_))) => Self::EngineFailed,
            follower::End::Over(RecvError::Store(_)) => Self::StoreFailed,
            follower::End::Over(_) => Self::Deleted,
        }
    }
}

impl End {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Lagged { .. } => "lagged",
            Self::Revoked => "revoked",
            Self::StoreFailed => "store_failed",
            Self::EngineFailed => "engine_failed",
            Self::Closed => "closed",
        }
    }

    /// Tells the client.
    pub(super) fn write(&self, sid: &str, output: &mut Output<'_>) {
        let text = output.text();
        text.extend_from_slice(br#"{"op":"end""#);
        write_sid(text, sid);
        text.extend_from_slice(br#","reason":""#);
        text.extend_from_slice(self.word().as_bytes());
        text.push(b'"');
        if let Self::Lagged { missed } = self {
            text.extend_from_slice(br#","missed":"#);
            number(text, *missed);
        }
        text.push(b'}');
        output.end_line();
    }
}
