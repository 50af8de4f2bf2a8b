//! `msgbus sub`.

mod args;
mod handler;
mod many;

use std::{
    future::{pending, poll_fn},
    ops::Range,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use msgbus_client::{Client, Event, Message, Peeked, Position, Subscription, TopicName};
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    cursor::{Cursor, Owner},
    failure::{Exit, Failure},
    output::{self, Output, note},
    signals::Stop,
    tail::last,
};

/// The time limit for checking whether the topic has reached the id of --since.
const PEEK_TIMEOUT: Duration = Duration::from_secs(5);

use self::handler::{Handler, Progress, note_delivery};
pub(crate) use self::{args::Sub, many::run as run_many};

pub(crate) async fn run(topic: TopicName, args: Sub, stop: Stop) -> Result<Exit, Failure> {
    let mut follower = Follower::new(topic, args, stop.clone())?;
    let mut end = pin!(end(&follower.args, stop));
    let begun = select! {
        biased;
        begun = follower.begin() => begun,
        ended = &mut end => ended.map(Some),
    };
    let ended = match begun {
        Ok(None) => follower.follow(end).await,
        Ok(Some(ended)) => Ok(ended),
        Err(failure) => Err(failure),
    };
    follower.finish(ended).await
}

/// Completes when the command has to end although there may be more messages.
fn end(args: &Sub, mut stop: Stop) -> impl Future<Output = Result<Ended, Failure>> + use<> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let runs_a_command = args.command.is_some();
    async move {
        select! {
            () = stop.requested() => Ok(Ended::Stopped),
            () = sleep_until_some(deadline) => Ok(Ended::OutOfTime),
            () = output::closed(), if !runs_a_command => Err(Failure::ClosedPipe),
        }
    }
}

/// Why the command ends without an error.
enum Ended {
    Counted,
    Stopped,
    OutOfTime,
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// The id of --since, if the topic has not reached it yet. Messages before it are skipped.
struct NotYetPublished(Option<u64>);

impl NotYetPublished {
    /// Checks whether `from` is an id that the topic has not reached. If so, prints a note and changes
    /// `from` to the position of the next message: the server would treat an unknown id as one of an
    /// earlier epoch.
    async fn find(client: &Client, topic: &TopicName, from: &mut Position) -> Self {
        let Position::Id(id) = *from else { return Self(None) };
        // Connection errors are reported when the subscription connects.
        let seen = timeout(PEEK_TIMEOUT, client.peek(topic, Some(*from), 1)).await;
        let Ok(Ok(seen)) = seen else { return Self(None) };
        if id == 0 || (seen.epoch.is_some() && !seen.restarted) {
            return Self(None);
        }
        let end = timeout(PEEK_TIMEOUT, client.peek(topic, Some(Position::New), 1)).await;
        let Ok(Ok(end)) = end else { return Self(None) };
        let next_id = end.next_id.unwrap_or(0);
        // The message may have been published meanwhile.
        if next_id < id {
            note(&format!("{topic} has no message {id} yet (next id is {next_id})"));
            *from = end.epoch.map_or(Position::All, |epoch| Position::before(epoch, next_id));
        }
        Self(Some(id).filter(|id| next_id < *id))
    }

    /// Whether to skip this message, because it is before the requested id.
    fn skips(&mut self, id: u64) -> bool {
        let skips = self.0.is_some_and(|first| id < first);
        if !skips {
            self.0 = None;
        }
        skips
    }
}

struct Follower {
    topic: TopicName,
    args: Sub,
    subscription: Subscription,
    handler: Handler,
    cursor: Option<Cursor>,
    not_yet_published: NotYetPublished,
    progress: Progress,
    /// Whether the subscription has ever been connected.
    connected: bool,
}

impl Follower {
    fn new(topic: TopicName, args: Sub, stop: Stop) -> Result<Self, Failure> {
        let server = args.client.server().to_string();
        let owner = Owner { topic: topic.to_string(), server };
        let cursor = args.cursor.as_ref();
        let cursor = cursor.map(|path| Cursor::open(path, owner, args.ignore_cursor));
        Ok(Self {
            subscription: args.client.subscribe(&topic, args.since),
            handler: Handler::new(&args, Output::new(args.style), stop)?,
            cursor: cursor.transpose()?,
            not_yet_published: NotYetPublished(None),
            progress: Progress::default(),
            connected: false,
            topic,
            args,
        })
    }

    /// Determines the start position, and prints existing messages for `tail` and `--poll`. Returns
    /// `Some` if that was all.
    async fn begin(&mut self) -> Result<Option<Ended>, Failure> {
        let saved = self.cursor.as_ref().and_then(Cursor::saved);
        let mut from = saved.unwrap_or(self.args.since);
        self.not_yet_published =
            NotYetPublished::find(&self.args.client, &self.topic, &mut from).await;
        if self.args.poll || self.args.back.is_some() {
            from = self.show(from).await?;
        }
        if self.args.poll {
            return Ok(Some(Ended::Counted));
        }
        self.subscription = self.args.client.subscribe(&self.topic, from);
        Ok(None)
    }

    /// Handles events until the count is reached or `end` completes.
    async fn follow(
        &mut self,
        mut end: Pin<&mut impl Future<Output = Result<Ended, Failure>>>,
    ) -> Result<Ended, Failure> {
        loop {
            if self.args.count.is_some_and(|count| self.progress.handled >= count) {
                return Ok(Ended::Counted);
            }
            let event = select! {
                biased;
                ended = &mut end => return ended,
                event = self.next() => event?,
            };
            if self.args.command.is_some() {
                // Not in a select, so that a running command can finish.
                self.handle(event).await?;
                continue;
            }
            select! {
                biased;
                handled = self.handle(event) => handled?,
                ended = &mut end => return ended,
            }
        }
    }

