//! A request that a responder has, until it answers.

use std::time::Duration;

use bytes::Bytes;
use msgbus_core::{Headers, Reply, ReplyToken, TopicName};
use tokio::{runtime::Handle, time::Instant};

use super::Failure;
use crate::{client::Client, error::ClientError, socket::Socket};

/// A request that was given to this responder.
///
/// A request that is dropped is declined in the background, so that its requester does not wait for nothing. If the
/// runtime ends before that, the request ends by time.
#[derive(Debug)]
#[must_use = "a request that is dropped is declined"]
pub struct Request {
    service: TopicName,
    payload: Bytes,
    headers: Headers,
    deadline: Instant,
    /// `None` once it is answered.
    open: Option<Open>,
}

/// What a responder says to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Reply),
    Failure(Failure),
    /// Another responder gets the request, if its requester allows that; else it fails.
    Decline,
}

/// How requests are answered.
#[derive(Debug)]
pub(crate) enum Replier {
    Http(Box<Client>),
    Socket(Socket),
}

#[derive(Debug)]
struct Open {
    replier: Replier,
    token: ReplyToken,
}

impl Request {
    /// `time_left` is how long the requester still waits.
    pub(crate) fn new(
        replier: Replier,
        service: TopicName,
        token: ReplyToken,
        (payload, headers): (Bytes, Headers),
        time_left: Duration,
    ) -> Self {
        let deadline = Instant::now() + time_left.min(msgbus_core::NewRequest::MAX_TIMEOUT);
        Self { service, payload, headers, deadline, open: Some(Open { replier, token }) }
    }

    /// The service.
    pub fn service(&self) -> &TopicName {
        &self.service
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The headers, the content type among them.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The media type of the payload, if the requester has given one.
    pub fn content_type(&self) -> Option<&str> {
        self.headers.content_type()
    }

    /// Drops the request without an answer, because it is over.
    pub(crate) fn forget(mut self) {
        self.open = None;
    }

    /// When the requester stops waiting. A reply after that is not wanted.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How long the requester still waits.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Replies. Tries again until the deadline while the server cannot be reached. This goes on in the background if
    /// the future is dropped. If the server refuses the reply, because it is too large for example, the request fails
    /// with that as the reason.
    ///
    /// # Errors
    /// [`ClientError::ReplyNotWanted`] if nobody waits for it, [`ClientError::ReplyUnconfirmed`] if it may have
    /// arrived at an earlier attempt. See [`ClientError`] for others.
    pub async fn reply(self, reply: impl Into<Reply>) -> Result<(), ClientError> {
        self.answer(Answer::Reply(reply.into())).await
    }

    /// Replies with a failure: a reason for people, and optionally a status. Tries again as [`reply`](Self::reply) does.
    ///
    /// # Errors
    /// See [`reply`](Self::reply).
    pub async fn fail(self, failure: impl Into<Failure>) -> Result<(), ClientError> {
        self.answer(Answer::Failure(failure.into())).await
    }

    /// Gives the request back: another responder gets it if its requester allows that
    /// ([`NewRequest::may_repeat`](msgbus_core::NewRequest::may_repeat)); else it fails. Tries again as
    /// [`reply`](Self::reply) does.
    ///
    /// # Errors
    /// See [`reply`](Self::reply).
    pub async fn decline(self) -> Result<(), ClientError> {
        self.answer(Answer::Decline).await
    }

    async fn answer(mut self, answer: Answer) -> Result<(), ClientError> {
        let Some(open) = self.open.take() else { return Err(ClientError::ReplyNotWanted) };
        // If the task has ended, so has the runtime, or it will soon.
        let answered = tokio::spawn(open.answer(answer, self.deadline)).await;
        answered.unwrap_or(Err(ClientError::ReplyNotWanted))
    }
}

impl Open {
    async fn answer(self, answer: Answer, deadline: Instant) -> Result<(), ClientError> {
        let answered = self.send(&answer, deadline).await;
        if let (Answer::Reply(_), Err(refused @ ClientError::Refused { .. })) = (&answer, &answered)
        {
            let reason = Failure::new(format!("the reply was refused: {refused}"));
            // If it fails, the request ends by time.
            let _ = self.send(&Answer::Failure(reason), deadline).await;
        }
        answered
    }

    async fn send(&self, answer: &Answer, deadline: Instant) -> Result<(), ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        match &self.replier {
            Replier::Http(client) => client.answer(&self.token, answer, left).await,
            Replier::Socket(socket) => socket.reply(&self.token, answer, left).await,
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let is_late = self.deadline <= Instant::now();
        let Some(open) = self.open.take().filter(|_| !is_late) else { return };
        if let Ok(runtime) = Handle::try_current() {
            let deadline = self.deadline;
            runtime.spawn(async move { open.answer(Answer::Decline, deadline).await });
        }
    }
}
