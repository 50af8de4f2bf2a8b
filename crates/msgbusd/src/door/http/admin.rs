//! `/metrics`, `/healthz` and `/-/`, for operators. docs/protocol.md, section 10.

use std::sync::Arc;

use hyper::{Method, Request, StatusCode};
use msgbus_core::{GroupStats, TopicName, TopicPattern, TopicStats, engine::EngineStats, json};

use super::{
    credentials, error::ApiError, head::Outline, response::HttpResponse, response::content,
    response::no_store, routes::AdminRoute,
};
use crate::{
    auth::{Principal, TICKET_LIFETIME, Target, TooManyTickets},
    engines::Engines,
    metrics,
    service::{
        self, Call,
        error::ServiceError,
        topics::{EngineTopic, TopicView},
    },
    state::App,
    worker::Worker,
};

/// Up to this number of subscribers and groups, the response is small.
const FEW: usize = 12;

/// Answers a request of an operator.
pub(super) async fn answer<B>(
    call: Call<'_>,
    route: AdminRoute,
    request: &Request<B>,
    outline: Outline,
) -> Result<HttpResponse, ApiError> {
    Ok(match route {
        AdminRoute::Metrics => metrics_page(call.worker).await,
        AdminRoute::Health => health(call.worker),
        AdminRoute::Ready => readiness(call.worker, || {
            credentials::is_operator(call.worker, call.peer, request, outline)
        }),
        AdminRoute::Stats => stats(call.worker).await,
        AdminRoute::Ticket => return ticket(call.worker, request, call.principal),
        AdminRoute::Inspect(Target::Topic(topic)) => return inspect(&call, topic).await,
        AdminRoute::Inspect(Target::Pattern(pattern)) => {
            return inspect_pattern(call, pattern).await;
        }
    })
}

async fn metrics_page(worker: &Arc<Worker>) -> HttpResponse {
    let app = Arc::clone(worker);
    worker.background.run(move || render(&app)).await
}

fn render(app: &App) -> HttpResponse {
    let (connections, subscriptions) = (&app.connections, &app.subscriptions);
    let inflight = app.inflight.quota();
    let gauges = [
        (
            "msgbus_server_connections_open",
            "Open connections, websockets included.",
            connections.in_use(),
        ),
        (
            "msgbus_server_connections_limit",
            "Maximum number of connections (--max-connections).",
            connections.limit(),
        ),
        ("msgbus_server_subscriptions", "Open websockets and streams.", subscriptions.used()),
        (
            "msgbus_server_subscriptions_limit",
            "Maximum number of subscriptions (--max-subscriptions).",
            subscriptions.limit(),
        ),
        (
            "msgbus_server_inflight_bytes",
            "Bytes of request bodies, responses and frames in flight.",
            inflight.used(),
        ),
        (
            "msgbus_server_inflight_bytes_limit",
            "Maximum number of bytes in flight (--max-inflight-bytes).",
            inflight.limit(),
        ),
    ];
    // The page is served also without free memory, but then without the series of topics, which can be large.
    let topics = if app.inflight.is_full() { 0 } else { app.config.max_metric_topics };
    let store = app.store.as_ref().map(|store| store.stats());
    let mut body = app.metrics.render(&app.bus, store.as_ref(), &gauges, topics);
    if let Some(engines) = &app.engines {
        body.push_str(&metrics::engines::render(&app.bus, engines, topics));
    }
    let mut response = content(app, "text/plain; version=0.0.4; charset=utf-8", body);
    no_store(&mut response);
    response
}

