//! Answers a request with that of an HTTP server, usually one on this machine. Connections are kept and used again.

use std::{error::Error, fs, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Request as HttpRequest, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderMap, HeaderName},
};
use hyper_util::{
    client::legacy::Client as HttpClient,
    rt::{TokioExecutor, TokioTimer},
};
use msgbus_client::{
    Client, Connector, Failure as ServiceFailure, Headers, Reply, Request, Roots,
    write_http_headers,
};
use msgbus_core::format_duration;

use super::{Answer, MAX_REPLY};
use crate::{failure::Failure, reader::Options};

/// How long an unused connection is kept. Many servers close one after 5 s, and a request that is sent meanwhile fails.
const IDLE: Duration = Duration::from_secs(3);
/// Headers of HTTP that are about the connection, the transfer or the server, and not about the answer.
const DROPPED: [HeaderName; 12] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::DATE,
    header::PROXY_AUTHENTICATE,
    header::SERVER,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::VIA,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
/// The header of a reply that has the status of the answer, unless it is 200.
const STATUS: &str = "http-status";
const PREFIX: &str = "msgbus-header-";

#[derive(Debug)]
pub(super) struct Forward {
    pub(super) uri: Uri,
    http: HttpClient<Connector, Full<Bytes>>,
}

impl Forward {
    /// `to` is the URI of the HTTP server, with a path and a query.
    pub(super) fn parse(options: &mut Options, to: &str) -> Result<Self, Failure> {
        let bad = |error: &dyn Error| Failure::usage(format!("--to: {error}"));
        let (base, query) =
            to.split_once('?').map_or((to, None), |(base, query)| (base, Some(query)));
        let mut client = Client::new(base).map_err(|error| bad(&error))?;
        let roots = options.value("--to-ca-file", |path| {
            let pem = fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
            Roots::from_pem(&pem).map_err(|error| format!("{path} {error}"))
        })?;
        if let Some(roots) = roots {
            client = client.with_roots(roots);
        }
        let server = client.server();
        let s = if server.is_encrypted() { "s" } else { "" };
        let has_slash = base.ends_with('/') || server.prefix().is_empty();
        let slash = if has_slash { "/" } else { "" };
        let query = query.map_or(String::new(), |query| format!("?{query}"));
        let uri = format!("http{s}://{}{}{slash}{query}", server.authority(), server.prefix());
        Ok(Self {
            uri: uri.parse::<Uri>().map_err(|error| bad(&error))?,
            http: HttpClient::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .build(client.connector().clone()),
        })
    }

    /// See [`Handler::handle`](super::Handler::handle).
    pub(super) async fn handle(&self, request: &Request) -> Answer {
        let forwarded = HttpRequest::post(self.uri.clone())
            .header("Msgbus-Service", request.service().as_str().as_bytes())
            .header("Msgbus-Timeout", format_duration(request.time_left()));
        let forwarded = write_http_headers(request.headers(), forwarded)
            .body(Full::new(request.payload().clone()))
            .map_err(|error| unreachable(&format!("cannot be asked: {error}")))?;
        let response = self.http.request(forwarded).await.map_err(|error| {
            let what = if error.is_connect() { "cannot connect" } else { "lost the connection" };
            unreachable(&format!("{what} to the HTTP server: {}", root_cause(&error)))
        })?;
        let (head, body) = response.into_parts();
        let payload = read(body).await?;
        if head.status.is_client_error() || head.status.is_server_error() {
            let reason = reason(head.status, &head.headers, &payload);
            return Err(ServiceFailure::new(reason).with_status(head.status.as_u16()));
        }
        Ok(Reply { payload, headers: answer_headers(&Response::from_parts(head, ())) })
    }
}

async fn read(body: Incoming) -> Result<Bytes, ServiceFailure> {
    let body = Limited::new(body, MAX_REPLY).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            return unreachable(&format!("the answer has more than {} MiB", MAX_REPLY >> 20));
        }
        unreachable(&format!("lost the connection to the HTTP server: {}", root_cause(&*error)))
    })?;
    Ok(body.to_bytes())
}

/// A failure of the way to the server: 502, as a gateway says it.
fn unreachable(reason: &str) -> ServiceFailure {
    ServiceFailure::new(reason).with_status(StatusCode::BAD_GATEWAY.as_u16())
}

/// The innermost cause, usually the system's error. The outer errors only wrap it.
fn root_cause<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(deeper) = error.source() {
        error = deeper;
    }
    error
}

/// The text of an error response, as one line; the name of its status if it has none. A page for people is not one.
fn reason(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    const MAX: usize = 300;
    let media_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let is_page = media_type.to_ascii_lowercase().starts_with(b"text/html");
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX)]);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if is_page || line.is_empty() {
        return status.canonical_reason().unwrap_or("no reason given").to_owned();
    }
    line
}

/// The headers of the reply. If they are too many or too large, only those without which the payload is of no use.
fn answer_headers(answer: &Response<()>) -> Headers {
    let connection = answer.headers().get_all(header::CONNECTION).iter();
    // Names of headers that are for this connection only.
    let named: String =
        connection.filter_map(|value| value.to_str().ok()).flat_map(|value| [value, ","]).collect();
    let is_of_connection =
        |name: &str| named.split(',').any(|other| other.trim().eq_ignore_ascii_case(name));
    let is_passed_on =
        |name: &HeaderName| !DROPPED.contains(name) && !is_of_connection(name.as_str());
    let headers = answer.headers().iter().filter(|(name, _)| is_passed_on(name));
    let headers = headers.filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix(PREFIX).unwrap_or(name.as_str());
        Some((name, std::str::from_utf8(value.as_bytes()).ok()?))
    });
    let status = answer.status();
    let status = (status != StatusCode::OK).then_some((STATUS, status.as_str()));
    let headers: Vec<_> = headers.chain(status).collect();
    let needed = [Headers::CONTENT_TYPE, Headers::CONTENT_ENCODING, STATUS];
    let few = || Headers::new(headers.iter().filter(|(name, _)| needed.contains(name)).copied());
    Headers::new(headers.iter().copied()).or_else(|_| few()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_the_connection_stays_behind() {
        let answer = Response::builder()
            .status(201)
            .header("Content-Type", "text/csv")
            .header("Location", "/7")
            .header("Connection", "close, X-Hop")
            .header("X-Hop", "1")
            .header("Server", "any")
            .header("Msgbus-Header-Tag", "a")
            .body(())
            .unwrap();
        let headers =
            [("content-type", "text/csv"), ("location", "/7"), ("tag", "a"), (STATUS, "201")];
        assert_eq!(answer_headers(&answer), Headers::new(headers).unwrap());
    }

    #[test]
    fn headers_that_do_not_fit_are_left_out() {
        let answer = Response::builder().header("Content-Type", "text/csv");
        let answer = answer.header("Content-Security-Policy", "x".repeat(9_000)).body(()).unwrap();
        assert_eq!(answer_headers(&answer), Headers::new([("content-type", "text/csv")]).unwrap());
    }

    #[test]
    fn a_reason_is_one_line() {
        let of = |media_type: &'static str, body: &str| {
            let headers = [(header::CONTENT_TYPE, media_type.parse().unwrap())];
            reason(StatusCode::NOT_FOUND, &headers.into_iter().collect(), body.as_bytes())
        };
        assert_eq!(of("text/plain", "no\nsuch  user\n"), "no such user");
        assert_eq!(of("text/html; charset=utf-8", "<h1>no</h1>"), "Not Found");
        assert_eq!(of("", ""), "Not Found");
    }
}
