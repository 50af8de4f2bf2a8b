//! Reads of the history that several followers share: after a doubt, all that were up to date want the same page at once.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

use super::{SharedEngine, messages::history};
use crate::{
    engine::{EngineError, Page},
    model::{Position, StartPosition, TopicName},
    options::BatchLimit,
};

type Outcome = Result<(Page, StartPosition), EngineError>;

/// How much is read at a time.
pub(crate) const PAGE: BatchLimit = BatchLimit { events: 1024, bytes: 1 << 20 };

/// The reads of a topic that have no answer yet, by the sequence at which they begin.
#[derive(Debug, Default)]
pub(super) struct Reads(Mutex<BTreeMap<u64, Weak<Read>>>);

impl Reads {
    /// Reads a page, or joins who reads it already.
    pub(super) fn join(&self, engine: &SharedEngine, name: &TopicName, from: u64) -> Arc<Read> {
        let mut reads = self.0.lock();
        if let Some(read) = reads.get(&from).and_then(Weak::upgrade)
            && !read.is_over()
        {
            return read;
        }
        reads.retain(|_, read| read.strong_count() > 0);
        let (engine, name) = (engine.clone(), name.clone());
        let reading = async move { history(&engine, &name, Position::Id(from), PAGE).await };
        let read = Arc::new(Read {
            state: Mutex::new(State::Reading(Box::pin(reading))),
            waiting: Mutex::default(),
        });
        reads.insert(from, Arc::downgrade(&read));
        read
    }
}

/// A read of the history. It goes on as long as somebody waits for it.
pub(crate) struct Read {
    state: Mutex<State>,
    /// Locked after the state, and alone when the engine wakes them.
    waiting: Mutex<Vec<Waker>>,
}

enum State {
    Reading(Pin<Box<dyn Future<Output = Outcome> + Send>>),
    Over(Outcome),
}

impl Read {
    fn is_over(&self) -> bool {
        matches!(*self.state.lock(), State::Over(_))
    }

    pub(crate) fn poll(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Outcome> {
        let mut state = self.state.lock();
        let reading = match &mut *state {
            State::Over(outcome) => return Poll::Ready(outcome.clone()),
            State::Reading(reading) => reading,
        };
        // Before the engine is asked, so that no wake-up is lost.
        let mut waiting = self.waiting.lock();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        drop(waiting);
        let all = Waker::from(Arc::clone(self));
        let Poll::Ready(outcome) = reading.as_mut().poll(&mut Context::from_waker(&all)) else {
            return Poll::Pending;
        };
        *state = State::Over(outcome.clone());
        drop(state);
        all.wake();
        Poll::Ready(outcome)
    }
}

impl Wake for Read {
    fn wake(self: Arc<Self>) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}
