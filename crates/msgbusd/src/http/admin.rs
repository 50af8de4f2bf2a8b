//! `/metrics`, `/healthz` and what is under `/-/`: for those who look after the daemon.
//! docs/protocol.md, section 10.

use std::sync::Arc;

use hyper::StatusCode;
use msgbus_core::json;

use super::{Answer, App, READ_METHODS, content, error::Refusal, no_store, topic_name};

pub(super) fn metrics(app: &Arc<App>) -> Answer {
    let body = app.metrics.render(&app.bus, app.config.max_metric_topics);
    let mut answer = content("text/plain; version=0.0.4; charset=utf-8", body);
    no_store(&mut answer);
    answer
}

pub(super) fn health(app: &Arc<App>) -> Answer {
    let draining = app.tasks.drain.is_cancelled();
    let text = if draining { "draining\n" } else { "ok\n" };
    let mut answer = content("text/plain; charset=utf-8", text);
    if draining {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    no_store(&mut answer);
    answer
}

/// `/-/stats` and `/-/topics/<topic>`: the books as JSON.
pub(super) fn inspect(app: &Arc<App>, path: &str, is_read: bool) -> Result<Answer, Refusal> {
    let mut body = Vec::new();
    if path == "/-/stats" {
        json::write_stats(&mut body, &app.bus.stats());
    } else if let Some(topic) = path.strip_prefix("/-/topics/") {
        let topic = topic_name(topic)?;
        let missing = || Refusal::NoSuchTopic(topic.clone());
        let stats = app.bus.topic(&topic).ok_or_else(missing)?;
        json::write_topic(&mut body, &stats, &app.bus.subscribers(&topic));
    } else {
        return Err(Refusal::NothingHere);
    }
    if !is_read {
        return Err(Refusal::Method { allow: READ_METHODS });
    }
    let mut answer = content("application/json", body);
    no_store(&mut answer);
    Ok(answer)
}
