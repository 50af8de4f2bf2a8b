//! The HTTP door: from a request to exactly one handler. Each file beside this one is one door or
//! one concern of theirs; doors do not know each other.

mod admin;
mod answers;
mod auth;
mod body;
mod error;
mod follower;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod head;
mod host;
mod names;
mod origin;
mod position;
mod publish;
mod pull;
mod query;
mod room;
mod routes;
mod stream;
mod topics;
mod websocket;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use msgbus_core::MessageBus;
use tracing::{Level, debug, enabled};

use self::{error::Refusal, head::Outline, query::Query, routes::Route};
use crate::{
    background::Background,
    bound::{Bound, Hold},
    config::Config,
    frames::Frames,
    inflight::Inflight,
    keys::{Action, Caller, Keyring, Permit},
    metrics::Metrics,
    peer::Peer,
    places::{PerAddress, Places},
    rates::Rates,
    socket::Conversation,
    worker::Worker,
};

pub(crate) use self::stream::Live;
/// A whole body, or one that goes on. That one is boxed: an answer is moved often, and most are whole.
pub(crate) type AnswerBody = Either<Full<Bytes>, Box<Live>>;
type Answer = Response<AnswerBody>;

/// What every door works with.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) bus: MessageBus,
    pub(crate) config: Config,
    /// `None` where everybody may do everything.
    pub(crate) keyring: Option<Arc<Keyring>>,
    pub(crate) metrics: Metrics,
    pub(crate) frames: Frames,
    pub(crate) inflight: Inflight,
    /// Websockets and streams.
    pub(crate) subscriptions: Arc<Bound>,
    pub(crate) connections: Arc<Places>,
    pub(crate) rates: Rates,
    pub(crate) background: Background,
}

impl App {
    pub(crate) fn new(config: Config, keyring: Option<Arc<Keyring>>) -> Self {
        const OF_ANOTHER_MACHINE: usize = 1000;
        let per_address = match config.max_connections_per_address {
            Some(most) => PerAddress::Most(most),
            None => PerAddress::MostOfOthers(OF_ANOTHER_MACHINE),
        };
        Self {
            bus: MessageBus::new(config.bus.clone()),
            keyring,
            metrics: Metrics::new(),
            frames: Frames::default(),
            inflight: Inflight::new(config.max_inflight_bytes),
            subscriptions: Bound::new(config.max_subscriptions),
            connections: Places::new(config.max_connections, per_address),
            rates: Rates::new(config.publish_rate),
            background: Background::default(),
            config,
        }
    }
}

const TOPIC_METHODS: &str = "GET, HEAD, PUT, POST, DELETE";
const READ_METHODS: &str = "GET, HEAD";

/// Answers one request. It is borrowed all the way down: each async fn that took it would keep it twice,
/// and hyper keeps the room for all of them as long as the connection is open.
pub(crate) async fn answer(
    worker: &Arc<Worker>,
    peer: Peer,
    conversation: &Conversation,
    request: &mut Request<Incoming>,
) -> Answer {
    worker.request();
    let app: &App = worker;
    let outline = Outline::of(request.headers());
    let checked = head::check(request, outline, peer)
        .and_then(|()| origin::check(request, outline, peer, &app.config));
    let source = match checked {
        Ok(source) => source,
        Err(refusal) => return refuse(app, &refusal, peer, request),
    };
    let mut answer = if request.method() == Method::OPTIONS && source != origin::Source::Own {
        let mut answer = empty(StatusCode::NO_CONTENT);
        source.preflight(answer.headers_mut());
        answer
    } else {
        let routed = route(worker, peer, conversation, request, outline).await;
        routed.unwrap_or_else(|refusal| refuse(app, &refusal, peer, request))
    };
    source.share(answer.headers_mut());
    if !app.config.allowed_origins.is_empty() {
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    }
    answer
}

