//! `/-/request/<service>`, `/-/serve/<service>`, `/-/reply/<token>`, `/-/services`: requests to services and their
//! replies. docs/protocol.md, section 17.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use hyper::{Request as HttpRequest, StatusCode, body::Incoming};
use msgbus_core::{
    BatchLimit, Headers, NewRequest, PublishError, Reply, ReplyToken, Request, TopicName, json,
};
use tokio::time::interval;

use super::{
    activity::ConnectionActivity,
    body,
    error::ApiError,
    head::{HeaderScope, Outline, shed_head},
    message_headers, messages,
    names::{MSGBUS_REPLY, MSGBUS_TIMEOUT},
    pull,
    query::Query,
    response::{HttpResponse, content, empty, no_store},
    routes::ServiceRoute,
};
use crate::{
    limits::inflight::Inflight,
    service::{
        self, Call,
        error::ServiceError,
        parameters::{TIMEOUTS, WAITS},
        requests::{Answer, Asked, time_left},
    },
    state::App,
    worker::Worker,
};

/// How often a requester is looked at, in case it has left.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The maximum number of requests, and of bytes of payload, that one response hands out.
const MAX_BATCH: BatchLimit = BatchLimit { events: 1_000, bytes: 8 << 20 };

pub(super) async fn answer(
    call: &Call<'_>,
    activity: &ConnectionActivity,
    route: ServiceRoute,
    request: &mut HttpRequest<Incoming>,
    query: Query,
    outline: Outline,
) -> Result<HttpResponse, ApiError> {
    match route {
        ServiceRoute::Ask(service) => ask(call, activity, &service, request, query, outline).await,
        ServiceRoute::IsServed(service) => is_served(call, &service, query).await,
        ServiceRoute::Serve(service) => serve(call, activity, &service, request, query).await,
        ServiceRoute::Reply(token) => reply(call, &token, request, query, outline).await,
        ServiceRoute::List => list(call, query).await,
    }
}

/// Asks a service, and answers with the reply.
async fn ask(
    call: &Call<'_>,
    activity: &ConnectionActivity,
    service: &TopicName,
    request: &mut HttpRequest<Incoming>,
    query: Query,
    outline: Outline,
) -> Result<HttpResponse, ApiError> {
    let query = query.only(&["timeout", "retry"])?;
    let timeout = query.duration("timeout", TIMEOUTS)?.unwrap_or(NewRequest::DEFAULT_TIMEOUT);
    let may_repeat = query.flag("retry")?;
    drop(query);
    let headers = kept_headers(call.worker, service, request, outline)?;
    let asking = call.ask(service)?;
    // The permit is held until the bus has the payload, which it counts itself.
    let (payload, in_flight) =
        body::receive(call.worker, request, call.worker.config.max_payload).await?;
    let asked = NewRequest::new(payload).headers(headers).timeout(timeout);
    let asked = asking.send(if may_repeat { asked.may_repeat() } else { asked })?;
    drop(in_flight);
    shed_head(request);
    let reply = Box::pin(wait_for(call.worker, activity, asked)).await?;
    let mut response = messages::body(call.worker, &reply.payload, &reply.headers);
    no_store(&mut response);
    Ok(response)
}

/// Waits for the reply, unless the client leaves or the server stops.
async fn wait_for(
    worker: &Worker,
    activity: &ConnectionActivity,
    mut asked: Asked,
) -> Result<Reply, ServiceError> {
    // While bytes from the client are unread, nothing wakes the task when it leaves.
    let mut look_again = interval(LOOK_AGAIN);
    poll_fn(|cx| {
        if let Poll::Ready(reply) = Pin::new(&mut asked).poll(cx) {
            return Poll::Ready(reply);
        }
        if worker.tasks.stop.is_draining() {
            return Poll::Ready(Err(PublishError::Closed.into()));
        }
        while look_again.poll_tick(cx).is_ready() {}
        activity.poll_peer_left(cx).map(|()| Err(ServiceError::RequesterLeft))
    })
    .await
}

/// Says whether somebody serves a service.
async fn is_served(
    call: &Call<'_>,
    service: &TopicName,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    query.only(&["timeout", "retry"])?;
    call.check_served(service).await?;
    Ok(empty(StatusCode::OK))
}

