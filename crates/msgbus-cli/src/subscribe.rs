//! `msgbus sub`.

use std::{
    future::{pending, poll_fn},
    ops::Range,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use msgbus_client::{Event, Message, Peeked, Position, Subscription};
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    args::Sub,
    cursor::{Cursor, Owner},
    execute::Execute,
    failure::{Exit, Failure},
    output::{self, Format, Output, note},
    signals::Stop,
    tail::last,
};

/// How long to look for a message that may still be to come.
const LOOK: Duration = Duration::from_secs(5);
/// How long output that nobody takes is waited for at the end.
const LAST_FLUSH: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Sub, mut stop: Stop) -> Result<Exit, Failure> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut follower = Follower::new(args, stop.clone())?;
    let runs_a_command = follower.execute.is_some();
    let mut end = pin!(async {
        select! {
            () = stop.requested() => Ok(Ended::Stopped),
            () = sleep_until_some(deadline) => Ok(Ended::OutOfTime),
            () = output::closed(), if !runs_a_command => Err(Failure::ClosedPipe),
        }
    });
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

/// Why it ends, when nothing is wrong.
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

/// A first message that the topic has not reached yet.
struct Ahead(Option<u64>);

impl Ahead {
    /// Looks whether `from` is an id that is still to come. Then it says so, and makes `from` the
    /// position of the next message: the server would take an id that it cannot know for one of a
    /// topic that was there before.
    async fn find(args: &Sub, from: &mut Position) -> Self {
        let Position::Id(id) = *from else { return Self(None) };
        // What is wrong with the connection shows when it is made.
        let seen = timeout(LOOK, args.client.peek(&args.topic, Some(*from), 1)).await;
        let Ok(Ok(seen)) = seen else { return Self(None) };
        if id == 0 || (seen.epoch.is_some() && !seen.restarted) {
            return Self(None);
        }
        let end = timeout(LOOK, args.client.peek(&args.topic, Some(Position::New), 1)).await;
        let Ok(Ok(end)) = end else { return Self(None) };
        let next_id = end.next_id.unwrap_or(0);
        // Meanwhile it may have come.
        if next_id < id {
            note(&format!("{} has no message {id} yet (next id is {next_id})", args.topic));
            *from = end.epoch.map_or(Position::All, |epoch| Position::before(epoch, next_id));
        }
        Self(Some(id).filter(|id| next_id < *id))
    }

    /// Whether a message comes before the first one that is wanted.
    fn skips(&mut self, id: u64) -> bool {
        let skips = self.0.is_some_and(|first| id < first);
        if !skips {
            self.0 = None;
        }
        skips
    }
}

struct Follower {
    args: Sub,
    execute: Option<Execute>,
    subscription: Subscription,
    output: Output,
    stop: Stop,
    cursor: Option<Cursor>,
    ahead: Ahead,
    /// Messages dealt with.
    handled: u64,
    /// Whether anything was gone before it came here.
    missed: bool,
    /// Whether the server has answered.
    reached: bool,
    /// Whether the subscription has ever been connected.
    connected: bool,
}

impl Follower {
    fn new(mut args: Sub, stop: Stop) -> Result<Self, Failure> {
        let raw = args.style.format == Some(Format::Raw);
        let execute = args.command.take().map(|(program, rest)| Execute::new(program, rest, raw));
        let execute = execute.transpose()?;
        let (topic, server) = (args.topic.to_string(), args.client.server().to_string());
        let owner = Owner { topic, server };
        let cursor = args.cursor.take().map(|path| Cursor::open(&path, owner, args.ignore_cursor));
        Ok(Self {
            subscription: args.client.subscribe(&args.topic, args.since),
            output: Output::new(args.style),
            stop,
            args,
            execute,
            cursor: cursor.transpose()?,
            ahead: Ahead(None),
            handled: 0,
            missed: false,
            reached: false,
            connected: false,
        })
    }

    /// Finds out where to start, and shows what is there already if that is wanted. That may be all.
    async fn begin(&mut self) -> Result<Option<Ended>, Failure> {
        let saved = self.cursor.as_ref().and_then(Cursor::saved);
        let mut from = saved.unwrap_or(self.args.since);
        self.ahead = Ahead::find(&self.args, &mut from).await;
        if self.args.poll || self.args.back.is_some() {
            from = self.show(from).await?;
        }
        if self.args.poll {
            return Ok(Some(Ended::Counted));
        }
        self.subscription = self.args.client.subscribe(&self.args.topic, from);
        Ok(None)
    }

