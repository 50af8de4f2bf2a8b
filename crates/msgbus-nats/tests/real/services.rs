//! Services at several nodes, whose server goes away and whose connections break.

use futures_util::StreamExt as _;
use msgbus_core::{
    BatchLimit, NewRequest, RequestError, TopicName,
    engine::{Asked, Urgency},
};
use msgbus_engine_testkit::{
    Proxy,
    requests::{Load, Timer, assert_balance, patient, respond, until_served},
};
use tokio::{task::JoinHandle, time::timeout};

use super::*;

/// Two nodes, and what ends what is due at both.
struct Nodes {
    one: MessageBus,
    other: MessageBus,
    _timer: Timer,
}

fn nodes(one: NatsEngine, other: NatsEngine) -> Nodes {
    let (one, other) = (bus(Arc::new(one)), bus(Arc::new(other)));
    let timer = Timer::of([&one, &other]);
    Nodes { one, other, _timer: timer }
}

/// A program may end the runtime of the engine before it closes the bus. Another responder does not get the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_is_not_given_to_another_responder_when_the_runtime_ends() {
    for program in programs() {
        let server = Server::start(&program);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let connect = NatsEngine::connect(server.options(), ConnectOptions::new());
        let one = runtime.spawn(connect).await.unwrap().unwrap();
        let nodes = nodes(one, server.engine(server.options()).await);
        let service = fresh("runtime");
        let elsewhere = nodes.other.serve(&service, BatchLimit::ONE).unwrap();
        until_served(&nodes.one, &service, true).await;
        let asked = tokio::spawn(nodes.one.request(&service, patient("once")));
        let in_hand = soon(elsewhere).await.unwrap();
        let _responder = nodes.one.serve(&service, BatchLimit::ONE).unwrap();
        runtime.shutdown_background();
        assert_eq!(soon(asked).await.unwrap(), Err(EngineError::Unknown.into()));
        drop(in_hand);
    }
}

/// Without the server, a node serves with the responders that it has, and says that it reaches no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_serves_for_itself_while_the_server_is_away() {
    for program in programs() {
        let mut server = Server::start(&program);
        let options = server.options();
        let nodes =
            nodes(server.engine(options.clone()).await, server.engine(options.clone()).await);
        let service = fresh("away");
        let responder = respond(&nodes.other, &service, |request| request.reply("here").unwrap());
        until_served(&nodes.one, &service, true).await;
        server.kill();
        assert_eq!(soon(nodes.other.request(&service, "x")).await.unwrap().payload, "here");
        let away = async {
            while soon(nodes.one.request(&service, patient("x"))).await
                != Err(EngineError::Unavailable.into())
            {
                sleep(Duration::from_millis(5)).await;
            }
        };
        soon(away).await;
        // Its only responder is busy. The request waits for it.
        responder.abort();
        assert!(responder.await.unwrap_err().is_cancelled());
        let busy = nodes.other.serve(&service, BatchLimit::ONE).unwrap();
        let first = tokio::spawn(nodes.other.request(&service, patient("first")));
        let in_hand = soon(busy).await.unwrap();
        let second = tokio::spawn(nodes.other.request(&service, patient("second")));
        for request in in_hand {
            request.reply("1").unwrap();
        }
        let responder = respond(&nodes.other, &service, |request| request.reply("2").unwrap());
        assert_eq!(soon(first).await.unwrap().unwrap().payload, "1");
        assert_eq!(soon(second).await.unwrap().unwrap().payload, "2");
        server.run();
        until_served(&nodes.one, &service, true).await;
        assert_eq!(soon(nodes.one.request(&service, patient("x"))).await.unwrap().payload, "2");
        responder.abort();
    }
}

