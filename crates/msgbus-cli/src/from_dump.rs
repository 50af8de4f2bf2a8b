//! `msgbus pub --from-dump`: publishes again what `msgbusd data dump`, `msgbus sub` and streams print.
//!
//! Lines are read and published window by window. The topics of a window are independent of each other and
//! published at the same time; within a topic the order is kept, so its next message or batch is sent when
//! the one before it is accepted.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt as _, stream};
use msgbus_client::{ClientError, Message, NewMessage, TopicName};
use msgbus_core::json;
use serde::Deserialize;

use crate::{
    failure::{Exit, Failure},
    input::{Input, Piece, without_end},
    output::note,
    publish::{BATCH_BYTES, BATCH_LINES, Publisher, TOO_LARGE, is_known},
};

/// The maximum length of a line in bytes: what a server of the largest permitted payload sends.
const MAX_LINE: usize = 3 << 29;
/// How many topics of a window are published at the same time.
const CONCURRENCY: usize = 16;
/// The expiry times of a batch differ by less than this. All of its messages get the latest one.
const SAME_EXPIRY: TimeDelta = TimeDelta::seconds(1);

/// A message, and the number of its line.
struct Line {
    number: u64,
    message: Message,
}

/// An object of a stream that is not a message. docs/protocol.md, 6.12.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "event")]
    _name: String,
    #[serde(default)]
    missed: u64,
}

#[derive(Default)]
struct Outcome {
    published: u64,
    expired: u64,
    /// The first line that was not published.
    failed: Option<(u64, Failure)>,
}

pub(crate) async fn run(publisher: Publisher) -> Result<Exit, Failure> {
    if io::stdin().is_terminal() {
        note("reading messages from the terminal; end them with Ctrl-D");
    }
    let mut lines = Lines { input: Input::new(), number: 0, missed: 0 };
    let mut total = Outcome::default();
    loop {
        let start = lines.number + 1;
        let (window, ended) = lines.window().await;
        let is_last = window.is_empty();
        let outcome = publish_window(&publisher, window).await;
        total.published += outcome.published;
        total.expired += outcome.expired;
        if let Some((line, failure)) = outcome.failed {
            return Err(stopped(failure, line, start, outcome.published, total.published));
        }
        ended
            .map_err(|failure| stopped(failure, lines.number, lines.number, 0, total.published))?;
        if is_last {
            break;
        }
    }
    if !publisher.quiet {
        match total.expired {
            0 => {}
            1 => note("1 message had expired and was not published"),
            expired => note(&format!("{expired} messages had expired and were not published")),
        }
        if lines.missed > 0 {
            note(&format!("the input says that {} messages are missing in it", lines.missed));
        }
    }
    Ok(Exit::Done)
}

/// Adds to a failure which line was not published, how many messages were, and where to go on: at `first`,
/// behind which `again` messages were published already.
fn stopped(failure: Failure, line: u64, first: u64, again: u64, published: u64) -> Failure {
    let verb = if is_known(&failure) { "was not" } else { "may not have been" };
    let published = match published {
        1 => "1 message was".to_owned(),
        _ => format!("{published} messages were"),
    };
    let repeats = match again {
        0 => String::new(),
        _ => format!(", which repeats {again}"),
    };
    let progress = format!(
        "line {line} {verb} published, {published}; to go on, start at line {first}{repeats}"
    );
    Failure::Partial { failure: Box::new(failure), progress }
}

struct Lines {
    input: Input,
    /// The number of the last line that was read.
    number: u64,
    /// How many messages the input says are missing in it.
    missed: u64,
}

impl Lines {
    /// Reads at least one message unless the input ends or is wrong, and more as far as they have arrived.
    async fn window(&mut self) -> (Vec<Line>, Result<(), Failure>) {
        let (mut lines, mut size) = (Vec::new(), 0);
        while lines.is_empty()
            || (lines.len() < BATCH_LINES && size < BATCH_BYTES && self.input.has_line())
        {
            self.number += 1;
            let line = match self.line().await {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(failure) => return (lines, Err(failure)),
            };
            size += line.len();
            match self.message(&line) {
                Ok(Some(message)) => lines.push(Line { number: self.number, message }),
                Ok(None) => {}
                Err(failure) => return (lines, Err(failure)),
            }
        }
        (lines, Ok(()))
    }

