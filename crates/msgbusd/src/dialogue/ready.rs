//! The queue of activities that were woken.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    task::{Wake, Waker},
};

use parking_lot::Mutex;

/// The keys of the activities of one connection that are to be polled, in turn; and the waker of its task.
#[derive(Debug, Default)]
pub(super) struct ReadyQueue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    keys: VecDeque<usize>,
    task: Option<Waker>,
}

/// Wakes one activity.
#[derive(Debug)]
pub(super) struct Signal {
    queue: Arc<ReadyQueue>,
    key: usize,
    /// Whether the key is in the queue.
    is_queued: AtomicBool,
}

impl ReadyQueue {
    /// Sets the task that serves the queue.
    pub(super) fn register(&self, task: &Waker) {
        let mut state = self.0.lock();
        if !state.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            state.task = Some(task.clone());
        }
    }

    pub(super) fn pop(&self) -> Option<usize> {
        let mut state = self.0.lock();
        let key = state.keys.pop_front();
        if state.keys.is_empty() && state.keys.capacity() > 64 {
            state.keys = VecDeque::new();
        }
        key
    }

    /// Undoes a [`pop`](Self::pop), after which the activity was not polled.
    pub(super) fn put_back(&self, key: usize) {
        self.0.lock().keys.push_front(key);
    }
}

impl Signal {
    pub(super) fn new(queue: &Arc<ReadyQueue>, key: usize) -> Arc<Self> {
        Arc::new(Self { queue: Arc::clone(queue), key, is_queued: AtomicBool::new(false) })
    }

    /// Call this after the key was taken out of the queue, and before the activity is polled.
    pub(super) fn taken(&self) {
        self.is_queued.swap(false, AcqRel);
    }

    /// Queues the activity for another turn, without waking the task, which is running.
    pub(super) fn queue(&self) {
        if !self.is_queued.swap(true, AcqRel) {
            self.queue.0.lock().keys.push_back(self.key);
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_queued.swap(true, AcqRel) {
            return;
        }
        let mut state = self.queue.0.lock();
        state.keys.push_back(self.key);
        let task = state.task.clone();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }
}
