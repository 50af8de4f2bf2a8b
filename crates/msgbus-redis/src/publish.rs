//! Publishing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use msgbus_core::{
    NewMessage, TopicName,
    engine::{EngineError, Receipt},
};
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};

use crate::{
    Acknowledge,
    connection::{PROBE, Shared},
    error::Request,
    link::Link,
    message::{Answer as _, Shape, encode_headers, next},
    options::millis,
    parts::{Answer, Part, Sent},
    script::{self, Script},
};

/// Messages as the script takes them.
#[derive(Debug)]
pub(crate) struct Batch {
    keys: Vec<String>,
    channel: String,
    max_age_ms: u64,
    messages: Vec<Encoded>,
}

#[derive(Debug)]
struct Encoded {
    has_key: bool,
    /// In milliseconds.
    ttl: Option<u64>,
    /// Empty if there are none.
    headers: String,
    payload: Bytes,
}

impl Encoded {
    fn shape(&self) -> Shape {
        let (has_ttl, has_headers) = (self.ttl.is_some(), !self.headers.is_empty());
        Shape { has_key: self.has_key, has_ttl, has_headers }
    }
}

impl Batch {
    pub(crate) fn new(shared: &Shared, topic: &TopicName, messages: Vec<NewMessage>) -> Self {
        let names = shared.keys(topic);
        let mut keys = vec![names.topic(), names.stream()];
        let mut seen: HashMap<String, usize> = HashMap::new();
        let encode = |message: NewMessage| {
            let key = message.repeat_key();
            let has_key = key.is_some();
            keys.extend(key.map(|key| {
                let count = seen.entry(key.to_owned()).or_default();
                *count += 1;
                names.repeat(key, *count - 1)
            }));
            let (payload, ttl, headers) = message.into_parts();
            let ttl = ttl.map(|ttl| millis(ttl).max(1));
            Encoded { has_key, ttl, headers: encode_headers(&headers), payload }
        };
        let messages = messages.into_iter().map(encode).collect();
        let max_age_ms = names.max_age_ms(&shared.options);
        Self { keys, channel: names.channel(), max_age_ms, messages }
    }

    /// Whether followers are told the messages. Of more than that, they are told that there is something new: the server
    /// limits what waits for a connection that is subscribed.
    fn is_told(&self) -> bool {
        /// The maximum size of payloads and headers, in bytes.
        const MAX_BYTES: usize = 16 << 10;
        /// The maximum number of messages. Scripts have no room for thousands of arguments.
        const MAX_MESSAGES: usize = 256;
        let sizes =
            self.messages.iter().map(|message| message.payload.len() + message.headers.len());
        self.messages.len() <= MAX_MESSAGES && sizes.sum::<usize>() <= MAX_BYTES
    }

    fn arguments(&self, shared: &Shared, link: &Link, command: &mut Cmd) {
        let options = &shared.options;
        let most = options.max_messages_per_topic;
        command
            .arg(&*link.run)
            .arg(&shared.secret)
            .arg(&self.channel)
            .arg(most.map_or_else(String::new, |most| most.to_string()))
            .arg(self.max_age_ms)
            .arg(options.keep_ms())
            .arg(millis(options.duplicate_window).max(1))
            .arg(u8::from(self.is_told()))
            .arg(self.messages.iter().map(|message| message.shape().digit()).collect::<String>());
        for Encoded { ttl, headers, payload, .. } in &self.messages {
            // An `Option` is an argument or none.
            command.arg(ttl);
            if !headers.is_empty() {
                command.arg(headers);
            }
            command.arg(&payload[..]);
        }
    }
}

fn receipt(answer: Value) -> Result<Receipt, EngineError> {
    let mut parts = answer.list()?.into_iter();
    let (epoch, first, last) = (next(&mut parts)?, next(&mut parts)?, next(&mut parts)?);
    Ok(Receipt { epoch: epoch.number()?, first: first.number()?, last: last.number()? })
}

/// Publishes messages.
pub(crate) async fn run(shared: &Shared, batch: &Batch) -> Result<Receipt, EngineError> {
    let link = shared.link()?;
    let arguments = |command: &mut Cmd| batch.arguments(shared, &link, command);
    let answer = shared.run(&link, Script::Publish, &batch.keys, Request::Final, arguments).await?;
    // What the script answers, it has done.
    receipt(answer).map_err(|_| EngineError::Unknown)
}

type Waiting = (Batch, Part);

/// Publishes what waits for replicas or disks: all that comes meanwhile waits together. No more can wait than operations have
/// permits.
#[derive(Debug)]
pub(crate) struct Publisher(mpsc::UnboundedSender<Waiting>);

impl Publisher {
    /// How many publishes wait together at most.
    const MAX: usize = 256;

    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Self::run(Arc::clone(shared), receiver));
        Self(sender)
    }

    pub(crate) fn publish(
        &self,
        batch: Batch,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = Answer> + use<> {
        let (part, answer) = Part::new(batch.messages.len(), permit);
        // If there is nobody to get it, the part is dropped.
        let _ = self.0.send((batch, part));
        answer
    }

    /// Goes on until all is sent that came before the end of the engine.
    async fn run(shared: Arc<Shared>, mut receiver: mpsc::UnboundedReceiver<Waiting>) {
        let mut waiting = Vec::new();
        while receiver.recv_many(&mut waiting, Self::MAX).await > 0 {
            let in_time = |(batch, part): Waiting| {
                Some((batch, Sent(vec![part.in_time(shared.options.timeout)?])))
            };
            let (batches, sent): (Vec<Batch>, Vec<Sent>) =
                waiting.drain(..).filter_map(in_time).unzip();
            if batches.is_empty() {
                continue;
            }
            let receipts = run_all(&shared, &batches).await;
            for (receipt, sent) in receipts.into_iter().zip(sent) {
                sent.answer(receipt);
            }
        }
    }
}

