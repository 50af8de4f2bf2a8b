//! `msgbus sub` of several topics or patterns, which share one websocket.

use std::{
    future::{pending, ready},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, future::try_join_all, stream::SelectAll};
use msgbus_client::{
    ClientError, Event, Message, Position, Socket, SocketStatus, SocketSubscription, TopicPattern,
};
use tokio::{
    select,
    time::{Instant, sleep},
};

use super::{Ended, Handler, Progress, Sub, end, note_delivery, sleep_until_some};
use crate::{
    cursor::{Cursors, Start},
    failure::{Exit, Failure},
    output::{Output, note},
    signals::Stop,
    tail,
};

/// With --poll: how long nothing arrives until the existing messages are taken to be complete. The last ones may have
/// expired, or be of topics that the key may not see.
const QUIET: Duration = Duration::from_secs(5);

pub(crate) async fn run(topics: Vec<TopicPattern>, args: Sub, stop: Stop) -> Result<Exit, Failure> {
    let end = pin!(end(&args, stop.clone()));
    let mut follower = Follower::new(topics, args, stop)?;
    let ended = follower.run(end).await;
    follower.finish(ended).await
}

struct Follower {
    sources: Vec<Source>,
    args: Sub,
    handler: Handler,
    cursors: Option<Cursors>,
    progress: Progress,
    /// When the last event was received, or the connection was made again. `None` while there is none.
    last_event: Option<Instant>,
}

/// A topic or a pattern.
struct Source {
    topics: TopicPattern,
    name: String,
    /// With --poll: the epoch, and the id after the last message to print.
    end: Option<(u64, u64)>,
    is_complete: bool,
}

/// A subscription with the index of its source.
struct Followed(usize, SocketSubscription);

impl Stream for Followed {
    type Item = (usize, Result<Event, ClientError>, Position);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self(index, subscription) = &mut *self;
        let event = std::task::ready!(Pin::new(&mut *subscription).poll_next(cx));
        Poll::Ready(event.map(|event| (*index, event, subscription.position())))
    }
}

/// The next position after `position`, with its epoch.
fn next_id(position: Position) -> Option<(u64, u64)> {
    match position {
        Position::After { epoch, id } => Some((epoch, id.saturating_add(1))),
        Position::Start { epoch } => Some((epoch, 0)),
        _ => None,
    }
}

impl Source {
    fn new(topics: TopicPattern) -> Self {
        Self { name: topics.to_string(), topics, end: None, is_complete: false }
    }

    fn is_pattern(&self) -> bool {
        self.name.contains('*')
    }

    fn restarted(&self) -> String {
        let name = &self.name;
        if self.is_pattern() {
            format!(
                "{name}: its order began anew (server restart, or a connection lost for minutes); \
                 all retained messages follow, without those received before"
            )
        } else {
            format!("{name}: topic was reset (server restart or delete); ids restart at 0")
        }
    }

    /// Notes the position that was reached.
    fn reached(&mut self, position: Position) {
        if let (Some((epoch, end)), Some((of, next))) = (self.end, next_id(position)) {
            // After a restart everything is new.
            self.is_complete |= of != epoch || next >= end;
        }
    }
}

impl Follower {
    fn new(topics: Vec<TopicPattern>, args: Sub, stop: Stop) -> Result<Self, Failure> {
        let server = args.client.server().to_string();
        let path = args.cursor.as_ref();
        let cursors = path.map(|path| Cursors::open(path, server, args.ignore_cursor));
        Ok(Self {
            sources: topics.into_iter().map(Source::new).collect(),
            handler: Handler::new(&args, Output::new(args.style).with_topics(), stop)?,
            cursors: cursors.transpose()?,
            progress: Progress::default(),
            last_event: None,
            args,
        })
    }

    async fn run(
        &mut self,
        mut end: Pin<&mut impl Future<Output = Result<Ended, Failure>>>,
    ) -> Result<Ended, Failure> {
        let begun = select! {
            biased;
            begun = self.begin() => begun?,
            ended = &mut end => return ended,
        };
        let (socket, mut followed) = begun;
        let ended = self.follow(&socket, &mut followed, end).await;
        drop(followed);
        socket.close().await;
        ended
    }

