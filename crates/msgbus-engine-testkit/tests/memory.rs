//! The engine in memory keeps the contract, and buses on it keep their promises whatever goes wrong.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use msgbus_core::{
    BatchLimit, Event, GroupConfig, GroupName, LeaseError, LeaseOptions, MessageBus, Options,
    Position, PublishError, RecvError, Settlement, TopicName, TopicSettings,
    engine::{Engine, EngineError, EngineRule},
    store::{Durability, StoreError},
};
use msgbus_engine_testkit::{
    Faults, MemoryEngine, Numbers, SOON,
    accounts::{self, Seen},
    bus, bus_with,
    conformance::{self, Subject},
    fresh, jobs, soon,
};
use tokio::time::sleep;

fn subject(numbers: Numbers) -> (MemoryEngine, Subject) {
    let engine = MemoryEngine::new(numbers, 1);
    let subject = Subject {
        one: Arc::new(engine.clone()),
        other: Arc::new(engine.clone()),
        knows_repeats: true,
        knows_ttl: true,
        lease: Duration::from_secs(3),
    };
    (engine, subject)
}

#[tokio::test]
async fn the_engine_with_dense_numbers_keeps_the_contract() {
    conformance::all(&subject(Numbers::Dense).1).await;
}

#[tokio::test]
async fn the_engine_with_shared_numbers_keeps_the_contract() {
    conformance::all(&subject(Numbers::Shared).1).await;
}

#[tokio::test]
async fn an_engine_that_is_away_refuses() {
    let (engine, subject) = subject(Numbers::Shared);
    let error = Some(EngineError::Unavailable);
    engine.set_faults(Faults { error, ..Faults::default() });
    let refused = conformance::refuses_while_it_is_away(&subject);
    tokio::select! {
        () = refused => {}
        () = sleep(Duration::from_secs(60)) => panic!("it waits"),
    }
}

fn buses(engine: &MemoryEngine) -> Vec<MessageBus> {
    (0..3).map(|_| bus(Arc::new(engine.clone()))).collect()
}

/// Takes the engine away for a moment, again and again, with requests and answers lost in between.
async fn disturb(engine: &MemoryEngine, seed: u64, empties: bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let faults =
        Faults { lost_requests: 30, lost_answers: 30, doubts: 20, delays: 5, ..Faults::default() };
    for turn in 0..10 {
        engine.set_faults(faults);
        sleep(Duration::from_millis(random.u64(5..20))).await;
        let errors = [EngineError::Unavailable, EngineError::Unknown, EngineError::Busy];
        let error = Some(errors[random.usize(..3)]);
        engine.set_faults(Faults { error, ..faults });
        sleep(Duration::from_millis(random.u64(5..20))).await;
        if empties && turn % 4 == 3 {
            engine.empty();
        }
    }
    engine.set_faults(Faults::default());
}

fn plan(engine: &MemoryEngine, seed: u64) -> accounts::Plan {
    let topic = fresh("accounts");
    accounts::Plan {
        buses: buses(engine),
        topic,
        publishers: 4,
        messages: 60,
        followers: 6,
        cuts: 150,
        seed,
    }
}

#[tokio::test]
async fn followers_get_everything_although_the_engine_comes_and_goes() {
    for seed in 0..8 {
        let numbers = [Numbers::Dense, Numbers::Shared][usize::try_from(seed % 2).unwrap()];
        let engine = MemoryEngine::new(numbers, seed);
        let plan = plan(&engine, seed);
        let (report, _) = accounts::check(&plan, disturb(&engine, seed, false)).await;
        assert_eq!((report.gaps, report.restarts), (0, 0), "nothing is gone: {report:?}");
        assert!(report.cuts > 20, "{report:?}");
        assert_eq!(report.acknowledged, 4 * 60 + 1);
        assert_eq!(report.received, 6 * report.acknowledged, "each once: {report:?}");
    }
}

