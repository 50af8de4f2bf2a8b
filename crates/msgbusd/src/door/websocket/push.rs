//! The state for pushing to one websocket. Its session shares it with publishing threads: while no frame waits to be
//! written, a publishing thread writes new messages itself, directly to the socket.
//!
//! Lock order: this lock, then those of the topic, the keys and the frames. While holding this lock, a thread does not
//! publish and does not wake subscribers of a topic.

use std::{
    mem,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    encode::events,
    encode::frame::Frame,
    net::raw_stream::RawStream,
    net::wake_queue::Delivery,
    service::follower::{End, Follower, Item},
    websocket::{link::write_now, outgoing::Outgoing},
};

/// The number of batches that another thread writes before it leaves the rest to the session.
const MAX_BATCHES: usize = 4;

/// One websocket, for all threads that write messages to it.
#[derive(Debug)]
pub(crate) struct Push(Mutex<State>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) follower: Follower,
    pub(super) outgoing: Outgoing,
    /// The socket that other threads write to. `None` if only the session may write: with TLS, and after it has ended.
    stream: Option<Arc<RawStream>>,
    /// Whether the client requested `?gaps`.
    reports_gaps: bool,
}

impl Push {
    pub(crate) fn new(follower: Follower, reports_gaps: bool) -> Arc<Self> {
        let outgoing = Outgoing::default();
        let state = State { follower, outgoing, stream: None, reports_gaps };
        Arc::new(Self(Mutex::new(state)))
    }

    /// Lets other threads write to this stream. Call it before the follower is polled.
    pub(super) fn share(self: &Arc<Self>, stream: Arc<RawStream>) {
        let mut state = self.lock();
        state.stream = Some(stream);
        let push: Weak<Self> = Arc::downgrade(self);
        state.follower.deliver_by(push);
    }

    /// Locks the state for the session. Other threads hold the lock only for writes that do not block.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// Receives a batch from the topic, and queues it for writing.
    pub(super) fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.follower.poll_batch(cx, to(&mut self.outgoing, self.reports_gaps))
    }

    /// Tells the client about the engine of the topic, when it is pinged.
    pub(super) fn pinged(&mut self) {
        if let Some(feed) = self.follower.feed() {
            let next_id = self.follower.next_id();
            to(&mut self.outgoing, self.reports_gaps)(Item::Feed(feed), next_id);
        }
    }

    /// Stops writes by other threads, and returns the frames that are left to write.
    pub(super) fn end(&mut self) -> Outgoing {
        self.stream = None;
        mem::take(&mut self.outgoing)
    }
}

/// Queues an item of the topic for writing.
fn to(outgoing: &mut Outgoing, reports_gaps: bool) -> impl FnMut(Item, u64) {
    move |item, next_id| match item {
        Item::Frame(frame) => outgoing.push(frame),
        Item::Missed(count) if reports_gaps => {
            outgoing.push(text(&events::gap(count, next_id)));
        }
        Item::Feed(feed) if reports_gaps => {
            outgoing.push(text(&events::feed(feed)));
        }
        // Clients of prologic/msgbus expect every frame to be a message.
        Item::Missed(_) | Item::Feed(_) => {}
    }
}

fn text(text: &str) -> Frame {
    Frame::text(text.len(), |out| out.extend_from_slice(text.as_bytes()))
}

impl Delivery for Push {
    fn deliver(&self) -> bool {
        // If it is locked, the session is woken: it may have looked at the topic already.
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
                // The session will get the same result.
                Poll::Ready(Err(_)) => return false,
            }
            write_now(stream, outgoing);
        }
        false
    }
}
