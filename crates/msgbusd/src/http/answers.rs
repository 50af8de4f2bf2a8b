//! What several doors say in the headers of their answers.

use std::cell::RefCell;

use hyper::header::{HeaderMap, HeaderValue};
use msgbus_core::StartPosition;

use super::names::{MSGBUS_EPOCH, MSGBUS_MISSED, MSGBUS_NEXT_ID, MSGBUS_RESTARTED};

thread_local! {
    /// The latest epoch that was asked for, and how it is written: a topic has the same one for long.
    static LATEST: RefCell<(u64, HeaderValue)> = RefCell::new((0, number(0)));
}

/// A gap between messages as JSON, where messages are JSON.
pub(super) fn gap(missed: u64, next_id: u64) -> String {
    format!("{{\"event\":\"gap\",\"missed\":{missed},\"next_id\":{next_id}}}\n")
}

/// Tells in the headers of the answer where the reading starts.
pub(super) fn tell_start(headers: &mut HeaderMap, epoch: u64, start: StartPosition) {
    headers.insert(MSGBUS_EPOCH, self::epoch(epoch));
    headers.insert(MSGBUS_NEXT_ID, number(start.next_id));
    if start.missed > 0 {
        headers.insert(MSGBUS_MISSED, number(start.missed));
    }
    if start.restarted {
        headers.insert(MSGBUS_RESTARTED, HeaderValue::from_static("true"));
    }
}

/// A number as a header's value: in one allocation, where the library's own way takes two.
pub(super) fn number(number: u64) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(number))
        .unwrap_or_else(|_| HeaderValue::from(number))
}

/// An epoch as a header's value.
pub(super) fn epoch(epoch: u64) -> HeaderValue {
    LATEST.with_borrow_mut(|(latest, written)| {
        if *latest != epoch {
            *latest = epoch;
            *written = number(epoch);
        }
        written.clone()
    })
}
