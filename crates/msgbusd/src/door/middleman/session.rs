//! What a connection does with the messages of its client, from the login to the end.

use std::sync::Arc;

use msgbus_core::{
    Headers, LagPolicy, Op, Position, Published, RecvError, Reply, Request, TopicName,
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{
    Conversation, Middleman,
    frame::Frame,
    hub::{Hub, Identity},
    output::{self, FORMAT},
};
use crate::{
    auth::{Action, Target},
    code::Code,
    config::Protocol,
    dialogue::{self, Client, Dialect, End, Following, Handled, Name, Refusal, output::Messages},
    service::{
        Authority,
        error::ServiceError,
        follower::{FollowOptions, Follower, Item},
    },
    websocket::{end, outgoing::Outgoing},
};

/// The maximum number of requests that one connection has and has not answered.
pub(super) const MAX_IN_HAND: usize = 1024;

pub(super) const NOT_TRUSTED: Refusal = Refusal::Door(Code::NotGranted, "not trusted");

const OPTIONS: FollowOptions =
    FollowOptions { from: Position::New, lag: LagPolicy::Skip, format: FORMAT };

/// What waits for an outcome: a command, its target, and the headers of a request.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(super) target: Box<str>,
    pub(super) headers: Headers,
    /// Whose private topic stays meanwhile.
    pub(super) _recipient: Option<Arc<Identity>>,
}

/// Subscribes a client to its private topic, confirms the key, and sends the id of the connection.
pub(super) async fn begin(hub: &Arc<Hub>, client: Client) -> Result<Conversation, ServiceError> {
    let messages = client.worker.messages_of(Protocol::Middleman);
    let identity = hub.connect(&client);
    let (id, private) = (Arc::clone(&identity.id), identity.private.clone());
    let door = Middleman { identity, messages };
    let mut conversation = Conversation::new(door, client, Outgoing::default());
    let follower = conversation.following(&private, Authority::Key, Position::New).await?;
    let without_id = conversation.is_one_of(&hub.options.without_id);
    for text in &["MM OK", &*id][..if without_id { 1 } else { 2 }] {
        conversation.contact.write(|out| out.extend_from_slice(text.as_bytes()));
    }
    conversation.follow(Name::Topic(Target::Topic(private)), (), Op::ready(Ok(follower)));
    if conversation.is_one_of(&hub.options.super_keys) {
        let everything = "**".parse().unwrap_or_else(|_| unreachable!());
        let following = conversation.contact.client.call().follow_pattern(&everything, OPTIONS);
        conversation.follow(Name::Topic(Target::Pattern(everything)), (), following);
    }
    Ok(conversation)
}

impl Conversation {
    /// Follows a topic from a position on.
    pub(super) fn following(
        &self,
        topic: &TopicName,
        authority: Authority,
        from: Position,
    ) -> Following {
        let call = self.contact.client.call_by(authority);
        call.follow(topic, FollowOptions { from, ..OPTIONS })
    }

    /// Goes on with a subscription that was ended: clients know nothing of topics that are deleted, and there may be
    /// another service that lets them subscribe. Returns `false` if there is none.
    fn follow_on(&mut self, name: &Name, at: Position) -> bool {
        let Name::Topic(Target::Topic(topic)) = name else { return false };
        let identity = &self.contact.door.identity;
        let authority = if *topic == identity.private {
            Some(Authority::Key)
        } else {
            self.authority(Action::Subscribe, topic, &identity.hub.subscribable)
        };
        let Some(authority) = authority else { return false };
        self.follow(name.clone(), (), self.following(topic, authority, at));
        true
    }
}

impl Middleman {
    /// Whether it is the private topic: the connection ends with its subscription.
    pub(super) fn is_private(&self, name: &Name) -> bool {
        matches!(name, Name::Topic(Target::Topic(topic)) if *topic == self.identity.private)
    }
}

type Contact = dialogue::Contact<Middleman>;

impl Contact {
    /// Tells the client why a command with a target is not carried out.
    pub(super) fn refuse(&mut self, command: (&str, &str), refusal: &Refusal) {
        self.client.refused(Some(command.0), refusal.code());
        self.tell(&error_text(command, refusal));
    }

    /// Tells the client why something that it has begun is not, or ends.
    fn refuse_name(&mut self, name: &Name, refusal: &Refusal) {
        let command = if matches!(name, Name::Topic(_)) { "SUB" } else { "EREQ" };
        self.refuse((command, &name.to_string()), refusal);
    }

    /// Sends an error.
    fn tell(&mut self, text: &str) {
        self.write(|out| output::write(out, "PUB", "ERROR", None, text.as_bytes()));
    }
}

