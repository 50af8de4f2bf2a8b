//! `GET /<topic>` with a websocket upgrade: subscribing. docs/protocol.md, section 6.
//!
//! [`handshake`] decides, this file takes the connection over, [`session`] follows the topic.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handshake;
mod heartbeat;
mod push;
mod session;
mod transport;

use std::sync::Arc;

use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use msgbus_core::{SubscribeOptions, TopicName};
use tracing::debug;

pub(super) use self::handshake::is_wanted;
use self::{push::Push, session::Session};
use super::{
    Answer, answers, empty, error::Refusal, follower::Follower, items, label, position, query, seat,
};
use crate::{
    connection::Connection, frames::Form, keys::Permit, peer::Peer, rewound::Rewound,
    worker::Worker,
};

/// What a page offers beside its key, and is answered.
const SUBPROTOCOL: &str = "msgbus";

/// Fixes the place in the topic, then answers the handshake: nothing falls between.
pub(super) fn subscribe(
    app: &Arc<Worker>,
    peer: Peer,
    topic: &TopicName,
    request: &mut Request<Incoming>,
    permit: Permit,
) -> Result<Answer, Refusal> {
    let accept = handshake::check(request)?;
    let query = query(request).only(&["since", "index", "raw", "lag", "gaps", "ticket"])?;
    let form = if query.flag("raw")? { Form::Binary } else { Form::Text };
    let from = position::requested(&query, request.headers())?;
    let reports_gaps = query.flag("gaps")?;
    let options = SubscribeOptions {
        from: from.unwrap_or_default(),
        lag: position::lag(&query)?,
        label: Some(label(peer, &permit)),
    };
    let seat = seat(app)?;
    let subscription = app.bus.subscribe(topic, options)?;

    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if items(request.headers(), &header::SEC_WEBSOCKET_PROTOCOL).any(|offer| offer == SUBPROTOCOL) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    answers::tell_start(headers, subscription.topic().epoch, subscription.start());
    debug!(%peer, %topic, from = subscription.start().next_id, "Subscribe");

    let upgrade = hyper::upgrade::on(request);
    // Shared from the beginning: the task is not to be larger for it.
    let push = Push::new(Follower::new(app, peer, subscription, form, permit, seat), reports_gaps);
    app.tasks.spawn(async move {
        // A client that is gone by now, or a connection that is not ours, has no session.
        let Some((socket, already_read)) = upgrade.await.ok().and_then(take_over) else { return };
        let mut session = Session::new(push, socket, already_read);
        let end = session.follow().await;
        // Boxed: it is soon over, and no session is to be larger for it.
        Box::pin(session.end(end)).await;
    });
    Ok(answer)
}

/// The connection itself, and what the client has sent behind the handshake.
fn take_over(upgraded: Upgraded) -> Option<(Connection, Vec<u8>)> {
    let parts = upgraded.downcast::<TokioIo<Rewound<Connection>>>().ok()?;
    // Most often nothing was read; but its slice keeps the connection's whole read buffer alive.
    Some((parts.io.into_inner().into_inner(), parts.read_buf.to_vec()))
}
