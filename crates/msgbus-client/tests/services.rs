//! Requests and responders: the client library against a real server.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use msgbus_client::{
    Client, ClientError, Failure, Headers, NewRequest, Reply, Request, RequestError, Responder,
};
use msgbus_testkit::{Daemon, Proxy, free_address, name, soon, until};
use tokio::task::JoinHandle;

const MINUTE: Duration = Duration::from_secs(60);

fn client_of(daemon: &Daemon) -> Client {
    Client::new(&daemon.uri()).unwrap()
}

/// Asks in a task.
fn ask(client: &Client, request: impl Into<NewRequest>) -> JoinHandle<Result<Reply, RequestError>> {
    let (client, request) = (client.clone(), request.into().timeout(MINUTE));
    tokio::spawn(async move { client.request(&name("s"), request).await })
}

/// Waits until this many responders wait.
async fn responders(daemon: &Daemon, count: usize) {
    until(|| daemon.bus.service(&name("s")).is_some_and(|stats| stats.responders == count)).await;
}

async fn take(responder: &Responder) -> Request {
    soon(responder.take(1, MINUTE)).await.unwrap().pop().unwrap()
}

/// Asks, when a responder waits, and takes the request.
async fn asked(
    daemon: &Daemon,
    request: impl Into<NewRequest>,
) -> (JoinHandle<Result<Reply, RequestError>>, Request) {
    let client = client_of(daemon);
    let responder = client.serve(&name("s"));
    let taken = tokio::spawn(async move { take(&responder).await });
    responders(daemon, 1).await;
    let asking = ask(&client, request);
    (asking, taken.await.unwrap())
}

#[tokio::test]
async fn payload_and_headers_go_both_ways() {
    let daemon = Daemon::start();
    let payload: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0]).collect();
    let headers = Headers::new([("content-type", "image/png"), ("x-tag", "ö"), ("x-tag", "b")]);
    let request = NewRequest::new(payload.clone()).headers(headers.clone().unwrap());
    let (asking, request) = asked(&daemon, request).await;
    assert_eq!(
        (request.payload(), request.headers()),
        (&payload.clone().into(), &headers.unwrap())
    );
    assert_eq!((request.content_type(), request.service()), (Some("image/png"), &name("s")));
    assert!(request.time_left() <= MINUTE && request.time_left() > MINUTE / 2);
    let headers = Headers::new([("content-type", "text/csv"), ("x-answer", "42")]).unwrap();
    let reply = Reply { payload: payload.into(), headers };
    request.reply(reply.clone()).await.unwrap();
    assert_eq!(soon(asking).await.unwrap().unwrap(), reply);
    let services = client_of(&daemon).services().await.unwrap();
    let [service] = &services[..] else { panic!("{services:?}") };
    assert_eq!((&*service.name, service.asked, service.replied), ("s", 1, 1));
}

