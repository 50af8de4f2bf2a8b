//! Begins what the messages of a client ask for.

use bytes::Bytes;
use msgbus_core::{Headers, NewMessage, NewRequest, Position, Reply, TopicName};
use tracing::debug;

use super::{
    Conversation, MAX_ASKED, MAX_IN_HAND, MAX_SUBSCRIPTIONS, MAX_USER,
    frame::{BadFrame, Frame},
    hub::{Enabled, PRIVATE},
    output::{self, RID, SENDER},
    refused::Refused,
    session::{Name, Waiter},
};
use crate::{
    auth::Action,
    dialogue::output::Messages,
    service::{Authority, code::Code, publisher::Publishing, requests::Answer},
};

impl Conversation {
    /// Handles a message.
    ///
    /// # Errors
    /// When it cannot be read. The connection is to end then.
    pub(super) fn handle(&mut self, text: &str, output: &mut Messages<'_>) -> Result<(), BadFrame> {
        self.client.refresh();
        let frame = Frame::parse(text)?;
        if let Err(refused) = self.perform(&frame, output) {
            refused.tell(&self.client, (frame.command, frame.target), output);
        }
        Ok(())
    }

    fn perform(&mut self, frame: &Frame<'_>, output: &mut Messages<'_>) -> Result<(), Refused> {
        let (command, target) = (frame.command, frame.target);
        match command {
            "INT" if target == "UID" => return self.attach_user(frame),
            "PUB" | "SUB" | "UNS" | "REQ" | "RES" | "EPUB" | "ESUB" | "EREQ" => {}
            // Unknown commands are ignored.
            _ => return Ok(()),
        }
        let topic = output::topic(target)
            .map_err(|error| Refused::because(Code::BadTopic, error.to_string()))?;
        match command {
            "PUB" => self.on_pub(frame, &topic),
            "REQ" => self.on_req(frame, &topic),
            "RES" => self.on_res(frame, &topic),
            "SUB" => self.on_sub(&topic, output),
            "EPUB" => self.enable(&topic, &self.door.identity.hub.publishable),
            "ESUB" => self.enable(&topic, &self.door.identity.hub.subscribable),
            "EREQ" => self.on_ereq(topic),
            _ => {
                self.activities.end(&Name::Topic(topic));
                Ok(())
            }
        }
    }

    /// By whose authority the client may publish, ask or reply.
    fn may(&self, action: Action, topic: &TopicName) -> Result<Authority, Refused> {
        let enabled = &self.door.identity.hub.publishable;
        self.authority(action, topic, enabled).ok_or(Refused::NotTrusted)
    }

    /// The body of a message, in a buffer of its own, unless it is too large.
    fn body(&self, frame: &Frame<'_>) -> Result<Bytes, Refused> {
        let limit = self.client.worker.config.max_payload;
        if frame.body.len() > limit {
            let why = format!("the body has more than {limit} bytes, the limit");
            return Err(Refused::because(Code::PayloadTooLarge, why));
        }
        Ok(Bytes::copy_from_slice(frame.body.as_bytes()))
    }

    /// The headers of a message, with those that name the client.
    fn headers(&self, frame: &Frame<'_>, without: &[&str]) -> Result<Headers, Refused> {
        let user = self.door.identity.user.lock().clone();
        Ok(frame.headers(&self.sender(&user), without)?)
    }

