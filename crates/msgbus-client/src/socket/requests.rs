//! Operations that a caller waits for: publishing, pulling, settling.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use chrono::{DateTime, Utc};
use msgbus_core::{
    GroupName, LeaseToken, Leased, Message, NewMessage, Settlement, TopicName, format_duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    Socket,
    answer::Answer,
    command::Command,
    operation,
    outgoing::{Kind, Operation},
};
use crate::{
    client::{Published, PullOptions},
    error::ClientError,
    lease::LeaseOptions,
    settle::Retry,
    websocket,
};

/// A message that is being published. It is published even if this is dropped.
#[derive(Debug)]
#[must_use = "it tells whether the server has accepted the message"]
pub struct Publishing {
    socket: Socket,
    answer: oneshot::Receiver<Result<Answer, ClientError>>,
}

impl Future for Publishing {
    type Output = Result<Published, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        let answer = answer.unwrap_or_else(|_| Err(self.socket.closed()));
        Poll::Ready(answer.map(|answer| Published { id: answer.id, epoch: answer.epoch }))
    }
}

impl Socket {
    /// Publishes a message. On success the server has accepted it.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::Lost`] the server may have accepted the message: the connection broke
    /// before its answer arrived. While there is no connection, this waits for the next one.
    ///
    /// # Cancel safety
    /// If the future is dropped, the message may be published.
    pub async fn publish(
        &self,
        topic: &TopicName,
        message: impl Into<NewMessage>,
    ) -> Result<Published, ClientError> {
        self.begin_publish(topic, message).await?.await
    }

    /// Publishes a message in two steps: when this returns, the message is on its way behind those before it, and the
    /// result can be awaited later. Messages to one topic are published in the order of these calls. Waits while
    /// [`MAX_OUTSTANDING`](Self::MAX_OUTSTANDING) operations are not answered.
    ///
    /// # Errors
    /// The socket was closed.
    ///
    /// # Cancel safety
    /// If the future is dropped, nothing is published.
    pub async fn begin_publish(
        &self,
        topic: &TopicName,
        message: impl Into<NewMessage>,
    ) -> Result<Publishing, ClientError> {
        self.begin(topic, message.into(), Kind::Publish).await
    }

    /// Publishes a message again whenever the connection is lost before the answer, so it may be published more than once.
    ///
    /// # Errors
    /// The server refuses it, see [`ClientError`], or the socket was closed.
    ///
    /// # Cancel safety
    /// If the future is dropped, the message may be published.
    pub async fn publish_at_least_once(
        &self,
        topic: &TopicName,
        message: impl Into<NewMessage>,
    ) -> Result<Published, ClientError> {
        self.begin(topic, message.into(), Kind::PublishAgain).await?.await
    }

    async fn begin(
        &self,
        topic: &TopicName,
        message: NewMessage,
        kind: Kind,
    ) -> Result<Publishing, ClientError> {
        let size = message.payload_len();
        let line = |rid| operation::publish(rid, topic, message);
        let answer = self.operate(kind, size, line).await?;
        Ok(Publishing { socket: self.clone(), answer })
    }

    /// Pulls messages. Empty if there is none, or none within `options.wait`.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::Lost`] the server may have taken messages, which are lost then.
    ///
    /// # Cancel safety
    /// None: if the future is dropped, messages that the server takes for it are lost. Use [`work`](Self::work) to lose
    /// none.
    pub async fn pull(
        &self,
        topic: &TopicName,
        options: PullOptions,
    ) -> Result<Vec<Message>, ClientError> {
        self.ask(|rid| operation::pull(rid, topic, options)).await?.messages()
    }

    /// Pulls messages of a group, each with a lease, see [`Client::lease`](crate::Client::lease).
    ///
    /// # Errors
    /// See [`ClientError`]. Messages whose answer is lost are redelivered when their leases are over.
    pub async fn lease(
        &self,
        topic: &TopicName,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Result<Vec<Leased>, ClientError> {
        self.ask(|rid| operation::lease(rid, topic, group, options)).await?.leased()
    }

    /// Settles a lease. Returns when the lease is over now, by the server's clock, if it was extended. If the connection is
    /// lost before the answer, it is settled again on the next one.
    ///
    /// # Errors
    /// [`ClientError::LeaseLost`] if the lease is over, [`ClientError::Unconfirmed`] if an attempt whose answer was lost may
    /// have settled it; see [`ClientError`] for others.
    pub async fn settle(
        &self,
        token: &LeaseToken,
        settlement: &Settlement,
    ) -> Result<Option<DateTime<Utc>>, ClientError> {
        let line = |rid| operation::settle(Some(rid), token, settlement);
        let answer = self.operate(Kind::Settle, 0, line).await?;
        Ok(self.answer(answer).await?.lease_expires)
    }

    /// Settles a lease, and tries again for the time `within` while the server is busy.
    ///
    /// # Errors
    /// See [`settle`](Self::settle).
    pub(crate) async fn settle_within(
        &self,
        token: &LeaseToken,
        settlement: &Settlement,
        within: Duration,
    ) -> Result<Option<DateTime<Utc>>, ClientError> {
        let mut retry = Retry::within(within);
        loop {
            match timeout_at(retry.until(), self.settle(token, settlement)).await {
                Ok(Err(error)) => retry.pause(error).await?,
                Ok(settled) => return settled,
                Err(_) => {
                    let reason = format!("no answer within {}", format_duration(within));
                    return Err(websocket::lost(self.0.client.server(), &reason));
                }
            }
        }
    }

    /// Checks that the server answers, and returns how long it took.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let start = Instant::now();
        self.ask(operation::ping).await?;
        Ok(start.elapsed())
    }

    async fn ask(&self, line: impl FnOnce(u64) -> String) -> Result<Answer, ClientError> {
        let answer = self.operate(Kind::Ask, 0, line).await?;
        self.answer(answer).await
    }

    pub(super) async fn answer(
        &self,
        answer: oneshot::Receiver<Result<Answer, ClientError>>,
    ) -> Result<Answer, ClientError> {
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// The share of a payload of this size, in bytes, of what may be outstanding.
    pub(super) fn kib(size: usize) -> u32 {
        let kib = u32::try_from(size.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        kib.min(Self::MAX_OUTSTANDING_KIB)
    }

    /// Hands an operation over, as soon as few enough are outstanding. `size` is that of its payload in bytes.
    pub(super) async fn operate(
        &self,
        kind: Kind,
        size: usize,
        line: impl FnOnce(u64) -> String,
    ) -> Result<oneshot::Receiver<Result<Answer, ClientError>>, ClientError> {
        let shared = &self.0;
        let kib = Self::kib(size);
        let closed = |_| self.closed();
        let operation = Arc::clone(&shared.operations).acquire_owned().await.map_err(closed)?;
        let kib = Arc::clone(&shared.kib).acquire_many_owned(kib).await.map_err(closed)?;
        let rid = self.number();
        let (sender, answer) = oneshot::channel();
        self.command(Command::Operate(Operation {
            rid,
            kind,
            line: line(rid),
            was_lost: false,
            answer: sender,
            _permits: vec![operation, kib],
        }));
        Ok(answer)
    }
}
