//! Requests to services, and their responders, on one websocket.

use std::{pin::pin, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use msgbus_client::{
    Client, ClientError, Failure, Headers, NewRequest, Reply, RequestError, Socket, SocketResponder,
};
use msgbus_testkit::{Daemon, Proxy, free_address, name, soon, until};

/// In which a request arrives at its responder, but no reply comes.
const IN_TIME: Duration = Duration::from_secs(2);

async fn connect(uri: &str) -> Socket {
    Client::new(uri).unwrap().connect().await.unwrap()
}

fn ask(payload: &str) -> NewRequest {
    NewRequest::new(payload.to_owned()).timeout(NewRequest::MAX_TIMEOUT)
}

fn text(reply: &Reply) -> &str {
    str::from_utf8(&reply.payload).unwrap()
}

/// Answers every request with its payload in upper case, until the responder ends.
fn upper(mut responder: SocketResponder) {
    tokio::spawn(async move {
        while let Ok(request) = responder.next().await {
            let reply = request.payload().to_ascii_uppercase();
            tokio::spawn(request.reply(reply));
        }
    });
}

#[tokio::test]
async fn a_socket_asks_and_serves() {
    let daemon = Daemon::start();
    let socket = connect(&daemon.uri()).await;
    let nobody = socket.request(&name("s"), "x").await.unwrap_err();
    assert!(matches!(nobody, RequestError::NoResponder), "{nobody}");
    let mut responder = socket.serve(&name("s"), 10).await.unwrap();
    let headers = Headers::new([("tag", "a"), ("tag", "b")]).unwrap();
    let asked = NewRequest::new(vec![0, 255]).headers(headers.clone());
    let service = name("s");
    let (reply, ()) = soon(async {
        tokio::join!(socket.request(&service, asked), async {
            let request = responder.next().await.unwrap();
            assert_eq!((&request.payload()[..], request.headers()), (&[0, 255][..], &headers));
            assert_eq!(request.service(), &service);
            assert!(request.time_left() <= NewRequest::DEFAULT_TIMEOUT);
            request
                .reply(Reply { payload: "größe".into(), headers: headers.clone() })
                .await
                .unwrap();
        })
    })
    .await;
    let reply = reply.unwrap();
    assert_eq!((text(&reply), &reply.headers), ("größe", &headers));

    let outcomes = [("fail", "404"), ("decline", "gone"), ("drop", "gone"), ("late", "late")];
    for (what, outcome) in outcomes {
        let timeout = if what == "late" { IN_TIME } else { NewRequest::MAX_TIMEOUT };
        let asked = NewRequest::new(what).timeout(timeout);
        let asking = tokio::spawn({
            let (socket, service) = (socket.clone(), service.clone());
            async move { socket.request(&service, asked).await }
        });
        let request = soon(responder.next()).await.unwrap();
        let error = match what {
            "fail" => {
                request.fail(Failure::new("no such word").with_status(404)).await.unwrap();
                soon(asking).await.unwrap().unwrap_err()
            }
            "decline" => {
                request.decline().await.unwrap();
                soon(asking).await.unwrap().unwrap_err()
            }
            "drop" => {
                drop(request);
                soon(asking).await.unwrap().unwrap_err()
            }
            _ => {
                let error = soon(asking).await.unwrap().unwrap_err();
                let late = request.reply("late").await.unwrap_err();
                assert!(matches!(late, ClientError::ReplyNotWanted), "{late}");
                error
            }
        };
        let kind = match error {
            RequestError::Failed(Failure { status: Some(404), .. }) => "404",
            RequestError::ResponderGone => "gone",
            RequestError::TimedOut => "late",
            other => panic!("{what} {other}"),
        };
        assert_eq!(kind, outcome);
    }
    drop(responder);
    until(|| daemon.bus.service(&service).is_some_and(|stats| stats.responders == 0)).await;
    soon(socket.close()).await;
}

/// More at once than may wait, and a responder that asks itself.
#[tokio::test]
async fn many_requests_share_a_socket_with_their_responder() {
    const COUNT: usize = 1000;
    let daemon = Daemon::start();
    let socket = connect(&daemon.uri()).await;
    let mut outer = socket.serve(&name("outer"), 100).await.unwrap();
    upper(socket.serve(&name("upper"), SocketResponder::MAX_AT_A_TIME).await.unwrap());
    let inner = socket.clone();
    tokio::spawn(async move {
        while let Ok(request) = outer.next().await {
            let socket = inner.clone();
            tokio::spawn(async move {
                let asked = NewRequest::new(request.payload().clone());
                let asked = asked.timeout(NewRequest::MAX_TIMEOUT);
                let reply = socket.request(&name("upper"), asked).await.unwrap();
                request.reply(reply).await.unwrap();
            });
        }
    });
    // The queue of a service is bounded, and these use half of what may be outstanding.
    for some in (0..COUNT).collect::<Vec<_>>().chunks(Socket::MAX_ASKED / 2) {
        let asked = some.iter().map(|n| {
            let socket = socket.clone();
            async move { socket.request(&name("outer"), ask(&format!("n{n}"))).await }
        });
        for (n, reply) in some.iter().zip(soon(join_all(asked)).await) {
            assert_eq!(text(&reply.unwrap()), format!("N{n}"));
        }
    }
    let stats = daemon.bus.service(&name("outer")).unwrap();
    assert_eq!(stats.counters.replied, COUNT as u64);
}

#[tokio::test]
async fn a_responder_survives_a_lost_connection_and_its_requests_do_not() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let far = connect(&proxy.uri()).await;
    let near = connect(&daemon.uri()).await;
    let service = name("s");
    let mut responder = far.serve(&service, 10).await.unwrap();
    let asking = |payload: &'static str, may_repeat: bool| {
        let asked = if may_repeat { ask(payload).may_repeat() } else { ask(payload) };
        let (socket, service) = (near.clone(), service.clone());
        tokio::spawn(async move { socket.request(&service, asked).await })
    };
    let once = asking("once", false);
    let in_hand = soon(responder.next()).await.unwrap();
    let (unseen, again) = (asking("unseen", false), asking("again", true));
    until(|| daemon.bus.service(&service).unwrap().in_hand == 3).await;
    let mut statuses = pin!(far.statuses());
    proxy.cut();
    // The responder does not return what is over from here on.
    soon(statuses.next()).await.unwrap();
    for failed in [once, unseen] {
        let error = soon(failed).await.unwrap().unwrap_err();
        assert!(matches!(error, RequestError::ResponderGone), "{error}");
    }
    // Only the one that may be repeated is there on the next connection.
    let request = soon(responder.next()).await.unwrap();
    assert_eq!(request.payload(), "again");
    let late = soon(in_hand.reply("late")).await.unwrap_err();
    assert!(matches!(late, ClientError::ReplyNotWanted), "{late}");
    request.reply("here").await.unwrap();
    assert_eq!(text(&soon(again).await.unwrap().unwrap()), "here");
}

