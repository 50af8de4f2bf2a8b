//! The record of a topic: what it is, and its state after all records of the topic that stand before it.

use std::{borrow::Cow, time::Duration};

use chrono::DateTime;
use msgbus_core::{
    Counters, RemovalCount, TopicInfo, TopicName,
    store::{Gap, Promise, TopicState},
};

use super::{
    DecodeError,
    fields::Fields,
    record::{ALIGNMENT, MIN_SIZE, nanoseconds},
};

/// A topic as it stands in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TopicRecord<'a> {
    pub(crate) name: &'a str,
    pub(crate) epoch: u64,
    /// In nanoseconds since 1970.
    created: i64,
    pub(crate) promise: Promise,
    pub(crate) state: TopicState,
    /// Ids below this one may have been given to messages that somebody has seen.
    pub(crate) reserved: u64,
    gaps: Gaps<'a>,
}

/// The gaps in the ids: as they are, or as they stand in the log.
#[derive(Debug, Clone, Copy)]
enum Gaps<'a> {
    List(&'a [Gap]),
    Encoded(&'a [u8]),
}

impl<'a> TopicRecord<'a> {
    /// How many gaps are kept, the newest ones.
    pub(crate) const MAX_GAPS: usize = 1000;
    const GAP_SIZE: usize = 16;

    pub(crate) fn new(
        info: &'a TopicInfo,
        promise: Promise,
        state: TopicState,
        reserved: u64,
        gaps: &'a [Gap],
    ) -> Self {
        let gaps = Gaps::List(&gaps[gaps.len().saturating_sub(Self::MAX_GAPS)..]);
        let created = nanoseconds(info.created);
        Self {
            name: info.name.as_str(),
            epoch: info.epoch,
            created,
            promise,
            state,
            reserved,
            gaps,
        }
    }

    /// The size of the record in bytes, with padding.
    pub(crate) fn size(&self) -> u64 {
        /// Two times of the topic, the interval of syncs, the reservation, four positions, ten counters.
        const NUMBERS: usize = 18;
        let gaps = usize::from(self.flag_and_extra().1) * Self::GAP_SIZE;
        let size = MIN_SIZE + NUMBERS * 8 + gaps + self.name.len();
        size.next_multiple_of(ALIGNMENT) as u64
    }

    /// The promise, and the number of gaps.
    pub(super) fn flag_and_extra(&self) -> (u8, u16) {
        let flag = match self.promise {
            Promise::Memory => 0,
            Promise::Written { .. } => 1,
            Promise::Synced => 2,
        };
        let gaps = match self.gaps {
            Gaps::List(gaps) => gaps.len(),
            Gaps::Encoded(gaps) => gaps.len() / Self::GAP_SIZE,
        };
        (flag, u16::try_from(gaps).unwrap_or(u16::MAX))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let sync_every = match self.promise {
            Promise::Written { sync_every } => {
                u64::try_from(sync_every.as_nanos()).unwrap_or(u64::MAX)
            }
            Promise::Memory | Promise::Synced => 0,
        };
        let TopicState { first_id, next_id, appended, pull_next, counters } = self.state;
        let Counters { published, pulled, delivered, missed, expired, evicted, deleted } = counters;
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.created.to_le_bytes());
        let numbers = [
            [sync_every, self.reserved, first_id, next_id, appended, pull_next],
            [published, pulled, delivered, missed, expired.total, expired.unpulled],
        ];
        let removals = [evicted.total, evicted.unpulled, deleted.total, deleted.unpulled];
        for number in numbers.as_flattened().iter().chain(&removals) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        match self.gaps {
            Gaps::Encoded(gaps) => out.extend_from_slice(gaps),
            Gaps::List(gaps) => {
                for number in gaps.iter().flat_map(|gap| [gap.id, gap.appended]) {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
        }
        out.extend_from_slice(self.name.as_bytes());
    }

    pub(super) fn decode(flag: u8, gaps: u16, mut fields: Fields<'a>) -> Result<Self, DecodeError> {
        let epoch = fields.u64()?;
        let created = fields.i64()?;
        let sync_every = Duration::from_nanos(fields.u64()?);
        let promise = match flag {
            0 => Promise::Memory,
            1 => Promise::Written { sync_every },
            2 => Promise::Synced,
            _ => return Err(DecodeError::Malformed),
        };
        let reserved = fields.u64()?;
        let state = decode_state(&mut fields)?;
        let gaps = Gaps::Encoded(fields.bytes(usize::from(gaps) * Self::GAP_SIZE)?);
        let name = fields.text(fields.0.len())?;
        Ok(Self { name, epoch, created, promise, state, reserved, gaps })
    }

    /// The topic's properties. The TTL is not kept.
    pub(crate) fn info(&self) -> Result<TopicInfo, DecodeError> {
        Ok(TopicInfo {
            name: TopicName::new(self.name).map_err(|_| DecodeError::Malformed)?,
            epoch: self.epoch,
            created: DateTime::from_timestamp_nanos(self.created),
            ttl: None,
        })
    }

    pub(crate) fn gaps(&self) -> Cow<'a, [Gap]> {
        match self.gaps {
            Gaps::List(gaps) => gaps.into(),
            Gaps::Encoded(gaps) => {
                let (gaps, _) = gaps.as_chunks::<16>();
                gaps.iter().filter_map(|gap| decode_gap(Fields(gap)).ok()).collect()
            }
        }
    }
}

fn decode_gap(mut fields: Fields<'_>) -> Result<Gap, DecodeError> {
    Ok(Gap { id: fields.u64()?, appended: fields.u64()? })
}

fn decode_state(fields: &mut Fields<'_>) -> Result<TopicState, DecodeError> {
    let mut number = || fields.u64();
    let (first_id, next_id, appended, pull_next) = (number()?, number()?, number()?, number()?);
    let (published, pulled, delivered, missed) = (number()?, number()?, number()?, number()?);
    let mut removals =
        || Ok::<_, DecodeError>(RemovalCount { total: fields.u64()?, unpulled: fields.u64()? });
    let (expired, evicted, deleted) = (removals()?, removals()?, removals()?);
    let counters = Counters { published, pulled, delivered, missed, expired, evicted, deleted };
    Ok(TopicState { first_id, next_id, appended, pull_next, counters })
}
