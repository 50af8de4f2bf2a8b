//! What a connection does with the messages of its client, from the login to the end.

use std::{sync::Arc, task::Waker};

use msgbus_core::{LagPolicy, Position, TopicName};
use slab::Slab;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tracing::debug;

use super::{
    MAX_COMMITS, MAX_UNREAD,
    activity::Followed,
    client::Client,
    conversation::{Conversation, Slot},
    output::{self, FORMAT},
    refused::Refused,
};
use crate::{
    encode::frame_cache::Frame,
    net::{connection::Connection, peer::Peer},
    service::{Authority, Call, error::ServiceError, follower::FollowOptions},
    websocket::{
        end::{End, count},
        link::close,
        session::{Dialogue, Session},
        transport::{Outgoing, Transport},
    },
    worker::Worker,
};

/// What a message may have besides its body, in bytes.
const HEAD: usize = 64 << 10;
/// What a super key follows.
const EVERYTHING: &str = "**";

pub(super) const OPTIONS: FollowOptions =
    FollowOptions { from: Position::New, lag: LagPolicy::Skip, format: FORMAT };

/// Serves a client that has logged in, until the connection ends.
pub(super) async fn serve(client: Client, mut transport: Transport<Connection>) {
    let (worker, peer) = (Arc::clone(&client.worker), client.peer);
    let mut greeting = Outgoing::default();
    let conversation = match begin(client, &mut greeting).await {
        Ok(conversation) => conversation,
        Err(error) => {
            let end = End::Refused(error.code(), error.to_string().into());
            count(&worker, &end);
            return close(transport, Outgoing::default(), end.close_frame(None)).await;
        }
    };
    if let Some(inbox) = transport.inbox() {
        inbox.set_max(worker.config.max_payload.saturating_add(HEAD));
    }
    let session = Session::new(conversation, transport, &worker, peer);
    session.say(greeting);
    Box::new(session).serve().await;
}

/// Subscribes a client to its private topic, confirms the key, and sends the id of the connection.
async fn begin(client: Client, outgoing: &mut Outgoing) -> Result<Conversation, ServiceError> {
    let private: TopicName = client.private_target().parse().unwrap_or_else(|_| unreachable!());
    let follower = client.call(Authority::Key).follow(&private, OPTIONS).await?;
    let mut conversation = Conversation::new(client, private, follower);
    outgoing.push(Frame::text("MM OK"));
    let client = &conversation.client;
    let options = &client.hub.options;
    if !client.is_one_of(&options.without_id) {
        outgoing.push(Frame::text(client.identity.guid.as_str()));
    }
    if client.is_one_of(&options.super_keys) {
        let everything = EVERYTHING.parse().unwrap_or_else(|_| unreachable!());
        let following = client.call(Authority::Own).follow_pattern(&everything, OPTIONS);
        match following.await {
            Ok(follower) => conversation.follow(Followed::Everything, follower),
            Err(error) => {
                conversation.refuse(&Refused::from(error), "SUB", EVERYTHING, outgoing);
            }
        }
    }
    Ok(conversation)
}

impl Dialogue for Conversation {
    const NAME: &'static str = "middleman";
    const TEXT_ONLY: &'static str = "messages are text";
    type Rest = Slab<Slot>;

    fn begin(
        &mut self,
        text: &str,
        outgoing: &mut Outgoing,
        allowed: &mut usize,
    ) -> Result<usize, End> {
        *allowed -= 1;
        self.messages.increment();
        self.handle(text, outgoing).map_err(|error| {
            let text = error.to_string();
            outgoing.push(output::error(&text));
            End::Violation(CloseCode::Protocol, text.into())
        })?;
        Ok(text.len())
    }

    /// Messages are handled in order, so a subscription has to be open first.
    fn may_begin(&self, unwritten: usize) -> bool {
        self.opening == 0 && self.committing < MAX_COMMITS && unwritten < MAX_UNREAD
    }

    fn has_published(&mut self) -> bool {
        std::mem::take(&mut self.has_published)
    }

    fn register(&self, task: &Waker) {
        self.queue.register(task);
    }

    fn run(&mut self, outgoing: &mut Outgoing) -> bool {
        self.run_ready(outgoing)
    }

    fn run_blocked(&mut self, outgoing: &mut Outgoing) {
        self.run_held_back(outgoing);
    }

    fn ends(&self) -> Option<End> {
        self.is_revoked.then_some(End::Revoked)
    }

    fn drain(&mut self, _: &mut Outgoing) {
        self.end_subscriptions();
    }

    fn outstanding(&self) -> usize {
        self.asked + self.committing
    }

    fn end(&mut self) -> Slab<Slot> {
        let (worker, peer) = (Arc::clone(&self.client.worker), self.client.peer);
        self.client.worker.tasks.spawn(forget(worker, peer, self.private.clone()));
        std::mem::take(&mut self.slots)
    }
}

/// Deletes the private topic of a connection that has ended.
async fn forget(worker: Arc<Worker>, peer: Peer, private: TopicName) {
    if worker.bus.topic(&private).is_some() || worker.bus.engine_of(&private).is_some() {
        let call = Call { worker: &worker, peer, principal: None, authority: Authority::Key };
        if let Err(error) = call.delete(&private).await {
            debug!(%peer, %error, "a private topic is left");
        }
    }
}
