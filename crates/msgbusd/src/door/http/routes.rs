//! Routes: what a request asks for, by its method, path and parameters, and the permission that it needs.

use std::{borrow::Cow, cell::RefCell};

use hyper::{Method, Request};
use msgbus_core::{
    GroupName, GroupNameError, LeaseToken, NameError, ReplyToken, TokenError, TopicName,
};
use percent_encoding::percent_decode_str;

use super::{error::ApiError, handshake, pull, query::Query, settle::Verb, stream, websocket};
use crate::{
    auth::{Action, Permission, Target},
    encode::format::FrameFormat,
};

pub(super) const TOPIC_METHODS: &str = "GET, HEAD, PUT, POST, DELETE";
pub(super) const READ_METHODS: &str = "GET, HEAD";
const GROUP_METHODS: &str = "GET, HEAD, PUT, DELETE";

/// A route.
#[derive(Debug)]
pub(super) enum Route {
    List,
    Admin(AdminRoute),
    Group(GroupVerb, TopicName, GroupName),
    Settle(Verb, LeaseToken),
    Service(ServiceRoute),
    SettleMany(Verb),
    Publish(TopicName),
    Pull(TopicName),
    Lease(TopicName, GroupName),
    Peek(TopicName),
    PeekGroup(TopicName, GroupName),
    Websocket(Target),
    /// The websocket for all operations.
    Connect,
    Stream(Target, FrameFormat),
    Counters(Target),
    Delete(TopicName),
}

/// A route for operators.
#[derive(Debug)]
pub(super) enum AdminRoute {
    Metrics,
    Health,
    Ready,
    Stats,
    Ticket,
    Inspect(Target),
}

/// What is done with a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupVerb {
    Show,
    Set,
    Remove,
}

/// A route of services.
#[derive(Debug)]
pub(super) enum ServiceRoute {
    Ask(TopicName),
    IsServed(TopicName),
    Serve(TopicName),
    Reply(ReplyToken),
    List,
}

impl Route {
    pub(super) fn of<B>(request: &Request<B>, query: &Query) -> Result<Self, ApiError> {
        match request.uri().path() {
            "/" => match *request.method() {
                Method::GET | Method::HEAD if handshake::is_wanted(request) => {
                    if websocket::offers_v1(request) {
                        return Ok(Self::Connect);
                    }
                    Err(ApiError::WebsocketOnRoot)
                }
                Method::PUT | Method::POST | Method::DELETE => Err(ApiError::NoTopic),
                _ => read(request, Self::List),
            },
            "/metrics" => read(request, Self::Admin(AdminRoute::Metrics)),
            "/healthz" => read(request, Self::Admin(AdminRoute::Health)),
            "/readyz" => read(request, Self::Admin(AdminRoute::Ready)),
            path => match path.strip_prefix("/-/") {
                Some(rest) => Self::of_reserved(request, rest),
                None => Self::of_topic(request, query, path),
            },
        }
    }

    /// The route of a path below `/-/`.
    fn of_reserved<B>(request: &Request<B>, path: &str) -> Result<Self, ApiError> {
        let (first, rest) = match path.split_once('/') {
            Some((first, rest)) => (first, Some(rest)),
            None => (path, None),
        };
        if let Some(verb) = Verb::of(first) {
            if request.method() != Method::POST {
                return Err(ApiError::Method { allow: "POST" });
            }
            return Ok(match rest {
                Some(token) => Self::Settle(verb, lease_token(&decoded(token)?)?),
                None => Self::SettleMany(verb),
            });
        }
        match (first, rest) {
            ("stats", None) => read(request, Self::Admin(AdminRoute::Stats)),
            ("ticket", None) => Ok(Self::Admin(AdminRoute::Ticket)),
            ("topics", Some(topic)) => {
                read(request, Self::Admin(AdminRoute::Inspect(target(topic)?)))
            }
            ("groups", Some(path)) => Self::of_group(request, path),
            ("services", None) => read(request, Self::Service(ServiceRoute::List)),
            ("request" | "serve" | "reply", Some(path)) => Self::of_service(request, first, path),
            _ => Err(ApiError::NothingHere),
        }
    }

    /// The route of `/-/groups/<group>/<topic>`.
    fn of_group<B>(request: &Request<B>, path: &str) -> Result<Self, ApiError> {
        let (group, topic) = path.split_once('/').ok_or(ApiError::NothingHere)?;
        let group = GroupName::new(&decoded(group)?).map_err(ApiError::Group)?;
        let topic = topic_name(topic)?;
        let verb = match *request.method() {
            Method::GET | Method::HEAD => GroupVerb::Show,
            Method::PUT => GroupVerb::Set,
            Method::DELETE => GroupVerb::Remove,
            _ => return Err(ApiError::Method { allow: GROUP_METHODS }),
        };
        Ok(Self::Group(verb, topic, group))
    }