    /// Reads the next line without its line break; `None` at the end of the input.
    async fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        Ok(match self.input.line().await? {
            None => None,
            Some(Piece::Whole(line)) => Some(without_end(line)),
            Some(Piece::Long(head)) => Some(without_end(self.long_line(head).await?)),
        })
    }

    /// The message in a line; `None` if it is something else that streams send: an event or a keep-alive.
    fn message(&mut self, line: &[u8]) -> Result<Option<Message>, Failure> {
        let error = match json::read_message(line) {
            Ok(message) => return Ok(Some(message)),
            Err(_) if line.is_empty() => return Ok(None),
            Err(error) => error,
        };
        let Event { missed, .. } =
            serde_json::from_slice(line).map_err(|_| self.wrong(&error.to_string()))?;
        self.missed = self.missed.saturating_add(missed);
        Ok(None)
    }

    async fn long_line(&mut self, mut line: Vec<u8>) -> Result<Vec<u8>, Failure> {
        // Does not read on in a large file of another kind.
        if !line.starts_with(b"{") {
            return Err(self.wrong("not a message"));
        }
        self.input.rest_of_line(&mut line, MAX_LINE).await?;
        if line.len() == MAX_LINE && !line.ends_with(b"\n") {
            return Err(self.wrong("too long"));
        }
        Ok(line)
    }

    fn wrong(&self, problem: &str) -> Failure {
        // Each line is parsed by itself.
        let problem = problem.replace(" at line 1 column ", " at column ");
        Failure::Other(format!(
            "line {} is {problem}; expected JSON as msgbusd data dump and msgbus sub -o json print it",
            self.number
        ))
    }
}

async fn publish_window(publisher: &Publisher, window: Vec<Line>) -> Outcome {
    let mut topics: BTreeMap<TopicName, Vec<Line>> = BTreeMap::new();
    for line in window {
        topics.entry(line.message.topic().name.clone()).or_default().push(line);
    }
    let stop = Cell::new(false);
    stream::iter(&topics)
        .map(|(topic, lines)| publish_topic(publisher, topic, lines, &stop))
        .buffer_unordered(CONCURRENCY)
        .fold(Outcome::default(), async |sum, next| Outcome {
            published: sum.published + next.published,
            expired: sum.expired + next.expired,
            failed: [sum.failed, next.failed].into_iter().flatten().min_by_key(|(line, _)| *line),
        })
        .await
}

/// Publishes messages of one topic in order, until one fails or `stop` is set, which a failure sets.
async fn publish_topic(
    publisher: &Publisher,
    topic: &TopicName,
    mut lines: &[Line],
    stop: &Cell<bool>,
) -> Outcome {
    let (mut outcome, mut most) = (Outcome::default(), BATCH_LINES);
    while let ([first, rest @ ..], false) = (lines, stop.get()) {
        let now = Utc::now();
        if is_expired(&first.message, now) {
            outcome.expired += 1;
            lines = rest;
            continue;
        }
        let count = batch_len(&lines[..lines.len().min(most)], now);
        let (batch, later) = lines.split_at(count);
        match publisher.publish(topic, outgoing(batch, now), count > 1).await {
            Ok(()) => {
                outcome.published += count as u64;
                lines = later;
            }
            Err(Failure::Client(ClientError::Refused { status: TOO_LARGE, .. })) if count > 1 => {
                most = count / 2;
            }
            Err(failure) => {
                stop.set(true);
                outcome.failed = Some((first.number, failure));
            }
        }
    }
    outcome
}

fn is_expired(message: &Message, now: DateTime<Utc>) -> bool {
    message.expires().is_some_and(|expires| expires <= now)
}

/// How many of the messages, of which there is at least one, can be published as the lines of one request.
fn batch_len(lines: &[Line], now: DateTime<Utc>) -> usize {
    let Some(Line { message: first, .. }) = lines.first() else { return 0 };
    let fits = |Line { message, .. }: &&Line| {
        let payload = message.payload();
        let expires_with_first = match (first.expires(), message.expires()) {
            (Some(first), Some(expires)) => (expires - first).abs() < SAME_EXPIRY,
            (first, expires) => first.is_none() && expires.is_none(),
        };
        message.headers() == first.headers()
            && message.content_encoding().is_none()
            && !payload.contains(&b'\n')
            && !payload.ends_with(b"\r")
            && expires_with_first
            && !is_expired(message, now)
    };
    lines.iter().take_while(fits).count().max(1)
}

/// The message, or several as lines.
fn outgoing(batch: &[Line], now: DateTime<Utc>) -> NewMessage {
    let payload: Bytes = match batch {
        [Line { message, .. }] => message.payload().clone(),
        _ => {
            let lines = batch.iter().flat_map(|line| [&line.message.payload()[..], b"\n"]);
            lines.collect::<Vec<_>>().concat().into()
        }
    };
    let mut outgoing = NewMessage::new(payload);
    if let Some(Line { message, .. }) = batch.first() {
        outgoing = outgoing.headers(message.headers().clone());
    }
    if let Some(expires) = batch.iter().filter_map(|line| line.message.expires()).max() {
        // Rounded up to milliseconds: a ttl of 0 would mean something else.
        let left = u64::try_from((expires - now).num_milliseconds()).unwrap_or_default() + 1;
        outgoing = outgoing.ttl(Duration::from_millis(left));
    }
    outgoing
}
