//! What workers know of groups: a model of each group, against which every delivery and every settlement is
//! checked.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use fastrand::Rng;
use tokio::time::Instant;

use super::{
    ids::IdSet,
    invariants::{Count, Invariant, Invariants},
    topics::Topic,
};

/// How far the server's clock may be from that of the clients: deadlines are stored in wall-clock time.
const SLACK: Duration = Duration::from_millis(50);
/// The groups that lose nothing.
const JOBS: [(&str, &str); 3] = [("jobs/0", "alpha"), ("jobs/0", "beta"), ("jobs/1", "alpha")];
/// The groups of topics with a TTL, which are deleted and pulled from too.
const TASKS: [(&str, &str); 3] = [("tasks/0", "alpha"), ("tasks/0", MOVED), ("tasks/1", "alpha")];
const DEAD_LETTERS: [(&str, &str); 4] = [
    ("jobs/0/dead-letters", REDRIVE),
    ("jobs/1/dead-letters", REDRIVE),
    ("tasks/0/dead-letters", REDRIVE),
    ("tasks/1/dead-letters", REDRIVE),
];
/// A group that is moved and removed, after which messages are delivered again that were acknowledged.
const MOVED: &str = "moved";
const REDRIVE: &str = "redrive";

/// A group of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupId {
    pub(super) topic: Topic,
    pub(super) name: &'static str,
}

impl GroupId {
    fn of((topic, name): &(&str, &'static str)) -> Self {
        Self { topic: Topic::named(topic), name }
    }

    pub(super) fn random(rng: &mut Rng) -> Self {
        let groups: &[_] = match rng.u8(..10) {
            0..5 => &JOBS,
            5..8 => &TASKS,
            _ => &DEAD_LETTERS,
        };
        Self::of(&groups[rng.usize(..groups.len())])
    }

    /// The groups whose topics lose nothing, and from which no dead letter is taken.
    pub(super) fn jobs() -> impl Iterator<Item = Self> {
        JOBS.iter().map(Self::of)
    }

    /// The groups of topics that are not deleted during a round and have no TTL.
    pub(super) fn lossless() -> impl Iterator<Item = Self> {
        JOBS.iter().chain(&DEAD_LETTERS).map(Self::of)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        JOBS.iter().chain(&TASKS).chain(&DEAD_LETTERS).map(Self::of)
    }

    /// The group that is moved and removed.
    pub(super) fn moved() -> Self {
        Self::of(&TASKS[1])
    }

    pub(super) fn is_lossless(&self) -> bool {
        self.topic.is_for_jobs() || self.topic.is_of_dead_letters()
    }

    pub(super) fn is_moved(&self) -> bool {
        self.name == MOVED
    }
}

/// What is done with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Ack,
    Nack,
    /// For this time from now on.
    Extend(Duration),
}

/// What a worker knows of the settlement of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Settled,
    /// The lease was over.
    Lost,
    /// The response did not arrive.
    Unknown,
}

/// A lease that a worker has.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) group: GroupId,
    /// When the topic was created, in nanoseconds since 1970.
    pub(super) life: u64,
    pub(super) id: u64,
    pub(super) token: String,
    /// Until then the server cannot have ended the lease.
    pub(super) live_until: Instant,
    /// From then on the lease is over.
    pub(super) over_at: Instant,
}

/// What workers know of all groups.
#[derive(Debug, Default)]
pub(super) struct GroupRecords {
    lives: BTreeMap<(GroupId, u64), GroupRecord>,
    /// How many more messages may have been delivered, in responses that did not arrive.
    unknown: BTreeMap<GroupId, u64>,
    /// Whether the server was killed in this round.
    was_killed: bool,
}