/// A server that is silent keeps nobody from a responder that begins to wait at the same node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_serves_here_gets_what_is_sought_elsewhere() {
    for program in programs() {
        let server = Server::start(&program);
        let options = server.options();
        let nodes =
            nodes(server.engine(options.clone()).await, server.engine(options.clone()).await);
        let service = fresh("sought");
        server.signal("-STOP");
        // It ends before the search does.
        let request = NewRequest::new("x").timeout(Duration::from_secs(4));
        let asked = tokio::spawn(nodes.one.request(&service, request));
        let is_sought = async {
            while nodes.one.service(&service).is_none_or(|service| service.away == 0) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        soon(is_sought).await;
        let responder = respond(&nodes.one, &service, |request| request.reply("here").unwrap());
        assert_eq!(soon(asked).await.unwrap().unwrap().payload, "here");
        responder.abort();
        server.signal("-CONT");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_for_the_server_is_said() {
    for program in programs() {
        let server = Server::start(&program);
        let options = server.options();
        let nodes =
            nodes(server.engine(options.clone()).await, server.engine(options.clone()).await);
        let service = fresh("large");
        let responder = respond(&nodes.other, &service, |request| {
            let payload = vec![7; request.payload().len() * 2];
            request.reply(payload).unwrap();
        });
        until_served(&nodes.one, &service, true).await;
        let too_large = EngineError::TooLarge { limit: 1 << 20 };
        let refused = soon(nodes.one.request(&service, patient(vec![0; 1 << 20]))).await;
        assert_eq!(refused, Err(too_large.into()));
        let failed = soon(nodes.one.request(&service, patient(vec![0; 1 << 19]))).await;
        let Err(RequestError::Failed { reason }) = failed else { panic!("{failed:?}") };
        assert!(reason.contains("too large for the engine, which accepts 1048576"), "{reason}");
        let large = vec![0; (1 << 19) - 4096];
        let reply = soon(nodes.one.request(&service, patient(large.clone()))).await.unwrap();
        assert_eq!(reply.payload.len(), 2 * large.len());
        // At its own node, none of that matters.
        let reply = soon(nodes.other.request(&service, patient(vec![0; 1 << 20]))).await.unwrap();
        assert_eq!(reply.payload.len(), 2 << 20);
        responder.abort();
    }
}

/// Whoever has a request when its node is lost says nothing: the requester learns it by time. Nobody is asked who is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_lost_is_not_asked() {
    for program in programs() {
        let server = Server::start(&program);
        let port = server.port();
        let proxy = Proxy::to(port, Duration::from_millis(1)).await;
        let far = NatsOptions { servers: format!("nats://{}", proxy.address), ..server.options() };
        let near = server.options();
        let nodes = nodes(server.engine(near.clone()).await, server.engine(far.clone()).await);
        let service = fresh("lost");
        let busy = nodes.other.serve(&service, BatchLimit::ONE).unwrap();
        until_served(&nodes.one, &service, true).await;
        let request = NewRequest::new("x").timeout(Duration::from_secs(5));
        let asked = tokio::spawn(nodes.one.request(&service, request));
        let in_hand = soon(busy).await.unwrap();
        proxy.stop();
        assert_eq!(soon(asked).await.unwrap(), Err(RequestError::TimedOut));
        let nobody = soon(nodes.one.request(&service, patient("x"))).await;
        assert_eq!(nobody, Err(RequestError::NoResponder));
        drop(in_hand);
    }
}

/// A requester may have got the address just before the node had no responder any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_by_an_old_address_can_be_taken_back() {
    let patience = Duration::from_secs(2);
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { timeout: patience, ..server.options() };
        let nodes = nodes(server.engine(options.clone()).await, server.engine(options).await);
        let service = fresh("old");
        let responder = respond(&nodes.other, &service, |request| request.reply("x").unwrap());
        until_served(&nodes.one, &service, true).await;
        let client = async_nats::connect(server.url()).await.unwrap();
        let question = format!("msgbus-services.{}", service.as_str().replace('/', "."));
        let find = headers("Msgbus-Find", "1");
        let found = client.request_with_headers(question, find, "".into()).await.unwrap();
        let address = found.headers.unwrap().get("Msgbus-Server").unwrap().to_string();
        responder.abort();
        until_served(&nodes.one, &service, false).await;

        // The next responder is busy.
        let next = nodes.other.serve(&service, BatchLimit::ONE).unwrap();
        let first = tokio::spawn(nodes.other.request(&service, patient("first")));
        let in_hand = soon(next).await.unwrap();
        let send = async |header| {
            let mut headers = headers(header, "late");
            headers.insert("Msgbus-Timeout", "60000");
            let (address, inbox) = (address.clone(), client.new_inbox());
            let sent = client.publish_with_reply_and_headers(address, inbox, headers, "".into());
            sent.await.unwrap();
        };
        send("Msgbus-Request").await;
        until_visited(&nodes.other, &service, 1).await;
        sleep(2 * patience).await;
        send("Msgbus-Cancel").await;
        until_visited(&nodes.other, &service, 0).await;
        for request in in_hand {
            request.reply("1").unwrap();
        }
        assert_eq!(soon(first).await.unwrap().unwrap().payload, "1");
    }
}

fn headers(name: &str, value: &str) -> async_nats::HeaderMap {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(name, value);
    headers
}

