//! Delivering what is published to a window.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use chrono::{DateTime, Utc};
use msgbus_core::{
    TopicName,
    engine::{EngineError, WindowSink},
    store::RecoveredMessage,
};
use tokio::time::sleep;
use tracing::debug;

use crate::{
    connection::{Connection, Known},
    deliveries::{Reader, Received},
    history::{Found, find_again, is_complete, is_there, last_message},
};

const MIN_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(2);

/// The feed of one window.
struct Feed {
    connection: Arc<Connection>,
    topic: TopicName,
    /// Where it goes on. `None` before the window is open.
    position: Option<Position>,
    /// For how long this process has stood still since it has delivered something, at least once.
    stood_still: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Position {
    epoch: u64,
    next: u64,
    /// The last message that was delivered, and when it was published.
    last: Option<(u64, DateTime<Utc>)>,
}

/// Feeds a window until it ends.
pub(crate) async fn feed(connection: Arc<Connection>, topic: TopicName, sink: WindowSink) {
    let mut feed = Feed { connection, topic, position: None, stood_still: Duration::ZERO };
    let mut delay = MIN_DELAY;
    loop {
        let before = feed.position.map(|position| position.next);
        let stopped = tokio::select! {
            stopped = feed.run(&sink) => stopped,
            () = sink.closed() => return,
        };
        let Err(error) = stopped else { return };
        debug!(topic = %feed.topic, %error, "the topic is not delivered");
        if feed.position.is_none() {
            sink.fail(error);
            return;
        }
        sink.stall(error);
        let has_advanced = feed.position.map(|position| position.next) != before;
        delay = if has_advanced { MIN_DELAY } else { (delay * 2).min(MAX_DELAY) };
        tokio::select! {
            () = Box::pin(sleep(delay)) => {}
            () = sink.closed() => return,
        }
    }
}

/// The limit on the messages of a topic below which one may be gone soon after it was published. The server's count of them
/// is too late to rely on.
const FEW: u64 = 1000;

/// The limit on the messages of a topic.
fn limit(known: &Known) -> Option<u64> {
    // 0 and less are no limit.
    let limit = known.stream.cached_info().config.max_messages_per_subject;
    u64::try_from(limit).ok().filter(|limit| *limit > 0)
}

/// Whether messages may wait a little without being gone meanwhile.
fn may_gather(known: &Known) -> bool {
    limit(known).is_none_or(|limit| limit >= FEW)
}

impl Feed {
    fn subject(&self) -> String {
        self.connection.subject(&self.topic)
    }

