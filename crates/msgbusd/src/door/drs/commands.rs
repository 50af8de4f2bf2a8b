//! Carries out the commands of a peer.

use chrono::Utc;
use msgbus_core::{NewMessage, NewRequest, Position, Reply, TopicName};
use serde_json::{json, value::RawValue};

use super::{
    Conversation, Drs,
    command::{self, Command, ERROR, EXCEPTION, RESPONSE, UNEXPECTED},
    command_for,
    session::{Contact, OPTIONS, Opening, Waiter},
};
use crate::{
    auth::Target,
    code::Code,
    dialogue::{Dialect as _, Name, Refusal, names},
    service::{
        Authority,
        error::ServiceError,
        follower::{FollowOptions, Follower},
        requests::Answer,
    },
};

/// The result of a command.
type Outcome = Result<Reply, Refusal>;

/// A `drs.subscribe` that is answered when it is known of each name whether it is followed.
#[derive(Debug)]
pub(super) struct Subscribing {
    key: Option<Box<RawValue>>,
    /// Of how many names it is not known.
    left: usize,
    /// `Err` has the first one.
    outcome: Outcome,
}

impl Conversation {
    /// Carries out a command.
    pub(super) fn carry_out(&mut self, command: &Command<'_>) {
        self.contact.client.refresh();
        if let Some(outcome) = self.perform(command).transpose() {
            self.contact.answer(command.key, command.action(), outcome);
        }
    }

    /// Completes a call that the peer has, if the command is its answer. It may have any action: some clients repeat that of
    /// the call. Answers that nobody waits for are ignored.
    pub(super) fn complete(&mut self, command: &Command<'_>) -> bool {
        let number = command.key.and_then(|key| self.contact.door.number_of(key.get()));
        let answered = number.and_then(|number| self.activities.answered(&number));
        let Some((token, origin)) = answered else {
            return matches!(command.action(), RESPONSE | ERROR | EXCEPTION);
        };
        let (action, answer) = match (command.action(), self.payload(command.payload())) {
            (ERROR, _) => (ERROR, Answer::failure(&command.reason())),
            (EXCEPTION, _) => {
                (EXCEPTION, Answer::failure(&format!("{UNEXPECTED}{}", command.reason())))
            }
            (_, Ok(payload)) => {
                (RESPONSE, Answer::Reply(Reply { payload, headers: command.headers() }))
            }
            (_, Err(refusal)) => (ERROR, Answer::failure(&refusal.to_string())),
        };
        self.contact.door.stats.count(&names::foreign(origin.service.as_str()), action);
        // If nobody waits any more, there is nothing that the peer could do about it.
        let _ = origin.reply(&token, answer);
        true
    }

    /// Carries out a command. `None` if it is answered later.
    fn perform(&mut self, command: &Command<'_>) -> Result<Option<Reply>, Refusal> {
        match command.action() {
            "drs.ping" => return Ok(Some(Utc::now().timestamp_millis().to_string().into())),
            "drs.kaboom" => {
                let reason = format!("{UNEXPECTED}\u{1F4A5}").into();
                return Err(ServiceError::ResponderFailed { reason }.into());
            }
            "auth.upgrade" => return self.upgrade(command).map(Some),
            "drs.serve" => {
                command.names()?.iter().try_for_each(|name| self.handle_calls(name))?;
            }
            "drs.subscribe" => {
                self.subscribe(command.key, &command.names()?);
                return Ok(None);
            }
            "drs.off" => command.names()?.iter().for_each(|name| self.off(name)),
            action if action.is_empty() || action.starts_with("drs.") => {
                return Err(Refusal::Door(Code::NoResponder, "nobody serves it"));
            }
            action => {
                let name = names::topic(action)?;
                let is_call = command.key.is_some() && !self.is_fire(&name);
                return if is_call { self.call(command, &name) } else { self.fire(command, &name) };
            }
        }
        Ok(Some(Reply::default()))
    }

    /// Whether a command with a key is a fire: some clients give them keys. Nobody serves its name, here or perhaps at
    /// another server, and there is a topic with that name. What the peer itself follows is no fire of it: some clients
    /// answer a fire with another one.
    fn is_fire(&self, name: &TopicName) -> bool {
        let bus = &self.contact.client.worker.bus;
        let follows = |handled: &Name| match handled {
            Name::Service(_) => false,
            Name::Topic(Target::Topic(topic)) => topic == name,
            Name::Topic(Target::Pattern(pattern)) => pattern.matches(name),
        };
        !bus.may_be_served(name)
            && (bus.topic(name).is_some() || bus.is_in_pattern(name))
            && !self.activities.names().any(follows)
    }

    /// Makes the peer another user.
    fn upgrade(&mut self, command: &Command<'_>) -> Outcome {
        let token: String = serde_json::from_slice(command.payload())
            .map_err(|_| Refusal::Door(Code::BadParameter, "Token must be a string"))?;
        self.is_now(self.contact.client.log_in(&token).ok_or(ServiceError::WrongKey)?);
        self.handle_from_start();
        let user = self.contact.client.key_name().unwrap_or("anonymous");
        Ok(json!(user).to_string().into())
    }

    /// Asks the service with the name of the action.
    fn call(
        &mut self,
        command: &Command<'_>,
        service: &TopicName,
    ) -> Result<Option<Reply>, Refusal> {
        let request = NewRequest::new(self.payload(command.payload())?)
            .headers(command.headers())
            .timeout(self.contact.client.worker.config.drs.timeout);
        let waiter = Waiter { key: command.key.map(ToOwned::to_owned), action: service.clone() };
        self.ask(waiter, (service, Authority::Own), request)?;
        Ok(None)
    }

