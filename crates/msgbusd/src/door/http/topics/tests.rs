use std::{
    sync::{
        Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use http_body_util::BodyExt as _;
use msgbus_core::{
    BatchLimit, MessageBus, NewMessage, Options, TopicInfo, TopicSettings,
    store::{
        Adopted, CommitObserver, Promise, Read, Record, RecoveredTopic, Store, StoreError, Ticket,
        TopicState, TopicStore,
    },
};

use super::*;
use crate::{config::Config, net::peer::Peer, service::Authority, storage::Opened, worker::Worker};

/// Accepts everything, and then keeps all but deletions.
#[derive(Debug, Default)]
struct FullDisk {
    /// Appends fail.
    is_closed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FullTopic {
    is_closed: Arc<AtomicBool>,
    tickets: AtomicU64,
    observer: Weak<dyn CommitObserver>,
}

impl Store for FullDisk {
    fn recover(&self, _: &mut dyn FnMut(RecoveredTopic) -> Adopted) -> Result<(), StoreError> {
        Ok(())
    }

    fn create(
        &self,
        _: &Arc<TopicInfo>,
        _: Promise,
        observer: Weak<dyn CommitObserver>,
    ) -> Result<Box<dyn TopicStore>, StoreError> {
        let is_closed = Arc::clone(&self.is_closed);
        Ok(Box::new(FullTopic { is_closed, tickets: AtomicU64::new(0), observer }))
    }

    fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl TopicStore for FullTopic {
    fn append(&self, record: Record, _: TopicState) -> Result<Ticket, StoreError> {
        if self.is_closed.load(SeqCst) {
            return Err(StoreError::Full);
        }
        let ticket = Ticket(self.tickets.fetch_add(1, SeqCst));
        let observer = Weak::clone(&self.observer);
        thread::spawn(move || {
            let Some(observer) = observer.upgrade() else { return };
            match record {
                Record::Deleted => observer.refused(StoreError::Full),
                _ => observer.committed(ticket),
            }
        });
        Ok(ticket)
    }

    fn release(&self, _: u64) {}

    fn read(&self, _: u64, _: BatchLimit) -> Read {
        Box::pin(async { Ok(Vec::new()) })
    }
}

async fn try_to_delete(worker: &Arc<Worker>, topic: &TopicName) -> Result<(u16, String), ApiError> {
    let peer = Peer { address: None, has_tls: false };
    let call = Call { worker, peer, principal: None, authority: Authority::Own };
    let response = delete(&call, topic, Query::parse(None)).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

/// docs/protocol.md, 7.4.
#[tokio::test]
async fn the_response_to_a_deletion_says_what_became_of_the_topic() {
    let settings = TopicSettings { promise: Promise::Synced, ..TopicSettings::default() };
    let disk = FullDisk::default();
    let is_closed = Arc::clone(&disk.is_closed);
    let bus = Options { topic: settings, ..Options::default() };
    let config = Config { bus: bus.clone(), ..Config::default() };
    let bus = MessageBus::open(bus, Arc::new(disk)).unwrap();
    let opened = Opened { bus, store: None, engines: None };
    let worker = Worker::new(&Arc::new(App::new(config, None, opened)));
    let topic = "t".parse().unwrap();
    worker.bus.publish(&topic, NewMessage::new("x")).await.unwrap();

    is_closed.store(true, SeqCst);
    let refused = try_to_delete(&worker, &topic).await.unwrap_err();
    assert_eq!(refused.code().word(), "disk_full");
    assert_eq!(worker.bus.topic(&topic).unwrap().retained, 1, "it is as it was");

    is_closed.store(false, SeqCst);
    let (status, text) = try_to_delete(&worker, &topic).await.unwrap();
    let said = "deleted, but the disk is full: a restart may bring the topic back\n";
    assert_eq!((status, &text[..]), (202, said));
    assert!(worker.bus.topics().is_empty());
    let none = try_to_delete(&worker, &topic).await.unwrap_err();
    assert_eq!(none.code().word(), "no_such_topic");
}
