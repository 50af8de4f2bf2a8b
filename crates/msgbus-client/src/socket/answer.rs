//! What the server sends on `msgbus.v1`: answers, messages and events, each a line of JSON. docs/protocol.md, section 16.

use std::{borrow::Cow, time::Duration};

use chrono::{DateTime, Utc};
use msgbus_core::{Headers, Leased, Message, Reply, ReplyToken, json, parse_duration};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    error::{ClientError, MAX_RETRY_AFTER},
    service::RequestError,
};

/// A line. Lines whose `op` is not known are ignored.
#[derive(Debug)]
pub(super) enum Incoming<'a> {
    /// The answer to an operation; `None` if it could not be told which.
    Answer {
        rid: Option<u64>,
        answer: Result<Answer, ClientError>,
    },
    /// A message of a subscription.
    Message {
        sid: u64,
        id: u64,
        message: &'a RawValue,
        lease: Option<Lease<'a>>,
    },
    /// Missed messages of a subscription.
    Gap {
        sid: u64,
        missed: u64,
        next_id: u64,
    },
    /// The engine of a topic does not deliver, or does again.
    Delivery {
        sid: u64,
        is_stalled: bool,
    },
    /// A request to a service.
    Request {
        sid: u64,
        request: Pushed,
    },
    /// The end of a subscription.
    End {
        sid: u64,
        reason: Cow<'a, str>,
    },
    Unknown,
}

/// The answer to an operation that was carried out. Which fields it has depends on the operation.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) id: Option<u64>,
    pub(super) epoch: Option<u64>,
    pub(super) next_id: Option<u64>,
    /// `Some(0)` if nobody knows how many. `None` if nothing is missed.
    pub(super) missed: Option<u64>,
    pub(super) restarted: bool,
    pub(super) lease_expires: Option<DateTime<Utc>>,
    messages: Vec<Box<RawValue>>,
    reply: Reply,
    /// Why a request has no reply.
    no_reply: Option<RequestError>,
    /// Whether the server has not asked because it stops.
    pub(super) is_closing: bool,
}

/// A request that was pushed.
#[derive(Debug)]
pub(super) struct Pushed {
    pub(super) token: ReplyToken,
    pub(super) time_left: Duration,
    pub(super) content: Reply,
}

impl Answer {
    /// The messages of a pull.
    ///
    /// # Errors
    /// One of them is not a message.
    pub(super) fn messages(&self) -> Result<Vec<Message>, ClientError> {
        let read = self.messages.iter().map(|json| json::read_message(json.get().as_bytes()));
        Ok(read.collect::<Result<_, _>>()?)
    }

    /// The messages of a pull of a group.
    ///
    /// # Errors
    /// One of them is not a leased message.
    pub(super) fn leased(&self) -> Result<Vec<Leased>, ClientError> {
        let read = self.messages.iter().map(|json| json::read_leased(json.get().as_bytes()));
        Ok(read.collect::<Result<_, _>>()?)
    }

    /// The reply to a request.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn into_reply(self) -> Result<Reply, RequestError> {
        self.no_reply.map_or(Ok(self.reply), Err)
    }
}

/// The lease of a message that was pushed.
#[derive(Debug)]
pub(super) struct Lease<'a> {
    pub(super) token: Cow<'a, str>,
    deliveries: u32,
    expires: DateTime<Utc>,
}

impl Lease<'_> {
    /// # Errors
    /// The message is not one, or the token is not one.
    pub(super) fn of(self, message: &RawValue) -> Result<Leased, ClientError> {
        let message = json::read_message(message.get().as_bytes())?;
        let token = self.token.parse().map_err(json::JsonError::Token)?;
        Ok(Leased { message, token, deliveries: self.deliveries, expires: self.expires })
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    rid: Option<u64>,
    sid: Option<u64>,
    id: Option<u64>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    epoch: Option<String>,
    next_id: Option<u64>,
    missed: Option<u64>,
    #[serde(default)]
    restarted: bool,
    reason: Option<String>,
    of: Option<String>,
    code: Option<String>,
    text: Option<String>,
    retry_after: Option<u64>,
    #[serde(default)]
    messages: Vec<Box<RawValue>>,
    lease: Option<String>,
    deliveries: Option<u32>,
    lease_expires: Option<DateTime<Utc>>,
    reply: Option<String>,
    timeout: Option<String>,
    payload: Option<String>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
}

