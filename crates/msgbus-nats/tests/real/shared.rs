//! Nodes that share a server, and the calls of one node that share its connection.

use chrono::Utc;
use msgbus_core::engine::{Begin, EngineGroupSettings, Fetch};
use tokio::{task::JoinSet, time::timeout};

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

/// Nothing of an engine that is dropped keeps a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_dropped_disconnects() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { publish_from: vec![Handle::current()], ..server.options() };
        let engine = server.engine(options).await;
        let connected = async {
            while connections(&server) < 2 {
                soon(engine.publish(&fresh("drop"), vec![NewMessage::new("x")])).await.unwrap();
                sleep(Duration::from_millis(5)).await;
            }
        };
        soon(connected).await;
        drop(engine);
        let disconnected = async {
            while connections(&server) > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon(disconnected).await;
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

fn waiting(seconds: u64) -> Fetch {
    Fetch {
        limit: BatchLimit::ONE,
        lease: Duration::from_secs(30),
        wait: Duration::from_secs(seconds),
        from: Begin::First,
    }
}

/// More than the server lets wait by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_workers_may_wait() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { lease: Duration::from_secs(300), ..server.options() };
        let engines = [server.engine(options.clone()).await, server.engine(options).await];
        let (topic, group) = (fresh("crowd"), "workers".parse().unwrap());
        let mut workers = JoinSet::new();
        for number in 0..1000 {
            workers.spawn(engines[number % 2].fetch(&topic, Some(&group), waiting(100)));
        }
        sleep(Duration::from_secs(2)).await;
        let messages = (0..1000).map(|n: u32| NewMessage::new(n.to_string())).collect();
        soon(engines[0].publish(&topic, messages)).await.unwrap();
        let fetched = soon(workers.join_all()).await.into_iter();
        let mut ids: Vec<_> =
            fetched.map(|leases| leases.unwrap().messages.remove(0).message.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 1000);
    }
}

async fn threshold(server: &Server) -> Duration {
    let client = async_nats::connect(server.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("msgbus").await.unwrap();
    let name = futures_util::StreamExt::next(&mut stream.consumer_names()).await.unwrap().unwrap();
    stream.consumer_info(name).await.unwrap().config.inactive_threshold
}

/// Any name may be asked for: what nobody has ever got anything from, the server soon forgets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_stays_when_it_has_had_a_message() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let (topic, group) = (fresh("asked"), "workers".parse().unwrap());
        let leased = soon(engine.fetch(&topic, Some(&group), waiting(1))).await.unwrap();
        assert!(leased.messages.is_empty());
        assert!(threshold(&server).await <= Duration::from_secs(60));
        soon(engine.publish(&topic, vec![NewMessage::new("x")])).await.unwrap();
        let leased = soon(engine.fetch(&topic, Some(&group), waiting(60))).await.unwrap();
        assert_eq!(leased.messages.len(), 1);
        assert!(threshold(&server).await >= Duration::from_secs(3600));
    }
}

/// What was set while workers wait for the first message is not undone when it comes, and does not go with a group that had
/// no message yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_keeps_what_is_set_while_workers_wait() {
    for program in programs() {
        let server = Server::start(&program);
        let (first, second) =
            (server.engine(server.options()).await, server.engine(server.options()).await);
        let (topic, group) = (fresh("set"), "workers".parse().unwrap());
        let worker = tokio::spawn(first.fetch(&topic, Some(&group), waiting(60)));
        let made = async {
            while second.group(&topic, &group).await.unwrap().is_none() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon(made).await;
        // The worker waits for messages now, as it has found the group.
        sleep(Duration::from_millis(500)).await;
        let settings = EngineGroupSettings { max_deliveries: Some(3), dead_letters: None };
        soon(second.change_group(&topic, &group, settings.clone())).await.unwrap();
        assert!(threshold(&server).await >= Duration::from_secs(3600));
        soon(second.publish(&topic, vec![NewMessage::new("x")])).await.unwrap();
        let leased = soon(worker).await.unwrap().unwrap();
        assert_eq!((leased.messages.len(), leased.settings), (1, settings.clone()));
        let after = soon(second.group(&topic, &group)).await.unwrap().unwrap();
        assert_eq!(after.settings, settings);
    }
}

/// A group that somebody has made stays, although workers have asked for it before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_stays_when_somebody_makes_it() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let (topic, group) = (fresh("made"), "workers".parse().unwrap());
        soon(engine.fetch(&topic, Some(&group), waiting(1))).await.unwrap();
        assert!(!soon(engine.set_group(&topic, &group, None)).await.unwrap());
        assert!(threshold(&server).await >= Duration::from_secs(3600));
    }
}

