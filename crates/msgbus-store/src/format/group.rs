//! The records of groups: a group as a whole, and what changes in it.

use std::collections::BTreeMap;

use msgbus_core::{
    GroupCounters, GroupName, GroupSettings, LeaseToken, TopicName,
    store::{GroupChange, GroupUpdate, KeptGroup, OpenMessage},
};

use super::{
    DecodeError,
    fields::{Fields, put_varint},
};

/// The highest number of a group.
const MAX_NUMBER: u8 = 63;
/// The maximum number of open messages in a record, and of settled ones.
const MAX_MESSAGES: usize = 65_536;
/// Bits of an open message's flags.
const IS_LEASED: u8 = 1;
const HAS_REASON: u8 = 2;

/// What a record says about a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupKind {
    /// This is the whole group. It replaces what the number stood for.
    Set,
    /// The group goes on in another segment. Its open messages are those of the records before.
    Continued,
    Update,
    Removed,
}

/// A change to a group as it stands in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupRecord<'a> {
    pub(crate) topic: u32,
    pub(crate) number: u8,
    pub(crate) kind: GroupKind,
    is_explicit: bool,
    fields: Fields<'a>,
}

impl<'a> GroupRecord<'a> {
    /// No record of a group without messages takes more than this many bytes.
    pub(crate) const MAX_SIZE: u64 = 512;

    pub(super) fn decode(
        kind: GroupKind,
        (number, extra, topic): (u8, u16, u32),
        fields: Fields<'a>,
    ) -> Result<Self, DecodeError> {
        if number > MAX_NUMBER || extra > 1 {
            return Err(DecodeError::Malformed);
        }
        if kind == GroupKind::Removed {
            fields.end()?;
        }
        Ok(Self { topic, number, kind, is_explicit: extra == 1, fields })
    }

    /// The change. A group that is continued is one that is set, without its open messages.
    pub(crate) fn change(&self) -> Result<GroupChange, DecodeError> {
        let mut fields = self.fields;
        match self.kind {
            GroupKind::Set | GroupKind::Continued => {
                let mut group = decode_group(&mut fields, self.is_explicit)?;
                if self.kind == GroupKind::Set {
                    let count = decode_count(&mut fields)?;
                    let open = decode_open(&mut fields, count)?;
                    group.open = open.into_iter().map(|message| (message.id, message)).collect();
                }
                fields.end()?;
                Ok(GroupChange::Set(Box::new(group)))
            }
            GroupKind::Update => {
                let (next_id, counters) = (fields.varint()?, decode_counters(&mut fields)?);
                let count = decode_count(&mut fields)?;
                let open = decode_open(&mut fields, count)?;
                let settled = decode_settled(&mut fields)?;
                let update = GroupUpdate { next_id, open, settled, counters };
                Ok(GroupChange::Update(Box::new(update)))
            }
            GroupKind::Removed => Ok(GroupChange::Removed),
        }
    }
}

/// Whether a change can be written so that it is read again. The bus keeps these limits too.
pub(crate) fn is_within_limits(number: u8, change: &GroupChange) -> bool {
    number <= MAX_NUMBER
        && match change {
            GroupChange::Set(group) => group.open.len() <= MAX_MESSAGES,
            GroupChange::Update(update) => {
                update.open.len() <= MAX_MESSAGES && update.settled.len() <= MAX_MESSAGES
            }
            GroupChange::Removed => true,
        }
}

/// Everything of a group but its open messages.
pub(super) fn encode_group(out: &mut Vec<u8>, group: &KeptGroup) {
    let GroupSettings { max_deliveries, max_leases, dead_letters } = &group.settings;
    put_text(out, group.name.as_str());
    put_text(out, dead_letters.as_ref().map_or("", TopicName::as_str));
    for number in [*max_deliveries, *max_leases] {
        put_varint(out, number.into());
    }
    put_varint(out, group.base);
    put_varint(out, group.next_id);
    encode_counters(out, &group.counters);
}

fn decode_group(fields: &mut Fields<'_>, is_explicit: bool) -> Result<KeptGroup, DecodeError> {
    let name = decode_text(fields, GroupName::MAX_BYTES)?;
    let name = GroupName::new(name).map_err(|_| DecodeError::Malformed)?;
    let dead_letters = match decode_text(fields, TopicName::MAX_BYTES)? {
        "" => None,
        name => Some(TopicName::new(name).map_err(|_| DecodeError::Malformed)?),
    };
    let (max_deliveries, max_leases) = (fields.varint32()?, fields.varint32()?);
    Ok(KeptGroup {
        name,
        settings: GroupSettings { max_deliveries, max_leases, dead_letters },
        is_explicit,
        base: fields.varint()?,
        next_id: fields.varint()?,
        counters: decode_counters(fields)?,
        open: BTreeMap::new(),
    })
}

