//! What pushing to one websocket takes, shared by its session and by the thread that publishes: while nothing
//! waits to be written, that thread writes the next messages itself, straight to the socket.
//!
//! Locks are taken in this order: this one, then those of the topic, the keys and the frames. Nobody wakes a task
//! by a topic, or publishes, while holding this one.

use std::{
    io::IoSlice,
    mem,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use parking_lot::{Mutex, MutexGuard};

use super::transport::{MAX_SLICES, Outgoing};
use crate::{
    encode::events,
    encode::frame_cache::Frame,
    net::raw_stream::RawStream,
    net::wake_queue::Delivery,
    service::follower::{End, Follower, Item},
};

/// How many batches another thread writes before the session goes on by itself.
const MAX_BATCHES: usize = 4;

/// One websocket as everybody who writes messages to it has it.
#[derive(Debug)]
pub(crate) struct Push(Mutex<State>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) follower: Follower,
    pub(super) outgoing: Outgoing,
    /// Where others may write; `None` where all bytes have to go by the session, as in TLS and when it has ended.
    stream: Option<Arc<RawStream>>,
    /// Whether the client asked for `?gaps`.
    reports_gaps: bool,
}

impl Push {
    pub(crate) fn new(follower: Follower, reports_gaps: bool) -> Arc<Self> {
        let outgoing = Outgoing::default();
        let state = State { follower, outgoing, stream: None, reports_gaps };
        Arc::new(Self(Mutex::new(state)))
    }

    /// Lets other threads write to this stream. To be called before the follower is polled.
    pub(super) fn share(self: &Arc<Self>, stream: Arc<RawStream>) {
        let mut state = self.lock();
        state.stream = Some(stream);
        let push: Weak<Self> = Arc::downgrade(self);
        state.follower.deliver_by(push);
    }

    /// For the session. Others hold it no longer than it takes to write what the socket takes at once.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// Takes a batch out of the topic, to be written.
    pub(super) fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.follower.poll_batch(cx, to(&mut self.outgoing, self.reports_gaps))
    }

    /// Lets nobody write any more but the session itself, and returns what there is left to write.
    pub(super) fn end(&mut self) -> Outgoing {
        self.stream = None;
        mem::take(&mut self.outgoing)
    }
}

/// Queues what comes out of the topic.
fn to(outgoing: &mut Outgoing, reports_gaps: bool) -> impl FnMut(Item, u64) {
    move |item, next_id| match item {
        Item::Frame(frame) => outgoing.push(frame),
        Item::Missed(count) if reports_gaps => {
            outgoing.push(Frame::text(&events::gap(count, next_id)));
        }
        // Clients of prologic/msgbus expect every frame to be a message.
        Item::Missed(_) => {}
    }
}

impl Delivery for Push {
    fn deliver(&self) -> bool {
        // If it is locked, it may be too late for the session to see what there is.
        let Some(mut state) = self.0.try_lock() else { return false };
        let State { follower, outgoing, stream, reports_gaps } = &mut *state;
        let Some(stream) = stream else { return false };
        for _ in 0..MAX_BATCHES {
            if !outgoing.is_empty() {
                return false;
            }
            match follower.poll_batch_for_task(to(outgoing, *reports_gaps)) {
                Poll::Pending => return true,
                Poll::Ready(Ok(())) => {}
                // The session finds out the same.
                Poll::Ready(Err(_)) => return false,
            }
            write_now(stream, outgoing);
        }
        false
    }
}

/// Writes what the socket takes at once. What is left, or has failed, is for the session.
fn write_now(stream: &RawStream, outgoing: &mut Outgoing) {
    while !outgoing.is_empty() {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = outgoing.slices(&mut slices);
        match stream.try_write_vectored(&slices[..count]) {
            Ok(0) | Err(_) => return,
            Ok(written) => outgoing.advance(written),
        }
    }
    outgoing.shrink();
}