#[tokio::test]
async fn gaps_are_announced_with_their_counts() {
    let mut gaps = 0;
    for seed in 0..64 {
        // On a slow machine, followers may keep up for some time.
        if seed >= 8 && gaps > 0 {
            break;
        }
        let numbers = [Numbers::Dense, Numbers::Shared][usize::try_from(seed % 2).unwrap()];
        let engine = MemoryEngine::new(numbers, seed);
        engine.retain(5);
        let plan = accounts::Plan { cuts: 600, ..plan(&engine, seed) };
        let (report, followers) = accounts::check(&plan, disturb(&engine, seed, false)).await;
        gaps += report.gaps;
        let published = engine.published(&plan.topic);
        for seen in followers.iter().flatten() {
            let Seen::Missed { from, next, count } = seen else { continue };
            if numbers == Numbers::Dense {
                let ids = published.iter().filter(|(id, _)| (*from..*next).contains(id)).count();
                assert_eq!(ids as u64, *count, "{seen:?}");
            }
        }
        if numbers == Numbers::Dense {
            assert_eq!(report.uncounted, 0, "{report:?}");
        }
    }
    assert!(gaps > 0, "otherwise this tests nothing");
}

#[tokio::test]
async fn an_emptied_engine_is_announced() {
    for seed in 0..6 {
        let engine = MemoryEngine::new(Numbers::Shared, seed);
        let plan = plan(&engine, seed);
        let (report, _) = accounts::check(&plan, disturb(&engine, seed, true)).await;
        assert!(report.restarts > 0, "{report:?}");
    }
}