/// What hyper answers by itself in HTTP/1.1.
pub(crate) fn too_many_headers(worker: &Worker) -> Answer {
    worker.request();
    empty(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
}

/// What a request of HTTP/2 gets for which there is no memory. Without a body: that would need some.
pub(crate) fn no_memory_for_request(worker: &Worker) -> Answer {
    worker.request();
    worker.metrics.refusal(Refusal::TooMuchInFlight.code());
    let mut answer = empty(StatusCode::SERVICE_UNAVAILABLE);
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn refuse(app: &App, refusal: &Refusal, peer: Peer, request: &Request<Incoming>) -> Answer {
    app.metrics.refusal(refusal.code());
    if enabled!(Level::DEBUG) {
        // Not the rest of the URL: a ticket may be in it, or a key that is there by mistake.
        let (path, refusal) = (request.uri().path(), refusal.for_the_log());
        debug!(%peer, method = %request.method(), path, refusal, "refused");
    }
    refusal.answer(error::prefers_json(request.headers()))
}

async fn route(
    worker: &Arc<Worker>,
    peer: Peer,
    conversation: &Conversation,
    request: &mut Request<Incoming>,
    outline: Outline,
) -> Result<Answer, Refusal> {
    let app: &App = worker;
    let route = Route::of(request)?;
    // Before anything of a body is read, and whatever there is.
    let caller = auth::check(app, &route, request)?;
    if needs_own_name(&route, caller.as_deref()) {
        host::check(request, outline, peer, &app.config)?;
    }
    if matches!(route, Route::Pull(_)) {
        origin::may_take(request)?;
    }
    match route {
        Route::Publish(topic) => {
            publish::publish(app, peer, &topic, request, outline, caller.as_deref()).await
        }
        Route::Pull(topic) => {
            let permit = auth::permit(app, caller, Action::Pull, &topic);
            pull::pull(worker, peer, conversation, &topic, request, permit).await
        }
        Route::Peek(topic) => pull::peek(app, &topic, request).await,
        Route::Websocket(topic) => {
            let permit = auth::permit(app, caller, Action::Subscribe, &topic);
            websocket::subscribe(worker, peer, &topic, request, permit)
        }
        Route::Stream(topic, form) => {
            let permit = auth::permit(app, caller, Action::Subscribe, &topic);
            stream::stream(worker, peer, conversation, &topic, request, form, permit)
        }
        Route::Counters(topic) => topics::counters(app, &topic, request),
        Route::Delete(topic) => topics::delete(app, peer, &topic, request),
        // Boxed, so that no other request is larger for it.
        Route::List => Box::pin(topics::list(worker, request, caller)).await,
        Route::Inspect(topic) => Box::pin(admin::inspect(worker, topic)).await,
        Route::Stats => Ok(Box::pin(admin::stats(worker)).await),
        Route::Metrics => Ok(Box::pin(admin::metrics(worker)).await),
        Route::Health => Ok(admin::health(worker)),
        Route::Ticket => admin::ticket(app, request, caller),
    }
}

/// Whether a page of another site could send this, if its name pointed here: it has no key, and whoever looks
/// after servers asks `/healthz` by any name.
fn needs_own_name(route: &Route, caller: Option<&Caller>) -> bool {
    let has_key = caller.is_some_and(|caller| caller.key_name().is_some());
    !has_key && !matches!(route, Route::Health)
}

/// The place of one more who follows a topic.
fn seat(app: &App) -> Result<Hold, Refusal> {
    let limit = app.subscriptions.limit();
    app.subscriptions.take(1).ok_or(Refusal::TooManySubscriptions { limit })
}

/// How a subscription is shown: who it is by its key, if it has shown one, and where from.
fn label(peer: Peer, permit: &Permit) -> Box<str> {
    match permit.key_name() {
        Some(key) => format!("{key}@{peer}").into(),
        None => peer.to_string().into(),
    }
}

/// Whether the client names this media type among those it accepts. A wildcard names none, and
/// `;q=0` refuses.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    if !headers.contains_key(header::ACCEPT) {
        return false;
    }
    headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|item| {
            let mut parts = item.split(';').map(str::trim);
            parts.next().is_some_and(|named| named.eq_ignore_ascii_case(media_type))
                && !parts.any(is_quality_0)
        })
    })
}

/// Whether a parameter of an accepted type says that it is not acceptable (RFC 9110, section 12.4.2).
fn is_quality_0(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        name.eq_ignore_ascii_case("q") && value.parse().is_ok_and(|quality: f32| quality <= 0.0)
    })
}

/// The value of a header, the first of several. Few headers are compared sooner than a name is hashed.
fn find<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    const FEW: usize = 6;
    if headers.len() > FEW {
        return headers.get(name);
    }
    headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// The items of a header that is a list.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Gives the memory of a head back before its request waits: it can be three times `--max-header-size`. The path
/// and what an error looks at stay.
fn shed_head<B>(request: &mut Request<B>) {
    const LONGEST_PATH: usize = 1 << 10;
    if request.headers().is_empty() {
        return;
    }
    let prefers_json = error::prefers_json(request.headers());
    // What is taken over would be a part of the buffer that all of the head is in.
    *request.headers_mut() = HeaderMap::new();
    if prefers_json {
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    }
    let path = Some(request.uri().path()).filter(|path| path.len() <= LONGEST_PATH);
    let path = path.and_then(|path| Uri::try_from(path.as_bytes()).ok());
    *request.uri_mut() = path.unwrap_or_default();
}

fn query<B>(request: &Request<B>) -> Query<'_> {
    Query::parse(request.uri().query())
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Either::Left(Full::default()));
    *answer.status_mut() = status;
    answer
}

/// An answer whose body counts as in flight until it is written.
fn content(app: &App, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = app.inflight.track_answer(body.into());
    let mut answer = Response::new(Either::Left(Full::new(body)));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

fn no_store(answer: &mut Answer) {
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}
