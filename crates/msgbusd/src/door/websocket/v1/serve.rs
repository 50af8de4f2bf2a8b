//! `serve` and `reply`: serves a service, and answers its requests.

use std::{
    collections::HashSet,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use msgbus_core::{
    BatchLimit, PublishError, Reply, ReplyToken, Request, ServePull, TopicName,
    json::{self, PayloadForm},
};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    Client,
    answer::{Answer, write_sid},
    ask::service_name,
    content::{Content, write_json},
    follow::End,
    identifier::Label,
    in_hand::{Holder, InHand},
    operation,
    operations::{Begun, Operations},
    output::Output,
    refusal::Refusal,
};
use crate::{
    auth::LiveAuthorization,
    limits::{inflight::Inflight, quota::QuotaPermit},
    service::{
        error::ServiceError,
        parameters::BadParameter,
        pull::WaitingPull,
        requests::{self, Answer as ServiceAnswer},
    },
};

/// The maximum that is handed out at once.
const BATCH: BatchLimit = BatchLimit { events: 64, bytes: 64 << 10 };
/// How often a client that has as many requests as it may have is looked at, in case some are over.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A subscription to the requests of a service.
#[derive(Debug)]
pub(super) struct Serve {
    pub(super) sid: Label,
    client: Client,
    service: TopicName,
    form: PayloadForm,
    holder: Holder,
    /// How many requests its client may have at a time.
    max: usize,
    /// Those that it has. Some may be over.
    in_hand: HashSet<ReplyToken>,
    /// In the queue of the responders, while its client may have more.
    waiting: Option<WaitingPull<ServePull>>,
    /// Until a client that has as many as it may have is looked at.
    look: Option<Pin<Box<Sleep>>>,
    authorization: LiveAuthorization,
    _permit: QuotaPermit,
}

impl Operations {
    pub(super) fn serve(&mut self, fields: &operation::Serve<'_>) -> Result<Begun, Refusal> {
        let sid = fields.sid.needed("sid")?.to_label();
        self.activities.check_new(&sid)?;
        let service = service_name(fields.service.needed_text("service")?)?;
        let max = usize::try_from(fields.max.get().copied().unwrap_or(1)).unwrap_or(usize::MAX);
        if !(1..=Serve::MAX_AT_A_TIME).contains(&max) {
            let why = format!("use a whole number, 1 to {}", Serve::MAX_AT_A_TIME);
            return Err(BadParameter::new("max", why).into());
        }
        let client = &self.client;
        let (permit, authorization) = client.call().admit_responder(&service)?;
        let join = BatchLimit { events: max.min(BATCH.events), ..BATCH };
        let waiting = client.call().serve(&service, join, Inflight::SMALL_FRAME)?;
        let answer = Answer::Sid(sid.clone());
        self.activities.serve(|holder| Serve {
            sid,
            client: client.clone(),
            service,
            form: fields.payload.form(),
            holder,
            max,
            in_hand: HashSet::new(),
            waiting: Some(waiting),
            look: None,
            authorization,
            _permit: permit,
        });
        Ok(Begun::Done(answer))
    }

    pub(super) fn reply(&mut self, fields: &operation::Reply<'_>) -> Result<Begun, Refusal> {
        let token: ReplyToken = fields.token.needed_text("token")?.parse()?;
        let answer = answer_of(fields, self.client.worker.config.max_payload)?;
        let replied = self.client.call().reply(&token, answer);
        match replied {
            Ok(()) | Err(ServiceError::ReplyNotWanted) => self.activities.answered(&token),
            // The keys have changed: nobody can answer it.
            Err(_) => self.activities.hand_back(&token),
        }
        replied?;
        Ok(Begun::Done(Answer::Done))
    }
}

