use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Either};
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{self, HeaderMap},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use msgbus_core::{LeaseOptions, LeaseToken, MessageBus, NewMessage, TopicName, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    select,
    time::timeout,
};

use super::{
    super::{activity::ConnectionActivity, response::HttpResponse, router::handle},
    MAX_ERROR_TEXT, PEER, replace,
};
use crate::fuzzing::block_on;
use crate::{config::Config, fuzzing::common::is_a_line, state::App, worker::Worker};

/// How long a client reads. Longer than any `?wait`.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(62);
/// The capacity of the pipe, and the maximum number of bytes that a client reads.
const PIPE: usize = 16 << 10;
const MAX_RECEIVED: u64 = 256 << 10;
/// The placeholder for the token of a lease in the input.
const TOKEN: &str = "LEASE_TOKEN";

/// Sends `data` as the bytes of a client through the HTTP library to every handler and back. The responses are
/// consistent with the bus, and the counters balance.
///
/// # Panics
/// When a property does not hold.
pub fn connection(data: &[u8]) {
    block_on(serve(data));
}

async fn serve(data: &[u8]) {
    let (app, token) = app();
    let data = &replace(data, TOKEN, &token.to_string());
    let app = Worker::new(&Arc::new(app));
    let activity = &ConnectionActivity::without_socket();
    let (client, server) = duplex(PIPE);
    let service = service_fn(|mut request: Request<_>| {
        let app = Arc::clone(&app);
        async move {
            let method = request.method().clone();
            let uri = request.uri().clone();
            let mut response = handle(&app, PEER, activity, &mut request).await;
            check_response(&app, &method, &uri, request.headers(), &mut response).await;
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(app.config.max_header)
        .serve_connection(TokioIo::new(server), service)
        .with_upgrades();
    select! {
        // Any end is fine.
        _ = connection => {}
        () = drive_client(client, data) => {}
    }
    app.tasks.stop.cut();
    app.tasks.tracker.close();
    app.tasks.tracker.wait().await;
    check_counters(&app.bus);
}

/// A server with one topic, of which the first message is leased.
fn app() -> (App, LeaseToken) {
    let mut config = Config { max_payload: 4 << 10, ..Config::default() };
    config.bus.topic.max_messages = 8;
    config.bus.max_topics = 4;
    config.allowed_origins.push("https://good.example".to_owned());
    let app = App::in_memory(config, None);
    let topic: TopicName = "a".parse().expect("a name");
    for payload in ["one", "two\n", ""] {
        let message =
            NewMessage::new(payload).header("content-type", "text/html").expect("a header");
        app.bus.put(&topic, message).expect("the topic has space");
    }
    let group = "g".parse().expect("a name");
    let leased = app.bus.lease(&topic, &group, LeaseOptions::default()).wait();
    let token = leased.expect("no limit is reached")[0].token.clone();
    (app, token)
}

async fn drive_client(client: DuplexStream, data: &[u8]) {
    let (reader, mut writer) = tokio::io::split(client);
    let mut received = Vec::new();
    let mut reader = reader.take(MAX_RECEIVED);
    let reader = timeout(CLIENT_TIMEOUT, reader.read_to_end(&mut received));
    let writer = async {
        // The server may close the connection before everything is written.
        let _ = writer.write_all(data).await;
    };
    let _ = tokio::join!(reader, writer);
}

/// Checks that a response is consistent with the bus.
async fn check_response(
    app: &App,
    method: &Method,
    uri: &Uri,
    asked: &HeaderMap,
    response: &mut HttpResponse,
) {
    let status = response.status();
    let headers = response.headers().clone();
    let number = |name| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    // A stream does not end.
    let Either::Left(body) = response.body_mut() else { return };
    let body = body.clone().collect().await.map(http_body_util::Collected::to_bytes);
    let body = body.unwrap_or_default();
    if status.is_client_error() || status.is_server_error() {
        return is_refusal(status, &headers, &body);
    }
    if asked.get(header::ORIGIN).is_some_and(|origin| origin == "https://good.example") {
        assert!(headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    }
    if status == StatusCode::ACCEPTED {
        return is_published(app, number);
    }
    let media_type =
        headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    if headers.contains_key("msgbus-lease") {
        let token = headers["msgbus-lease"].to_str().expect("text");
        token.parse::<LeaseToken>().expect("a token");
        assert!(number("msgbus-deliveries").is_some_and(|deliveries| deliveries > 0));
    }
    let is_topic = !uri.path().starts_with("/-/") && uri.path() != "/";
    match media_type {
        Some("application/x-ndjson") if !is_topic => str::from_utf8(&body)
            .expect("UTF-8")
            .lines()
            .for_each(|line| drop(serde_json::from_str::<serde_json::Value>(line).expect("JSON"))),
        Some("application/json") if is_topic && *method == Method::GET => is_message(&body),
        Some("application/json") => {
            serde_json::from_slice::<serde_json::Value>(&body).expect("JSON");
        }
        Some("application/x-ndjson") => {
            let lines = body.strip_suffix(b"\n").expect("a line end is last");
            lines.split(|byte| *byte == b'\n').for_each(is_message);
        }
        _ => {}
    }
}

/// Checks that the bus has the last message of a publish.
fn is_published(app: &App, header: impl Fn(&'static str) -> Option<u64>) {
    let last = header("msgbus-id").or_else(|| header("msgbus-last-id")).expect("its id");
    assert!(header("msgbus-first-id").is_none_or(|first| first <= last));
    let epoch = header("msgbus-epoch").expect("its epoch");
    let names = app.bus.topics();
    let mut topics = names.iter().filter_map(|name| app.bus.topic(name));
    let topic = topics.find(|stats| stats.topic.epoch == epoch).expect("there is the topic");
    assert_eq!(topic.next_id, last + 1, "no other publisher");
}

fn is_message(line: &[u8]) {
    let mut again = Vec::new();
    match json::read_leased(line) {
        Ok(leased) => json::write_leased(&mut again, &leased),
        Err(_) => {
            let message = json::read_message(line).expect("a message");
            json::write_message(&mut again, &message);
        }
    }
    assert_eq!(again, line);
}

fn is_refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) {
    let text = str::from_utf8(body).expect("UTF-8");
    if headers[header::CONTENT_TYPE] == "application/problem+json" {
        let problem: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(problem["status"], status.as_u16());
        assert!(problem["code"].is_string());
        is_a_line(&problem["detail"].as_str().expect("a text"), MAX_ERROR_TEXT);
    } else {
        is_a_line(&text.strip_suffix('\n').expect("a line end is last"), MAX_ERROR_TEXT);
    }
    let must_have = match status {
        StatusCode::METHOD_NOT_ALLOWED => header::ALLOW,
        StatusCode::SERVICE_UNAVAILABLE => header::RETRY_AFTER,
        StatusCode::REQUEST_TIMEOUT => header::CONNECTION,
        StatusCode::UPGRADE_REQUIRED => header::SEC_WEBSOCKET_VERSION,
        _ => header::CACHE_CONTROL,
    };
    assert!(headers.contains_key(&must_have), "{status} without {must_have}");
}

fn check_counters(bus: &MessageBus) {
    let stats = bus.stats();
    let counters = stats.counters;
    let removed = counters.expired.total + counters.evicted.total + counters.deleted.total;
    assert_eq!(counters.published, stats.retained + removed);
    for name in bus.topics() {
        let topic = bus.topic(&name).expect("it is not deleted");
        let removed = topic.counters.expired.total + topic.counters.evicted.total;
        assert_eq!(topic.counters.published, topic.retained + removed);
        assert_eq!((topic.subscribers, topic.waiters), (0, 0), "no client is left");
        assert!(bus.groups(&name).iter().all(|group| group.waiters == 0));
    }
}