pub(super) fn encode_update(out: &mut Vec<u8>, update: &GroupUpdate) {
    put_varint(out, update.next_id);
    encode_counters(out, &update.counters);
    encode_open(out, update.open.len(), update.open.iter());
    put_varint(out, update.settled.len() as u64);
    let mut previous = 0;
    for id in &update.settled {
        put_varint(out, id.wrapping_sub(previous));
        previous = *id;
    }
}

fn decode_settled(fields: &mut Fields<'_>) -> Result<Vec<u64>, DecodeError> {
    let count = decode_count(fields)?;
    let mut id = 0_u64;
    let mut ids = Vec::new();
    for _ in 0..count {
        id = id.wrapping_add(fields.varint()?);
        ids.push(id);
    }
    fields.end()?;
    Ok(ids)
}

fn encode_counters(out: &mut Vec<u8>, counters: &GroupCounters) {
    let GroupCounters {
        delivered,
        redelivered,
        acked,
        nacked,
        lease_expired,
        dead_lettered,
        dead_letters_refused,
        expired,
        evicted,
    } = *counters;
    let leases = [delivered, redelivered, acked, nacked, lease_expired];
    let others = [dead_lettered, dead_letters_refused, expired, evicted];
    for number in leases.into_iter().chain(others) {
        put_varint(out, number);
    }
}

fn decode_counters(fields: &mut Fields<'_>) -> Result<GroupCounters, DecodeError> {
    Ok(GroupCounters {
        delivered: fields.varint()?,
        redelivered: fields.varint()?,
        acked: fields.varint()?,
        nacked: fields.varint()?,
        lease_expired: fields.varint()?,
        dead_lettered: fields.varint()?,
        dead_letters_refused: fields.varint()?,
        expired: fields.varint()?,
        evicted: fields.varint()?,
    })
}

/// Open messages and their number. An id is the difference to the one before it: most are close together.
pub(super) fn encode_open<'a>(
    out: &mut Vec<u8>,
    count: usize,
    open: impl Iterator<Item = &'a OpenMessage>,
) {
    put_varint(out, count as u64);
    let mut previous = 0;
    for message in open {
        let OpenMessage { id, nonce, deliveries, is_leased, until, reason } = message;
        put_varint(out, id.wrapping_sub(previous));
        previous = *id;
        out.extend_from_slice(&nonce.to_le_bytes());
        out.extend_from_slice(&until.to_le_bytes());
        put_varint(out, (*deliveries).into());
        let leased = if *is_leased { IS_LEASED } else { 0 };
        match reason {
            None => out.push(leased),
            Some(reason) => {
                out.push(leased | HAS_REASON);
                put_text(out, cut(reason, LeaseToken::MAX_REASON));
            }
        }
    }
}

fn decode_open(fields: &mut Fields<'_>, count: usize) -> Result<Vec<OpenMessage>, DecodeError> {
    let mut id = 0_u64;
    let mut open = Vec::new();
    for _ in 0..count {
        id = id.wrapping_add(fields.varint()?);
        let (nonce, until, deliveries) = (fields.u64()?, fields.i64()?, fields.varint32()?);
        let flags = fields.u8()?;
        let reason = match flags & HAS_REASON {
            0 => None,
            _ => Some(decode_text(fields, LeaseToken::MAX_REASON)?.into()),
        };
        if flags > IS_LEASED | HAS_REASON {
            return Err(DecodeError::Malformed);
        }
        let is_leased = flags & IS_LEASED != 0;
        open.push(OpenMessage { id, nonce, deliveries, is_leased, until, reason });
    }
    Ok(open)
}

/// A number of messages. Nothing is allocated for it: the record may not have as many.
fn decode_count(fields: &mut Fields<'_>) -> Result<usize, DecodeError> {
    let count = usize::try_from(fields.varint()?).ok();
    count.filter(|count| *count <= MAX_MESSAGES).ok_or(DecodeError::Malformed)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn decode_text<'a>(fields: &mut Fields<'a>, most: usize) -> Result<&'a str, DecodeError> {
    let length = usize::try_from(fields.varint()?).ok().filter(|length| *length <= most);
    fields.text(length.ok_or(DecodeError::Malformed)?)
}

/// The first `most` bytes of a text, without a part of a character.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}