/// Why a command with a target is not carried out, in the words that clients know.
pub(super) fn error_text((command, target): (&str, &str), refusal: &Refusal) -> String {
    match refusal.code() {
        Code::NotGranted | Code::KeyNeeded | Code::WrongKey if command == "SUB" => {
            format!("Not trusted: SUB {target}")
        }
        Code::NotGranted | Code::KeyNeeded | Code::WrongKey => {
            format!("Not trusted {command} {target}")
        }
        Code::ReplyNotWanted => format!("No client for request ID  RES {target}"),
        Code::NoResponder => format!("No responder for REQ {target}"),
        _ => format!("{command} {target}: {refusal}"),
    }
}

impl Dialect for Middleman {
    const NAME: &'static str = "middleman";
    const TEXT_ONLY: &'static str = "messages are text";
    /// One at a time, so that responders take turns.
    const BATCH: usize = 1;
    const MAX_IN_HAND: usize = MAX_IN_HAND;

    type Output = Messages;
    type Name = Name;
    type Opening = ();
    type Style = ();
    type RequestKey = u64;
    type Waiter = Waiter;
    type Outcome = Result<Published, ServiceError>;

    fn begin(
        conversation: &mut Conversation,
        message: &[u8],
        allowed: &mut usize,
    ) -> Result<Handled, end::End> {
        *allowed -= 1;
        conversation.contact.door.messages.increment();
        let frame = Frame::parse(end::End::text(message)?).map_err(|error| {
            let code = Code::WebsocketViolation;
            end::End::malformed(CloseCode::Protocol, code, error.to_string())
        })?;
        // Others wait for replies, which wait for nothing.
        if frame.command == "RES" || conversation.is_next(message) {
            conversation.perform(&frame);
        }
        Ok(Handled::All)
    }

    /// Messages are handled in order, so a subscription has to be open first.
    fn is_busy(conversation: &Conversation) -> bool {
        conversation.activities.opening() > 0
    }

    fn go_on(conversation: &mut Conversation, message: &[u8]) {
        // It was read before.
        if let Some(frame) = str::from_utf8(message).ok().and_then(|text| Frame::parse(text).ok()) {
            conversation.perform(&frame);
        }
    }

    fn opened(
        contact: &mut Contact,
        name: &Name,
        (): &mut (),
        outcome: Result<&Follower, ServiceError>,
    ) -> bool {
        if let Err(error) = outcome {
            if contact.door.is_private(name) {
                contact.ends = Some(End::from(error).into());
            } else {
                contact.refuse_name(name, &error.into());
            }
        }
        true
    }

    fn item(contact: &mut Contact, name: &Name, item: Item, _: u64) {
        match item {
            Item::Frame(frame) => contact.output.push(frame),
            Item::Feed(_) => {}
            // An engine does not know how many.
            Item::Missed(0) => contact.tell(&format!("SUB {name}: messages may have been missed")),
            Item::Missed(count) => {
                contact.tell(&format!("SUB {name}: {count} messages were missed"));
            }
        }
    }

    fn request(contact: &mut Contact, _: (&Name, ()), request: &Request, number: u64) -> u64 {
        contact.write(|out| output::write_request(out, request, number));
        number
    }

    fn replied(contact: &mut Contact, waiter: Waiter, outcome: Result<Reply, ServiceError>) {
        let Waiter { target, headers, .. } = waiter;
        match outcome {
            Ok(reply) => contact.write(|out| output::write_reply(out, &target, &headers, &reply)),
            Err(error) => contact.refuse(("REQ", &target), &error.into()),
        }
    }

    fn done(contact: &mut Contact, waiter: Waiter, outcome: Self::Outcome) {
        if let Err(error) = outcome {
            contact.refuse(("PUB", &waiter.target), &error.into());
        }
    }

    fn ended(conversation: &mut Conversation, name: Name, (end, at): (End, Position)) {
        let is_private = conversation.contact.door.is_private(&name);
        let refusal = match end {
            // The end of the connection follows.
            End::Over(RecvError::Closed) => return,
            end if is_private && !matches!(end, End::Over(RecvError::Deleted)) => {
                conversation.contact.ends = Some(end.into());
                return;
            }
            End::Revoked | End::Over(RecvError::Deleted) if conversation.follow_on(&name, at) => {
                return;
            }
            End::Revoked | End::Over(RecvError::Deleted) => NOT_TRUSTED,
            End::Failed(error) => error.into(),
            End::Over(_) => Refusal::Door(Code::StoreFailed, "older messages cannot be read"),
        };
        conversation.contact.refuse_name(&name, &refusal);
    }

    fn ends(contact: &mut Contact, end: &end::End) {
        if let end::End::Malformed(_, _, why) = end {
            contact.tell(why);
        }
    }
}
