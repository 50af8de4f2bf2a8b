//! The fuzz target for the messages of clients.

use super::{frame::Frame, output};
use crate::dialogue::names;

/// Reads `data` as a message. One that can be read has the same command, target, headers and body after it was written and
/// read again; a target and its topic name each other.
///
/// # Panics
/// When a property does not hold.
pub fn middleman(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let frame = match Frame::parse(text) {
        Ok(frame) => frame,
        Err(error) => {
            crate::fuzzing::common::is_a_line(&error, 200);
            return;
        }
    };
    if let Ok(topic) = names::topic(frame.target)
        && !frame.target.contains('\r')
    {
        assert_eq!(names::foreign(topic.as_str()), frame.target);
    }
    let Ok(headers) = frame.headers(&[], &[]) else { return };
    let mut written = Vec::new();
    let body = frame.body.as_bytes();
    output::write(&mut written, frame.command, frame.target, &headers, body);
    let written = str::from_utf8(&written).expect("text");
    // A carriage return at the end of the target belongs to the end of the line then.
    if !frame.target.ends_with('\r') {
        let again = Frame::parse(written).expect("as it was written");
        let parts = |frame: &Frame<'_>| {
            let headers: Vec<_> =
                frame.each_header().map(|(name, value)| format!("{name}:{value}")).collect();
            [frame.command, frame.target, &frame.body, &headers.join("\n")].map(str::to_owned)
        };
        assert_eq!(parts(&again), parts(&frame));
    }
}
