//! `/metrics` and `/healthz`: for those who look after the daemon. docs/operations.md.

use std::sync::Arc;

use hyper::StatusCode;

use super::{Answer, App, content, no_store};

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
