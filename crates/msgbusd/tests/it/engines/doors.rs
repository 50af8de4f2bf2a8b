//! Doors of other protocols, with topics in an engine.

use std::time::Duration;

use tokio::time::sleep;

use super::{door, live_in, on_each};
use crate::{middleman::Broker, support::soon};

/// A service at another server may answer to the private topic of a client, so it lives in the engine.
#[tokio::test]
async fn the_private_topic_of_a_client_of_middleman_goes_with_it() {
    on_each(async |mut engine| {
        engine.run();
        let broker = Broker::with(|config| live_in(&engine, config));
        broker.wait_for_engine().await;
        let other = door(&engine).ready().await;
        let mut peer = broker.peer().await;
        let private = format!("MSG:{}", peer.guid);
        assert_eq!(other.put(&format!("/{private}"), "hi").await.status, 202);
        assert!(peer.frame().await.contains("hi"));
        assert_eq!(other.get("/?prefix=MSG").await.text(), format!("{private}\n"));
        drop(peer);
        let is_gone = async {
            while !other.get("/?prefix=MSG").await.text().is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        soon(is_gone).await;
    })
    .await;
}
