//! The operations that wait to be sent, and those that wait for their answers.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::answer::Answer;
use crate::{error::ClientError, uri::ServerUri, websocket};

/// How much is sent in one frame, in bytes, unless a single line is larger. Every server accepts frames of this size, and a
/// larger line is the only one in its frame.
pub(super) const MAX_FRAME: usize = 64 << 10;

/// An operation of a caller.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) rid: u64,
    pub(super) kind: Kind,
    pub(super) line: String,
    /// Whether a connection was lost after it was sent: it may have been carried out.
    pub(super) was_lost: bool,
    /// The caller may have gone.
    pub(super) answer: oneshot::Sender<Result<Answer, ClientError>>,
    /// Its share of what may be outstanding. A reply has none: other operations may wait for it.
    pub(super) _permits: Vec<OwnedSemaphorePermit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Sent once. It is published even if the caller has gone.
    Publish,
    /// A publish that is sent again if the connection is lost before the answer.
    PublishAgain,
    /// Settles a lease. It is sent again too: no lease can be settled twice.
    Settle,
    /// Sent once, and only as long as the caller waits.
    Ask,
    /// A request that is sent again, as long as the caller waits, if the connection is lost before the reply.
    AskAgain,
    /// Answers a request. Sent once: the request ends with the connection.
    Reply,
}

/// An operation that was sent.
#[derive(Debug)]
struct Sent {
    operation: Operation,
    /// The length of its line, in bytes.
    size: usize,
}

impl Operation {
    fn repeats(&self) -> bool {
        matches!(self.kind, Kind::PublishAgain | Kind::Settle | Kind::AskAgain)
    }

    fn is_pointless(&self) -> bool {
        matches!(self.kind, Kind::Ask | Kind::AskAgain) && self.answer.is_closed()
    }
}

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    waiting: VecDeque<Operation>,
    sent: BTreeMap<u64, Sent>,
}

impl Outgoing {
    pub(super) fn push(&mut self, operation: Operation) {
        self.waiting.push_back(operation);
    }

    /// Moves operations into a frame, as many as fit.
    pub(super) fn write(&mut self, frame: &mut String) {
        while let Some(next) = self.waiting.front()
            && (frame.is_empty() || frame.len() + next.line.len() <= MAX_FRAME)
            && let Some(mut operation) = self.waiting.pop_front()
        {
            if operation.is_pointless() {
                continue;
            }
            let size = operation.line.len();
            frame.push_str(&operation.line);
            if !operation.repeats() {
                operation.line = String::new();
            }
            self.sent.insert(operation.rid, Sent { operation, size });
        }
    }

    /// Passes an answer on.
    pub(super) fn answered(&mut self, rid: u64, answer: Result<Answer, ClientError>) {
        let Some(Sent { operation, size }) = self.sent.remove(&rid) else { return };
        if operation.kind == Kind::AskAgain && answer.as_ref().is_ok_and(|it| it.is_closing) {
            // The server stops, and closes the connection: it is sent again on the next one.
            self.sent.insert(rid, Sent { operation, size });
            return;
        }
        let answer = match answer {
            Err(ClientError::LeaseLost) if operation.was_lost => Err(ClientError::Unconfirmed),
            answer => answer,
        };
        let _ = operation.answer.send(answer);
    }

    /// After the connection was lost: what was sent is sent again first, in its order, or is answered with an error.
    /// `is_too_large` says that the server closed the connection because of a frame that is too large.
    pub(super) fn connection_lost(&mut self, server: &ServerUri, reason: &str, is_too_large: bool) {
        if is_too_large {
            self.refuse_largest();
        }
        for (_, Sent { mut operation, .. }) in std::mem::take(&mut self.sent).into_iter().rev() {
            if operation.repeats() {
                operation.was_lost = true;
                self.waiting.push_front(operation);
            } else {
                let _ = operation.answer.send(Err(websocket::lost(server, reason)));
            }
        }
    }

    /// The largest operation without an answer is one that the server refuses. It has not read what follows the first one
    /// that is too large, so others may be too large as well.
    fn refuse_largest(&mut self) {
        let largest = self.sent.iter().max_by_key(|(_, sent)| sent.size);
        let Some(rid) = largest.filter(|(_, sent)| sent.size > MAX_FRAME).map(|(rid, _)| *rid)
        else {
            return;
        };
        let text = "the message is larger than the server accepts".to_owned();
        self.answered(rid, Err(ClientError::Refused { status: 413, text }));
    }

    /// Whether nothing is left to send, and nobody waits for an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.sent.values().all(|sent| sent.operation.answer.is_closed())
    }

    /// Answers everything with an error.
    pub(super) fn fail(&mut self, error: impl Fn() -> ClientError) {
        let sent = std::mem::take(&mut self.sent).into_values().map(|sent| sent.operation);
        for operation in sent.chain(self.waiting.drain(..)) {
            let _ = operation.answer.send(Err(error()));
        }
    }
}
