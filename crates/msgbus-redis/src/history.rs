//! Reading the past of a topic. Numbers have no gaps but the jumps, so what is gone is counted.

use std::sync::Arc;

use msgbus_core::{
    BatchLimit, TopicName,
    engine::{Begin, EngineError, EngineMessage, EngineStats, Page, Skipped},
    store::RecoveredMessage,
};
use redis::Cmd;

use crate::{
    connection::{Connection, Shared},
    error::Request,
    keys::Keys,
    link::Link,
    message::{Answer as _, decode, next},
    script::Script,
};

/// Numbers that were never given, because the server was restarted, or another one leads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Jumps(Vec<Jump>);

/// The numbers from the first up to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Jump {
    from: u64,
    to: u64,
    /// Whether no message with such a number was ever acknowledged, and lost.
    is_safe: bool,
}

impl Jumps {
    /// How many the scripts keep.
    const MAX: usize = 32;

    fn parse(text: &str) -> Self {
        let jumps = text.split_whitespace().filter_map(|jump| {
            let (from, to) = jump.split_once('-')?;
            let is_safe = to.ends_with('s');
            let to = to.trim_end_matches(['s', 'u']);
            Some(Jump { from: from.parse().ok()?, to: to.parse().ok()?, is_safe })
        });
        Self(jumps.collect())
    }

    /// How many messages there were with numbers in `from..to`. `None` if that is not known: the server may have lost some,
    /// or it is very long ago.
    pub(crate) fn count(&self, from: u64, to: u64) -> Skipped {
        if from >= to {
            return Some(0);
        }
        let is_cut =
            self.0.len() >= Self::MAX && self.0.first().is_some_and(|jump| from < jump.from);
        // Who begins in a run in which nothing is published begins inside the jump of the next run.
        let is_doubtful =
            self.0.iter().any(|jump| !jump.is_safe && from < jump.to && jump.from < to);
        if is_cut || is_doubtful {
            return None;
        }
        let jumped = self.0.iter().map(|jump| jump.to.min(to).saturating_sub(jump.from.max(from)));
        Some((to - from).saturating_sub(jumped.sum()))
    }
}

/// What a script has read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) epoch: u64,
    /// The number of the next message to be published.
    pub(crate) end: u64,
    pub(crate) jumps: Jumps,
    /// Where to read on.
    pub(crate) next: u64,
    /// Without those that have expired.
    pub(crate) messages: Vec<RecoveredMessage>,
}

/// Reads messages. `None` if the topic is not there.
pub(crate) async fn read(
    shared: &Shared,
    link: &Link,
    keys: &Keys,
    from: Begin,
    limit: BatchLimit,
) -> Result<Option<Read>, EngineError> {
    /// The maximum number of messages that are read at a time.
    const MAX_EVENTS: usize = 1024;
    /// The maximum size of their payloads, in bytes, unless it is the first that exceeds it.
    const MAX_BYTES: usize = 1 << 20;
    let _turn = shared.turn_to_read(link).await?;
    let arguments = |command: &mut Cmd| {
        command.arg(&*link.run);
        begin(from, command);
        command.arg(limit.events.clamp(1, MAX_EVENTS)).arg(limit.bytes.clamp(1, MAX_BYTES));
    };
    let names = [keys.topic(), keys.stream()];
    let answer = shared.run(link, Script::History, &names, Request::Harmless, arguments).await?;
    let mut parts = answer.list()?.into_iter();
    let now = next(&mut parts)?.time()?;
    let Some(epoch) = parts.next() else { return Ok(None) };
    let (epoch, end) = (epoch.number()?, next(&mut parts)?.number()?);
    let (jumps, at) = (next(&mut parts)?.text()?, next(&mut parts)?.number()?);
    let mut messages = Vec::new();
    for message in next(&mut parts)?.list()? {
        let mut parts = message.list()?.into_iter();
        let number = next(&mut parts)?.number()?;
        let message = decode(number, next(&mut parts)?, keys.max_age_ms(&shared.options))?;
        if message.expires.is_none_or(|expires| expires > now) {
            messages.push(message);
        }
    }
    Ok(Some(Read { epoch, end, jumps: Jumps::parse(&jumps), next: at, messages }))
}

