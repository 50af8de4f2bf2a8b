//! Begins what the messages of a client ask for.

use bytes::Bytes;
use msgbus_core::{NewMessage, NewRequest, Position, Reply, TopicName};
use tracing::debug;

use super::{
    MAX_ASKED, MAX_SUBSCRIPTIONS, MAX_USER,
    activity::{Activity, Ask, Committing, Followed, Opening, Serve},
    client::PRIVATE,
    conversation::Conversation,
    frame::{BadFrame, Frame},
    hub::Enabled,
    output::{self, RID, SENDER},
    refused::Refused,
    session::OPTIONS,
};
use crate::{
    auth::Action,
    service::{
        Authority, code::Code, follower::FollowOptions, publisher::Publishing, requests::Answer,
    },
    websocket::transport::Outgoing,
};

type Outcome = Result<(), Refused>;

impl Conversation {
    /// Handles a message.
    ///
    /// # Errors
    /// When it cannot be read. The connection is to end then.
    pub(super) fn handle(&mut self, text: &str, outgoing: &mut Outgoing) -> Result<(), BadFrame> {
        self.client.refresh();
        let frame = Frame::parse(text)?;
        if let Err(refused) = self.perform(&frame) {
            self.refuse(&refused, frame.command, frame.target, outgoing);
        }
        Ok(())
    }