#[tokio::test]
async fn a_request_of_a_lost_connection_fails_or_is_asked_again() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let (far, near) = (connect(&proxy.uri()).await, connect(&daemon.uri()).await);
    let service = name("s");
    let mut responder = near.serve(&service, 10).await.unwrap();
    let asking = |asked: NewRequest| {
        let (socket, service) = (far.clone(), service.clone());
        tokio::spawn(async move { socket.request(&service, asked).await })
    };
    let (once, again) = (asking(ask("x")), asking(ask("x").may_repeat()));
    let lost = [soon(responder.next()).await.unwrap(), soon(responder.next()).await.unwrap()];
    proxy.cut();
    let error = soon(once).await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Client(ClientError::Lost { .. })), "{error}");
    let request = soon(responder.next()).await.unwrap();
    for request in lost {
        let late = request.reply("late").await.unwrap_err();
        assert!(matches!(late, ClientError::ReplyNotWanted), "{late}");
    }
    request.reply("here").await.unwrap();
    assert_eq!(text(&soon(again).await.unwrap().unwrap()), "here");
}

/// A caller that takes nothing is sent no more than it wants, and others are asked.
#[tokio::test]
async fn a_responder_that_is_stuck_holds_up_nothing() {
    let daemon = Daemon::start();
    let (stuck, socket) = (connect(&daemon.uri()).await, connect(&daemon.uri()).await);
    let service = name("s");
    let mut responder = stuck.serve(&service, 1).await.unwrap();
    for _ in 0..2 {
        let late = NewRequest::new("late").timeout(IN_TIME);
        let error = soon(socket.request(&service, late)).await.unwrap_err();
        assert!(matches!(error, RequestError::TimedOut), "{error}");
    }
    // No more is kept than twice as many.
    let late = NewRequest::new("late").timeout(IN_TIME);
    let error = soon(socket.request(&service, late)).await.unwrap_err();
    assert!(matches!(error, RequestError::TimedOut), "{error}");
    soon(stuck.ping()).await.unwrap();
    let mut asked = pin!(async { socket.request(&service, ask("y")).await });
    // The responder passes over what is over.
    let request = soon(async {
        tokio::select! {
            request = responder.next() => request.unwrap(),
            error = &mut asked => panic!("{error:?}"),
        }
    })
    .await;
    assert_eq!(request.payload(), "y");
    request.reply("z").await.unwrap();
    assert_eq!(text(&soon(asked).await.unwrap()), "z");
    soon(stuck.close()).await;
    assert!(soon(responder.next()).await.is_err());
    assert!(soon(responder.next()).await.is_err());
}

