//! The publishes that wait to be sent, in order.

use std::{collections::VecDeque, ops::Deref, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{Pending, SLICE};

/// How much is sent between looks at what has been acknowledged, unless one slice is more.
const ROUND_MESSAGES: usize = 1024;
const ROUND_BYTES: usize = 1 << 20;

/// The permits of those that wait bound it.
#[derive(Debug)]
pub(super) struct Queue {
    /// `None` when nobody sends any more.
    waiting: Mutex<Option<VecDeque<Pending>>>,
    news: Notify,
    /// Shared by those that were handed over and are not answered.
    handed_over: Arc<()>,
}

impl Default for Queue {
    fn default() -> Self {
        let waiting = Mutex::new(Some(VecDeque::new()));
        Self { waiting, news: Notify::new(), handed_over: Arc::default() }
    }
}

/// Whoever takes from a queue. When it is dropped, nobody does any more.
pub(super) struct Taker(Arc<Queue>);

impl Deref for Taker {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.0
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Queue {
    /// There is to be only one.
    pub(super) fn taker(self: &Arc<Self>) -> Taker {
        Taker(Arc::clone(self))
    }

    pub(super) fn push(&self, publish: Pending) {
        if let Some(waiting) = &mut *self.waiting.lock() {
            waiting.push_back(publish);
        }
        self.wake();
    }

    /// Puts what is left of a publish before all others.
    pub(super) fn push_front(&self, publish: Pending) {
        if let Some(waiting) = &mut *self.waiting.lock() {
            waiting.push_front(publish);
        }
        self.wake();
    }

    /// Wakes whoever sends.
    pub(super) fn wake(&self) {
        self.news.notify_one();
    }

    /// Ready when something was put here since it was last.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.lock().as_ref().is_none_or(VecDeque::is_empty)
    }

    /// Takes what is sent next, at least one publish. `room`: for how many messages there is room.
    pub(super) fn next_round(&self, room: usize) -> Vec<Pending> {
        let (mut round, mut messages, mut bytes) = (Vec::new(), 0, 0);
        let mut waiting = self.waiting.lock();
        let Some(waiting) = &mut *waiting else { return round };
        while let Some(publish) = waiting.front() {
            let slice = publish.messages.as_slice().iter().take(SLICE);
            messages += slice.len();
            bytes += slice.map(|(_, payload)| payload.len()).sum::<usize>();
            let has_room = messages <= room.min(ROUND_MESSAGES) && bytes <= ROUND_BYTES;
            if !round.is_empty() && !has_room {
                break;
            }
            round.extend(waiting.pop_front());
        }
        round
    }

    pub(super) fn take_all(&self) -> VecDeque<Pending> {
        self.waiting.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Puts all that wait into another queue.
    pub(super) fn hand_over(&self, other: &Self) {
        for mut publish in self.take_all() {
            publish.handed_over = Some(Arc::clone(&self.handed_over));
            other.push(publish);
        }
    }

    /// Whether some that were handed over are not answered. Others must not overtake them.
    pub(super) fn has_handed_over(&self) -> bool {
        Arc::strong_count(&self.handed_over) > 1
    }

    /// Takes those that wait since then or longer, which are at the front.
    pub(super) fn take_older(&self, limit: Instant) -> VecDeque<Pending> {
        let mut waiting = self.waiting.lock();
        let Some(waiting) = &mut *waiting else { return VecDeque::new() };
        let count = waiting.iter().take_while(|publish| publish.since <= limit).count();
        waiting.drain(..count).collect()
    }

    /// Drops what waits, and what will come.
    fn close(&self) {
        let waiting = self.waiting.lock().take();
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(publishes: usize, messages: usize, bytes: usize) -> Queue {
        let queue = Queue::default();
        for _ in 0..publishes {
            queue.push(Pending::example(messages, bytes));
        }
        queue
    }

    #[test]
    fn a_round_is_bounded_by_messages_bytes_and_room() {
        for (queue, room, expected) in [
            (queue(3000, 1, 1), 4096, 1024),
            (queue(3000, 1, 1), 10, 10),
            (queue(3000, 1, 1 << 16), 4096, 16),
            (queue(10, 300, 1), 4096, 4),
            // One is sent in any case.
            (queue(10, 300, 1 << 20), 0, 1),
            (queue(2, 1, 1), 4096, 2),
        ] {
            assert_eq!(queue.next_round(room).len(), expected);
        }
    }

    #[test]
    fn those_that_wait_for_too_long_are_at_the_front() {
        let queue = queue(2, 1, 1);
        let limit = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        queue.push(Pending::example(1, 1));
        assert_eq!(queue.take_older(limit).len(), 2);
        assert_eq!(queue.take_older(limit).len(), 0);
        assert_eq!(queue.take_all().len(), 1);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_closed_queue_answers_what_comes() {
        let queue = queue(1, 1, 1);
        queue.close();
        queue.push(Pending::example(1, 1));
        assert!(queue.is_empty() && queue.next_round(1).is_empty());
    }
}
