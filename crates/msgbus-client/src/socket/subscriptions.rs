//! The subscriptions of a connection, from its side: their state on the server, and where they resume.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use msgbus_core::{Leased, Position, ReplyToken, Settlement, json};
use serde_json::value::RawValue;
use tokio::{sync::oneshot, time::Instant};

use super::{
    answer::{Answer, Lease, Pushed},
    deliveries::LeaseReceiver,
    operation,
    outgoing::MAX_FRAME,
    queue::{Entry, Queue},
    responder::RequestReceiver,
};
use crate::{backoff::Backoff, error::ClientError, service, subscription::Event};

/// A subscription.
#[derive(Debug)]
pub(super) struct Subscribed {
    /// The topic or the pattern, or the service.
    pub(super) topics: String,
    /// Where it starts the next time. For a group: where the group starts if it is created.
    pub(super) position: Option<Position>,
    pub(super) receiver: Receiver,
    /// Reports the first start, or that it was refused.
    pub(super) started: Option<oneshot::Sender<Result<Position, ClientError>>>,
    state: State,
    epoch: Option<u64>,
    /// Whether the engine of the topic does not deliver, as far as the server has said.
    is_stalled: bool,
    backoff: Backoff,
}

/// Who receives what is pushed.
#[derive(Debug)]
pub(super) enum Receiver {
    Messages(Arc<Queue>),
    Leases(LeaseReceiver),
    Requests(RequestReceiver),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has to be started.
    Due,
    /// It was started with this `sid`, and there is no answer yet.
    Starting(u64),
    Open(u64),
    /// Its queue is full.
    Paused,
    /// It starts again at this time.
    Waiting(Instant),
}

impl Subscribed {
    pub(super) fn new(
        topics: String,
        position: Option<Position>,
        receiver: Receiver,
        started: oneshot::Sender<Result<Position, ClientError>>,
    ) -> Self {
        Self {
            topics,
            position,
            receiver,
            started: Some(started),
            state: State::Due,
            epoch: None,
            is_stalled: false,
            backoff: Backoff::default(),
        }
    }

    fn sid(&self) -> Option<u64> {
        match self.state {
            State::Starting(sid) | State::Open(sid) => Some(sid),
            State::Due | State::Paused | State::Waiting(_) => None,
        }
    }

    /// The line that starts it with this `sid`.
    fn line(&mut self, sid: u64) -> String {
        match &mut self.receiver {
            Receiver::Messages(_) => {
                operation::subscribe(sid, &self.topics, self.position.unwrap_or_default())
            }
            Receiver::Leases(leases) => {
                let credit = leases.all_credit();
                let options = (leases.lease, self.position, credit);
                operation::work(sid, &self.topics, &leases.group, options)
            }
            Receiver::Requests(requests) => operation::serve(sid, &self.topics, requests.at_a_time),
        }
    }

    /// Takes over where it starts.
    fn begin(&mut self, sid: u64, answer: &Answer) {
        self.state = State::Open(sid);
        self.epoch = answer.epoch;
        self.is_stalled = false;
        let exact = answer.epoch.zip(answer.next_id);
        if let (Receiver::Messages(queue), Some((epoch, next_id))) = (&self.receiver, exact) {
            // Until the gap has been received, another start has to report it too.
            let position = match (answer.missed, answer.restarted) {
                (None, _) => Some(Position::before(epoch, next_id)),
                (_, true) => Some(Position::Start { epoch }),
                (_, false) => self.position,
            };
            self.position = position;
            let position = position.unwrap_or_default();
            if answer.restarted {
                queue.push_always(Entry { event: Event::Restarted, position });
            }
        }
        if let Some(started) = self.started.take() {
            let _ = started.send(Ok(self.position.unwrap_or_default()));
        }
    }

    fn finish(mut self, error: ClientError) {
        match self.started.take() {
            Some(started) => {
                let _ = started.send(Err(error));
            }
            None => match self.receiver {
                Receiver::Messages(queue) => queue.finish(error),
                Receiver::Leases(leases) => leases.finish(error),
                Receiver::Requests(requests) => requests.finish(error),
            },
        }
    }
}

/// All subscriptions of a connection.
#[derive(Debug)]
pub(super) struct Subscriptions {
    all: HashMap<u64, Subscribed>,
    /// The numbers of those that are started, by their `sid`.
    sids: HashMap<u64, u64>,
    /// Those that have to be started, or to be given credit.
    due: VecDeque<u64>,
    retries: BTreeSet<(Instant, u64)>,
    /// The `sid`s that have to be ended.
    ended: Vec<u64>,
    /// Leases and requests that nobody has received.
    unwanted: Vec<Leased>,
    declined: Vec<ReplyToken>,
    /// Numbers of operations and subscriptions.
    numbers: Arc<AtomicU64>,
}