    /// Waits for the next event. Flushes the output first, unless an event is ready.
    async fn next(&mut self) -> Result<Event, Failure> {
        let mut next = pin!(self.subscription.next());
        // The same future is awaited below, so that a connection attempt is not started twice.
        let at_once = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await;
        if let Poll::Ready(event) = at_once {
            return Ok(event?);
        }
        self.handler.flush().await?;
        Ok(next.await?)
    }

    async fn handle(&mut self, event: Event) -> Result<(), Failure> {
        let topic = &self.topic;
        match event {
            Event::Message(message) => {
                let position = self.subscription.position();
                self.process(&message, position).await?;
            }
            Event::Missed(count) => self.progress.report_missed(&self.topic, count),
            Event::Restarted => {
                self.not_yet_published = NotYetPublished(None);
                note(&format!(
                    "{topic}: topic was reset (server restart or delete); ids restart at 0"
                ));
            }
            Event::Connected => self.note_connected()?,
            Event::Stalled | Event::Resumed if !self.args.quiet => {
                note_delivery(topic, matches!(event, Event::Stalled));
            }
            Event::Disconnected { error, retry_in } if !self.args.quiet => {
                let seconds = retry_in.as_secs_f64();
                note(&format!("{error}; trying again in {seconds:.1} s"));
            }
            _ => {}
        }
        Ok(())
    }

    async fn process(&mut self, message: &Message, position: Position) -> Result<(), Failure> {
        if self.not_yet_published.skips(message.id()) {
            return self.save_position(position).await;
        }
        self.handler.handle(message, self.subscription.keep_alive()).await?;
        self.progress.handled += 1;
        self.save_position(position).await
    }

    /// Saves the position in the cursor file, after flushing the messages before it.
    async fn save_position(&mut self, position: Position) -> Result<(), Failure> {
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        self.handler.flush().await?;
        cursor.save(position)
    }

    /// Prints existing messages, from a position on or the last ones. Returns the position after them.
    async fn show(&mut self, from: Position) -> Result<Position, Failure> {
        const PAGE: usize = 1_000;
        let (client, topic) = (self.args.client.clone(), self.topic.clone());
        let mut from = match self.args.back {
            Some(count) => last(&client, &topic, count).await?,
            None => from,
        };
        let mut tail = None;
        loop {
            let left = self.args.count.map_or(u64::MAX, |count| count - self.progress.handled);
            let page = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            if page == 0 {
                return Ok(from);
            }
            let seen = client.peek(&topic, Some(from), page).await?;
            self.progress.reached = true;
            let (Some(epoch), Some(next_id)) = (seen.epoch, seen.next_id) else { return Ok(from) };
            if seen.restarted {
                self.handle(Event::Restarted).await?;
            }
            self.report_gap(seen.missed);
            if tail.is_none_or(|(of, _)| of != epoch) && !seen.messages.is_empty() {
                // Messages that are published from now on are not shown, or this might never end.
                let now = client.peek(&topic, Some(Position::New), 1).await?;
                tail = now.epoch.zip(now.next_id);
            }
            let end = tail.filter(|(of, _)| *of == epoch).map_or(u64::MAX, |(_, end)| end);
            let next = self.show_page(&seen, epoch, next_id..end).await?;
            from = Position::before(epoch, next);
            if next >= end || seen.messages.is_empty() {
                // The position is also after the missed messages: they are reported only once.
                self.save_position(from).await?;
                return Ok(from);
            }
        }
    }

    /// Prints the messages whose ids are in `range`, and returns the id after the last one.
    async fn show_page(
        &mut self,
        seen: &Peeked,
        epoch: u64,
        range: Range<u64>,
    ) -> Result<u64, Failure> {
        let mut next = range.start;
        let mut gaps = seen.gaps.iter().peekable();
        for (index, message) in seen.messages.iter().enumerate() {
            if message.id() >= range.end {
                // A gap before this message is not reported here; the next run reports it.
                break;
            }
            while let Some((_, missed)) = gaps.next_if(|(before, _)| *before == index) {
                self.report_gap(*missed);
            }
            next = message.id().saturating_add(1);
            self.process(message, Position::After { epoch, id: message.id() }).await?;
        }
        Ok(next)
    }

    /// Reports missed messages. `tail` starts at retained messages, so it has not missed any.
    fn report_gap(&mut self, count: u64) {
        if count > 0 && self.args.back.is_none() {
            self.progress.report_missed(&self.topic, count);
        }
    }

    fn note_connected(&mut self) -> Result<(), Failure> {
        if self.connected && !self.args.quiet {
            note("connected again");
        } else if self.args.debug {
            note(&format!("following {} at {}", self.topic, self.args.client.server()));
        }
        self.progress.reached = true;
        self.connected = true;
        match &mut self.cursor {
            // Saves the start, so that nothing is missed if this run ends before the first message.
            Some(cursor) if cursor.saved().is_none() => cursor.save(self.subscription.position()),
            _ => Ok(()),
        }
    }

    async fn finish(mut self, ended: Result<Ended, Failure>) -> Result<Exit, Failure> {
        let flushed = self.handler.flush_at_end(ended.is_ok()).await;
        self.subscription.close().await;
        let ended = ended?;
        flushed?;
        Ok(self.progress.exit(&ended, &self.args))
    }
}
