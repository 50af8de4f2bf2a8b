//! The bus and its store: recovery, and the commits that the store reports.

use std::sync::{Arc, Weak};

use super::{
    clock,
    map::{Entry, SharedTopic, TopicMap},
    patterns,
    wake_queue::{self, WakeQueue},
};
use crate::{
    error::PublishError,
    model::TopicInfo,
    store::{Adopted, CommitObserver, Promise, RecoveredTopic, StoreError, Ticket},
    topic::{Durable, Reservation, Topic, Wakers},
};

impl TopicMap {
    /// Makes a topic durable, if its settings say so and there is a store.
    ///
    /// # Errors
    /// When the store accepts nothing.
    pub(super) fn keep(
        &self,
        shared: &Arc<SharedTopic>,
        topic: &Topic,
    ) -> Result<Option<Box<Durable>>, PublishError> {
        let promise = topic.settings().promise;
        let Some(store) = self.store.as_ref().filter(|_| promise != Promise::Memory) else {
            return Ok(None);
        };
        let store = store.create(topic.info(), promise, observer(shared))?;
        Ok(Some(Box::new(Durable::new(store, promise))))
    }

    /// Creates the topics that the store has kept.
    pub(super) fn recover(&self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        store.recover(&mut |recovered| self.adopt(recovered))
    }

    fn adopt(&self, recovered: RecoveredTopic) -> Adopted {
        let name = recovered.info.name.clone();
        let settings = self.options().settings_for(&name);
        // A topic that the settings no longer call durable remains so while it exists: what it has accepted was
        // promised.
        let promise = match settings.promise {
            Promise::Memory => recovered.promise,
            promise => promise,
        };
        self.continue_after(recovered.info.epoch);
        let info = Arc::new(TopicInfo { ttl: settings.ttl, ..recovered.info.clone() });
        let reservation = Reservation::new(Arc::clone(&self.budget));
        let now = clock::now();
        let mut topic = Topic::restore(info, settings, reservation, promise, recovered, now);
        let registration = topic.next_registration(now.monotonic);
        let topic = Arc::new(SharedTopic::new(topic, Weak::clone(&self.own)));
        topic.register(registration);
        match self.entry(&name) {
            Entry::Vacant(mut entry) => {
                entry.insert(&topic);
                self.count_recovered();
            }
            Entry::Occupied(_) => debug_assert!(false, "the store has {name} twice"),
        }
        Adopted { observer: observer(&topic), promise }
    }
}

fn observer(topic: &Arc<SharedTopic>) -> Weak<dyn CommitObserver> {
    let topic: Weak<SharedTopic> = Arc::downgrade(topic);
    topic
}

impl CommitObserver for SharedTopic {
    fn committed(&self, up_to: Ticket) {
        let mut topic = self.lock();
        let ended = topic.commit(up_to, clock::monotonic());
        let wakers = ended.has_messages().then(|| {
            let mut wakers = topic.take_wakers(wake_queue::spare);
            patterns::feed(&mut topic, &mut wakers);
            wakers
        });
        drop(topic);
        if let Some(wakers) = wakers {
            self.wake(wakers);
        }
        ended.finish(Ok(()));
    }

    fn refused(&self, error: StoreError) {
        let mut topic = self.lock();
        let ended = topic.refuse();
        let wakers = topic.take_wakers(wake_queue::spare);
        if ended.is_dismissed()
            && let Some(map) = self.map.upgrade()
        {
            map.dismiss_topic();
        }
        let registration = topic.next_registration(clock::monotonic());
        self.unlock_and_remove_if_abandoned(topic);
        if registration.is_some()
            && let Some(map) = self.map.upgrade()
            && let Some(topic) = map.find(self.name())
        {
            topic.register(registration);
        }
        self.wake(wakers);
        ended.finish(Err(error));
    }
}

impl SharedTopic {
    pub(super) fn wake(&self, wakers: Wakers) {
        match self.map.upgrade() {
            Some(map) => map.wake_queue.wake(wakers),
            // The bus was dropped before its subscriptions.
            None => WakeQueue::default().wake(wakers),
        }
    }
}
