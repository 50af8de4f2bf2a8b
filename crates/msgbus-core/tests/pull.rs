//! Pulling: the queue of waiting pulls, and peeking.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use msgbus_core::{
    BatchLimit, MessageBus, Options, Position, RecvError, SubscribeError, TopicName,
};

/// More time than any passing test needs.
const SOON: Duration = Duration::from_secs(20);

fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

const ONE: BatchLimit = BatchLimit { events: 1, bytes: usize::MAX };

#[test]
fn waiting_pulls_are_served_in_order_and_one_message_wakes_one() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let wakes: Vec<_> = (0..3).map(|_| Arc::new(Wakes::default())).collect();
    let wakers: Vec<_> = wakes.iter().map(|wakes| Waker::from(Arc::clone(wakes))).collect();
    let mut waiting: Vec<_> = wakers
        .iter()
        .map(|waker| {
            let mut pull = Box::pin(bus.pull_wait(&topic, ONE).unwrap());
            assert!(pull.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
            pull
        })
        .collect();
    let woken = || wakes.iter().map(|wakes| wakes.0.load(SeqCst)).collect::<Vec<_>>();
    let mut poll = |waiter: usize| {
        let pull = waiting[waiter].as_mut();
        match pull.poll(&mut Context::from_waker(&wakers[waiter])) {
            Poll::Ready(messages) => Some(messages.unwrap()[0].id()),
            Poll::Pending => None,
        }
    };
    bus.put(&topic, "0").unwrap();
    bus.put(&topic, "1").unwrap();
    assert_eq!(woken(), [1, 0, 0]);
    assert_eq!(poll(2), None, "it is not its turn");
    assert_eq!(poll(0), Some(0));
    drop(waiting.remove(0));
    assert_eq!(woken(), [1, 1, 0], "the turn passes on");

    // The first in the queue leaves without taking.
    drop(waiting.remove(0));
    assert_eq!(woken(), [1, 1, 1]);
    let last = waiting[0].as_mut().poll(&mut Context::from_waker(&wakers[2]));
    assert!(matches!(last, Poll::Ready(Ok(messages)) if messages[0].id() == 1));
}

#[test]
fn no_message_is_lost_or_repeated_when_waiting_pulls_are_dropped() {
    const COUNT: u64 = 3_000;
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let limit = BatchLimit { events: 3, bytes: usize::MAX };
    let taken = AtomicUsize::new(0);
    let all: Vec<u64> = thread::scope(|scope| {
        let pullers: Vec<_> = (0..6)
            .map(|n| {
                let (bus, topic, taken) = (&bus, &topic, &taken);
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    while taken.load(SeqCst) < usize::try_from(COUNT).unwrap() {
                        // Some are dropped before a message comes, some while it comes.
                        let patience = Duration::from_micros(20 * n);
                        let pull = bus.pull_wait(topic, limit).unwrap();
                        if let Some(messages) = pull.wait_timeout(patience).unwrap() {
                            assert!(messages.len() <= 3);
                            taken.fetch_add(messages.len(), SeqCst);
                            mine.extend(messages.iter().map(msgbus_core::Message::id));
                        }
                    }
                    assert!(mine.is_sorted());
                    mine
                })
            })
            .collect();
        for n in 0..COUNT {
            bus.put(&topic, "x").unwrap();
            if n % 7 == 0 {
                thread::sleep(Duration::from_micros(50));
            }
        }
        pullers.into_iter().flat_map(|puller| puller.join().unwrap()).collect()
    });
    let unique: HashSet<u64> = all.iter().copied().collect();
    assert_eq!((all.len() as u64, unique.len() as u64), (COUNT, COUNT));
    assert_eq!(bus.topic(&topic).unwrap().waiters, 0);
}

#[test]
fn a_waiting_pull_ends_with_its_deadline_its_topic_or_its_bus() {
    let bus = MessageBus::new(Options::default());
    let wait = || bus.pull_wait(&name("t"), ONE).unwrap();
    assert_eq!(wait().wait_timeout(Duration::from_millis(10)), Ok(None));
    let pull = wait();
    bus.delete(&name("t")).wait().unwrap();
    assert_eq!(pull.wait_timeout(SOON), Err(RecvError::Deleted));
    let (first, second) = (wait(), wait());
    bus.put(&name("t"), "left").unwrap();
    bus.close().unwrap();
    assert_eq!(first.wait_timeout(SOON).unwrap().unwrap()[0].payload(), "left");
    assert_eq!(second.wait_timeout(SOON), Err(RecvError::Closed));
    assert_eq!(bus.pull_wait(&name("t"), ONE).err(), Some(SubscribeError::Closed));
}

#[test]
fn peeking_takes_nothing() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let limit = BatchLimit { events: 2, bytes: usize::MAX };
    assert_eq!(bus.peek(&topic, None, limit).wait().unwrap(), None);
    for n in 0..4 {
        bus.put(&topic, n.to_string()).unwrap();
    }
    bus.get(&topic).unwrap().unwrap();
    let ids = |from| {
        let peek = bus.peek(&topic, from, limit).wait().unwrap().unwrap();
        peek.messages().map(msgbus_core::Message::id).collect::<Vec<_>>()
    };
    assert_eq!(ids(None), [1, 2]);
    assert_eq!(ids(None), [1, 2]);
    assert_eq!(ids(Some(Position::All)), [0, 1]);
    assert_eq!(ids(Some(Position::Id(3))), [3]);
    assert!(ids(Some(Position::New)).is_empty());
    let nothing = bus.peek(&topic, Some(Position::New), limit).wait().unwrap().unwrap();
    assert_eq!((nothing.epoch, nothing.start.next_id), (bus.topic(&topic).unwrap().topic.epoch, 4));
    assert_eq!(bus.get(&topic).unwrap().unwrap().id(), 1);
}

#[test]
fn a_pull_that_lost_its_permission_leaves_the_message_to_the_next() {
    let bus = MessageBus::new(Options::default());
    let topic = name("t");
    let one = BatchLimit { events: 1, bytes: usize::MAX };
    let mut revoked = bus.pull_wait(&topic, one).unwrap();
    let mut next = bus.pull_wait(&topic, one).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(revoked.poll_allowed(&mut cx, || true).is_pending());
    bus.put(&topic, "x").unwrap();
    let taken = revoked.poll_allowed(&mut cx, || false);
    assert!(matches!(taken, Poll::Ready(Ok(messages)) if messages.is_empty()));
    drop(revoked);
    let taken = next.poll_allowed(&mut cx, || true);
    assert!(matches!(taken, Poll::Ready(Ok(messages)) if messages[0].payload() == "x"));
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}