/// Only the name of an operation.
#[derive(Deserialize)]
struct Op<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
}

impl Op<'_> {
    const KNOWN: [&'static str; 9] =
        ["msg", "gap", "stalled", "resumed", "end", "ok", "pong", "error", "request"];

    /// Whether the line has an operation that is known, or none.
    fn is_known(line: &str) -> bool {
        let line: Result<Op<'_>, _> = serde_json::from_str(line);
        line.map_or(true, |line| Self::KNOWN.contains(&&*line.op))
    }
}

impl<'a> Incoming<'a> {
    /// # Errors
    /// The line is not JSON, or lacks a field.
    pub(super) fn read(line: &'a str) -> Result<Self, String> {
        let line: Line<'a> = match serde_json::from_str(line) {
            Ok(line) => line,
            // Fields of operations that are not known may be anything.
            Err(_) if !Op::is_known(line) => return Ok(Self::Unknown),
            Err(error) => return Err(json::brief(&error)),
        };
        let lacks = |field: &str| format!("{:?} without {field}", line.op);
        let sid = line.sid.ok_or_else(|| lacks("sid"));
        Ok(match &*line.op {
            "msg" => {
                let lease = match (line.lease, line.deliveries, line.lease_expires) {
                    (Some(token), Some(deliveries), Some(expires)) => {
                        Some(Lease { token: token.into(), deliveries, expires })
                    }
                    _ => None,
                };
                let id = line.id.ok_or_else(|| lacks("id"))?;
                let message = line.message.ok_or_else(|| lacks("message"))?;
                Self::Message { sid: sid?, id, message, lease }
            }
            "gap" => {
                let next_id = line.next_id.ok_or_else(|| lacks("next_id"))?;
                Self::Gap { sid: sid?, missed: line.missed.unwrap_or(0), next_id }
            }
            "stalled" => Self::Delivery { sid: sid?, is_stalled: true },
            "resumed" => Self::Delivery { sid: sid?, is_stalled: false },
            "request" => Self::Request { sid: sid?, request: line.into_request()? },
            "end" => Self::End { sid: sid?, reason: line.reason.unwrap_or_default().into() },
            "ok" | "pong" => Self::Answer { rid: line.rid, answer: Ok(line.into_answer()?) },
            "error" => Self::Answer { rid: line.rid, answer: line.into_error() },
            _ => Self::Unknown,
        })
    }
}

