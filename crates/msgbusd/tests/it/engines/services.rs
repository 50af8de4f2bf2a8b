//! Services whose responders are at other servers.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use msgbus_core::{BatchLimit, NewRequest, RequestError, TopicName};
use msgbus_engine_testkit::{
    requests,
    server::{Kind, Program, Server},
};
use msgbusd::config::{Config, EngineConfig, EngineTopics};
use serde_json::json;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use super::{door, door_with};
use crate::{
    binary::{Running, msgbusd},
    support::{Daemon, Reply, soon, until},
};

impl Daemon {
    /// Asks a service, for up to a minute.
    async fn asks(&self, service: &str, body: &str) -> Reply {
        let target = format!("/-/request/{service}?timeout=60s");
        self.send("POST", &target, &["Content-Type: text/plain"], body.as_bytes()).await
    }

    async fn looks_for(&self, service: &str, status: u16) {
        let target = format!("/-/request/{service}");
        let is_known = async {
            while self.send("HEAD", &target, &[], b"").await.status != status {
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon(is_known).await;
    }

    async fn service(&self, service: &str) -> serde_json::Value {
        self.get("/-/services").await.json()[service].clone()
    }
}

/// The servers of NATS. Redis has no services.
fn programs() -> Vec<Program> {
    Kind::Nats.programs()
}

/// Two servers in front of one NATS, for each version of it.
async fn pairs() -> Vec<(Server, Daemon, Daemon)> {
    let mut pairs = Vec::new();
    for program in programs() {
        let nats = Server::start(&program);
        let (one, other) = (door(&nats).ready().await, door(&nats).ready().await);
        pairs.push((nats, one, other));
    }
    pairs
}

/// A responder in the process of a server.
fn respond(
    daemon: &Daemon,
    service: &str,
    answer: impl Fn(msgbus_core::Request) + Send + 'static,
) -> JoinHandle<()> {
    requests::respond(&daemon.bus, &service.parse().unwrap(), answer)
}

#[tokio::test]
async fn a_responder_answers_requests_of_another_server() {
    for (_nats, one, other) in pairs().await {
        let serve = one.get("/-/serve/upper?wait=60s");
        let ask = async {
            other.looks_for("upper", 200).await;
            other.asks("upper", "hello").await
        };
        let answer = async {
            let request = serve.await;
            assert_eq!(
                (request.status, request.text(), request.header("Content-Type")),
                (200, "hello", Some("text/plain"))
            );
            let left = msgbus_core::parse_duration(request.header("Msgbus-Timeout").unwrap());
            let left = left.unwrap();
            assert!(left > Duration::from_secs(30) && left <= Duration::from_secs(60), "{left:?}");
            let target = format!("/-/reply/{}", request.header("Msgbus-Reply").unwrap());
            let headers = ["Content-Type: text/html", "Msgbus-Header-Answer: 42"];
            assert_eq!(one.send("POST", &target, &headers, b"HELLO").await.status, 204);
            one.send("POST", &target, &[], b"again").await.refuses(410, "nobody waits");
        };
        let (reply, ()) = tokio::join!(ask, answer);
        assert_eq!((reply.status, reply.text()), (200, "HELLO"));
        assert_eq!(reply.header("Content-Type"), Some("text/html"));
        assert_eq!(reply.header("Msgbus-Header-Answer"), Some("42"));
        let (here, there) = (other.service("upper").await, one.service("upper").await);
        assert_eq!(
            (&here["asked"], &here["replied"], &here["taken"]),
            (&json!(1), &json!(1), &json!(0))
        );
        assert_eq!(
            (&there["asked"], &there["replied"], &there["taken"]),
            (&json!(0), &json!(0), &json!(1))
        );
        assert_eq!(one.metric("msgbus_service_taken_total{service=\"upper\"}").await, 1);

        // The responder has left. While it may come back, a request waits for it.
        let nobody = other.asks("upper", "hello").await;
        nobody.refuses(503, "nobody serves upper");
    }
}

#[tokio::test]
async fn websockets_ask_and_serve_across_servers() {
    for (_nats, one, other) in pairs().await {
        let (mut responder, mut requester) = (one.client().await, other.client().await);
        let serve = json!({"op": "serve", "rid": 0, "sid": "s", "service": "s", "payload": "text"});
        responder.send(&[serve]).await;
        assert_eq!(responder.line().await["op"], "ok");
        other.looks_for("s", 200).await;
        let ask = |rid: u64, more: &str| {
            json!({"op": "request", "rid": rid, "service": "s", "timeout": "60s", "text": more,
                   "payload": "text"})
        };
        for (rid, text) in ["größe", "again"].into_iter().enumerate() {
            requester.send(&[ask(rid as u64, text)]).await;
            let request = responder.line().await;
            assert_eq!((&request["op"], &request["text"]), (&json!("request"), &json!(text)));
            let reply = json!({"op": "reply", "token": request["reply"], "text": "done"});
            responder.send(&[reply]).await;
            let answer = requester.line().await;
            assert_eq!((&answer["rid"], &answer["text"]), (&json!(rid), &json!("done")));
        }
        // A responder that leaves with a request in hand is known at once.
        requester.send(&[ask(7, "left")]).await;
        assert_eq!(responder.line().await["text"], "left");
        drop(responder);
        let answer = requester.line().await;
        assert_eq!((&answer["rid"], &answer["code"]), (&json!(7), &json!("responder_failed")));
        requester.send(&[ask(8, "nobody")]).await;
        assert_eq!(requester.line().await["code"], "no_responder");
    }
}

/// Far sooner than the request would have waited.
#[tokio::test]
async fn that_nobody_serves_is_known_at_once() {
    for (_nats, one, _other) in pairs().await {
        let begin = Instant::now();
        one.asks("nobody", "x").await.refuses(503, "nobody serves nobody");
        one.looks_for("nobody", 503).await;
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        assert_eq!(one.get("/-/services").await.text(), "{}", "nothing is kept of it");
    }
}

/// A server in a process of its own, with a responder that is given a request and keeps it.
async fn a_server_with_a_request(nats: &Server, one: &Daemon) -> (Running, JoinHandle<TcpStream>) {
    let args = ["--bind", "127.0.0.1:0", "--open", "--engine", &nats.url()];
    let other = Running::start(msgbusd(&args).stdout(Stdio::null()));
    let address = other.address;
    let responder = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = "GET /-/serve/s?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"work") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        stream
    });
    one.looks_for("s", 200).await;
    (other, responder)
}

