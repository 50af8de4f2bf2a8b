//! The beginning and the end of a round: groups are made; everything is delivered, taken and acknowledged; then what the
//! clients know is compared with what the engine counts, and all topics are deleted.

use std::{collections::HashSet, io, rc::Rc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use fastrand::Rng;
use msgbus_core::json;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{
    super::{invariants::Invariant, payload, raw_client::Head},
    EngineSoak,
    accounts::{Accounts, name},
    caller::Caller,
    counts,
    publish::Publisher,
    topics::{MAX_MESSAGES, Queue, SHORT, Topic},
    work::Worker,
};

/// Longer than any lease, and than the longest wait before a connection to an engine is made again.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What is said of a group.
#[derive(Deserialize)]
struct GroupCounts {
    pending: u64,
    unacked: u64,
}

/// Waits for all servers, publishes to each topic, and makes the groups.
pub(super) async fn prepare(soak: &Rc<EngineSoak>, rng: &mut Rng) -> anyhow::Result<()> {
    let mut publisher = Publisher::new(soak, rng.fork());
    for topic in Topic::all() {
        soak.wait_for(format!("a publish to {topic:?}"));
        publisher.publish(topic).await;
    }
    let mut caller = Caller::new(soak, rng.fork());
    for queue in Queue::groups() {
        let path = queue.group_path().context("it has a group")? + "?since=all";
        soak.wait_for(format!("PUT {path}"));
        let (head, body) = ask(&mut caller, "PUT", &path).await?;
        let mut invariants = soak.invariants.borrow_mut();
        invariants.check(Invariant::Responses, matches!(head.status, 200 | 201), || {
            format!("PUT {path}: {} {}", head.status, String::from_utf8_lossy(&body))
        });
    }
    Ok(())
}

/// Sends a request until the engine can be used again.
async fn ask(caller: &mut Caller, method: &str, target: &str) -> io::Result<(Head, Bytes)> {
    let give_up = Instant::now() + TIMEOUT;
    loop {
        let answer = caller.ask(method, target, "", b"").await;
        let is_done = answer.as_ref().is_ok_and(|(head, _)| !matches!(head.status, 503 | 504));
        if is_done || Instant::now() > give_up {
            return answer;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Waits until subscriptions that have begun with the first message have received as many of this round as the engine has.
pub(super) async fn settle(soak: &Rc<EngineSoak>, rng: &mut Rng) -> anyhow::Result<()> {
    let mut caller = Caller::new(soak, rng.fork());
    let mut counts = Vec::new();
    for topic in Topic::all().filter(|topic| topic.is_kept()) {
        counts.push((topic, count(soak, &mut caller, topic).await?.1));
    }
    let give_up = Instant::now() + TIMEOUT;
    loop {
        let behind: Vec<_> = {
            let live = soak.live.borrow();
            let lacks = |(topic, count): &(Topic, u64)| {
                let of = live.values().filter(|live| live.topic == *topic);
                let wrong = of.filter_map(|live| live.received).find(|got| got != count);
                wrong.map(|got| (*topic, got, *count))
            };
            counts.iter().filter_map(lacks).collect()
        };
        if behind.is_empty() || Instant::now() > give_up {
            let mut invariants = soak.invariants.borrow_mut();
            let active = soak.live.borrow().values().filter(|live| live.received.is_some()).count();
            invariants.count("subscriptions that received a topic whole", active as u64);
            invariants.check(Invariant::Told, behind.is_empty(), || {
                format!("received, and what the engine has: {behind:?}")
            });
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Drains all queues, compares all accounts, and deletes all topics.
pub(super) async fn finish(soak: &Rc<EngineSoak>, rng: &mut Rng) -> anyhow::Result<()> {
    let mut caller = Caller::new(soak, rng.fork());
    // For all queues together.
    let give_up = Instant::now() + TIMEOUT;
    for queue in Queue::all() {
        soak.wait_for(format!("{queue:?}, to be empty"));
        drain(soak, rng, &mut caller, queue, give_up).await?;
    }
    for queue in Queue::groups() {
        read_dead_letters(soak, &mut caller, queue).await?;
    }
    soak.wait_for("the engine, to compare and delete topics".to_owned());
    compare_topics(soak, &mut caller).await?;
    compare_queues(soak);
    for topic in Topic::all() {
        ask(&mut caller, "DELETE", &format!("/{}", topic.path())).await?;
        let left = counts::messages(&soak.cluster, topic)?;
        soak.invariants.borrow_mut().check(Invariant::Released, left == 0, || {
            format!("{topic:?} was deleted, and the engine has {left} messages of it")
        });
    }
    for queue in Queue::groups() {
        ask(&mut caller, "DELETE", &format!("/{}/dead-letters", queue.topic.path())).await?;
    }
    *soak.accounts.borrow_mut() = Accounts::default();
    Ok(())
}

/// Takes and acknowledges everything, until nothing is left.
async fn drain(
    soak: &Rc<EngineSoak>,
    rng: &mut Rng,
    caller: &mut Caller,
    queue: Queue,
    give_up: Instant,
) -> anyhow::Result<()> {
    let mut worker = Worker::new(soak, rng.fork(), queue);
    loop {
        // What fails is done again.
        while worker.drain().await.unwrap_or(false) && Instant::now() < give_up {}
        // A message that was given in a pull without an answer is given again when its lease is over.
        let mut left = (0, counts::unacked(&soak.cluster, queue)?);
        if let Some(path) = queue.group_path() {
            let (head, body) = ask(caller, "GET", &path).await?;
            let GroupCounts { pending, unacked } = serde_json::from_slice(&body)
                .with_context(|| format!("{path}: {}", head.status))?;
            left = (pending, unacked.max(left.1));
        }
        let is_over = Instant::now() > give_up;
        if left == (0, 0) || is_over {
            soak.invariants.borrow_mut().check(Invariant::Engine, left == (0, 0), || {
                format!(
                    "{queue:?}: the engine has {left:?} messages (to give, given and not acknowledged); {}",
                    soak.cluster.since_restarts()
                )
            });
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn read_dead_letters(
    soak: &EngineSoak,
    caller: &mut Caller,
    queue: Queue,
) -> anyhow::Result<()> {
    let target = format!("/{}/dead-letters?peek&since=all&max=1000", queue.topic.path());
    let (head, body) = ask(caller, "GET", &target).await?;
    if head.status != 200 {
        return Ok(());
    }
    for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message = json::read_message(line)?;
        let origin = payload::read(message.payload(), queue.topic.name());
        let is_theirs = message.headers().get("dead-letter-group") == queue.group;
        if let Some(origin) = origin.filter(|_| is_theirs) {
            soak.accounts.borrow_mut().queue(queue).dead.insert(name(origin));
            soak.invariants.borrow_mut().count("dead letters", 1);
        }
    }
    Ok(())
}

/// How many messages the engine has of a topic, and how many of them are of this round: all, unless those of earlier rounds
/// may be there again. Then they are read.
async fn count(soak: &EngineSoak, caller: &mut Caller, topic: Topic) -> anyhow::Result<(u64, u64)> {
    let counted = counts::messages(&soak.cluster, topic)?;
    if !soak.may_have_revived() {
        return Ok((counted, counted));
    }
    let (mut all, mut own, mut from) = (0, 0, "all".to_owned());
    loop {
        let target = format!("/{}?peek&since={from}&max=1000", topic.path());
        let (head, body) = ask(caller, "GET", &target).await?;
        let mut last = None;
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            // Others are gaps, in topics that are removed from.
            let Ok(message) = json::read_message(line) else { continue };
            let origin = payload::read(message.payload(), topic.name());
            all += 1;
            own += u64::from(origin.is_some_and(|origin| soak.is_of_round(origin)));
            last = Some(message.id());
        }
        let Some((id, epoch)) = last.zip(head.number("msgbus-epoch")) else { break };
        from = format!("{epoch}-{id}");
    }
    let mut invariants = soak.invariants.borrow_mut();
    invariants.check(Invariant::Engine, !topic.is_kept() || all == counted, || {
        format!("{topic:?}: the engine has {counted}, and {all} can be read")
    });
    Ok((counted, own))
}

/// Compares how many messages the engine has with how many publishers were told of.
async fn compare_topics(soak: &EngineSoak, caller: &mut Caller) -> anyhow::Result<()> {
    for topic in Topic::all() {
        let (head, _) = ask(caller, "HEAD", &format!("/{}", topic.path())).await?;
        let (counted, own) = count(soak, caller, topic).await?;
        let accounts = soak.accounts.borrow();
        let (confirmed, unknown) = accounts
            .topics
            .get(&topic)
            .map_or((0, 0), |known| (known.confirmed.len() as u64, known.unknown));
        let least = if topic.is_kept() { confirmed } else { 0 };
        let most = confirmed + unknown;
        let most = if topic.prefix() == SHORT { most.min(MAX_MESSAGES) } else { most };
        let mut invariants = soak.invariants.borrow_mut();
        let has_revived = topic.is_kept() && own < counted;
        invariants.count("topics with messages that had been deleted", u64::from(has_revived));
        invariants.check(Invariant::Engine, (least..=most).contains(&own), || {
            format!("{topic:?}: the engine has {own} of {counted}, expected {least} to {most}")
        });
        let retained = head.number("msgbus-retained");
        let is_told = !topic.is_kept() || retained == Some(counted);
        invariants.check(Invariant::Engine, is_told, || {
            format!("{topic:?}: the engine has {counted}, HEAD says {retained:?}")
        });
    }
    Ok(())
}

/// Checks that each confirmed message was acknowledged or pulled, or is a dead letter.
fn compare_queues(soak: &EngineSoak) {
    let mut accounts = soak.accounts.borrow_mut();
    let mut invariants = soak.invariants.borrow_mut();
    for queue in Queue::all() {
        let confirmed: HashSet<_> = accounts
            .topics
            .get(&queue.topic)
            .map(|known| known.confirmed.clone())
            .unwrap_or_default();
        let account = accounts.queue(queue);
        let lost: Vec<_> = confirmed.iter().filter(|name| !account.knows(name)).collect();
        let (invariant, most) = match queue.group {
            Some(_) => (Invariant::Acks, 0),
            None => (Invariant::Pulled, account.unknown),
        };
        invariants.check(invariant, lost.len() as u64 <= most, || {
            format!("{queue:?}: {} messages are lost, such as {:?}", lost.len(), lost.first())
        });
    }
}
