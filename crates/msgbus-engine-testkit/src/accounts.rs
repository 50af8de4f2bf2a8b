//! Accounts of what the clients of several buses see while an engine is disturbed: what is acknowledged is there, and
//! whoever follows a topic gets all of it in order, or an announcement in its place.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use msgbus_core::{
    Event, Headers, MessageBus, NewMessage, Position, PublishError, RecvError, StartPosition,
    Subscription, TopicName, store::StoreError,
};
use tokio::{task::JoinSet, time::sleep};

use crate::{SOON, fresh};

/// Kills a server and starts it again, some times.
pub async fn restart<S>(server: &mut S, times: usize, kill: fn(&mut S), run: fn(&mut S)) {
    for _ in 0..times {
        sleep(Duration::from_millis(400)).await;
        kill(server);
        sleep(Duration::from_millis(200)).await;
        run(server);
    }
    sleep(Duration::from_millis(300)).await;
}

/// Followers get everything, without a gap, although the server is [restarted](restart) meanwhile.
pub async fn followers_get_everything(buses: Vec<MessageBus>, restarts: impl Future<Output = ()>) {
    let plan = Plan::new(buses, "accounts", 400, 30);
    let (report, _) = check(&plan, restarts).await;
    assert_eq!((report.gaps, report.restarts), (0, 0), "nothing is gone: {report:?}");
    assert_eq!(report.acknowledged, 4 * 400 + 1);
    assert!(report.cuts > 10, "{report:?}");
}

/// Who does what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The buses, on the same engine.
    pub buses: Vec<MessageBus>,
    /// The topic.
    pub topic: TopicName,
    /// How many publish at the same time.
    pub publishers: usize,
    /// How many messages each publishes.
    pub messages: usize,
    /// How many follow the topic.
    pub followers: usize,
    /// In thousandths: the chance that a follower leaves after a batch, to resume on any bus.
    pub cuts: u32,
    /// What is random depends on it.
    pub seed: u64,
}

impl Plan {
    /// Four publishers and four followers of a topic that no other test has used.
    pub fn new(buses: Vec<MessageBus>, what: &str, messages: usize, cuts: u32) -> Self {
        let (topic, seed) = (fresh(what), fastrand::u64(..));
        Self { buses, topic, publishers: 4, messages, followers: 4, cuts, seed }
    }
}

/// What has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Messages that were acknowledged.
    pub acknowledged: usize,
    /// Messages received, by all followers.
    pub received: usize,
    /// How often followers have left and resumed.
    pub cuts: usize,
    /// Gaps announced.
    pub gaps: usize,
    /// Gaps announced without a count.
    pub uncounted: usize,
    /// How often a follower was told that it begins in another epoch.
    pub restarts: usize,
}

/// What a follower has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It begins, not only again.
    Start {
        /// In this epoch.
        epoch: u64,
        /// With this id.
        id: u64,
    },
    /// A message.
    Message {
        /// Its id.
        id: u64,
        /// Its payload.
        payload: Bytes,
    },
    /// A gap.
    Missed {
        /// The position before it.
        from: u64,
        /// The id of the first message after it.
        next: u64,
        /// How many were missed. 0 if nobody knows.
        count: u64,
    },
}

type Acknowledged = Arc<Mutex<BTreeMap<(u64, u64), Bytes>>>;

const END: &str = "end";

