//! The groups of one topic.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use msgbus_core::{
    GroupName, GroupSettings, LeaseToken, SettledBatch, Settlement,
    engine::{
        Begin, EngineError, EngineGroup, EngineGroupSettings, Fetch, Fetched, LeaseKey, Unsettled,
    },
};
use tokio::time::Instant;

use super::topic::Topic;

#[derive(Debug)]
pub(super) struct Group {
    /// The lowest id of the next message that the group has not been given.
    next: u64,
    /// Messages below that which are not done.
    open: BTreeMap<u64, Open>,
    settings: EngineGroupSettings,
}

#[derive(Debug)]
struct Open {
    deliveries: u32,
    /// `None` if it is not leased.
    nonce: Option<u64>,
    until: Instant,
}

impl Topic {
    /// Leases messages. Also returns when others can be leased.
    pub(super) fn fetch(
        &mut self,
        name: Option<&GroupName>,
        fetch: &Fetch,
        random: &mut fastrand::Rng,
    ) -> (Vec<Fetched>, Option<Instant>) {
        let now = Instant::now();
        let start = self.resolve(fetch.from, self.next);
        let new = || Group {
            next: start,
            open: BTreeMap::new(),
            settings: EngineGroupSettings::default(),
        };
        let group = self.groups.entry(name.cloned()).or_insert_with(new);
        group.open.retain(|id, _| self.messages.contains_key(id));
        let due = group.open.iter().filter(|(_, open)| open.until <= now);
        let mut ids: Vec<u64> = due.map(|(id, _)| *id).collect();
        ids.extend(self.messages.range(group.next..).map(|(id, _)| *id));
        let until = now + fetch.lease;
        let (mut fetched, mut bytes) = (Vec::new(), 0);
        for id in ids {
            if fetched.len() >= fetch.limit.events.max(1) || bytes >= fetch.limit.bytes.max(1) {
                break;
            }
            let message = self.messages[&id].clone();
            bytes += message.payload.len();
            let nonce = random.u64(..);
            let open = group.open.entry(id);
            let open = open.or_insert(Open { deliveries: 0, nonce: None, until });
            *open = Open { deliveries: open.deliveries + 1, nonce: Some(nonce), until };
            group.next = group.next.max(id + 1);
            let key = [id.to_le_bytes(), nonce.to_le_bytes()].concat().into();
            let (deliveries, expires) = (open.deliveries, wall(until));
            fetched.push(Fetched { message, deliveries, expires, key });
        }
        (fetched, group.open.values().map(|open| open.until).min())
    }

    /// Refuses a group that is new, when there are as many as there may be.
    pub(super) fn check_count(&self, name: Option<&GroupName>) -> Result<(), EngineError> {
        let limit = GroupSettings::MAX_GROUPS;
        let count = self.groups.keys().flatten().count();
        let is_new = name.is_some() && !self.groups.contains_key(&name.cloned());
        if is_new && count >= limit { Err(EngineError::TooManyGroups { limit }) } else { Ok(()) }
    }

    pub(super) fn group(&self, name: &GroupName) -> Option<EngineGroup> {
        let group = self.groups.get(&Some(name.clone()))?;
        let open = group.open.keys().filter(|id| self.messages.contains_key(id));
        let pending = self.messages.range(group.next..).count() as u64;
        let (unacked, settings) = (open.count() as u64, group.settings.clone());
        Some(EngineGroup { pending, unacked, settings })
    }

    pub(super) fn unsettled(&self, name: &GroupName, max: usize) -> Option<Unsettled> {
        let group = self.groups.get(&Some(name.clone()))?;
        let given = group.open.keys().copied().take(max).collect();
        Some(Unsettled { given, next: group.next })
    }

    pub(super) fn settings(&self, name: Option<&GroupName>) -> EngineGroupSettings {
        let group = self.groups.get(&name.cloned());
        group.map(|group| group.settings.clone()).unwrap_or_default()
    }

    pub(super) fn change_group(
        &mut self,
        name: &GroupName,
        change: EngineGroupSettings,
    ) -> Result<(), EngineError> {
        let group = self.groups.get_mut(&Some(name.clone())).ok_or(EngineError::Unavailable)?;
        group.settings.change(change);
        Ok(())
    }

    /// Returns whether it is new.
    pub(super) fn set_group(&mut self, name: &GroupName, from: Option<Begin>) -> bool {
        let name = Some(name.clone());
        let is_new = !self.groups.contains_key(&name);
        if is_new || from.is_some() {
            let next = self.resolve(from.unwrap_or(Begin::First), self.next);
            let settings = self.settings(name.as_ref());
            self.groups.insert(name, Group { next, open: BTreeMap::new(), settings });
        }
        is_new
    }

    pub(super) fn settle(
        &mut self,
        name: Option<&GroupName>,
        keys: &[LeaseKey],
        settlement: &Settlement,
    ) -> SettledBatch {
        let now = Instant::now();
        let mut settled = SettledBatch::default();
        let mut group = self.groups.get_mut(&name.cloned());
        for (index, key) in keys.iter().enumerate() {
            let parsed = key.split_first_chunk().and_then(|(id, nonce)| {
                Some((u64::from_le_bytes(*id), u64::from_le_bytes(nonce.try_into().ok()?)))
            });
            let lease = parsed.and_then(|(id, nonce)| {
                let group = group.as_deref_mut()?;
                let open = group.open.get(&id)?;
                (open.nonce == Some(nonce) && open.until > now).then_some((id, group))
            });
            let Some((id, group)) = lease else {
                settled.lost.push(index);
                continue;
            };
            let Some(open) = group.open.get_mut(&id) else { continue };
            match settlement {
                Settlement::Ack => drop(group.open.remove(&id)),
                Settlement::Nack { delay, .. } => {
                    let delay = (*delay).min(LeaseToken::MAX_TIME);
                    (open.nonce, open.until) = (None, now + delay);
                }
                Settlement::Extend { lease } => {
                    open.until = now + (*lease).min(LeaseToken::MAX_TIME);
                    let expires = wall(open.until);
                    settled.expires = settled.expires.into_iter().chain([expires]).min();
                }
            }
        }
        settled
    }
}

fn wall(time: Instant) -> DateTime<Utc> {
    Utc::now() + (time - Instant::now())
}
