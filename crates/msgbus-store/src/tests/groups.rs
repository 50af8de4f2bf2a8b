//! Changes to groups that a bus may make, and what must be left of them after a crash.

use std::collections::BTreeMap;

use msgbus_core::{
    GroupCounters, GroupSettings,
    store::{GroupChange, GroupUpdate, KeptGroup, OpenMessage, RecoveredTopic, TopicState},
};

/// The groups of a topic, by number.
pub(super) type Groups = BTreeMap<u8, KeptGroup>;

/// The groups after a change.
pub(super) fn changed(groups: &Groups, number: u8, change: &GroupChange) -> Groups {
    let mut groups = groups.clone();
    match change {
        GroupChange::Set(group) => {
            groups.insert(number, KeptGroup::clone(group));
        }
        GroupChange::Update(update) => {
            groups.get_mut(&number).expect("it was set").update(update);
        }
        GroupChange::Removed => {
            groups.remove(&number);
        }
    }
    groups
}

/// Any change that a bus could make to one of few groups.
pub(super) fn any_change(
    random: &mut fastrand::Rng,
    groups: &Groups,
    topic: TopicState,
) -> (u8, GroupChange) {
    let number = [0, 1, 63][random.usize(..3)];
    let change = match (groups.get(&number), random.u32(..20)) {
        (None, _) | (_, 0) => GroupChange::Set(Box::new(any_group(random, topic))),
        (_, 1) => GroupChange::Removed,
        (Some(group), _) => GroupChange::Update(Box::new(any_update(random, group, topic))),
    };
    (number, change)
}

fn any_group(random: &mut fastrand::Rng, topic: TopicState) -> KeptGroup {
    let name = ["workers", "w", "A.b_c-9"][random.usize(..3)];
    let dead_letters = ["a", "größe/dead-letters"][random.usize(..2)].parse().ok();
    let settings = GroupSettings {
        max_deliveries: random.u32(..),
        max_leases: random.u32(1..2000),
        dead_letters: dead_letters.filter(|_| random.bool()),
    };
    let next_id = random.u64(topic.first_id..=topic.next_id);
    let given = topic.first_id..next_id;
    let open = given.filter(|_| random.u32(..3) == 0).collect::<Vec<_>>();
    KeptGroup {
        name: name.parse().expect("a name"),
        settings,
        is_explicit: random.bool(),
        base: random.u64(..) >> random.u32(..64),
        next_id,
        open: open.into_iter().map(|id| (id, any_open(random, id))).collect(),
        counters: any_counters(random),
    }
}

/// Leases, redeliveries, nacks, acks.
fn any_update(random: &mut fastrand::Rng, group: &KeptGroup, topic: TopicState) -> GroupUpdate {
    let most = topic.next_id.max(group.next_id);
    let next_id = most.min(group.next_id + random.u64(..4));
    let mut open: Vec<_> = (group.next_id..next_id).map(|id| any_open(random, id)).collect();
    let mut settled = Vec::new();
    for id in group.open.keys() {
        match random.u32(..6) {
            0 => open.push(any_open(random, *id)),
            1..3 => settled.push(*id),
            _ => {}
        }
    }
    random.shuffle(&mut settled);
    GroupUpdate { next_id, open, settled, counters: any_counters(random) }
}

pub(super) fn any_open(random: &mut fastrand::Rng, id: u64) -> OpenMessage {
    let letters = random.usize(..=128);
    OpenMessage {
        id,
        nonce: random.u64(..),
        deliveries: random.u32(..) >> random.u32(..32),
        is_leased: random.bool(),
        until: random.i64(..),
        reason: (random.u32(..4) == 0).then(|| "é".repeat(letters).into()),
    }
}

fn any_counters(random: &mut fastrand::Rng) -> GroupCounters {
    let mut count = || random.u64(..) >> random.u32(..64);
    GroupCounters {
        delivered: count(),
        redelivered: count(),
        acked: count(),
        nacked: count(),
        lease_expired: count(),
        dead_lettered: count(),
        dead_letters_refused: count(),
        expired: count(),
        evicted: count(),
    }
}

/// Checks that the groups that were found are what they were after one of the changes that may be the last one. Of the
/// messages below `released`, which are gone, any may be missing.
pub(super) fn check(found: &RecoveredTopic, possible: &[Groups], released: u64) {
    let groups: Groups = found.groups.iter().cloned().collect();
    assert_eq!(groups.len(), found.groups.len());
    let first_id = found.state.first_id;
    for group in groups.values() {
        let is_there = |id: &u64| (first_id..found.state.next_id).contains(id);
        assert!(group.open.keys().all(is_there), "{group:?} {:?}", found.state);
    }
    let from = first_id.max(released);
    let is_found = possible.iter().rev().any(|possible| is_same(&groups, possible, from));
    assert!(is_found, "{groups:#?} is none of {possible:#?} from {from}");
}

fn is_same(found: &Groups, expected: &Groups, from: u64) -> bool {
    let without_open = |group: &KeptGroup| KeptGroup { open: BTreeMap::new(), ..group.clone() };
    found.len() == expected.len()
        && found.iter().zip(expected).all(|((number, found), (expected_number, expected))| {
            let is_known = |(id, message)| expected.open.get(id) == Some(message);
            number == expected_number
                && without_open(found) == without_open(expected)
                && found.open.iter().all(is_known)
                && found.open.range(from..).count() == expected.open.range(from..).count()
        })
}
