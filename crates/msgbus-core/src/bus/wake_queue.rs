//! Wakes sleeping subscribers outside of all locks.
//!
//! A publisher takes all parked wakers of a topic in one step ([`Topic::take_wakers`]) and wakes a slice of
//! them itself. If the program runs a [`Driver`] as a task, the driver wakes the rest, so that a publish
//! costs the same for a hundred and for ten thousand subscribers. Without a driver the publisher wakes all.
//! Either way every waker that was taken is woken. This does not depend on a woken task being polled, which
//! is why a driver continues the chain and not the subscribers.
//!
//! [`Topic::take_wakers`]: crate::topic::Topic::take_wakers

use std::{
    cell::Cell,
    collections::VecDeque,
    convert::Infallible,
    mem::take,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

use crate::topic::{Parked, Wakers};

/// Wakers woken in one step.
const SLICE: usize = 128;
/// With more queued wakers than this the driver cannot keep up, and a publisher wakes its own.
const MAX_QUEUED: usize = 1 << 17;
/// Empty vectors kept for later publishes.
const MAX_SPARES: usize = 4;

thread_local! {
    /// An empty vector that the next publish of this thread swaps for a topic's parked wakers, so that a
    /// publish does not allocate in the steady state.
    static SPARE: Cell<Vec<Parked>> = const { Cell::new(Vec::new()) };
}

/// An empty vector with the capacity that an earlier publish of this thread needed.
pub(crate) fn spare() -> Vec<Parked> {
    // There is none while the thread ends.
    SPARE.try_with(Cell::take).unwrap_or_default()
}

fn keep_spare(emptied: Vec<Parked>) {
    // It cannot be kept while the thread ends.
    let _ = SPARE.try_with(|spare| spare.set(emptied));
}

/// Wakers that publishers have handed to a driver.
#[derive(Debug, Default)]
pub(crate) struct WakeQueue {
    state: Mutex<State>,
    /// A copy of `State::drivers` that publishers read without the lock.
    drivers: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Vec<Parked>>,
    /// Wakers in all batches.
    queued: usize,
    drivers: usize,
    /// The wakers of idle drivers, with their ids.
    idle: Vec<(u64, Waker)>,
    next_driver: u64,
    spares: Vec<Vec<Parked>>,
}

impl WakeQueue {
    /// Wakes all consumers, or a first slice if a driver wakes the rest.
    #[inline]
    pub(crate) fn wake(&self, wakers: Wakers) {
        let Wakers { parked, waiter } = wakers;
        if let Some(waiter) = waiter {
            waiter.wake();
        }
        if parked.capacity() > 0 {
            self.wake_parked(parked);
        }
    }

    fn wake_parked(&self, mut parked: Vec<Parked>) {
        wake_slice(&mut parked);
        if !parked.is_empty() {
            parked = self.hand_over(parked);
            while !parked.is_empty() {
                wake_slice(&mut parked);
            }
        }
        keep_spare(parked);
    }

    /// Hands wakers to a driver and returns an empty vector, or returns them for the caller to wake.
    fn hand_over(&self, parked: Vec<Parked>) -> Vec<Parked> {
        if self.drivers.load(Relaxed) == 0 {
            return parked;
        }
        let mut state = self.state.lock();
        if state.drivers == 0 || state.queued + parked.len() > MAX_QUEUED {
            return parked;
        }
        state.queued += parked.len();
        state.batches.push_back(parked);
        let spare = state.spares.pop().unwrap_or_default();
        let driver = state.idle.pop();
        drop(state);
        if let Some((_, driver)) = driver {
            driver.wake();
        }
        spare
    }

    /// Registers a driver. From now on it must be polled when it is woken.
    fn add_driver(&self) -> u64 {
        let mut state = self.state.lock();
        state.drivers += 1;
        state.next_driver += 1;
        self.drivers.store(state.drivers, Relaxed);
        state.next_driver
    }

    /// Wakes a slice of the queue. Ready if there may be more.
    fn wake_some(&self, driver: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        let Some(mut batch) = state.batches.pop_front() else {
            let replaced = state.park(driver, cx.waker());
            drop(state);
            drop(replaced);
            return Poll::Pending;
        };
        // Until it is back in the queue, only this driver knows of it.
        state.queued -= batch.len();
        drop(state);
        wake_slice(&mut batch);

        let mut state = self.state.lock();
        if !batch.is_empty() {
            state.queued += batch.len();
            state.batches.push_front(batch);
        } else if state.spares.len() < MAX_SPARES {
            state.spares.push(batch);
        }
        Poll::Ready(())
    }

    /// Unregisters a driver. The last one wakes what is left in the queue.
    fn remove(&self, driver: u64) {
        let mut state = self.state.lock();
        state.drivers -= 1;
        self.drivers.store(state.drivers, Relaxed);
        let own = state.idle.iter().position(|(id, _)| *id == driver);
        let own = own.map(|index| state.idle.swap_remove(index));
        let next = if state.batches.is_empty() { None } else { state.idle.pop() };
        let mut left = VecDeque::new();
        if state.drivers == 0 {
            left = take(&mut state.batches);
            state.queued = 0;
        }
        drop(state);
        drop(own);
        if let Some((_, next)) = next {
            next.wake();
        }
        for mut batch in left {
            while !batch.is_empty() {
                wake_slice(&mut batch);
            }
        }
    }
}

/// Wakes the queue, a slice at each poll. When dropped, it wakes what is left.
#[derive(Debug)]
pub(crate) struct Driver<'a> {
    queue: &'a WakeQueue,
    id: u64,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(queue: &'a WakeQueue) -> Self {
        Self { queue, id: queue.add_driver() }
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Infallible> {
        if self.queue.wake_some(self.id, cx).is_ready() {
            // Lets other tasks of the executor run first.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        self.queue.remove(self.id);
    }
}

impl State {
    /// Stores the waker of an idle driver. Returns the waker that it replaces, to be dropped without the lock.
    fn park(&mut self, driver: u64, waker: &Waker) -> Option<Waker> {
        match self.idle.iter_mut().find(|(id, _)| *id == driver) {
            Some((_, parked)) => Some(std::mem::replace(parked, waker.clone())),
            None => {
                self.idle.push((driver, waker.clone()));
                None
            }
        }
    }
}

/// Wakes from the end of the vector, so that nothing has to move.
fn wake_slice(parked: &mut Vec<Parked>) {
    let rest = parked.len().saturating_sub(SLICE);
    for parked in parked.drain(rest..) {
        parked.waker.wake();
    }
}
