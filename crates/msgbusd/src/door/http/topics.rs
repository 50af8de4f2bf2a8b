//! `GET /`, `HEAD /<topic>`, `DELETE /<topic>`: operations on whole topics. docs/protocol.md, section 7.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use hyper::{
    Request, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use msgbus_core::{
    TopicName, TopicSums,
    engine::{EngineStats, EngineTopics},
    json,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    error::ApiError, names, negotiate::accepts, query::Query, response, response::HttpResponse,
    response::content, response::empty, response::no_store,
};
use crate::{
    auth::{Principal, Target},
    limits::inflight::Inflight,
    service::{
        self, Call,
        error::ServiceError,
        topics::{Deletion, EngineTopic, TopicView},
    },
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
    let mut page = Page {
        prefix: query.get("prefix")?.unwrap_or_default().to_owned(),
        after: query.get("after")?.unwrap_or_default().to_owned(),
        max: query.count("max")?.unwrap_or(MAX_PAGE).min(MAX_PAGE),
        as_json: accepts(request.headers(), "application/json"),
        small: Inflight::small(request.version()),
        principal: call.principal,
        in_engines: EngineTopics::default(),
    };
    let worker = Arc::clone(call.worker);
    if worker.engines.is_some() {
        let Page { prefix, after, max, principal, .. } = &page;
        let listing =
            service::topics::engine_names(&worker, principal.as_deref(), prefix, after, *max);
        page.in_engines = listing.await?;
    }
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
    /// The first topics of the page that live in engines.
    in_engines: EngineTopics,
}

impl Page {
    fn response(&self, app: &App) -> Result<HttpResponse, ApiError> {
        let Self { prefix, after, max, .. } = self;
        let (mut names, mut more) =
            service::topics::names(app, self.principal.as_deref(), prefix, after, *max);
        let EngineTopics { topics: in_engines, has_more } = &self.in_engines;
        if *has_more || !in_engines.is_empty() {
            names.extend(in_engines.iter().map(|(name, _)| name.clone()));
            names.sort_unstable();
            more |= *has_more || names.len() > *max;
            names.truncate(*max);
        }
        if names.len() * MAX_ENTRY > self.small && app.inflight.is_full() {
            return Err(ServiceError::TooMuchInFlight.into());
        }
        let mut response = if self.as_json {
            content(app, "application/json", self.objects(app, &names))
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

    /// The topics as JSON: those of this server with their counters, others with what their engines say.
    fn objects(&self, app: &App, names: &[TopicName]) -> Vec<u8> {
        let mut body = Vec::new();
        let topics: Vec<_> = names.iter().filter_map(|name| app.bus.topic(name)).collect();
        json::write_topics(&mut body, &topics);
        let shown = |(name, _): &&(TopicName, u64)| names.binary_search(name).is_ok();
        let in_engines: Vec<_> = self.in_engines.topics.iter().filter(shown).collect();
        if in_engines.is_empty() {
            return body;
        }
        // Behind the others, in the same object.
        body.pop();
        for (name, retained) in in_engines {
            let engine = app.bus.engine_of(name);
            let engine = engine.as_ref().map_or("", |engine| app.engine_name(engine));
            if body.len() > 1 {
                body.push(b',');
            }
            let object = serde_json::json!({
                "name": name.as_str(), "engine": engine, "retained": retained,
            });
            let key = serde_json::Value::from(name.as_str());
            body.extend_from_slice(format!("{key}:{object}").as_bytes());
        }
        body.push(b'}');
        body
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
            let sums = service::topics::sums(call, pattern).await?;
            return Ok(as_headers([(names::MSGBUS_TOPICS, sums.topics as u64)], &sums));
        }
    };
    let stats = match call.topic(&topic).await? {
        TopicView::Own(stats) => stats,
        TopicView::Engine(topic) => return Ok(in_engine(&topic)),
    };
    let position = [
        (names::MSGBUS_EPOCH, stats.topic.epoch),
        (names::MSGBUS_FIRST_ID, stats.first_id),
        (names::MSGBUS_NEXT_ID, stats.next_id),
    ];
    Ok(as_headers(position, &TopicSums::of(&stats)))
}

/// What an engine knows of a topic. It has no counters of the past.
fn in_engine(topic: &EngineTopic) -> HttpResponse {
    let EngineStats { epoch, retained, first, next } = topic.stats;
    let mut response = empty(StatusCode::OK);
    for (name, value) in [
        (names::MSGBUS_EPOCH, epoch),
        (names::MSGBUS_FIRST_ID, first),
        (names::MSGBUS_NEXT_ID, next),
        (names::MSGBUS_RETAINED, retained),
        (names::MSGBUS_SUBSCRIBERS, topic.subscribers() as u64),
    ] {
        response.headers_mut().insert(name, response::number(value));
    }
    no_store(&mut response);
    response
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
