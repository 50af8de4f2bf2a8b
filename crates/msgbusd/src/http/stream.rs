//! `GET /<topic>` as a stream: server-sent events, JSON lines or raw lines. docs/protocol.md,
//! sections 6.10 to 6.14.
//!
//! The answer's body is the subscription: hyper asks for the next piece when the last one is
//! written, so a slow reader holds nothing but its place in the topic.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Either;
use hyper::{
    Request, Response,
    body::{Body, Frame},
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use msgbus_core::{
    BatchLimit, Event, Position, RecvError, SubscribeOptions, Subscription, TopicName,
};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::{Level, debug, enabled};

use super::{
    Answer, App, accepts, answers, error::Refusal, items, position, query, query::Query,
    room::Patience, seat,
};
use crate::{
    bound::Hold,
    frames::{Form, Ring},
    keys::Permit,
    peer::Peer,
    wake::Relay,
};

/// The longest silence of a stream whose format has a keep-alive, if `--ping-interval` is not shorter.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A comment without an empty line behind it: some parsers take every empty line for an event.
const SSE_KEEP_ALIVE: &[u8] = b":\n";
/// What is made ready at once.
const BATCH: BatchLimit = BatchLimit { events: 64, bytes: 64 << 10 };
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The format that the request asks for, if it asks for a stream at all.
pub(super) fn wanted(query: &Query<'_>, headers: &HeaderMap) -> Result<Option<Form>, Refusal> {
    if let Some(format) = query.get("stream")? {
        return match format {
            "sse" => Ok(Some(Form::Sse)),
            "ndjson" => Ok(Some(Form::JsonLine)),
            "raw" => Ok(Some(Form::RawLine)),
            _ => {
                Err(Refusal::Parameter { name: "stream", why: "use sse, ndjson or raw".to_owned() })
            }
        };
    }
    Ok(if accepts(headers, "text/event-stream") {
        Some(Form::Sse)
    } else if accepts(headers, "application/x-ndjson") {
        Some(Form::JsonLine)
    } else {
        None
    })
}

/// Fixes the place in the topic, then answers: nothing falls between.
pub(super) fn stream<B>(
    app: &Arc<App>,
    peer: Peer,
    topic: &TopicName,
    request: &Request<B>,
    form: Form,
    permit: Permit,
) -> Result<Answer, Refusal> {
    let query = query(request).only(&["stream", "since", "index", "lag", "ticket"])?;
    let (from, note) = match position::requested(&query, request.headers()) {
        // A browser cannot be told by a status: it would only ask again, with the same header.
        Err(Refusal::Header { .. }) if form == Form::Sse => {
            let note = ": Last-Event-ID is not of this server, and ignored\n";
            (position::by_query(&query)?, note)
        }
        position => (position?, ""),
    };
    let options = SubscribeOptions {
        from: from.unwrap_or_default(),
        lag: position::lag(&query)?,
        label: Some(peer.to_string().into()),
    };
    let seat = seat(app)?;
    let subscription = app.bus.subscribe(topic, options)?;
    debug!(%peer, %topic, from = subscription.start().next_id, "Stream");

    let content_type = match form {
        Form::Sse => "text/event-stream",
        Form::JsonLine => "application/x-ndjson",
        _ => "application/octet-stream",
    };
    let (epoch, start) = (subscription.topic().epoch, subscription.start());
    let mut live = Live::new(app, peer, subscription, form, note, permit, seat);
    if form == Form::Sse && is_event_source(request.headers()) {
        live.name_the_start();
    }
    let mut answer = Response::new(Either::Right(live));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Says to nginx not to hold the stream back.
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    answers::tell_start(headers, epoch, start);
    Ok(answer)
}

fn keep_alive(app: &App) -> Duration {
    KEEP_ALIVE.min(app.config.timeouts.ping)
}

/// Whether the client is an `EventSource`: it fetches with the cache mode `no-store`, for which the Fetch
/// standard adds this header. Other clients that read server-sent events take the block that names the start
/// for an empty event, and do not need it.
fn is_event_source(headers: &HeaderMap) -> bool {
    items(headers, &header::CACHE_CONTROL).any(|item| item.eq_ignore_ascii_case("no-cache"))
}

/// A body that ends when the subscription, the client or the server does.
#[derive(Debug)]
pub(crate) struct Live {
    app: Arc<App>,
    peer: Peer,
    subscription: Subscription,
    permit: Permit,
    _seat: Hold,
    form: Form,
    ring: Arc<Ring>,
    relay: Relay,
    room: Patience,
    events: Vec<Event>,
    /// The id that is next if nothing is missed.
    next_id: u64,
    /// What is ready to be written.
    pieces: VecDeque<Bytes>,
    keep_alive: Pin<Box<Sleep>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
    over: bool,
}

impl Live {
    fn new(
        app: &Arc<App>,
        peer: Peer,
        subscription: Subscription,
        form: Form,
        note: &'static str,
        permit: Permit,
        seat: Hold,
    ) -> Self {
        let mut live = Self {
            app: Arc::clone(app),
            peer,
            permit,
            _seat: seat,
            ring: app.frames.ring(subscription.topic().epoch, form),
            form,
            relay: Relay::default(),
            room: Patience::default(),
            events: Vec::new(),
            // What was gone is told again to one who is cut off before it has been told.
            next_id: subscription.start().next_id - subscription.start().missed,
            pieces: VecDeque::new(),
            keep_alive: Box::pin(sleep(keep_alive(app))),
            draining: Box::pin(app.tasks.drain.clone().cancelled_owned()),
            over: false,
            subscription,
        };
        if !note.is_empty() {
            live.pieces.push_back(Bytes::from_static(note.as_bytes()));
        }
        if live.subscription.start().restarted {
            let epoch = live.subscription.topic().epoch;
            live.say("restart", &format!("\"epoch\":\"{epoch}\""));
        }
        live
    }

    /// Tells a browser where it starts: cut off before the first message, it resumes there and not
    /// wherever the topic is by then. An id without data is no event.
    fn name_the_start(&mut self) {
        self.pieces.push_back(format!("id: {}\n\n", self.position()).into());
    }

    /// Of one who has everything so far.
    fn position(&self) -> Position {
        Position::before(self.subscription.topic().epoch, self.next_id)
    }

    /// Says something that is no message, where the format has a way to.
    fn say(&mut self, event: &str, fields: &str) {
        let text = match self.form {
            Form::Sse => format!("event: {event}\ndata: {{{fields}}}\n\n"),
            Form::JsonLine if fields.is_empty() => format!("{{\"event\":\"{event}\"}}\n"),
            Form::JsonLine => format!("{{\"event\":\"{event}\",{fields}}}\n"),
            _ => return,
        };
        self.pieces.push_back(text.into());
    }

    fn take_note(&mut self, event: &Event) {
        match event {
            Event::Message(message) => {
                self.next_id = message.id() + 1;
                let frame = self.ring.frame(message);
                self.pieces.push_back(self.app.inflight.track(frame));
            }
            Event::Missed(count) => {
                self.next_id += count;
                self.say_gap(*count);
            }
        }
    }

    /// Told once: who resumes behind it is not told again.
    fn say_gap(&mut self, count: u64) {
        let fields = format!("\"missed\":{count}");
        if self.form != Form::Sse {
            return self.say("gap", &fields);
        }
        let event = format!("event: gap\ndata: {{{fields}}}\nid: {}\n\n", self.position());
        self.pieces.push_back(event.into());
    }

    fn end(&mut self, end: RecvError) {
        match end {
            RecvError::Deleted => self.say("deleted", ""),
            RecvError::Lagged { missed } => self.say("lagged", &format!("\"missed\":{missed}")),
            _ => {}
        }
        self.over = true;
    }

    fn revoke(&mut self) {
        self.say("revoked", "");
        self.over = true;
    }

    /// Waits for more pieces, or for the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.draining.as_mut().poll(cx).is_ready() {
            self.over = true;
            return Poll::Ready(());
        }
        if self.permit.poll_revoked(cx).is_ready() {
            self.revoke();
            return Poll::Ready(());
        }
        let Self { app, room, relay, subscription, events, .. } = self;
        let received = match room.poll_receive(cx, app, subscription, BATCH) {
            Poll::Ready(batch) => {
                relay.poll(cx, |cx| subscription.poll_recv_batch(cx, events, batch))
            }
            Poll::Pending => Poll::Pending,
        };
        if let Poll::Ready(received) = received {
            // It may have been published since the keys were looked at above.
            if self.permit.poll_revoked(cx).is_ready() {
                self.revoke();
                return Poll::Ready(());
            }
            let mut events = std::mem::take(&mut self.events);
            for event in events.drain(..) {
                self.take_note(&event);
            }
            self.events = events;
            if let Err(end) = received {
                self.end(end);
            }
            self.keep_alive.as_mut().reset(Instant::now() + keep_alive(&self.app));
            return Poll::Ready(());
        }
        ready!(self.keep_alive.as_mut().poll(cx));
        self.keep_alive.as_mut().reset(Instant::now() + keep_alive(&self.app));
        // The timer is set again, and has to be polled to wake this.
        let _ = self.keep_alive.as_mut().poll(cx);
        match self.form {
            Form::Sse => self.pieces.push_back(Bytes::from_static(SSE_KEEP_ALIVE)),
            Form::JsonLine => self.pieces.push_back(Bytes::from_static(b"\n")),
            _ => return Poll::Pending,
        }
        Poll::Ready(())
    }
}

impl Body for Live {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.over {
                return Poll::Ready(None);
            }
            ready!(self.poll_more(cx));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // The books take the topic's lock: not for a line that nobody reads.
        if !enabled!(Level::DEBUG) {
            return;
        }
        let stats = self.subscription.stats();
        let topic = &self.subscription.topic().name;
        debug!(peer = %self.peer, %topic, received = stats.received, missed = stats.missed, "Stream ended");
    }
}