/// Where to begin, as scripts take it: two arguments.
pub(crate) fn begin(from: Begin, command: &mut Cmd) {
    match from {
        Begin::First => command.arg("first").arg(0),
        Begin::Next => command.arg("next").arg(0),
        Begin::Sequence(number) => command.arg("number").arg(number.min(MAX_NUMBER)),
        Begin::Time(time) => command.arg("time").arg(time.timestamp_millis().max(0)),
    };
}

/// Lua has no higher ones.
const MAX_NUMBER: u64 = 1 << 53;

pub(crate) async fn page(
    connection: Arc<Connection>,
    topic: TopicName,
    from: Begin,
    limit: BatchLimit,
) -> Result<Page, EngineError> {
    let shared = &connection.shared;
    let (link, keys) = (shared.link()?, shared.keys(&topic));
    let mut begin = from;
    loop {
        let Some(read) = read(shared, &link, &keys, begin, limit).await? else {
            // When it is made, it has a higher epoch.
            return Ok(Page { epoch: 1, messages: Vec::new(), next: 1, skipped: Some(0) });
        };
        if read.messages.is_empty() && read.next < read.end {
            // All of them have expired.
            begin = Begin::Sequence(read.next);
            continue;
        }
        let wanted = match from {
            Begin::Sequence(wanted) => Some(wanted.max(1)),
            _ => None,
        };
        return Ok(page_of(read, wanted));
    }
}

fn page_of(read: Read, wanted: Option<u64>) -> Page {
    let Read { epoch, jumps, next, messages, .. } = read;
    let first = messages.first().map_or(next, |message| message.id);
    let mut at = wanted.unwrap_or(first);
    let messages = messages.into_iter().map(|message| {
        let skipped = jumps.count(at, message.id);
        at = message.id + 1;
        EngineMessage { message, skipped }
    });
    let messages = messages.collect();
    let skipped = jumps.count(at, next);
    Page { epoch, messages, next, skipped }
}

pub(crate) async fn stats(
    connection: Arc<Connection>,
    topic: TopicName,
) -> Result<Option<EngineStats>, EngineError> {
    let shared = &connection.shared;
    let (link, keys) = (shared.link()?, shared.keys(&topic));
    let arguments = |command: &mut Cmd| {
        command.arg(&*link.run).arg(keys.max_age_ms(&shared.options));
    };
    let names = [keys.topic(), keys.stream()];
    let answer = shared.run(&link, Script::Stats, &names, Request::Harmless, arguments).await?;
    let mut parts = answer.list()?.into_iter();
    let Some(epoch) = parts.next() else { return Ok(None) };
    Ok(Some(EngineStats {
        epoch: epoch.number()?,
        retained: next(&mut parts)?.number()?,
        first: next(&mut parts)?.number()?,
        next: next(&mut parts)?.number()?,
    }))
}

pub(crate) async fn delete(
    connection: Arc<Connection>,
    topic: TopicName,
) -> Result<bool, EngineError> {
    let shared = &connection.shared;
    let (link, keys) = (shared.link()?, shared.keys(&topic));
    let names = [keys.topic(), keys.stream()];
    let answer = shared.run(&link, Script::Delete, &names, Request::Final, |_| {}).await?;
    Ok(answer.number()? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_do_not_count() {
        let jumps = Jumps::parse("5-1001s 1003-2001s 2005-3001u ");
        for (from, to, expected) in [
            (1, 4, Some(3)),
            (1, 1001, Some(4)),
            (5, 1001, Some(0)),
            (1, 1003, Some(6)),
            (1, 2003, Some(8)),
            (1001, 1001, Some(0)),
            (7, 1001, Some(0)),
            (7, 8, Some(0)),
            (1000, 2003, Some(4)),
            (9, 3, Some(0)),
            (2001, 2005, Some(4)),
            (2001, 3001, None),
            (2005, 3001, None),
            (2500, 3001, None),
            (3001, 3005, Some(4)),
        ] {
            assert_eq!(jumps.count(from, to), expected, "{from}..{to}");
        }
        assert_eq!(Jumps::default().count(3, 10), Some(7));
        let jump = |n: u64| Jump { from: n * 10 + 5, to: n * 10 + 10, is_safe: true };
        let many = Jumps((1..=32).map(jump).collect());
        assert_eq!(many.count(1, 12), None, "some are no longer known");
        assert_eq!(many.count(15, 21), Some(1));
    }
}
