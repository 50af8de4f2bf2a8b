//! Clients that cause trouble: they delete topics, exhaust connections, inspect everything and send bad
//! requests.

use std::{rc::Rc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};

use super::{
    Soak, credentials,
    groups::GroupId,
    invariants::{Invariant, Invariants},
    raw_client::{RawClient, send_request},
    reconcile::{check_bus, check_topic},
    services::check_services,
    topics::{MAX_CONNECTIONS, MAX_PAYLOAD, Topic},
};

/// Deletes topics.
pub(super) async fn delete(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(20..400))).await;
        let topic = Topic::any_to_delete(&mut rng);
        let name = topic.name();
        let (access, header) = {
            let keys = soak.keys.borrow();
            let principal = keys.random_principal(&mut rng);
            (keys.access(principal, &topic), credentials::header(&keys, principal, &mut rng))
        };
        let request = format!("DELETE /{name} HTTP/1.1\r\nHost: soak.localhost\r\n{header}\r\n");
        match send_request(&soak.endpoint, request.as_bytes(), true).await {
            Ok((status, _)) => {
                let mut invariants = soak.invariants.borrow_mut();
                let what = format!("DELETE {name}");
                let is_refused =
                    soak.keys.borrow().check_response(&mut invariants, &access, status, &what);
                let is_right = is_refused || matches!(status, 204 | 404 | 503);
                invariants.check(Invariant::Responses, is_right, || format!("{what}: {status}"));
                invariants.count("topics deleted", u64::from(status == 204));
            }
            Err(error) => soak.record_error(&error, "a delete"),
        }
    }
}

/// Moves and removes a group, changes its settings, and inspects groups.
pub(super) async fn move_groups(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(10..300))).await;
        let GroupId { topic, name } = match rng.u8(..3) {
            0 => GroupId::random(&mut rng),
            _ => GroupId::moved(),
        };
        let path = format!("/-/groups/{name}/{}", topic.name());
        let (method, path) = match rng.u8(..4) {
            _ if name != GroupId::moved().name => ("GET", path),
            0 => ("DELETE", path),
            1 => ("PUT", path + "?since=all"),
            2 => ("PUT", path + "?since=new&max_leases=20&max_deliveries=2"),
            _ => ("GET", path),
        };
        match send_request(&soak.endpoint, soak.request(method, &path).as_bytes(), true).await {
            Ok((status, _)) => {
                let mut invariants = soak.invariants.borrow_mut();
                invariants.count("groups moved, removed or inspected", 1);
                let is_right = matches!(status, 200 | 201 | 204 | 404 | 503);
                invariants
                    .check(Invariant::Responses, is_right, || format!("{method} {path}: {status}"));
            }
            Err(error) => soak.record_error(&error, "a request for a group"),
        }
    }
}

/// Inspects counters while they change: the invariants hold at every moment.
pub(super) async fn inspect(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(5..100))).await;
        let topic = Topic::any(&mut rng);
        let (method, path) = match rng.u8(..7) {
            0 => ("HEAD", format!("/{}", topic.name())),
            1 | 2 => ("GET", format!("/-/topics/{}", topic.name())),
            3 => ("GET", "/-/stats".to_owned()),
            4 => ("GET", "/metrics".to_owned()),
            5 => ("GET", "/-/services".to_owned()),
            _ => ("GET", "/?max=100".to_owned()),
        };
        let request = soak.request(method, &path);
        let (status, body) =
            match send_request(&soak.endpoint, request.as_bytes(), method == "GET").await {
                Ok(answer) => answer,
                Err(error) => {
                    soak.record_error(&error, "an inspection");
                    continue;
                }
            };
        let mut invariants = soak.invariants.borrow_mut();
        invariants.count("inspections of topics, stats and metrics", 1);
        invariants.check(Invariant::Responses, matches!(status, 200 | 404 | 503), || {
            format!("{method} {path}: {status}")
        });
        if status != 200 {
            continue;
        }
        if let Err(error) = check_counters(&mut invariants, &path, &body) {
            invariants.check(Invariant::Responses, false, || format!("{path}: {error}"));
        }
    }
}

/// Checks the counters that a page shows.
fn check_counters(invariants: &mut Invariants, path: &str, body: &[u8]) -> serde_json::Result<()> {
    if path.starts_with("/-/topics/") {
        check_topic(invariants, &serde_json::from_slice(body)?);
    } else if path == "/-/stats" {
        check_bus(invariants, &serde_json::from_slice(body)?);
    } else if path == "/-/services" {
        check_services(invariants, &serde_json::from_slice(body)?);
    }
    Ok(())
}

/// Opens more connections than the server accepts.
pub(super) async fn crowd(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(500..3000))).await;
        if !soak.is_loading() {
            return;
        }
        soak.invariants.borrow_mut().count("bursts of more connections than the limit", 1);
        let mut crowd = JoinSet::new();
        for _ in 0..MAX_CONNECTIONS + 16 {
            crowd.spawn_local(one_of_many(Rc::clone(&soak), rng.fork()));
        }
        crowd.join_all().await;
    }
}

