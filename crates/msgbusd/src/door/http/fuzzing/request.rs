use form_urlencoded::Serializer;
use hyper::{
    Method, Request,
    header::{self, HeaderMap, HeaderValue},
};
use msgbus_core::LeaseToken;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{
    super::{
        error::ApiError,
        handshake, lease,
        negotiate::accepts,
        position, pull,
        query::Query,
        routes::{Route, ServiceRoute, log_path},
        stream,
    },
    MAX_ERROR_TEXT, head,
};
use crate::{auth::Permission, fuzzing::common::is_a_line, service::parameters::BadParameter};

const PARAMETERS: [&str; 21] = [
    "raw",
    "max",
    "wait",
    "peek",
    "stream",
    "since",
    "index",
    "lag",
    "gaps",
    "ticket",
    "prefix",
    "ttl",
    "split",
    "group",
    "lease",
    "delay",
    "reason",
    "max_deliveries",
    "max_leases",
    "dead_letters",
    "after",
];

/// Routes a request. The same request in another notation gets the same route, and an error names the parameter and does
/// not quote its value.
///
/// # Panics
/// When a property does not hold.
pub fn request(data: &[u8]) {
    let Some(request) = head(data) else { return };
    match Route::of(&request, &Query::of(&request)) {
        Ok(route) => is_routed(&request, &route),
        Err(refusal) => is_refused(&request, &refusal),
    }
    parameters(&request);
    accepted(&request);
    if let Err(refusal) = read_handshake(&request) {
        is_refused(&request, &refusal);
    }
}

fn is_routed(request: &Request<()>, route: &Route) {
    if let Some(permission) = route.needs() {
        is_a_line(&permission, MAX_ERROR_TEXT);
    }
    never_leases_by_accident(request, route);
    if let Route::Settle(_, token) = route {
        return is_settled_by(request, token);
    }
    let target = match route.needs() {
        Some(Permission::Topic(_, topic)) => topic.to_string(),
        Some(Permission::Pattern(_, pattern)) => pattern.to_string(),
        _ => return,
    };
    let path = request.uri().path();
    let start = match route {
        Route::Admin(_) => "/-/topics/".len(),
        Route::Service(ServiceRoute::Serve(_)) => "/-/serve/".len(),
        Route::Service(_) => "/-/request/".len(),
        Route::Group(..) => {
            let group = path.strip_prefix("/-/groups/").and_then(|rest| rest.find('/'));
            "/-/groups/".len() + group.expect("it is routed by that") + 1
        }
        _ => 1,
    };
    let (prefix, name) = path.split_at(start);
    let once = percent_decode_str(name).decode_utf8().expect("a name is UTF-8");
    assert_eq!(target, once.trim_matches('/'));
    let path = utf8_percent_encode(&target, NON_ALPHANUMERIC);
    is_the_same(request, route, &format!("{prefix}{path}"));
}

/// Checks that the same request with another path has the same route.
fn is_the_same(request: &Request<()>, route: &Route, path: &str) {
    let query = Serializer::new(String::new()).extend_pairs(pairs(request)).finish();
    let mut other = Request::builder()
        .method(request.method())
        .uri(format!("{path}?{query}"))
        .body(())
        .expect("everything is escaped");
    other.headers_mut().clone_from(request.headers());
    let same = Route::of(&other, &Query::of(&other)).expect("it says the same");
    assert_eq!(format!("{same:?}"), format!("{route:?}"));
}

/// Checks that exactly the GETs with a group lease or peek for it.
fn never_leases_by_accident(request: &Request<()>, route: &Route) {
    let is_of_topic = !request.uri().path().starts_with("/-/") && request.uri().path() != "/";
    let is_pull = matches!(route, Route::Lease(..) | Route::PeekGroup(..));
    let has_group = pairs(request).any(|(name, _)| name == "group");
    if is_pull {
        assert!(has_group && request.method() == Method::GET && is_of_topic);
        assert!(!handshake::is_wanted(request) && !Query::of(request).has("stream"));
    }
    let takes =
        matches!(route, Route::Pull(_) | Route::Peek(_) | Route::Stream(..) | Route::Websocket(_));
    assert!(!(takes && has_group), "a GET with a group is for the group");
}

/// Checks a request that settles a lease: its path has the token, escaped or not, and the log does not.
fn is_settled_by(request: &Request<()>, token: &LeaseToken) {
    assert_eq!(request.method(), Method::POST);
    let path = request.uri().path();
    let logged = log_path(path);
    assert!(path.starts_with(logged) && logged.ends_with('/') && logged.matches('/').count() == 3);
    let text = percent_decode_str(&path[logged.len()..]).decode_utf8().expect("UTF-8");
    assert_eq!(text.parse().as_ref(), Ok(token));
    let escaped = utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string();
    let route = Route::of(request, &Query::of(request)).expect("it was routed");
    is_the_same(request, &route, &format!("{logged}{escaped}"));
    assert!(!format!("{route:?}").contains(&*text), "a token is a secret");
}

