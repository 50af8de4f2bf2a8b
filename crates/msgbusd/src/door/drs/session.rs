//! What a peer is sent: the calls and the fires that it handles, and its answers.

use std::sync::Arc;

use msgbus_core::{LagPolicy, Position, Published, RecvError, Reply, Request, TopicName};
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{
    Conversation, Drs, FIELDS, MAX_CALLS, MAX_IN_HAND,
    command::{self, Failure},
    commands::Subscribing,
};
use crate::{
    auth::Target,
    dialogue::{Client, Dialect, End, Handled, MAX_UNREAD, Output as _, output::Messages},
    encode::frame_cache::{Encoder, Frame, FrameFormat},
    service::{
        error::ServiceError,
        follower::{FollowOptions, Follower, Item},
    },
    websocket::{end, transport::Outgoing},
};

/// A message as a command in a text frame.
const FRAME: Encoder = Encoder {
    name: "drs-ws",
    encode: |message| {
        Frame::text(message.payload().len() + 64, |out| command::write_fire(out, message))
    },
};
/// A message as a command in a line.
const LINE: Encoder = Encoder {
    name: "drs-tcp",
    encode: |message| {
        let mut command = Vec::new();
        command::write_fire(&mut command, message);
        Frame::new(command, "")
    },
};

pub(super) fn options(from: Position, is_stream: bool) -> FollowOptions {
    let format = FrameFormat::Of(if is_stream { LINE } else { FRAME });
    FollowOptions { from, lag: LagPolicy::Skip, format }
}

/// What a peer handles.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Calls(TopicName),
    Fires(Target),
    /// Fires that the server sends to every peer.
    Broadcast(Target),
}

impl Name {
    pub(super) fn follows(&self, topic: &TopicName) -> bool {
        match self {
            Self::Calls(_) => false,
            Self::Fires(target) | Self::Broadcast(target) => match target {
                Target::Topic(followed) => followed == topic,
                Target::Pattern(pattern) => pattern.matches(topic),
            },
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Calls(service) => service.to_string(),
            Self::Fires(target) | Self::Broadcast(target) => target.to_string(),
        }
    }
}

/// Fires that begin to be handled.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// The commands that ask for them.
    pub(super) asked: Vec<Arc<Subscribing>>,
    /// The subscription of another user, which goes on until this one is open: so nothing is missed.
    pub(super) before: Option<Follower>,
}

/// A command that is answered later.
#[derive(Debug)]
pub(super) struct Waiter {
    /// As JSON.
    pub(super) key: Option<Box<str>>,
    pub(super) action: TopicName,
}

/// Counts a refusal.
pub(super) fn refused(client: &Client, error: ServiceError) -> Failure {
    client.refused(None, error.code());
    error.into()
}

/// Writes a command. `key` and `body` are JSON.
pub(super) fn write(
    client: &Client,
    output: &mut Messages<'_>,
    key: Option<&str>,
    action: &str,
    body: Option<&str>,
) {
    output.write(&client.worker.inflight, |out| command::write(out, key, action, body, None));
}

impl Failure {
    /// Tells the peer, without a key.
    pub(super) fn write(&self, client: &Client, output: &mut Messages<'_>) {
        write(client, output, None, self.action, Some(&self.body()));
    }
}

impl Dialect for Drs {
    const NAME: &'static str = "drs";
    const TEXT_ONLY: &'static str = "commands are text: JSON";
    const BATCH: usize = 64;
    const MAX_IN_HAND: usize = MAX_IN_HAND;

    type Output<'a> = Messages<'a>;
    type Name = Name;
    type Opening = Opening;
    type Style = ();
    type RequestKey = u64;
    type Waiter = Waiter;
    type Outcome = Result<Published, ServiceError>;

    fn begin(
        conversation: &mut Conversation,
        message: &[u8],
        output: &mut Messages<'_>,
        allowed: &mut usize,
    ) -> Result<Handled, end::End> {
        let max = conversation.client.worker.config.max_payload.saturating_add(FIELDS);
        let mut rest = message;
        loop {
            rest = conversation.door.split.trim(rest);
            let handled = message.len() - rest.len();
            if rest.is_empty() {
                return Ok(Handled::All);
            }
            if *allowed == 0 || !Self::may_begin(conversation, output.waiting()) {
                return Ok(Handled::UpTo(handled));
            }
            *allowed -= 1;
            let carried_out = match conversation.door.split.next(rest, max) {
                Ok(None) => return Ok(Handled::Partly(handled)),
                Ok(Some(length)) => {
                    let command;
                    (command, rest) = rest.split_at(length);
                    conversation.command(command, output)
                }
                Err(malformed) => Err(malformed),
            };
            if let Err(malformed) = carried_out {
                conversation.door.malformed = Some(malformed.to_string());
                let why = "malformed command".into();
                return Err(end::End::Malformed(CloseCode::Policy, malformed.code(), why));
            }
        }
    }

