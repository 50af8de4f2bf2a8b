//! What takes time on one connection: subscriptions, services, requests and publishes that wait.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use msgbus_core::{BatchLimit, Headers, Op, RecvError, Reply, Request, ServePull, TopicName};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    MAX_IN_HAND,
    client::Client,
    output::{self, Builder, RID, SENDER, is_any},
    refused::Refused,
};
use crate::{
    auth::LiveAuthorization,
    encode::frame_cache::Frame,
    limits::{inflight::Inflight, quota::QuotaPermit},
    service::{
        Authority,
        error::ServiceError,
        follower::{self, Follower, Item},
        in_hand::InHand,
        publisher::Commit,
        pull::WaitingPull,
        requests::Asked,
    },
    websocket::transport::Outgoing,
};

/// How often a client that has as many requests as it may have is looked at, in case some are over.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// One activity.
#[derive(Debug)]
pub(super) enum Activity {
    Open(Box<Opening>),
    Follow(Box<Follow>),
    Serve(Box<Serve>),
    Ask(Box<Ask>),
    Commit(Box<Committing>),
}

/// What a subscription follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Followed {
    Topic(TopicName),
    /// The private topic of the client.
    Private(TopicName),
    /// All topics, for a super key.
    Everything,
}

/// A subscription whose position is not known yet.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) followed: Followed,
    pub(super) following: Op<Result<Follower, ServiceError>>,
}

/// A subscription.
#[derive(Debug)]
pub(super) struct Follow {
    pub(super) followed: Followed,
    pub(super) follower: Follower,
}

/// Why a subscription ended.
#[derive(Debug)]
pub(super) enum End {
    Revoked,
    /// The topic was deleted. There may be a new one.
    Deleted,
    Failed(RecvError),
}

impl Follow {
    pub(super) fn new(followed: Followed, mut follower: Follower) -> Self {
        follower.wake_directly();
        Self { followed, follower }
    }

    /// Sends a batch of messages.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut Outgoing,
    ) -> Poll<Result<(), End>> {
        let Self { followed, follower } = self;
        let polled = follower.poll_batch(cx, |item, _| match item {
            Item::Frame(frame) => outgoing.push(frame),
            Item::Missed(count) => {
                let target = followed.target();
                let text = match count {
                    // An engine does not know how many.
                    0 => format!("SUB {target}: messages may have been missed"),
                    _ => format!("SUB {target}: {count} messages were missed"),
                };
                outgoing.push(output::error(&text));
            }
            Item::Feed(_) => {}
        });
        polled.map_err(|end| match end {
            follower::End::Revoked => End::Revoked,
            follower::End::Over(RecvError::Deleted) => End::Deleted,
            follower::End::Over(error) => End::Failed(error),
        })
    }
}

impl Followed {
    pub(super) fn target(&self) -> String {
        match self {
            Self::Topic(topic) | Self::Private(topic) => {
                output::target(topic.as_str()).into_owned()
            }
            Self::Everything => "**".to_owned(),
        }
    }
}

/// A publish that the store has not kept yet.
pub(super) struct Committing {
    pub(super) target: Box<str>,
    pub(super) commit: Commit,
}

impl std::fmt::Debug for Committing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committing").field("target", &self.target).finish_non_exhaustive()
    }
}

/// A request that waits for its reply. Dropping it takes the request back.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) target: Box<str>,
    /// Those of the request.
    pub(super) headers: Headers,
    pub(super) asked: Asked,
}

impl Ask {
    /// The reply as the requester gets it: with the spelling of its own headers, and with its own `rid` and `ReqID`.
    pub(super) fn reply(&self, reply: &Reply) -> Frame {
        let Reply { payload, headers } = reply;
        let size = payload.len()
            + headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let mut frame = Builder::new("RES", &self.target, size);
        frame.sender(headers);
        let own = |name: &str| self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        for (name, value) in headers {
            if !is_any(name, &SENDER) && !is_any(name, &[RID]) {
                frame.header(own(name).map_or(name, |(own, _)| own), value);
            }
        }
        let lost = |name: &str| headers.get(name).is_none();
        if let Some((name, value)) = own("ReqID").filter(|(name, _)| lost(name)) {
            frame.header(name, value);
        }
        if let Some((name, value)) = own(RID) {
            frame.header(name, value);
        }
        frame.end(payload)
    }
}