#[tokio::test]
async fn every_job_is_done_and_nobody_shares_one() {
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..8 {
        tasks.spawn(async move {
            let engine = MemoryEngine::new(Numbers::Shared, seed);
            let plan = jobs::Plan {
                buses: buses(&engine),
                topic: fresh("jobs"),
                jobs: 80,
                workers: 6,
                lease: Duration::from_millis(400),
                failures: 8,
                keeps_leases: true,
                keeps_acks: true,
                seed,
            };
            let report = jobs::check(&plan, disturb(&engine, seed, false)).await;
            assert!(report.done + report.dead == 80 && report.leases > 80, "{report:?}");
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn a_thousand_followers_are_one_tail() {
    let engine = MemoryEngine::new(Numbers::Shared, 1);
    let bus = bus(Arc::new(engine.clone()));
    let topic = fresh("many");
    let mut followers = Vec::new();
    for _ in 0..1000 {
        followers.push(bus.follow(&topic, Position::New).await.unwrap());
    }
    for n in 0..10 {
        bus.publish(&topic, n.to_string()).await.unwrap();
    }
    for follower in &mut followers {
        for n in 0..10 {
            let event = soon(follower.recv()).await.unwrap();
            assert!(matches!(&event, Event::Message { message, .. }
                    if message.payload() == n.to_string().as_bytes()));
        }
    }
    let windows = bus.engine_windows();
    assert_eq!((windows.len(), windows[0].followers), (1, 1000));
    drop(followers);
    assert_eq!(bus.engine_windows()[0].followers, 0);
}

/// Publishes messages, and receives all of them although the window has lost most.
async fn receives_all(options: Options, pause: Duration) {
    let engine = MemoryEngine::new(Numbers::Shared, 1);
    let bus = bus_with(Arc::new(engine.clone()), options);
    let topic = fresh("slow");
    let mut follower = soon(bus.follow(&topic, Position::New)).await.unwrap();
    for n in 0..100 {
        soon(bus.publish(&topic, n.to_string())).await.unwrap();
        soon(bus.publish(&fresh("other"), "")).await.unwrap();
    }
    sleep(pause).await;
    bus.purge_expired();
    let mut events = Vec::new();
    while events.len() < 100 {
        let limit = BatchLimit { events: 7, bytes: 1 << 20 };
        soon(follower.recv_batch(&mut events, limit)).await.unwrap();
    }
    for (n, event) in events.iter().enumerate() {
        let Event::Message { message, .. } = event else { panic!("{event:?}") };
        assert_eq!(message.payload(), n.to_string().as_bytes());
    }
    assert_eq!((follower.stats().received, follower.stats().missed), (100, 0));
    // It is live again.
    soon(bus.publish(&topic, "next")).await.unwrap();
    assert!(matches!(soon(follower.recv()).await.unwrap(), Event::Message { .. }));
}

#[tokio::test]
async fn what_a_slow_follower_finds_no_more_in_the_window_it_reads_from_the_history() {
    let topic = TopicSettings { max_messages: 8, ..TopicSettings::default() };
    receives_all(Options { topic, ..Options::default() }, Duration::ZERO).await;
    // No message has room in the window.
    let topic = TopicSettings { memory_bytes: 1, ..TopicSettings::default() };
    receives_all(Options { topic, ..Options::default() }, Duration::ZERO).await;
}

#[tokio::test]
async fn what_has_expired_in_the_window_and_not_in_the_engine_is_not_missed() {
    let topic = TopicSettings { ttl: Some(Duration::from_millis(20)), ..TopicSettings::default() };
    receives_all(Options { topic, ..Options::default() }, Duration::from_millis(100)).await;
}

#[tokio::test]
async fn what_the_engine_refuses_is_refused() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let topic = fresh("refused");
    let mut follower = soon(bus.follow(&topic, Position::New)).await.unwrap();
    let large = EngineError::TooLarge { limit: 5 };
    for error in [EngineError::Full, EngineError::Denied, EngineError::Busy, large] {
        engine.set_faults(Faults { error: Some(error), ..Faults::default() });
        let refused = soon(bus.publish(&topic, "x")).await;
        assert_eq!(refused, Err(PublishError::Store(StoreError::Engine(error))));
        assert_eq!(soon(bus.pull(&topic, BatchLimit::ONE)).await, Err(error.into()));
    }
    assert!(engine.published(&topic).is_empty(), "nothing was kept");
    let start = Instant::now();
    while bus.engine_windows()[0].stalled.is_none() {
        assert!(start.elapsed() < SOON);
        sleep(Duration::from_millis(1)).await;
    }
    engine.set_faults(Faults::default());
    soon(bus.publish(&topic, "y")).await.unwrap();
    assert!(matches!(soon(follower.recv()).await.unwrap(), Event::Message { .. }));
    assert_eq!(bus.engine_windows()[0].stalled, None);
}

/// All that were up to date want the same when the window begins again, and ask for it once.
#[tokio::test]
async fn followers_share_what_they_read_after_a_doubt() {
    const FOLLOWERS: usize = 300;
    let engine = MemoryEngine::new(Numbers::Shared, 1);
    let bus = bus(Arc::new(engine.clone()));
    let topic = fresh("doubt");
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        followers.push(soon(bus.follow(&topic, Position::New)).await.unwrap());
    }
    // Reads take a while.
    let faults = Faults { delays: 100, ..Faults::default() };
    engine.set_faults(Faults { doubts: 1000, ..faults });
    // A number that the topic does not have.
    soon(bus.publish(&fresh("other"), "y")).await.unwrap();
    let before = bus.engine_usage()[0].1.answered;
    soon(bus.publish(&topic, "x")).await.unwrap();
    let mut receiving = tokio::task::JoinSet::new();
    for mut follower in followers {
        receiving.spawn(async move { soon(follower.recv()).await.unwrap() });
    }
    for event in soon(receiving.join_all()).await {
        assert!(matches!(event, Event::Message { message, .. } if message.payload() == "x"));
    }
    let asked = bus.engine_usage()[0].1.answered - before;
    assert!(asked < FOLLOWERS as u64 / 3, "{asked} reads");
}

#[tokio::test]
async fn what_no_engine_can_do_is_said() {
    let bus = bus(Arc::new(MemoryEngine::new(Numbers::Dense, 1)));
    let (topic, group) = (fresh("unsupported"), "g".parse().unwrap());
    let config = GroupConfig { max_leases: Some(3), ..GroupConfig::default() };
    let refused = soon(bus.set_group(&topic, &group, &config)).await.unwrap_err();
    assert_eq!(refused.to_string(), "memory cannot limit the leases of a group");
    assert!(soon(bus.peek(&topic, None, BatchLimit::ONE)).await.is_err());
    assert!(bus.topics().is_empty(), "it is not made here instead");
}

#[tokio::test]
async fn a_closed_bus_ends_its_followers_and_only_those() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let (one, other) = (bus(Arc::new(engine.clone())), bus(Arc::new(engine.clone())));
    let topic = fresh("closed");
    let mut ended = soon(one.follow(&topic, Position::New)).await.unwrap();
    let mut follower = soon(other.follow(&topic, Position::New)).await.unwrap();
    one.close().unwrap();
    assert_eq!(soon(ended.recv()).await, Err(RecvError::Closed));
    assert!(soon(one.follow(&topic, Position::New)).await.is_err());
    soon(other.publish(&topic, "x")).await.unwrap();
    assert!(matches!(soon(follower.recv()).await.unwrap(), Event::Message { .. }));
}

#[tokio::test]
async fn other_topics_stay_in_memory() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(Numbers::Dense, 1));
    let rule = |pattern: &str, engine| EngineRule { pattern: pattern.parse().unwrap(), engine };
    let rules = vec![
        rule("shared/**", Some(Arc::clone(&engine))),
        rule("shared/not/**", None),
        rule("jobs/*", Some(engine)),
    ];
    let bus = MessageBus::with_engines(Options::default(), None, rules).unwrap();
    let durability = async |topic: &str| {
        soon(bus.publish(&topic.parse().unwrap(), "x")).await.unwrap().durability
    };
    assert_eq!(durability("shared/a").await, Durability::Engine);
    assert_eq!(durability("shared/not/a").await, Durability::Memory);
    assert_eq!(durability("local").await, Durability::Memory);
    assert_eq!(durability("jobs/a/dead-letters").await, Durability::Engine, "as its jobs");
    assert_eq!(durability("jobs/a/b").await, Durability::Memory);
    assert_eq!(durability("shared/not/a/dead-letters").await, Durability::Memory);
    assert_eq!(bus.topics().len(), 4);
    assert!(soon(bus.delete(&"shared/a".parse().unwrap())).await.unwrap());
}

