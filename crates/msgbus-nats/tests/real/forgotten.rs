//! Leases that a server has forgotten, because it was killed before its disk had them.

use std::{fs, path::Path, process::Command, time::Duration};

use msgbus_core::{
    BatchLimit, GroupName, NewMessage, Settlement, TopicName,
    engine::{Begin, Engine as _, Fetch, LeaseKey},
};
use msgbus_engine_testkit::{fresh, server::Program, soon};
use msgbus_nats::{NatsEngine, NatsOptions};
use tokio::time::sleep;

use super::{Connect as _, Server, is_current, programs};

fn copy(from: &Path, to: &Path) {
    let from = from.join(".");
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A job whose lease the server has forgotten.
struct Forgotten {
    server: Server,
    engine: NatsEngine,
    topic: TopicName,
    key: LeaseKey,
}

fn group() -> GroupName {
    "g".parse().unwrap()
}

impl Forgotten {
    const FETCH: Fetch = Fetch {
        limit: BatchLimit { events: 1, bytes: 1 << 20 },
        lease: Duration::from_secs(60),
        wait: Duration::from_secs(5),
        from: Begin::First,
    };

    /// Leases a job, settles it, and kills the server, whose disk does not have that.
    async fn begin(program: &Program, settlement: Option<&Settlement>) -> Self {
        let mut server = Server::start(program);
        // An ack of a lease that the server has forgotten is not answered. Leases are so long that none ends by itself.
        let (timeout, lease) = (Duration::from_secs(2), Self::FETCH.lease);
        let options = NatsOptions { timeout, lease, ..server.options() };
        let engine = server.engine(options).await;
        let topic = fresh("forgotten");
        engine.publish(&topic, vec![NewMessage::new("job")]).await.unwrap();
        engine.set_group(&topic, &group(), Some(Begin::First)).await.unwrap();
        server.stop();
        let consumers = server.directory().join("jetstream/$G/streams/msgbus/obs");
        let before = tempfile::tempdir().unwrap();
        copy(&consumers, before.path());
        server.run();
        let mut forgotten = Self { server, engine, topic, key: Box::default() };
        forgotten.key = forgotten.lease().await;
        if let Some(settlement) = settlement {
            assert!(!forgotten.settle(settlement).await, "it is live");
        }
        forgotten.server.kill();
        fs::remove_dir_all(&consumers).unwrap();
        fs::create_dir(&consumers).unwrap();
        copy(before.path(), &consumers);
        forgotten.server.run();
        forgotten
    }

    async fn lease(&self) -> LeaseKey {
        let leasing = async {
            loop {
                match self.engine.fetch(&self.topic, Some(&group()), Self::FETCH).await {
                    Ok(leases) if !leases.messages.is_empty() => {
                        return leases.messages[0].key.clone();
                    }
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        soon(leasing).await
    }

    /// Returns whether the lease is over.
    async fn settle(&self, settlement: &Settlement) -> bool {
        let settling = async {
            loop {
                let keys = vec![self.key.clone()];
                match self.engine.settle(&self.topic, Some(&group()), keys, settlement).await {
                    Ok(settled) => return !settled.lost.is_empty(),
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        soon(settling).await
    }
}

/// Its worker is told that it is over, and not again and again that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_server_has_forgotten_is_over() {
    for program in programs() {
        let forgotten = Forgotten::begin(&program, None).await;
        // nats-server 2.9 accepts the ack, and gives the message again nevertheless.
        assert_eq!(forgotten.settle(&Settlement::Ack).await, is_current(&program));
        forgotten.lease().await;
    }
}

/// The server gives the job again, with the same number. That is another lease, whatever became of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_given_again_has_a_lease_of_its_own() {
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    let extend = Settlement::Extend { lease: Forgotten::FETCH.lease };
    for program in programs() {
        for before in [&Settlement::Ack, &back] {
            let mut again = Forgotten::begin(&program, Some(before)).await;
            again.key = again.lease().await;
            for settlement in [&extend, &Settlement::Ack] {
                assert!(!again.settle(settlement).await, "{settlement:?} after {before:?}");
            }
        }
    }
}
