//! `GET`, `PUT` and `DELETE /-/groups/<group>/<topic>`: shows, creates, moves and removes a group. docs/protocol.md,
//! section 14.

use std::ops::RangeInclusive;

use hyper::StatusCode;
use msgbus_core::{GroupConfig, GroupName, GroupSettings, TopicName, engine::EngineGroup, json};

use super::{
    error::ApiError, position, query::Query, response::HttpResponse, response::content,
    response::empty, response::no_store, routes::GroupVerb,
};
use crate::{
    service::{Call, error::ServiceError, groups::GroupView},
    state::App,
};

/// Answers a request for a group.
pub(super) async fn answer(
    call: &Call<'_>,
    verb: GroupVerb,
    topic: &TopicName,
    group: &GroupName,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    match verb {
        GroupVerb::Show => show(call, topic, group, query).await,
        GroupVerb::Set => set(call, topic, group, query).await,
        GroupVerb::Remove => remove(call, topic, group, query).await,
    }
}

async fn show(
    call: &Call<'_>,
    topic: &TopicName,
    group: &GroupName,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    query.only(&[])?;
    if call.worker.inflight.is_full() {
        return Err(ServiceError::TooMuchInFlight.into());
    }
    let found = call.group(topic, group).await?;
    Ok(object(call.worker, topic, group, &found))
}

async fn set(
    call: &Call<'_>,
    topic: &TopicName,
    group: &GroupName,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let query = query.only(&["since", "max_deliveries", "max_leases", "dead_letters"])?;
    let config = GroupConfig {
        from: position::by_query(&query)?,
        max_deliveries: number(&query, "max_deliveries", 0..=u32::MAX)?,
        max_leases: number(&query, "max_leases", 1..=GroupSettings::MAX_LEASES)?,
        dead_letters: dead_letters(&query)?,
    };
    let (is_new, set) = call.set_group(topic, group, config).await?;
    let mut response = object(call.worker, topic, group, &set);
    if is_new {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}

async fn remove(
    call: &Call<'_>,
    topic: &TopicName,
    group: &GroupName,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    query.only(&[])?;
    call.remove_group(topic, group).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

fn number(
    query: &Query,
    name: &'static str,
    allowed: RangeInclusive<u32>,
) -> Result<Option<u32>, ApiError> {
    let Some(text) = query.get(name)? else { return Ok(None) };
    let number = text.parse().ok().filter(|number| allowed.contains(number));
    let (least, most) = (allowed.start(), allowed.end());
    let why = || format!("use a whole number, {least} to {most}");
    number.map(Some).ok_or_else(|| ApiError::parameter(name, why()))
}

fn dead_letters(query: &Query) -> Result<Option<TopicName>, ApiError> {
    let name = query.get("dead_letters")?.map(TopicName::new).transpose();
    name.map_err(|error| ApiError::parameter("dead_letters", error.to_string()))
}

fn object(app: &App, topic: &TopicName, group: &GroupName, found: &GroupView) -> HttpResponse {
    let mut body = Vec::new();
    match found {
        GroupView::Own(stats, leases) => json::write_group(&mut body, topic, stats, leases),
        GroupView::Engine(engine, EngineGroup { pending, unacked, settings }) => {
            let default = GroupSettings::of(topic).max_deliveries;
            let dead_letters = settings.dead_letters.clone().or(topic.dead_letters().ok());
            let object = serde_json::json!({
                "topic": topic.as_str(),
                "group": group.as_str(),
                "engine": engine,
                "pending": pending,
                "unacked": unacked,
                "max_deliveries": settings.max_deliveries.unwrap_or(default),
                "dead_letters": dead_letters.as_ref().map(TopicName::as_str),
            });
            body.extend_from_slice(object.to_string().as_bytes());
        }
    }
    let mut response = content(app, "application/json", body);
    no_store(&mut response);
    response
}
