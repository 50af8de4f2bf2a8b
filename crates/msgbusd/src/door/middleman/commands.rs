//! Begins what the messages of a client ask for, if it may.
//!
//! Who may serve a topic is trusted for it: may do everything with it, and decides what all clients of this door may do.
//! Other clients may do what their own grants allow, and what services have enabled.

use msgbus_core::{Headers, NewMessage, NewRequest, Position, Reply, TopicName};

use super::{
    Conversation,
    frame::Frame,
    hub::{Enabled, Identity, PRIVATE},
    output::{RID, SENDER},
    session::{MAX_IN_HAND, NOT_TRUSTED, Waiter, error_text},
};
use crate::{
    auth::{Action, Permission, Target},
    code::Code,
    dialogue::{Name, Refusal, names},
    service::{Authority, error::ServiceError, requests::Answer},
};

/// The maximum length of a user id, in bytes.
const MAX_USER: usize = 255;

impl Conversation {
    /// Does what a message asks for.
    pub(super) fn perform(&mut self, frame: &Frame<'_>) {
        self.contact.client.refresh();
        if let Err(refusal) = self.try_perform(frame) {
            self.contact.refuse((frame.command, frame.target), &refusal);
        }
    }

    fn try_perform(&mut self, frame: &Frame<'_>) -> Result<(), Refusal> {
        let topic = || names::topic(frame.target);
        match frame.command {
            "INT" if frame.target == "UID" => self.attach_user(frame),
            "PUB" => self.on_pub(frame, &topic()?),
            "REQ" => self.on_req(frame, &topic()?),
            "RES" => self.on_res(frame, &topic()?),
            "SUB" => self.on_sub(&topic()?),
            "EPUB" => self.enable(&topic()?, &self.contact.door.identity.hub.publishable),
            "ESUB" => self.enable(&topic()?, &self.contact.door.identity.hub.subscribable),
            "EREQ" => self.on_ereq(topic()?),
            "UNS" => {
                let name = Name::Topic(Target::Topic(topic()?));
                if !self.contact.door.is_private(&name) {
                    self.activities.end(&name);
                }
                Ok(())
            }
            // Unknown commands are ignored.
            _ => Ok(()),
        }
    }

    /// Whether a setting that is a list of the names of keys applies.
    pub(super) fn is_one_of(&self, keys: &[String]) -> bool {
        keys.iter().any(|key| key == "*" || Some(key.as_str()) == self.contact.client.key_name())
    }

    /// Whether the client is trusted for a topic.
    pub(super) fn may_serve(&self, topic: &TopicName) -> bool {
        self.contact.client.can(Permission::Topic(Action::Serve, topic))
    }

    /// Whether the client is a service: it may serve something.
    pub(super) fn is_service(&self) -> bool {
        self.contact.client.can(Permission::SomeTopic(Action::Serve))
    }

    /// By whose authority the client may do something. `None` if it may not.
    pub(super) fn authority(
        &self,
        action: Action,
        topic: &TopicName,
        enabled: &Enabled,
    ) -> Option<Authority> {
        let client = &self.contact.client;
        let Some(keyring) = &client.worker.keyring else { return Some(Authority::Own) };
        if client.can(Permission::Topic(action, topic)) {
            return Some(Authority::Own);
        }
        let own = client.principal.clone().filter(|_| self.may_serve(topic));
        own.or_else(|| enabled.by(topic, keyring)).map(Authority::Service)
    }

    /// By whose authority the client may publish, ask or reply.
    fn may(&self, action: Action, topic: &TopicName) -> Result<Authority, Refusal> {
        let enabled = &self.contact.door.identity.hub.publishable;
        self.authority(action, topic, enabled).ok_or(NOT_TRUSTED)
    }

    /// The headers of a message, with those that name the client.
    fn headers(&self, frame: &Frame<'_>, without: &[&str]) -> Result<Headers, Refusal> {
        let Identity { id, user, .. } = &*self.contact.door.identity;
        let ([connection, of_user], user) = (SENDER, user.lock().clone());
        Ok(frame.headers(&[(connection, id), (of_user, &user)], without)?)
    }