/// A process that is killed cannot say that it had a request: the requester learns it by time.
#[tokio::test]
async fn a_server_that_is_killed_is_not_asked_again() {
    for program in programs() {
        let nats = Server::start(&program);
        let one = door_with(&nats, |_| {}).ready().await;
        let (other, responder) = a_server_with_a_request(&nats, &one).await;
        let ask = one.send("POST", "/-/request/s?timeout=3s", &[], b"work");
        let kill = async {
            let _stream = soon(responder).await.unwrap();
            other.signal("-KILL");
        };
        let (reply, ()) = tokio::join!(ask, kill);
        reply.refuses(504, "no reply");
        one.asks("s", "x").await.refuses(503, "nobody serves s");
        let counters = one.bus.service(&"s".parse().unwrap()).unwrap().counters;
        assert_eq!((counters.asked, counters.timed_out, counters.refused), (2, 1, 1));
    }
}

/// One that stops says so.
#[tokio::test]
async fn a_server_that_stops_says_so() {
    for program in programs() {
        let nats = Server::start(&program);
        let one = door_with(&nats, |_| {}).ready().await;
        let (other, responder) = a_server_with_a_request(&nats, &one).await;
        let accept = ["Accept: application/json"];
        let ask = one.send("POST", "/-/request/s?timeout=60s", &accept, b"work");
        let stop = async {
            drop(soon(responder).await.unwrap());
            other.signal("-TERM");
        };
        let (reply, ()) = tokio::join!(ask, stop);
        assert_eq!((reply.status, &reply.json()["code"]), (503, &json!("closed")), "{reply:?}");
    }
}

/// Each is waited for, for a second, and all at the same time.
#[tokio::test]
async fn engines_that_are_silent_hold_up_a_stop_once() {
    const ENGINES: u64 = 30;
    for program in programs() {
        let nats = Server::start(&program);
        let names = (0..ENGINES).map(|n| format!("e{n}"));
        let daemon = Daemon::with(|config| {
            for name in names {
                config.engines.push(EngineConfig::new(&name, &nats.url()));
                let pattern = format!("{name}/**").parse().unwrap();
                config.engine_topics.push(EngineTopics { pattern, engine: Some(name) });
            }
        });
        let daemon = daemon.ready().await;
        nats.signal("-STOP");
        let began = Instant::now();
        soon(daemon.stop()).await.unwrap();
        nats.signal("-CONT");
        let time = began.elapsed();
        assert!(time < Duration::from_secs(ENGINES / 2), "{time:?}");
    }
}