#[tokio::test]
async fn what_waits_for_an_engine_is_bounded() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let topic = fresh("busy");
    engine.set_faults(Faults { delays: u32::MAX, ..Faults::default() });
    let mut cx = Context::from_waker(Waker::noop());
    let mut waiting: Vec<_> = (0..4096).map(|_| bus.publish(&topic, "x")).collect();
    for publish in &mut waiting {
        assert!(Pin::new(publish).poll(&mut cx).is_pending());
    }
    let busy = EngineError::Busy;
    assert_eq!(bus.publish(&topic, "x").await, Err(PublishError::Store(StoreError::Engine(busy))));
    drop(waiting);
    engine.set_faults(Faults::default());
    soon(bus.publish(&topic, "x")).await.unwrap();
}

#[tokio::test]
async fn what_waits_ends_when_the_bus_is_closed() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let (topic, group) = (fresh("closed"), "g".parse().unwrap());
    let pull = tokio::spawn(bus.pull_wait(&topic, BatchLimit::ONE).unwrap());
    let lease = tokio::spawn(bus.lease_wait(&topic, &group, LeaseOptions::default()).unwrap());
    sleep(Duration::from_millis(20)).await;
    bus.close().unwrap();
    let begin = Instant::now();
    assert!(soon(pull).await.unwrap().is_err());
    assert!(soon(lease).await.unwrap().is_err());
    assert!(begin.elapsed() < Duration::from_secs(25), "before the engine has answered");
    let closed = StoreError::Engine(EngineError::Closed);
    assert_eq!(soon(bus.publish(&topic, "x")).await, Err(PublishError::Store(closed)));
    assert_eq!(soon(bus.pull(&topic, BatchLimit::ONE)).await, Err(closed));
    assert!(engine.published(&topic).is_empty());
}

#[tokio::test]
async fn a_pull_returns_what_was_acknowledged_although_others_were_not() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let topic = fresh("partly");
    for n in 0..50 {
        soon(bus.publish(&topic, n.to_string())).await.unwrap();
    }
    engine.set_faults(Faults { lost_requests: 300, ..Faults::default() });
    let limit = BatchLimit { events: 50, bytes: 1 << 20 };
    let start = Instant::now();
    let pulled = loop {
        assert!(start.elapsed() < SOON);
        // The request for messages is lost, too, at times.
        if let Ok(messages) = soon(bus.pull(&topic, limit)).await {
            break messages;
        }
    };
    assert!(!pulled.is_empty() && pulled.len() < 50, "{}", pulled.len());
}

#[tokio::test]
async fn who_waits_after_a_dead_letter_has_taken_nothing() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let (topic, group) = (fresh("buried"), "g".parse().unwrap());
    soon(bus.publish(&topic, "bad")).await.unwrap();
    wear_out(&bus, &topic, &group, 1).await;
    let mut waiting = bus.lease_wait(&topic, &group, LeaseOptions::default()).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    let start = Instant::now();
    while engine.published(&topic.dead_letters().unwrap()).is_empty() || waiting.is_committing() {
        assert!(start.elapsed() < SOON && Pin::new(&mut waiting).poll(&mut cx).is_pending());
        sleep(Duration::from_millis(1)).await;
    }
}