/// What workers know of a group in one life of its topic.
#[derive(Debug, Default)]
pub(super) struct GroupRecord {
    /// The last lease of each message that is not known to be acknowledged.
    leases: HashMap<u64, LastLease>,
    acked: IdSet,
    /// Acknowledgements without a response.
    maybe_acked: IdSet,
    /// The ids of dead letters, by the ids of their messages. After a kill of the server there may be a second one.
    dead: BTreeMap<u64, BTreeSet<u64>>,
    pub(super) nacked: Count,
    delivered: u64,
    /// How many messages were published that the group does not count.
    base: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct LastLease {
    deliveries: u64,
    live_until: Instant,
    /// Whether its worker may have settled it.
    may_be_over: bool,
}

impl GroupRecord {
    pub(super) fn acked(&self) -> Count {
        let unconfirmed = self.maybe_acked.iter().filter(|id| !self.acked.contains(*id)).count();
        Count { confirmed: self.acked.len(), unconfirmed: unconfirmed as u64 }
    }

    /// The first message below `end` of which no worker knows what has become.
    pub(super) fn first_lost(&self, end: u64) -> Option<u64> {
        (0..end).find(|id| {
            let is_acked = self.acked.contains(*id) || self.maybe_acked.contains(*id);
            !is_acked && !self.dead.contains_key(id)
        })
    }

    /// What is known of a message, for a report.
    pub(super) fn describe(&self, id: u64) -> String {
        format!("last leased {:?}, its dead letters {:?}", self.leases.get(&id), self.dead.get(&id))
    }

    /// The dead letters that were published once more because of a kill.
    pub(super) fn dead_letters_again(&self) -> u64 {
        self.dead.values().map(|letters| letters.len() as u64 - 1).sum()
    }

    /// A message that was acknowledged, and is a dead letter.
    pub(super) fn first_acked_and_dead(&self) -> Option<u64> {
        self.dead.keys().copied().find(|id| self.acked.contains(*id))
    }

    /// Notes how many published messages the group does not count. Returns whether that is what was noted
    /// before.
    pub(super) fn note_base(&mut self, base: u64) -> bool {
        *self.base.get_or_insert(base) == base
    }
}

impl GroupRecords {
    pub(super) fn record_mut(&mut self, group: &GroupId, life: u64) -> &mut GroupRecord {
        self.lives.entry((group.clone(), life)).or_default()
    }

    fn life_of(&mut self, held: &Held) -> &mut GroupRecord {
        self.record_mut(&held.group, held.life)
    }

    /// How many messages were delivered to a group.
    pub(super) fn delivered(&self, group: &GroupId, life: u64) -> Count {
        let confirmed = self.lives.get(&(group.clone(), life)).map_or(0, |record| record.delivered);
        Count { confirmed, unconfirmed: self.unknown.get(group).copied().unwrap_or(0) }
    }

    /// Records that the server was killed: the dead letters that it was publishing may be published once more.
    pub(super) fn record_kill(&mut self) {
        self.was_killed = true;
    }

    /// Records a pull of up to `most` messages without a response.
    pub(super) fn may_have_delivered(&mut self, group: &GroupId, most: u64) {
        *self.unknown.entry(group.clone()).or_default() += most;
    }

    /// Records that a lease is about to be settled: from now on it may be over.
    pub(super) fn begin_to_settle(&mut self, held: &Held, verb: Verb, now: Instant) {
        if let Some(last) = self.life_of(held).leases.get_mut(&held.id) {
            match verb {
                Verb::Ack | Verb::Nack => last.may_be_over = true,
                Verb::Extend(lease) => last.live_until = last.live_until.min(now + lease),
            }
        }
    }
}

impl Invariants {
    /// Records a delivery whose response has just been received.
    pub(super) fn record_lease(&mut self, held: &Held, deliveries: u64) {
        self.count("messages leased", 1);
        let now = Instant::now();
        let record = self.groups.life_of(held);
        record.delivered += 1;
        if held.group.is_moved() || now >= held.live_until {
            // A message of a response that took longer may have been delivered again already.
            return;
        }
        let live_until = held.live_until;
        let new = LastLease { deliveries, live_until, may_be_over: false };
        let last = record.leases.insert(held.id, new);
        let is_free = last.is_none_or(|last| last.may_be_over || now + SLACK >= last.live_until);
        let is_next = last.is_none_or(|last| deliveries > last.deliveries);
        let is_acked = record.acked.contains(held.id);
        let what = || format!("{held:?}, delivery {deliveries}, before it {last:?}, now {now:?}");
        self.check(Invariant::Leases, is_free, what);
        self.check(Invariant::Deliveries, is_next && deliveries > 0, what);
        self.check(Invariant::Acks, !is_acked, || format!("after its ack: {}", what()));
    }

