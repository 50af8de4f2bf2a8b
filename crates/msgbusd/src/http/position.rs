//! Where a subscriber starts, for every door that follows a topic. docs/protocol.md, section 6.3.

use hyper::header::{HeaderMap, HeaderName};
use msgbus_core::{LagPolicy, Position};

use super::{error::Refusal, query::Query};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What the request says, if anything. The header wins silently: it is what a client resumes with by
/// itself.
pub(super) fn requested(
    query: &Query<'_>,
    headers: &HeaderMap,
) -> Result<Option<Position>, Refusal> {
    let by_query = by_query(query)?;
    let Some(id) = headers.get(LAST_EVENT_ID) else { return Ok(by_query) };
    let position = id.to_str().ok().and_then(|id| Position::from_event_id(id).ok());
    let why = "use <epoch>-<id>, as the server sent it";
    position.map(Some).ok_or(Refusal::Header { name: "Last-Event-ID", why })
}

/// What the parameters alone say, if anything.
pub(super) fn by_query(query: &Query<'_>) -> Result<Option<Position>, Refusal> {
    let position = match (query.get("since")?, query.get("index")?) {
        (Some(_), Some(_)) => Err(Refusal::Parameter {
            name: "index",
            why: "since says the same; use one of them".to_owned(),
        }),
        (Some(since), None) => since.parse().map_err(|error| Refusal::position("since", error)),
        (None, Some(index)) => {
            Position::from_index(index).map_err(|error| Refusal::position("index", error))
        }
        (None, None) => return Ok(None),
    };
    position.map(Some)
}

/// What to do with a subscriber that falls behind what is retained.
pub(super) fn lag(query: &Query<'_>) -> Result<LagPolicy, Refusal> {
    match query.get("lag")? {
        None | Some("skip") => Ok(LagPolicy::Skip),
        Some("disconnect") => Ok(LagPolicy::Disconnect),
        Some(_) => {
            Err(Refusal::Parameter { name: "lag", why: "use skip or disconnect".to_owned() })
        }
    }
}