    /// Connects and subscribes.
    async fn begin(&mut self) -> Result<(Socket, SelectAll<Followed>), Failure> {
        let socket = self.connect().await?;
        self.progress.reached = true;
        let starts = self.starts(&socket).await?;
        let since = self.args.since;
        let subscribing = self.sources.iter().zip(starts).map(async |(source, start)| {
            let topics = source.topics.clone();
            match start {
                Some(Start { position, received }) => {
                    socket.resume(topics, position, received).await
                }
                None => socket.subscribe(topics, since).await,
            }
        });
        let mut followed = SelectAll::new();
        for (index, subscription) in try_join_all(subscribing).await?.into_iter().enumerate() {
            let source = &mut self.sources[index];
            source.reached(subscription.position());
            if let Some(cursors) = &mut self.cursors {
                let received = subscription.topic_positions();
                cursors.begin(&source.name, subscription.position(), received);
            }
            followed.push(Followed(index, subscription));
        }
        if let Some(cursors) = &mut self.cursors {
            // Nothing is missed if this run ends before the first message.
            cursors.save()?;
        }
        if self.args.debug {
            let names: Vec<&str> = self.sources.iter().map(|source| &*source.name).collect();
            note(&format!("following {} at {}", names.join(", "), self.args.client.server()));
        }
        Ok((socket, followed))
    }

    /// The first connection is retried only if the server asks for it.
    async fn connect(&self) -> Result<Socket, Failure> {
        loop {
            match self.args.client.connect().await {
                Err(error @ ClientError::Busy { retry_after, .. }) => {
                    self.note_lost(&error, retry_after);
                    sleep(retry_after).await;
                }
                connected => return Ok(connected?),
            }
        }
    }

    /// Where each source starts, if not at --since.
    async fn starts(&mut self, socket: &Socket) -> Result<Vec<Option<Start>>, Failure> {
        let now = if self.args.poll || self.args.back.is_some() {
            let topics = self.sources.iter().map(|source| source.topics.clone());
            try_join_all(topics.map(|topics| socket.subscribe(topics, Position::New))).await?
        } else {
            Vec::new()
        };
        if self.args.poll {
            for (source, now) in self.sources.iter_mut().zip(&now) {
                source.end = next_id(now.position());
            }
        }
        if let Some(count) = self.args.back {
            return self.show_last(&now, count).await;
        }
        let cursors = self.cursors.as_ref().filter(|_| !self.args.ignore_cursor);
        let saved = |source: &Source| cursors.and_then(|cursors| cursors.start(&source.name));
        Ok(self.sources.iter().map(saved).collect())
    }

    /// Prints the last messages of all sources. They are read after `now`, which are subscriptions to new messages, so that
    /// none is missed in between.
    async fn show_last(
        &mut self,
        now: &[SocketSubscription],
        count: u64,
    ) -> Result<Vec<Option<Start>>, Failure> {
        let topics: Vec<_> = self.sources.iter().map(|source| &source.topics).collect();
        let mut last = tail::last_of_many(&self.args.client, &topics, count).await?;
        let mut starts = Vec::new();
        for (source, now) in self.sources.iter().zip(now) {
            let mut received = now.topic_positions().cloned().unwrap_or_default();
            let matches = |message: &Message| source.topics.matches(&message.topic().name);
            for message in last.iter().filter(|message| matches(message)) {
                let topic = message.topic();
                received.insert(topic.name.clone(), topic.created, message.id());
            }
            if let Some((_, end)) = next_id(now.position()).filter(|_| !source.is_pattern()) {
                // The others follow.
                last.retain(|message| !matches(message) || message.id() < end);
            }
            starts.push(Some(Start { position: now.position(), received }));
        }
        for message in &last {
            self.handler.handle(message, pending()).await?;
        }
        Ok(starts)
    }

