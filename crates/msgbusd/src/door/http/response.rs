//! Responses, and the headers that several handlers set.

use std::cell::RefCell;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use msgbus_core::{StartPosition, store::Durability};

use super::names::{MSGBUS_EPOCH, MSGBUS_MISSED, MSGBUS_NEXT_ID, MSGBUS_RESTARTED};
use super::stream::StreamingBody;
use crate::state::App;

/// A whole body or a stream. A stream is boxed, because most bodies are whole and responses are moved often.
pub(crate) type ResponseBody = Either<Full<Bytes>, Box<StreamingBody>>;
pub(crate) type HttpResponse = Response<ResponseBody>;

thread_local! {
    /// The latest epoch and its header value. The epoch of a topic rarely changes.
    static LATEST: RefCell<(u64, HeaderValue)> = RefCell::new((0, number(0)));
}

/// Sets the headers that say where a reader starts.
pub(super) fn set_position_headers(headers: &mut HeaderMap, epoch: u64, start: StartPosition) {
    headers.insert(MSGBUS_EPOCH, self::epoch(epoch));
    headers.insert(MSGBUS_NEXT_ID, number(start.next_id));
    if start.missed > 0 || start.is_uncounted {
        headers.insert(MSGBUS_MISSED, number(start.missed));
    }
    if start.restarted {
        headers.insert(MSGBUS_RESTARTED, HeaderValue::from_static("true"));
    }
}

/// A number as a header value. It takes one allocation; the library's conversion takes two.
pub(super) fn number(number: u64) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(number))
        .unwrap_or_else(|_| HeaderValue::from(number))
}

/// An epoch as a header value.
pub(super) fn epoch(epoch: u64) -> HeaderValue {
    LATEST.with_borrow_mut(|(latest, written)| {
        if *latest != epoch {
            *latest = epoch;
            *written = number(epoch);
        }
        written.clone()
    })
}

/// A durability as a header value. The values are checked when they are compiled.
pub(super) fn durability(durability: Durability) -> HeaderValue {
    const MEMORY: HeaderValue = HeaderValue::from_static(Durability::Memory.as_str());
    const WRITTEN: HeaderValue = HeaderValue::from_static(Durability::Written.as_str());
    const SYNCED: HeaderValue = HeaderValue::from_static(Durability::Synced.as_str());
    const ENGINE: HeaderValue = HeaderValue::from_static(Durability::Engine.as_str());
    match durability {
        Durability::Memory => MEMORY,
        Durability::Written => WRITTEN,
        Durability::Synced => SYNCED,
        Durability::Engine => ENGINE,
    }
}

pub(super) fn empty(status: StatusCode) -> HttpResponse {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

/// A response with a body that counts as in flight until it is written.
pub(super) fn content(app: &App, media_type: &'static str, body: impl Into<Bytes>) -> HttpResponse {
    let body = app.inflight.track_response(body.into());
    let mut response = Response::new(Either::Left(Full::new(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

pub(super) fn no_store(response: &mut HttpResponse) {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}
