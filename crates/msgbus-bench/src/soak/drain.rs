//! The end of a round for groups: all jobs are taken and acknowledged, then it is compared what has become of
//! each of them.

use std::{collections::BTreeMap, io, ops::RangeInclusive, time::Duration};

use fastrand::Rng;
use msgbus_client::TopicDetails;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{
    Soak,
    groups::{GroupId, Held, Verb},
    invariants::{Invariant, Invariants},
    raw_client::RawClient,
    settle::settle_many,
    topics::Topic,
    workers::{read_leased, receive},
};

/// Longer than any lease, any delay, and the time until a refused dead letter is tried again.
const TIMEOUT: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The counters of a group.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct GroupCounts {
    group: String,
    next_id: u64,
    pending: u64,
    leased: u64,
    waiting: u64,
    delivered: u64,
    acked: u64,
    nacked: u64,
    lease_expired: u64,
    redelivered: u64,
    dead_lettered: u64,
    dead_letters_refused: u64,
    expired: u64,
    evicted: u64,
}

/// The groups in the description of a topic.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Groups {
    #[serde(default)]
    pub(super) groups: Vec<GroupCounts>,
}

impl GroupCounts {
    fn unacked(&self) -> u64 {
        self.pending + self.leased + self.waiting
    }

    /// The messages that the group counts.
    fn total(&self) -> u64 {
        self.acked + self.dead_lettered + self.expired + self.evicted + self.unacked()
    }
}

/// Creates the groups that have to begin with the first message of their topics. Topics for dead letters are there from
/// the beginning too, so that the limit on topics does not keep out dead letters for ever.
pub(super) async fn create_groups(soak: &Soak) -> io::Result<()> {
    let mut client = RawClient::open(&soak.endpoint).await?;
    for GroupId { topic, name } in GroupId::lossless() {
        let settings = if topic.is_for_jobs() { "?max_deliveries=3&max_leases=300" } else { "" };
        let path = format!("/-/groups/{name}/{}{settings}", topic.name());
        client.send(soak.request("PUT", &path).as_bytes()).await?;
        let (head, body) = client.read_response(true).await?;
        let mut invariants = soak.invariants.borrow_mut();
        invariants.check(Invariant::Responses, head.status == 201, || {
            format!("PUT {path}: {} {}", head.status, String::from_utf8_lossy(&body))
        });
    }
    Ok(())
}

/// Takes some leases that are long enough to survive a kill of the server.
pub(super) async fn hold(soak: &Soak) -> io::Result<()> {
    let mut client = RawClient::open(&soak.endpoint).await?;
    for group in GroupId::lossless() {
        let held = take(soak, &mut client, &group, 10).await?;
        soak.held.borrow_mut().extend(held);
    }
    Ok(())
}

/// Takes and acknowledges everything in topics that lose nothing.
pub(super) async fn drain(soak: &Soak, rng: &mut Rng) -> io::Result<()> {
    let give_up = Instant::now() + TIMEOUT;
    let mut client = RawClient::open(&soak.endpoint).await?;
    let mut left = BTreeMap::new();
    while Instant::now() < give_up {
        left.clear();
        for group in GroupId::lossless() {
            while take_and_ack(soak, &mut client, &group, rng).await? {}
            let unacked = unacked(soak, &mut client, &group).await?;
            if unacked > 0 {
                left.insert(group, unacked);
            }
        }
        if left.is_empty() {
            break;
        }
        sleep(POLL_INTERVAL).await;
    }
    let mut invariants = soak.invariants.borrow_mut();
    invariants.check(Invariant::Acks, left.is_empty(), || format!("not delivered: {left:?}"));
    Ok(())
}

/// Takes some messages and acknowledges them. Returns whether there were any.
async fn take_and_ack(
    soak: &Soak,
    client: &mut RawClient,
    group: &GroupId,
    rng: &mut Rng,
) -> io::Result<bool> {
    let held = take(soak, client, group, 200).await?;
    if held.is_empty() {
        return Ok(false);
    }
    settle_many(soak, client, held, Verb::Ack, rng).await?;
    Ok(true)
}

async fn take(
    soak: &Soak,
    client: &mut RawClient,
    group: &GroupId,
    most: u32,
) -> io::Result<Vec<Held>> {
    let (topic, name, lease) = (group.topic.name(), group.name, LEASE.as_secs());
    let path = format!("/{topic}?group={name}&max={most}&lease={lease}s");
    let asked = Instant::now();
    client.send(soak.request("GET", &path).as_bytes()).await?;
    let (head, body) = client.read_response(true).await?;
    match head.status {
        200 => Ok(receive(soak, group, None, &read_leased(&head, &body)?, (asked, LEASE))),
        // Leases of workers that were killed may still be too many.
        404 | 429 | 503 => Ok(Vec::new()),
        status => Err(io::Error::other(format!("GET {path}: {status}"))),
    }
}

async fn unacked(soak: &Soak, client: &mut RawClient, group: &GroupId) -> io::Result<u64> {
    let path = format!("/-/groups/{}/{}", group.name, group.topic.name());
    client.send(soak.request("GET", &path).as_bytes()).await?;
    let (head, body) = client.read_response(true).await?;
    match head.status {
        200 => Ok(serde_json::from_slice::<GroupCounts>(&body)?.unacked()),
        404 => Ok(0),
        status => Err(io::Error::other(format!("GET {path}: {status}"))),
    }
}

