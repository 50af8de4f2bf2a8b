//! What a connection does with the messages of its client, from the login to the end.

use std::sync::Arc;

use msgbus_core::{LagPolicy, Op, Position, RecvError, Reply, Request, TopicName};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{
    Conversation, MAX_COMMITS, MAX_IN_HAND, Middleman,
    hub::Hub,
    output::{self, FORMAT},
    refused::Refused,
};
use crate::{
    auth::Action,
    config::Protocol,
    dialogue::{
        Client, Dialect, End, Handled, MAX_UNREAD, Output as _, activities::Following,
        output::Messages, session::Session,
    },
    encode::frame_cache::Frame,
    net::connection::Connection,
    service::{
        Authority,
        code::Code,
        error::ServiceError,
        follower::{FollowOptions, Follower, Item},
    },
    websocket::{
        end::{self, count},
        link::close,
        transport::{Outgoing, Transport},
    },
};

/// What a message may have besides its body, in bytes.
const HEAD: usize = 64 << 10;
/// What a super key follows.
const EVERYTHING: &str = "**";

const OPTIONS: FollowOptions =
    FollowOptions { from: Position::New, lag: LagPolicy::Skip, format: FORMAT };

/// What a client knows a subscription or a service by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Topic(TopicName),
    /// The private topic of the client.
    Private(TopicName),
    /// All topics, for a super key.
    Everything,
    Service(TopicName),
}

impl Name {
    /// The command that has begun it, and its target.
    fn of(&self) -> (&'static str, String) {
        match self {
            Self::Topic(name) | Self::Private(name) => {
                ("SUB", output::target(name.as_str()).into_owned())
            }
            Self::Everything => ("SUB", EVERYTHING.to_owned()),
            Self::Service(name) => ("EREQ", output::target(name.as_str()).into_owned()),
        }
    }
}

/// What waits for an outcome: a command, its target, and the headers of a request.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) target: Box<str>,
    pub(super) headers: msgbus_core::Headers,
}

/// Serves a client that has logged in, until the connection ends.
pub(super) async fn serve(hub: Arc<Hub>, client: Client, mut transport: Transport<Connection>) {
    let worker = Arc::clone(&client.worker);
    let mut greeting = Outgoing::default();
    let conversation = match begin(&hub, client, &mut greeting).await {
        Ok(conversation) => conversation,
        Err(error) => {
            let end = end::End::Refused(error.code(), error.to_string().into());
            count(&worker, &end);
            return close(transport, Outgoing::default(), end.close_frame(None)).await;
        }
    };
    if let Some(inbox) = transport.inbox() {
        inbox.set_max(worker.config.max_payload.saturating_add(HEAD));
    }
    Box::new(Session::new(conversation, greeting, transport)).serve().await;
}

/// Subscribes a client to its private topic, confirms the key, and sends the id of the connection.
async fn begin(
    hub: &Arc<Hub>,
    client: Client,
    outgoing: &mut Outgoing,
) -> Result<Conversation, ServiceError> {
    let messages = client.worker.messages_of(Protocol::Middleman);
    let identity = hub.connect(&client);
    let private = identity.private.clone();
    let mut conversation = Conversation::new(Middleman { identity, messages }, client);
    let follower = conversation.following(&private, Authority::Key, Position::New).await?;
    let mut output = Messages::new(outgoing);
    let welcome = ["MM OK", &conversation.door.identity.id];
    let without_id = conversation.is_one_of(&hub.options.without_id);
    for text in &welcome[..if without_id { 1 } else { 2 }] {
        output.push(Frame::text(text.len(), |out| out.extend_from_slice(text.as_bytes())));
    }
    let name = Name::Private(private);
    conversation.follow(name, (), Op::ready(Ok(follower)), &mut output);
    if conversation.is_one_of(&hub.options.super_keys) {
        let everything = EVERYTHING.parse().unwrap_or_else(|_| unreachable!());
        let following = conversation.client.call().follow_pattern(&everything, OPTIONS);
        conversation.follow(Name::Everything, (), following, &mut output);
    }
    drop(output);
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
        self.client.call_by(authority).follow(topic, FollowOptions { from, ..OPTIONS })
    }

    /// Goes on with a subscription that was ended: clients know nothing of topics that are deleted, and there may be
    /// another service that lets them subscribe. Returns `false` if there is none.
    fn follow_on(&mut self, name: &Name, at: Position, output: &mut Messages<'_>) -> bool {
        let (topic, authority) = match name {
            Name::Topic(topic) => {
                let subscribable = &self.door.identity.hub.subscribable;
                (topic, self.authority(Action::Subscribe, topic, subscribable))
            }
            Name::Private(topic) => (topic, Some(Authority::Key)),
            Name::Everything | Name::Service(_) => return false,
        };
        let Some(authority) = authority else { return false };
        let following = self.following(topic, authority, at);
        self.follow(name.clone(), (), following, output);
        true
    }
}

