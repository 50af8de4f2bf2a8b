//! `GET /`, `HEAD /<topic>`, `DELETE /<topic>`: topics as wholes. docs/protocol.md, section 7.

use std::sync::Arc;

use hyper::{
    Request, StatusCode,
    header::{self, HeaderValue},
};
use msgbus_core::{TopicName, json};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tracing::debug;

use super::{
    Answer, App, accepts, answers, content, empty, error::Refusal, names, no_store, query,
};
use crate::{
    inflight::Inflight,
    keys::{Action, Caller, Need},
    peer::Peer,
    worker::Worker,
};

/// The most topics in one listing.
const PAGE: usize = 10_000;
/// Of one topic, whatever is told of it, in bytes.
const MOST_OF_ONE: usize = 1 << 10;
/// What a GET of a topic may have. A HEAD answers the same whatever they say.
const OF_GET: &[&str] =
    &["raw", "max", "wait", "peek", "stream", "since", "index", "lag", "gaps", "ticket"];

/// Names, one a line; or objects with counters, for those who accept JSON. Only those that the caller may
/// inspect, where there are keys.
pub(super) async fn list<B>(
    worker: &Arc<Worker>,
    request: &Request<B>,
    caller: Option<Arc<Caller>>,
) -> Result<Answer, Refusal> {
    let query = query(request).only(&["prefix", "after", "max"])?;
    let page = Page {
        prefix: query.get("prefix")?.unwrap_or_default().to_owned(),
        after: query.get("after")?.unwrap_or_default().to_owned(),
        max: query.count("max")?.unwrap_or(PAGE).min(PAGE),
        as_json: accepts(request.headers(), "application/json"),
        small: Inflight::small(request.version()),
        caller,
    };
    let on_it = Arc::clone(worker);
    worker.background.run(move || page.answer(&on_it)).await
}

/// A part of all topics that is asked for.
struct Page {
    prefix: String,
    after: String,
    max: usize,
    as_json: bool,
    /// What is not counted as in flight, in bytes.
    small: usize,
    caller: Option<Arc<Caller>>,
}

impl Page {
    fn answer(&self, app: &App) -> Result<Answer, Refusal> {
        let (names, more) = self.names(app);
        if names.len() * MOST_OF_ONE > self.small && app.inflight.is_full() {
            return Err(Refusal::TooMuchInFlight);
        }
        let mut answer = if self.as_json {
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
            answer.headers_mut().insert(header::LINK, link);
        }
        no_store(&mut answer);
        Ok(answer)
    }

    /// The names of the page, and whether there are more after them.
    fn names(&self, app: &App) -> (Vec<TopicName>, bool) {
        let may_inspect = |name: &TopicName| {
            let need = Need::Topic(Action::Inspect, name);
            self.caller.as_ref().is_none_or(|caller| caller.may(need))
        };
        let mut page = app.bus.topic_page(&self.prefix, &self.after, self.max);
        while page.step(may_inspect) {}
        page.into_names()
    }

    /// Where the page after this one is.
    fn next(&self, last: &TopicName) -> Option<HeaderValue> {
        let escape = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let (prefix, after) = (escape(&self.prefix), escape(last.as_str()));
        let max = self.max;
        let link = format!("</?prefix={prefix}&after={after}&max={max}>; rel=\"next\"");
        HeaderValue::try_from(link).ok()
    }
}

/// The counters of one topic, as headers.
pub(super) fn counters<B>(
    app: &App,
    topic: &TopicName,
    request: &Request<B>,
) -> Result<Answer, Refusal> {
    query(request).only(OF_GET)?;
    let stats = app.bus.topic(topic).ok_or_else(|| Refusal::NoSuchTopic(topic.clone()))?;
    let counters = stats.counters;
    let mut answer = empty(StatusCode::OK);
    for (name, value) in [
        (names::MSGBUS_EPOCH, stats.topic.epoch),
        (names::MSGBUS_FIRST_ID, stats.first_id),
        (names::MSGBUS_NEXT_ID, stats.next_id),
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
    ] {
        answer.headers_mut().insert(name, answers::number(value));
    }
    no_store(&mut answer);
    Ok(answer)
}

pub(super) fn delete<B>(
    app: &App,
    peer: Peer,
    topic: &TopicName,
    request: &Request<B>,
) -> Result<Answer, Refusal> {
    query(request).only(&[])?;
    if !app.bus.delete(topic) {
        return Err(Refusal::NoSuchTopic(topic.clone()));
    }
    debug!(%peer, %topic, "DELETE");
    Ok(empty(StatusCode::NO_CONTENT))
}
