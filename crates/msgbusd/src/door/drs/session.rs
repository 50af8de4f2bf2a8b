//! What a peer is sent: the calls and the fires that it handles, and its answers.

use msgbus_core::{LagPolicy, Position, Published, RecvError, Reply, Request, TopicName};
use serde::Serialize;
use serde_json::{json, value::RawValue};

use super::{
    Conversation, Drs, FIELDS,
    command::{self, Command, EXCEPTION},
};
use crate::{
    dialogue::{self, Dialect, End, Handled, Name, Refusal, names::foreign, output::Messages},
    encode::{
        format::{Encoder, FrameFormat},
        frame::Frame,
    },
    service::{
        error::ServiceError,
        follower::{FollowOptions, Follower, Item},
    },
    websocket::end,
};

/// A message as a command in a line.
const FORMAT: FrameFormat = FrameFormat::Of(Encoder {
    name: "drs",
    encode: |message| {
        let mut command = Vec::with_capacity(message.payload().len() + 64);
        command::write_fire(&mut command, message);
        Frame::new(command, "")
    },
});

pub(super) const OPTIONS: FollowOptions =
    FollowOptions { from: Position::New, lag: LagPolicy::Skip, format: FORMAT };

/// Why fires begin to be handled.
#[derive(Debug)]
pub(crate) enum Opening {
    /// A command or the address of the peer asks for them.
    Asked,
    /// They were handled before.
    Again,
    /// The server sends them to every peer that may have them.
    Broadcast,
}

/// A command that is answered later.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(super) key: Option<Box<RawValue>>,
    pub(super) action: TopicName,
}

pub(super) type Contact = dialogue::Contact<Drs>;

impl Contact {
    /// Writes a command.
    pub(super) fn say(
        &mut self,
        key: Option<&RawValue>,
        action: &str,
        body: Option<impl Serialize>,
    ) {
        self.write(|out| command::write(out, key, action, body, None));
    }

    /// Tells a peer that a name is not handled any more.
    fn say_end(&mut self, name: &Name) {
        let of = if matches!(name, Name::Topic(_)) { "subscribe" } else { "serve" };
        self.say(None, "drs.end", Some(json!({of: name.to_string()})));
    }
}

impl Drs {
    /// The key of a call that the peer handles.
    fn key_of(&self, number: u64) -> String {
        format!("{}{number:08x}", self.prefix)
    }

    /// The number of a call that this key, in JSON, may be of.
    pub(super) fn number_of(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(key.trim_matches('"').strip_prefix(&self.prefix)?, 16).ok()
    }
}

impl Dialect for Drs {
    const NAME: &'static str = "drs";
    const TEXT_ONLY: &'static str = "commands are text: JSON";
    const BATCH: usize = 64;
    /// A batch may exceed it.
    const MAX_IN_HAND: usize = 256;

    type Output = Messages;
    type Name = Name;
    type Opening = Opening;
    type Style = ();
    type RequestKey = u64;
    type Waiter = Waiter;
    type Outcome = Result<Published, ServiceError>;

    fn begin(
        conversation: &mut Conversation,
        message: &[u8],
        allowed: &mut usize,
    ) -> Result<Handled, end::End> {
        let max = conversation.contact.client.worker.config.max_payload.saturating_add(FIELDS);
        let mut rest = message;
        loop {
            rest = conversation.contact.door.split.trim(rest);
            let handled = message.len() - rest.len();
            if rest.is_empty() {
                return Ok(Handled::All);
            }
            if *allowed == 0 || !conversation.may_begin() {
                return Ok(Handled::UpTo(handled));
            }
            let Some(length) = conversation.contact.door.split.next(rest, max)? else {
                return Ok(Handled::Partly(handled));
            };
            *allowed -= 1;
            let bytes;
            (bytes, rest) = rest.split_at(length);
            let command = Command::read(bytes)?;
            conversation.contact.door.commands.increment();
            // Others wait for answers, which wait for nothing.
            if !conversation.complete(&command) && conversation.is_next(bytes) {
                conversation.carry_out(&command);
            }
        }
    }

    fn is_busy(conversation: &Conversation) -> bool {
        let is_serial = conversation.contact.client.worker.config.drs.is_serial;
        conversation.contact.door.subscribing.is_some()
            || is_serial && conversation.activities.outstanding() > 0
    }

    fn go_on(conversation: &mut Conversation, command: &[u8]) {
        // It was read before.
        if let Ok(command) = Command::read(command) {
            conversation.carry_out(&command);
        }
    }

    fn opened(
        contact: &mut Contact,
        name: &Name,
        opening: &mut Opening,
        outcome: Result<&Follower, ServiceError>,
    ) -> bool {
        match (opening, outcome) {
            (Opening::Asked, outcome) => {
                contact.subscribed(outcome.map(drop).map_err(Refusal::from));
            }
            (Opening::Again, Err(_)) => contact.say_end(name),
            // A broadcast that the peer may not have is none.
            (Opening::Again | Opening::Broadcast, _) => {}
        }
        true
    }

    fn item(contact: &mut Contact, name: &Name, item: Item, _: u64) {
        match item {
            Item::Frame(frame) => contact.output.push(frame),
            Item::Feed(_) => {}
            Item::Missed(missed) => {
                let body = json!({"subscribe": name.to_string(), "missed": missed});
                contact.say(None, "drs.gap", Some(body));
            }
        }
    }

    fn request(contact: &mut Contact, _: (&Name, ()), call: &Request, number: u64) -> u64 {
        let (key, content) = (contact.door.key_of(number), (&call.payload()[..], call.headers()));
        contact.write(|out| {
            command::write_payload(out, Some(&key), &foreign(call.service().as_str()), content);
        });
        number
    }

    fn replied(contact: &mut Contact, waiter: Waiter, outcome: Result<Reply, ServiceError>) {
        let Waiter { key, action } = waiter;
        let action = foreign(action.as_str());
        contact.answer(key.as_deref(), &action, outcome.map_err(Refusal::from));
    }

    fn done(contact: &mut Contact, waiter: Waiter, outcome: Self::Outcome) {
        Self::replied(contact, waiter, outcome.map(|_| Reply::default()));
    }

    fn ended(conversation: &mut Conversation, name: Name, (end, at): (End, Position)) {
        match end {
            // The end of the connection follows.
            End::Over(RecvError::Closed) => {}
            // There may be another one, and clients do not expect that a handler ends.
            End::Over(RecvError::Deleted) => conversation.open(name, at, Opening::Again),
            _ => conversation.contact.say_end(&name),
        }
    }

    fn ends(contact: &mut Contact, end: &end::End) {
        let why = match end {
            end::End::Malformed(_, _, why) | end::End::Violation(_, why) => why,
            end::End::Unfinished => "The rest of a command did not arrive in time",
            end::End::NoMemory => "Too much memory is in use: retry shortly",
            _ => return,
        };
        contact.say(None, EXCEPTION, Some(json!({"message": why})));
    }
}