/// Waits until a bus has this number of requests of others.
async fn until_visited(bus: &MessageBus, service: &TopicName, count: usize) {
    let is_visited = async {
        while bus.service(service).unwrap().visiting != count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(20);
    timeout(limit, is_visited).await.expect("another number is there");
}

/// The only thread of the node stands still while requests come. It finds them when it is to finish.
#[tokio::test]
async fn what_is_on_its_way_when_a_node_finishes_is_answered() {
    const REQUESTS: usize = 100;
    for program in programs() {
        let server = Server::start(&program);
        let engine = Arc::new(server.engine(server.options()).await);
        let bus = bus(Arc::clone(&engine) as Arc<dyn Engine>);
        let service = fresh("finishing");
        let responder = respond(&bus, &service, |request| request.reply("x").unwrap());
        let is_served = async {
            while engine.is_served(&service).await != Ok(true) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        soon(is_served).await;
        let subject = format!("msgbus-services.{}", service.as_str().replace('/', "."));
        let (url, finished) = (server.url(), engine.finish());
        let (sent, is_sent) = std::sync::mpsc::channel();
        let asking = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let client = async_nats::connect(url).await.unwrap();
                let inbox = client.new_inbox();
                let replies = client.subscribe(inbox.clone()).await.unwrap();
                for _ in 0..REQUESTS {
                    let (to, inbox) = (subject.clone(), inbox.clone());
                    client.publish_with_reply(to, inbox, "".into()).await.unwrap();
                }
                // The server handles what comes from here in order.
                client.request(client.new_inbox(), "".into()).await.unwrap_err();
                sleep(Duration::from_millis(100)).await;
                sent.send(()).unwrap();
                let replies = replies.take(REQUESTS).collect::<Vec<_>>();
                timeout(Duration::from_secs(10), replies).await
            })
        });
        is_sent.recv().unwrap();
        assert_eq!(soon(finished).await, Ok(()));
        let replies = tokio::task::spawn_blocking(|| asking.join().unwrap()).await.unwrap();
        assert!(replies.unwrap().iter().all(|reply| reply.payload == "x"));
        responder.abort();
    }
}

/// Two nodes whose connections can be cut.
async fn nodes_to_cut(server: &Server) -> (Nodes, [Proxy; 2]) {
    let port = server.port();
    let proxies = [
        Proxy::to(port, Duration::from_millis(2)).await,
        Proxy::to(port, Duration::from_millis(2)).await,
    ];
    let servers = |proxy: &Proxy| format!("nats://{}", proxy.address);
    let options = |proxy| NatsOptions { servers: servers(proxy), ..server.options() };
    let one = server.engine(options(&proxies[0])).await;
    let other = server.engine(options(&proxies[1])).await;
    (nodes(one, other), proxies)
}

/// Requests go on while connections are cut: each has one outcome, and none is served twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_served_twice_although_connections_are_cut() {
    const REQUESTS: usize = 300;
    for program in programs() {
        let server = Server::start(&program);
        let (nodes, proxies) = nodes_to_cut(&server).await;
        let service = fresh("cut");
        let served = Arc::new(std::sync::Mutex::new(Vec::new()));
        let responders: Vec<_> = (0..4)
            .map(|_| {
                let served = Arc::clone(&served);
                respond(&nodes.other, &service, move |request| {
                    served.lock().unwrap().push(request.payload().clone());
                    let payload = request.payload().clone();
                    request.reply(payload).unwrap_or_default();
                })
            })
            .collect();
        until_served(&nodes.one, &service, true).await;
        let cut = async {
            for turn in 0..8 {
                sleep(Duration::from_millis(100)).await;
                proxies[turn % 2].cut();
            }
        };
        let load = Load { count: REQUESTS, pause: Duration::from_millis(3) };
        let request = |n: usize| NewRequest::new(n.to_string()).timeout(Duration::from_secs(3));
        let buses = [&nodes.one];
        let (outcomes, ()) = tokio::join!(load.ask(&buses, &service, request), cut);
        let away = RequestError::Engine(EngineError::Unavailable);
        let expected = [RequestError::TimedOut, RequestError::NoResponder, away];
        for error in &outcomes.errors {
            assert!(expected.contains(error), "{error:?}");
        }
        let mut served = std::mem::take(&mut *served.lock().unwrap());
        let count = served.len();
        served.sort();
        served.dedup();
        assert_eq!(served.len(), count, "a request was served twice");
        assert!(count >= outcomes.replied);
        assert_balance(&nodes.one.service(&service).unwrap());
        responders.iter().for_each(JoinHandle::abort);
        they_go_on(&nodes).await;
    }
}

/// How many had a reply meanwhile depends on the machine. Now all have one.
async fn they_go_on(nodes: &Nodes) {
    let service = fresh("after");
    let responder = respond(&nodes.other, &service, |request| {
        let payload = request.payload().clone();
        request.reply(payload).unwrap();
    });
    until_served(&nodes.one, &service, true).await;
    let load = Load { count: 20, pause: Duration::ZERO };
    let outcomes = load.ask(&[&nodes.one], &service, |n| patient(n.to_string())).await;
    assert_eq!(outcomes.replied, load.count, "{outcomes:?}");
    responder.abort();
}

/// The seam, as an engine of another program would use it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_nobody_serves_is_known_at_once() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let service = fresh("nobody");
        let asked =
            engine.request(&service, Box::new(|| panic!("it is not sent")), Urgency::IfFree);
        assert_eq!(soon(asked).await, Ok(Asked::Nobody));
        assert_eq!(soon(engine.is_served(&service)).await, Ok(false));
    }
}
