//! Requests to services at other nodes.
//!
//! A node that serves a service answers who looks for one with an address of its own, to which the request is sent. So a
//! request is sent to one node at most, which certainly listens; one that is away, or whose responders have left, costs
//! its requester another look. First any node is asked, and if no responder waits there, all are.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap, Message, Request, RequestErrorKind, Subject, client::PublishErrorKind,
};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::{AbortHandle, Abortable, pending},
    stream::FuturesUnordered,
};
use msgbus_core::{
    LimitReached, NewRequest, PendingRequest, Reply, RequestError, TopicName,
    engine::{Asked, Availability, EngineError, ServiceSink, TakeRequest, Urgency},
};
use tokio::{
    runtime::Handle,
    select,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use crate::{
    connection::Connection,
    message::{decode_headers, encode_headers},
    subject::subject,
};

/// The queue group of nodes.
const GROUP: &str = "msgbus";
/// Asks for the address of a node.
const FIND: &str = "Msgbus-Find";
/// The address of a node, and whether a responder waits there.
const SERVER: &str = "Msgbus-Server";
const FREE: &str = "Msgbus-Free";
/// How long the requester still waits, in milliseconds.
const TIMEOUT: &str = "Msgbus-Timeout";
/// Another responder may get the request.
const RETRY: &str = "Msgbus-Retry";
/// The name of a request, by which it can be taken back.
const REQUEST: &str = "Msgbus-Request";
/// Takes back the request of this name.
const CANCEL: &str = "Msgbus-Cancel";
/// What became of a request. Without it, it is a reply.
const OUTCOME: &str = "Msgbus-Outcome";

/// Whom a question is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// Any node that serves the service.
    Any,
    /// All of them. One where a responder waits answers first.
    All,
}

/// Where nodes are looked for. Not below the prefix: the stream would keep it.
fn question_subject(connection: &Connection, service: &TopicName, whom: Whom) -> String {
    let kind = match whom {
        Whom::Any => "services",
        Whom::All => "servers",
    };
    subject(&format!("{}-{kind}", connection.options.prefix), service)
}

/// A node that was found.
enum Found {
    Nobody,
    /// One that was about to say that it does not serve any more.
    Leaving,
    Node {
        address: String,
        is_free: bool,
    },
}

impl Found {
    fn is_free(&self) -> bool {
        matches!(self, Self::Node { is_free: true, .. })
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
        None => Found::Leaving,
    }
}

pub(crate) async fn is_served(
    connection: Arc<Connection>,
    service: TopicName,
) -> Result<bool, EngineError> {
    let found = find(&connection, &service, Whom::Any).await?;
    Ok(matches!(found, Found::Node { .. }))
}