    /// Handles events until the count is reached, the existing messages are complete or `end` completes.
    async fn follow(
        &mut self,
        socket: &Socket,
        followed: &mut SelectAll<Followed>,
        mut end: Pin<&mut impl Future<Output = Result<Ended, Failure>>>,
    ) -> Result<Ended, Failure> {
        let mut statuses = pin!(socket.statuses());
        let mut is_flushed = false;
        self.last_event = Some(Instant::now());
        loop {
            if self.is_complete() {
                return Ok(Ended::Counted);
            }
            let event = select! {
                biased;
                ended = &mut end => return ended,
                Some(status) = statuses.next() => {
                    self.note_status(&status);
                    continue;
                }
                Some(event) = followed.next() => event,
                // Nothing is ready.
                () = ready(()), if !is_flushed => {
                    self.handler.flush().await?;
                    is_flushed = true;
                    continue;
                }
                () = sleep_until_some(self.quiet_at()), if self.args.poll => {
                    return Ok(Ended::Counted);
                }
            };
            is_flushed = false;
            self.last_event = Some(Instant::now());
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

    fn is_complete(&self) -> bool {
        self.args.count.is_some_and(|count| self.progress.handled >= count)
            || (self.args.poll && self.sources.iter().all(|source| source.is_complete))
    }

    async fn handle(
        &mut self,
        (index, event, position): (usize, Result<Event, ClientError>, Position),
    ) -> Result<(), Failure> {
        let source = &mut self.sources[index];
        let was_complete = source.is_complete;
        source.reached(position);
        let is_new = was_complete || self.is_after_end(index, position);
        let source = &self.sources[index];
        match &event? {
            // With --poll, what was published after the start is not printed, and not noted.
            _ if is_new => return Ok(()),
            Event::Message(message) => {
                self.handler.handle(message, pending()).await?;
                self.progress.handled += 1;
                let message = source.is_pattern().then_some(message);
                return self.save(index, position, message).await;
            }
            Event::Missed(count) => self.progress.report_missed(&source.name, *count),
            Event::Restarted => note(&source.restarted()),
            event @ (Event::Stalled | Event::Resumed) if !self.args.quiet => {
                note_delivery(&source.name, matches!(event, Event::Stalled));
                return Ok(());
            }
            _ => {}
        }
        self.save(index, position, None).await
    }

    /// Whether a position is after the messages that --poll prints.
    fn is_after_end(&self, index: usize, position: Position) -> bool {
        let end = self.sources[index].end.zip(next_id(position));
        end.is_some_and(|((epoch, end), (of, next))| of == epoch && next > end)
    }

    /// Saves a position in the cursor file, after flushing the messages before it.
    async fn save(
        &mut self,
        index: usize,
        position: Position,
        message: Option<&Message>,
    ) -> Result<(), Failure> {
        let Some(cursors) = &mut self.cursors else { return Ok(()) };
        self.handler.flush().await?;
        cursors.note(&self.sources[index].name, position, message);
        cursors.save()
    }

    /// When nothing was received for so long that nothing more is expected.
    fn quiet_at(&self) -> Option<Instant> {
        self.last_event.map(|at| at + QUIET)
    }

    fn note_status(&mut self, status: &SocketStatus) {
        let is_connected = matches!(status, SocketStatus::Connected);
        self.last_event = is_connected.then(Instant::now);
        match status {
            SocketStatus::Disconnected { error, retry_in } => self.note_lost(error, *retry_in),
            SocketStatus::Connected if !self.args.quiet => note("connected again"),
            _ => {}
        }
    }

    fn note_lost(&self, error: &ClientError, retry_in: Duration) {
        if !self.args.quiet {
            note(&format!("{error}; trying again in {:.1} s", retry_in.as_secs_f64()));
        }
    }

    async fn finish(mut self, ended: Result<Ended, Failure>) -> Result<Exit, Failure> {
        let flushed = self.handler.flush_at_end(ended.is_ok()).await;
        let ended = ended?;
        flushed?;
        Ok(self.progress.exit(&ended, &self.args))
    }
}
