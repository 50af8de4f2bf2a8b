//! The start position of a subscription. docs/protocol.md, section 6.3.

use hyper::header::HeaderMap;
use msgbus_core::{LagPolicy, Position};

use super::{error::ApiError, names::LAST_EVENT_ID, query::Query};
use crate::service::parameters;

/// The position that a request asks for, if any. `Last-Event-ID` takes precedence over parameters, because clients
/// resume with it automatically.
pub(super) fn requested(query: &Query, headers: &HeaderMap) -> Result<Option<Position>, ApiError> {
    let by_query = by_query(query)?;
    let Some(id) = headers.get(LAST_EVENT_ID) else { return Ok(by_query) };
    let position = id.to_str().ok().and_then(|id| Position::from_event_id(id).ok());
    let why = "use <epoch>-<id>, as the server sent it";
    position.map(Some).ok_or(ApiError::Header { name: "Last-Event-ID", why })
}

/// The position that the parameters ask for, if any.
pub(super) fn by_query(query: &Query) -> Result<Option<Position>, ApiError> {
    let position = match (query.get("since")?, query.get("index")?) {
        (Some(_), Some(_)) => Err(ApiError::parameter("index", "use either since or index")),
        (Some(since), None) => Ok(parameters::since(since)?),
        (None, Some(index)) => Position::from_index(index)
            .map_err(|error| ApiError::parameter("index", error.to_string())),
        (None, None) => return Ok(None),
    };
    position.map(Some)
}

/// The policy for a subscriber that lags behind the retained messages.
pub(super) fn lag(query: &Query) -> Result<LagPolicy, ApiError> {
    Ok(query.get("lag")?.map(parameters::lag).transpose()?.unwrap_or_default())
}