/// A client hangs up while its last nack is served.
#[tokio::test]
async fn a_dead_letter_that_was_begun_is_made() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let (topic, group) = (fresh("begun"), "g".parse().unwrap());
    let config = GroupConfig { max_deliveries: Some(1), ..GroupConfig::default() };
    soon(bus.publish(&topic, "bad")).await.unwrap();
    soon(bus.set_group(&topic, &group, &config)).await.unwrap();
    let leased = soon(bus.lease(&topic, &group, LeaseOptions::default())).await.unwrap();
    engine.set_faults(Faults { pause: Duration::from_millis(50), ..Faults::default() });
    let back = Settlement::Nack { delay: Duration::ZERO, reason: Some("broken".into()) };
    let mut nacking = bus.settle(&leased[0].token, &back);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut nacking).poll(&mut cx).is_pending(), "it has begun");
    drop(nacking);
    let start = Instant::now();
    while engine.published(&topic.dead_letters().unwrap()).is_empty() {
        assert!(start.elapsed() < SOON && bus.run_due().next.is_some());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Leases everything so often that it is delivered once too often the next time.
async fn wear_out(bus: &MessageBus, topic: &TopicName, group: &GroupName, count: usize) {
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    let limit = BatchLimit { events: count, bytes: 1 << 20 };
    for _ in 0..9 {
        let options = LeaseOptions { limit, ..LeaseOptions::default() };
        let leased = soon(bus.lease(topic, group, options)).await.unwrap();
        assert_eq!(leased.len(), count);
        for leased in leased {
            soon(bus.settle(&leased.token, &back)).await.unwrap();
        }
    }
    // A nack of the last one would make a dead letter.
    let short = Duration::from_millis(10);
    let options = LeaseOptions { limit, lease: short, ..LeaseOptions::default() };
    assert_eq!(soon(bus.lease(topic, group, options)).await.unwrap().len(), count);
    sleep(short * 2).await;
}

/// The worker has done what it can. The message is set back, and the log hears of it.
#[tokio::test]
async fn a_nack_whose_dead_letter_is_refused_is_a_nack() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let (topic, group) = (fresh("refused"), "g".parse().unwrap());
    let config = GroupConfig { max_deliveries: Some(1), ..GroupConfig::default() };
    soon(bus.publish_batch(&topic, vec!["one".into(), "two".into()])).await.unwrap();
    soon(bus.set_group(&topic, &group, &config)).await.unwrap();
    engine.refuse(&topic.dead_letters().unwrap());
    let limit = BatchLimit { events: 2, bytes: 1 << 20 };
    let options = LeaseOptions { limit, ..LeaseOptions::default() };
    let leased = soon(bus.lease(&topic, &group, options)).await.unwrap();
    let tokens: Vec<_> = leased.into_iter().map(|leased| leased.token).collect();
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    assert_eq!(soon(bus.settle_all(&tokens, &back)).await.unwrap().lost.len(), 0);
    assert_eq!(soon(bus.settle_all(&tokens, &back)).await.unwrap().lost, vec![0, 1]);
    let refused = bus.run_due().refused;
    assert_eq!((refused.len(), &refused[0].topic, refused[0].id), (1, &topic, 1));
    assert!(soon(bus.lease(&topic, &group, LeaseOptions::default())).await.unwrap().is_empty());
    let group = soon(bus.engine_group(&topic, &group)).await.unwrap().unwrap();
    assert_eq!(group.unacked, 2, "they are not lost");
}

/// Each failure takes so long that the leases of the first ones end before the last one was tried.
#[tokio::test]
async fn dead_letters_that_cannot_be_published_keep_no_job_from_its_workers() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let (topic, group) = (fresh("unburied"), "g".parse().unwrap());
    for n in 0..8 {
        soon(bus.publish(&topic, n.to_string())).await.unwrap();
    }
    wear_out(&bus, &topic, &group, 8).await;
    engine.refuse(&topic.dead_letters().unwrap());
    engine.set_faults(Faults { pause: Duration::from_millis(300), ..Faults::default() });
    let options = || LeaseOptions { lease: Duration::from_secs(1), ..LeaseOptions::default() };
    // There is nothing but dead letters, and it says why nothing comes.
    let refused = soon(bus.lease(&topic, &group, options())).await.unwrap_err();
    let denied = LeaseError::Store(StoreError::Engine(EngineError::Denied));
    assert_eq!(refused, denied);
    soon(bus.publish(&topic, "good")).await.unwrap();
    let leased = soon(bus.lease(&topic, &group, options())).await.unwrap();
    assert_eq!(leased[0].message.payload(), "good");
    let waiting = bus.lease_wait(&topic, &group, options()).unwrap();
    soon(bus.publish(&topic, "better")).await.unwrap();
    let leased = soon(waiting).await.unwrap();
    assert!(["good", "better"].iter().any(|job| leased[0].message.payload() == job));
    // They are not lost.
    let group = soon(bus.engine_group(&topic, &group)).await.unwrap().unwrap();
    assert_eq!(group.unacked + group.pending, 10);
}

