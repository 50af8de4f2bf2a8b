//! The commands of one connection, independent of how they are transported: those of the peer, and those that it gets.

use std::{
    collections::HashMap,
    task::{Context, Poll},
};

use chrono::Utc;
use futures_util::{
    StreamExt as _,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use msgbus_core::{
    NewMessage, NewRequest, Position, PublishError, RecvError, Reply, Request, TopicName,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::debug;

use super::{
    Client, ENOUGH, MAX_CALLS, MAX_HANDLERS, MAX_IN_HAND, MAX_UNREAD,
    command::{self, Command, ERROR, EXCEPTION, Failure, RESPONSE, UNEXPECTED},
    handlers::{Event, Flow, Follow, Name, Serve},
    output::Output,
    stats::Counts,
    stream::Malformed,
    waiting::{Outcome, Waiting},
};
use crate::{
    auth::Target,
    net::wake_queue,
    service::{
        code::Code,
        error::ServiceError,
        follower::{End, Item},
        in_hand::InHand,
        publisher::{Publisher, Publishing},
        requests::Answer,
    },
};

pub(super) struct Exchange {
    pub(super) client: Client,
    waiting: FuturesUnordered<Waiting>,
    handlers: FuturesUnordered<Abortable<BoxFuture<'static, Event>>>,
    names: HashMap<Name, Handle>,
    flow: watch::Sender<Flow>,
    /// The calls that the peer has, by their keys.
    in_hand: InHand<String, TopicName>,
    /// The beginning of the keys of this connection, which is random: no peer uses it by chance.
    prefix: u64,
    publisher: Option<Publisher>,
    has_published: bool,
    counts: Counts,
}

/// A handler of the peer.
struct Handle {
    abort: AbortHandle,
    /// The command that is answered when it has begun, as JSON.
    key: Option<Box<str>>,
}

impl Exchange {
    pub(super) fn new(client: Client) -> Self {
        let mut random = [0; 8];
        // Without it, keys are still unique on this connection.
        let _ = getrandom::fill(&mut random);
        let mut exchange = Self {
            waiting: FuturesUnordered::new(),
            handlers: FuturesUnordered::new(),
            names: HashMap::new(),
            flow: watch::Sender::default(),
            in_hand: InHand::new(&client.worker),
            prefix: u64::from_ne_bytes(random) >> 16,
            publisher: None,
            has_published: false,
            counts: Counts::default(),
            client,
        };
        exchange.open_broadcasts();
        exchange
    }

    /// Follows the broadcasts of the server that are not followed yet: another user may not have been allowed to.
    fn open_broadcasts(&mut self) {
        for pattern in self.client.worker.config.drs.broadcast.clone() {
            let name = Name::Broadcast(pattern.to_string());
            if !self.names.contains_key(&name) {
                // It may be the name of a topic.
                let target = name.text().parse().unwrap_or(Target::Pattern(pattern));
                self.open(name, target, Position::New, None, None);
            }
        }
    }

    /// Whether another command may begin while this many bytes wait to be written.
    pub(super) fn may_begin(&self, unwritten: usize) -> bool {
        let is_serial = self.client.worker.config.drs.is_serial;
        let max_waiting = if is_serial { 1 } else { 2 * MAX_CALLS };
        unwritten < MAX_UNREAD && self.waiting.len() < max_waiting
    }

    /// Begins a command of the peer.
    pub(super) fn begin(&mut self, bytes: &[u8], output: &mut Output<'_>) -> Result<(), Malformed> {
        let command = Command::read(bytes)?;
        self.client.commands.increment();
        if !self.complete(&command)
            && let Some(outcome) = self.perform(&command).transpose()
        {
            self.answer(command.key, &command.action, &outcome, output);
        }
        Ok(())
    }

    /// Completes a call that the peer has, if the command is its answer. It may have any action: some clients repeat that of
    /// the call. Answers that nobody waits for are ignored.
    fn complete(&mut self, command: &Command<'_>) -> bool {
        let key = command.key.and_then(command::text);
        let Some((token, service)) = key.and_then(|key| self.in_hand.remove(&*key)) else {
            return matches!(&*command.action, RESPONSE | ERROR | EXCEPTION);
        };
        let (action, answer) = match &*command.action {
            ERROR => (ERROR, Answer::failure(&command.failure())),
            EXCEPTION => {
                (EXCEPTION, Answer::failure(&format!("{UNEXPECTED}{}", command.failure())))
            }
            _ => match self.payload(command) {
                Ok(payload) => {
                    let headers = command.headers();
                    (RESPONSE, Answer::Reply(Reply { payload: payload.into(), headers }))
                }
                Err(failure) => (ERROR, Answer::failure(&failure.text)),
            },
        };
        self.counts.add(&service, action);
        // If nobody waits any more, there is nothing that the peer could do about it.
        let _ = self.client.call().reply(&token, answer);
        true
    }

    /// Carries out a command. `None` if it is answered later.
    fn perform(&mut self, command: &Command<'_>) -> Result<Option<Reply>, Failure> {
        let done = Ok(Some(Reply::default()));
        match &*command.action {
            "drs.ping" => Ok(Some(Utc::now().timestamp_millis().to_string().into())),
            "drs.kaboom" => Err(Failure::exception("\u{1F4A5}")),
            "auth.upgrade" => {
                let token = command.body.and_then(command::text);
                let token = token.ok_or_else(|| Failure::error("Token must be a string"))?;
                self.client.log_in(&token).map_err(|error| self.refused(error))?;
                self.publisher = None;
                self.flow.send_modify(|flow| flow.identity += 1);
                self.open_broadcasts();
                Ok(Some(command::json_text(self.client.user()).into()))
            }
            "drs.serve" => {
                command.names()?.iter().try_for_each(|name| self.serve(name))?;
                done
            }
            "drs.subscribe" => {
                let names = command.names()?;
                let (last, others) = names.split_last().unwrap_or_else(|| unreachable!("one"));
                others.iter().try_for_each(|name| self.subscribe(name, None).map(drop))?;
                let is_later = self.subscribe(last, command.key)? && command.key.is_some();
                Ok(Some(Reply::default()).filter(|_| !is_later))
            }
            "drs.off" => {
                command.names()?.iter().for_each(|name| self.off(name));
                done
            }
            action if action.is_empty() || action.starts_with("drs.") => {
                Err(Failure::error(format!("No handlers for {action}")))
            }
            _ if command.key.is_some() => self.call(command),
            _ => self.fire(command),
        }
    }

    /// Asks the service with the name of the action.
    fn call(&mut self, command: &Command<'_>) -> Result<Option<Reply>, Failure> {
        if self.waiting.len() >= MAX_CALLS {
            self.client.worker.metrics.refusal(Code::TooManyRequests);
            return Err(Failure::exception(format!("at most {MAX_CALLS} calls may wait")));
        }
        let service = command::topic_name(&command.action)?;
        let request = NewRequest::new(self.payload(command)?)
            .headers(command.headers())
            .timeout(self.client.worker.config.drs.timeout);
        let asked = self.client.call().ask(&service).and_then(|asking| asking.send(request));
        let asked = asked.map_err(|error| self.refused(error))?;
        let key = command.key.unwrap_or_default().into();
        self.waiting.push(Waiting::Call(key, service, asked));
        Ok(None)
    }

    /// Publishes to the topic with the name of the action.
    fn fire(&mut self, command: &Command<'_>) -> Result<Option<Reply>, Failure> {
        let message = NewMessage::new(self.payload(command)?).headers(command.headers());
        let call = self.client.call();
        let known = self.publisher.take().filter(|known| known.topic().as_str() == command.action);
        let publisher = match known {
            Some(known) => known,
            None => call.publisher(&command::topic_name(&command.action)?),
        };
        let publisher = self.publisher.insert(publisher);
        let topic = publisher.topic().clone();
        let publishing = call.publish_to(publisher, message);
        self.has_published = true;
        match publishing.map_err(|error| self.refused(error))? {
            Publishing::Done(_) => Ok(Some(Reply::default())),
            Publishing::Committing(commit) => {
                let outcome = async { Ok(commit.await.map(|_| Reply::default())?) };
                self.waiting.push(Waiting::Fire(topic, Box::pin(outcome)));
                Ok(None)
            }
        }
    }

    /// Handles the calls of a service.
    pub(super) fn serve(&mut self, service: &str) -> Result<(), Failure> {
        let name = Name::Calls(service.to_owned());
        if !self.names.contains_key(&name) {
            self.may_handle()?;
            let serve =
                Serve::new(&self.client, command::topic_name(service)?, self.flow.subscribe());
            let serve = serve.map_err(|error| self.refused(error))?;
            self.handle(name, None, Box::pin(serve.next()));
        }
        Ok(())
    }

    /// Handles the fires of a topic or a pattern, and then answers the command with this key. Returns `false` if it does
    /// already.
    pub(super) fn subscribe(&mut self, topic: &str, key: Option<&str>) -> Result<bool, Failure> {
        let target: Target = topic.parse().map_err(|why| Failure::error(format!("{why}")))?;
        let name = Name::Fires(topic.to_owned());
        if self.names.contains_key(&name) {
            return Ok(false);
        }
        self.may_handle()?;
        self.open(name, target, Position::New, key, None);
        Ok(true)
    }

    /// Begins to follow. `before` is what followed before, which ends then.
    fn open(
        &mut self,
        name: Name,
        target: Target,
        from: Position,
        key: Option<&str>,
        before: Option<Box<Follow>>,
    ) {
        let flow = self.flow.subscribe();
        let opening = Follow::open(&self.client, name.clone(), target, from, flow);
        let opened = async move {
            let event = opening.await;
            drop(before);
            event
        };
        self.handle(name, key, Box::pin(opened));
    }

    fn handle(&mut self, name: Name, key: Option<&str>, next: BoxFuture<'static, Event>) {
        let (abort, registration) = AbortHandle::new_pair();
        self.handlers.push(Abortable::new(next, registration));
        self.names.insert(name, Handle { abort, key: key.map(Into::into) });
    }

    fn may_handle(&self) -> Result<(), Failure> {
        if self.names.len() < MAX_HANDLERS {
            return Ok(());
        }
        self.client.worker.metrics.refusal(Code::TooManySubscriptions);
        Err(Failure::error(format!("at most {MAX_HANDLERS} names may be handled")))
    }

    /// Handles a name no longer.
    fn off(&mut self, name: &str) {
        for name in [Name::Calls(name.to_owned()), Name::Fires(name.to_owned())] {
            if let Some(handle) = self.names.remove(&name) {
                handle.abort.abort();
            }
        }
    }

    /// The body as a payload.
    fn payload(&self, command: &Command<'_>) -> Result<Vec<u8>, Failure> {
        let (body, limit) =
            (command.body.unwrap_or_default(), self.client.worker.config.max_payload);
        if body.len() > limit {
            self.client.worker.metrics.refusal(Code::PayloadTooLarge);
            return Err(Failure::error(format!("a body has at most {limit} bytes")));
        }
        Ok(body.as_bytes().to_vec())
    }

    /// Counts a refusal.
    fn refused(&self, error: ServiceError) -> Failure {
        let code = error.code();
        self.client.worker.metrics.refusal(code);
        debug!(peer = %self.client.peer, code = code.word(), "refused");
        error.into()
    }

    /// Answers a command, and counts it. Without a key it was fired, and nobody waits for an answer.
    fn answer(
        &mut self,
        key: Option<&str>,
        action: &str,
        outcome: &Outcome,
        output: &mut Output<'_>,
    ) {
        let (kind, body) = match outcome {
            Ok(Reply { payload, headers }) => (RESPONSE, command::body(payload, headers)),
            Err(failure) => (failure.action, Some(failure.body().into())),
        };
        if let Ok(name) = TopicName::new(action) {
            self.counts.add(&name, kind);
        }
        if key.is_some() || self.client.worker.config.drs.answers_fires {
            output.command(key, kind, body.as_deref(), None);
        }
    }

    /// Adds what was counted to the counters of the door.
    pub(super) fn count(&mut self) {
        self.client.stats.take(&mut self.counts);
    }

    /// Call this after commands have begun.
    pub(super) fn announce(&mut self) {
        if std::mem::take(&mut self.has_published) {
            wake_queue::published();
        }
    }

    /// Writes what is ready, until there is enough to write. Pending if there was nothing. If the peer does not read, it only
    /// lets others handle what this one would.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        is_blocked: bool,
        output: &mut Output<'_>,
    ) -> Poll<()> {
        let mut polled = Poll::Pending;
        while is_blocked || output.waiting() < ENOUGH {
            self.regulate(!is_blocked);
            if !is_blocked
                && let Poll::Ready(Some((key, name, outcome))) = self.waiting.poll_next_unpin(cx)
            {
                self.answer(key.as_deref(), name.as_str(), &outcome, output);
            } else if let Poll::Ready(Some(event)) = self.handlers.poll_next_unpin(cx) {
                // One that was ended has no event.
                if let Ok(event) = event {
                    self.settle(event, output);
                }
            } else {
                break;
            }
            polled = Poll::Ready(());
        }
        polled
    }

    /// Does what follows from an event.
    fn settle(&mut self, event: Event, output: &mut Output<'_>) {
        match event {
            Event::Calls(serve, calls) => {
                for call in calls {
                    self.pass(&serve.service, call, output);
                }
                let name = Name::Calls(serve.service.to_string());
                self.handle(name, None, Box::pin(serve.next()));
            }
            Event::ServeEnded(service) => {
                self.names.remove(&Name::Calls(service.to_string()));
                notify(output, "drs.end", &json!({"serve": service.as_str()}));
            }
            Event::Followed(name, followed) => self.followed(name, followed, output),
            Event::Fires(follow, items) => {
                let name = follow.follower.subscription().name();
                for item in items {
                    match item {
                        Item::Frame(frame) => output.push(frame),
                        Item::Missed(missed) => {
                            notify(
                                output,
                                "drs.gap",
                                &json!({"subscribe": name, "missed": missed}),
                            );
                        }
                        Item::Feed(_) => {}
                    }
                }
                self.handle(follow.name.clone(), None, Box::pin(follow.next()));
            }
            Event::LoggedIn(follow) => {
                let (follower, target) = (&follow.follower, follow.target.clone());
                let from = Position::before(follower.subscription().epoch(), follower.next_id());
                self.open(follow.name.clone(), target, from, None, Some(follow));
            }
            // There may be another one, and clients do not expect that a handler ends.
            Event::FollowEnded(follow, End::Over(RecvError::Deleted)) => {
                let from = match follow.target {
                    Target::Topic(_) => Position::All,
                    Target::Pattern(_) => Position::New,
                };
                self.open(follow.name.clone(), follow.target.clone(), from, None, None);
            }
            Event::FollowEnded(follow, end) => {
                follow.follower.log_end(&end);
                self.names.remove(&follow.name);
                notify(output, "drs.end", &json!({"subscribe": follow.name.text()}));
            }
        }
    }

    /// A topic or a pattern is followed from now on, or is refused.
    fn followed(
        &mut self,
        name: Name,
        followed: Result<Box<Follow>, ServiceError>,
        output: &mut Output<'_>,
    ) {
        let key = self.names.remove(&name).and_then(|handle| handle.key);
        let outcome = match followed {
            Ok(follow) => {
                self.handle(name, None, Box::pin(follow.next()));
                Ok(Reply::default())
            }
            Err(error) => Err(self.refused(error)),
        };
        if key.is_some() {
            self.answer(key.as_deref(), "drs.subscribe", &outcome, output);
        }
    }

    /// Passes a call to the peer.
    fn pass(&mut self, service: &TopicName, call: Request, output: &mut Output<'_>) {
        let (payload, headers) = (call.payload(), call.headers());
        let (body, version) = (command::body(payload, headers), command::version(headers));
        let key = format!("{:012x}{:08x}", self.prefix, self.in_hand.count());
        output.command(Some(&format!("\"{key}\"")), service.as_str(), body.as_deref(), version);
        self.in_hand.insert(key, call.into_token(), service.clone());
    }

    /// Whether the peer has as many calls as it may have.
    pub(super) fn is_full(&self) -> bool {
        self.in_hand.len() >= MAX_IN_HAND
    }

    /// Forgets calls that are over without an answer.
    pub(super) fn forget_over(&mut self) {
        self.in_hand.forget_over();
    }

    /// Ends the calls that wait, because the server stops.
    pub(super) fn drain(&mut self, output: &mut Output<'_>) {
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Call(key, service, _) => {
                    let closed = ServiceError::Publish(PublishError::Closed);
                    self.answer(Some(&key), service.as_str(), &Err(closed.into()), output);
                }
                fire @ Waiting::Fire(..) => self.waiting.push(fire),
            }
        }
        self.handlers.clear();
    }

    /// Whether everything is answered, after a [`drain`](Self::drain).
    pub(super) fn is_drained(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Decides what the peer may get. `is_free` says whether it accepts bytes.
    fn regulate(&mut self, is_free: bool) {
        let calls = is_free && !self.is_full();
        self.flow.send_if_modified(|flow| {
            let changed = Flow { calls, fires: is_free, ..*flow };
            std::mem::replace(flow, changed) != changed
        });
    }
}

/// Tells a peer something about a name that it handles.
fn notify(output: &mut Output<'_>, action: &str, body: &Value) {
    output.command(None, action, Some(&body.to_string()), None);
}