impl Dialect for Middleman {
    const NAME: &'static str = "middleman";
    const TEXT_ONLY: &'static str = "messages are text";
    /// One at a time, so that responders take turns.
    const BATCH: usize = 1;
    const MAX_IN_HAND: usize = MAX_IN_HAND;

    type Output<'a> = Messages<'a>;
    type Name = Name;
    type Opening = ();
    type Style = ();
    type RequestKey = u64;
    type Waiter = Waiter;
    type Outcome = Result<msgbus_core::Published, ServiceError>;

    fn begin(
        conversation: &mut Conversation,
        message: &[u8],
        output: &mut Messages<'_>,
        allowed: &mut usize,
    ) -> Result<Handled, end::End> {
        *allowed -= 1;
        conversation.door.messages.increment();
        conversation.handle(end::End::text(message)?, output).map_err(|error| {
            let (code, why) = (CloseCode::Protocol, error.to_string().into());
            end::End::Malformed(code, Code::WebsocketViolation, why)
        })?;
        Ok(Handled::All)
    }

    /// Messages are handled in order, so a subscription has to be open first.
    fn may_begin(conversation: &Conversation, unwritten: usize) -> bool {
        let activities = &conversation.activities;
        activities.opening() == 0 && activities.held_up() < MAX_COMMITS && unwritten < MAX_UNREAD
    }

    fn opened(
        &mut self,
        client: &Client,
        name: &Name,
        (): &mut (),
        outcome: Result<&Follower, ServiceError>,
        output: &mut Messages<'_>,
    ) -> bool {
        if let Err(error) = outcome {
            Refused::from(error).tell(client, name.of(), output);
        }
        true
    }

    fn item(_: &Client, name: &Name, item: Item, _: u64, output: &mut Messages<'_>) {
        match item {
            Item::Frame(frame) => output.push(frame),
            Item::Feed(_) => {}
            Item::Missed(count) => {
                let (_, target) = name.of();
                let text = match count {
                    // An engine does not know how many.
                    0 => format!("SUB {target}: messages may have been missed"),
                    _ => format!("SUB {target}: {count} messages were missed"),
                };
                output.push(error(&text));
            }
        }
    }

    fn request(
        &mut self,
        client: &Client,
        _: (&Name, ()),
        request: &Request,
        number: u64,
        output: &mut Messages<'_>,
    ) -> u64 {
        let inflight = &client.worker.inflight;
        output.write(inflight, |out| output::write_request(out, request, number));
        number
    }

    fn replied(
        &mut self,
        client: &Client,
        Waiter { target, headers }: Waiter,
        outcome: Result<Reply, ServiceError>,
        output: &mut Messages<'_>,
    ) {
        match outcome {
            Ok(reply) => output.write(&client.worker.inflight, |out| {
                output::write_reply(out, &target, &headers, &reply);
            }),
            Err(error) => Refused::from(error).tell(client, ("REQ", target), output),
        }
    }

    fn done(
        &mut self,
        client: &Client,
        waiter: Waiter,
        outcome: Self::Outcome,
        output: &mut Messages<'_>,
    ) {
        if let Err(error) = outcome {
            Refused::from(error).tell(client, ("PUB", waiter.target), output);
        }
    }

    fn ended(
        conversation: &mut Conversation,
        name: Name,
        (end, at): (End, Position),
        output: &mut Messages<'_>,
    ) {
        let refused = match (&name, end) {
            // The end of the connection follows.
            (_, End::Over(RecvError::Closed)) => return,
            (Name::Private(_), End::Revoked) => {
                conversation.ends = Some(end::End::Revoked);
                return;
            }
            (_, End::Revoked | End::Over(RecvError::Deleted)) => {
                if conversation.follow_on(&name, at, output) {
                    return;
                }
                Refused::NotTrusted
            }
            (Name::Private(_), End::Over(error)) => {
                conversation.ends = Some(end::End::Over(error));
                return;
            }
            (_, End::Failed(error)) => error.into(),
            (_, End::Over(error)) => Refused::because(Code::StoreFailed, error.to_string()),
        };
        refused.tell(&conversation.client, name.of(), output);
    }

    fn ends(&mut self, _: &Client, end: &end::End, output: &mut Messages<'_>) {
        if let end::End::Malformed(_, _, why) = end {
            output.push(error(why));
        }
    }
}

/// The frame of an error.
pub(super) fn error(text: &str) -> Frame {
    Frame::text(text.len() + 32, |out| output::write(out, "PUB", "ERROR", None, text.as_bytes()))
}