/// Hands requests to a responder.
async fn serve<B>(
    call: &Call<'_>,
    activity: &ConnectionActivity,
    service: &TopicName,
    request: &mut HttpRequest<B>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let query = query.only(&["wait", "max"])?;
    let (wait, max) = (query.duration("wait", WAITS)?, query.count("max")?);
    drop(query);
    let limit = BatchLimit { events: max.unwrap_or(1).min(MAX_BATCH.events), ..MAX_BATCH };
    let mut waiting = call.serve(service, limit, Inflight::small(request.version()))?;
    let requests = match wait {
        Some(timeout) => {
            shed_head(request);
            Box::pin(pull::wait_for(call.worker, activity, waiting, timeout)).await?
        }
        None if call.worker.inflight.is_full() => return Err(ServiceError::TooMuchInFlight.into()),
        None => {
            poll_fn(|cx| match waiting.poll(cx) {
                Poll::Pending => Poll::Ready(Ok(Vec::new())),
                taken @ Poll::Ready(_) => taken,
            })
            .await?
        }
    };
    let mut unsent = Unsent(requests);
    let mut response = match &unsent.0[..] {
        [] => empty(StatusCode::NO_CONTENT),
        _ if max.is_some() => lines(call.worker, &unsent.0).await,
        [first, ..] => one(call.worker, first),
    };
    // The responder has them now. They end by time.
    for request in unsent.0.drain(..) {
        let _ = request.into_token();
    }
    no_store(&mut response);
    Ok(response)
}

/// Requests that were not sent. If the client leaves meanwhile, other responders get them.
struct Unsent(Vec<Request>);

impl Drop for Unsent {
    fn drop(&mut self) {
        // Each goes to the front of the queue, so that they keep their order.
        self.0.drain(..).rev().for_each(Request::put_back);
    }
}

fn one(app: &App, request: &Request) -> HttpResponse {
    let mut response = messages::body(app, request.payload(), request.headers());
    let headers = response.headers_mut();
    messages::set(headers, MSGBUS_REPLY, &request.token().to_string());
    messages::set(headers, MSGBUS_TIMEOUT, &time_left(request));
    response
}

async fn lines(app: &App, requests: &[Request]) -> HttpResponse {
    let size = |request: &Request| json::request_size_hint(request) + 1;
    let write = |body: &mut Vec<u8>, request: &Request| {
        json::write_request(body, request, &time_left(request));
        body.push(b'\n');
    };
    messages::lines(app, requests, size, write).await
}

/// Answers a request.
async fn reply(
    call: &Call<'_>,
    token: &ReplyToken,
    request: &mut HttpRequest<Incoming>,
    query: Query,
    outline: Outline,
) -> Result<HttpResponse, ApiError> {
    let query = query.only(&["error", "retry"])?;
    let (error, declines) = (query.get("error")?.map(Answer::failure), query.flag("retry")?);
    if error.is_some() && declines {
        let why = "another responder gets the request; leave error out";
        return Err(ApiError::parameter("retry", why));
    }
    drop(query);
    let service = call.may_reply(token)?;
    let answer = match error {
        Some(failure) => failure,
        None if declines => Answer::Decline,
        None => {
            let headers = kept_headers(call.worker, &service, request, outline)?;
            let (payload, _in_flight) =
                body::receive(call.worker, request, call.worker.config.max_payload).await?;
            Answer::Reply(Reply { payload, headers })
        }
    };
    call.reply(token, answer)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Lists the services that the principal may inspect.
async fn list(call: &Call<'_>, query: Query) -> Result<HttpResponse, ApiError> {
    query.only(&[])?;
    let (worker, principal) = (Arc::clone(call.worker), call.principal.clone());
    let list = move || {
        let services = service::requests::services(&worker, principal.as_deref());
        let mut body = Vec::new();
        json::write_services(&mut body, &services);
        let mut response = content(&worker, "application/json", body);
        no_store(&mut response);
        response
    };
    Ok(call.worker.background.run(list).await)
}

fn kept_headers(
    app: &App,
    service: &TopicName,
    request: &HttpRequest<Incoming>,
    outline: Outline,
) -> Result<Headers, ApiError> {
    match outline.header_scope {
        HeaderScope::None => Ok(Headers::default()),
        _ => message_headers::read(app, service, false, request.headers()),
    }
}
