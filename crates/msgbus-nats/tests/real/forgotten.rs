//! Leases that a server has forgotten, because it was killed before its disk had them.

use std::{path::Path, process::Command, time::Duration};

use msgbus_core::{
    BatchLimit, GroupName, NewMessage, Settlement,
    engine::{Begin, Engine as _, Fetch},
};
use msgbus_engine_testkit::{fresh, soon};
use msgbus_nats::NatsOptions;
use tokio::time::sleep;

use super::{Connect as _, Server, is_current, programs};

fn copy(from: &Path, to: &Path) {
    let from = from.join(".");
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Its worker is told that it is over, and not again and again that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_server_has_forgotten_is_over() {
    for program in programs() {
        let mut server = Server::start(&program);
        let options = NatsOptions { timeout: Duration::from_secs(1), ..server.options() };
        let engine = server.engine(options).await;
        let (topic, group): (_, GroupName) = (fresh("forgotten"), "g".parse().unwrap());
        engine.publish(&topic, vec![NewMessage::new("job")]).await.unwrap();
        engine.set_group(&topic, &group, Some(Begin::First)).await.unwrap();
        server.stop();
        let before = tempfile::tempdir().unwrap();
        copy(server.directory(), before.path());
        server.run();
        let wait = Duration::from_secs(5);
        let limit = BatchLimit { events: 1, bytes: 1 << 20 };
        let fetch = Fetch { limit, lease: Duration::from_secs(3), wait, from: Begin::First };
        let fetching = async {
            loop {
                match engine.fetch(&topic, Some(&group), fetch).await {
                    Ok(leases) if !leases.messages.is_empty() => return leases,
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let key = soon(fetching).await.messages[0].key.clone();
        server.kill();
        server.empty();
        copy(before.path(), server.directory());
        server.run();
        let settling = async {
            loop {
                let keys = vec![key.clone()];
                match engine.settle(&topic, Some(&group), keys, &Settlement::Ack).await {
                    Ok(settled) => return settled,
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let settled = soon(settling).await;
        // nats-server 2.9 accepts the ack, and gives the message again nevertheless.
        assert_eq!(settled.lost.len(), usize::from(is_current(&program)));
        let again = soon(engine.fetch(&topic, Some(&group), fetch)).await.unwrap();
        assert_eq!(again.messages.len(), 1);
    }
}