    fn on_pub(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Result<(), Refused> {
        let of_private = frame.target.strip_prefix(PRIVATE);
        let authority = match of_private {
            // Services may send something to each connection.
            Some(_) if self.is_service() => Authority::Key,
            _ => self.may(Action::Publish, topic)?,
        };
        // That of a connection that has ended is not made again; else it stays until the message is published.
        let recipient = of_private.map(|id| self.door.identity.hub.connection(id));
        if matches!(recipient, Some(None)) {
            return Ok(());
        }
        let headers = self.headers(frame, &SENDER)?;
        let message = NewMessage::new(self.body(frame)?).headers(headers);
        let name = || Ok::<_, Refused>(topic.clone());
        if let Publishing::Committing(commit) =
            self.publish((topic.as_str(), name), authority, message)?
        {
            let waiter = Waiter { target: frame.target.into(), headers: Headers::default() };
            self.activities.wait(waiter, commit);
        }
        Ok(())
    }

    fn on_sub(&mut self, topic: &TopicName, output: &mut Messages<'_>) -> Result<(), Refused> {
        let identity = &self.door.identity;
        let name = Name::Topic(topic.clone());
        if self.activities.has(&name) || *topic == identity.private {
            return Ok(());
        }
        let subscribable = &identity.hub.subscribable;
        let authority = self.authority(Action::Subscribe, topic, subscribable);
        let authority = authority.ok_or(Refused::NotTrusted)?;
        self.check_room()?;
        let following = self.following(topic, authority, Position::New);
        self.follow(name, (), following, output);
        Ok(())
    }

    /// The private topic does not count.
    fn check_room(&self) -> Result<(), Refused> {
        if self.activities.named() <= MAX_SUBSCRIPTIONS {
            return Ok(());
        }
        let why = format!("the connection has {MAX_SUBSCRIPTIONS} subscriptions, the limit");
        Err(Refused::because(Code::TooManySubscriptions, why))
    }

    fn on_req(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Result<(), Refused> {
        let authority = self.may(Action::Request, topic)?;
        let headers = self.headers(frame, &SENDER)?;
        let body = self.body(frame)?;
        if self.activities.asked() >= MAX_ASKED {
            let why = format!("{MAX_ASKED} requests of the connection wait, the limit");
            return Err(Refused::because(Code::TooManyRequests, why));
        }
        let timeout = self.door.identity.hub.options.timeout;
        let request = NewRequest::new(body).headers(headers.clone()).timeout(timeout);
        let asked = self.client.call_by(authority).ask(topic)?.send(request)?;
        self.activities.ask(Waiter { target: frame.target.into(), headers }, asked);
        Ok(())
    }

    fn on_res(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Result<(), Refused> {
        self.may(Action::Serve, topic)?;
        let Some(rid) = frame.header(RID).and_then(|rid| rid.parse().ok()) else { return Ok(()) };
        // Only who was given the number has it here.
        let (token, origin) = self.activities.answered(&rid).ok_or(Refused::NoClient)?;
        let [connection, of_user] = SENDER;
        let reply = self.headers(frame, &[connection, of_user, RID]).and_then(|headers| {
            let payload = self.body(frame)?;
            Ok(Reply { payload, headers })
        });
        // The requester is told if its reply is refused, so that it does not wait.
        let (answer, refused) = match reply {
            Ok(reply) => (Answer::Reply(reply), Ok(())),
            Err(why) => (Answer::failure(&why.text("RES", frame.target)), Err(why)),
        };
        let replied = origin.reply(&token, answer).map_err(Refused::from);
        refused.and(replied)
    }

    fn enable(&self, topic: &TopicName, topics: &Enabled) -> Result<(), Refused> {
        if !self.may_serve(topic) {
            return Err(Refused::NotTrusted);
        }
        if topics.add(topic, &self.door.identity, &self.client) {
            return Ok(());
        }
        Err(Refused::because(Code::TooManyTopics, "services have enabled too many topics"))
    }

    fn on_ereq(&mut self, topic: TopicName) -> Result<(), Refused> {
        self.enable(&topic, &self.door.identity.hub.publishable)?;
        let name = Name::Service(topic.clone());
        if self.activities.has(&name) {
            return Ok(());
        }
        self.check_room()?;
        Ok(self.serve((name, ()), topic, MAX_IN_HAND)?)
    }

    /// Attaches a user id to a connection.
    fn attach_user(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        if !self.is_service() {
            debug!(peer = %self.client.peer, "INT UID is ignored: the client is not trusted");
            return Ok(());
        }
        let refused = |why: &str| Err(Refused::because(Code::BadHeader, why));
        let (Some(id), Some(user)) = (frame.header("forcid"), frame.header("setuid")) else {
            return refused("the headers forcid and setuid are required");
        };
        // What is not a value of a header cannot be on messages.
        frame.headers(&[], &[])?;
        match self.door.identity.hub.connection(id) {
            None => refused("there is no connection with the id in forcid"),
            Some(_) if user.len() > MAX_USER => refused("the user id in setuid is too long"),
            Some(connection) => {
                *connection.user.lock() = user.into();
                Ok(())
            }
        }
    }
}