async fn one_of_many(soak: Rc<Soak>, mut rng: Rng) {
    let Ok(mut client) = RawClient::open(&soak.endpoint).await else { return };
    let request: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: soak.localhost\r\n\r\n";
    let is_whole = rng.u8(..4) > 0;
    let said = if is_whole { request } else { &request[..rng.usize(..request.len())] };
    // A connection beyond the limit may be closed at once.
    if client.send(said).await.is_ok() && is_whole {
        match client.read_response(true).await {
            Ok((head, _)) => {
                let mut invariants = soak.invariants.borrow_mut();
                let (status, what) = (head.status, "connections refused at the limit");
                invariants.count(what, u64::from(status == 503));
                invariants.check(Invariant::Responses, matches!(status, 200 | 503), || {
                    format!("GET /healthz: {status}")
                });
            }
            Err(error) => soak.record_error(&error, "a health check"),
        }
    }
    sleep(Duration::from_millis(rng.u64(..300))).await;
    client.cut(soak.random_cut(&mut rng));
}

/// A bad request, and the permitted status codes of the response, if there is one.
type BadRequest = (Vec<u8>, &'static [u16]);

/// Sends requests that are too large, incomplete or malformed.
pub(super) async fn send_bad_requests(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(10..200))).await;
        let (request, statuses) = bad_request(&soak, &mut rng);
        soak.invariants.borrow_mut().count("bad requests: malformed, too large or incomplete", 1);
        match send_request(&soak.endpoint, &request, true).await {
            Ok((503, _)) => {}
            Ok((status, text)) => {
                soak.invariants.borrow_mut().check(
                    Invariant::Responses,
                    statuses.contains(&status),
                    || {
                        let begin = String::from_utf8_lossy(&request[..request.len().min(60)]);
                        format!("{begin:?}: {status} {}", String::from_utf8_lossy(&text))
                    },
                );
            }
            // A client that still sends when the connection is closed may not receive the response.
            Err(error) => soak.record_error(&error, "a bad request"),
        }
    }
}

fn bad_request(soak: &Soak, rng: &mut Rng) -> BadRequest {
    let topic = Topic::any(rng);
    let name = topic.name();
    let excess = vec![b'x'; MAX_PAYLOAD + rng.usize(1..MAX_PAYLOAD)];
    let bad = bad_group_request(name, rng);
    let principal = &soak.admin_header;
    let put = format!("PUT /{name} HTTP/1.1\r\nHost: soak.localhost\r\n{principal}");
    match rng.u8(..12) {
        0 => {
            let head = format!("{put}Content-Length: {}\r\n\r\n", excess.len());
            ([head.as_bytes(), &excess].concat(), &[413])
        }
        1 => {
            let head = format!("{put}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", excess.len());
            ([head.as_bytes(), &excess, b"\r\n0\r\n\r\n"].concat(), &[413])
        }
        2 => (format!("{put}Content-Length: 10\r\n\r\nhalf").into_bytes(), &[408]),
        3 => (put.into_bytes(), &[]),
        4 => (format!("{put}Large: {}\r\n\r\n", "x".repeat(20 << 10)).into_bytes(), &[431]),
        5 => (b"not HTTP\r\n\r\n".to_vec(), &[400]),
        6 => (soak.request("PATCH", &format!("/{name}")).into_bytes(), &[405]),
        7 => (soak.request("GET", &format!("/{name}?wait=never")).into_bytes(), &[400]),
        8 => (soak.request(bad.0, &bad.1).into_bytes(), bad.2),
        9 => (soak.post("/-/ack", &"\n".repeat(rng.usize(..20))), &[400]),
        10 => {
            let lines = "\n".repeat(30_000);
            let head =
                format!("PUT /{name}?split=lines HTTP/1.1\r\nHost: soak.localhost\r\n{principal}");
            let request = format!("{head}Content-Length: {}\r\n\r\n{lines}", lines.len());
            (request.into_bytes(), &[413])
        }
        _ => {
            let request = format!(
                "GET /{name} HTTP/1.1\r\nHost: soak.localhost\r\n{principal}Upgrade: websocket\r\n\r\n"
            );
            (request.into_bytes(), &[400])
        }
    }
}

/// A bad request for a group, a lease or a service: its method, its target, and the permitted status codes.
fn bad_group_request(topic: &str, rng: &mut Rng) -> (&'static str, String, &'static [u16]) {
    match rng.u8(..10) {
        0 => ("GET", format!("/{topic}?group=a%2Fb"), &[400]),
        1 => ("GET", format!("/{topic}?group=a&lease=0"), &[400]),
        2 => ("GET", format!("/{topic}?group=a&lease=13h"), &[400]),
        3 => ("POST", "/-/ack/rubbish".to_owned(), &[400]),
        4 => ("PUT", format!("/-/groups/a/{topic}?max_leases=0"), &[400]),
        5 => ("DELETE", format!("/-/groups/nobody/{topic}"), &[404]),
        6 => ("POST", "/-/reply/rubbish".to_owned(), &[400]),
        7 => ("POST", format!("/-/reply/ffffffff{:024x}", rng.u64(..)), &[410]),
        8 => ("POST", "/-/request/plain/service?timeout=0s".to_owned(), &[400]),
        _ => {
            let token = [&[2, 0][..], &[rng.u8(..); 24], topic.as_bytes()].concat();
            ("POST", format!("/-/nack/{}", URL_SAFE_NO_PAD.encode(token)), &[410])
        }
    }
}