    /// Records the outcome of a settlement that was sent at `sent`.
    pub(super) fn record_settlement(
        &mut self,
        held: &mut Held,
        verb: Verb,
        outcome: Outcome,
        sent: Instant,
    ) {
        let now = Instant::now();
        match outcome {
            Outcome::Settled => {
                let is_live = sent <= held.over_at + SLACK;
                self.check(Invariant::Leases, is_live, || {
                    format!("{verb:?} of a lease that was over: {held:?}, sent {sent:?}")
                });
                self.record_settled(held, verb, sent, now);
            }
            Outcome::Lost => {
                self.count("leases lost before they were settled", 1);
                let may_be_over = now + SLACK >= held.live_until || !held.group.is_lossless();
                self.check(Invariant::Leases, may_be_over, || {
                    format!("{verb:?}: a live lease is lost: {held:?}, now {now:?}")
                });
            }
            Outcome::Unknown => {
                self.count("settlements without a response", 1);
                let record = self.groups.life_of(held);
                match verb {
                    Verb::Ack => drop(record.maybe_acked.insert(held.id)),
                    Verb::Nack => record.nacked.add(Count { confirmed: 0, unconfirmed: 1 }),
                    Verb::Extend(_) => {}
                }
            }
        }
    }

    fn record_settled(&mut self, held: &mut Held, verb: Verb, sent: Instant, now: Instant) {
        let record = self.groups.life_of(held);
        match verb {
            Verb::Ack => {
                record.leases.remove(&held.id);
                let is_new = record.acked.insert(held.id) || held.group.is_moved();
                self.count("messages acknowledged", 1);
                self.check(Invariant::Acks, is_new, || format!("acknowledged twice: {held:?}"));
            }
            Verb::Nack => {
                record.nacked.add(Count { confirmed: 1, unconfirmed: 0 });
                self.count("messages given back", 1);
            }
            Verb::Extend(lease) => {
                (held.live_until, held.over_at) = (sent + lease, now + lease);
                if let Some(last) = record.leases.get_mut(&held.id) {
                    last.live_until = held.live_until;
                }
                self.count("leases extended", 1);
            }
        }
    }

