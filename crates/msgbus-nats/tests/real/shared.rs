//! Nodes that share a server, and the calls of one node that share its connection.

use chrono::Utc;
use msgbus_core::{
    BatchLimit, Settlement,
    engine::{Begin, Fetch},
};
use tokio::task::JoinSet;

use super::*;

/// A lease lasts as long as the server keeps it, which depends on the node that has created the consumer of the group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lasts_as_the_group_says_and_not_as_the_node() {
    for program in programs() {
        let server = Server::start(&program);
        let lease =
            |seconds| NatsOptions { lease: Duration::from_secs(seconds), ..server.options() };
        let (first, second) = (server.engine(lease(20)).await, server.engine(lease(600)).await);
        let (topic, group) = (fresh("lengths"), "workers".parse().unwrap());
        soon(first.publish(&topic, vec![NewMessage::new("x")])).await.unwrap();
        assert!(soon(first.set_group(&topic, &group, None)).await.unwrap());
        let fetch = Fetch {
            limit: BatchLimit::ONE,
            lease: Duration::from_secs(30),
            wait: Duration::from_secs(60),
            from: Begin::First,
        };
        let leased = soon(second.fetch(&topic, Some(&group), fetch)).await.unwrap();
        let is_short = |end| end <= Utc::now() + Duration::from_secs(20);
        assert!(is_short(leased.messages[0].expires), "{leased:?}");
        let (keys, extend) = (
            vec![leased.messages[0].key.clone()],
            Settlement::Extend { lease: Duration::from_secs(30) },
        );
        let extended = soon(second.settle(&topic, Some(&group), keys, &extend)).await.unwrap();
        assert!(extended.expires.is_none_or(is_short), "{extended:?}");
    }
}

/// More messages than may be unacknowledged at a time, in one batch and in several.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_batches_do_not_block_each_other() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { timeout: Duration::from_secs(20), ..server.options() };
        let engine = server.engine(options).await;
        let topic = fresh("batches");
        let mut publishing = JoinSet::new();
        for count in [6000, 1000, 1000, 1000, 1000, 1000, 1000, 1, 1] {
            let messages = (0..count).map(|n: usize| NewMessage::new(n.to_string())).collect();
            let published = engine.publish(&topic, messages);
            publishing.spawn(async move { (count as u64, published.await) });
        }
        for (count, published) in soon(publishing.join_all()).await {
            let receipt = published.unwrap();
            assert!(receipt.last - receipt.first + 1 >= count, "{receipt:?}");
        }
        let stats = soon(engine.stats(&topic)).await.unwrap().unwrap();
        assert_eq!(stats.retained, 12_002);
    }
}

/// A request for messages of a topic that has none leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_in_vain_makes_no_group() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let (topic, group) = (fresh("nothing"), "workers".parse().unwrap());
        let fetch = Fetch {
            limit: BatchLimit::ONE,
            lease: Duration::from_secs(30),
            wait: Duration::ZERO,
            from: Begin::First,
        };
        let leased = soon(engine.fetch(&topic, Some(&group), fetch)).await.unwrap();
        assert!(leased.messages.is_empty());
        assert_eq!(soon(engine.group(&topic, &group)).await.unwrap(), None);
        soon(engine.publish(&topic, vec![NewMessage::new("x")])).await.unwrap();
        let leased = soon(engine.fetch(&topic, Some(&group), fetch)).await.unwrap();
        assert_eq!(leased.messages.len(), 1);
    }
}