    /// Handles one event after the other until something ends it.
    async fn follow(
        &mut self,
        mut end: Pin<&mut impl Future<Output = Result<Ended, Failure>>>,
    ) -> Result<Ended, Failure> {
        loop {
            if self.args.count.is_some_and(|count| self.handled >= count) {
                return Ok(Ended::Counted);
            }
            let event = select! {
                biased;
                ended = &mut end => return ended,
                event = self.next() => event?,
            };
            if self.execute.is_some() {
                // A command that runs is let finish.
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

    /// The next event. Output waits for company, but not for events that are still to come.
    async fn next(&mut self) -> Result<Event, Failure> {
        let mut next = pin!(self.subscription.next());
        // The same future goes on: a connection that it has begun is not begun twice.
        let at_once = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await;
        if let Poll::Ready(event) = at_once {
            return Ok(event?);
        }
        self.output.flush().await?;
        Ok(next.await?)
    }

    async fn handle(&mut self, event: Event) -> Result<(), Failure> {
        let topic = &self.args.topic;
        match event {
            Event::Message(message) => {
                let position = self.subscription.position();
                self.deal_with(&message, position).await?;
            }
            Event::Missed(count) => self.tell_missed(count),
            Event::Restarted => {
                self.ahead = Ahead(None);
                note(&format!(
                    "{topic}: topic was reset (server restart or delete); ids restart at 0"
                ));
            }
            Event::Connected => self.greet()?,
            Event::Disconnected { error, retry_in } if !self.args.quiet => {
                let seconds = retry_in.as_secs_f64();
                note(&format!("{error}; trying again in {seconds:.1} s"));
            }
            _ => {}
        }
        Ok(())
    }

    async fn deal_with(&mut self, message: &Message, position: Position) -> Result<(), Failure> {
        if self.ahead.skips(message.id()) {
            return self.keep(position).await;
        }
        match &self.execute {
            Some(execute) => {
                let (subscription, stop) = (&mut self.subscription, &mut self.stop);
                let problem = execute.run(message, subscription, stop).await?;
                self.judge(problem)?;
            }
            None => self.output.write(message).await?,
        }
        self.handled += 1;
        self.keep(position).await
    }

    /// Keeps the place when the messages before it are out, and not before.
    async fn keep(&mut self, place: Position) -> Result<(), Failure> {
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        self.output.flush().await?;
        cursor.save(place)
    }

    fn tell_missed(&mut self, count: u64) {
        self.missed = true;
        let (topic, s) = (&self.args.topic, if count == 1 { "" } else { "s" });
        note(&format!(
            "{topic}: missed {count} message{s}: the server dropped them before they were delivered \
             (topic limit or TTL)"
        ));
    }

    /// Shows what is there by now, from a position or of the last ones, and says where to go on.
    async fn show(&mut self, from: Position) -> Result<Position, Failure> {
        const PAGE: usize = 1_000;
        let (client, topic) = (self.args.client.clone(), self.args.topic.clone());
        let mut from = match self.args.back {
            Some(count) => last(&client, &topic, count).await?,
            None => from,
        };
        let mut tail = None;
        loop {
            let left = self.args.count.map_or(u64::MAX, |count| count - self.handled);
            let page = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            if page == 0 {
                return Ok(from);
            }
            let seen = client.peek(&topic, Some(from), page).await?;
            self.reached = true;
            let (Some(epoch), Some(next_id)) = (seen.epoch, seen.next_id) else { return Ok(from) };
            if seen.restarted {
                self.handle(Event::Restarted).await?;
            }
            self.tell_gap(seen.missed);
            if tail.is_none_or(|(life, _)| life != epoch) && !seen.messages.is_empty() {
                // What is published from now on is for another time, or there might be no end.
                let now = client.peek(&topic, Some(Position::New), 1).await?;
                tail = now.epoch.zip(now.next_id);
            }
            let end = tail.filter(|(life, _)| *life == epoch).map_or(u64::MAX, |(_, end)| end);
            let next = self.show_page(&seen, epoch, next_id..end).await?;
            from = Position::before(epoch, next);
            if next >= end || seen.messages.is_empty() {
                // Behind everything that is gone, too: it is not missed a second time.
                self.keep(from).await?;
                return Ok(from);
            }
        }
    }

    /// Shows those of the messages that are in a range of ids, and says how far it has come.
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
                // A gap before it is reported by the next page, whole.
                break;
            }
            while let Some((_, missed)) = gaps.next_if(|(before, _)| *before == index) {
                self.tell_gap(*missed);
            }
            next = message.id().saturating_add(1);
            self.deal_with(message, Position::After { epoch, id: message.id() }).await?;
        }
        Ok(next)
    }

    /// Tells what was gone when it was asked for. tail asks for no more than there is.
    fn tell_gap(&mut self, count: u64) {
        if count > 0 && self.args.back.is_none() {
            self.tell_missed(count);
        }
    }

    fn greet(&mut self) -> Result<(), Failure> {
        if self.connected && !self.args.quiet {
            note("connected again");
        } else if self.args.debug {
            note(&format!("following {} at {}", self.args.topic, self.args.client.server()));
        }
        self.reached = true;
        self.connected = true;
        match &mut self.cursor {
            // From here on nothing is missed, even if this is ended before a message comes.
            Some(cursor) if cursor.saved().is_none() => cursor.save(self.subscription.position()),
            _ => Ok(()),
        }
    }

    async fn finish(mut self, ended: Result<Ended, Failure>) -> Result<Exit, Failure> {
        let flushed = match &ended {
            Ok(_) => timeout(LAST_FLUSH, self.output.flush()).await.unwrap_or(Ok(())),
            // What could not be written is not tried again.
            Err(_) => Ok(()),
        };
        self.subscription.close().await;
        let ended = ended?;
        flushed?;
        Ok(match ended {
            Ended::OutOfTime if !self.reached => {
                note("no connection within --timeout");
                Exit::NoConnection
            }
            _ if self.missed && self.args.strict => Exit::Missed,
            Ended::OutOfTime if self.args.count.is_some() => Exit::Nothing,
            Ended::Counted | Ended::Stopped | Ended::OutOfTime => Exit::Done,
        })
    }

    /// What follows when a command has failed: the next message, or the end where a cursor has to
    /// stay before this one.
    fn judge(&self, problem: Option<String>) -> Result<(), Failure> {
        let Some(problem) = problem else { return Ok(()) };
        if self.cursor.is_some() {
            return Err(Failure::Other(format!("{problem}; the next run starts with it")));
        }
        note(&problem);
        Ok(())
    }
}