fn health(worker: &Worker) -> HttpResponse {
    let draining = worker.tasks.stop.is_draining();
    let text = if draining { "draining\n" } else { "ok\n" };
    let mut response = content(worker, "text/plain; charset=utf-8", text);
    if draining {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    no_store(&mut response);
    response
}

/// `/readyz`: whether the server can keep messages, on its disk and in its engines. Why it cannot is for operators.
fn readiness(worker: &Worker, is_operator: impl FnOnce() -> bool) -> HttpResponse {
    let has_failed = worker.store.as_ref().is_some_and(|store| store.stats().failure.is_some());
    let down = worker.engines.as_ref().and_then(Engines::down);
    let problem = match down {
        _ if has_failed => "the disk has failed\n".to_owned(),
        Some((name, problem)) if is_operator() => {
            format!("the engine {name} cannot be used: {problem}\n")
        }
        Some((name, _)) => format!("the engine {name} cannot be used\n"),
        None => return health(worker),
    };
    let mut response = content(worker, "text/plain; charset=utf-8", problem);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    no_store(&mut response);
    response
}

/// `/-/stats`: the counters of the whole bus, as JSON.
async fn stats(worker: &Arc<Worker>) -> HttpResponse {
    let app = Arc::clone(worker);
    let stats = worker.background.run(move || app.bus.stats()).await;
    let mut body = Vec::new();
    json::write_stats(&mut body, &stats);
    object(worker, body)
}

/// `/-/topics/<topic>`: the counters of a topic, its subscriptions and its groups.
async fn inspect(call: &Call<'_>, topic: TopicName) -> Result<HttpResponse, ApiError> {
    let worker = call.worker;
    let stats = match call.topic(&topic).await? {
        TopicView::Own(stats) => stats,
        TopicView::Engine(topic) => return Ok(engine_topic_object(worker, &topic)),
    };
    let groups = worker.bus.groups(&topic);
    if stats.subscribers + groups.len() <= FEW {
        return Ok(topic_object(worker, &stats, &groups));
    }
    if worker.inflight.is_full() {
        return Err(ServiceError::TooMuchInFlight.into());
    }
    let app = Arc::clone(worker);
    Ok(worker.background.run(move || topic_object(&app, &stats, &groups)).await)
}

/// `/-/topics/<pattern>`: the sums of the counters of all topics that match and that the client may inspect.
async fn inspect_pattern(call: Call<'_>, pattern: TopicPattern) -> Result<HttpResponse, ApiError> {
    let worker = Arc::clone(call.worker);
    let followers = worker.bus.pattern(&pattern).map_or(0, |stats| stats.subscribers.len());
    let mut body = Vec::new();
    let name = pattern.to_string();
    json::write_sums(&mut body, &name, &service::topics::sums(call, pattern).await?, followers);
    Ok(object(&worker, body))
}

/// What an engine knows of a topic, and the window of this server.
fn engine_topic_object(app: &App, topic: &EngineTopic) -> HttpResponse {
    let EngineStats { epoch, retained, first, next } = topic.stats;
    let window = topic.window.as_ref().map(|window| {
        serde_json::json!({
            "retained": window.retained,
            "bytes": window.bytes,
            "next_id": window.next,
            "pending": window.pending,
            "stalled": window.stalled.is_some(),
        })
    });
    let body = serde_json::json!({
        "name": topic.name.as_str(),
        "engine": topic.engine,
        "epoch": epoch.to_string(),
        "first_id": first,
        "next_id": next,
        "retained": retained,
        "subscribers": topic.subscribers(),
        "window": window,
    });
    object(app, body.to_string().into_bytes())
}

fn topic_object(app: &App, stats: &TopicStats, groups: &[GroupStats]) -> HttpResponse {
    let mut body = Vec::new();
    json::write_topic(&mut body, stats, &app.bus.subscribers(&stats.topic.name), groups);
    object(app, body)
}

/// `/-/ticket`: creates a ticket, which stands for the client's key in one URL, once. docs/protocol.md, section 13.6.
fn ticket<B>(
    app: &App,
    request: &Request<B>,
    principal: Option<Arc<Principal>>,
) -> Result<HttpResponse, ApiError> {
    let (Some(keyring), Some(principal)) = (&app.keyring, principal) else {
        return Err(ApiError::NothingHere);
    };
    if request.method() != Method::POST {
        return Err(ApiError::Method { allow: "POST" });
    }
    let ticket =
        keyring.open_ticket(principal).map_err(|TooManyTickets| ServiceError::TooManyTickets)?;
    let body = serde_json::json!({ "ticket": ticket, "expires_in": TICKET_LIFETIME.as_secs() });
    Ok(object(app, body.to_string().into_bytes()))
}

fn object(app: &App, body: Vec<u8>) -> HttpResponse {
    let mut response = content(app, "application/json", body);
    no_store(&mut response);
    response
}
