//! `GET` with a websocket upgrade: subscribes to a topic or a pattern (docs/protocol.md, section 6), or connects for all operations
//! (section 16).
//!
//! [`handshake`] validates the request, this module takes over the connection, and [`crate::door::websocket`] serves
//! it.

use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;

use super::{
    error::ApiError, handshake, negotiate::items, position, query::Query, response,
    response::HttpResponse, response::empty, transport::Transport,
};
use crate::{
    auth::Target,
    dialogue::Client,
    door::websocket::{Push, Session, session_v1},
    encode::format::FrameFormat,
    net::connection::Connection,
    service::{Call, follower::FollowOptions},
};

/// The subprotocol that a page offers in addition to its key, and that the server selects.
const SUBPROTOCOL: &str = "msgbus";
/// The subprotocol for all operations on one websocket.
const SUBPROTOCOL_V1: &str = "msgbus.v1";

/// Whether a client offers the subprotocol for all operations.
pub(super) fn offers_v1<B>(request: &Request<B>) -> bool {
    offers(request, SUBPROTOCOL_V1)
}

fn offers<B>(request: &Request<B>, subprotocol: &str) -> bool {
    items(request.headers(), &header::SEC_WEBSOCKET_PROTOCOL).any(|offer| offer == subprotocol)
}

/// Answers the handshake for a websocket with all operations.
pub(super) fn connect(
    call: &Call<'_>,
    request: &mut Request<Incoming>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let accept = handshake::check(request)?;
    query.only(&["ticket"])?;
    let response = switching(accept, Some(SUBPROTOCOL_V1));
    let (upgrade, client) = (hyper::upgrade::on(request), Client::from(call));
    call.worker.tasks.spawn(async move {
        let begin = |connection, already_read| session_v1(client, connection, already_read);
        // Boxed, so that the memory of a session does not include the upgrade.
        if let Some(session) = Box::pin(take_over(upgrade, begin)).await {
            session.serve().await;
        }
    });
    Ok(response)
}

/// Subscribes, and then answers the handshake, so that no message is lost in between.
pub(super) async fn subscribe(
    call: Call<'_>,
    target: &Target,
    request: &mut Request<Incoming>,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let accept = handshake::check(request)?;
    let query = query.only(&["since", "index", "raw", "lag", "gaps", "ticket"])?;
    let format = if query.flag("raw")? { FrameFormat::Binary } else { FrameFormat::Text };
    let from = position::requested(&query, request.headers())?;
    let reports_gaps = query.flag("gaps")?;
    let options =
        FollowOptions { from: from.unwrap_or_default(), lag: position::lag(&query)?, format };
    let follower = call.follow_target(target, options).await?;

    let selected = offers(request, SUBPROTOCOL).then_some(SUBPROTOCOL);
    let mut response = switching(accept, selected);
    let headers = response.headers_mut();
    let subscription = follower.subscription();
    response::set_position_headers(headers, subscription.epoch(), subscription.start());

    let upgrade = hyper::upgrade::on(request);
    // Created here, so that the task holds only a pointer.
    let push = Push::new(follower, reports_gaps);
    call.worker.tasks.spawn(async move {
        let begin = |connection, already_read| Session::new(push, connection, already_read);
        // Boxed, so that the memory of a session does not include the upgrade.
        if let Some(session) = Box::pin(take_over(upgrade, begin)).await {
            session.serve().await;
        }
    });
    Ok(response)
}

/// The response that accepts a handshake.
fn switching(accept: HeaderValue, subprotocol: Option<&'static str>) -> HttpResponse {
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(subprotocol) = subprotocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    }
    response
}

/// Takes the connection over from hyper. `None` if the client has disconnected meanwhile.
///
/// The session is boxed: a value that is passed on by an async function has its memory in each of them.
async fn take_over<S>(
    upgrade: OnUpgrade,
    begin: impl FnOnce(Connection, Vec<u8>) -> S,
) -> Option<Box<S>> {
    let parts = upgrade.await.ok()?.downcast::<TokioIo<Transport>>().ok()?;
    // Usually empty. It is copied because the slice would keep the whole read buffer alive.
    let already_read = parts.read_buf.to_vec();
    let connection = parts.io.into_inner().into_connection().await.ok()?;
    Some(Box::new(begin(connection, already_read)))
}