    fn on_pub(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Result<(), Refusal> {
        let of_private = frame.target.strip_prefix(PRIVATE);
        let authority = match of_private {
            // Services may send something to each connection.
            Some(_) if self.is_service() => Authority::Key,
            _ => self.may(Action::Publish, topic)?,
        };
        // That of a connection that has ended is not made again; else it stays until the message is published.
        let recipient = of_private.map(|id| self.contact.door.identity.hub.connection(id));
        if matches!(recipient, Some(None)) {
            return Ok(());
        }
        let headers = self.headers(frame, &SENDER)?;
        let message = NewMessage::new(self.payload(frame.body.as_bytes())?).headers(headers);
        let (target, headers) = (frame.target.into(), Headers::default());
        let waiter = || Waiter { target, headers, _recipient: recipient.flatten() };
        self.publish_for(waiter, (topic, authority), message).map(|_| ())
    }

    fn on_sub(&mut self, topic: &TopicName) -> Result<(), Refusal> {
        let subscribable = &self.contact.door.identity.hub.subscribable;
        let authority = self.authority(Action::Subscribe, topic, subscribable);
        let name = Name::Topic(Target::Topic(topic.clone()));
        // The private topic does not count.
        if !self.is_new(&name, 1)? {
            return Ok(());
        }
        let authority = authority.ok_or(NOT_TRUSTED)?;
        let following = self.following(topic, authority, Position::New);
        self.follow(name, (), following);
        Ok(())
    }

    fn on_req(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Result<(), Refusal> {
        let authority = self.may(Action::Request, topic)?;
        let headers = self.headers(frame, &SENDER)?;
        let request = NewRequest::new(self.payload(frame.body.as_bytes())?)
            .headers(headers.clone())
            .timeout(self.contact.door.identity.hub.options.timeout);
        self.ask(
            Waiter { target: frame.target.into(), headers, _recipient: None },
            (topic, authority),
            request,
        )
    }

    fn on_res(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Result<(), Refusal> {
        self.may(Action::Serve, topic)?;
        let Some(rid) = frame.header(RID).and_then(|rid| rid.parse().ok()) else { return Ok(()) };
        // Only who was given the number has it here.
        let (token, origin) = self.activities.answered(&rid).ok_or(ServiceError::ReplyNotWanted)?;
        let [connection, of_user] = SENDER;
        let reply = self.headers(frame, &[connection, of_user, RID]).and_then(|headers| {
            Ok(Reply { payload: self.payload(frame.body.as_bytes())?, headers })
        });
        match reply {
            Ok(reply) => Ok(origin.reply(&token, Answer::Reply(reply))?),
            // The requester is told, so that it does not wait.
            Err(refusal) => {
                let why = error_text(("RES", frame.target), &refusal);
                origin.reply(&token, Answer::failure(&why))?;
                Err(refusal)
            }
        }
    }

    fn enable(&self, topic: &TopicName, topics: &Enabled) -> Result<(), Refusal> {
        if !self.may_serve(topic) {
            return Err(NOT_TRUSTED);
        }
        if topics.add(topic, &self.contact.door.identity) {
            return Ok(());
        }
        Err(Refusal::Door(Code::TooManyTopics, "services have enabled too many topics"))
    }

    fn on_ereq(&mut self, topic: TopicName) -> Result<(), Refusal> {
        self.enable(&topic, &self.contact.door.identity.hub.publishable)?;
        let name = Name::Service(topic.clone());
        if !self.is_new(&name, 1)? {
            return Ok(());
        }
        Ok(self.serve((name, ()), topic, MAX_IN_HAND)?)
    }

    /// Attaches a user id to a connection. Who is no service is ignored.
    fn attach_user(&mut self, frame: &Frame<'_>) -> Result<(), Refusal> {
        if !self.is_service() {
            return Ok(());
        }
        let refused = |why| Err(Refusal::Door(Code::BadHeader, why));
        let (Some(id), Some(user)) = (frame.header("forcid"), frame.header("setuid")) else {
            return refused("the headers forcid and setuid are required");
        };
        // What is not a value of a header cannot be on messages.
        frame.headers(&[], &[])?;
        match self.contact.door.identity.hub.connection(&id) {
            None => refused("there is no connection with the id in forcid"),
            Some(_) if user.len() > MAX_USER => refused("the user id in setuid is too long"),
            Some(connection) => {
                *connection.user.lock() = user.into();
                Ok(())
            }
        }
    }
}
