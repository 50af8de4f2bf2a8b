//! Waking tasks across threads, and delivering for them without a wake.
//!
//! Each thread that serves connections has a runtime and a [`WakeQueue`] of its own. A publish wakes everybody
//! who waits for it, and a wake of another thread's task is a system call, after which that thread has to be
//! scheduled first. So such wakes are queued at the thread, and only the first of them calls: one call for all
//! that are queued until the thread looks.
//!
//! A task may have a [`Delivery`]: what it does when it is woken, so that any thread can do it in its place. The
//! thread that publishes delivers to its own tasks and to those of threads that sleep; tasks of threads that are
//! awake are left to them. When a thread cannot keep up with that, the threads that sleep are woken to deliver to
//! their own.

use std::{
    cell::{Cell, OnceCell},
    collections::VecDeque,
    fmt::Debug,
    future::poll_fn,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;
use tokio::task::yield_now;

/// How many wakes are carried out before the thread looks for what else has come. A delivery takes a few
/// microseconds.
const SLICE: usize = 32;
/// How many are carried out before the publisher has its answer.
const SLICE_BEFORE_ANSWER: usize = 16;

thread_local! {
    /// This thread, if it has a queue.
    static HERE: OnceCell<Here> = const { OnceCell::new() };
}

/// A thread with a queue.
#[derive(Debug)]
struct Here {
    queue: Arc<WakeQueue>,
    /// How often it has published since it slept.
    publishes: Cell<usize>,
    /// Whether it published once at most between the last times that it slept.
    publishes_seldom: Cell<bool>,
}

/// What can be done for a task instead of waking it.
pub(crate) trait Delivery: Debug + Send + Sync {
    /// Does it without blocking. `false` when the task has to be woken after all.
    fn deliver(&self) -> bool;
}

/// The wakes that one thread is to carry out.
#[derive(Debug, Default)]
pub(crate) struct WakeQueue {
    pending: Mutex<Pending>,
    /// Whether the thread waits for events, as far as is known.
    is_asleep: AtomicBool,
    /// Whether wakes are left that there was no time for.
    is_behind: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    tasks: VecDeque<Arc<RemoteTask>>,
    /// Of the one who drives the queue; taken when it is woken.
    driver: Option<Waker>,
}

impl WakeQueue {
    /// Drives the queue of this thread for ever: to be run by the thread's runtime, and by no other.
    pub(crate) async fn drive() {
        let queue = HERE.with(|here| Arc::clone(&here.get_or_init(Here::new).queue));
        let mut tasks = VecDeque::new();
        loop {
            poll_fn(|cx| queue.poll_pending(cx, &mut tasks)).await;
            while !tasks.is_empty() {
                for task in tasks.drain(..SLICE.min(tasks.len())) {
                    task.carry_out();
                }
                queue.is_behind.store(!tasks.is_empty(), Relaxed);
                yield_now().await;
            }
        }
    }

    /// To be called when the thread is about to wait for events.
    pub(crate) fn thread_sleeps() {
        HERE.with(|here| {
            let Some(Here { queue, publishes, publishes_seldom }) = here.get() else { return };
            queue.is_asleep.store(true, Relaxed);
            match publishes.take() {
                0 => {}
                count => publishes_seldom.set(count == 1),
            }
        });
    }

    /// To be called when it has waited.
    pub(crate) fn thread_is_awake() {
        HERE.with(|here| {
            if let Some(here) = here.get() {
                here.queue.is_asleep.store(false, Relaxed);
            }
        });
    }

    /// Takes all pending wakes, in exchange for an empty list: nothing is allocated for a wake.
    fn poll_pending(
        &self,
        cx: &mut Context<'_>,
        tasks: &mut VecDeque<Arc<RemoteTask>>,
    ) -> Poll<()> {
        let mut pending = self.pending.lock();
        if pending.tasks.is_empty() {
            pending.driver = Some(cx.waker().clone());
            return Poll::Pending;
        }
        std::mem::swap(&mut pending.tasks, tasks);
        Poll::Ready(())
    }

    fn enqueue(&self, task: Arc<RemoteTask>) {
        let mut pending = self.pending.lock();
        pending.tasks.push_back(task);
        let driver = pending.driver.take();
        drop(pending);
        if let Some(driver) = driver {
            self.is_asleep.store(false, Relaxed);
            driver.wake();
        }
    }
}

impl Here {
    fn new() -> Self {
        Self { queue: Arc::default(), publishes: Cell::new(0), publishes_seldom: Cell::new(true) }
    }
}

/// To be called after a publish, before its answer. Where there are few publishes the first deliveries are made
/// now: the answer would come between. Where there are many, all deliveries come after the publishes that are
/// there already, so that messages go out together.
pub(crate) fn published() {
    HERE.with(|here| {
        let Some(Here { queue, publishes, publishes_seldom }) = here.get() else { return };
        let is_first = publishes.replace(publishes.get().saturating_add(1)) == 0;
        if !is_first || !publishes_seldom.get() || queue.is_behind.load(Relaxed) {
            return;
        }
        for _ in 0..SLICE_BEFORE_ANSWER {
            let task = queue.pending.lock().tasks.pop_front();
            let Some(task) = task else { return };
            task.carry_out();
        }
    });
}

/// A task and the queue of its thread.
#[derive(Debug)]
struct RemoteTask {
    home: Arc<WakeQueue>,
    waker: Waker,
    delivery: Option<Weak<dyn Delivery>>,
}

impl RemoteTask {
    /// Delivers for the task, or wakes it.
    fn carry_out(&self) {
        let delivery = self.delivery.as_ref().and_then(Weak::upgrade);
        if !delivery.is_some_and(|delivery| delivery.deliver()) {
            self.waker.wake_by_ref();
        }
    }
}

impl Wake for RemoteTask {
    fn wake(self: Arc<Self>) {
        let home = Arc::clone(&self.home);
        // While a thread ends it has none.
        let here = HERE.try_with(|here| Some(Arc::clone(&here.get()?.queue))).ok().flatten();
        let Some(here) = here else { return home.enqueue(self) };
        let is_local = Arc::ptr_eq(&here, &home);
        if self.delivery.is_none() {
            if is_local { self.waker.wake_by_ref() } else { home.enqueue(self) }
        } else if is_local || (home.is_asleep.load(Relaxed) && !here.is_behind.load(Relaxed)) {
            here.enqueue(self);
        } else {
            home.enqueue(self);
        }
    }
}

/// Polls for one task what another thread may make ready.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    delivery: Option<Weak<dyn Delivery>>,
    task: Option<(Arc<RemoteTask>, Waker)>,
}