/// What the fields say to a request.
fn answer_of(fields: &operation::Reply<'_>, limit: usize) -> Result<ServiceAnswer, Refusal> {
    let content = Content::of(&fields.text, &fields.json, &fields.base64, &fields.headers);
    let declines = fields.retry.get().is_some_and(|retry| *retry);
    match (fields.error.text(), declines) {
        (None, false) => {
            let payload = content.payload(limit)?;
            Ok(ServiceAnswer::Reply(Reply {
                payload,
                headers: content.headers()?.unwrap_or_default(),
            }))
        }
        _ if content.is_given() => Err(Refusal::Exclusive("a payload, error and retry")),
        (Some(_), true) => Err(Refusal::Exclusive("a payload, error and retry")),
        (Some(reason), false) => Ok(ServiceAnswer::failure(reason)),
        (None, true) => Ok(ServiceAnswer::Decline),
    }
}

impl Serve {
    /// The highest number of requests that a client may have at a time from one `serve`.
    const MAX_AT_A_TIME: usize = 10_000;

    /// Notes that a request was answered, if it was one of this `serve`. Returns whether its client may have another one
    /// that it could not have before.
    pub(super) fn answered(&mut self, holder: Holder, token: &ReplyToken) -> bool {
        let was_full = self.in_hand.len() >= self.max;
        self.holder == holder && self.in_hand.remove(token) && was_full
    }

    /// The requests that its client has, which is not allowed to answer them any more.
    pub(super) fn take_in_hand(&mut self) -> HashSet<ReplyToken> {
        std::mem::take(&mut self.in_hand)
    }

    /// Sends a batch of requests.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Output<'_>,
        in_hand: &mut InHand,
    ) -> Poll<Result<(), End>> {
        if self.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(End::Revoked));
        }
        ready!(self.poll_free(cx, in_hand));
        let requests = match ready!(self.poll_requests(cx)) {
            Ok(requests) => requests,
            Err(ServiceError::Publish(PublishError::Closed)) => {
                return Poll::Ready(Err(End::Closed));
            }
            Err(error) => return Poll::Ready(Err(End::of(&error))),
        };
        if requests.is_empty() {
            return Poll::Ready(Err(self.end()));
        }
        for request in requests {
            self.write(&request, output);
            let token = request.into_token();
            self.in_hand.insert(token);
            in_hand.insert(token, self.holder);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready while the client may have another request. One that is over does not count.
    fn poll_free(&mut self, cx: &mut Context<'_>, in_hand: &mut InHand) -> Poll<()> {
        while self.in_hand.len() >= self.max {
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(LOOK_AGAIN)));
            ready!(look.as_mut().poll(cx));
            look.as_mut().reset(Instant::now() + LOOK_AGAIN);
            self.in_hand.retain(|token| in_hand.waits(token));
        }
        Poll::Ready(())
    }

    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Request>, ServiceError>> {
        let mut waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => self.join()?,
        };
        let polled = waiting.poll(cx);
        if polled.is_pending() {
            self.waiting = Some(waiting);
        }
        polled
    }

    /// Queues for the next requests.
    fn join(&self) -> Result<WaitingPull<ServePull>, ServiceError> {
        let events = (self.max - self.in_hand.len()).min(BATCH.events);
        let limit = BatchLimit { events, ..BATCH };
        self.client.call().serve(&self.service, limit, Inflight::SMALL_FRAME)
    }

    /// Leaves the queue of the responders while the client accepts nothing: others may serve meanwhile.
    pub(super) fn hold_back(&mut self) {
        self.waiting = None;
    }

    /// Ready when the keys no longer allow it.
    pub(super) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.authorization.poll_revoked(cx)
    }

    /// Why no request can come any more.
    fn end(&self) -> End {
        if self.authorization.is_revoked() { End::Revoked } else { End::Closed }
    }

    fn write(&self, request: &Request, output: &mut Output<'_>) {
        let text = output.text();
        text.extend_from_slice(br#"{"op":"request""#);
        write_sid(text, &self.sid);
        text.push(b',');
        let (size, left) = (json::request_size_hint(request), requests::time_left(request));
        write_json(output, &self.client.worker.inflight, size, |out| {
            json::write_request_fields(out, request, &left, self.form);
        });
        output.text().push(b'}');
        output.end_line();
    }
}
