//! What several doors say in the headers of their answers.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use msgbus_core::Start;

/// Tells in the headers of the answer where the reading starts.
pub(super) fn tell_start(headers: &mut HeaderMap, epoch: u64, start: Start) {
    let mut tell = |name, value: HeaderValue| headers.insert(HeaderName::from_static(name), value);
    tell("msgbus-epoch", number(epoch));
    tell("msgbus-next-id", number(start.next_id));
    if start.missed > 0 {
        tell("msgbus-missed", number(start.missed));
    }
    if start.restarted {
        tell("msgbus-restarted", HeaderValue::from_static("true"));
    }
}

/// A number as a header's value: in one allocation, where the library's own way takes two.
pub(super) fn number(number: u64) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(number))
        .unwrap_or_else(|_| HeaderValue::from(number))
}
