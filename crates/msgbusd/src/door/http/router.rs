//! Routes each request to exactly one handler.

use std::sync::Arc;

use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use tracing::{Level, debug, enabled};

use super::{
    activity::ConnectionActivity,
    admin, credentials,
    error::{self, ApiError},
    groups,
    head::{self, Outline},
    lease, origin, publish, pull,
    query::Query,
    requests,
    response::{HttpResponse, empty},
    routes::{self, Route, ServiceRoute},
    settle, stream, topics, websocket,
};
use crate::{
    code::Code,
    net::peer::Peer,
    service::{Authority, Call},
    state::App,
    worker::Worker,
};

/// Answers one request. All functions below borrow the request: an async fn that took it by value would store it
/// twice, and hyper keeps that memory for as long as the connection is open.
pub(crate) async fn handle(
    worker: &Arc<Worker>,
    peer: Peer,
    activity: &ConnectionActivity,
    request: &mut Request<Incoming>,
) -> HttpResponse {
    worker.request();
    let app: &App = worker;
    let outline = Outline::of(request.headers());
    let checked = head::check(request, outline, peer)
        .and_then(|()| origin::check(request, outline, peer, &app.config));
    let source = match checked {
        Ok(source) => source,
        Err(refusal) => return refuse(app, &refusal, peer, request),
    };
    let mut response = if request.method() == Method::OPTIONS && source != origin::Source::Own {
        let mut response = empty(StatusCode::NO_CONTENT);
        source.preflight(response.headers_mut());
        response
    } else {
        let routed = route(worker, peer, activity, request, outline).await;
        routed.unwrap_or_else(|refusal| refuse(app, &refusal, peer, request))
    };
    source.share(response.headers_mut());
    if !app.config.allowed_origins.is_empty() {
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// The HTTP/2 response to a request with too many headers. In HTTP/1.1, hyper sends it.
pub(crate) fn too_many_headers(worker: &Worker) -> HttpResponse {
    worker.request();
    empty(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
}

/// The response to an HTTP/2 request for which there is not enough memory. It has no body, which would need memory.
pub(crate) fn no_memory_for_request(worker: &Worker) -> HttpResponse {
    worker.request();
    worker.metrics.refusal(Code::TooMuchInFlight);
    let mut response = empty(StatusCode::SERVICE_UNAVAILABLE);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn refuse(app: &App, refusal: &ApiError, peer: Peer, request: &Request<Incoming>) -> HttpResponse {
    app.metrics.refusal(refusal.code());
    if enabled!(Level::DEBUG) {
        // The query is not logged: it may have a ticket, or a key by mistake.
        let (path, refusal) = (routes::log_path(request.uri().path()), refusal.log_text());
        debug!(%peer, method = %request.method(), path, refusal, "refused");
    }
    refusal.response(error::prefers_json(request.headers()))
}

async fn route(
    worker: &Arc<Worker>,
    peer: Peer,
    activity: &ConnectionActivity,
    request: &mut Request<Incoming>,
    outline: Outline,
) -> Result<HttpResponse, ApiError> {
    let app: &App = worker;
    let query = Query::of(request);
    let route = Route::of(request, &query)?;
    // Permissions are checked before the body is read, and whether or not the topic exists.
    let principal = credentials::admit(app, peer, &route, request, &query, outline)?;
    if matches!(route, Route::Pull(_) | Route::Lease(..) | Route::Service(ServiceRoute::Serve(_))) {
        origin::may_take(request)?;
    }
    let call = Call { worker, peer, principal, authority: Authority::Own };
    match route {
        Route::Publish(topic) => publish::publish(&call, &topic, request, query, outline).await,
        Route::Pull(topic) => pull::pull(&call, activity, &topic, request, query).await,
        Route::Lease(topic, group) => {
            Box::pin(lease::lease(&call, activity, &topic, &group, request, query)).await
        }
        Route::Settle(verb, token) => settle::one(&call, verb, &token, query).await,
        Route::Peek(topic) => pull::peek(&call, &topic, request, query).await,
        Route::Websocket(target) => websocket::subscribe(call, &target, request, query).await,
        Route::Connect => websocket::connect(&call, request, query),
        Route::Stream(target, format) => {
            stream::stream(call, activity, &target, request, query, format).await
        }
        Route::Counters(target) => Box::pin(topics::counters(call, target, query)).await,
        Route::Delete(topic) => Box::pin(topics::delete(&call, &topic, query)).await,
        // Rare and large futures are boxed, so that other requests need less memory.
        Route::SettleMany(verb) => Box::pin(settle::many(&call, verb, request, query)).await,
        Route::PeekGroup(topic, group) => {
            Box::pin(lease::peek(&call, &topic, &group, request, query)).await
        }
        Route::Group(verb, topic, group) => {
            Box::pin(groups::answer(&call, verb, &topic, &group, query)).await
        }
        Route::Service(route) => {
            Box::pin(requests::answer(&call, activity, route, request, query, outline)).await
        }
        Route::List => Box::pin(topics::list(call, request, query)).await,
        Route::Admin(route) => Box::pin(admin::answer(call, route, request, outline)).await,
    }
}