/// A node that is killed while it makes a group leaves its claim. Those who wait for less than it counts get the job, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_was_left_does_not_keep_those_who_wait_briefly() {
    for program in programs() {
        let server = Server::start(&program);
        let engine = server.engine(server.options()).await;
        let (topic, group) = (fresh("claimed"), "workers".parse().unwrap());
        soon(engine.publish(&topic, vec!["x".into()])).await.unwrap();
        assert!(soon(engine.set_group(&topic, &group, None)).await.unwrap());
        let client = async_nats::connect(server.url()).await.unwrap();
        let context = async_nats::jetstream::new(client);
        let mut names = context.get_stream("msgbus").await.unwrap().consumer_names();
        let name = futures_util::StreamExt::next(&mut names).await.unwrap().unwrap();
        assert!(soon(engine.remove_group(&topic, &group)).await.unwrap());
        let claim = context.publish(format!("msgbus.$groups.{name}"), "claimed".into());
        claim.await.unwrap().await.unwrap();
        let leased = async {
            loop {
                let fetch = engine.fetch(&topic, Some(&group), waiting(1));
                if let Ok(leased) = timeout(Duration::from_secs(1), fetch).await
                    && !leased.as_ref().unwrap().messages.is_empty()
                {
                    return;
                }
            }
        };
        soon(leased).await;
    }
}

/// The stream may keep messages longer than the options of a node say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_groups_live_as_long_as_the_stream_says() {
    for program in programs() {
        let server = Server::start(&program);
        let week = Duration::from_secs(7 * 24 * 3600);
        server.engine(NatsOptions { max_age: Some(week), ..server.options() }).await;
        let engine = server.engine(server.options()).await;
        let topic = fresh("week");
        soon(engine.publish(&topic, vec![NewMessage::new("x")])).await.unwrap();
        let leased = soon(engine.fetch(&topic, None, waiting(60))).await.unwrap();
        let expires = leased.messages[0].message.expires.unwrap();
        assert!(expires > Utc::now() + week / 2, "{expires}");
        assert!(threshold(&server).await >= week);
    }
}

/// Who waits for a group that is removed meanwhile waits no longer than asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_begins_again_ends_in_time() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { timeout: Duration::from_secs(2), ..server.options() };
        let engine = server.engine(options).await;
        let (topic, group) = (fresh("wait"), "workers".parse().unwrap());
        assert!(soon(engine.set_group(&topic, &group, None)).await.unwrap());
        let fetching = tokio::spawn(engine.fetch(&topic, Some(&group), waiting(12)));
        sleep(Duration::from_secs(9)).await;
        assert!(soon(engine.remove_group(&topic, &group)).await.unwrap());
        let leased = soon(fetching).await.unwrap();
        assert_eq!(leased.map(|leases| leases.messages), Ok(Vec::new()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_do_not_expire() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { max_age: Some(Duration::from_secs(2)), ..server.options() };
        let engine: Arc<dyn Engine> = Arc::new(server.engine(options).await);
        conformance::dead_letters_do_not_expire(&engine).await;
    }
}

/// A lease ends when its group is moved, and its ack does not end that of another worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_of_before_a_move_is_refused() {
    for program in programs() {
        let server = Server::start(&program);
        let options = NatsOptions { lease: Duration::from_secs(60), ..server.options() };
        let engine = server.engine(options).await;
        let (topic, group) = (fresh("before"), "workers".parse().unwrap());
        soon(engine.publish(&topic, vec![NewMessage::new("x")])).await.unwrap();
        let fetch = Fetch {
            limit: BatchLimit::ONE,
            lease: Duration::from_secs(60),
            wait: Duration::from_secs(30),
            from: Begin::First,
        };
        let fetch = async || {
            let leased = soon(engine.fetch(&topic, Some(&group), fetch)).await.unwrap();
            vec![leased.messages[0].key.clone()]
        };
        let before = fetch().await;
        // Clocks may differ by less.
        sleep(Duration::from_secs(6)).await;
        soon(engine.set_group(&topic, &group, Some(Begin::First))).await.unwrap();
        let after = fetch().await;
        for (keys, lost) in [(before, vec![0]), (after, vec![])] {
            let settled = engine.settle(&topic, Some(&group), keys, &Settlement::Ack);
            assert_eq!(soon(settled).await.unwrap().lost, lost);
        }
    }
}
