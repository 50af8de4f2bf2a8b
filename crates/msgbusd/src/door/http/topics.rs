//! `GET /`, `HEAD /<topic>`, `DELETE /<topic>`: operations on whole topics. docs/protocol.md, section 7.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use hyper::{
    Request, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use msgbus_core::{TopicName, TopicSums, json};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    error::ApiError, names, negotiate::accepts, query::Query, response, response::HttpResponse,
    response::content, response::empty, response::no_store,
};
use crate::{
    auth::{Principal, Target},
    limits::inflight::Inflight,
    service::{self, Call, error::ServiceError, topics::Deletion},
    state::App,
};

/// The maximum number of topics in one listing.
const MAX_PAGE: usize = 10_000;
/// The maximum size of the entry of one topic, in bytes.
const MAX_ENTRY: usize = 1 << 10;
/// The parameters of a GET of a topic. A HEAD accepts and ignores them.
const GET_PARAMETERS: &[&str] = &[
    "raw", "max", "wait", "peek", "group", "lease", "stream", "since", "index", "lag", "gaps",
    "ticket",
];

/// Lists topics: one name per line, or objects with counters for clients that accept JSON. If the server has keys, it
/// lists only topics that the principal may inspect.
pub(super) async fn list<B>(
    call: Call<'_>,
    request: &Request<B>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let query = query.only(&["prefix", "after", "max"])?;
    let page = Page {
        prefix: query.get("prefix")?.unwrap_or_default().to_owned(),
        after: query.get("after")?.unwrap_or_default().to_owned(),
        max: query.count("max")?.unwrap_or(MAX_PAGE).min(MAX_PAGE),
        as_json: accepts(request.headers(), "application/json"),
        small: Inflight::small(request.version()),
        principal: call.principal,
    };
    let worker = Arc::clone(call.worker);
    call.worker.background.run(move || page.response(&worker)).await
}

/// One page of the list of topics.
struct Page {
    prefix: String,
    after: String,
    max: usize,
    as_json: bool,
    /// The size up to which a response does not count as in flight, in bytes.
    small: usize,
    principal: Option<Arc<Principal>>,
}

impl Page {
    fn response(&self, app: &App) -> Result<HttpResponse, ApiError> {
        let Self { prefix, after, max, .. } = self;
        let (names, more) =
            service::topics::names(app, self.principal.as_deref(), prefix, after, *max);
        if names.len() * MAX_ENTRY > self.small && app.inflight.is_full() {
            return Err(ServiceError::TooMuchInFlight.into());
        }
        let mut response = if self.as_json {
            let topics: Vec<_> = names.iter().filter_map(|name| app.bus.topic(name)).collect();
            let mut body = Vec::new();
            json::write_topics(&mut body, &topics);
            content(app, "application/json", body)
        } else {
            let mut body = String::new();
            for name in &names {
                body.push_str(name.as_str());
                body.push('\n');
            }
            content(app, "text/plain; charset=utf-8", body)
        };
        if let Some(link) = names.last().filter(|_| more).and_then(|last| self.next(last)) {
            response.headers_mut().insert(header::LINK, link);
        }
        no_store(&mut response);
        Ok(response)
    }

    /// The link to the next page.
    fn next(&self, last: &TopicName) -> Option<HeaderValue> {
        let escape = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let (prefix, after) = (escape(&self.prefix), escape(last.as_str()));
        let max = self.max;
        let link = format!("</?prefix={prefix}&after={after}&max={max}>; rel=\"next\"");
        HeaderValue::try_from(link).ok()
    }
}

/// The counters of a topic, or of all topics that match a pattern and that the client may inspect, as headers.
pub(super) async fn counters(
    call: Call<'_>,
    target: Target,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    query.only(GET_PARAMETERS)?;
    let topic = match target {
        Target::Topic(topic) => topic,
        Target::Pattern(pattern) => {
            let sums = service::topics::sums(call, pattern).await;
            return Ok(as_headers([(names::MSGBUS_TOPICS, sums.topics as u64)], &sums));
        }
    };
    let stats = call.topic(&topic)?;
    let position = [
        (names::MSGBUS_EPOCH, stats.topic.epoch),
        (names::MSGBUS_FIRST_ID, stats.first_id),
        (names::MSGBUS_NEXT_ID, stats.next_id),
    ];
    Ok(as_headers(position, &TopicSums::of(&stats)))
}

fn as_headers(
    first: impl IntoIterator<Item = (HeaderName, u64)>,
    stats: &TopicSums,
) -> HttpResponse {
    let counters = stats.counters;
    let mut response = empty(StatusCode::OK);
    let sums = [
        (names::MSGBUS_RETAINED, stats.retained),
        (names::MSGBUS_UNPULLED, stats.unpulled),
        (names::MSGBUS_BYTES, stats.bytes),
        (names::MSGBUS_SUBSCRIBERS, stats.subscribers as u64),
        (names::MSGBUS_PUBLISHED, counters.published),
        (names::MSGBUS_PULLED, counters.pulled),
        (names::MSGBUS_DELIVERED, counters.delivered),
        (names::MSGBUS_MISSED, counters.missed),
        (names::MSGBUS_EXPIRED, counters.expired.total),
        (names::MSGBUS_EVICTED, counters.evicted.total),
    ];
    for (name, value) in first.into_iter().chain(sums) {
        response.headers_mut().insert(name, response::number(value));
    }
    no_store(&mut response);
    response
}

pub(super) async fn delete(
    call: &Call<'_>,
    topic: &TopicName,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    query.only(&[])?;
    Ok(deleted(call.worker, &call.delete(topic).await?))
}

/// The response for a topic that is gone.
fn deleted(app: &App, deletion: &Deletion) -> HttpResponse {
    match deletion {
        Deletion::Kept => empty(StatusCode::NO_CONTENT),
        Deletion::NotKept(error) => {
            let text = format!("deleted, but {error}: a restart may bring the topic back\n");
            let mut response = content(app, "text/plain; charset=utf-8", text);
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
    }
}
