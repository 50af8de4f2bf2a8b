//! Routes: what a request asks for, by its method, path and parameters, and the permission that it needs.

use std::cell::RefCell;

use hyper::{Method, Request};
use msgbus_core::TopicName;
use percent_encoding::percent_decode_str;

use super::{error::ApiError, handshake, pull, query::Query, stream};
use crate::{
    auth::{Action, Permission},
    encode::frame_cache::FrameFormat,
};

pub(super) const TOPIC_METHODS: &str = "GET, HEAD, PUT, POST, DELETE";
pub(super) const READ_METHODS: &str = "GET, HEAD";

/// A route.
#[derive(Debug)]
pub(super) enum Route {
    List,
    Metrics,
    Health,
    Ready,
    Stats,
    Ticket,
    Inspect(TopicName),
    Publish(TopicName),
    Pull(TopicName),
    Peek(TopicName),
    Websocket(TopicName),
    Stream(TopicName, FrameFormat),
    Counters(TopicName),
    Delete(TopicName),
}

impl Route {
    pub(super) fn of<B>(request: &Request<B>, query: &Query) -> Result<Self, ApiError> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let read = |route| {
            if is_read { Ok(route) } else { Err(ApiError::Method { allow: READ_METHODS }) }
        };
        match request.uri().path() {
            "/" => match *request.method() {
                _ if is_read && handshake::is_wanted(request) => Err(ApiError::WebsocketOnRoot),
                Method::PUT | Method::POST | Method::DELETE => Err(ApiError::NoTopic),
                _ => read(Self::List),
            },
            "/metrics" => read(Self::Metrics),
            "/healthz" => read(Self::Health),
            "/readyz" => read(Self::Ready),
            "/-/stats" => read(Self::Stats),
            "/-/ticket" => Ok(Self::Ticket),
            path => match path.strip_prefix("/-/") {
                Some(rest) => {
                    let topic = rest.strip_prefix("topics/").ok_or(ApiError::NothingHere)?;
                    read(Self::Inspect(topic_name(topic)?))
                }
                None => Self::of_topic(request, query, path),
            },
        }
    }

    fn of_topic<B>(request: &Request<B>, query: &Query, path: &str) -> Result<Self, ApiError> {
        Ok(match *request.method() {
            Method::PUT | Method::POST => Self::Publish(topic_name(path)?),
            Method::GET => Self::of_get(request, query, topic_name(path)?)?,
            Method::HEAD => Self::Counters(topic_name(path)?),
            Method::DELETE => Self::Delete(topic_name(path)?),
            _ => return Err(ApiError::Method { allow: TOPIC_METHODS }),
        })
    }

    fn of_get<B>(request: &Request<B>, query: &Query, topic: TopicName) -> Result<Self, ApiError> {
        if handshake::is_wanted(request) {
            return Ok(Self::Websocket(topic));
        }
        if query.flag("peek")? {
            return Ok(Self::Peek(topic));
        }
        if pull::is_wanted(query) {
            return Ok(Self::Pull(topic));
        }
        Ok(match stream::wanted(query, request.headers())? {
            Some(format) => Self::Stream(topic, format),
            None => Self::Pull(topic),
        })
    }

    /// The permission that the route needs; `None` if every client may use it.
    pub(super) fn needs(&self) -> Option<Permission<'_>> {
        Some(match self {
            Self::Health | Self::Ready => return None,
            Self::List => Permission::SomeTopic(Action::Inspect),
            Self::Metrics | Self::Stats => Permission::EveryTopic(Action::Inspect),
            Self::Ticket => Permission::Key,
            Self::Inspect(topic) | Self::Counters(topic) => {
                Permission::Topic(Action::Inspect, topic)
            }
            Self::Publish(topic) => Permission::Topic(Action::Publish, topic),
            Self::Pull(topic) => Permission::Topic(Action::Pull, topic),
            Self::Peek(topic) | Self::Websocket(topic) | Self::Stream(topic, _) => {
                Permission::Topic(Action::Subscribe, topic)
            }
            Self::Delete(topic) => Permission::Topic(Action::Delete, topic),
        })
    }
}

/// The topic that a path names. It is percent-decoded once, and outer slashes are removed.
fn topic_name(path: &str) -> Result<TopicName, ApiError> {
    if let Some(name) = latest_name(path) {
        return Ok(name);
    }
    if !path.contains('%') {
        let name = TopicName::new(path.trim_matches('/'))?;
        LATEST.set(Some(name.clone()));
        return Ok(name);
    }
    let bytes = path.as_bytes();
    let is_escape = |at: usize| {
        bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if bytes.iter().enumerate().any(|(at, byte)| *byte == b'%' && !is_escape(at)) {
        return Err(ApiError::PathEncoding);
    }
    let name = percent_decode_str(path).decode_utf8().map_err(|_| ApiError::PathEncoding)?;
    Ok(TopicName::new(name.trim_matches('/'))?)
}

thread_local! {
    /// The latest name that needed no decoding. Consecutive requests are often for the same topic.
    static LATEST: RefCell<Option<TopicName>> = const { RefCell::new(None) };
}

fn latest_name(path: &str) -> Option<TopicName> {
    LATEST.with_borrow(|latest| {
        latest.as_ref().filter(|name| path.strip_prefix('/') == Some(name.as_str())).cloned()
    })
}
