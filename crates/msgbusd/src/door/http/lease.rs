//! `GET /<topic>?group=<group>`: leases messages to a worker of a group, with or without waiting, and peeks.
//! docs/protocol.md, section 14.

use std::time::Duration;

use hyper::{Request, StatusCode, header::HeaderMap};
use msgbus_core::{GroupName, LeaseOptions, Leased, TopicName, json};

use super::{
    activity::ConnectionActivity,
    error::ApiError,
    head::shed_head,
    messages,
    names::{MSGBUS_DELIVERIES, MSGBUS_LEASE, MSGBUS_LEASE_EXPIRES},
    position,
    pull::{Wanted, peeked, wait_for},
    query::Query,
    response::HttpResponse,
    response::empty,
    response::no_store,
    response::number,
};
use crate::{
    limits::inflight::Inflight,
    service::{Call, parameters::LEASES},
    state::App,
};

/// The wanted duration of a lease, if the client says one.
pub(super) fn duration(query: &Query) -> Result<Option<Duration>, ApiError> {
    query.duration("lease", LEASES)
}

pub(super) async fn lease<B>(
    call: &Call<'_>,
    activity: &ConnectionActivity,
    topic: &TopicName,
    group: &GroupName,
    request: &mut Request<B>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let query = query.only(&["group", "lease", "wait", "max", "raw", "since", "peek"])?;
    let wanted = Wanted::of(request, &query)?;
    let mut options = LeaseOptions { limit: wanted.limit, ..LeaseOptions::default() };
    options.lease = duration(&query)?.unwrap_or(options.lease);
    options.from = position::by_query(&query)?.unwrap_or(options.from);
    drop(query);
    let small = Inflight::small(request.version());
    let leased = match wanted.wait {
        Some(timeout) => {
            shed_head(request);
            let pull = call.lease_wait(topic, group, &options, small)?;
            Box::pin(wait_for(call.worker, activity, pull, timeout)).await?
        }
        None => call.lease(topic, group, &options, small).await?,
    };
    if leased.is_empty() && wanted.wait.is_none() {
        return Err(ApiError::Empty(topic.clone()));
    }
    let mut response = match &leased[..] {
        [] => empty(StatusCode::NO_CONTENT),
        _ if wanted.is_batch => lines(call.worker, &leased).await,
        [first, ..] => {
            let mut response = messages::one(call.worker, &first.message, wanted.raw);
            set_lease_headers(response.headers_mut(), first);
            response
        }
    };
    no_store(&mut response);
    Ok(response)
}

async fn lines(app: &App, leased: &[Leased]) -> HttpResponse {
    let size = |leased: &Leased| json::leased_size_hint(leased) + 1;
    let write = |body: &mut Vec<u8>, leased: &Leased| {
        json::write_leased(body, leased);
        body.push(b'\n');
    };
    messages::lines(app, leased, size, write).await
}

fn set_lease_headers(headers: &mut HeaderMap, leased: &Leased) {
    headers.insert(MSGBUS_DELIVERIES, number(leased.deliveries.into()));
    let mut token = Vec::new();
    leased.token.write_to(&mut token);
    messages::set(headers, MSGBUS_LEASE, token);
    messages::set(headers, MSGBUS_LEASE_EXPIRES, json::format_time(leased.expires));
}

/// Returns the messages that a group has not acknowledged, without taking them.
pub(super) async fn peek<B>(
    call: &Call<'_>,
    topic: &TopicName,
    group: &GroupName,
    request: &Request<B>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    if query.has("since") {
        let why = "?peek&group= returns what the group has not acknowledged; leave since out";
        return Err(ApiError::parameter("since", why));
    }
    let query = query.only(&["peek", "group", "raw", "max"])?;
    let wanted = Wanted::of(request, &query)?;
    let small = Inflight::small(request.version());
    let peek = call.peek_group(topic, group, wanted.limit, small).await?;
    peeked(call, topic, peek, &wanted, false).await
}
