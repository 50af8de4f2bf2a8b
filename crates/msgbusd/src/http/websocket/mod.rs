//! `GET /<topic>` with a websocket upgrade: subscribing. docs/protocol.md, section 6.
//!
//! [`handshake`] decides, this file takes the connection over, [`session`] follows the topic.

mod handshake;
mod session;

use std::{net::SocketAddr, sync::Arc};

use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use msgbus_core::{SubscribeOptions, TopicName};
use tracing::debug;

pub(super) use self::handshake::is_wanted;
use self::session::Session;
use super::{Answer, App, empty, error::Refusal, position, query};
use crate::{frames::Form, socket::Socket};

/// Fixes the place in the topic, then answers the handshake: nothing falls between.
pub(super) fn subscribe(
    app: &Arc<App>,
    peer: SocketAddr,
    topic: &TopicName,
    mut request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let accept = handshake::check(&request)?;
    let query = query(&request).only(&["since", "index", "raw", "lag"])?;
    let form = if query.flag("raw")? { Form::Binary } else { Form::Text };
    let from = position::requested(&query, request.headers())?;
    let options = SubscribeOptions {
        from: from.unwrap_or_default(),
        lag: position::lag(&query)?,
        label: Some(peer.to_string().into()),
    };
    let subscription = app.bus.subscribe(topic, options)?;

    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    position::tell(headers, subscription.topic().epoch, subscription.start());
    debug!(%peer, %topic, from = subscription.start().next_id, "Subscribe");

    let upgrade = hyper::upgrade::on(&mut request);
    let session_app = Arc::clone(app);
    app.tasks.spawn(async move {
        // A client that is gone by now, or a connection that is not ours, has no session.
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Socket>>() else { return };
        let socket = parts.io.into_inner();
        // Most often nothing; but it keeps the connection's whole read buffer alive.
        let already_read = parts.read_buf.to_vec();
        drop(parts.read_buf);
        Session::new(&session_app, peer, subscription, form, socket, already_read)
            .await
            .run()
            .await;
    });
    Ok(answer)
}
