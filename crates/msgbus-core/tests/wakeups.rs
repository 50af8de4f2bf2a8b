//! No wake-up is lost, whatever happens at the same moment: single messages, more messages than the topic keeps,
//! deletes, and subscriptions that are created, dropped and moved to other tasks.
//!
//! The next wake-up would hide a lost one. So after each step the publisher waits until every subscriber has
//! reached it: a subscriber that misses one wake-up sleeps for ever.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{
    env,
    hint::spin_loop,
    ops::ControlFlow,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use msgbus_core::{
    Event, LagPolicy, MessageBus, Options, Position, RecvError, SubscribeError, SubscribeOptions,
    Subscription, TopicName, TopicSettings,
};

const STEPS: u64 = 10_000;
const COLLISIONS: u64 = 150_000;
const FOLLOWERS: usize = 3;
const KEPT: u64 = 8;
/// More subscribers than a publish wakes by itself.
const CROWD: usize = 500;
const ROUNDS: usize = 150;
const SEED: u64 = 0x6d73_6762_7573;
/// More time than any passing test needs.
const SOON: Duration = Duration::from_secs(20);

fn seed() -> u64 {
    env::var("MSGBUS_TEST_SEED").map_or(SEED, |seed| seed.parse().unwrap())
}

fn small_bus() -> (MessageBus, TopicName) {
    let settings =
        TopicSettings { max_messages: usize::try_from(KEPT).unwrap(), ..TopicSettings::default() };
    let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
    (bus, "t".parse().unwrap())
}

/// How far a subscriber has come: the epoch and the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    life: u64,
    next: u64,
}

impl Place {
    fn to_bits(self) -> u64 {
        self.life << 32 | self.next
    }
}

/// Follows the topic across deletes, sometimes with a new subscription.
struct Follower<'a> {
    bus: &'a MessageBus,
    topic: &'a TopicName,
    rng: Rng,
    place: Place,
    subscription: Subscription,
}

impl<'a> Follower<'a> {
    fn new(bus: &'a MessageBus, topic: &'a TopicName, rng: Rng) -> Self {
        let subscription = bus.subscribe(topic, Position::New).unwrap();
        Self { bus, topic, rng, place: Place { life: 0, next: 0 }, subscription }
    }

    /// Follows until the bus is closed.
    fn follow(mut self, reached: &AtomicU64) {
        while self.step().is_continue() {
            reached.store(self.place.to_bits(), SeqCst);
        }
    }

    fn step(&mut self) -> ControlFlow<()> {
        if self.rng.u8(0..16) == 0 {
            return self.subscribe_again();
        }
        if self.rng.u8(0..4) == 0 {
            // It parks with a waker that wakes nobody, and is then polled with another.
            let mut nobody = Context::from_waker(Waker::noop());
            if let Poll::Ready(event) = self.subscription.poll_recv(&mut nobody) {
                return self.take(event);
            }
        }
        let event = self.subscription.recv_timeout(SOON).transpose();
        self.take(event.expect("a wake-up, of the publisher or of the end"))
    }

    fn take(&mut self, event: Result<Event, RecvError>) -> ControlFlow<()> {
        match event {
            Ok(Event::Message { message, .. }) => {
                assert_eq!(message.id(), self.place.next);
                self.place.next += 1;
            }
            Ok(Event::Missed { next_id, .. }) => self.place.next = next_id,
            Err(RecvError::Closed) => return ControlFlow::Break(()),
            Err(_) => return self.subscribe_again(),
        }
        ControlFlow::Continue(())
    }

    /// Continues from the same position, even in another epoch.
    fn subscribe_again(&mut self) -> ControlFlow<()> {
        let epoch = self.subscription.epoch();
        let from = match self.place.next.checked_sub(1) {
            Some(id) => Position::After { epoch, id },
            None => Position::Start { epoch },
        };
        let lag = if self.rng.bool() { LagPolicy::Skip } else { LagPolicy::Disconnect };
        match self.bus.subscribe(self.topic, SubscribeOptions { from, lag, label: None }) {
            Ok(subscription) => self.subscription = subscription,
            Err(SubscribeError::Closed) => return ControlFlow::Break(()),
            Err(error) => panic!("{error}"),
        }
        let start = self.subscription.start();
        self.place.next = start.next_id - start.missed;
        self.place.life += u64::from(self.subscription.epoch() != epoch);
        ControlFlow::Continue(())
    }
}

/// Subscribes, parks and drops, so that the other subscribers move in the list of parked wakers.
fn pass_by(bus: &MessageBus, topic: &TopicName, mut rng: Rng) {
    let mut crowd = Vec::new();
    while let Ok(mut subscription) = bus.subscribe(topic, Position::New) {
        let _ = subscription.poll_recv(&mut Context::from_waker(Waker::noop()));
        crowd.push(subscription);
        while crowd.len() > 3 {
            crowd.swap_remove(rng.usize(..crowd.len()));
        }
        thread::yield_now();
    }
}