/// The first dead letter that cannot be published may take longer than the leases that came with it.
#[tokio::test]
async fn a_lease_that_has_run_out_is_not_handed_out() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let (topic, group) = (fresh("slow"), "g".parse().unwrap());
    soon(bus.publish(&topic, "bad")).await.unwrap();
    wear_out(&bus, &topic, &group, 1).await;
    soon(bus.publish(&topic, "good")).await.unwrap();
    engine.refuse(&topic.dead_letters().unwrap());
    engine.set_faults(Faults { pause: Duration::from_millis(1200), ..Faults::default() });
    let options = LeaseOptions {
        lease: Duration::from_secs(2),
        limit: BatchLimit { events: 10, bytes: 1 << 20 },
        ..LeaseOptions::default()
    };
    let leased = soon(bus.lease_wait(&topic, &group, options).unwrap()).await.unwrap();
    assert_eq!(leased[0].message.payload(), "good");
    assert!(leased[0].expires > chrono::Utc::now());
}

/// What was taken when the time is over would be lost.
#[tokio::test]
async fn a_pull_whose_time_ends_while_it_takes_messages_returns_them() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let topic = fresh("late");
    soon(bus.publish(&topic, "x")).await.unwrap();
    engine.set_faults(Faults { pause: Duration::from_millis(500), ..Faults::default() });
    let pull = bus.pull_wait(&topic, BatchLimit::ONE).unwrap();
    let wait = move || pull.wait_timeout(Duration::from_millis(50));
    let pulled = soon(tokio::task::spawn_blocking(wait)).await.unwrap().unwrap();
    assert_eq!(pulled.expect("it is lost")[0].payload(), "x");
    // Without messages, time counts.
    let pull = bus.pull_wait(&topic, BatchLimit::ONE).unwrap();
    let wait = move || pull.wait_timeout(Duration::from_millis(50));
    assert_eq!(soon(tokio::task::spawn_blocking(wait)).await.unwrap().unwrap(), None);
}

/// Refused acks come before those whose answer is lost, or after them.
#[tokio::test]
async fn a_pull_that_may_have_taken_something_does_not_say_that_it_has_done_nothing() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    engine.set_faults(Faults { refused_acks: 500, lost_acks: 1000, ..Faults::default() });
    for _ in 0..20 {
        let topic = fresh("both");
        for n in 0..50 {
            soon(bus.publish(&topic, n.to_string())).await.unwrap();
        }
        let limit = BatchLimit { events: 50, bytes: 1 << 20 };
        let pulled = soon(bus.pull(&topic, limit)).await;
        assert_eq!(pulled, Err(StoreError::Engine(EngineError::Unknown)));
    }
}

/// Credentials that are refused for a while end no subscription, wherever it reads.
#[tokio::test]
async fn a_follower_waits_while_the_engine_refuses_to_read_the_past() {
    let engine = MemoryEngine::new(Numbers::Dense, 1);
    let bus = bus(Arc::new(engine.clone()));
    let topic = fresh("refused");
    // More than a page.
    for n in 0..1500 {
        soon(bus.publish(&topic, n.to_string())).await.unwrap();
    }
    let mut follower = soon(bus.follow(&topic, Position::All)).await.unwrap();
    let unsupported = EngineError::NotSupported { engine: "memory", operation: "read" };
    for error in [EngineError::Denied, EngineError::Full, unsupported] {
        engine.set_faults(Faults { error: Some(error), ..Faults::default() });
        let mut seen = 0;
        // What it has read already.
        while follower.try_recv().unwrap().is_some() {
            seen += 1;
        }
        assert!(seen < 1500);
        assert_eq!(follower.stalled(), Some(error));
    }
    engine.set_faults(Faults::default());
    let sweeps = async {
        loop {
            bus.purge_expired();
            sleep(Duration::from_millis(10)).await;
        }
    };
    let rest = async {
        loop {
            let Event::Message { message, .. } = follower.recv().await.unwrap() else { panic!() };
            if message.payload() == "1499" {
                return;
            }
        }
    };
    tokio::select! {
        () = sweeps => {}
        () = soon(rest) => {}
    }
}