    fn may_begin(conversation: &Conversation, unwritten: usize) -> bool {
        unwritten < MAX_UNREAD
            && conversation.activities.outstanding() < 2 * MAX_CALLS
            && conversation.door.queued < MAX_UNREAD
    }

    fn resume(conversation: &mut Conversation, outgoing: &mut Outgoing) {
        if conversation.door.queue.is_empty() {
            return;
        }
        let mut output = Messages::new(outgoing);
        while conversation.activities.outstanding() == 0
            && output.waiting() < MAX_UNREAD
            && !conversation.door.queue.is_empty()
        {
            conversation.next_command(&mut output);
        }
    }

    fn opened(
        &mut self,
        client: &Client,
        name: &Name,
        opening: &mut Opening,
        outcome: Result<&Follower, ServiceError>,
        output: &mut Messages<'_>,
    ) -> bool {
        let asked = std::mem::take(&mut opening.asked);
        if let Err(error) = outcome {
            let failure = refused(client, error);
            for subscribing in &asked {
                let _ = subscribing.failure.set(failure.clone());
            }
            // A broadcast that the peer may not have is none.
            if asked.is_empty() && (opening.before.is_some() || matches!(name, Name::Fires(_))) {
                notify(client, "drs.end", &json!({"subscribe": name.text()}), output);
            }
        }
        for subscribing in asked {
            self.subscribed(client, subscribing, output);
        }
        opening.before = None;
        true
    }

    fn item(client: &Client, name: &Name, item: Item, _: u64, output: &mut Messages<'_>) {
        match item {
            Item::Frame(frame) => output.push(frame),
            Item::Feed(_) => {}
            Item::Missed(missed) => {
                let body = json!({"subscribe": name.text(), "missed": missed});
                notify(client, "drs.gap", &body, output);
            }
        }
    }

    fn request(
        &mut self,
        client: &Client,
        _: (&Name, ()),
        call: &Request,
        number: u64,
        output: &mut Messages<'_>,
    ) -> u64 {
        let number = number & u64::from(u32::MAX);
        let key = format!("\"{:012x}{number:08x}\"", self.prefix);
        let (payload, headers) = (call.payload(), call.headers());
        let (body, version) = (command::body(payload, headers), command::version(headers));
        output.write(&client.worker.inflight, |out| {
            let action = call.service().as_str();
            command::write(out, Some(&key), action, body.as_deref(), version);
        });
        number
    }

    fn replied(
        &mut self,
        client: &Client,
        Waiter { key, action }: Waiter,
        outcome: Result<Reply, ServiceError>,
        output: &mut Messages<'_>,
    ) {
        let outcome = outcome.map_err(Failure::from);
        self.answer(client, (key.as_deref(), action.as_str()), &outcome, output);
    }

    fn done(
        &mut self,
        client: &Client,
        waiter: Waiter,
        outcome: Result<Published, ServiceError>,
        output: &mut Messages<'_>,
    ) {
        self.replied(client, waiter, outcome.map(|_| Reply::default()), output);
    }

    fn ended(
        conversation: &mut Conversation,
        name: Name,
        (end, at): (End, Position),
        output: &mut Messages<'_>,
    ) {
        let body = match (&name, end) {
            // The end of the connection follows.
            (_, End::Over(RecvError::Closed)) => return,
            // There may be another one, and clients do not expect that a handler ends.
            (_, End::Over(RecvError::Deleted)) => {
                return conversation.open(name, at, Opening::default(), output);
            }
            (Name::Calls(_), _) => json!({"serve": name.text()}),
            _ => json!({"subscribe": name.text()}),
        };
        notify(&conversation.client, "drs.end", &body, output);
    }

    fn ends(&mut self, client: &Client, end: &end::End, output: &mut Messages<'_>) {
        let why = match (end, self.malformed.take()) {
            (_, Some(why)) => why,
            (end::End::Violation(_, why), _) => why.to_string(),
            (end::End::Unfinished, _) => "The rest of a command did not arrive in time".to_owned(),
            (end::End::NoMemory, _) => "Too much memory is in use: retry shortly".to_owned(),
            _ => return,
        };
        Failure::exception(why).write(client, output);
    }

    fn rests(&mut self) {
        self.stats.take(&mut self.counts);
    }
}

/// Tells a peer something about a name that it handles.
fn notify(client: &Client, action: &str, body: &serde_json::Value, output: &mut Messages<'_>) {
    write(client, output, None, action, Some(&body.to_string()));
}