    /// Delivers until something fails. `Ok` when the window has ended. While it waits it should take little memory, so what
    /// else it does is in boxes.
    async fn run(&mut self, sink: &WindowSink) -> Result<(), EngineError> {
        let Some((known, next, mut is_in_doubt)) = Box::pin(self.begin(sink)).await? else {
            return Ok(());
        };
        let opening = Reader::open(&self.connection, &known, self.subject(), next);
        let (mut reader, pending) = Box::pin(opening).await?;
        if is_in_doubt && pending == 0 {
            if !Box::pin(self.skip(sink)).await? {
                return Ok(());
            }
            is_in_doubt = false;
        }
        sink.resume();
        loop {
            reader.ready().await?;
            if let Some(time) = sink.time_to_gather()
                && may_gather(&known)
            {
                Box::pin(reader.gather(time)).await?;
            }
            let received = reader.take();
            let failure = received.failure;
            if !Box::pin(self.deliver(&known, sink, received, &mut is_in_doubt)).await? {
                return Ok(());
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
    }

    /// Appends messages to the window. Returns `false` if it has ended.
    async fn deliver(
        &mut self,
        known: &Known,
        sink: &WindowSink,
        received: Received,
        is_in_doubt: &mut bool,
    ) -> Result<bool, EngineError> {
        let Some(position) = self.position else { return Ok(false) };
        self.stood_still = self.stood_still.max(received.stood_still);
        let mut ready = received.messages;
        ready.retain(|message| message.id >= position.next);
        let Some(last) = ready.last().map(|message| (message.id, message.created)) else {
            return Ok(true);
        };
        *is_in_doubt |= !self.is_gapless(known, &ready, received.most).await?;
        self.stood_still = Duration::ZERO;
        if std::mem::take(is_in_doubt) {
            // What is before the last one, followers read from the history.
            ready.drain(..ready.len() - 1);
            if !sink.open(position.epoch, last.0) {
                return Ok(false);
            }
        }
        self.position = Some(Position { next: last.0 + 1, last: Some(last), ..position });
        known.highest.fetch_max(last.0, Relaxed);
        sink.pending(received.left);
        Ok(sink.append(ready))
    }

    /// Whether certainly no message was removed before it could be delivered. `most` is the highest number of messages
    /// that were still to be delivered.
    async fn is_gapless(
        &self,
        known: &Known,
        messages: &[RecoveredMessage],
        most: u64,
    ) -> Result<bool, EngineError> {
        let Some(position) = self.position else { return Ok(false) };
        let ids = (position.next..).zip(messages);
        let is_dense = ids.fold(true, |is_dense, (id, message)| is_dense && message.id == id);
        let config = &known.stream.cached_info().config;
        let is_far = limit(known).is_none_or(|limit| limit >= FEW && most < limit / 2);
        // Other topics may have taken the room, or what was not delivered at once has expired.
        let is_sure = is_far && config.max_bytes <= 0 && !self.is_late(known, messages);
        match position.last {
            _ if is_dense || is_sure => Ok(true),
            // Messages are removed oldest first.
            Some((last, _)) => Box::pin(is_there(known, &self.subject(), last)).await,
            None => Ok(false),
        }
    }

    /// Whether messages may have expired before they were delivered.
    fn is_late(&self, known: &Known, messages: &[RecoveredMessage]) -> bool {
        let Some(age) = known.max_age else { return false };
        let waited = messages.first().map(|first| (Utc::now() - first.created).to_std());
        let waited = waited.and_then(Result::ok).unwrap_or_default();
        waited.max(self.stood_still) >= age / 2
    }

    /// Goes on after all that was published, because what was published meanwhile is gone. The consumer is there already,
    /// so it delivers what comes now. Returns `false` if the window has ended.
    async fn skip(&mut self, sink: &WindowSink) -> Result<bool, EngineError> {
        let Some(position) = &mut self.position else { return Ok(false) };
        let (known, info) = self.connection.state().await?;
        let next = info.state.last_sequence + 1;
        if known.epoch != position.epoch || next < position.next {
            return Err(EngineError::Unavailable);
        }
        *position = Position { epoch: known.epoch, next, last: None };
        Ok(sink.open(known.epoch, next))
    }

    /// Finds out where to go on, and whether something may have been left out. `None` if the window has ended.
    async fn begin(
        &mut self,
        sink: &WindowSink,
    ) -> Result<Option<(Arc<Known>, u64, bool)>, EngineError> {
        let (known, info) = self.connection.state().await?;
        let end = info.state.last_sequence + 1;
        let Some(position) = self.position else {
            // What is before the window proves later that nothing after it is gone.
            let last = last_message(&known, &self.subject()).await?.filter(|(id, _)| *id < end);
            self.position = Some(Position { epoch: known.epoch, next: end, last });
            return Ok(sink.open(known.epoch, end).then_some((known, end, false)));
        };
        let is_same = position.epoch == known.epoch && position.next <= end;
        let found = match position.last {
            Some(last) if is_same => find_again(&known, &self.subject(), last).await?,
            _ => Found::Gone,
        };
        if !is_same || found == Found::Another {
            // The numbers have begun again. The followers have to begin anew.
            sink.open(known.epoch.max(position.epoch + 1), end);
            return Ok(None);
        }
        let next = position.next;
        // Messages are removed oldest first.
        let is_complete =
            found == Found::Same || is_complete(&known, &info, &self.subject(), next).await?;
        Ok(Some((known, next, !is_complete)))
    }
}