fn is_refused(request: &Request<()>, refusal: &ApiError) {
    is_a_line(refusal, MAX_ERROR_TEXT);
    let text = refusal.to_string();
    let status = refusal.response(false).status();
    assert!(status.is_client_error(), "{status}");
    let given = |name: &str| pairs(request).filter(|(known, _)| known == name).count();
    match refusal {
        ApiError::Parameter(BadParameter { name, .. }) => {
            assert!(given(name) > 0 && text.contains(name), "{text}");
        }
        ApiError::RepeatedParameter(name) => {
            assert!(given(name) > 1 && text.contains(name), "{text}");
        }
        ApiError::UnknownParameter { name, known } => {
            assert!(!known.contains(&&**name));
            assert!(pairs(request).any(|(given, _)| given.starts_with(name)), "{text}");
        }
        _ => {}
    }
    let is_a_name = |text: &str| pairs(request).any(|(name, _)| name.contains(text));
    for (_, value) in pairs(request) {
        if value.contains("mbk_") && !is_a_name(&value) {
            assert!(!text.contains(&*value), "{text}");
        }
    }
    let log = refusal.log_text();
    assert!(!log.contains("mbk_") && !log.contains("mbt_"), "{log}");
}

fn pairs(request: &Request<()>) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
}

fn parameters(request: &Request<()>) {
    let headers = request.headers();
    let parameters = Query::of(request);
    let must_be_right = |found: Result<(), ApiError>| {
        if let Err(refusal) = found {
            is_refused(request, &refusal);
        }
    };
    for name in PARAMETERS {
        let given = pairs(request).filter(|(known, _)| known == name).count();
        assert_eq!(parameters.has(name), given > 0);
        match parameters.get(name) {
            Ok(value) => assert_eq!(usize::from(value.is_some()), given),
            Err(refusal) => is_refused(request, &refusal),
        }
        must_be_right(parameters.flag(name).map(|on| assert!(!on || given == 1)));
        must_be_right(parameters.count(name).map(|count| assert_ne!(count, Some(0))));
    }
    must_be_right(position::by_query(&parameters).map(|_| ()));
    must_be_right(position::requested(&parameters, headers).map(|_| ()));
    must_be_right(position::lag(&parameters).map(|_| ()));
    must_be_right(lease::duration(&parameters).map(|lease| {
        assert!(lease.is_none_or(|lease| !lease.is_zero() && lease <= LeaseToken::MAX_TIME));
    }));
    must_be_right(stream::wanted(&parameters, headers).map(|_| ()));
    assert!(pull::is_wanted(&parameters) || !parameters.has("wait"));
    only_the_first(request, parameters);
}

/// Checks that exactly the requests with unknown parameters are refused.
fn only_the_first(request: &Request<()>, parameters: Query) {
    const KNOWN: &[&str] = PARAMETERS.split_at(4).0;
    let all_known = pairs(request).all(|(name, _)| KNOWN.contains(&&*name));
    match parameters.only(KNOWN) {
        Ok(_) => assert!(all_known),
        Err(refusal) => {
            assert!(!all_known);
            is_refused(request, &refusal);
        }
    }
}

/// Checks that a media type is accepted if it is named, whatever else is.
fn accepted(request: &Request<()>) {
    let media_type = "text/event-stream";
    let mut headers: HeaderMap = request.headers().clone();
    let before = accepts(&headers, media_type);
    headers.append(header::ACCEPT, HeaderValue::from_static("Text/Event-Stream ;q=0"));
    assert_eq!(accepts(&headers, media_type), before, "what is refused changes nothing");
    headers.append(header::ACCEPT, HeaderValue::from_static("a/b;q=0, Text/Event-Stream ;q=0.1"));
    assert!(accepts(&headers, media_type));
    assert!(!before || request.headers().contains_key(header::ACCEPT));
    assert!(handshake::is_wanted(request) || !headers.contains_key(header::SEC_WEBSOCKET_KEY));
}

/// Checks that a valid handshake is complete.
fn read_handshake(request: &Request<()>) -> Result<(), ApiError> {
    let accept = handshake::check(request)?;
    assert!(handshake::is_wanted(request));
    assert_eq!(accept.len(), 28, "20 bytes in base64");
    let headers = request.headers();
    assert_eq!(headers[header::SEC_WEBSOCKET_VERSION], "13");
    assert_eq!(headers[header::SEC_WEBSOCKET_KEY].len(), 24, "16 bytes in base64");
    assert!(headers.contains_key(header::CONNECTION));
    Ok(())
}
