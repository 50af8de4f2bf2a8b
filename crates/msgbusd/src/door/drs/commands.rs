//! Carries out the commands of a peer.

use std::sync::{Arc, OnceLock};

use chrono::Utc;
use msgbus_core::{NewMessage, NewRequest, Position, Reply, TopicName};

use super::{
    Conversation, Drs, MAX_CALLS, MAX_HANDLERS,
    command::{self, Command, ERROR, EXCEPTION, Failure, RESPONSE, UNEXPECTED},
    log_in,
    session::{Name, Opening, Waiter, options, refused, write},
    split::Malformed,
};
use crate::{
    auth::Target,
    dialogue::{Client, output::Messages},
    service::{
        Authority, code::Code, error::ServiceError, follower::Follower, publisher::Publishing,
        requests::Answer,
    },
};

/// The result of a command.
pub(super) type Outcome = Result<Reply, Failure>;

/// A `drs.subscribe` that is answered when all of its names are open.
#[derive(Debug, Default)]
pub(super) struct Subscribing {
    /// Whether it is a command, and not the address of the peer.
    is_command: bool,
    /// As JSON.
    key: Option<Box<str>>,
    /// The first one.
    pub(super) failure: OnceLock<Failure>,
}

impl Conversation {
    /// Carries out a command, now or when the ones before it are done.
    pub(super) fn command(
        &mut self,
        bytes: &[u8],
        output: &mut Messages<'_>,
    ) -> Result<(), Malformed> {
        self.client.refresh();
        let command = Command::read(bytes)?;
        self.door.commands.increment();
        if self.complete(&command) {
            return Ok(());
        }
        let is_serial = self.client.worker.config.drs.is_serial;
        if is_serial && (self.activities.outstanding() > 0 || !self.door.queue.is_empty()) {
            self.door.queued += bytes.len();
            self.door.queue.push_back(bytes.to_vec());
        } else {
            self.carry_out(&command, output);
        }
        Ok(())
    }

    /// Carries out the next of the commands that wait, if there is one.
    pub(super) fn next_command(&mut self, output: &mut Messages<'_>) {
        let Some(bytes) = self.door.queue.pop_front() else { return };
        self.door.queued -= bytes.len();
        // It was read before.
        if let Ok(command) = Command::read(&bytes) {
            self.carry_out(&command, output);
        }
    }

    fn carry_out(&mut self, command: &Command<'_>, output: &mut Messages<'_>) {
        if let Some(outcome) = self.perform(command, output).transpose() {
            self.door.answer(&self.client, (command.key, &command.action), &outcome, output);
        }
    }

