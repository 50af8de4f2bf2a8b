//! Requests to services, and answers to them.

use std::{sync::Arc, time::Duration};

use msgbus_core::{NewRequest, Reply, ReplyToken, TopicName};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::timeout,
};

use super::{
    Socket,
    command::Command,
    operation,
    outgoing::{Kind, Operation},
    responder::{RequestReceiver, SocketResponder},
    subscriptions::Receiver,
};
use crate::{
    error::ClientError,
    service::{Answer, RequestError},
};

/// How much longer than the server a caller waits, for a connection that is lost or slow.
const GRACE: Duration = Duration::from_secs(5);

impl Socket {
    /// Asks a service, and waits for the reply. A service without responders is an error at once.
    ///
    /// If the connection is lost before the reply, this fails with [`ClientError::Lost`]: a responder may have done the
    /// work. A request that may be repeated ([`NewRequest::may_repeat`]) is sent again on the next connection. Waits while
    /// [`MAX_ASKED`](Self::MAX_ASKED) requests wait for their replies. Responders on this socket may be asked, too; what
    /// they ask meanwhile counts as well.
    ///
    /// # Errors
    /// See [`RequestError`]. [`RequestError::TimedOut`] also if there was no connection within the timeout.
    ///
    /// # Cancel safety
    /// If the future is dropped, a responder may do the work.
    pub async fn request(
        &self,
        service: &TopicName,
        request: impl Into<NewRequest>,
    ) -> Result<Reply, RequestError> {
        let (payload, headers, wait, may_repeat) = request.into().into_parts();
        let kind = if may_repeat { Kind::AskAgain } else { Kind::Ask };
        let size = payload.len();
        let line = |rid| operation::request(rid, service, (payload, headers, wait, may_repeat));
        let asked = async {
            let permits = self.permits_to_ask(size).await?;
            self.answer(self.send_free(kind, permits, line)).await?.into_reply()
        };
        timeout(wait + GRACE, asked).await.unwrap_or(Err(RequestError::TimedOut))
    }

    async fn permits_to_ask(&self, size: usize) -> Result<Vec<OwnedSemaphorePermit>, ClientError> {
        let kib = Self::kib(size);
        let asked = Arc::clone(&self.0.asked).acquire_owned().await.map_err(|_| self.closed())?;
        let kib = Arc::clone(&self.0.asked_kib).acquire_many_owned(kib).await;
        Ok(vec![asked, kib.map_err(|_| self.closed())?])
    }

    /// Serves a service, with at most `at_a_time` requests that are not answered: 1 to
    /// [`MAX_AT_A_TIME`](SocketResponder::MAX_AT_A_TIME).
    ///
    /// # Errors
    /// The server refuses it, see [`ClientError`], or the socket was closed.
    pub async fn serve(
        &self,
        service: &TopicName,
        at_a_time: usize,
    ) -> Result<SocketResponder, ClientError> {
        let at_a_time = at_a_time.clamp(1, SocketResponder::MAX_AT_A_TIME);
        let (requests, received) = mpsc::channel(RequestReceiver::capacity(at_a_time));
        let (receiver, connection) =
            RequestReceiver::new(service.clone(), at_a_time, requests, Arc::downgrade(&self.0));
        let (number, started) = self.start(service.to_string(), None, Receiver::Requests(receiver));
        // Made before the answer, so that dropping this future ends the responder.
        let responder = SocketResponder::new(self.clone(), number, received, connection);
        started.await.unwrap_or_else(|_| Err(self.closed()))?;
        Ok(responder)
    }

    /// Answers a request within a time.
    pub(crate) async fn reply(
        &self,
        token: &ReplyToken,
        answer: &Answer,
        within: Duration,
    ) -> Result<(), ClientError> {
        let sent = self
            .send_free(Kind::Reply, Vec::new(), |rid| operation::reply(Some(rid), token, answer));
        // Without a connection the request has ended.
        let answered = timeout(within + GRACE, self.answer(sent)).await;
        answered.unwrap_or(Err(ClientError::ReplyNotWanted)).map(drop)
    }

    /// Hands over an operation that does not count as outstanding: a reply must not wait for requests that wait for it.
    fn send_free(
        &self,
        kind: Kind,
        permits: Vec<OwnedSemaphorePermit>,
        line: impl FnOnce(u64) -> String,
    ) -> oneshot::Receiver<Result<super::answer::Answer, ClientError>> {
        let rid = self.number();
        let (sender, answer) = oneshot::channel();
        self.command(Command::Operate(Operation {
            rid,
            kind,
            line: line(rid),
            was_lost: false,
            answer: sender,
            _permits: permits,
        }));
        answer
    }
}
