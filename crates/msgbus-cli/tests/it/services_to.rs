//! `msgbus serve --to`: an HTTP server behind a service.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use msgbus_client::{Client, Headers, NewRequest, RequestError};
use tokio::net::TcpListener;

use crate::{
    services::{ask, end, responders, serve, serving},
    support::{Daemon, Running, msgbus, name, nowhere, run},
};

/// An HTTP server, and how many connections it has accepted.
struct Behind {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Behind {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::Relaxed);
                let serving = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(Self::answer));
                tokio::spawn(async move {
                    // A client may leave.
                    let _ = serving.await;
                });
            }
        });
        Self { address, connections }
    }

    fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The payload says what to answer; others are sent back with the head of the request.
    async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let payload = body.collect().await.unwrap().to_bytes();
        let answer = Response::builder().header("Content-Type", "text/plain");
        let (status, body) = match &payload[..] {
            b"slow" => std::future::pending().await,
            b"broken" => (500, "no\ndisk\n".into()),
            b"absent" => (404, Bytes::new()),
            b"made" => (201, Bytes::new()),
            b"huge" => (200, vec![0; 65 << 20].into()),
            _ => {
                let text = |name: &str| head.headers.get(name).map_or("", |v| v.to_str().unwrap());
                let shown =
                    ["content-type", "msgbus-header-tag", "correlation-id", "msgbus-service"]
                        .map(text)
                        .join(" ");
                (200, format!("{} {} {shown} {payload:?}", head.method, head.uri).into())
            }
        };
        let answer = answer.header("Etag", "\"7\"").header("X-Tag", "ö");
        Ok(answer.status(status).body(Full::new(body)).unwrap())
    }
}

#[tokio::test]
async fn a_request_is_a_post_and_its_response_the_reply() {
    let (daemon, behind) = (Daemon::start(), Behind::start().await);
    let serving = serving(&daemon, &["--to", &behind.uri("/path/?a=b")]).await;
    let asked = ["-t", "text/csv", "-H", "Tag: a", "-H", "Correlation-Id: c1", "x"];
    let said = ask(&daemon, &asked).await;
    assert_eq!((said.code, &*said.err), (Some(0), ""));
    assert_eq!(said.out, "POST /path/?a=b text/csv a c1 s b\"x\"");
    let client = Client::new(&daemon.uri()).unwrap();
    let reply = client.request(&name("s"), "made").await.unwrap();
    let headers =
        [("content-type", "text/plain"), ("etag", "\"7\""), ("x-tag", "ö"), ("http-status", "201")];
    assert_eq!(reply.headers, Headers::new(headers).unwrap());
    for _ in 0..10 {
        client.request(&name("s"), "x").await.unwrap();
    }
    assert_eq!(behind.connections.load(Ordering::Relaxed), 1, "connections are used again");
    end(serving).await.is_silent();
}

#[tokio::test]
async fn what_goes_wrong_behind_a_service_is_a_failure_with_a_status() {
    let (daemon, behind) = (Daemon::start(), Behind::start().await);
    let uri = behind.uri("/");
    let mut serving = serving(&daemon, &["--to", &behind.uri("")]).await;
    for (payload, failure) in [
        ("broken", "HTTP 500: no disk"),
        ("absent", "HTTP 404: Not Found"),
        ("huge", "HTTP 502: the answer has more than 64 MiB"),
    ] {
        ask(&daemon, &[payload]).await.fails(9, &format!("s: the responder failed: {failure}\n"));
        assert_eq!(serving.note().await, format!("msgbus: s: {uri}: {failure}\n"));
    }
    let client = Client::new(&daemon.uri()).unwrap();
    let failed = client.request(&name("s"), "absent").await.unwrap_err();
    let RequestError::Failed(failure) = failed else { panic!("{failed}") };
    assert_eq!((failure.status, &*failure.reason), (Some(404), "Not Found"));
    assert_eq!(serving.note().await, format!("msgbus: s: {uri}: HTTP 404: Not Found\n"));

    responders(&daemon, 1).await;
    let late = NewRequest::new("slow").timeout(std::time::Duration::from_secs(3));
    let late = client.request(&name("s"), late).await.unwrap_err();
    assert!(matches!(late, RequestError::TimedOut), "{late}");
    let note = serving.note().await;
    assert!(note.contains(&format!("{} had no reply within", behind.uri("/"))), "{note}");
    end(serving).await.is_silent();
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_a_failure() {
    let (daemon, nowhere) = (Daemon::start(), nowhere());
    let mut serving = serving(&daemon, &["--to", &nowhere.to_string()]).await;
    let failure = "HTTP 502: cannot connect to the HTTP server: Connection refused";
    ask(&daemon, &["x"]).await.fails(9, failure);
    let note = serving.note().await;
    assert!(note.contains(&format!("s: http://{nowhere}/: {failure}")), "{note}");
    end(serving).await.is_silent();
}

#[tokio::test]
async fn the_second_signal_does_not_wait_for_a_slow_server() {
    let (daemon, behind) = (Daemon::start(), Behind::start().await);
    let mut serving = Running::start(serve(&daemon.uri(), &["--to", &behind.uri("/")]));
    responders(&daemon, 1).await;
    let mut command = msgbus(&["request", "s", "--timeout", "60s", "slow"]);
    command.env("MSGBUS_URI", daemon.uri());
    let asked = tokio::spawn(run(command));
    let in_hand = || daemon.bus.service(&name("s")).is_some_and(|stats| stats.in_hand == 1);
    msgbus_testkit::until(in_hand).await;
    let ended = crate::support::soon(async {
        loop {
            serving.signal("-TERM");
            // Longer than it takes to exit: a third signal would end it at once.
            let pause = std::time::Duration::from_secs(4);
            if let Ok(ended) = tokio::time::timeout(pause, serving.child.wait()).await {
                return ended;
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), Some(130));
    asked.await.unwrap().fails(9, "the responder has left without a reply");
}
