//! `serve` and `reply`: serves a service, and answers its requests.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use msgbus_core::{
    BatchLimit, Reply, ReplyToken, Request, ServePull, TopicName,
    json::{self, PayloadForm},
};
use tokio::time::{Instant, Sleep, sleep_until};

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
/// The shortest time between two searches for requests whose time is over.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A subscription to the requests of a service.
#[derive(Debug)]
pub(super) struct Serve {
    pub(super) sid: Label,
    client: Client,
    service: TopicName,
    form: PayloadForm,
    holder: Holder,
    /// How many requests its client may have at a time, and how many it has.
    max: usize,
    in_hand: usize,
    /// In the queue of the responders, while its client may have more.
    waiting: Option<WaitingPull<ServePull>>,
    /// No request in hand is over before this time.
    earliest: Option<Instant>,
    /// While its client has as many as it may have: until some of them may be over.
    full: Option<Pin<Box<Sleep>>>,
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
            in_hand: 0,
            waiting: Some(waiting),
            earliest: None,
            full: None,
            authorization,
            _permit: permit,
        });
        Ok(Begun::Done(answer))
    }

    pub(super) fn reply(&mut self, fields: &operation::Reply<'_>) -> Result<Begun, Refusal> {
        let token: ReplyToken = fields.token.needed_text("token")?.parse()?;
        let answer = answer_of(fields, self.client.worker.config.max_payload)?;
        let replied = self.client.call().reply(&token, answer);
        if matches!(replied, Ok(()) | Err(ServiceError::ReplyNotWanted)) {
            self.activities.answered(&token);
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

    pub(super) fn number(&self) -> u64 {
        self.holder.number
    }

    /// Notes that a request was answered, if it was one of this `serve`. Returns whether its client may have another one
    /// that it could not have before.
    pub(super) fn answered(&mut self, holder: Holder) -> bool {
        let (is_mine, was_full) = (self.holder == holder, self.in_hand >= self.max);
        if is_mine {
            self.in_hand -= 1;
        }
        is_mine && was_full
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
            Err(error) => return Poll::Ready(Err(End::of(&error))),
        };
        if requests.is_empty() {
            return Poll::Ready(Err(self.end()));
        }
        let now = Instant::now();
        for request in requests {
            self.write(&request, output);
            let until = now + request.time_left();
            self.in_hand += 1;
            self.earliest = Some(self.earliest.map_or(until, |earliest| earliest.min(until)));
            in_hand.insert(request.into_token(), self.holder, until);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready while the client may have another request. A request whose time is over does not count.
    fn poll_free(&mut self, cx: &mut Context<'_>, in_hand: &mut InHand) -> Poll<()> {
        while self.in_hand >= self.max {
            if let Some(full) = &mut self.full {
                ready!(full.as_mut().poll(cx));
                let now = Instant::now();
                (self.in_hand, self.earliest) = in_hand.remove_over(self.holder.number, now);
                self.full = None;
            } else {
                let soon = Instant::now() + LOOK_AGAIN;
                let at = self.earliest.map_or(soon, |earliest| earliest.max(soon));
                self.full = Some(Box::pin(sleep_until(at)));
            }
        }
        self.full = None;
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
        let events = (self.max - self.in_hand).min(BATCH.events);
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
