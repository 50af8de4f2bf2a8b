//! `POST /-/ack`, `/-/nack` and `/-/extend`: settle leases, one by its token in the path, or many in the body.
//! docs/protocol.md, section 14.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use hyper::{Request, StatusCode, body::Incoming};
use memchr::memchr_iter;
use msgbus_core::{LeaseOptions, LeaseToken, Settlement, json};
use tokio::task::yield_now;

use super::{
    body, error::ApiError, lease, messages, names::MSGBUS_LEASE_EXPIRES, query::Query,
    response::HttpResponse, response::content, response::empty, response::no_store,
};
use crate::{
    code::Code,
    service::{
        Call,
        lease::shortened,
        parameters::{DELAYS, MAX_SETTLED},
    },
};

/// The maximum size of a body, in bytes. That many of the longest tokens are smaller.
const MAX_BODY: usize = 4 << 20;
/// The number of lines that are read or written before the task yields to other requests.
const LINES_AT_ONCE: usize = 1024;

/// What is done with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Ack,
    Nack,
    Extend,
}

impl Verb {
    /// The verb of a path.
    pub(super) fn of(segment: &str) -> Option<Self> {
        match segment {
            "ack" => Some(Self::Ack),
            "nack" => Some(Self::Nack),
            "extend" => Some(Self::Extend),
            _ => None,
        }
    }

    fn settlement(self, query: Query) -> Result<Settlement, ApiError> {
        Ok(match self {
            Self::Ack => {
                query.only(&[])?;
                Settlement::Ack
            }
            Self::Nack => {
                let query = query.only(&["delay", "reason"])?;
                let delay = query.duration("delay", DELAYS)?.unwrap_or_default();
                Settlement::Nack { delay, reason: query.get("reason")?.map(Box::from) }
            }
            Self::Extend => {
                let query = query.only(&["lease"])?;
                let lease = lease::duration(&query)?;
                Settlement::Extend { lease: lease.unwrap_or(LeaseOptions::default().lease) }
            }
        })
    }
}

/// Settles one lease.
pub(super) async fn one(
    call: &Call<'_>,
    verb: Verb,
    token: &LeaseToken,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let expires = call.settle(token, verb.settlement(query)?).await?;
    let mut response = empty(StatusCode::NO_CONTENT);
    set_expires(&mut response, expires);
    Ok(response)
}

/// Says when the lease ends that was extended, or the first of them.
fn set_expires(response: &mut HttpResponse, expires: Option<DateTime<Utc>>) {
    if let Some(expires) = expires {
        messages::set(response.headers_mut(), MSGBUS_LEASE_EXPIRES, json::format_time(expires));
    }
}

/// Settles many leases. The response names those that were not settled.
pub(super) async fn many(
    call: &Call<'_>,
    verb: Verb,
    request: &mut Request<Incoming>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let settlement = verb.settlement(query)?;
    let received = body::receive(call.worker, request, MAX_BODY).await;
    let (body, _in_flight) = received.map_err(|error| match error {
        ApiError::PayloadTooLarge { .. } => ApiError::TooManyTokens { limit: MAX_SETTLED },
        error => error,
    })?;
    let text = match str::from_utf8(&body) {
        Ok(text) => Cow::Borrowed(text),
        // What is not UTF-8 is not a token, and is reported as such.
        Err(_) => String::from_utf8_lossy(&body),
    };
    let Lines { texts, tokens, mut unsettled } = read(&text).await?;
    let settled = call.settle_all(tokens, settlement).await?;
    unsettled.extend(settled.unsettled);
    unsettled.sort_unstable_by_key(|(number, _)| *number);
    let mut body = Vec::new();
    for (count, (number, code)) in unsettled.into_iter().enumerate() {
        if count % LINES_AT_ONCE == LINES_AT_ONCE - 1 {
            yield_now().await;
        }
        let text = match code {
            Code::InvalidLease => Cow::Owned(shortened(texts[number])),
            _ => Cow::Borrowed(texts[number]),
        };
        json::write_unsettled(&mut body, &text, code.word());
        body.push(b'\n');
    }
    let mut response = content(call.worker, "application/x-ndjson", body);
    set_expires(&mut response, settled.expires);
    no_store(&mut response);
    Ok(response)
}

/// What the lines of a body say.
struct Lines<'a> {
    texts: Vec<&'a str>,
    /// The tokens, with the numbers of their lines.
    tokens: Vec<(usize, LeaseToken)>,
    /// The numbers of the lines that are not tokens.
    unsettled: Vec<(usize, Code)>,
}

/// Reads all lines before anything is settled.
async fn read(text: &str) -> Result<Lines<'_>, ApiError> {
    // Also bounds the empty ones, which are skipped without a yield.
    let count = memchr_iter(b'\n', text.as_bytes()).count();
    if count > MAX_SETTLED {
        return Err(ApiError::TooManyTokens { limit: MAX_SETTLED });
    }
    let mut read = Lines {
        texts: Vec::with_capacity(count + 1),
        tokens: Vec::with_capacity(count + 1),
        unsettled: Vec::new(),
    };
    for (number, (line, token)) in LeaseToken::parse_lines(text).enumerate() {
        if number == MAX_SETTLED {
            return Err(ApiError::TooManyTokens { limit: MAX_SETTLED });
        }
        if number % LINES_AT_ONCE == LINES_AT_ONCE - 1 {
            yield_now().await;
        }
        read.texts.push(line);
        match token {
            Ok(token) => read.tokens.push((number, token)),
            Err(_) => read.unsettled.push((number, Code::InvalidLease)),
        }
    }
    if read.texts.is_empty() { Err(ApiError::NoTokens) } else { Ok(read) }
}