/// Compares the groups of a topic with what workers know, while nothing is published and nothing is taken.
pub(super) fn compare_groups(
    invariants: &mut Invariants,
    details: &TopicDetails,
    groups: &[GroupCounts],
    life: u64,
) {
    let topic = &details.topic;
    for counts in groups {
        let holds = counts.total() <= topic.published && counts.next_id <= topic.next_id;
        let what = || format!("published {}, {counts:?} of {}", topic.published, topic.name);
        invariants.check(Invariant::Groups, holds, what);
        let known = GroupId::all()
            .find(|group| group.topic.name() == topic.name && group.name == counts.group);
        let Some(group) = known.filter(|group| holds && !group.is_moved()) else { continue };
        // Dead letters may be published between the response for the topic and that for its group.
        if !group.topic.is_of_dead_letters() {
            let base = topic.published - counts.total();
            let is_constant = invariants.groups.record_mut(&group, life).note_base(base);
            let most = if group.is_lossless() { 0 } else { topic.expired + topic.evicted };
            invariants.check(Invariant::Groups, is_constant && base <= most, what);
        }
        if group.is_lossless() {
            let ended = counts.acked + counts.nacked + counts.lease_expired;
            let holds = counts.delivered == ended + counts.leased;
            invariants.check(Invariant::Deliveries, holds, what);
            let is_lossless = (counts.expired, counts.evicted) == (0, 0);
            invariants.check(Invariant::Groups, is_lossless, what);
        }
        compare_with_workers(invariants, &group, counts, life);
    }
}

fn compare_with_workers(
    invariants: &mut Invariants,
    group: &GroupId,
    counts: &GroupCounts,
    life: u64,
) {
    let record = invariants.groups.record_mut(group, life);
    let (acked, nacked) = (record.acked(), record.nacked);
    let delivered = invariants.groups.delivered(group, life);
    for (invariant, name, reported, local) in [
        (Invariant::Acks, "acked", counts.acked, acked),
        (Invariant::Deliveries, "nacked", counts.nacked, nacked),
        (Invariant::Deliveries, "delivered", counts.delivered, delivered),
    ] {
        let local: RangeInclusive<u64> = local.range();
        invariants.check(invariant, local.contains(&reported), || {
            format!("{group:?}: {name} {reported}, expected {} to {}", local.start(), local.end())
        });
    }
}

/// A topic, with its groups and its creation time in nanoseconds since 1970.
pub(super) type Described = (TopicDetails, Groups, u64);

/// Compares what has become of each job, when there are none left: acknowledged, or a dead letter.
pub(super) fn compare_jobs(invariants: &mut Invariants, all: &[Described]) {
    for (details, Groups { groups }, life) in all {
        let topic = Topic::named(&details.topic.name);
        if topic.is_of_dead_letters() {
            invariants.dead_letters += details.topic.published;
        }
        for counts in groups {
            invariants.count("dead letters", counts.dead_lettered);
            invariants.count("dead letters refused", counts.dead_letters_refused);
            invariants.count("leases ended by time", counts.lease_expired);
            invariants.count("messages redelivered", counts.redelivered);
        }
        if topic.is_for_jobs() {
            let again = compare_each_job(invariants, details, groups, *life);
            compare_dead_letters(invariants, &topic, groups, again, all);
        }
    }
}

/// Returns how many dead letters were published once more.
fn compare_each_job(
    invariants: &mut Invariants,
    details: &TopicDetails,
    groups: &[GroupCounts],
    life: u64,
) -> u64 {
    let mut again = 0;
    for group in GroupId::jobs().filter(|group| group.topic.name() == details.topic.name) {
        let record = invariants.groups.record_mut(&group, life);
        again += record.dead_letters_again();
        let (lost, both) =
            (record.first_lost(details.topic.next_id), record.first_acked_and_dead());
        let lost = lost.map(|id| (id, record.describe(id)));
        invariants.check(Invariant::Acks, lost.is_none(), || {
            let counts = groups.iter().find(|counts| counts.group == group.name);
            format!("{group:?}: nobody knows what became of {lost:?}; {counts:?}")
        });
        invariants.check(Invariant::Acks, both.is_none(), || {
            format!("{group:?}: acknowledged, and a dead letter: #{both:?}")
        });
    }
    if again > 0 {
        invariants.count("dead letters published once more, after a kill", again);
    }
    again
}

fn compare_dead_letters(
    invariants: &mut Invariants,
    topic: &Topic,
    groups: &[GroupCounts],
    again: u64,
    all: &[Described],
) {
    let dead: u64 = groups.iter().map(|counts| counts.dead_lettered).sum();
    let is_theirs = |(of, ..): &&Described| {
        let of = Topic::named(&of.topic.name);
        of.is_of_dead_letters() && of.origin() == topic.name()
    };
    let published = all.iter().find(is_theirs).map_or(0, |(of, ..)| of.topic.published);
    invariants.check(Invariant::DeadLetters, published == dead + again, || {
        format!("{topic:?}: {dead} dead letters and {again} again, but {published} were published")
    });
}
