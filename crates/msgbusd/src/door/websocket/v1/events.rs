//! What happens to subscriptions and services, in lines for the client.

use msgbus_core::{
    Leased, RecvError, Request,
    json::{self, PayloadForm},
    store::StoreError,
};

use super::{
    V1,
    answer::{number, write_sid},
    content::write_json,
    output::Output,
};
use crate::{
    dialogue::{Contact, End},
    encode::events::Feed,
    service::{error::ServiceError, follower::Item, requests},
};

/// The size of an encoded message that is not copied, in bytes.
const LARGE: usize = 16 << 10;

pub(super) fn write_item(sid: &str, item: Item, next_id: u64, output: &mut Output) {
    match item {
        Item::Frame(frame) => {
            begin_message(output.text(), sid, next_id - 1);
            output.text().extend_from_slice(br#","message":"#);
            for piece in frame.into_pieces() {
                output.push(piece);
            }
            output.text().push(b'}');
            output.end_line();
        }
        Item::Missed(count) => write_gap(sid, count, next_id, output),
        Item::Feed(feed) => write_feed(sid, feed, output),
    }
}

/// Writes the beginning of a message with this position.
fn begin_message(text: &mut Vec<u8>, sid: &str, id: u64) {
    text.extend_from_slice(br#"{"op":"msg""#);
    write_sid(text, sid);
    text.extend_from_slice(br#","id":"#);
    number(text, id);
}

fn write_gap(sid: &str, missed: u64, next_id: u64, output: &mut Output) {
    let text = output.text();
    text.extend_from_slice(br#"{"op":"gap""#);
    write_sid(text, sid);
    text.extend_from_slice(br#","missed":"#);
    number(text, missed);
    text.extend_from_slice(br#","next_id":"#);
    number(text, next_id);
    text.push(b'}');
    output.end_line();
}

fn write_feed(sid: &str, feed: Feed, output: &mut Output) {
    let text = output.text();
    text.extend_from_slice(br#"{"op":""#);
    text.extend_from_slice(feed.word().as_bytes());
    text.push(b'"');
    write_sid(text, sid);
    text.push(b'}');
    output.end_line();
}

pub(super) fn write_leased(
    Contact { client, output, .. }: &mut Contact<V1>,
    (sid, form): (&str, PayloadForm),
    leased: &Leased,
) {
    let message = &leased.message;
    let text = output.text();
    begin_message(text, sid, message.id());
    text.push(b',');
    json::write_lease(text, leased);
    text.extend_from_slice(br#","message":"#);
    if json::size_hint(message) < LARGE {
        json::write_message_as(text, message, form);
    } else {
        let mut object = Vec::with_capacity(json::size_hint(message));
        json::write_message_as(&mut object, message, form);
        output.push(client.worker.inflight.track_response(object.into()));
    }
    output.text().push(b'}');
    output.end_line();
}

pub(super) fn write_request(
    Contact { client, output, .. }: &mut Contact<V1>,
    (sid, form): (&str, PayloadForm),
    request: &Request,
) {
    let text = output.text();
    text.extend_from_slice(br#"{"op":"request""#);
    write_sid(text, sid);
    text.push(b',');
    let (size, left) = (json::request_size_hint(request), requests::time_left(request));
    write_json(output, &client.worker.inflight, size, |out| {
        json::write_request_fields(out, request, &left, form);
    });
    output.text().push(b'}');
    output.end_line();
}

/// Tells the client why a subscription or a service ended.
pub(super) fn write_end(sid: &str, end: &End, output: &mut Output) {
    let text = output.text();
    text.extend_from_slice(br#"{"op":"end""#);
    write_sid(text, sid);
    text.extend_from_slice(br#","reason":""#);
    text.extend_from_slice(reason(end).as_bytes());
    text.push(b'"');
    if let End::Over(RecvError::Lagged { missed }) = end {
        text.extend_from_slice(br#","missed":"#);
        number(text, *missed);
    }
    text.push(b'}');
    output.end_line();
}

fn reason(end: &End) -> &'static str {
    match end {
        End::Revoked => "revoked",
        End::Over(RecvError::Lagged { .. }) => "lagged",
        End::Over(RecvError::Closed | RecvError::Store(StoreError::Closed)) => "closed",
        End::Over(RecvError::Store(StoreError::Engine(_)))
        | End::Failed(ServiceError::Store(StoreError::Engine(_))) => "engine_failed",
        End::Over(RecvError::Store(_)) | End::Failed(_) => "store_failed",
        End::Over(_) => "deleted",
    }
}