#[tokio::test]
async fn a_responder_is_a_stream_that_ends_with_its_error() {
    let daemon = Daemon::start();
    let socket = connect(&daemon.uri()).await;
    let service = name("s");
    let mut responder = socket.serve(&service, 1).await.unwrap();
    let (reply, request) = soon(async {
        tokio::join!(socket.request(&service, "x"), async {
            let request = responder.next().await.unwrap();
            request.reply("y").await
        })
    })
    .await;
    request.unwrap();
    assert_eq!(text(&reply.unwrap()), "y");
    soon(socket.close()).await;
    let ended: Vec<_> = soon(responder.by_ref().collect()).await;
    assert!(matches!(ended[..], [Err(ClientError::Lost { .. })]), "{ended:?}");
}

/// A server that stops has not carried out what it answers with `closed`.
#[tokio::test]
async fn a_restart_ends_requests_except_those_that_may_be_repeated() {
    let address = free_address();
    let daemon = Daemon::at(address, |_| {});
    let socket = connect(&daemon.uri()).await;
    let service = name("s");
    let mut responder = socket.serve(&service, 10).await.unwrap();
    let asking = |asked: NewRequest| {
        let (socket, service) = (socket.clone(), service.clone());
        tokio::spawn(async move { socket.request(&service, asked).await })
    };
    let (once, again) = (asking(ask("once")), asking(ask("again").may_repeat()));
    let in_hand = [soon(responder.next()).await.unwrap(), soon(responder.next()).await.unwrap()];
    daemon.stop().await;
    let error = soon(once).await.unwrap().unwrap_err();
    let is_told =
        matches!(error, RequestError::Client(ClientError::Busy { .. } | ClientError::Lost { .. }));
    assert!(is_told, "{error}");
    let _daemon = Daemon::at(address, |_| {});
    let request = soon(responder.next()).await.unwrap();
    assert_eq!(request.payload(), "again");
    for request in in_hand {
        assert!(soon(request.reply("late")).await.is_err());
    }
    request.reply("here").await.unwrap();
    assert_eq!(text(&soon(again).await.unwrap().unwrap()), "here");
}