const UNKNOWN: Answer = Err(EngineError::Unknown);

/// Publishes batches, in this order, and waits until what was published is where it has to be. Answers each of them.
pub(crate) async fn run_all(shared: &Shared, batches: &[Batch]) -> Vec<Answer> {
    let deadline = Instant::now() + shared.options.timeout;
    let (mut answers, begun) = send_all(shared, batches, None, deadline).await;
    if begun < batches.len() {
        // Nothing was done of the others, because the server did not have the script.
        answers.truncate(begun);
        let load = Some(Script::Publish.load());
        answers.extend(send_all(shared, &batches[begun..], load, deadline).await.0);
    }
    answers
}

/// Sends batches together. Returns the answers, and how many come before those for which the server did not have the script.
async fn send_all(
    shared: &Shared,
    batches: &[Batch],
    load: Option<Cmd>,
    deadline: Instant,
) -> (Vec<Answer>, usize) {
    let sent = try_send_all(shared, batches, load, deadline).await;
    sent.unwrap_or_else(|error| (vec![Err(error); batches.len()], batches.len()))
}

async fn try_send_all(
    shared: &Shared,
    batches: &[Batch],
    load: Option<Cmd>,
    deadline: Instant,
) -> Result<(Vec<Answer>, usize), EngineError> {
    let link = shared.link()?;
    let mut commands = redis::pipe();
    commands.ignore_errors();
    if let Some(load) = load {
        commands.add_command(load).ignore();
    }
    for batch in batches {
        let arguments = |command: &mut Cmd| batch.arguments(shared, &link, command);
        commands.add_command(link.command(Script::Publish, &batch.keys, arguments));
    }
    let mut connection = match &link.waiting {
        Some(waiting) => waiting.clone(),
        None => shared.connection(&link).await?,
    };
    let mut limit = deadline.saturating_duration_since(Instant::now());
    if limit.is_zero() {
        return Err(EngineError::Unavailable);
    }
    let wait = wait(shared.options.acknowledge, limit);
    let is_enough = wait.map(|(wait, is_enough)| {
        commands.add_command(wait);
        // The answers come when that is over.
        limit += PROBE;
        is_enough
    });
    connection.set_response_timeout(limit);
    let failed = |error: &RedisError| shared.failed(&link, error, Request::Final);
    let answers = commands.query_async(&mut connection).await;
    let mut answers: Vec<RedisResult<Value>> = answers.map_err(|error| failed(&error))?;
    let is_safe = is_enough.is_none_or(|is_enough| match answers.pop() {
        Some(Ok(counts)) => is_enough(counts),
        Some(Err(error)) => {
            failed(&error);
            false
        }
        None => false,
    });
    let begun = before_missing(&answers);
    let receipts = answers.into_iter().map(|answer| match answer {
        Ok(answer) if is_safe => receipt(answer).map_err(|_| EngineError::Unknown),
        // It is there, and might be lost.
        Ok(_) => UNKNOWN,
        Err(error) => Err(failed(&error)),
    });
    let mut receipts: Vec<Answer> = receipts.collect();
    receipts.resize(batches.len(), UNKNOWN);
    Ok((receipts, begun))
}

/// How many answers come before those at the end that say that there was no script. One before others that were done stays
/// refused: if it were sent again, it would come after them.
fn before_missing(answers: &[RedisResult<Value>]) -> usize {
    let last = answers.iter().rposition(|answer| !script::is_missing(answer));
    last.map_or(0, |last| last + 1)
}

/// The command that waits until messages are where they have to be, and whether its answer says that they are.
fn wait(acknowledge: Acknowledge, limit: Duration) -> Option<(Cmd, impl Fn(Value) -> bool)> {
    let (name, local, replicas) = match acknowledge {
        Acknowledge::Server => return None,
        Acknowledge::Replicas(replicas) => ("WAIT", None, replicas),
        Acknowledge::Synced { replicas } => ("WAITAOF", Some(1), replicas),
    };
    let mut command = redis::cmd(name);
    // An `Option` is an argument or none.
    command.arg(local).arg(replicas).arg(millis(limit).max(1));
    let is_enough = move |answer: Value| {
        let counts = match answer {
            Value::Array(counts) => counts,
            count => vec![count],
        };
        let wanted = local.into_iter().chain([u64::from(replicas)]);
        let has = |(count, wanted): (Value, u64)| count.number().is_ok_and(|count| count >= wanted);
        counts.len() == wanted.clone().count() && counts.into_iter().zip(wanted).all(has)
    };
    Some((command, is_enough))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_again_comes_after_what_was_done() {
        let answer = |kind| match kind {
            '+' => Ok(Value::Okay),
            code => Err(redis::make_extension_error(
                if code == '?' { "NOSCRIPT" } else { "OOM" }.to_owned(),
                None,
            )),
        };
        for (answers, expected) in
            [("", 0), ("++", 2), ("??", 0), ("+??", 1), ("?+", 2), ("+?-??", 3)]
        {
            let answers: Vec<_> = answers.chars().map(answer).collect();
            assert_eq!(before_missing(&answers), expected, "{answers:?}");
        }
    }
}