/// Runs publishers and followers while `disturb` runs, and checks what they have seen. In the end the engine must serve
/// again. Returns also what each follower has seen.
///
/// # Panics
/// When the accounts do not balance.
pub async fn check(plan: &Plan, disturb: impl Future<Output = ()>) -> (Report, Vec<Vec<Seen>>) {
    let acknowledged = Acknowledged::default();
    let cuts = Arc::new(AtomicU64::new(0));
    let mut purges = JoinSet::new();
    for bus in plan.buses.clone() {
        purges.spawn(async move {
            loop {
                bus.purge_expired();
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
    let mut followers = JoinSet::new();
    for number in 0..plan.followers {
        followers.spawn(follow(plan.clone(), number, Arc::clone(&cuts)));
    }
    let mut publishers = JoinSet::new();
    for number in 0..plan.publishers {
        publishers.spawn(publish(plan.clone(), number, Arc::clone(&acknowledged)));
    }
    let publishing = async { while publishers.join_next().await.transpose().unwrap().is_some() {} };
    let seen = tokio::time::timeout(SOON * 3, async {
        tokio::join!(publishing, disturb);
        let mut random = fastrand::Rng::with_seed(plan.seed);
        put(plan, &mut random, END.into(), &acknowledged).await;
        followers.join_all().await
    });
    let seen = seen.await.expect("it takes too long");
    let acknowledged = acknowledged.lock().unwrap();
    let mut report = Report {
        acknowledged: acknowledged.len(),
        cuts: usize::try_from(cuts.load(Relaxed)).unwrap(),
        ..Report::default()
    };
    for seen in &seen {
        balance(seen, &acknowledged, &mut report);
    }
    (report, seen)
}

async fn publish(plan: Plan, number: usize, acknowledged: Acknowledged) {
    let mut random = fastrand::Rng::with_seed(plan.seed ^ (1000 + number as u64));
    for message in 0..plan.messages {
        put(&plan, &mut random, format!("{number}-{message}"), &acknowledged).await;
        if random.u32(..4) == 0 {
            sleep(Duration::from_millis(random.u64(..4))).await;
        }
    }
}

/// Publishes until it is acknowledged.
async fn put(plan: &Plan, random: &mut fastrand::Rng, text: String, acknowledged: &Acknowledged) {
    let key = format!("{:x}-{text}", plan.seed);
    let message = NewMessage::new(text).header(Headers::IDEMPOTENCY_KEY, &key).unwrap();
    loop {
        let bus = &plan.buses[random.usize(..plan.buses.len())];
        match bus.publish(&plan.topic, message.clone()).await {
            Ok(published) => {
                let (payload, _, _) = message.into_parts();
                let number = (published.epoch, published.id);
                acknowledged.lock().unwrap().insert(number, payload);
                return;
            }
            Err(PublishError::Store(StoreError::Engine(_))) => {
                sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn follow(plan: Plan, number: usize, cuts: Arc<AtomicU64>) -> Vec<Seen> {
    let mut random = fastrand::Rng::with_seed(plan.seed ^ (2000 + number as u64));
    let (mut seen, mut position) = (Vec::new(), None);
    loop {
        let bus = &plan.buses[random.usize(..plan.buses.len())];
        let from = match position {
            None => Position::All,
            Some((epoch, next)) => Position::before(epoch, next),
        };
        let Ok(mut subscription) = bus.follow(&plan.topic, from).await else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        let StartPosition { requested_id, restarted, .. } = subscription.start();
        let epoch = subscription.epoch();
        if position.is_none() || restarted {
            seen.push(Seen::Start { epoch, id: requested_id });
            position = Some((epoch, requested_id));
        }
        loop {
            let Some((_, next)) = &mut position else { unreachable!() };
            match receive(&mut subscription, next, &mut seen).await {
                Ok(true) => return seen,
                Ok(false) if random.u32(..1000) < plan.cuts => break,
                Ok(false) => {}
                Err(RecvError::Closed) => panic!("the bus is closed"),
                Err(_) => break,
            }
        }
        cuts.fetch_add(1, Relaxed);
    }
}

/// Receives an event. Returns whether it is the last message.
async fn receive(
    subscription: &mut Subscription,
    next: &mut u64,
    seen: &mut Vec<Seen>,
) -> Result<bool, RecvError> {
    match subscription.recv().await? {
        Event::Message { id, message } => {
            seen.push(Seen::Message { id, payload: message.payload().clone() });
            *next = id + 1;
            Ok(message.payload() == END)
        }
        Event::Missed { count, next_id } => {
            seen.push(Seen::Missed { from: *next, next: next_id, count });
            *next = next_id.max(*next);
            Ok(false)
        }
    }
}

/// Checks that everything that was acknowledged was received in order, or announced as missed.
fn balance(seen: &[Seen], acknowledged: &BTreeMap<(u64, u64), Bytes>, report: &mut Report) {
    let starts = |seen: &Seen| matches!(seen, Seen::Start { .. });
    for part in seen.chunk_by(|_, next| !starts(next)) {
        let Seen::Start { epoch, id: start } = part[0] else { panic!("no start: {part:?}") };
        report.restarts += usize::from(part.as_ptr() != seen.as_ptr());
        let (mut received, mut gaps, mut next) = (BTreeSet::new(), Vec::new(), start);
        for event in &part[1..] {
            match event {
                Seen::Message { id, payload } => {
                    assert!(*id >= next, "{id} comes twice, or after {next}");
                    if let Some(expected) = acknowledged.get(&(epoch, *id)) {
                        assert_eq!(payload, expected, "{id} is another message");
                    }
                    received.insert(*id);
                    next = id + 1;
                }
                Seen::Missed { next: after, count, from } => {
                    assert!(*after >= next && *from == next);
                    assert!(*count <= after - from, "more than there is room for");
                    report.gaps += 1;
                    report.uncounted += usize::from(*count == 0);
                    gaps.push(*from..*after);
                    next = *after;
                }
                Seen::Start { .. } => unreachable!(),
            }
        }
        report.received += received.len();
        for ((_, id), payload) in acknowledged.range((epoch, start)..(epoch, next)) {
            let is_known = received.contains(id) || gaps.iter().any(|gap| gap.contains(id));
            assert!(is_known, "{id} {payload:?} was lost silently");
        }
    }
}
