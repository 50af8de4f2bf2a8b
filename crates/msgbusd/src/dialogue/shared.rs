//! What the session of a connection shares with publishing threads: while nothing waits to be written, they write the
//! messages of its subscriptions to the socket themselves.
//!
//! Lock order: this lock, then those of topics, keys, frames and the queue of activities. While holding it, the session
//! publishes. That wakes other tasks, which only queues their deliveries, and a delivery never waits for this lock.

use std::{
    mem,
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};

use super::{Conversation, Dialect, Output as _};
use crate::{
    net::{
        raw_stream::RawStream,
        wake_queue::{Delivery, RemoteWaker},
    },
    websocket::{link::write_now, outgoing::Outgoing},
};

/// The number of turns that another thread writes before it leaves the rest to the session.
const MAX_TURNS: usize = 4;

/// What is ready, after some activities had their turns.
#[derive(Debug)]
pub(super) enum Left {
    Nothing,
    /// Subscriptions to topics and patterns, perhaps.
    Follows,
    /// Something else is first.
    Others,
}

/// One connection, for its session and for all threads that write messages to it.
#[derive(Debug)]
pub(super) struct Shared<D: Dialect>(Mutex<State<D>>);

#[derive(Debug)]
pub(super) struct State<D: Dialect> {
    pub(super) conversation: Conversation<D>,
    /// The socket that other threads write to. `None` if only the session may write: with TLS, and after it has ended.
    stream: Option<Arc<RawStream>>,
}

impl<D: Dialect> Shared<D> {
    pub(super) fn new(conversation: Conversation<D>, stream: Option<Arc<RawStream>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { conversation, stream })))
    }

    /// Wakes the task of the session for its activities, unless the thread that wakes it can write their messages.
    pub(super) fn waker(self: &Arc<Self>) -> RemoteWaker {
        if self.lock().stream.is_none() {
            return RemoteWaker::default();
        }
        let shared: Weak<Self> = Arc::downgrade(self);
        RemoteWaker::with_delivery(shared)
    }

    /// Locks the state for the session. Other threads hold the lock only for writes that do not block.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.0.lock()
    }
}

impl<D: Dialect> State<D> {
    /// Stops writes by other threads, and returns what is left to write.
    pub(super) fn end(&mut self) -> Outgoing {
        self.stream = None;
        mem::take(self.conversation.contact.output.outgoing())
    }
}

impl<D: Dialect> Delivery for Shared<D> {
    fn deliver(&self) -> bool {
        // If it is locked, the session is woken: it may have looked at the queue already.
        let Some(mut state) = self.0.try_lock() else { return false };
        let State { conversation, stream } = &mut *state;
        let Some(stream) = stream else { return false };
        for _ in 0..MAX_TURNS {
            if !conversation.contact.output.outgoing().is_empty() {
                return false;
            }
            let left = conversation.run_follows();
            let outgoing = conversation.contact.output.outgoing();
            write_now(stream, outgoing);
            match left {
                Left::Nothing => return outgoing.is_empty(),
                Left::Follows => {}
                Left::Others => return false,
            }
        }
        false
    }
}