/// Those who asked it go to another server, however many they are.
#[tokio::test]
async fn what_waits_at_a_server_that_stops_goes_to_another_one() {
    const WAITING: usize = 600;
    for program in programs() {
        let nats = Server::start(&program);
        let one = door_with(&nats, |_| {}).ready().await;
        let (other, responder) = a_server_with_a_request(&nats, &one).await;
        let ask = |payload: &'static str| {
            tokio::spawn(one.bus.request(&"s".parse().unwrap(), requests::patient(payload)))
        };
        let in_hand = ask("work");
        let stream = soon(responder).await.unwrap();
        let waiting: Vec<_> = (0..WAITING).map(|_| ask("wait")).collect();
        let all_are_there = format!("\"visiting\":{}", WAITING + 1);
        until(|| other.say("GET /-/services").contains(&all_are_there)).await;
        let third = door_with(&nats, |_| {}).ready().await;
        let responder = respond(&third, "s", |request| request.reply("third").unwrap());
        drop(stream);
        other.signal("-TERM");
        assert_eq!(soon(in_hand).await.unwrap(), Err(RequestError::Closed));
        for waiting in waiting {
            assert_eq!(soon(waiting).await.unwrap().unwrap().payload, "third");
        }
        responder.abort();
    }
}

#[tokio::test]
async fn servers_serve_for_themselves_while_the_engine_is_away() {
    for program in programs() {
        let mut nats = Server::start(&program);
        let (one, other) = (door_with(&nats, |_| {}), door_with(&nats, |_| {}));
        let (one, other) = (one.ready().await, other.ready().await);
        let responder = respond(&other, "s", |request| request.reply("done").unwrap());
        one.looks_for("s", 200).await;
        assert_eq!(one.asks("s", "x").await.text(), "done");
        nats.kill();
        one.looks_for("s", 503).await;
        let refused = one.asks("s", "x").await;
        refused.refuses(503, "not available");
        assert_eq!(refused.header("Retry-After"), Some("1"));
        let problem = one.send("POST", "/-/request/s", &["Accept: application/json"], b"x").await;
        assert_eq!(problem.json()["code"], "engine_unavailable");
        assert_eq!(other.asks("s", "x").await.text(), "done");
        nats.run();
        one.looks_for("s", 200).await;
        assert_eq!(one.asks("s", "x").await.text(), "done");
        responder.abort();
    }
}

/// A request is counted where it was asked, whatever becomes of it and wherever that is.
#[tokio::test]
async fn accounts_of_all_servers_balance_under_load() {
    const REQUESTERS: usize = 12;
    const EACH: usize = 20;
    for program in programs() {
        let nats = Server::start(&program);
        let mut doors = Vec::new();
        for _ in 0..3 {
            doors.push(door_with(&nats, |_| {}).ready().await);
        }
        let doors = Arc::new(doors);
        let mut responders = Vec::new();
        for n in 0..4 {
            let answer = |request: msgbus_core::Request| match fastrand::u8(..12) {
                0 => request.fail("broken").unwrap_or_default(),
                1 => drop(request),
                2 => drop(request.into_token()),
                _ => {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(fastrand::u64(..20))).await;
                        let payload = request.payload().clone();
                        request.reply(payload).unwrap_or_default();
                    });
                }
            };
            responders.push(respond(&doors[n % 2], "load", answer));
        }
        doors[2].looks_for("load", 200).await;
        let mut requesters = JoinSet::new();
        for requester in 0..REQUESTERS {
            let doors = Arc::clone(&doors);
            requesters.spawn(async move {
                let mut seen = [0u64; 4];
                for n in 0..EACH {
                    let retry = if n % 3 == 0 { "&retry" } else { "" };
                    let target = format!("/-/request/load?timeout=2s{retry}");
                    let body = format!("{requester} {n}");
                    let door = &doors[requester % 3];
                    let reply = door.send("POST", &target, &[], body.as_bytes()).await;
                    let index = match reply.status {
                        200 => {
                            assert_eq!(reply.text(), body);
                            0
                        }
                        502 => 1,
                        504 => 2,
                        _ => panic!("{reply:?}"),
                    };
                    seen[index] += 1;
                }
                seen
            });
        }
        let mut seen = [0; 4];
        while let Some(of_one) = soon(requesters.join_next()).await {
            for (sum, count) in seen.iter_mut().zip(of_one.unwrap()) {
                *sum += count;
            }
        }
        responders.iter().for_each(JoinHandle::abort);
        let name: TopicName = "load".parse().unwrap();
        let stats: Vec<_> = doors.iter().map(|door| door.bus.service(&name).unwrap()).collect();
        for stats in &stats {
            requests::assert_balance(stats);
            assert_eq!(stats.counters.asked, (REQUESTERS / 3 * EACH) as u64);
        }
        let sum = |count: fn(&msgbus_core::ServiceCounters) -> u64| {
            stats.iter().map(|stats| count(&stats.counters)).sum::<u64>()
        };
        assert_eq!(
            seen,
            [sum(|c| c.replied), sum(|c| c.failed), sum(|c| c.timed_out), sum(|c| c.refused)]
        );
        let taken: u64 = stats.iter().map(|stats| stats.taken).sum();
        assert!(taken >= (REQUESTERS / 3 * EACH) as u64, "those of the third went elsewhere");
        assert!(seen[0] > 0 && stats[2].taken == 0);
    }
}

