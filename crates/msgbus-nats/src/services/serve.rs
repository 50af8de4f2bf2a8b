//! The side of the responders: a service at this node, as other nodes see it.

use std::{
    collections::HashMap,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Client, HeaderMap, Message, RequestErrorKind, Subject, Subscriber, client::PublishErrorKind,
};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use msgbus_core::{
    NewRequest, PendingRequest, RequestError, TopicName,
    engine::{Availability, EngineError, ServiceSink},
};
use tokio::{
    select,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    CANCEL, FIND, FREE, FULL, GROUP, REQUEST, RETRY, SERVER, TIMEOUT, Whom, outcome::answer,
    question_subject,
};
use crate::{connection::Connection, message::decode_headers};

/// Waits for the outcome of a request, or until it is taken back, and sends it. Returns the name of the request.
async fn respond(
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

/// The services that this node serves.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    pub(crate) tasks: TaskTracker,
    is_finishing: CancellationToken,
}

/// Ends all of them. Ready when the server has the last answers.
pub(crate) async fn finish(connection: Arc<Connection>) -> Result<(), EngineError> {
    let serving = &connection.serving;
    serving.is_finishing.cancel();
    serving.tasks.close();
    serving.tasks.wait().await;
    connection.check()?;
    // The server handles what comes from here in order.
    match connection.client.request(connection.client.new_inbox(), Bytes::new()).await {
        Err(error) if error.kind() != RequestErrorKind::NoResponders => Err(EngineError::Unknown),
        _ => Ok(()),
    }
}

/// How long requests may still come that were on their way when this node was to finish.
const HASTE: Duration = Duration::from_millis(100);

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
    let is_finishing = &connection.serving.is_finishing;
    loop {
        select! {
            () = node.sink.closed() => break,
            () = is_finishing.cancelled() => break,
            Some(message) = to_any.next() => node.take(message, any).await,
            Some(message) = to_all.next() => node.take(message, all).await,
            Some(message) = requests.next() => node.take(message, any).await,
            Some(name) = node.jobs.next() => drop(node.handles.remove(&name)),
        }
    }
    let is_last = is_finishing.is_cancelled();
    end(&mut to_any, is_last).await;
    end(&mut to_all, is_last).await;
    // Whoever got the address just now finds somebody there.
    let mut is_over = pin!(async {
        let patience = connection.options.timeout;
        if timeout(patience, is_finishing.cancelled()).await.is_ok() {
            sleep(HASTE.min(patience)).await;
        }
    });
    let mut is_late = false;
    // What somebody waits for can be taken back until it is over.
    while !is_late || !node.jobs.is_empty() {
        select! {
            () = &mut is_over, if !is_late => is_late = true,
            Some(message) = to_any.next() => node.take(message, any).await,
            Some(message) = to_all.next() => node.take(message, all).await,
            Some(message) = requests.next() => node.take(message, any).await,
            Some(name) = node.jobs.next() => drop(node.handles.remove(&name)),
        }
    }
    end(&mut requests, is_finishing.is_cancelled()).await;
    node.finish(requests).await;
}

/// Ends a subscription. What has come can be read. When the node finishes, so can what is on its way, unless the client gets it
/// in parts. Otherwise that is lost: if the connection breaks, the client makes a subscription again that is being drained, and
/// forgets it, so the server would send there what others should get.
async fn end(subscriber: &mut Subscriber, is_last: bool) {
    let _ = if is_last { subscriber.drain().await } else { subscriber.unsubscribe().await };
}

impl Node<'_> {
    /// Answers what has come by a subscription that has ended, and all that is not answered.
    async fn finish(mut self, mut requests: Subscriber) {
        // Without a connection, the client ends nothing now.
        while let Ok(Some(message)) = timeout(HASTE, requests.next()).await {
            self.take(message, Whom::Any).await;
        }
        while self.jobs.next().await.is_some() {}
    }

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
        // All nodes have got it.
        if whom == Whom::All {
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
        self.jobs.push(Box::pin(respond(self.client.clone(), asked, reply, name)));
    }

    /// Says where this node gets requests.
    async fn present(&mut self, reply: Subject, whom: Whom) {
        let (availability, mut headers) = (self.sink.availability(), HeaderMap::new());
        // The first answer counts, and nodes that suit better are faster. All answer in the time that who asks waits at least.
        let delay = Duration::from_millis(match availability {
            Availability::Free => 0,
            Availability::Busy => 10,
            Availability::Full => 120,
            Availability::Absent => 160,
        });
        match availability {
            Availability::Free | Availability::Busy => {
                headers.insert(SERVER, self.address.as_str());
                headers.insert(FREE, if availability == Availability::Free { "1" } else { "0" });
            }
            Availability::Full => headers.insert(FULL, "1"),
            Availability::Absent => {}
        }
        let client = self.client.clone();
        let answer = async move { client.publish_with_headers(reply, headers, Bytes::new()).await };
        if whom == Whom::Any || delay.is_zero() {
            // If it fails, the question is asked again.
            let _ = answer.await;
            return;
        }
        self.jobs.push(Box::pin(async move {
            sleep(delay).await;
            let _ = answer.await;
            String::new()
        }));
    }
}