/// Publishes, and sometimes deletes. Returns how far every subscriber must come.
fn act(bus: &MessageBus, topic: &TopicName, rng: &mut Rng, place: Place) -> Place {
    let put = |count| {
        for _ in 0..count {
            bus.put(topic, "x").unwrap();
        }
    };
    let count = match rng.u8(0..20) {
        0 => {
            put(rng.u64(0..2 * KEPT));
            assert!(bus.delete(topic).wait().unwrap());
            let next = rng.u64(0..3);
            put(next);
            return Place { life: place.life + 1, next };
        }
        1 => rng.u64(KEPT..3 * KEPT),
        2..=4 => rng.u64(2..=KEPT),
        _ => 1,
    };
    put(count);
    Place { next: place.next + count, ..place }
}

/// Closes the bus at the end, also after a panic, so that all threads end.
struct Close<'a>(&'a MessageBus);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.close().unwrap();
    }
}

#[test]
fn no_subscriber_misses_a_wake_up() {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let (bus, topic) = small_bus();
    let reached: [AtomicU64; FOLLOWERS] = Default::default();

    thread::scope(|scope| {
        let close = Close(&bus);
        for reached in &reached {
            let follower = Follower::new(&bus, &topic, rng.fork());
            scope.spawn(|| follower.follow(reached));
        }
        let passer_by = rng.fork();
        scope.spawn(|| pass_by(&bus, &topic, passer_by));

        let mut place = Place { life: 0, next: 0 };
        for step in 0..STEPS {
            place = act(&bus, &topic, &mut rng, place);
            let start = Instant::now();
            for reached in &reached {
                while reached.load(SeqCst) != place.to_bits() {
                    assert!(
                        start.elapsed() < SOON,
                        "with MSGBUS_TEST_SEED={seed}: somebody sleeps through step {step}, {place:?}"
                    );
                    thread::yield_now();
                }
            }
        }
        drop(close);
    });
    let stats = bus.topic(&topic).unwrap();
    assert_eq!(stats.subscribers, 0);
    assert_eq!(stats.counters.published, stats.next_id);
}

#[derive(Default)]
struct Wakes(AtomicU64);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Waits for another thread, which usually runs on another core right now.
fn meet(clock: &AtomicU64, round: u64) {
    let start = Instant::now();
    while clock.load(SeqCst) < round {
        for _ in 0..50 {
            spin_loop();
        }
        thread::yield_now();
        assert!(start.elapsed() < SOON, "the other one has failed");
    }
}

/// One thread polls and one publishes at the same moment, many times. Either the poll finds the message or its
/// waker is called, once.
#[test]
fn a_poll_beside_a_publish_finds_it_or_is_woken() {
    let mut rng = Rng::with_seed(seed());
    let (bus, topic) = small_bus();
    let (begun, published, polled) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut of_publisher = rng.fork();
    let dawdle = |rng: &mut Rng| (0..rng.u8(0..40)).for_each(|_| spin_loop());

    thread::scope(|scope| {
        let mut subscription = bus.subscribe(&topic, Position::New).unwrap();
        scope.spawn(|| {
            let rng = &mut of_publisher;
            for round in 1..=COLLISIONS {
                meet(&polled, round - 1);
                begun.store(round, SeqCst);
                dawdle(rng);
                match rng.u8(0..32) {
                    0 => assert!(bus.delete(&topic).wait().unwrap()),
                    1 => drop(bus.put_batch(&topic, vec!["x".into(); 8]).unwrap()),
                    _ => drop(bus.put(&topic, "x")),
                }
                published.store(round, SeqCst);
            }
        });
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        for round in 1..=COLLISIONS {
            meet(&begun, round);
            dawdle(&mut rng);
            let first = subscription.poll_recv(&mut Context::from_waker(&waker));
            meet(&published, round);
            assert_eq!(wakes.0.swap(0, SeqCst), u64::from(first.is_pending()), "in round {round}");
            loop {
                match subscription.try_recv() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => subscription = bus.subscribe(&topic, Position::New).unwrap(),
                }
            }
            polled.store(round, SeqCst);
        }
    });
}

/// A waker that records whether it was called.
#[derive(Default)]
struct Alarm(AtomicBool);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// A sleeping subscription and the waker of its last poll.
struct Sleeper {
    subscription: Subscription,
    alarm: Arc<Alarm>,
}

impl Sleeper {
    fn new(bus: &MessageBus, topic: &TopicName) -> Self {
        let subscription = bus.subscribe(topic, Position::New).unwrap();
        let mut sleeper = Self { subscription, alarm: Arc::default() };
        sleeper.fall_asleep();
        sleeper
    }