    /// Completes a call that the peer has, if the command is its answer. It may have any action: some clients repeat that of
    /// the call. Answers that nobody waits for are ignored.
    fn complete(&mut self, command: &Command<'_>) -> bool {
        let key = command.key.and_then(command::text);
        let number = key.and_then(|key| self.door.number_of(&key));
        let answered = number.and_then(|number| self.activities.answered(&number));
        let Some((token, origin)) = answered else {
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
        if let Ok(service) = self.client.worker.bus.service_of(&token) {
            self.door.counts.add(&service, action);
        }
        // If nobody waits any more, there is nothing that the peer could do about it.
        let _ = origin.reply(&token, answer);
        true
    }

    /// Carries out a command. `None` if it is answered later.
    fn perform(
        &mut self,
        command: &Command<'_>,
        output: &mut Messages<'_>,
    ) -> Result<Option<Reply>, Failure> {
        match &*command.action {
            "drs.ping" => return Ok(Some(Utc::now().timestamp_millis().to_string().into())),
            "drs.kaboom" => return Err(Failure::exception("\u{1F4A5}")),
            "auth.upgrade" => return self.upgrade(command, output).map(Some),
            "drs.serve" => {
                command.names()?.iter().try_for_each(|name| self.handle_calls(name))?;
            }
            "drs.subscribe" => {
                let key = command.key.map(Into::into);
                let subscribing = Subscribing { is_command: true, key, ..Subscribing::default() };
                self.subscribe(&command.names()?, subscribing, output);
                return Ok(None);
            }
            "drs.off" => command.names()?.iter().for_each(|name| self.off(name, output)),
            action if action.is_empty() || action.starts_with("drs.") => {
                return Err(Failure::error(format!("No handlers for {action}")));
            }
            action => {
                let name = command::topic_name(action)?;
                let is_call = command.key.is_some() && !self.is_fire(&name);
                return if is_call { self.call(command, name) } else { self.fire(command, name) };
            }
        }
        Ok(Some(Reply::default()))
    }

    /// Whether a command with a key is a fire: some clients give them keys. Nobody serves its name, here or perhaps at
    /// another server, and there is a topic with that name. What the peer itself follows is no fire of it: some clients
    /// answer a fire with another one.
    fn is_fire(&self, name: &TopicName) -> bool {
        let bus = &self.client.worker.bus;
        !bus.may_be_served(name)
            && (bus.topic(name).is_some() || bus.is_in_pattern(name))
            && !self.activities.names().any(|handled| handled.follows(name))
    }

    /// Makes the peer another user.
    fn upgrade(
        &mut self,
        command: &Command<'_>,
        output: &mut Messages<'_>,
    ) -> Result<Reply, Failure> {
        let token = command.body.and_then(command::text);
        let token = token.ok_or_else(|| Failure::error("Token must be a string"))?;
        let client = log_in(&self.client, &token);
        self.is_now(client.ok_or_else(|| refused(&self.client, ServiceError::WrongKey))?);
        self.open_broadcasts(output);
        let user = self.client.key_name().unwrap_or("anonymous");
        Ok(command::json_text(user).into())
    }

    /// Asks the service with the name of the action.
    fn call(
        &mut self,
        command: &Command<'_>,
        service: TopicName,
    ) -> Result<Option<Reply>, Failure> {
        if self.activities.outstanding() >= MAX_CALLS {
            self.client.refused(None, Code::TooManyRequests);
            return Err(Failure::exception(format!("at most {MAX_CALLS} calls may wait")));
        }
        let request = NewRequest::new(self.payload(command)?)
            .headers(command.headers())
            .timeout(self.client.worker.config.drs.timeout);
        let asked = self.client.call().ask(&service).and_then(|asking| asking.send(request));
        let asked = asked.map_err(|error| refused(&self.client, error))?;
        self.activities.ask(Waiter { key: command.key.map(Into::into), action: service }, asked);
        Ok(None)
    }

    /// Publishes to the topic with the name of the action.
    fn fire(&mut self, command: &Command<'_>, topic: TopicName) -> Result<Option<Reply>, Failure> {
        let message = NewMessage::new(self.payload(command)?).headers(command.headers());
        let name = || Ok::<_, ServiceError>(topic.clone());
        let publishing = self.publish((topic.as_str(), name), Authority::Own, message);
        match publishing.map_err(|error| refused(&self.client, error))? {
            Publishing::Done(_) => Ok(Some(Reply::default())),
            Publishing::Committing(commit) => {
                let key = command.key.map(Into::into);
                self.activities.wait(Waiter { key, action: topic }, commit);
                Ok(None)
            }
        }
    }

    /// Handles the calls of a service.
    fn handle_calls(&mut self, service: &str) -> Result<(), Failure> {
        let service = command::topic_name(service)?;
        let name = Name::Calls(service.clone());
        if self.activities.has(&name) {
            return Ok(());
        }
        self.may_handle()?;
        // It may exceed the number of calls in hand by a batch.
        let served = self.serve((name, ()), service, usize::MAX);
        served.map_err(|error| refused(&self.client, error))
    }

    /// Handles what the address of the peer names. What is refused is told without a key.
    pub(super) fn handle_from_start(
        &mut self,
        serve: &[String],
        subscribe: &[String],
        output: &mut Messages<'_>,
    ) {
        self.open_broadcasts(output);
        for service in serve {
            if let Err(failure) = self.handle_calls(service) {
                failure.write(&self.client, output);
            }
        }
        self.subscribe(subscribe, Subscribing::default(), output);
    }

    /// Handles the fires of topics and patterns, and then answers.
    fn subscribe(&mut self, names: &[String], subscribing: Subscribing, output: &mut Messages<'_>) {
        let subscribing = Arc::new(subscribing);
        for name in names {
            if let Err(failure) = self.handle_fires(name, &subscribing, output) {
                let _ = subscribing.failure.set(failure);
            }
        }
        self.door.subscribed(&self.client, subscribing, output);
    }

    fn handle_fires(
        &mut self,
        name: &str,
        subscribing: &Arc<Subscribing>,
        output: &mut Messages<'_>,
    ) -> Result<(), Failure> {
        let target: Target = name.parse().map_err(|why| Failure::error(format!("{why}")))?;
        let name = Name::Fires(target);
        if let Some(opening) = self.activities.opening_of(&name) {
            // A command may name it twice.
            if opening.asked.last().is_some_and(|last| Arc::ptr_eq(last, subscribing)) {
                return Ok(());
            }
            if opening.asked.len() >= MAX_CALLS {
                self.client.refused(None, Code::TooManyRequests);
                let why = format!("at most {MAX_CALLS} commands may wait for one name");
                return Err(Failure::error(why));
            }
            opening.asked.push(Arc::clone(subscribing));
        } else if !self.activities.has(&name) {
            self.may_handle()?;
            let opening = Opening { asked: vec![Arc::clone(subscribing)], before: None };
            self.open(name, Position::New, opening, output);
        }
        Ok(())
    }

    /// Begins to follow.
    pub(super) fn open(
        &mut self,
        name: Name,
        from: Position,
        opening: Opening,
        output: &mut Messages<'_>,
    ) {
        let (Name::Fires(target) | Name::Broadcast(target)) = &name else { return };
        let options = options(from, self.door.is_stream);
        let following = self.client.call().follow_target(target, options);
        self.follow(name, opening, following, output);
    }

    /// Follows the broadcasts of the server as the user of now. One before may not have been allowed to.
    pub(super) fn open_broadcasts(&mut self, output: &mut Messages<'_>) {
        for pattern in self.client.worker.config.drs.broadcast.clone() {
            // It may be the name of a topic.
            let target = pattern.to_string().parse().unwrap_or(Target::Pattern(pattern));
            let name = Name::Broadcast(target);
            let before = self.activities.replace(&name).and_then(|before| match before {
                Ok(follower) => Some(follower),
                Err(opening) => opening.before,
            });
            let from = before.as_ref().map_or(Position::New, Follower::position);
            self.open(name, from, Opening { asked: Vec::new(), before }, output);
        }
    }

    fn may_handle(&self) -> Result<(), Failure> {
        if self.activities.named() < MAX_HANDLERS + self.client.worker.config.drs.broadcast.len() {
            return Ok(());
        }
        self.client.refused(None, Code::TooManySubscriptions);
        Err(Failure::error(format!("at most {MAX_HANDLERS} names may be handled")))
    }

    /// Handles a name no longer. A subscription that has not begun has begun and ended then.
    fn off(&mut self, name: &str, output: &mut Messages<'_>) {
        if let Ok(service) = name.parse() {
            self.activities.end(&Name::Calls(service));
        }
        let Ok(target) = name.parse() else { return };
        let name = Name::Fires(target);
        let asked =
            self.activities.opening_of(&name).map(|opening| std::mem::take(&mut opening.asked));
        self.activities.end(&name);
        for subscribing in asked.into_iter().flatten() {
            self.door.subscribed(&self.client, subscribing, output);
        }
    }

    /// The body as a payload.
    fn payload(&self, command: &Command<'_>) -> Result<Vec<u8>, Failure> {
        let (body, limit) =
            (command.body.unwrap_or_default(), self.client.worker.config.max_payload);
        if body.len() > limit {
            self.client.refused(None, Code::PayloadTooLarge);
            return Err(Failure::error(format!("a body has at most {limit} bytes")));
        }
        Ok(body.as_bytes().to_vec())
    }
}

impl Drs {
    /// Answers a `drs.subscribe` if all of its names are open. What an address names is answered only if it fails.
    pub(super) fn subscribed(
        &mut self,
        client: &Client,
        subscribing: Arc<Subscribing>,
        output: &mut Messages<'_>,
    ) {
        let Some(subscribing) = Arc::into_inner(subscribing) else { return };
        let Subscribing { is_command, key, failure } = subscribing;
        match (key, failure.into_inner()) {
            (None, None) if !is_command => {}
            (None, Some(failure)) => failure.write(client, output),
            (key, failure) => {
                let outcome = failure.map_or_else(|| Ok(Reply::default()), Err);
                self.answer(client, (key.as_deref(), "drs.subscribe"), &outcome, output);
            }
        }
    }

    /// Answers a command, and counts it. Without a key it was fired, and nobody waits for an answer.
    pub(super) fn answer(
        &mut self,
        client: &Client,
        (key, action): (Option<&str>, &str),
        outcome: &Outcome,
        output: &mut Messages<'_>,
    ) {
        let (kind, body) = match outcome {
            Ok(Reply { payload, headers }) => (RESPONSE, command::body(payload, headers)),
            Err(failure) => (failure.action, Some(failure.body().into())),
        };
        if let Ok(name) = TopicName::new(action) {
            self.counts.add(&name, kind);
        }
        if key.is_some() || client.worker.config.drs.answers_fires {
            write(client, output, key, kind, body.as_deref());
        }
    }

    /// The number of a call that this key may be of.
    fn number_of(&self, key: &str) -> Option<u64> {
        let number = u128::from_str_radix(key, 16).ok().filter(|_| key.len() == 20)?;
        let is_own = number >> 32 == u128::from(self.prefix);
        is_own.then_some(u64::try_from(number & u128::from(u32::MAX)).ok()?)
    }
}