pub(crate) async fn request(
    connection: Arc<Connection>,
    service: TopicName,
    take: TakeRequest,
    urgency: Urgency,
) -> Result<Asked, EngineError> {
    let mut found = find(&connection, &service, Whom::Any).await?;
    if urgency == Urgency::IfFree && !found.is_free() {
        found = find(&connection, &service, Whom::All).await?;
    }
    let address = match found {
        Found::Nobody => return Ok(Asked::Nobody),
        Found::Leaving => return Ok(Asked::Refused(RequestError::NoResponder)),
        Found::Node { is_free: false, .. } if urgency == Urgency::IfFree => return Ok(Asked::Busy),
        Found::Node { address, .. } => address,
    };
    let Some(request) = take() else { return Ok(Asked::Busy) };
    let (payload, headers, left, may_repeat) = request.into_parts();
    let (mut map, name) = (HeaderMap::new(), connection.client.new_inbox());
    encode_headers(&headers, &mut map);
    map.insert(TIMEOUT, left.as_millis().to_string().as_str());
    map.insert(REQUEST, name.as_str());
    if may_repeat {
        map.insert(RETRY, "1");
    }
    // A node that is killed does not answer. Then this ends by time, a little later than the requester.
    let message = Request::new().headers(map).payload(payload);
    let message = message.timeout(Some(left + Duration::from_secs(1)));
    let client = connection.client.clone();
    let mut taken_back = TakeBack { client, address: address.clone(), name: Some(name) };
    let answer = connection.client.send_request(address, message).await;
    let is_over = !answer.as_ref().is_err_and(|error| error.kind() == RequestErrorKind::TimedOut);
    if is_over {
        taken_back.name = None;
    }
    match answer {
        Ok(answer) => Ok(asked(answer)),
        Err(error) => match error.kind() {
            RequestErrorKind::NoResponders => Ok(Asked::Refused(RequestError::NoResponder)),
            RequestErrorKind::TimedOut => Ok(Asked::Over(Err(RequestError::TimedOut))),
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

/// What a node has answered.
fn asked(answer: Message) -> Asked {
    let outcome = answer.headers.as_ref().and_then(|headers| headers.get(OUTCOME));
    let outcome = outcome.map_or("replied", |outcome| outcome.as_str());
    let (word, number) = outcome.split_once(' ').unwrap_or((outcome, "0"));
    let error = match word {
        "replied" => {
            let headers = answer.headers.as_ref().map(decode_headers).unwrap_or_default();
            return Asked::Over(Ok(Reply { payload: answer.payload, headers }));
        }
        "gone" => RequestError::ResponderGone,
        "timed-out" => RequestError::TimedOut,
        "closed" => RequestError::Closed,
        "no-responder" => RequestError::NoResponder,
        "full" => RequestError::TooManyRequests { limit: number.parse().unwrap_or_default() },
        "no-memory" => LimitReached::Bytes { limit: number.parse().unwrap_or_default() }.into(),
        // "failed", or what a later version says.
        _ => RequestError::Failed { reason: String::from_utf8_lossy(&answer.payload).into() },
    };
    Err(error).into()
}

/// An outcome as it is sent.
fn answer(outcome: Result<Reply, RequestError>) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    let (word, payload) = match outcome {
        Ok(reply) => {
            encode_headers(&reply.headers, &mut headers);
            ("replied".to_owned(), reply.payload)
        }
        Err(error) => match error {
            RequestError::ResponderGone => ("gone".to_owned(), Bytes::new()),
            RequestError::TimedOut => ("timed-out".to_owned(), Bytes::new()),
            RequestError::Closed => ("closed".to_owned(), Bytes::new()),
            RequestError::NoResponder => ("no-responder".to_owned(), Bytes::new()),
            RequestError::TooManyRequests { limit } => (format!("full {limit}"), Bytes::new()),
            RequestError::LimitReached(LimitReached::Bytes { limit }) => {
                (format!("no-memory {limit}"), Bytes::new())
            }
            RequestError::Failed { reason } => {
                ("failed".to_owned(), Bytes::from(String::from(reason)))
            }
            other => ("failed".to_owned(), Bytes::from(other.to_string())),
        },
    };
    headers.insert(OUTCOME, word.as_str());
    (headers, payload)
}

/// Waits for the outcome of a request, or until it is taken back, and sends it. Returns the name of the request.
async fn finish(
    client: Client,
    asked: Abortable<PendingRequest>,
    reply: Subject,
    name: String,
) -> String {
    // Who has taken it back ignores the answer, but keeps a note until there is one.
    let outcome = asked.await.unwrap_or(Err(RequestError::TimedOut));
    let (headers, payload) = answer(outcome);
    let sent = client.publish_with_headers(reply.clone(), headers, payload).await;
    if sent.is_err_and(|error| error.kind() == PublishErrorKind::MaxPayloadExceeded) {
        let limit = client.max_payload();
        let reason = format!("the reply is too large for the engine, which accepts {limit} bytes");
        let (headers, payload) = answer(Err(RequestError::Failed { reason: reason.into() }));
        // While there is no connection, the client keeps it.
        let _ = client.publish_with_headers(reply, headers, payload).await;
    }
    name
}

type Job = Pin<Box<dyn Future<Output = String> + Send>>;

/// A service at this node, as other nodes see it.
struct Node<'a> {
    client: &'a Client,
    sink: ServiceSink,
    /// Where this node gets requests.
    address: String,
    jobs: FuturesUnordered<Job>,
    /// By the names of requests.
    handles: HashMap<String, AbortHandle>,
}

/// Serves a service to other nodes, until it is no longer served here.
pub(crate) async fn serve(connection: Arc<Connection>, service: TopicName, sink: ServiceSink) {
    let client = &connection.client;
    let address = client.new_inbox();
    let requests = client.subscribe(address.clone()).await;
    let (any, all) = (Whom::Any, Whom::All);
    let subject = |whom| question_subject(&connection, &service, whom);
    let to_any = client.queue_subscribe(subject(any), GROUP.to_owned()).await;
    let to_all = client.subscribe(subject(all)).await;
    let (Ok(mut requests), Ok(mut to_any), Ok(mut to_all)) = (requests, to_any, to_all) else {
        warn!(%service, "the connection to NATS is closed: only requesters here are served");
        return;
    };
    let (jobs, handles) = (FuturesUnordered::new(), HashMap::new());
    let mut node = Node { client, sink, address, jobs, handles };
    let mut end = None;
    loop {
        select! {
            () = node.sink.closed(), if end.is_none() => {
                // Whoever got the address just now finds somebody there.
                end = Some(Instant::now() + connection.options.timeout);
                let _ = (to_any.unsubscribe().await, to_all.unsubscribe().await);
            }
            Some(message) = to_any.next(), if end.is_none() => node.take(message, any).await,
            Some(message) = to_all.next(), if end.is_none() => node.take(message, all).await,
            Some(message) = requests.next() => node.take(message, any).await,
            Some(name) = node.jobs.next() => drop(node.handles.remove(&name)),
            () = until(end), if node.jobs.is_empty() => return,
        }
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => pending().await,
    }
}

impl Node<'_> {
    async fn take(&mut self, message: Message, whom: Whom) {
        let header = |name| Some(message.headers.as_ref()?.get(name)?.as_str());
        if let Some(name) = header(CANCEL) {
            if let Some(handle) = self.handles.get(name) {
                handle.abort();
            }
            return;
        }
        // Who does not want an answer is not answered.
        let Some(reply) = message.reply.clone() else { return };
        if header(FIND).is_some() {
            self.present(reply, whom).await;
            return;
        }
        let timeout = header(TIMEOUT).and_then(|text| text.parse().ok()).map(Duration::from_millis);
        let headers = message.headers.as_ref().map(decode_headers).unwrap_or_default();
        let request = NewRequest::new(message.payload.clone())
            .headers(headers)
            .timeout(timeout.unwrap_or(NewRequest::DEFAULT_TIMEOUT));
        let request = if header(RETRY).is_some() { request.may_repeat() } else { request };
        let name = header(REQUEST).unwrap_or(&reply).to_owned();
        let asked = self.sink.ask(request);
        let (handle, registration) = AbortHandle::new_pair();
        self.handles.insert(name.clone(), handle);
        let asked = Abortable::new(asked, registration);
        self.jobs.push(Box::pin(finish(self.client.clone(), asked, reply, name)));
    }

    /// Says where this node gets requests.
    async fn present(&mut self, reply: Subject, whom: Whom) {
        /// One where a responder waits is faster.
        const PATIENCE: Duration = Duration::from_millis(10);
        let availability = self.sink.availability();
        let mut headers = HeaderMap::new();
        if availability != Availability::Absent {
            headers.insert(SERVER, self.address.as_str());
            headers.insert(FREE, if availability == Availability::Free { "1" } else { "0" });
        }
        let client = self.client.clone();
        let answer = async move { client.publish_with_headers(reply, headers, Bytes::new()).await };
        if whom == Whom::Any || availability == Availability::Free {
            // If it fails, the question is asked again.
            let _ = answer.await;
            return;
        }
        self.jobs.push(Box::pin(async move {
            sleep(PATIENCE).await;
            let _ = answer.await;
            String::new()
        }));
    }
}