    /// Receives all events and parks, sometimes with another waker.
    fn fall_asleep(&mut self) {
        let waker = Waker::from(Arc::clone(&self.alarm));
        self.alarm.0.store(false, SeqCst);
        let mut cx = Context::from_waker(&waker);
        while let Poll::Ready(event) = self.subscription.poll_recv(&mut cx) {
            event.unwrap();
        }
    }

    fn is_awake(&self) -> bool {
        self.alarm.0.load(SeqCst)
    }
}

/// Between a publish and its wake-ups, some subscribers are dropped, some poll for another reason and park again,
/// and some are woken and not polled. The others are woken all the same.
fn all_remaining_subscribers_are_woken(bus: &MessageBus, topic: &TopicName, rng: &mut Rng) {
    let mut crowd: Vec<_> = (0..CROWD).map(|_| Sleeper::new(bus, topic)).collect();
    for round in 0..ROUNDS {
        bus.put(topic, "x").unwrap();
        for _ in 0..rng.usize(0..20) {
            let one = rng.usize(..crowd.len());
            match rng.u8(0..4) {
                0 => crowd[one] = Sleeper::new(bus, topic),
                1 => drop(crowd.swap_remove(one)),
                2 => crowd[one].alarm = Arc::default(),
                _ => bus.put(topic, "x").map(drop).unwrap(),
            }
            if let Some(one) = crowd.get_mut(one) {
                one.fall_asleep();
            }
        }
        bus.put(topic, "x").unwrap();
        let start = Instant::now();
        while !crowd.iter().all(Sleeper::is_awake) {
            assert!(start.elapsed() < SOON, "somebody sleeps through round {round}");
            thread::yield_now();
        }
        crowd.resize_with(CROWD, || Sleeper::new(bus, topic));
        for one in &mut crowd {
            // Some were woken and are not polled. They do not block the others.
            if rng.u8(0..8) > 0 {
                one.fall_asleep();
            }
        }
    }
}

#[test]
fn without_a_driver_a_publish_wakes_all_subscribers_itself() {
    let (bus, topic) = small_bus();
    let crowd: Vec<_> = (0..CROWD).map(|_| Sleeper::new(&bus, &topic)).collect();
    bus.put(&topic, "x").unwrap();
    assert!(crowd.iter().all(Sleeper::is_awake));
    all_remaining_subscribers_are_woken(&bus, &topic, &mut Rng::with_seed(seed()));
}

#[test]
fn with_a_driver_a_publish_wakes_a_slice_itself_and_the_driver_the_rest() {
    let (bus, topic) = small_bus();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);
    let mut driver = Box::pin(bus.drive_wakes());
    assert!(driver.as_mut().poll(&mut cx).is_pending());

    let mut crowd: Vec<_> = (0..CROWD).map(|_| Sleeper::new(&bus, &topic)).collect();
    let awake = |crowd: &[Sleeper]| crowd.iter().filter(|one| one.is_awake()).count();
    bus.put(&topic, "x").unwrap();
    let first = awake(&crowd);
    assert!(first > 0 && first < CROWD / 2, "{first} are woken by the publish");
    let mut polls = 0;
    while wakes.0.swap(0, SeqCst) > 0 {
        assert!(driver.as_mut().poll(&mut cx).is_pending());
        polls += 1;
    }
    assert_eq!(awake(&crowd), CROWD);
    assert!(polls > 2, "the driver lets others run");

    crowd.iter_mut().for_each(Sleeper::fall_asleep);
    bus.put(&topic, "x").unwrap();
    assert!(awake(&crowd) < CROWD);
    drop(driver);
    assert_eq!(awake(&crowd), CROWD, "the driver leaves nobody asleep");

    crowd.iter_mut().for_each(Sleeper::fall_asleep);
    bus.put(&topic, "x").unwrap();
    assert_eq!(awake(&crowd), CROWD, "there is no driver any more");
}

/// No wake-up is lost when drivers start and stop at any moment.
#[test]
fn no_wake_up_is_lost_when_drivers_start_and_stop() {
    let mut rng = Rng::with_seed(seed());
    let (bus, topic) = small_bus();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            let mut rng = rng.fork();
            let (bus, done) = (&bus, &done);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    drive(bus, rng.usize(1..50), done);
                }
            });
        }
        all_remaining_subscribers_are_woken(&bus, &topic, &mut rng);
        done.store(true, SeqCst);
    });
}

/// Runs a driver for some polls, each after it was woken.
fn drive(bus: &MessageBus, polls: usize, done: &AtomicBool) {
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let mut driver = pin!(bus.drive_wakes());
    for _ in 0..polls {
        assert!(driver.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        while !alarm.0.swap(false, SeqCst) {
            if done.load(SeqCst) {
                return;
            }
            thread::yield_now();
        }
    }
}
