//! Settling leases: acknowledge, give back, extend. docs/protocol.md, section 14.

use std::{mem, time::Duration};

use chrono::{DateTime, Utc};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use msgbus_core::{LeaseToken, Settlement, format_duration, json};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::{
    backoff::Backoff,
    client::Client,
    error::ClientError,
    transport::{RESPONSE_TIMEOUT, buffered_body},
};

pub(crate) fn action(settlement: &Settlement) -> &'static str {
    match settlement {
        Settlement::Ack => "ack",
        Settlement::Nack { .. } => "nack",
        Settlement::Extend { .. } => "extend",
    }
}

fn query(settlement: &Settlement) -> String {
    match settlement {
        Settlement::Ack => String::new(),
        Settlement::Nack { delay, reason } => {
            let reason = reason.as_deref().map_or(String::new(), |reason| {
                format!("&reason={}", utf8_percent_encode(cut(reason), NON_ALPHANUMERIC))
            });
            format!("delay={}{reason}", format_duration(*delay))
        }
        Settlement::Extend { lease } => format!("lease={}", format_duration(*lease)),
    }
}

/// The part of a reason that the server keeps, cut at a character.
pub(crate) fn cut(reason: &str) -> &str {
    let ends = reason.char_indices().map(|(start, c)| start + c.len_utf8());
    let end = ends.take_while(|end| *end <= LeaseToken::MAX_REASON).last();
    &reason[..end.unwrap_or_default()]
}

/// A lease that was not settled, one of many.
#[derive(Debug)]
pub struct Unsettled {
    /// Its token.
    pub token: LeaseToken,
    /// Why: [`ClientError::LeaseLost`], [`ClientError::Unconfirmed`], or the refusal of the server.
    pub error: ClientError,
}

/// A line of the response to a request with many tokens.
#[derive(Deserialize)]
struct UnsettledIn {
    lease: String,
    error: String,
}

impl Client {
    /// The maximum number of tokens in one request.
    const MAX_TOKENS: usize = 10_000;
    /// The time limit for one of several attempts.
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

    /// Settles a lease. Returns when the lease is over now, by the server's clock, if it was extended.
    ///
    /// # Errors
    /// [`ClientError::LeaseLost`] if the lease is over; see [`ClientError`] for others. After
    /// [`ClientError::Lost`] the server may have settled it: the connection broke before its response
    /// arrived.
    pub async fn settle(
        &self,
        token: &LeaseToken,
        settlement: &Settlement,
    ) -> Result<Option<DateTime<Utc>>, ClientError> {
        self.settle_once(token, settlement, RESPONSE_TIMEOUT).await
    }

    /// Settles a lease, and tries again for the time `within` while the server cannot be reached, is
    /// busy, or its response is lost. An attempt that is waiting for its response at the end may take
    /// a second longer.
    ///
    /// # Errors
    /// The last error, see [`settle`](Self::settle). [`ClientError::Unconfirmed`] if the lease is
    /// over, and an attempt whose response was lost may have settled it.
    pub async fn settle_within(
        &self,
        token: &LeaseToken,
        settlement: &Settlement,
        within: Duration,
    ) -> Result<Option<DateTime<Utc>>, ClientError> {
        let attempt = |limit| self.settle_once(token, settlement, limit);
        Retry::within(within).repeat(attempt).await
    }

    async fn settle_once(
        &self,
        token: &LeaseToken,
        settlement: &Settlement,
        limit: Duration,
    ) -> Result<Option<DateTime<Utc>>, ClientError> {
        let response = self.post(settlement, &token.to_string(), String::new(), limit).await?;
        match response.status() {
            StatusCode::NO_CONTENT => {
                let expires = response.headers().get("msgbus-lease-expires");
                Ok(expires.and_then(|time| time.to_str().ok()?.parse().ok()))
            }
            StatusCode::GONE => Err(ClientError::LeaseLost),
            _ => Err(self.refusal(response).await),
        }
    }

    /// Settles many leases alike, with as few requests as possible, and returns those that were not
    /// settled. Tries again for the time `within`, see [`settle_within`](Self::settle_within).
    ///
    /// # Errors
    /// See [`ClientError`]. Some of the leases may have been settled.
    pub async fn settle_all(
        &self,
        tokens: &[LeaseToken],
        settlement: &Settlement,
        within: Duration,
    ) -> Result<Vec<Unsettled>, ClientError> {
        let mut retry = Retry::within(within);
        let mut unsettled = Vec::new();
        for tokens in tokens.chunks(Self::MAX_TOKENS) {
            let answer = retry.repeat(|limit| self.settle_many(tokens, settlement, limit)).await?;
            let is_uncertain = mem::take(&mut retry.is_uncertain);
            for UnsettledIn { lease, error } in answer {
                let error = match &*error {
                    "lease_lost" if is_uncertain => ClientError::Unconfirmed,
                    "lease_lost" => ClientError::LeaseLost,
                    "not_granted" => ClientError::Refused { status: 403, text: error },
                    _ => ClientError::Refused { status: 400, text: error },
                };
                let token = lease.parse().map_err(|wrong| self.not_msgbus(&format!("{wrong}")))?;
                unsettled.push(Unsettled { token, error });
            }
        }
        Ok(unsettled)
    }