    /// Records a dead letter of a message that groups lose only by an ack.
    pub(super) fn record_dead_letter(&mut self, topic: &str, group: &str, id: u64, letter: u64) {
        let lives = self.groups.lives.iter_mut();
        let mut lives = lives.filter(|((of, _), _)| of.topic.name() == topic && of.name == group);
        let Some((_, record)) = lives.next() else { return };
        let letters = record.dead.entry(id).or_default();
        letters.insert(letter);
        let (letters, is_acked) = (letters.clone(), record.acked.contains(id));
        let most = if self.groups.was_killed { 2 } else { 1 };
        let what = || format!("{letters:?} of {topic} #{id}, group {group}");
        self.check(Invariant::DeadLetters, letters.len() <= most, what);
        self.check(Invariant::Acks, !is_acked, || {
            format!("a dead letter after its ack: {}", what())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(5);

    fn held(id: u64) -> Held {
        let now = Instant::now();
        let group = GroupId::jobs().next().unwrap();
        let (live_until, over_at) = (now + LEASE, now + LEASE);
        Held { group, life: 1, id, token: String::new(), live_until, over_at }
    }

    fn violations(invariants: &Invariants) -> [u64; 3] {
        [Invariant::Leases, Invariant::Deliveries, Invariant::Acks]
            .map(|invariant| invariants.state(invariant).map_or(0, |state| state.violations))
    }

    #[test]
    fn a_message_has_one_live_lease() {
        let mut invariants = Invariants::default();
        let mut first = held(3);
        invariants.record_lease(&first, 1);
        assert_eq!(violations(&invariants), [0, 0, 0]);
        invariants.record_lease(&held(3), 2);
        assert_eq!(violations(&invariants), [1, 0, 0], "the first worker still has it");

        invariants.groups.begin_to_settle(&first, Verb::Nack, Instant::now());
        invariants.record_lease(&held(3), 3);
        assert_eq!(violations(&invariants), [1, 0, 0], "it may have been given back");
        invariants.record_settlement(&mut first, Verb::Nack, Outcome::Lost, Instant::now());
        assert_eq!(violations(&invariants), [2, 0, 0], "nothing had ended that lease");
    }

    #[test]
    fn a_message_is_acknowledged_once_and_counted_rising() {
        let mut invariants = Invariants::default();
        let mut one = held(3);
        invariants.record_lease(&one, 2);
        for wrong in [0, 1] {
            let now = Instant::now();
            invariants.groups.begin_to_settle(&one, Verb::Ack, now);
            invariants.record_settlement(&mut one, Verb::Ack, Outcome::Settled, now);
            assert_eq!(violations(&invariants), [0, 0, wrong]);
        }
        invariants.record_lease(&held(3), 3);
        assert_eq!(violations(&invariants), [0, 0, 2], "it was done");
        invariants.record_lease(&held(4), 2);
        invariants.groups.begin_to_settle(&held(4), Verb::Nack, Instant::now());
        invariants.record_lease(&held(4), 2);
        assert_eq!(violations(&invariants), [0, 1, 2]);
    }

    #[test]
    fn a_job_is_lost_unless_somebody_knows_what_has_become_of_it() {
        let mut invariants = Invariants::default();
        let now = Instant::now();
        invariants.record_settlement(&mut held(0), Verb::Ack, Outcome::Settled, now);
        invariants.record_settlement(&mut held(1), Verb::Ack, Outcome::Unknown, now);
        let GroupId { topic, name } = held(0).group;
        invariants.record_dead_letter(topic.name(), name, 2, 0);
        let record = invariants.groups.life_of(&held(0));
        assert_eq!((record.first_lost(3), record.first_lost(4)), (None, Some(3)));
        assert_eq!(record.acked().range(), 1..=2);
        assert_eq!(record.first_acked_and_dead(), None);
        invariants.record_dead_letter(topic.name(), name, 0, 1);
        assert_eq!(violations(&invariants), [0, 0, 1]);
    }

    #[test]
    fn a_dead_letter_is_published_again_only_after_a_kill() {
        let mut invariants = Invariants::default();
        let wrong = |invariants: &Invariants| {
            invariants.state(Invariant::DeadLetters).map_or(0, |state| state.violations)
        };
        let GroupId { topic, name } = held(0).group;
        let life = held(0);
        let record = |invariants: &mut Invariants, letter| {
            invariants.groups.life_of(&life);
            invariants.record_dead_letter(topic.name(), name, 7, letter);
            invariants.groups.life_of(&life).dead_letters_again()
        };
        assert_eq!((record(&mut invariants, 3), record(&mut invariants, 3)), (0, 0));
        assert_eq!(wrong(&invariants), 0);
        invariants.groups.record_kill();
        assert_eq!((record(&mut invariants, 4), wrong(&invariants)), (1, 0));
        assert_eq!((record(&mut invariants, 5), wrong(&invariants)), (2, 1));
    }
}
