//! Servers that go on to exist, and do not answer.

use msgbus_core::{
    BatchLimit, Settlement,
    engine::{Begin, Fetch},
};

use super::*;

fn options(server: &Server) -> NatsOptions {
    NatsOptions { timeout: Duration::from_secs(2), ..server.options() }
}

/// What was on its way may have been done, although nobody has answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_without_an_answer_may_have_been_done() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(options(&server)).await;
        let (topic, group) = (fresh("unanswered"), "workers".parse().unwrap());
        let batch = || (0..300).map(|n: u32| NewMessage::new(n.to_string())).collect();
        soon(engine.publish(&topic, batch())).await.unwrap();
        let fetch = Fetch {
            limit: BatchLimit::ONE,
            lease: Duration::from_secs(30),
            wait: Duration::from_secs(10),
            from: Begin::First,
        };
        assert!(soon(engine.set_group(&topic, &group, None)).await.unwrap());
        let leased = soon(engine.fetch(&topic, None, fetch)).await.unwrap();
        let keys: Vec<_> = leased.messages.into_iter().map(|leased| leased.key).collect();
        server.signal("-STOP");
        let (published, deleted, moved, removed, settled) = tokio::join!(
            engine.publish(&topic, batch()),
            engine.delete(&topic),
            engine.set_group(&topic, &group, Some(Begin::First)),
            engine.remove_group(&topic, &group),
            engine.settle(&topic, None, keys, &Settlement::Ack),
        );
        server.signal("-CONT");
        assert_eq!(published, Err(EngineError::Unknown));
        assert_eq!(deleted, Err(EngineError::Unknown));
        // It asks something before.
        assert!(matches!(moved, Err(EngineError::Unknown | EngineError::Unavailable)));
        assert_eq!(removed, Err(EngineError::Unknown));
        assert_eq!(settled, Err(EngineError::Unknown));
    }
}

/// As many operations as there may be are not answered. The end of the program does not count as one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_finishes_although_much_is_unanswered() {
    const MOST: usize = 4096;
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let topic = fresh("unanswered");
        soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        server.signal("-STOP");
        let unanswered: Vec<_> = (0..MOST).map(|_| engine.stats(&topic)).collect();
        assert_eq!(soon(engine.delete(&topic)).await, Err(EngineError::Busy));
        let finished = engine.finish();
        server.signal("-CONT");
        assert_eq!(soon(finished).await, Ok(()));
        drop(unanswered);
    }
}

/// Nobody waits for it, and a load balancer sends nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_counts_as_away() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(options(&server)).await;
        let topic = fresh("silent");
        soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        server.signal("-STOP");
        until_up(&engine, false).await;
        for _ in 0..3 {
            let refused = soon(engine.publish(&topic, vec!["x".into()])).await;
            assert_eq!(refused, Err(EngineError::Unavailable));
            sleep(Duration::from_millis(300)).await;
        }
        server.signal("-CONT");
        until_up(&engine, true).await;
        soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
    }
}
