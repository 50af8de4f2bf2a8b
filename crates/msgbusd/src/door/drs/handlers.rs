//! What a peer handles: the calls of services, and the fires of topics. Each handler is a future of its next event.

use std::future::poll_fn;

use msgbus_core::{BatchLimit, Position, Request, ServePull, TopicName};
use tokio::{select, sync::watch};

use super::Client;
use crate::{
    auth::Target,
    limits::{inflight::Inflight, quota::QuotaPermit},
    service::{
        error::ServiceError,
        follower::{End, Follower, Item},
        pull::WaitingPull,
    },
};

/// The maximum that is handed out at once.
const BATCH: BatchLimit = BatchLimit { events: 64, bytes: 64 << 10 };

/// What a peer may get now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flow {
    pub(super) calls: bool,
    pub(super) fires: bool,
    /// The number of logins.
    pub(super) identity: u64,
}

/// What a handler has for its peer.
pub(super) enum Event {
    Calls(Box<Serve>, Vec<Request>),
    /// The keys no longer allow it, or the server stops.
    ServeEnded(TopicName),
    Followed(Name, Result<Box<Follow>, ServiceError>),
    Fires(Box<Follow>, Vec<Item>),
    /// The peer is another user now.
    LoggedIn(Box<Follow>),
    FollowEnded(Box<Follow>, End),
}

/// What a handler handles.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Calls(String),
    Fires(String),
    /// Fires that the server sends to every peer.
    Broadcast(String),
}

impl Name {
    pub(super) fn text(&self) -> &str {
        let (Self::Calls(name) | Self::Fires(name) | Self::Broadcast(name)) = self;
        name
    }
}

/// Handles the calls of a service.
pub(super) struct Serve {
    pub(super) service: TopicName,
    client: Client,
    flow: watch::Receiver<Flow>,
    /// In the queue of the responders.
    waiting: Option<WaitingPull<ServePull>>,
    _permit: QuotaPermit,
}

impl Serve {
    pub(super) fn new(
        client: &Client,
        service: TopicName,
        flow: watch::Receiver<Flow>,
    ) -> Result<Box<Self>, ServiceError> {
        let (permit, _) = client.call().admit_responder(&service)?;
        let (client, waiting) = (client.clone(), None);
        let mut serve = Box::new(Self { service, client, flow, waiting, _permit: permit });
        serve.waiting = Some(serve.join()?);
        Ok(serve)
    }

    fn join(&self) -> Result<WaitingPull<ServePull>, ServiceError> {
        self.client.call().serve(&self.service, BATCH, Inflight::SMALL_FRAME)
    }

    /// Waits for calls. While the peer gets none, others serve.
    pub(super) async fn next(mut self: Box<Self>) -> Event {
        loop {
            // The sender lives as long as the connection.
            let _ = self.flow.wait_for(|flow| flow.calls).await;
            let waiting = self.waiting.take().map_or_else(|| self.join(), Ok);
            let Ok(mut waiting) = waiting else { return Event::ServeEnded(self.service) };
            let calls = select! {
                biased;
                _ = self.flow.wait_for(|flow| !flow.calls) => continue,
                calls = poll_fn(|cx| waiting.poll(cx)) => calls,
            };
            return match calls {
                Ok(calls) if !calls.is_empty() => Event::Calls(self, calls),
                _ => Event::ServeEnded(self.service),
            };
        }
    }
}

/// Handles the fires of a topic, or of the topics of a pattern.
pub(super) struct Follow {
    pub(super) name: Name,
    pub(super) target: Target,
    identity: u64,
    pub(super) follower: Follower,
    flow: watch::Receiver<Flow>,
}

impl Follow {
    /// Begins to follow.
    pub(super) fn open(
        client: &Client,
        name: Name,
        target: Target,
        from: Position,
        flow: watch::Receiver<Flow>,
    ) -> impl Future<Output = Event> + use<> {
        let following = client.call().follow_target(&target, client.follow_options(from));
        let identity = flow.borrow().identity;
        async move {
            let followed = following.await.map(|mut follower| {
                follower.wake_directly();
                Box::new(Self { name: name.clone(), target, identity, follower, flow })
            });
            Event::Followed(name, followed)
        }
    }

    /// Waits for fires.
    pub(super) async fn next(mut self: Box<Self>) -> Event {
        let Self { name, identity, follower, flow, .. } = &mut *self;
        let is_broadcast = matches!(name, Name::Broadcast(_));
        let is_old = |flow: &Flow| is_broadcast && flow.identity != *identity;
        let mut items = Vec::new();
        let received = loop {
            let _ = flow.wait_for(|flow| flow.fires || is_old(flow)).await;
            if is_old(&flow.borrow()) {
                break None;
            }
            select! {
                biased;
                _ = flow.wait_for(|flow| !flow.fires || is_old(flow)) => {}
                received = poll_fn(|cx| follower.poll_batch(cx, |item, _| items.push(item))) => {
                    break Some(received);
                }
            }
        };
        match received {
            None => Event::LoggedIn(self),
            Some(Ok(())) => Event::Fires(self, items),
            Some(Err(end)) => Event::FollowEnded(self, end),
        }
    }
}
