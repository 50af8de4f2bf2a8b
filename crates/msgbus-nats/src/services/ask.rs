//! The side of the requester: finds a node and sends it the request.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, HeaderMap, Message, Request, RequestErrorKind};
use bytes::Bytes;
use msgbus_core::{
    NewRequest, RequestError, TopicName,
    engine::{Asked, EngineError, TakeRequest, Urgency},
};
use tokio::{runtime::Handle, select, time::Instant};
use tracing::debug;

use super::{
    CANCEL, FIND, FREE, FULL, REQUEST, RETRY, SERVER, TIMEOUT, Whom, outcome::asked,
    question_subject,
};
use crate::{connection::Connection, message::encode_headers, refusals::lately};

/// A node that was found.
enum Found {
    Nobody,
    /// One that was about to say that it does not serve any more.
    Leaving,
    /// One that has no room for the request.
    Full,
    Node {
        address: String,
        is_free: bool,
    },
}

impl Found {
    fn suits(&self, urgency: Urgency) -> bool {
        matches!(self, Self::Node { is_free, .. } if *is_free || urgency == Urgency::Queue)
    }
}

/// Looks for a node. A question may be lost when a node stops to serve; then it is asked again.
async fn find(
    connection: &Connection,
    service: &TopicName,
    whom: Whom,
) -> Result<Found, EngineError> {
    connection.check()?;
    let (began, subject) = (Instant::now(), question_subject(connection, service, whom));
    let end = began + connection.options.timeout;
    let mut patience = Duration::from_millis(250);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut headers = HeaderMap::new();
        headers.insert(FIND, "1");
        let question = Request::new().headers(headers).timeout(Some(patience.min(left)));
        let error = match connection.client.send_request(subject.clone(), question).await {
            Ok(answer) => return Ok(found(&answer)),
            Err(error) => error,
        };
        if error.kind() == RequestErrorKind::NoResponders {
            return Ok(Found::Nobody);
        }
        debug!(%error, %service, "NATS has not found a node");
        let why = connection.refusals.explain(EngineError::Unavailable, &subject, began);
        let is_lost = error.kind() == RequestErrorKind::TimedOut && Instant::now() < end;
        if !is_lost || why == EngineError::Denied {
            return Err(why);
        }
        connection.check()?;
        patience *= 2;
    }
}

fn found(answer: &Message) -> Found {
    let header = |name| answer.headers.as_ref().and_then(|headers| headers.get(name));
    match header(SERVER) {
        Some(address) => Found::Node {
            address: address.as_str().to_owned(),
            is_free: header(FREE).is_some_and(|free| free.as_str() == "1"),
        },
        None if header(FULL).is_some() => Found::Full,
        None => Found::Leaving,
    }
}

pub(crate) async fn is_served(
    connection: Arc<Connection>,
    service: TopicName,
) -> Result<bool, EngineError> {
    let mut found = find(&connection, &service, Whom::Any).await?;
    if matches!(found, Found::Leaving) {
        found = find(&connection, &service, Whom::All).await?;
    }
    Ok(matches!(found, Found::Node { .. } | Found::Full))
}

pub(crate) async fn request(
    connection: Arc<Connection>,
    service: TopicName,
    take: TakeRequest,
    urgency: Urgency,
) -> Result<Asked, EngineError> {
    let mut found = find(&connection, &service, Whom::Any).await?;
    if !found.suits(urgency) && !matches!(found, Found::Nobody) {
        found = find(&connection, &service, Whom::All).await?;
    }
    let address = match found {
        Found::Nobody => return Ok(Asked::Nobody),
        Found::Leaving => return Ok(Asked::Refused(RequestError::NoResponder)),
        Found::Full => return Ok(Asked::Full),
        _ if !found.suits(urgency) => return Ok(Asked::Busy),
        Found::Node { address, .. } => address,
    };
    // The client would keep a note of each for ever: nobody answers what the server refuses.
    if connection.refusals.is_refused(&address, lately(Instant::now())) {
        return Err(EngineError::Denied);
    }
    match take() {
        Some(request) => send(&connection, &service, address, request).await,
        None => Ok(Asked::Busy),
    }
}

/// Sends a request to a node, and waits for what becomes of it.
async fn send(
    connection: &Connection,
    service: &TopicName,
    address: String,
    request: NewRequest,
) -> Result<Asked, EngineError> {
    let (client, name) = (connection.client.clone(), connection.client.new_inbox());
    let message = message(request, &name);
    let mut taken_back = TakeBack { client, address: address.clone(), name: Some(name) };
    let began = Instant::now();
    let answer = select! {
        answer = connection.client.send_request(address.clone(), message) => answer,
        () = connection.refusals.refused(&address, began) => {
            taken_back.name = None;
            return Err(EngineError::Denied);
        }
    };
    if answer.as_ref().is_err_and(|error| error.kind() == RequestErrorKind::TimedOut) {
        return Ok(Asked::Over(Err(RequestError::TimedOut)));
    }
    taken_back.name = None;
    match answer {
        Ok(answer) => Ok(asked(answer)),
        Err(error) => match error.kind() {
            RequestErrorKind::NoResponders => Ok(Asked::Refused(RequestError::NoResponder)),
            RequestErrorKind::MaxPayloadExceeded => {
                Err(EngineError::TooLarge { limit: connection.client.max_payload() as u64 })
            }
            _ => {
                debug!(%error, %service, "NATS has not sent a request");
                Err(EngineError::Unknown)
            }
        },
    }
}

/// A request as it is sent. A node that is killed does not answer. Then it ends by time, a little later than the requester.
fn message(request: NewRequest, name: &str) -> Request {
    let (payload, headers, left, may_repeat) = request.into_parts();
    let mut map = HeaderMap::new();
    encode_headers(&headers, &mut map);
    map.insert(TIMEOUT, left.as_millis().to_string().as_str());
    map.insert(REQUEST, name);
    if may_repeat {
        map.insert(RETRY, "1");
    }
    Request::new().headers(map).payload(payload).timeout(Some(left + Duration::from_secs(1)))
}

/// Tells the node that has a request that nobody waits for the reply.
struct TakeBack {
    client: Client,
    address: String,
    /// `None` once the request is over.
    name: Option<String>,
}

impl Drop for TakeBack {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        let (client, address) = (self.client.clone(), std::mem::take(&mut self.address));
        // Without a runtime, the process is about to end.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let mut headers = HeaderMap::new();
            headers.insert(CANCEL, name.as_str());
            // If it fails, the request ends by time.
            let _ = client.publish_with_headers(address, headers, Bytes::new()).await;
        });
    }
}