impl Line<'_> {
    /// The payload and the headers of a request or a reply.
    fn content(&self) -> Result<Reply, String> {
        let payload = self.payload.as_deref().map(json::read_base64).transpose();
        let headers = self.headers.map(|headers| json::read_headers(headers.get())).transpose();
        let payload = payload.map_err(|error| error.to_string())?.unwrap_or_default().into();
        let headers: Option<Headers> = headers.map_err(|error| error.to_string())?;
        Ok(Reply { payload, headers: headers.unwrap_or_default() })
    }

    fn into_request(self) -> Result<Pushed, String> {
        let content = self.content()?;
        let token = self.reply.as_deref().map(str::parse::<ReplyToken>);
        let timeout = self.timeout.as_deref().map(parse_duration);
        match (token, timeout) {
            (Some(Ok(token)), Some(Ok(time_left))) => Ok(Pushed { token, time_left, content }),
            _ => Err("a request without a reply token or a timeout".to_owned()),
        }
    }

    fn into_answer(self) -> Result<Answer, String> {
        let reply = self.content()?;
        Ok(Answer {
            reply,
            no_reply: None,
            is_closing: false,
            id: self.id,
            epoch: self.epoch.and_then(|epoch| epoch.parse().ok()),
            next_id: self.next_id,
            missed: self.missed,
            restarted: self.restarted,
            lease_expires: self.lease_expires,
            messages: self.messages,
        })
    }

    /// That a request has no reply is an answer, too.
    fn into_error(self) -> Result<Answer, ClientError> {
        let text = self.text.unwrap_or_default();
        let code = self.code.as_deref().unwrap_or_default();
        if let Some(error) = RequestError::of_code(code, &text) {
            return Ok(Answer { no_reply: Some(error), ..Answer::default() });
        }
        let is_closing = code == "closed" && self.of.as_deref() == Some("request");
        let error = match (code, self.retry_after) {
            ("lease_lost", _) => ClientError::LeaseLost,
            ("reply_not_wanted", _) => ClientError::ReplyNotWanted,
            (code, Some(seconds)) => {
                let retry_after = Duration::from_secs(seconds).min(MAX_RETRY_AFTER);
                ClientError::Busy { status: status(code), text, retry_after }
            }
            (code, None) => ClientError::Refused { status: status(code), text },
        };
        if is_closing {
            let no_reply = Some(error.into());
            return Ok(Answer { no_reply, is_closing, ..Answer::default() });
        }
        Err(error)
    }
}

/// The status that HTTP has for the code word of an error. docs/protocol.md, section 8.
fn status(code: &str) -> u16 {
    match code {
        "key_needed" | "wrong_key" | "wrong_ticket" => 401,
        "not_granted" | "foreign_origin" => 403,
        "no_such_topic" | "no_such_group" | "unknown_sid" => 404,
        "sid_in_use" => 409,
        "payload_too_large" => 413,
        "encoded_lines" => 415,
        "too_many_messages" | "too_many_leases" | "too_many_groups" | "too_many_requests" => 429,
        "message_headers_too_large" => 431,
        "not_supported" => 501,
        "engine_denied" => 502,
        "engine_timeout" => 504,
        "topic_full" | "disk_full" | "engine_full" => 507,
        "too_many_topics"
        | "bus_full"
        | "too_many_subscriptions"
        | "too_much_in_flight"
        | "closed"
        | "store_busy"
        | "store_failed"
        | "engine_unavailable"
        | "engine_busy" => 503,
        _ => 400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_ignored() {
        for line in [r#"{"op":"news","x":[]}"#, r#"{"op":"news","id":"a","of":1.5}"#] {
            assert!(matches!(Incoming::read(line), Ok(Incoming::Unknown)), "{line}");
        }
        let pong = r#"{"op":"pong","rid":7,"x":{"y":1}}"#;
        let Ok(Incoming::Answer { rid: Some(7), answer: Ok(_) }) = Incoming::read(pong) else {
            panic!("a pong with a new field");
        };
    }

    #[test]
    fn a_refusal_is_the_error_of_http() {
        let error = |line: &str| match Incoming::read(line) {
            Ok(Incoming::Answer { answer: Err(error), .. }) => error,
            other => panic!("{other:?}"),
        };
        let full = error(r#"{"op":"error","rid":7,"of":"pub","code":"topic_full","text":"full"}"#);
        assert!(matches!(full, ClientError::Refused { status: 507, .. }), "{full}");
        let busy = error(r#"{"op":"error","code":"bus_full","text":"full","retry_after":2}"#);
        assert!(
            matches!(busy, ClientError::Busy { retry_after, .. } if retry_after.as_secs() == 2)
        );
        let lost = error(r#"{"op":"error","rid":7,"of":"ack","code":"lease_lost","text":"over"}"#);
        assert!(matches!(lost, ClientError::LeaseLost));
    }

    #[test]
    fn a_line_that_lacks_a_field_is_an_error() {
        for line in
            [r#"{"op":"msg","sid":1,"id":2}"#, r#"{"op":"gap","missed":1,"next_id":2}"#, "x"]
        {
            assert!(Incoming::read(line).is_err(), "{line}");
        }
    }
}