    /// The route of `/-/request/<service>`, `/-/serve/<service>` and `/-/reply/<token>`.
    fn of_service<B>(request: &Request<B>, first: &str, path: &str) -> Result<Self, ApiError> {
        Ok(Self::Service(match (first, request.method()) {
            ("request", &Method::POST | &Method::PUT) => ServiceRoute::Ask(topic_name(path)?),
            ("request", &Method::HEAD) => ServiceRoute::IsServed(topic_name(path)?),
            ("request", _) => return Err(ApiError::Method { allow: "HEAD, POST, PUT" }),
            ("serve", &Method::GET) => ServiceRoute::Serve(topic_name(path)?),
            ("serve", _) => return Err(ApiError::Method { allow: "GET" }),
            (_, &Method::POST | &Method::PUT) => ServiceRoute::Reply(decoded(path)?.parse()?),
            _ => return Err(ApiError::Method { allow: "POST, PUT" }),
        }))
    }

    fn of_topic<B>(request: &Request<B>, query: &Query, path: &str) -> Result<Self, ApiError> {
        Ok(match *request.method() {
            Method::PUT | Method::POST => Self::Publish(topic_name(path)?),
            Method::GET => Self::of_get(request, query, target(path)?)?,
            Method::HEAD => Self::Counters(target(path)?),
            Method::DELETE => Self::Delete(topic_name(path)?),
            _ => return Err(ApiError::Method { allow: TOPIC_METHODS }),
        })
    }

    fn of_get<B>(request: &Request<B>, query: &Query, target: Target) -> Result<Self, ApiError> {
        if let Some(group) = query.get("group")? {
            return Self::of_get_group(request, query, topic(target)?, group);
        }
        if handshake::is_wanted(request) {
            return Ok(Self::Websocket(target));
        }
        if query.flag("peek")? {
            return Ok(Self::Peek(topic(target)?));
        }
        if pull::is_wanted(query) {
            return Ok(Self::Pull(topic(target)?));
        }
        Ok(match stream::wanted(query, request.headers())? {
            Some(format) => Self::Stream(target, format),
            None => Self::Pull(topic(target)?),
        })
    }

    /// The route of a GET with a group. It never becomes anything that would not lease.
    fn of_get_group<B>(
        request: &Request<B>,
        query: &Query,
        topic: TopicName,
        group: &str,
    ) -> Result<Self, ApiError> {
        let wrong = |why: &str| Err(ApiError::parameter("group", why));
        let group = group
            .parse()
            .map_err(|error: GroupNameError| ApiError::parameter("group", error.to_string()))?;
        if handshake::is_wanted(request) {
            return wrong("a websocket delivers no leases: use GET with wait");
        }
        let is_pull = pull::is_wanted(query);
        if query.has("stream") || (!is_pull && stream::wanted(query, request.headers())?.is_some())
        {
            return wrong("a stream delivers no leases: use GET with wait, and no stream");
        }
        Ok(if query.flag("peek")? {
            Self::PeekGroup(topic, group)
        } else {
            Self::Lease(topic, group)
        })
    }

    /// The permission that the route needs; `None` if every client may use it.
    pub(super) fn needs(&self) -> Option<Permission<'_>> {
        Some(match self {
            // Its operations are checked one by one.
            Self::Connect => Permission::Anything,
            Self::List => Permission::SomeTopic(Action::Inspect),
            Self::Service(route) => route.needs(),
            Self::Admin(route) => return route.needs(),
            Self::Counters(target) => target.permission(Action::Inspect),
            Self::Group(GroupVerb::Show, topic, _) => Permission::Topic(Action::Inspect, topic),
            Self::Group(_, topic, _) => Permission::Topic(Action::Admin, topic),
            Self::Publish(topic) => Permission::Topic(Action::Publish, topic),
            Self::Pull(topic) | Self::Lease(topic, _) => Permission::Topic(Action::Pull, topic),
            Self::Settle(_, token) => Permission::Topic(Action::Pull, token.topic()),
            // Each token is checked when it has been read.
            Self::SettleMany(_) => Permission::SomeTopic(Action::Pull),
            Self::Websocket(target) | Self::Stream(target, _) => {
                target.permission(Action::Subscribe)
            }
            Self::Peek(topic) | Self::PeekGroup(topic, _) => {
                Permission::Topic(Action::Subscribe, topic)
            }
            Self::Delete(topic) => Permission::Topic(Action::Delete, topic),
        })
    }
}

