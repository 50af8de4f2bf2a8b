//! Waking those whom a publish found asleep, outside every lock.
//!
//! A publisher takes all parked wakers of a topic in one step ([`Topic::take_wakers`]) and wakes a
//! slice of them itself. With a [`Driver`], which a program runs as a task, the
//! rest is left to it, so that a publish costs the same for a hundred and for ten thousand
//! subscribers. Without one the publisher wakes them all. Either way each waker that was taken is woken:
//! nothing depends on whether a woken task is polled or dropped. That is why it is a driver that continues
//! the chain and not the subscribers.
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

use crate::topic::{Parked, Wakes};

/// How many are woken in one go.
const SLICE: usize = 128;
/// Beyond this many waiting wakers a publisher wakes its own itself: the driver cannot keep up.
const MAX_QUEUED: usize = 1 << 17;
/// Emptied vectors that are kept for later publishes.
const MAX_SPARES: usize = 4;

thread_local! {
    /// An empty vector that the next publish of this thread swaps for a topic's parked wakers: in
    /// the steady state no publish allocates.
    static SPARE: Cell<Vec<Parked>> = const { Cell::new(Vec::new()) };
}

/// An empty vector, with whatever capacity an earlier publish of this thread has left.
pub(crate) fn spare() -> Vec<Parked> {
    // While a thread ends there is none.
    SPARE.try_with(Cell::take).unwrap_or_default()
}

fn keep_spare(emptied: Vec<Parked>) {
    // While a thread ends there is nowhere to keep it.
    let _ = SPARE.try_with(|spare| spare.set(emptied));
}

/// Wakers that publishers have left to a driver.
#[derive(Debug, Default)]
pub(crate) struct WakeQueue {
    state: Mutex<State>,
    /// Mirrors `State::drivers`: publishers ask without the lock.
    drivers: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Vec<Parked>>,
    /// Wakers in all batches.
    queued: usize,
    drivers: usize,
    /// The wakers of drivers that have nothing to do, by their ids.
    idle: Vec<(u64, Waker)>,
    next_driver: u64,
    spares: Vec<Vec<Parked>>,
}

impl WakeQueue {
    /// Wakes everybody, or a first slice where a driver wakes the rest.
    #[inline]
    pub(crate) fn wake(&self, wakes: Wakes) {
        let Wakes { parked, waiter } = wakes;
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

    /// Leaves wakers to a driver. What comes back is empty, or to be woken by the caller.
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

    /// Makes a driver known: from now on it has to be polled when it is woken.
    fn add_driver(&self) -> u64 {
        let mut state = self.state.lock();
        state.drivers += 1;
        state.next_driver += 1;
        self.drivers.store(state.drivers, Relaxed);
        state.next_driver
    }

    /// Wakes a slice of those who were left; ready when there may be more.
    fn wake_some(&self, driver: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        let Some(mut batch) = state.batches.pop_front() else {
            let replaced = state.park(driver, cx.waker());
            drop(state);
            drop(replaced);
            return Poll::Pending;
        };
        // Until it is back in the queue, this driver alone answers for it.
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

    /// Forgets a driver. What the last one leaves is woken here.
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

/// Wakes whom publishers leave to it, a slice at each poll. What is left when it is dropped, it wakes then.
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
            // Others on the same executor come first.
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
    /// Remembers the waker of an idle driver. The one that it replaces is to be dropped without the lock.
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

/// Wakes from the end, where taking out moves nothing.
fn wake_slice(parked: &mut Vec<Parked>) {
    let rest = parked.len().saturating_sub(SLICE);
    for parked in parked.drain(rest..) {
        parked.waker.wake();
    }
}
