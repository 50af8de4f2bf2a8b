//! What the session of a websocket shares with publishing threads: while nothing waits to be written, they write the
//! messages of its subscriptions to the socket themselves, as those of plain websockets ([`push`](super::super::push)).
//!
//! Lock order: this lock, then those of topics, keys, frames and the queue of activities. While holding it, the session
//! publishes. That wakes other tasks, which only queues their deliveries, and a delivery never waits for this lock.

use std::{
    mem,
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    super::{push::write_now, transport::Outgoing},
    activities::{Activities, Left},
    operations::Operations,
    output::Output,
};
use crate::net::{
    raw_stream::RawStream,
    wake_queue::{Delivery, RemoteWaker},
};

/// The number of frames that another thread writes before it leaves the rest to the session.
const MAX_FRAMES: usize = 4;

/// One websocket, for its session and for all threads that write messages to it.
#[derive(Debug)]
pub(super) struct Shared(Mutex<State>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) operations: Operations,
    pub(super) outgoing: Outgoing,
    /// The socket that other threads write to. `None` if only the session may write: with TLS, and after it has ended.
    stream: Option<Arc<RawStream>>,
}

impl Shared {
    pub(super) fn new(operations: Operations, stream: Option<Arc<RawStream>>) -> Arc<Self> {
        let outgoing = Outgoing::default();
        Arc::new(Self(Mutex::new(State { operations, outgoing, stream })))
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
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// Stops writes by other threads. Returns the activities, to be dropped without the lock, and what is left to write.
    pub(super) fn end(&mut self) -> (Activities, Outgoing) {
        self.stream = None;
        let none = Activities::new(&self.operations.client);
        (mem::replace(&mut self.operations.activities, none), mem::take(&mut self.outgoing))
    }
}

impl Delivery for Shared {
    fn deliver(&self) -> bool {
        // If it is locked, the session is woken: it may have looked at the queue already.
        let Some(mut state) = self.0.try_lock() else { return false };
        let State { operations, outgoing, stream } = &mut *state;
        let Some(stream) = stream else { return false };
        for _ in 0..MAX_FRAMES {
            if !outgoing.is_empty() {
                return false;
            }
            let left = operations.activities.run_follows(&mut Output::new(outgoing));
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
