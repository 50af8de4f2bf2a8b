//! What the session of a websocket shares with publishing threads: while nothing waits to be written, they write the
//! messages of its subscriptions to the socket themselves.
//!
//! Lock order: this lock, then those of topics, keys, frames and the queue of activities. While holding it, the session
//! publishes. That wakes other tasks, which only queues their deliveries, and a delivery never waits for this lock.

use std::{
    fmt::Debug,
    mem,
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};

use super::{link::write_now, transport::Outgoing};
use crate::net::{
    raw_stream::RawStream,
    wake_queue::{Delivery, RemoteWaker},
};

/// The number of turns that another thread writes before it leaves the rest to the session.
const MAX_TURNS: usize = 4;

/// What a client has begun on its websocket.
pub(crate) trait Activities: Debug + Send + 'static {
    /// Gives subscriptions that are ready their turns, until there is enough to write, or until something else is first.
    fn run_follows(&mut self, outgoing: &mut Outgoing) -> Left;
}

/// What is ready, after some activities had their turns.
#[derive(Debug)]
pub(crate) enum Left {
    Nothing,
    /// Subscriptions to topics and patterns, perhaps.
    Follows,
    /// Something else is first.
    Others,
}

/// One websocket, for its session and for all threads that write messages to it.
#[derive(Debug)]
pub(crate) struct Shared<A>(Mutex<State<A>>);

#[derive(Debug)]
pub(crate) struct State<A> {
    pub(crate) dialogue: A,
    pub(crate) outgoing: Outgoing,
    /// The socket that other threads write to. `None` if only the session may write: with TLS, and after it has ended.
    stream: Option<Arc<RawStream>>,
}

impl<A: Activities> Shared<A> {
    pub(crate) fn new(dialogue: A, stream: Option<Arc<RawStream>>) -> Arc<Self> {
        let outgoing = Outgoing::default();
        Arc::new(Self(Mutex::new(State { dialogue, outgoing, stream })))
    }

    /// Wakes the task of the session for its activities, unless the thread that wakes it can write their messages.
    pub(crate) fn waker(self: &Arc<Self>) -> RemoteWaker {
        if self.lock().stream.is_none() {
            return RemoteWaker::default();
        }
        let shared: Weak<Self> = Arc::downgrade(self);
        RemoteWaker::with_delivery(shared)
    }

    /// Locks the state for the session. Other threads hold the lock only for writes that do not block.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<A>> {
        self.0.lock()
    }
}

impl<A> State<A> {
    /// Stops writes by other threads, and returns what is left to write.
    pub(crate) fn end(&mut self) -> Outgoing {
        self.stream = None;
        mem::take(&mut self.outgoing)
    }
}

impl<A: Activities> Delivery for Shared<A> {
    fn deliver(&self) -> bool {
        // If it is locked, the session is woken: it may have looked at the queue already.
        let Some(mut state) = self.0.try_lock() else { return false };
        let State { dialogue, outgoing, stream } = &mut *state;
        let Some(stream) = stream else { return false };
        for _ in 0..MAX_TURNS {
            if !outgoing.is_empty() {
                return false;
            }
            let left = dialogue.run_follows(outgoing);
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
