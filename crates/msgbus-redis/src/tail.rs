//! Delivering what is published to a window.

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, TopicName,
    engine::{Begin, EngineError, WindowSink},
};
use redis::Cmd;
use tokio::time::sleep;
use tracing::debug;

use crate::{
    channels::Listener,
    connection::Shared,
    error::Request,
    history::{Read, read},
    keys::Keys,
    link::Link,
    message::{Answer as _, next},
    news::Told,
    script::Script,
};

/// How much is read at a time.
const PAGE: BatchLimit = BatchLimit { events: 512, bytes: 1 << 20 };
const MIN_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(2);

/// The feed of one window.
struct Feed {
    shared: Arc<Shared>,
    keys: Keys,
    /// The epoch, and the number of the next message. `None` before the window is open.
    position: Option<(u64, u64)>,
}

/// Feeds a window until it ends.
pub(crate) async fn feed(shared: Arc<Shared>, topic: TopicName, sink: WindowSink) {
    let keys = shared.keys(&topic);
    let mut listener = shared.channels.listen(keys.channel());
    let mut feed = Feed { shared, keys, position: None };
    let mut delay = MIN_DELAY;
    loop {
        let before = feed.position;
        let stopped = tokio::select! {
            stopped = feed.run(&sink, &mut listener) => stopped,
            () = sink.closed() => return,
        };
        let Err(error) = stopped else { return };
        debug!(%topic, %error, "the topic is not delivered");
        if feed.position.is_none() {
            sink.fail(error);
            return;
        }
        sink.stall(error);
        delay = if feed.position == before { (delay * 2).min(MAX_DELAY) } else { MIN_DELAY };
        let pause = async {
            sleep(MIN_DELAY).await;
            // Without a connection, until there is one.
            match feed.shared.link() {
                Err(_) => feed.shared.connected(MAX_DELAY).await,
                Ok(_) => sleep(delay).await,
            }
        };
        tokio::select! {
            () = Box::pin(pause) => {}
            () = sink.closed() => return,
        }
    }
}

impl Feed {
    /// Delivers until something fails. `Ok` when the window has ended. While it waits it should take little memory, so what
    /// else it does is in boxes.
    async fn run(&mut self, sink: &WindowSink, listener: &mut Listener) -> Result<(), EngineError> {
        let link = self.shared.link()?;
        // Before it reads: what comes later is said.
        Box::pin(self.shared.subscribe(listener, &link)).await?;
        let mut is_stalled = true;
        loop {
            let told = listener.take(&self.shared.channels).filter(|_| !is_stalled);
            self.shared.check(&link)?;
            let goes_on = match told.and_then(|told| self.append(told, sink)) {
                Some(goes_on) => goes_on,
                None => Box::pin(self.catch_up(&link, sink)).await?,
            };
            if !goes_on {
                return Ok(());
            }
            if std::mem::take(&mut is_stalled) {
                sink.resume();
            }
            listener.wait().await;
            if let Some(time) = sink.time_to_gather() {
                Box::pin(sleep(time)).await;
            }
        }
    }

    /// Delivers what the server has told. Returns `false` if the window has ended, and `None` if there may be more than that.
    fn append(&mut self, told: Told, sink: &WindowSink) -> Option<bool> {
        let (epoch, next) = self.position?;
        let messages = told.messages(epoch, next, self.keys.max_age_ms(&self.shared.options))?;
        let Some(last) = messages.last().map(|message| message.id) else { return Some(true) };
        self.position = Some((epoch, last + 1));
        Some(sink.append(messages))
    }

    /// Delivers all that there is. Returns `false` if the window has ended.
    async fn catch_up(&mut self, link: &Link, sink: &WindowSink) -> Result<bool, EngineError> {
        loop {
            let from = self.position.map_or(Begin::Next, |(_, next)| Begin::Sequence(next));
            let found = read(&self.shared, link, &self.keys, from, PAGE).await?;
            let Some((epoch, next)) = self.position else {
                let (epoch, next) = match found {
                    Some(found) => (found.epoch, found.end),
                    None => self.make(link).await?,
                };
                self.position = Some((epoch, next));
                if !sink.open(epoch, next) {
                    return Ok(false);
                }
                continue;
            };
            let found = match found {
                Some(found) if found.epoch == epoch && next <= found.end => found,
                other => {
                    // The numbers have begun again, or will. The followers have to begin anew.
                    let epoch = other.map_or(0, |found| found.epoch).max(epoch + 1);
                    sink.open(epoch, 1);
                    return Ok(false);
                }
            };
            let is_last = found.next >= found.end;
            sink.pending(found.end.saturating_sub(found.next));
            if !self.deliver(found, epoch, next, sink) {
                return Ok(false);
            }
            if is_last {
                return Ok(true);
            }
        }
    }

    /// Appends messages to the window. Returns `false` if it has ended.
    fn deliver(&mut self, found: Read, epoch: u64, next: u64, sink: &WindowSink) -> bool {
        let Some(first) = found.messages.first().map(|message| message.id) else {
            // What was there has expired. Numbers that a jump will leave out are not yet left out.
            if found.next < found.end {
                self.position = Some((epoch, found.next));
                return sink.open(epoch, found.next);
            }
            return true;
        };
        let mut messages = found.messages;
        let last = messages.last().map_or(first, |message| message.id);
        self.position = Some((epoch, last + 1));
        let ends = std::iter::once(next).chain(messages.iter().map(|message| message.id + 1));
        let is_gap = ends.zip(&messages).map(|(end, message)| {
            let skipped = found.jumps.count(end, message.id);
            skipped != Some(0)
        });
        let is_gap: Vec<bool> = is_gap.collect();
        if let Some(gap) = is_gap.iter().rposition(|is_gap| *is_gap) {
            // What is before the last gap, followers read from the history.
            messages.drain(..gap);
            if !messages.first().is_some_and(|message| sink.open(epoch, message.id)) {
                return false;
            }
        }
        sink.append(messages)
    }

    /// Makes the topic.
    async fn make(&self, link: &Link) -> Result<(u64, u64), EngineError> {
        let arguments = |command: &mut Cmd| {
            let options = &self.shared.options;
            command.arg(&*link.run).arg(&self.shared.secret).arg(options.keep_ms());
        };
        let names = [self.keys.topic(), self.keys.stream()];
        let made =
            self.shared.run(link, Script::Open, &names, Request::Harmless, arguments).await?;
        let mut parts = made.list()?.into_iter();
        Ok((next(&mut parts)?.number()?, next(&mut parts)?.number()?))
    }
}
