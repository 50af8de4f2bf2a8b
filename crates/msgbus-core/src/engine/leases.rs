//! Leases and groups of an engine.

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};

use super::Begin;
use crate::{model::TopicName, options::BatchLimit, store::RecoveredMessage};

/// How to lease messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// The maximum number of messages, and of their bytes.
    pub limit: BatchLimit,
    /// How long the leases should last. An engine may give others: [`Fetched::expires`] counts.
    pub lease: Duration,
    /// How long to wait for the first message.
    pub wait: Duration,
    /// Where the group begins if it is new.
    pub from: Begin,
}

/// Identifies a lease in its engine: at most [`MAX_LEASE_KEY`] bytes. Who can only read the topic must not be able to guess it.
pub type LeaseKey = Box<[u8]>;

/// The maximum size of a [`LeaseKey`], in bytes.
pub const MAX_LEASE_KEY: usize = 64;

/// Leased messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases {
    /// The epoch of the sequences.
    pub epoch: u64,
    /// The messages.
    pub messages: Vec<Fetched>,
    /// What the group has of its own.
    pub settings: EngineGroupSettings,
}

/// A leased message.
#[derive(Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The message.
    pub message: RecoveredMessage,
    /// How often the group was given the message, this time included.
    pub deliveries: u32,
    /// Until then, nobody else gets the message.
    pub expires: DateTime<Utc>,
    /// Settles the lease.
    pub key: LeaseKey,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key settles the lease.
        let Self { message, deliveries, expires, key: _ } = self;
        let mut all = f.debug_struct("Fetched");
        all.field("message", message).field("deliveries", deliveries).field("expires", expires);
        all.finish_non_exhaustive()
    }
}

/// What a group has of its own. What is `None` is as in [`GroupSettings::of`](crate::GroupSettings::of).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineGroupSettings {
    /// See [`GroupSettings::max_deliveries`](crate::GroupSettings::max_deliveries).
    pub max_deliveries: Option<u32>,
    /// See [`GroupSettings::dead_letters`](crate::GroupSettings::dead_letters).
    pub dead_letters: Option<TopicName>,
}

impl EngineGroupSettings {
    /// Takes what a change has.
    pub fn change(&mut self, change: Self) {
        self.max_deliveries = change.max_deliveries.or(self.max_deliveries);
        self.dead_letters = change.dead_letters.or(self.dead_letters.take());
    }
}

/// A group of an engine at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineGroup {
    /// Messages that the group has not been given.
    pub pending: u64,
    /// Messages that it was given and has not acknowledged: those that are leased, and those that will be given again.
    pub unacked: u64,
    /// What it has of its own.
    pub settings: EngineGroupSettings,
}

/// What a group of an engine has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unsettled {
    /// Of the messages before `next`, those that it was given and has not acknowledged, in order. Some may be gone.
    pub given: Vec<u64>,
    /// Of the messages from this sequence on, it has acknowledged none. If the engine only knows the first message that is
    /// not acknowledged, it is that one: then some may be acknowledged.
    pub next: u64,
}
