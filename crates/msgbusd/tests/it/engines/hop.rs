//! Clients that hop between three servers at each cut, while the engine is killed and started again.

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;
use msgbus_core::json;
use msgbus_engine_testkit::nats::{NatsServer, programs};
use tokio::{net::TcpStream, time::sleep};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, client::IntoClientRequest as _},
};

use super::door_with;
use crate::support::{Daemon, Subscriber, soon};

/// How often followers are cut off, in all: 20, or what the environment says.
fn cuts() -> usize {
    std::env::var("MSGBUS_ENGINE_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// A connection is cut after at most so many messages.
const MOST: usize = 11;

/// Publishes messages at changing servers, each until it is accepted. Returns their ids.
async fn publish(daemons: &[Daemon; 3], name: usize, count: usize, mut random: Rng) -> Vec<u64> {
    let mut ids = Vec::new();
    for n in 0..count {
        let key = format!("Idempotency-Key: {name} {n}");
        let accepted = async {
            loop {
                let daemon = &daemons[random.usize(0..3)];
                let reply = daemon.send("PUT", "/hop", &[&key], key.as_bytes()).await;
                match reply.status {
                    202 => return reply.number("Msgbus-Id"),
                    503 | 504 => sleep(Duration::from_millis(20)).await,
                    _ => panic!("{reply:?}"),
                }
            }
        };
        ids.push(soon(accepted).await);
        sleep(Duration::from_millis(random.u64(0..10))).await;
    }
    ids
}

/// A websocket; `None` if it is refused because the engine is away.
async fn connect(daemon: &Daemon, target: &str) -> Option<WebSocketStream<TcpStream>> {
    let request = format!("ws://{}{target}", daemon.address).into_client_request().unwrap();
    let stream = TcpStream::connect(daemon.address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Some(socket),
        Err(tungstenite::Error::Http(response)) => {
            assert!(matches!(response.status().as_u16(), 503 | 504), "{response:?}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Follows from one server to the next until it has this many messages. Returns their ids, and how often it was cut.
async fn follow(
    daemons: &[Daemon; 3],
    epoch: u64,
    count: usize,
    mut random: Rng,
) -> (Vec<u64>, usize) {
    let (mut ids, mut cuts) = (Vec::<u64>::new(), 0);
    while ids.len() < count {
        let since = ids.last().map_or("all".to_owned(), |last| format!("{epoch}-{last}"));
        let target = format!("/hop?gaps&since={since}");
        let Some(socket) = connect(&daemons[random.usize(0..3)], &target).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut subscriber = Subscriber(socket);
        for _ in 0..random.usize(1..=MOST).min(count - ids.len()) {
            let tungstenite::Message::Text(text) = soon(subscriber.frame()).await else {
                panic!("not a message, after {ids:?}")
            };
            // Nothing is gone, so nothing may be announced as missed.
            let message = json::read_message(text.as_bytes());
            ids.push(message.unwrap_or_else(|_| panic!("{text:?} after {ids:?}")).id());
        }
        cuts += 1;
    }
    (ids, cuts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_twice_or_out_of_order_from_one_server_to_the_next() {
    for program in programs() {
        let mut nats = NatsServer::start(&program);
        let daemons = [(); 3].map(|()| door_with(&nats, |_| {}));
        let [one, other, third] = daemons;
        let daemons = [one.ready().await, other.ready().await, third.ready().await];
        let first = daemons[0].put("/hop", "first").await;
        let (epoch, first) = (first.number("Msgbus-Epoch"), first.number("Msgbus-Id"));
        // Three followers get twice as many, and are cut off after six on the average.
        let each = cuts();
        let seed = fastrand::u64(..);
        let random = |n: u64| Rng::with_seed(seed.wrapping_add(n));
        let count = 2 * each + 1;
        let disturb = async {
            for n in 0..2 {
                sleep(Duration::from_millis(100 + 100 * n)).await;
                nats.kill();
                sleep(Duration::from_millis(100)).await;
                nats.run();
            }
        };
        let publishing = async {
            let (a, b) = tokio::join!(
                publish(&daemons, 0, each, random(0)),
                publish(&daemons, 1, each, random(1))
            );
            [a, b].concat()
        };
        let following = async {
            let follow = |n| follow(&daemons, epoch, count, random(n));
            tokio::join!(follow(2), follow(3), follow(4))
        };
        let (acked, followed, ()) = tokio::join!(publishing, following, disturb);
        let expected: BTreeSet<u64> = acked.into_iter().chain([first]).collect();
        assert_eq!(expected.len(), count, "each has an id of its own; seed {seed}");
        let mut all_cuts = 0;
        for (ids, cuts) in [followed.0, followed.1, followed.2] {
            assert!(ids.is_sorted_by(|a, b| a < b), "in order, once: {ids:?}; seed {seed}");
            assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected, "seed {seed}");
            all_cuts += cuts;
        }
        assert!(all_cuts >= each / 2, "{all_cuts} cuts; seed {seed}");
    }
}