/// As many requests wait at a server as may, wherever they were asked. One more is sent nowhere. Those that leave make room.
#[tokio::test]
async fn a_full_queue_at_another_server_is_said() {
    const LIMIT: usize = 1024;
    for (mut nats, one, other) in pairs().await {
        let name: TopicName = "full".parse().unwrap();
        let responder = one.bus.serve(&name, BatchLimit::ONE).unwrap();
        other.looks_for("full", 200).await;
        let mut asked = JoinSet::new();
        for _ in 0..=LIMIT {
            let request = NewRequest::new("x").timeout(Duration::from_secs(60));
            asked.spawn(other.bus.request(&name, request));
        }
        let in_hand = soon(responder).await.unwrap();
        until(|| one.bus.service(&name).is_some_and(|stats| stats.visiting == LIMIT + 1)).await;
        let refused = other.asks("full", "x").await;
        refused.refuses(429, "1024 requests wait");
        one.asks("full", "x").await.refuses(429, "1024 requests wait");
        other.looks_for("full", 200).await;
        assert_eq!(one.bus.service(&name).unwrap().taken, LIMIT as u64 + 1, "they were sent");
        asked.abort_all();
        until(|| one.bus.service(&name).is_some_and(|stats| stats.visiting == 0)).await;
        let responder = respond(&one, "full", |request| request.reply("room").unwrap());
        assert_eq!(other.asks("full", "x").await.text(), "room");
        drop(in_hand);
        responder.abort();
        one_that_is_full_says_so_although_nats_is_away(&mut nats, &one).await;
    }
}

async fn one_that_is_full_says_so_although_nats_is_away(nats: &mut Server, one: &Daemon) {
    let name: TopicName = "full-alone".parse().unwrap();
    let _responder = one.bus.serve(&name, BatchLimit::ONE).unwrap();
    nats.kill();
    one.looks_for("away", 503).await;
    let mut asked = JoinSet::new();
    for _ in 0..1024 {
        let request = NewRequest::new("x").timeout(Duration::from_secs(60));
        asked.spawn(one.bus.request(&name, request));
    }
    until(|| one.bus.service(&name).is_some_and(|stats| stats.queued == 1024)).await;
    one.asks("full-alone", "x").await.refuses(429, "1024 requests wait");
}

/// An engine without services is none for requests: what another server would have to answer is refused.
#[tokio::test]
async fn redis_does_not_carry_requests() {
    let daemon = Daemon::with(|config: &mut Config| {
        config.engines = vec![EngineConfig::new("main", "redis://127.0.0.1:1")];
        let pattern = "**".parse().unwrap();
        config.engine_topics = vec![EngineTopics { pattern, engine: Some("main".to_owned()) }];
    });
    let refused = daemon.asks("s", "x").await;
    refused.refuses(501, "redis cannot carry requests between servers");
    assert_eq!(daemon.send("HEAD", "/-/request/s", &[], b"").await.status, 501);
    let responder = respond(&daemon, "s", |request| request.reply("here").unwrap());
    daemon.looks_for("s", 200).await;
    assert_eq!(daemon.asks("s", "x").await.text(), "here");
    responder.abort();
}