/// A service that the client serves until it leaves.
#[derive(Debug)]
pub(super) struct Serve {
    pub(super) service: TopicName,
    /// In the queue of the responders, while the client may have more.
    waiting: Option<WaitingPull<ServePull>>,
    /// Until a client that has as many as it may have is looked at.
    look: Option<Pin<Box<Sleep>>>,
    authorization: LiveAuthorization,
    _permit: QuotaPermit,
}

impl Serve {
    pub(super) fn new(client: &Client, service: TopicName) -> Result<Self, ServiceError> {
        let call = client.call(Authority::Own);
        let (permit, authorization) = call.admit_responder(&service)?;
        let waiting = Some(join(client, &service)?);
        Ok(Self { service, waiting, look: None, authorization, _permit: permit })
    }

    /// Sends the next request.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (client, in_hand): (&Client, &mut InHand<u64, ()>),
        outgoing: &mut Outgoing,
    ) -> Poll<Result<(), Refused>> {
        if self.authorization.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(Refused::NotTrusted));
        }
        ready!(self.poll_free(cx, in_hand));
        let mut waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => join(client, &self.service)?,
        };
        let Poll::Ready(requests) = waiting.poll(cx) else {
            self.waiting = Some(waiting);
            return Poll::Pending;
        };
        let requests = requests?;
        if requests.is_empty() {
            return Poll::Ready(Err(Refused::NotTrusted));
        }
        let target = output::target(self.service.as_str());
        for request in requests {
            let rid = in_hand.count() + 1;
            push(outgoing, asked(&target, rid, &request), &client.worker.inflight);
            in_hand.insert(rid, request.into_token(), ());
        }
        Poll::Ready(Ok(()))
    }

    /// Ready while the client may have another request. One that is over does not count.
    fn poll_free(&mut self, cx: &mut Context<'_>, in_hand: &mut InHand<u64, ()>) -> Poll<()> {
        while in_hand.len() >= MAX_IN_HAND {
            in_hand.forget_over();
            if in_hand.len() < MAX_IN_HAND {
                break;
            }
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(LOOK_AGAIN)));
            ready!(look.as_mut().poll(cx));
            look.as_mut().reset(Instant::now() + LOOK_AGAIN);
        }
        Poll::Ready(())
    }

    /// Leaves the queue of the responders while the client accepts nothing. Ready when the keys no longer allow it.
    pub(super) fn hold_back(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting = None;
        self.authorization.poll_revoked(cx)
    }
}

/// Queues for the next request. One at a time, so that responders take turns.
fn join(client: &Client, service: &TopicName) -> Result<WaitingPull<ServePull>, ServiceError> {
    client.call(Authority::Own).serve(service, BatchLimit::ONE, Inflight::SMALL_FRAME)
}

/// A request as a responder gets it.
fn asked(target: &str, rid: u64, request: &Request) -> Frame {
    let headers = request.headers();
    let mut frame = Builder::new("REQ", target, request.payload().len());
    frame.sender(headers);
    frame.header(RID, itoa::Buffer::new().format(rid));
    for (name, value) in headers {
        if !is_any(name, &SENDER) && !is_any(name, &[RID]) {
            frame.header(name, value);
        }
    }
    frame.end(request.payload())
}

/// Queues a frame for writing. A large one counts as in flight.
pub(super) fn push(outgoing: &mut Outgoing, frame: Frame, inflight: &Inflight) {
    let [bytes, _] = frame.into_pieces();
    outgoing.push(Frame::new(inflight.track_response(bytes), ""));
}