impl AdminRoute {
    fn needs(&self) -> Option<Permission<'_>> {
        Some(match self {
            Self::Health | Self::Ready => return None,
            Self::Metrics | Self::Stats => Permission::EveryTopic(Action::Inspect),
            Self::Ticket => Permission::Key,
            Self::Inspect(target) => target.permission(Action::Inspect),
        })
    }
}

impl ServiceRoute {
    fn needs(&self) -> Permission<'_> {
        match self {
            Self::Ask(service) | Self::IsServed(service) => {
                Permission::Topic(Action::Request, service)
            }
            Self::Serve(service) => Permission::Topic(Action::Serve, service),
            // The token is checked when it is used.
            Self::Reply(_) => Permission::SomeTopic(Action::Serve),
            Self::List => Permission::SomeTopic(Action::Inspect),
        }
    }
}

/// A path for the log. Whoever has a token can settle its lease, so below `/-/` only the paths of topics and groups are
/// logged whole.
pub(super) fn log_path(path: &str) -> &str {
    let first = path.strip_prefix("/-/").and_then(|rest| rest.split_once('/'));
    match first {
        Some((first, rest)) if !matches!(first, "topics" | "groups" | "request" | "serve") => {
            &path[..path.len() - rest.len()]
        }
        _ => path,
    }
}

/// The route, if the request reads.
fn read<B>(request: &Request<B>, route: Route) -> Result<Route, ApiError> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(route),
        _ => Err(ApiError::Method { allow: READ_METHODS }),
    }
}

/// The topic or the pattern that a path names, see [`topic_name`].
fn target(path: &str) -> Result<Target, ApiError> {
    match topic_name(path) {
        Err(ApiError::IsPattern) => {
            decoded(path)?.trim_matches('/').parse().map_err(ApiError::Pattern)
        }
        named => named.map(Target::Topic),
    }
}

/// The topic, of a request that needs one.
fn topic(target: Target) -> Result<TopicName, ApiError> {
    match target {
        Target::Topic(topic) => Ok(topic),
        Target::Pattern(_) => Err(ApiError::IsPattern),
    }
}

/// The topic that a path names. It is percent-decoded once, and outer slashes are removed.
fn topic_name(path: &str) -> Result<TopicName, ApiError> {
    let refused = |error| match error {
        NameError::Wildcard => ApiError::IsPattern,
        error => ApiError::Name(error),
    };
    if let Some(name) = latest_name(path) {
        return Ok(name);
    }
    if !path.contains('%') {
        let name = TopicName::new(path.trim_matches('/')).map_err(refused)?;
        LATEST.set(Some(name.clone()));
        return Ok(name);
    }
    TopicName::new(decoded(path)?.trim_matches('/')).map_err(refused)
}

/// A part of a path, percent-decoded once.
fn decoded(path: &str) -> Result<Cow<'_, str>, ApiError> {
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    let bytes = path.as_bytes();
    let is_escape = |at: usize| {
        bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if bytes.iter().enumerate().any(|(at, byte)| *byte == b'%' && !is_escape(at)) {
        return Err(ApiError::PathEncoding);
    }
    percent_decode_str(path).decode_utf8().map_err(|_| ApiError::PathEncoding)
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

/// The token of a text. Consecutive requests often settle leases of the same topic.
fn lease_token(text: &str) -> Result<LeaseToken, TokenError> {
    thread_local! {
        static LATEST: RefCell<Option<LeaseToken>> = const { RefCell::new(None) };
    }
    LATEST.with_borrow_mut(|latest| {
        let token = LeaseToken::parse_like(text, latest.as_ref())?;
        Ok(latest.insert(token).clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_is_logged() {
        for (path, logged) in [
            ("/-/ack/AQAA", "/-/ack/"),
            ("/-/%61ck/AQAA", "/-/%61ck/"),
            ("/-/ack//AQ/AA", "/-/ack/"),
            ("/-/ack", "/-/ack"),
            ("/-/groups/g/a/b", "/-/groups/g/a/b"),
            ("/-/topics/a", "/-/topics/a"),
            ("/-/reply/0000", "/-/reply/"),
            ("/-/request/a", "/-/request/a"),
            ("/a/-/b", "/a/-/b"),
        ] {
            assert_eq!(log_path(path), logged);
        }
    }
}
