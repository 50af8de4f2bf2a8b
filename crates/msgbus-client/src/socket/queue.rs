//! The events of one subscription that have been received and not been returned yet.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use msgbus_core::Position;
use parking_lot::{Mutex, MutexGuard};

use crate::{error::ClientError, subscription::Event};

/// A bounded queue between the connection and the caller. If it is full, the subscription is paused: the connection
/// ends it on the server, and resumes it when half of the queue is free.
#[derive(Debug)]
pub(super) struct Queue {
    max_messages: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Entry>,
    /// The size of the payloads.
    bytes: usize,
    /// Whether an entry was refused since the subscription was last resumed.
    is_paused: bool,
    /// Why no entry follows.
    end: Option<ClientError>,
    waker: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event: Event,
    /// The position after the event.
    pub(super) position: Position,
}

impl Entry {
    fn size(&self) -> usize {
        match &self.event {
            Event::Message(message) => message.payload().len(),
            _ => 0,
        }
    }
}

/// What the caller gets.
#[derive(Debug)]
pub(super) struct Next {
    /// The next entry, or, once, the error with which the subscription has ended.
    pub(super) entry: Result<Entry, ClientError>,
    /// Whether the subscription has to be resumed.
    pub(super) resume: bool,
}

impl Queue {
    /// The most bytes of payload, unless a single message is larger.
    pub(super) const MAX_BYTES: usize = 8 << 20;

    pub(super) fn new(max_messages: usize) -> Self {
        Self { max_messages, state: Mutex::default() }
    }

    /// Adds an entry. Returns false if the queue is full: then the subscription is paused.
    pub(super) fn push(&self, entry: Entry) -> bool {
        let mut state = self.state.lock();
        if self.is_full(&state) {
            state.is_paused = true;
            return false;
        }
        Self::add(state, entry);
        true
    }

    /// Adds an entry that may be lost, unless the queue is full. Returns whether it did.
    pub(super) fn push_if_room(&self, entry: Entry) -> bool {
        let state = self.state.lock();
        let has_room = !self.is_full(&state);
        if has_room {
            Self::add(state, entry);
        }
        has_room
    }

    fn is_full(&self, state: &State) -> bool {
        state.entries.len() >= self.max_messages || state.bytes >= Self::MAX_BYTES
    }

    /// Adds an entry even if the queue is full: one that occurs once for each connection.
    pub(super) fn push_always(&self, entry: Entry) {
        Self::add(self.state.lock(), entry);
    }

    fn add(mut state: MutexGuard<'_, State>, entry: Entry) {
        state.bytes += entry.size();
        state.entries.push_back(entry);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Ends the queue after what it contains.
    pub(super) fn finish(&self, error: ClientError) {
        let waker = {
            let mut state = self.state.lock();
            state.end.get_or_insert(error);
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.state.lock();
        let Some(entry) = state.entries.pop_front() else {
            return match state.end.take() {
                Some(error) => Poll::Ready(Next { entry: Err(error), resume: false }),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        };
        state.bytes -= entry.size();
        let has_room =
            state.entries.len() <= self.max_messages / 2 && state.bytes <= Self::MAX_BYTES / 2;
        let resume = has_room && std::mem::take(&mut state.is_paused);
        Poll::Ready(Next { entry: Ok(entry), resume })
    }
}
