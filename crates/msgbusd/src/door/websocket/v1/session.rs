//! What a `msgbus.v1` websocket does with the messages of its client, and how it writes what happens.

use std::iter;

use memchr::memchr;
use msgbus_core::{Leased, Position, Reply, ReplyToken, Request, json::PayloadForm};

use super::{
    V1,
    answer::Answer,
    ask, events,
    identifier::Label,
    operations::{Opening, Operations, Waiter},
    output::Output,
    refusal::Refusal,
};
use crate::{
    dialogue::{Client, Contact, Conversation, Dialect, End, Handled, session},
    net::connection::Connection,
    service::{
        error::ServiceError,
        follower::{Follower, Item},
    },
    websocket::{end, outgoing::Outgoing, transport::Transport},
    worker::Worker,
};

/// One websocket.
pub(crate) type Session = session::Session<V1>;

/// The maximum size of a frame from a client, in bytes: an operation with the largest payload in base64.
fn max_frame(worker: &Worker) -> usize {
    const FIELDS: usize = 64 << 10;
    worker.config.max_payload.div_ceil(3).saturating_mul(4).saturating_add(FIELDS)
}

/// Takes over a connection after the handshake. `already_read` has the bytes that were read since then.
pub(crate) fn session(client: Client, connection: Connection, already_read: Vec<u8>) -> Session {
    let transport = Transport::with_inbox(connection, already_read, max_frame(&client.worker));
    Session::new(Conversation::new(V1, client, Outgoing::default()), transport)
}

impl Dialect for V1 {
    const NAME: &'static str = "msgbus.v1";
    const TEXT_ONLY: &'static str = "msgbus.v1 is text: a JSON object in each line";
    const BATCH: usize = 64;
    /// Each `serve` has a limit of its own.
    const MAX_IN_HAND: usize = usize::MAX;

    type Output = Output;
    type Name = Label;
    type Opening = Opening;
    type Style = PayloadForm;
    type RequestKey = ReplyToken;
    type Waiter = Waiter;
    type Outcome = Result<Answer, Refusal>;

    fn begin(
        operations: &mut Operations,
        message: &[u8],
        allowed: &mut usize,
    ) -> Result<Handled, end::End> {
        let mut handled = 0;
        for line in lines(end::End::text(message)?) {
            if *allowed == 0 || !operations.may_begin() {
                return Ok(Handled::UpTo(handled));
            }
            handled += line.len();
            *allowed -= 1;
            let line = line.trim_ascii();
            if !line.is_empty() {
                operations.begin(line);
            }
        }
        Ok(Handled::All)
    }

    fn opened(
        contact: &mut Contact<V1>,
        sid: &Label,
        opening: &mut Opening,
        outcome: Result<&Follower, ServiceError>,
    ) -> bool {
        opening.answer(contact, sid, outcome)
    }

    fn item(contact: &mut Contact<V1>, sid: &Label, item: Item, next_id: u64) {
        events::write_item(sid, item, next_id, &mut contact.output);
    }

    fn leased(contact: &mut Contact<V1>, of: (&Label, PayloadForm), leased: &Leased) {
        events::write_leased(contact, (of.0, of.1), leased);
    }

    fn request(
        contact: &mut Contact<V1>,
        (sid, form): (&Label, PayloadForm),
        request: &Request,
        _: u64,
    ) -> ReplyToken {
        events::write_request(contact, (sid, form), request);
        request.token()
    }

    fn replied(contact: &mut Contact<V1>, waiter: Waiter, outcome: Result<Reply, ServiceError>) {
        match outcome {
            Ok(reply) => ask::write_reply(contact, &waiter, &reply),
            Err(error) => waiter.refuse(contact, &error.into()),
        }
    }

    fn done(contact: &mut Contact<V1>, waiter: Waiter, outcome: Result<Answer, Refusal>) {
        match (outcome, &waiter.rid) {
            (Ok(answer), Some(rid)) => answer.write(Some(rid.as_bytes()), &mut contact.output),
            (Ok(_), None) => {}
            (Err(refusal), _) => waiter.refuse(contact, &refusal),
        }
    }

    fn ended(operations: &mut Operations, sid: Label, (end, _): (End, Position)) {
        events::write_end(&sid, &end, &mut operations.contact.output);
    }
}

/// The lines of a text, each with its line feed, found with vector instructions.
fn lines(mut text: &str) -> impl Iterator<Item = &str> {
    iter::from_fn(move || {
        let end = memchr(b'\n', text.as_bytes()).map_or(text.len(), |feed| feed + 1);
        let (line, rest) = text.split_at(end);
        text = rest;
        (!line.is_empty()).then_some(line)
    })
}
