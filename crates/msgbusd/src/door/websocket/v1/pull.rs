//! `pull`: takes messages, or leases them.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use bytes::Bytes;
use msgbus_core::{
    BatchLimit, GroupName, LeaseOptions, Leased, Message, TopicName,
    json::{self, PayloadForm},
};
use tokio::time::sleep;

use super::{
    answer::Answer,
    operation::Pull,
    operations::{Begun, Operations},
    refusal::Refusal,
    subscribe::lease,
};
use crate::{
    dialogue::Client,
    limits::inflight::Inflight,
    service::{
        error::ServiceError,
        parameters::{self, BadParameter, MAX_BATCH, WAITS},
        pull::{QueuedPull, WaitingPull},
    },
};

/// The maximum number of bytes of payload in one answer, beyond which there is at most one message more.
const MAX_BYTES: usize = 256 << 10;
/// The size up to which an answer does not count as in flight, in bytes.
const SMALL: usize = Inflight::SMALL;

/// What is pulled.
struct Wanted {
    topic: TopicName,
    limit: BatchLimit,
    wait: Option<Duration>,
    form: PayloadForm,
}

impl Operations {
    pub(super) fn pull(&mut self, fields: &Pull<'_>) -> Result<Begun, Refusal> {
        let wanted = Wanted::of(fields)?;
        let client = self.contact.client.clone();
        let Some(group) = fields.group.text() else {
            for (name, is_given) in
                [("since", fields.since.get().is_some()), ("lease", fields.lease.get().is_some())]
            {
                if is_given {
                    return Err(BadParameter::new(name, "only valid with group").into());
                }
            }
            return Ok(Begun::Waits(Box::pin(pull(client, wanted))));
        };
        let mut options = LeaseOptions { limit: wanted.limit, ..LeaseOptions::default() };
        options.lease = lease(fields.lease.text())?.unwrap_or(options.lease);
        if let Some(since) = fields.since.text() {
            options.from = parameters::since(since)?;
        }
        let group = GroupName::new(group)?;
        Ok(Begun::Waits(Box::pin(pull_for(client, wanted, group, options))))
    }
}

impl Wanted {
    fn of(fields: &Pull<'_>) -> Result<Self, Refusal> {
        let topic = TopicName::new(fields.topic.needed_text("topic")?)?;
        let max = match fields.max.get() {
            None => 1,
            Some(0) => return Err(BadParameter::new("max", "use a whole number, 1 or more").into()),
            Some(max) => usize::try_from(*max).unwrap_or(usize::MAX).min(MAX_BATCH.events),
        };
        let wait = fields.wait.text().map(|text| parameters::duration("wait", text, &WAITS));
        Ok(Self {
            topic,
            limit: BatchLimit { events: max, bytes: MAX_BYTES },
            wait: wait.transpose()?,
            form: fields.payload.form(),
        })
    }
}

async fn pull(client: Client, wanted: Wanted) -> Result<Answer, Refusal> {
    let Wanted { topic, limit, wait, form } = wanted;
    let call = client.call();
    let messages = match wait {
        Some(timeout) => wait_for(&client, call.pull_wait(&topic, limit, SMALL)?, timeout).await?,
        None => call.pull(&topic, limit, SMALL).await?,
    };
    Ok(answer(&client, &messages, json::size_hint, |out, message: &Message| {
        json::write_message_as(out, message, form);
    }))
}

async fn pull_for(
    client: Client,
    wanted: Wanted,
    group: GroupName,
    options: LeaseOptions,
) -> Result<Answer, Refusal> {
    let Wanted { topic, wait, form, .. } = wanted;
    let call = client.call();
    let leased = match wait {
        Some(timeout) => {
            let pull = call.lease_wait(&topic, &group, &options, SMALL)?;
            wait_for(&client, pull, timeout).await?
        }
        None => call.lease(&topic, &group, &options, SMALL).await?,
    };
    Ok(answer(&client, &leased, json::leased_size_hint, |out, leased: &Leased| {
        json::write_leased_as(out, leased, form);
    }))
}

/// Waits for messages. Returns none when the time is over, the topic is deleted, the server stops or the keys no longer
/// allow the pull. Once messages are taken, nothing but the commit of the store ends it.
async fn wait_for<P: QueuedPull>(
    client: &Client,
    mut pull: WaitingPull<P>,
    timeout: Duration,
) -> Result<Vec<P::Item>, ServiceError> {
    let stop = &client.worker.tasks.stop;
    let mut timed_out = pin!(sleep(timeout));
    poll_fn(|cx| {
        if !pull.is_committing() && stop.is_draining() {
            return Poll::Ready(Ok(Vec::new()));
        }
        let pulled = pull.poll(cx);
        if pulled.is_ready() || pull.is_committing() {
            return pulled;
        }
        timed_out.as_mut().poll(cx).map(|()| Ok(Vec::new()))
    })
    .await
}

/// The answer with these messages. It counts as in flight until it is written.
fn answer<T>(
    client: &Client,
    items: &[T],
    size: impl Fn(&T) -> usize,
    mut write: impl FnMut(&mut Vec<u8>, &T),
) -> Answer {
    let mut out = Vec::with_capacity(items.iter().map(|item| size(item) + 1).sum());
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&mut out, item);
    }
    Answer::Messages(client.worker.inflight.track_response(Bytes::from(out)))
}
