//! The hand-over of requests from requesters to responders, in every order in which their tasks can run: nobody waits for
//! a wake that does not come, and each requester has one outcome.
//!
//! The state of a service is behind one lock, and each poll, reply and drop takes it once. So an interleaving is an order of
//! these steps, and a task that was woken may run at any later one. All orders are tried, with the code itself instead
//! of a model of its locks.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake},
};

use msgbus_core::{BatchLimit, MessageBus, NewRequest, Options, Request, RequestError, TopicName};

/// Whether a task has been woken since it was last polled.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
    is_done: bool,
    /// Whether it has to end. A responder may be left waiting.
    must_end: bool,
}

/// Tries all orders, one after the other: each is a list of choices, of which the last one is changed first.
#[derive(Default)]
struct Orders {
    /// The choice at each step, and how many there were.
    choices: Vec<(usize, usize)>,
    step: usize,
}

impl Orders {
    fn choose(&mut self, count: usize) -> usize {
        if self.step == self.choices.len() {
            self.choices.push((0, count));
        }
        let (choice, same_count) = self.choices[self.step];
        assert_eq!(count, same_count, "a run depends on its choices alone");
        self.step += 1;
        choice
    }

    /// Goes on to the next order. Returns whether there is one.
    fn advance(&mut self) -> bool {
        self.step = 0;
        while let Some((choice, count)) = self.choices.pop() {
            if choice + 1 < count {
                self.choices.push((choice + 1, count));
                return true;
            }
        }
        false
    }
}

/// One run: a bus, and the tasks that use it.
struct Run {
    bus: MessageBus,
    tasks: RefCell<Vec<Task>>,
    /// The outcomes of the requests, by their payloads.
    outcomes: RefCell<Vec<(u8, Result<u8, RequestError>)>>,
    /// The payloads of requests, as often as they were handed out.
    handed: RefCell<Vec<u8>>,
    not_wanted: Cell<u64>,
}

fn service() -> TopicName {
    "s".parse().unwrap()
}