    fn perform(&mut self, frame: &Frame<'_>) -> Outcome {
        let (command, target) = (frame.command, frame.target);
        if command == "INT" && target == "UID" {
            return self.attach_user(frame);
        }
        if !matches!(command, "PUB" | "SUB" | "UNS" | "REQ" | "RES" | "EPUB" | "ESUB" | "EREQ") {
            // Unknown commands are ignored.
            return Ok(());
        }
        let topic = output::topic(target)
            .map_err(|error| Refused::because(Code::BadTopic, error.to_string()))?;
        match command {
            "PUB" => self.publish(frame, &topic),
            "REQ" => self.request(frame, &topic),
            "RES" => self.reply(frame, &topic),
            "SUB" => self.subscribe(topic),
            "EPUB" => self.enable(&topic, &self.client.hub.publishable),
            "ESUB" => self.enable(&topic, &self.client.hub.subscribable),
            "EREQ" => self.serve(topic),
            _ => {
                self.unsubscribe(&topic);
                Ok(())
            }
        }
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

    fn publish(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Outcome {
        let client = &self.client;
        let of_private = frame.target.strip_prefix(PRIVATE);
        let authority = match of_private {
            // Services may send something to each connection.
            Some(_) if client.is_service() => Some(Authority::Key),
            _ => client.authority(Action::Publish, topic, &client.hub.publishable),
        };
        let Some(authority) = authority else { return Err(Refused::NotTrusted) };
        if of_private.is_some_and(|guid| client.hub.peer(guid).is_none()) {
            // The connection has ended. Its topic is not made again.
            return Ok(());
        }
        let user = client.identity.user();
        let headers = frame.headers(&client.sender(&user), &SENDER)?;
        let message = NewMessage::new(self.body(frame)?).headers(headers);
        let call = self.client.call(authority);
        let Self { publishers, .. } = self;
        let make = || Ok::<_, Refused>(call.publisher(topic));
        let published = publishers
            .find(topic.as_str(), make)
            .and_then(|publisher| Ok(call.publish_to(publisher, message)?));
        self.has_published = true;
        if let Publishing::Committing(commit) = published? {
            let target = frame.target.into();
            self.add(Activity::Commit(Box::new(Committing { target, commit })));
        }
        Ok(())
    }

    fn subscribe(&mut self, topic: TopicName) -> Result<(), Refused> {
        let client = &self.client;
        if self.follows.contains_key(&topic) || topic == self.private {
            return Ok(());
        }
        let authority = client
            .authority(Action::Subscribe, &topic, &client.hub.subscribable)
            .ok_or(Refused::NotTrusted)?;
        self.check_room()?;
        self.open(Followed::Topic(topic), authority, Position::New);
        Ok(())
    }

    /// Follows a topic from a position on.
    pub(super) fn open(&mut self, followed: Followed, authority: Authority, from: Position) {
        let (Followed::Topic(topic) | Followed::Private(topic)) = &followed else { return };
        let options = FollowOptions { from, ..OPTIONS };
        let following = self.client.call(authority).follow(topic, options);
        let named = matches!(followed, Followed::Topic(_)).then(|| topic.clone());
        let key = self.add(Activity::Open(Box::new(Opening { followed, following })));
        if let Some(topic) = named {
            self.follows.insert(topic, key);
        }
    }

    fn check_room(&self) -> Result<(), Refused> {
        if self.follows.len() + self.services.len() < MAX_SUBSCRIPTIONS {
            return Ok(());
        }
        let why = format!("the connection has {MAX_SUBSCRIPTIONS} subscriptions, the limit");
        Err(Refused::because(Code::TooManySubscriptions, why))
    }

    fn request(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Outcome {
        let client = &self.client;
        let authority = client.authority(Action::Request, topic, &client.hub.publishable);
        let Some(authority) = authority else { return Err(Refused::NotTrusted) };
        let user = client.identity.user();
        let headers = frame.headers(&client.sender(&user), &SENDER)?;
        let body = self.body(frame)?;
        if self.asked >= MAX_ASKED {
            let why = format!("{MAX_ASKED} requests of the connection wait, the limit");
            return Err(Refused::because(Code::TooManyRequests, why));
        }
        let timeout = client.hub.options.timeout;
        let request = NewRequest::new(body).headers(headers.clone()).timeout(timeout);
        let asked = client.call(authority).ask(topic)?.send(request)?;
        let target = frame.target.into();
        self.add(Activity::Ask(Box::new(Ask { target, headers, asked })));
        Ok(())
    }

    fn reply(&mut self, frame: &Frame<'_>, topic: &TopicName) -> Outcome {
        let client = &self.client;
        if client.authority(Action::Serve, topic, &client.hub.publishable).is_none() {
            return Err(Refused::NotTrusted);
        }
        let Some(rid) = frame.header(RID).and_then(|rid| rid.parse().ok()) else {
            return Ok(());
        };
        // Only who was given the number has it here.
        let Some((token, ())) = self.in_hand.remove(&rid) else {
            return Err(Refused::NoClient);
        };
        self.look_at_services();
        // The requester is told if its reply is refused, so that it does not wait.
        let reply = self.read_reply(frame);
        let answer = match &reply {
            Ok(reply) => Answer::Reply(reply.clone()),
            Err(refused) => Answer::failure(&refused.text("RES", frame.target)),
        };
        let replied = self.client.call(Authority::Own).reply(&token, answer).map_err(Refused::from);
        if matches!(replied, Err(Refused::NotTrusted)) {
            // The keys have changed: another responder may get it.
            self.client.worker.bus.hand_back(&token);
        }
        reply.and(replied)
    }

    fn read_reply(&self, frame: &Frame<'_>) -> Result<Reply, Refused> {
        let user = self.client.identity.user();
        let [connection, of_user] = SENDER;
        let headers = frame.headers(&self.client.sender(&user), &[connection, of_user, RID])?;
        Ok(Reply { payload: self.body(frame)?, headers })
    }

    fn enable(&self, topic: &TopicName, topics: &Enabled) -> Result<(), Refused> {
        let client = &self.client;
        if !client.may_serve(topic) {
            return Err(Refused::NotTrusted);
        }
        if topics.add(topic, client.identity.guid, client.principal()) {
            return Ok(());
        }
        Err(Refused::because(Code::TooManyTopics, "services have enabled too many topics"))
    }

    fn serve(&mut self, topic: TopicName) -> Result<(), Refused> {
        self.enable(&topic, &self.client.hub.publishable)?;
        if self.services.contains_key(&topic) {
            return Ok(());
        }
        self.check_room()?;
        let serve = Serve::new(&self.client, topic.clone())?;
        let key = self.add(Activity::Serve(Box::new(serve)));
        self.services.insert(topic, key);
        Ok(())
    }

    /// Attaches a user id to a connection.
    fn attach_user(&mut self, frame: &Frame<'_>) -> Outcome {
        let client = &self.client;
        if !client.is_service() {
            debug!(peer = %client.peer, "INT UID is ignored: the client is not trusted");
            return Ok(());
        }
        let (Some(guid), Some(user)) = (frame.header("forcid"), frame.header("setuid")) else {
            let why = "the headers forcid and setuid are required";
            return Err(Refused::because(Code::BadHeader, why));
        };
        // What is not a value of a header cannot be on messages.
        frame.headers(&[], &[])?;
        let refused = match client.hub.peer(guid) {
            None => "there is no connection with the id in forcid",
            Some(_) if user.len() > MAX_USER => "the user id in setuid is too long",
            Some(peer) => {
                peer.set_user(user);
                return Ok(());
            }
        };
        Err(Refused::because(Code::BadHeader, refused))
    }
}