impl Subscriptions {
    pub(super) fn new(numbers: Arc<AtomicU64>) -> Self {
        Self {
            all: HashMap::new(),
            sids: HashMap::new(),
            due: VecDeque::new(),
            retries: BTreeSet::new(),
            ended: Vec::new(),
            unwanted: Vec::new(),
            declined: Vec::new(),
            numbers,
        }
    }

    pub(super) fn add(&mut self, number: u64, subscribed: Subscribed) {
        self.all.insert(number, subscribed);
        self.due.push_back(number);
    }

    pub(super) fn resume(&mut self, number: u64) {
        if let Some(subscribed) = self.all.get_mut(&number)
            && subscribed.state == State::Paused
        {
            subscribed.state = State::Due;
            self.due.push_back(number);
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some(subscribed) = self.all.remove(&number) else { return };
        if let Some(sid) = subscribed.sid() {
            self.sids.remove(&sid);
            self.ended.push(sid);
        }
    }

    /// Gives credit back.
    pub(super) fn settled(&mut self, number: u64) {
        if let Some(subscribed) = self.all.get_mut(&number)
            && let Receiver::Leases(leases) = &mut subscribed.receiver
        {
            leases.settled();
            self.due.push_back(number);
        }
    }

    /// The `sid`s of the lost connection mean nothing on the next one.
    pub(super) fn connection_lost(&mut self) {
        self.sids.clear();
        self.ended.clear();
        self.declined.clear();
        self.due.clear();
        self.retries.clear();
        for (number, subscribed) in &mut self.all {
            if let Receiver::Requests(requests) = &subscribed.receiver {
                requests.connection_lost();
            }
            if subscribed.state != State::Paused {
                subscribed.state = State::Due;
                self.due.push_back(*number);
            }
        }
    }

    /// When a subscription has to be started again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Writes what is due, as much as fits into a frame.
    pub(super) fn write(&mut self, frame: &mut String) {
        for sid in self.ended.drain(..) {
            frame.push_str(&operation::unsubscribe(sid));
        }
        for leased in self.unwanted.drain(..) {
            let reason = Some("dropped without an ack".into());
            let nack = Settlement::Nack { delay: Duration::ZERO, reason };
            frame.push_str(&operation::settle(None, &leased.token, &nack));
        }
        for token in self.declined.drain(..) {
            frame.push_str(&operation::reply(None, &token, &service::Answer::Decline));
        }
        let now = Instant::now();
        while let Some(retry) = self.retries.first().copied().filter(|(at, _)| *at <= now) {
            self.retries.remove(&retry);
            self.due.push_back(retry.1);
        }
        while frame.len() < MAX_FRAME
            && let Some(number) = self.due.pop_front()
        {
            let Some(subscribed) = self.all.get_mut(&number) else { continue };
            match (subscribed.state, &mut subscribed.receiver) {
                (State::Due | State::Waiting(_), _) => {
                    let sid = self.numbers.fetch_add(1, Relaxed);
                    frame.push_str(&subscribed.line(sid));
                    subscribed.state = State::Starting(sid);
                    self.sids.insert(sid, number);
                }
                (State::Open(sid), Receiver::Leases(leases)) => {
                    if let Some(n) = leases.returned_credit() {
                        frame.push_str(&operation::credit(sid, n));
                    }
                }
                _ => {}
            }
        }
    }

    fn at(&mut self, sid: u64) -> Option<(u64, &mut Subscribed)> {
        let number = *self.sids.get(&sid)?;
        Some((number, self.all.get_mut(&number)?))
    }

    /// Takes the answer to a start. Returns the answer if `rid` is not that of a start.
    pub(super) fn answered(
        &mut self,
        rid: u64,
        answer: Result<Answer, ClientError>,
    ) -> Option<Result<Answer, ClientError>> {
        let Some((number, subscribed)) = self.at(rid) else { return Some(answer) };
        match answer {
            Ok(answer) => {
                subscribed.begin(rid, &answer);
                // Credit that was given back meanwhile.
                self.due.push_back(number);
            }
            Err(error) => {
                self.sids.remove(&rid);
                self.refused(number, error);
            }
        }
        None
    }

    /// A first start that is refused is an error. Later ones are repeated if that may help.
    fn refused(&mut self, number: u64, error: ClientError) {
        let is_first = self.all.get(&number).is_some_and(|one| one.started.is_some());
        if is_first || !error.is_temporary() {
            if let Some(subscribed) = self.all.remove(&number) {
                subscribed.finish(error);
            }
            return;
        }
        let after = match error {
            ClientError::Busy { retry_after, .. } => retry_after,
            _ => Duration::ZERO,
        };
        self.retry(number, after);
    }

    fn retry(&mut self, number: u64, after: Duration) {
        let Some(subscribed) = self.all.get_mut(&number) else { return };
        let at = Instant::now() + subscribed.backoff.next().max(after);
        subscribed.state = State::Waiting(at);
        self.retries.insert((at, number));
    }

    /// # Errors
    /// It is not a message.
    pub(super) fn message(
        &mut self,
        (sid, id): (u64, u64),
        message: &RawValue,
        lease: Option<Lease<'_>>,
    ) -> Result<(), ClientError> {
        let Some((number, subscribed)) = self.at(sid) else {
            // It was ended meanwhile.
            let lease = lease.map(|lease| lease.of(message)).transpose()?;
            self.unwanted.extend(lease);
            return Ok(());
        };
        subscribed.backoff.reset();
        match (&mut subscribed.receiver, lease) {
            (Receiver::Messages(queue), _) => {
                let message = json::read_message(message.get().as_bytes())?;
                let epoch = subscribed.epoch.unwrap_or_default();
                let position = Position::After { epoch, id };
                if queue.push(Entry { event: Event::Message(message), position }) {
                    subscribed.position = Some(position);
                } else {
                    self.pause(number, sid);
                }
            }
            (Receiver::Leases(leases), Some(lease)) => {
                let leased = leases.receive(lease.of(message)?, number);
                self.unwanted.extend(leased);
            }
            (Receiver::Leases(_), None) | (Receiver::Requests(_), _) => {}
        }
        Ok(())
    }

    /// Passes a request on, or declines it if nobody takes it.
    pub(super) fn request(&mut self, sid: u64, request: Pushed) {
        let token = request.token;
        let is_taken = self.at(sid).is_some_and(|(_, subscribed)| {
            subscribed.backoff.reset();
            match &subscribed.receiver {
                Receiver::Requests(requests) => requests.receive(request),
                _ => false,
            }
        });
        if !is_taken {
            self.declined.push(token);
        }
    }

    pub(super) fn gap(&mut self, sid: u64, missed: u64, next_id: u64) {
        let Some((number, subscribed)) = self.at(sid) else { return };
        let Receiver::Messages(queue) = &subscribed.receiver else { return };
        let position = Position::before(subscribed.epoch.unwrap_or_default(), next_id);
        if queue.push(Entry { event: Event::Missed(missed), position }) {
            subscribed.position = Some(position);
        } else {
            self.pause(number, sid);
        }
    }

    /// The engine of a topic does not deliver, or does again. The server says the first
    /// again and again.
    pub(super) fn delivery(&mut self, sid: u64, is_stalled: bool) {
        let Some((_, subscribed)) = self.at(sid) else { return };
        let Receiver::Messages(queue) = &subscribed.receiver else { return };
        let position = subscribed.position.unwrap_or_default();
        let event = if is_stalled { Event::Stalled } else { Event::Resumed };
        if subscribed.is_stalled != is_stalled && queue.push_if_room(Entry { event, position }) {
            subscribed.is_stalled = is_stalled;
        }
    }

    fn pause(&mut self, number: u64, sid: u64) {
        self.sids.remove(&sid);
        self.ended.push(sid);
        if let Some(subscribed) = self.all.get_mut(&number) {
            subscribed.state = State::Paused;
        }
    }

    /// The server has ended a subscription.
    pub(super) fn ended(&mut self, sid: u64, reason: &str) {
        let Some(number) = self.sids.remove(&sid) else { return };
        match reason {
            "revoked" => {
                if let Some(subscribed) = self.all.remove(&number) {
                    let text = "the key no longer allows the subscription".to_owned();
                    subscribed.finish(ClientError::Refused { status: 403, text });
                }
            }
            // The topic may be created anew at once, but not again and again.
            _ => self.retry(number, Duration::ZERO),
        }
    }

    /// Ends all of them.
    pub(super) fn fail(&mut self, error: impl Fn() -> ClientError) {
        for (_, subscribed) in self.all.drain() {
            subscribed.finish(error());
        }
    }
}