    async fn settle_many(
        &self,
        tokens: &[LeaseToken],
        settlement: &Settlement,
        limit: Duration,
    ) -> Result<Vec<UnsettledIn>, ClientError> {
        let mut lines = String::new();
        for token in tokens {
            lines.push_str(&format!("{token}\n"));
        }
        let response = self.post(settlement, "", lines, limit).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT => return Ok(Vec::new()),
            _ => return Err(self.refusal(response).await),
        }
        let body = self.body(response).await?;
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let read = |line| serde_json::from_slice(line);
        lines
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(|error| self.not_msgbus(&format!("invalid JSON: {}", json::brief(&error))))
    }

    async fn post(
        &self,
        settlement: &Settlement,
        token: &str,
        body: String,
        limit: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        let uri = self.server().settlement(action(settlement), token, &query(settlement));
        let mut request = Request::builder().method(Method::POST).uri(uri);
        if !body.is_empty() {
            request = request.header(hyper::header::CONTENT_TYPE, "text/plain");
        }
        self.send_payload(request, buffered_body(body.into()), limit).await
    }
}

/// Repeats a request that may be repeated.
pub(crate) struct Retry {
    until: Instant,
    backoff: Backoff,
    /// Whether the server may have processed an attempt.
    is_uncertain: bool,
}

impl Retry {
    /// The longest pause: a server that is back has to be noticed before a lease is over.
    const MAX_PAUSE: Duration = Duration::from_secs(2);

    pub(crate) fn within(time: Duration) -> Self {
        let now = Instant::now();
        // Times that are too long for the clock end in a year.
        let until = now.checked_add(time).unwrap_or(now + Duration::from_secs(365 * 86_400));
        Self { until, backoff: Backoff::default(), is_uncertain: false }
    }

    /// When there is no time left.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// The time limit of the next attempt.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        let left = self.until.saturating_duration_since(Instant::now());
        left.clamp(Duration::from_secs(1), Client::ATTEMPT_TIMEOUT)
    }

    /// Whether another attempt may help. A full disk may have room again, and proxies answer with 404 and 408 while their
    /// upstream is down.
    fn is_worthwhile(error: &ClientError) -> bool {
        let has_refused = |error: &ClientError| {
            matches!(error, ClientError::Refused { status: 404 | 408 | 507, .. })
        };
        error.is_temporary() || has_refused(error)
    }

    /// Makes attempts, each with its time limit, until one is successful.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub(crate) async fn repeat<T, F>(
        &mut self,
        mut attempt: impl FnMut(Duration) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        loop {
            match attempt(self.attempt_timeout()).await {
                Err(error) => self.pause(error).await?,
                done => return done,
            }
        }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// Returns the error of the last attempt if another one would not help or no time is left.
    pub(crate) async fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        match error {
            ClientError::LeaseLost if self.is_uncertain => return Err(ClientError::Unconfirmed),
            ClientError::ReplyNotWanted if self.is_uncertain => {
                return Err(ClientError::ReplyUnconfirmed);
            }
            _ => {}
        }
        if !Self::is_worthwhile(&error) {
            return Err(error);
        }
        let mut pause = self.backoff.next().min(Self::MAX_PAUSE);
        self.is_uncertain |= !matches!(error, ClientError::Connect { .. });
        if let ClientError::Busy { retry_after, .. } = &error {
            pause = pause.max(*retry_after);
        }
        if pause >= self.until.saturating_duration_since(Instant::now()) {
            return Err(error);
        }
        sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settlement_is_a_query() {
        let nack = |delay, reason: Option<&str>| Settlement::Nack {
            delay: Duration::from_millis(delay),
            reason: reason.map(Into::into),
        };
        for (settlement, word, text) in [
            (Settlement::Ack, "ack", String::new()),
            (nack(0, None), "nack", "delay=0s".to_owned()),
            (nack(1_500, Some("a&b=ö")), "nack", "delay=1s500ms&reason=a%26b%3D%C3%B6".to_owned()),
            // Cut at a character.
            (
                nack(0, Some(&format!("{}ö", "x".repeat(255)))),
                "nack",
                format!("delay=0s&reason={}", "x".repeat(255)),
            ),
            (
                Settlement::Extend { lease: Duration::from_secs(60) },
                "extend",
                "lease=1m".to_owned(),
            ),
        ] {
            assert_eq!((action(&settlement), query(&settlement)), (word, text));
        }
    }
}