impl Relay {
    /// For a task for which other threads can deliver.
    pub(crate) fn with_delivery(delivery: Weak<dyn Delivery>) -> Self {
        Self { delivery: Some(delivery), task: None }
    }

    /// The waker of the task that has polled last, where its thread has a queue.
    pub(crate) fn task(&self) -> Option<Waker> {
        self.task.as_ref().map(|(task, _)| task.waker.clone())
    }

    /// Polls with a waker that goes by the queue of this thread, where it has one.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.task.as_ref().is_some_and(|(task, _)| task.waker.will_wake(cx.waker())) {
            self.task = HERE.with(|here| {
                let (home, waker) = (Arc::clone(&here.get()?.queue), cx.waker().clone());
                let delivery = self.delivery.clone();
                let task = Arc::new(RemoteTask { home, waker, delivery });
                Some((Arc::clone(&task), Waker::from(task)))
            });
        }
        match &self.task {
            Some((_, waker)) => poll(&mut Context::from_waker(waker)),
            None => poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{atomic::AtomicUsize, mpsc},
        thread,
        time::Duration,
    };

    use tokio::runtime::Handle;

    use super::*;
    use crate::net::workers::Workers;

    const SOON: Duration = Duration::from_secs(60);

    /// Something published to one task.
    #[derive(Debug, Default)]
    struct Topic {
        waker: Mutex<Option<Waker>>,
        is_refused: AtomicBool,
        delivered: Mutex<Vec<Option<String>>>,
        polls: AtomicUsize,
    }

    impl Topic {
        fn wake(&self) {
            self.waker.lock().take().unwrap().wake();
        }
    }

    impl Delivery for Topic {
        fn deliver(&self) -> bool {
            self.delivered.lock().push(thread::current().name().map(str::to_owned));
            !self.is_refused.load(Relaxed)
        }
    }

    async fn follow(topic: Arc<Topic>) {
        let delivery: Weak<dyn Delivery> = Arc::downgrade(&topic) as _;
        let mut relay = Relay::with_delivery(delivery);
        poll_fn(|cx| {
            topic.polls.fetch_add(1, Relaxed);
            relay.poll(cx, |cx| {
                *topic.waker.lock() = Some(cx.waker().clone());
                Poll::<()>::Pending
            })
        })
        .await;
    }

    /// Runs something on a thread and waits for it.
    fn on<T: Send + 'static>(thread: &Handle, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        thread.spawn(async move { tell.send(act()) });
        told.recv_timeout(SOON).unwrap()
    }

    fn until(mut is_so: impl FnMut() -> bool) {
        while !is_so() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Two threads, of which the first has a task that waits, and its queue.
    fn start() -> (Workers, Arc<Topic>, Arc<WakeQueue>) {
        let workers = Workers::pinned(2).unwrap();
        let topic = Arc::new(Topic::default());
        let home = &workers.runtimes()[0];
        let queue = on(home, || HERE.with(|here| Arc::clone(&here.get_or_init(Here::new).queue)));
        home.spawn(follow(Arc::clone(&topic)));
        until(|| topic.waker.lock().is_some() && queue.is_asleep.load(Relaxed));
        (workers, topic, queue)
    }

    fn wake_from(workers: &Workers, thread: usize, topic: &Arc<Topic>) {
        let topic = Arc::clone(topic);
        on(&workers.runtimes()[thread], move || topic.wake());
    }

    #[test]
    fn a_sleeping_thread_is_not_woken_for_a_delivery() {
        let (workers, topic, _) = start();
        wake_from(&workers, 1, &topic);
        until(|| !topic.delivered.lock().is_empty());
        assert_eq!(*topic.delivered.lock(), [Some("worker-1".to_owned())]);
        assert_eq!(topic.polls.load(Relaxed), 1);
    }

    #[test]
    fn a_delivery_that_is_refused_wakes_the_task() {
        let (workers, topic, _) = start();
        topic.is_refused.store(true, Relaxed);
        wake_from(&workers, 1, &topic);
        until(|| topic.polls.load(Relaxed) == 2);
        assert_eq!(*topic.delivered.lock(), [Some("worker-1".to_owned())]);
    }

    #[test]
    fn a_thread_that_is_awake_delivers_to_its_own() {
        let (workers, topic, queue) = start();
        let (go_on, may_go_on) = mpsc::channel();
        workers.runtimes()[0].spawn(async move {
            let _ = may_go_on.recv_timeout(SOON);
        });
        until(|| !queue.is_asleep.load(Relaxed));
        wake_from(&workers, 1, &topic);
        assert_eq!(queue.pending.lock().tasks.len(), 1);
        go_on.send(()).unwrap();
        until(|| !topic.delivered.lock().is_empty());
        assert_eq!(*topic.delivered.lock(), [Some("worker-0".to_owned())]);
    }

    #[test]
    fn a_thread_without_a_queue_leaves_it_to_the_task_s() {
        let (_workers, topic, _) = start();
        topic.wake();
        until(|| !topic.delivered.lock().is_empty());
        assert_eq!(*topic.delivered.lock(), [Some("worker-0".to_owned())]);
    }
}