#[tokio::test]
async fn each_way_to_get_no_reply_is_an_error_of_its_own() {
    let daemon = Daemon::start();
    let client = client_of(&daemon);
    let nobody = client.request(&name("s"), "x").await.unwrap_err();
    assert!(matches!(nobody, RequestError::NoResponder), "{nobody}");

    let (asking, request) = asked(&daemon, "x").await;
    request.fail(Failure::new("no\nsuch user").with_status(404)).await.unwrap();
    let RequestError::Failed(failure) = soon(asking).await.unwrap().unwrap_err() else { panic!() };
    assert_eq!(failure, Failure::new("no such user").with_status(404));

    let (asking, request) = asked(&daemon, "x").await;
    request.decline().await.unwrap();
    let gone = soon(asking).await.unwrap().unwrap_err();
    assert!(matches!(gone, RequestError::ResponderGone), "{gone}");

    let (asking, request) = asked(&daemon, "x").await;
    drop(request);
    let gone = soon(asking).await.unwrap().unwrap_err();
    assert!(matches!(gone, RequestError::ResponderGone), "{gone}");

    let (asking, request) = asked(&daemon, "x").await;
    let too_large = request.reply(vec![0; (1 << 20) + 1]).await.unwrap_err();
    assert!(matches!(too_large, ClientError::Refused { status: 413, .. }), "{too_large}");
    let RequestError::Failed(failure) = soon(asking).await.unwrap().unwrap_err() else { panic!() };
    assert!(failure.reason.starts_with("the reply was refused: "), "{failure}");

    let (asking, request) = asked(&daemon, "x").await;
    asking.abort();
    until(|| daemon.bus.service(&name("s")).unwrap().counters.given_up == 1).await;
    let late = request.reply("x").await.unwrap_err();
    assert!(matches!(late, ClientError::ReplyNotWanted), "{late}");

    // The request is in hand and is not answered.
    let responder = client.serve(&name("s"));
    let taken = tokio::spawn(async move { responder.take(1, MINUTE).await });
    responders(&daemon, 1).await;
    let short = NewRequest::new("x").timeout(Duration::from_millis(50));
    let late = client.request(&name("s"), short).await;
    assert!(matches!(late, Err(RequestError::TimedOut)), "{late:?}");
    taken.abort();
    for bad in [Duration::ZERO, Duration::from_micros(1)] {
        let bad = client.request(&name("s"), NewRequest::new("x").timeout(bad)).await.unwrap_err();
        let refused = |error: &RequestError| {
            matches!(error, RequestError::Client(ClientError::Refused { status: 400, .. }))
        };
        assert!(refused(&bad), "{bad}");
    }
}

#[tokio::test]
async fn a_request_that_may_be_repeated_goes_to_another_responder() {
    let daemon = Daemon::start();
    let (asking, request) = asked(&daemon, NewRequest::new("x").may_repeat()).await;
    drop(request);
    let responder = client_of(&daemon).serve(&name("s"));
    take(&responder).await.reply("second").await.unwrap();
    assert_eq!(soon(asking).await.unwrap().unwrap().payload, "second");
}

#[tokio::test]
async fn several_requests_are_taken_at_once() {
    let daemon = Daemon::start();
    let (first, request) = asked(&daemon, "0").await;
    let client = client_of(&daemon);
    let asking: Vec<_> = (1..4).map(|n: u32| ask(&client, n.to_string())).collect();
    until(|| daemon.bus.service(&name("s")).unwrap().queued == 3).await;
    request.reply("0").await.unwrap();
    let responder = client.serve(&name("s"));
    let requests = responder.take(2, Duration::ZERO).await.unwrap();
    assert_eq!(requests.len(), 2);
    for request in requests.into_iter().chain(responder.take(9, MINUTE).await.unwrap()) {
        let payload = request.payload().clone();
        request.reply(payload).await.unwrap();
    }
    assert_eq!(soon(first).await.unwrap().unwrap().payload, "0");
    for (n, asking) in (1..4).zip(asking) {
        assert_eq!(soon(asking).await.unwrap().unwrap().payload, n.to_string());
    }
    assert!(responder.take(9, Duration::ZERO).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_responder_survives_the_server_and_replies_when_it_is_reached_again() {
    let address = free_address();
    let daemon = Daemon::at(address, |_| {});
    let proxy = Proxy::to(address).await;
    let served = Client::new(&format!("http://{}", proxy.address)).unwrap();
    let mut responder = served.serve(&name("s"));
    let taken = tokio::spawn(async move {
        let request = responder.next().await.unwrap();
        (responder, request)
    });
    responders(&daemon, 1).await;
    let asking = ask(&client_of(&daemon), "x");
    let (mut responder, request) = taken.await.unwrap();
    proxy.close();
    let reply = tokio::spawn(request.reply("after all"));
    proxy.open();
    soon(reply).await.unwrap().unwrap();
    assert_eq!(soon(asking).await.unwrap().unwrap().payload, "after all");

    let next = tokio::spawn(async move { responder.next().await.unwrap() });
    responders(&daemon, 1).await;
    daemon.stop().await;
    let daemon = Daemon::at(address, |_| {});
    responders(&daemon, 1).await;
    let asking = ask(&client_of(&daemon), "y");
    soon(next).await.unwrap().reply("again").await.unwrap();
    assert_eq!(soon(asking).await.unwrap().unwrap().payload, "again");
    daemon.stop().await;
}
