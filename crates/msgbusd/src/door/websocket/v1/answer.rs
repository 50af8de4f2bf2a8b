//! What the server answers.

use bytes::Bytes;
use msgbus_core::{Published, StartPosition};

use super::{identifier::Label, output::Output, refusal::Refusal};

/// The answer to an operation that was carried out.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Published(Published),
    Subscribed {
        sid: Label,
        epoch: u64,
        start: StartPosition,
    },
    /// About a subscription that has no position, or none any more.
    Sid(Label),
    Credit {
        sid: Label,
        credit: usize,
    },
    /// Messages that were pulled, as JSON with commas between them.
    Messages(Bytes),
    /// When the lease ends.
    Extended(String),
    /// The leases that were not settled, as JSON with commas between them.
    Unsettled(Vec<u8>),
    Pong,
}

impl Answer {
    /// Writes the answer to an operation with this `rid`, as JSON.
    pub(super) fn write(self, rid: Option<&[u8]>, output: &mut Output) {
        let text = output.text();
        text.extend_from_slice(match self {
            Self::Pong => br#"{"op":"pong""#,
            _ => br#"{"op":"ok""#,
        });
        if let Some(rid) = rid {
            text.extend_from_slice(br#","rid":"#);
            text.extend_from_slice(rid);
        }
        match self {
            Self::Done | Self::Pong => {}
            Self::Published(published) => write_published(text, published),
            Self::Subscribed { sid, epoch, start } => {
                write_sid(text, &sid);
                write_start(text, epoch, start);
            }
            Self::Sid(sid) => write_sid(text, &sid),
            Self::Credit { sid, credit } => {
                write_sid(text, &sid);
                text.extend_from_slice(br#","credit":"#);
                number(text, credit as u64);
            }
            Self::Messages(messages) => {
                text.extend_from_slice(br#","messages":["#);
                output.push(messages);
                output.text().push(b']');
            }
            Self::Extended(expires) => {
                text.extend_from_slice(br#","lease_expires":""#);
                text.extend_from_slice(expires.as_bytes());
                text.push(b'"');
            }
            Self::Unsettled(leases) if leases.is_empty() => {}
            Self::Unsettled(leases) => {
                text.extend_from_slice(br#","unsettled":["#);
                text.extend_from_slice(&leases);
                text.push(b']');
            }
        }
        output.text().push(b'}');
        output.end_line();
    }
}

/// Writes the refusal of an operation, as far as it is known which.
pub(super) fn write_refusal(
    refusal: &Refusal,
    rid: Option<&[u8]>,
    of: Option<&str>,
    output: &mut Output,
) {
    let text = output.text();
    text.extend_from_slice(br#"{"op":"error""#);
    if let Some(rid) = rid {
        text.extend_from_slice(br#","rid":"#);
        text.extend_from_slice(rid);
    }
    if let Some(of) = of {
        text.extend_from_slice(br#","of":""#);
        text.extend_from_slice(of.as_bytes());
        text.push(b'"');
    }
    text.extend_from_slice(br#","code":""#);
    text.extend_from_slice(refusal.code().word().as_bytes());
    text.extend_from_slice(br#"","text":"#);
    // Neither a text nor a Vec can fail.
    let _ = serde_json::to_writer(&mut *text, &refusal.to_string());
    if let Some(seconds) = refusal.retry_after() {
        text.extend_from_slice(br#","retry_after":"#);
        number(text, seconds);
    }
    text.push(b'}');
    output.end_line();
}

fn write_published(text: &mut Vec<u8>, Published { epoch, id, durability }: Published) {
    text.extend_from_slice(br#","id":"#);
    number(text, id);
    text.extend_from_slice(br#","epoch":""#);
    number(text, epoch);
    text.extend_from_slice(br#"","durability":""#);
    text.extend_from_slice(durability.as_str().as_bytes());
    text.push(b'"');
}

fn write_start(text: &mut Vec<u8>, epoch: u64, start: StartPosition) {
    text.extend_from_slice(br#","epoch":""#);
    number(text, epoch);
    text.extend_from_slice(br#"","next_id":"#);
    number(text, start.next_id);
    if start.missed > 0 || start.is_uncounted {
        text.extend_from_slice(br#","missed":"#);
        number(text, start.missed);
    }
    if start.restarted {
        text.extend_from_slice(br#","restarted":true"#);
    }
}

/// Writes a field with a `sid`, after a comma.
pub(super) fn write_sid(text: &mut Vec<u8>, sid: &str) {
    text.extend_from_slice(br#","sid":"#);
    text.extend_from_slice(sid.as_bytes());
}

pub(super) fn number(text: &mut Vec<u8>, number: u64) {
    text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}