    /// Publishes to the topic with the name of the action.
    fn fire(&mut self, command: &Command<'_>, topic: &TopicName) -> Result<Option<Reply>, Refusal> {
        let message = NewMessage::new(self.payload(command.payload())?).headers(command.headers());
        let waiter = || Waiter { key: command.key.map(ToOwned::to_owned), action: topic.clone() };
        let is_done = self.publish_for(waiter, (topic, Authority::Own), message)?;
        Ok(is_done.then(Reply::default))
    }

    /// Handles the broadcasts of the server and what the address of the peer names, as the user of now.
    pub(super) fn handle_from_start(&mut self) {
        self.open_broadcasts();
        for command in self.contact.door.address.clone() {
            if self.is_next(command.as_bytes()) {
                Drs::go_on(self, command.as_bytes());
            }
        }
    }

    /// Handles the calls of a service.
    fn handle_calls(&mut self, service: &str) -> Result<(), Refusal> {
        let service = names::topic(service)?;
        let name = Name::Service(service.clone());
        if !self.is_new(&name, self.contact.client.worker.config.drs.broadcast.len())? {
            return Ok(());
        }
        // It may exceed the number of calls in hand by a batch.
        Ok(self.serve((name, ()), service, usize::MAX)?)
    }

    /// Handles the fires of topics and patterns, and then answers.
    fn subscribe(&mut self, key: Option<&RawValue>, names: &[String]) {
        let (key, left) = (key.map(ToOwned::to_owned), names.len());
        let subscribing = Subscribing { key, left, outcome: Ok(Reply::default()) };
        self.contact.door.subscribing = Some(subscribing);
        for name in names {
            if let Err(refusal) = self.handle_fires(name) {
                self.contact.subscribed(Err(refusal));
            }
        }
    }

    fn handle_fires(&mut self, name: &str) -> Result<(), Refusal> {
        let name = Name::of_target(name)?;
        if self.is_new(&name, self.contact.client.worker.config.drs.broadcast.len())? {
            self.open(name, Position::New, Opening::Asked);
        } else {
            self.contact.subscribed(Ok(()));
        }
        Ok(())
    }

    /// Begins to follow.
    pub(super) fn open(&mut self, name: Name, from: Position, opening: Opening) {
        let Name::Topic(target) = &name else { return };
        let options = FollowOptions { from, ..OPTIONS };
        let following = self.contact.client.call().follow_target(target, options);
        self.follow(name, opening, following);
    }

    fn broadcasts(&self) -> Vec<Name> {
        let patterns = self.contact.client.worker.config.drs.broadcast.iter();
        // One may be the name of a topic.
        patterns.filter_map(|pattern| pattern.to_string().parse().map(Name::Topic).ok()).collect()
    }

    /// Follows the broadcasts of the server as the user of now. One before may not have been allowed to.
    fn open_broadcasts(&mut self) {
        for name in self.broadcasts() {
            // That of the user before ends when this one has begun, or at once if it has to wait for an engine.
            let before = self.activities.replace(&name);
            let from = before.as_ref().map_or(Position::New, Follower::position);
            let opening = if before.is_some() { Opening::Again } else { Opening::Broadcast };
            self.open(name, from, opening);
        }
    }

    /// Handles a name no longer. Broadcasts go on.
    fn off(&mut self, name: &str) {
        let of_address = ["serve", "subscribe"].map(|of| command_for(of, name));
        self.contact.door.address.retain(|command| !of_address.contains(command));
        let (service, broadcasts) = (names::topic(name).map(Name::Service).ok(), self.broadcasts());
        let names = service.into_iter().chain(Name::of_target(name).ok());
        for name in names.filter(|name| !broadcasts.contains(name)) {
            self.activities.end(&name);
        }
    }
}

impl Contact {
    /// Of another name of the `drs.subscribe` it is known whether it is followed. Answers after the last.
    pub(super) fn subscribed(&mut self, outcome: Result<(), Refusal>) {
        let Some(subscribing) = &mut self.door.subscribing else { return };
        subscribing.left -= 1;
        if let (Ok(_), Err(refusal)) = (&subscribing.outcome, outcome) {
            subscribing.outcome = Err(refusal);
        }
        if subscribing.left == 0
            && let Some(Subscribing { key, outcome, .. }) = self.door.subscribing.take()
        {
            self.answer(key.as_deref(), "drs.subscribe", outcome);
        }
    }

    /// Answers a command, and counts it. Without a key it was fired, and nobody waits for an answer; or it stands in the
    /// address of the peer, which is told if it fails.
    pub(super) fn answer(&mut self, key: Option<&RawValue>, action: &str, outcome: Outcome) {
        let (kind, text) = match &outcome {
            Ok(_) => (RESPONSE, String::new()),
            Err(refusal) => {
                self.client.refused(None, refusal.code());
                command::failure(action, refusal)
            }
        };
        self.door.stats.count(action, kind);
        let is_told = matches!(action, "drs.serve" | "drs.subscribe") && outcome.is_err();
        match outcome {
            _ if !(is_told || key.is_some() || self.client.worker.config.drs.answers_fires) => {}
            Ok(Reply { payload, headers }) => {
                self.say(key, kind, command::body(&payload, &headers));
            }
            Err(_) => self.say(key, kind, Some(json!({"message": text}))),
        }
    }
}
