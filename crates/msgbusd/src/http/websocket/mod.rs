//! `GET /<topic>` with a websocket upgrade: subscribing. docs/protocol.md, section 6.
//!
//! [`handshake`] decides, this file takes the connection over, [`session`] follows the topic.

mod handshake;
mod session;

use std::{net::SocketAddr, sync::Arc};

use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use msgbus_core::{Position, TopicName};
use tracing::debug;

pub(super) use self::handshake::is_wanted;
use self::session::Session;
use super::{Answer, App, empty, error::Refusal, query};
use crate::{frames::Form, socket::Socket};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Fixes the place in the topic, then answers the handshake: nothing falls between.
pub(super) fn subscribe(
    app: &Arc<App>,
    peer: SocketAddr,
    topic: &TopicName,
    mut request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let accept = handshake::check(&request)?;
    let query = query(&request).only(&["since", "index", "raw"])?;
    let form = if query.flag("raw")? { Form::Raw } else { Form::Json };
    let position = position(query.get("since")?, query.get("index")?, request.headers())?;
    let subscription = app.bus.subscribe(topic, position)?;

    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    let start = subscription.start();
    let mut tell = |name, value: HeaderValue| headers.insert(HeaderName::from_static(name), value);
    tell("msgbus-epoch", HeaderValue::from(subscription.topic().epoch));
    tell("msgbus-next-id", HeaderValue::from(start.next_id));
    if start.missed > 0 {
        tell("msgbus-missed", HeaderValue::from(start.missed));
    }
    if start.restarted {
        tell("msgbus-restarted", HeaderValue::from_static("true"));
    }
    debug!(%peer, %topic, from = start.next_id, "Subscribe");

    let upgrade = hyper::upgrade::on(&mut request);
    let session_app = Arc::clone(app);
    app.tasks.spawn(async move {
        // A client that is gone by now, or a connection that is not ours, has no session.
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Socket>>() else { return };
        let socket = parts.io.into_inner();
        Session::new(&session_app, peer, subscription, form, socket, &parts.read_buf)
            .await
            .run()
            .await;
    });
    Ok(answer)
}

/// Where to start. The header wins silently: it is what a client resumes with by itself.
fn position(
    since: Option<&str>,
    index: Option<&str>,
    headers: &HeaderMap,
) -> Result<Position, Refusal> {
    if let Some(id) = headers.get(LAST_EVENT_ID) {
        let position = id.to_str().ok().and_then(|id| Position::from_event_id(id).ok());
        let why = "use <epoch>-<id>, as the server sent it";
        return position.ok_or(Refusal::Header { name: "Last-Event-ID", why });
    }
    match (since, index) {
        (Some(_), Some(_)) => Err(Refusal::Parameter {
            name: "index",
            why: "since says the same; use one of them".to_owned(),
        }),
        (Some(since), None) => since.parse().map_err(|error| Refusal::position("since", error)),
        (None, Some(index)) => {
            Position::from_index(index).map_err(|error| Refusal::position("index", error))
        }
        (None, None) => Ok(Position::New),
    }
}