/// Lets other tasks run.
async fn pause() {
    let mut is_second = false;
    poll_fn(|cx| {
        if is_second {
            return Poll::Ready(());
        }
        is_second = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Run {
    fn spawn(&self, must_end: bool, future: impl Future<Output = ()> + 'static) {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let task = Task { future: Box::pin(future), woken, is_done: false, must_end };
        self.tasks.borrow_mut().push(task);
    }

    /// A requester that waits for the outcome.
    fn ask(self: &Rc<Self>, payload: u8, may_repeat: bool) {
        let run = Rc::clone(self);
        self.spawn(true, async move {
            let request = NewRequest::new(vec![payload]);
            let request = if may_repeat { request.may_repeat() } else { request };
            let outcome = run.bus.request(&service(), request).await;
            let outcome = outcome.map(|reply| reply.payload[0]);
            run.outcomes.borrow_mut().push((payload, outcome));
        });
    }

    /// A requester that leaves after it has begun to wait.
    fn ask_and_leave(self: &Rc<Self>, payload: u8) {
        let run = Rc::clone(self);
        self.spawn(true, async move {
            let mut pending = pin!(run.bus.request(&service(), vec![payload]));
            poll_fn(|cx| {
                let _ = pending.as_mut().poll(cx);
                Poll::Ready(())
            })
            .await;
            pause().await;
        });
    }

    /// A responder that serves `count` times, up to `max` requests each.
    fn serve(self: &Rc<Self>, count: usize, max: usize, act: fn(&Run, Request)) {
        let run = Rc::clone(self);
        self.spawn(false, async move {
            for _ in 0..count {
                let limit = BatchLimit { events: max, ..BatchLimit::ONE };
                let Ok(serving) = run.bus.serve(&service(), limit) else { return };
                let Ok(requests) = serving.await else { return };
                for request in requests {
                    run.handed.borrow_mut().push(request.payload()[0]);
                    pause().await;
                    act(&run, request);
                }
            }
        });
    }

    /// A responder that leaves after it has begun to wait, even if it could have a request by then.
    fn serve_and_leave(self: &Rc<Self>) {
        let run = Rc::clone(self);
        self.spawn(false, async move {
            let mut serving = pin!(run.bus.serve(&service(), BatchLimit::ONE).unwrap());
            poll_fn(|cx| match serving.as_mut().poll(cx) {
                // It gives back what it has got at once.
                Poll::Ready(requests) => {
                    requests.unwrap().into_iter().for_each(Request::put_back);
                    Poll::Ready(())
                }
                Poll::Pending => Poll::Ready(()),
            })
            .await;
            pause().await;
        });
    }

    /// Replies with the payload.
    fn reply(&self, request: Request) {
        let payload = request.payload().clone();
        if request.reply(payload).is_err() {
            self.not_wanted.set(self.not_wanted.get() + 1);
        }
    }

    /// Runs all tasks in the next order.
    fn run(&self, orders: &mut Orders) {
        let mut tasks = self.tasks.take();
        loop {
            let is_ready = |task: &&mut Task| !task.is_done && task.woken.0.load(SeqCst);
            let mut ready: Vec<&mut Task> = tasks.iter_mut().filter(is_ready).collect();
            if ready.is_empty() {
                break;
            }
            let choice = orders.choose(ready.len());
            let task = &mut *ready[choice];
            task.woken.0.store(false, SeqCst);
            let waker = Arc::clone(&task.woken).into();
            task.is_done = task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        }
        let is_lost = tasks.iter().any(|task| task.must_end && !task.is_done);
        assert!(!is_lost, "a requester waits for ever, after {:?}", orders.choices);
        // The responders that still wait leave.
        drop(tasks);
        self.check();
    }

    /// What holds after every run.
    fn check(&self) {
        for (payload, outcome) in &*self.outcomes.borrow() {
            assert!(outcome.as_ref().is_ok_and(|reply| reply == payload) || outcome.is_err());
        }
        let stats = self.bus.service(&service()).unwrap();
        assert_eq!((stats.queued, stats.in_hand, stats.responders), (0, 0, 0));
        let counters = stats.counters;
        let over = counters.replied + counters.failed + counters.timed_out + counters.refused;
        assert_eq!(counters.asked, over + counters.given_up, "{counters:?}");
        assert_eq!(counters.not_wanted, self.not_wanted.get());
        let replied = self.outcomes.borrow().iter().filter(|(_, outcome)| outcome.is_ok()).count();
        // A requester may leave although its reply is there.
        assert!(counters.replied >= replied as u64);
        assert_eq!(self.bus.stats().bytes, 0);
    }
}

/// Makes the same tasks for every order, and checks what has become of them.
fn in_every_order(tasks: impl Fn(&Rc<Run>), check: impl Fn(&Run)) {
    let (mut orders, mut count) = (Orders::default(), 0);
    loop {
        let run = Rc::new(Run {
            bus: MessageBus::new(Options::default()),
            tasks: RefCell::default(),
            outcomes: RefCell::default(),
            handed: RefCell::default(),
            not_wanted: Cell::default(),
        });
        // The service counts as served from here on.
        drop(run.bus.serve(&service(), BatchLimit::ONE).unwrap());
        tasks(&run);
        run.run(&mut orders);
        check(&run);
        count += 1;
        if !orders.advance() {
            break;
        }
    }
    assert!(count > 10, "only {count} orders");
}

fn all_replied(run: &Run) {
    let outcomes = run.outcomes.borrow();
    assert!(outcomes.iter().all(|(payload, outcome)| outcome == &Ok(*payload)), "{outcomes:?}");
}

#[test]
fn each_requester_gets_its_own_reply() {
    let tasks = |run: &Rc<Run>| {
        run.ask(1, false);
        run.ask(2, false);
        run.serve(2, 1, Run::reply);
        run.serve(1, 2, Run::reply);
    };
    in_every_order(tasks, all_replied);
}

#[test]
fn a_responder_that_leaves_while_it_waits_takes_nothing() {
    let tasks = |run: &Rc<Run>| {
        run.serve_and_leave();
        run.serve_and_leave();
        run.ask(1, false);
        run.serve(1, 1, Run::reply);
    };
    in_every_order(tasks, all_replied);
}

#[test]
fn a_request_that_may_be_repeated_outlasts_its_responder() {
    let tasks = |run: &Rc<Run>| {
        run.ask(1, true);
        run.serve(1, 1, |_, request| drop(request));
        run.serve(2, 1, Run::reply);
    };
    in_every_order(tasks, all_replied);
}

#[test]
fn another_request_fails_at_once_and_is_handed_out_once() {
    let tasks = |run: &Rc<Run>| {
        run.ask(1, false);
        run.serve(1, 1, |_, request| drop(request));
        run.serve(2, 1, Run::reply);
    };
    let check = |run: &Run| {
        assert_eq!(*run.handed.borrow(), [1]);
        let outcome = run.outcomes.borrow()[0].1.clone();
        assert!(matches!(outcome, Ok(1) | Err(RequestError::ResponderGone)), "{outcome:?}");
    };
    in_every_order(tasks, check);
}

#[test]
fn a_requester_that_leaves_holds_up_nobody() {
    let tasks = |run: &Rc<Run>| {
        run.ask_and_leave(1);
        run.ask(2, false);
        run.serve(2, 1, Run::reply);
        run.serve_and_leave();
    };
    in_every_order(tasks, all_replied);
}

#[test]
fn a_closed_bus_ends_everybody_s_wait() {
    let tasks = |run: &Rc<Run>| {
        run.ask(1, true);
        run.serve(1, 1, Run::reply);
        run.serve(1, 1, |_, request| drop(request));
        let other = Rc::clone(run);
        run.spawn(true, async move {
            pause().await;
            other.bus.close().unwrap();
        });
    };
    let check = |run: &Run| {
        let outcome = run.outcomes.borrow()[0].1.clone();
        assert!(matches!(outcome, Ok(1) | Err(RequestError::Closed)), "{outcome:?}");
    };
    in_every_order(tasks, check);
}
