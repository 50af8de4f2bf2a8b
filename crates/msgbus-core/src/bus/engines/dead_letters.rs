//! Dead letters of groups in engines. An engine only counts deliveries. A nack of the last one publishes the message as a
//! dead letter. If the last lease ends otherwise, whoever gets the message next does so instead of working on it.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Weak,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    SharedEngine,
    leases::{Boxed, together},
};
use crate::{
    bus::{
        burials::{self, DeadLetterError, RefusedDeadLetter},
        map::TopicMap,
        topic_ref::TopicRef,
    },
    engine::{Begin, EngineError, EngineGroupSettings, LeaseKey},
    error::{LeaseError, PublishError},
    model::{
        GroupName, GroupSettings, Headers, LeaseKey as Key, LeaseToken, Leased, Message,
        NewMessage, SettledBatch, Settlement, TopicName,
    },
    options::BatchLimit,
    store::StoreError,
    topic::DeadLetter,
};

/// How long a group does not get a message again whose dead letter could not be published.
const SET_BACK: Duration = Duration::from_secs(30);

/// When and where messages of a group become dead letters.
#[derive(Debug)]
pub(super) struct Rule {
    /// How often a message is delivered.
    most: u32,
    /// `None` if there is no name for their topic: then somebody must get the message again.
    target: Option<TopicName>,
}

impl Rule {
    pub(super) fn new(topic: &TopicName, settings: EngineGroupSettings) -> Self {
        let EngineGroupSettings { max_deliveries, dead_letters } = settings;
        let most = max_deliveries.unwrap_or(GroupSettings::of(topic).max_deliveries);
        let most = if most == 0 { u32::MAX } else { most };
        Self { most, target: dead_letters.or_else(|| topic.dead_letters().ok()) }
    }

    /// Whether a message that was delivered so often is not delivered again.
    pub(super) fn is_last(&self, deliveries: u32) -> bool {
        deliveries >= self.most && self.target.is_some()
    }

    /// Whether a message was delivered too often. A dead letter does not become one again.
    pub(super) fn is_dead(&self, leased: &Leased) -> bool {
        self.is_last(leased.deliveries - 1) && !is_letter(&leased.message)
    }
}

fn is_letter(message: &Message) -> bool {
    message.headers().get(DeadLetter::TOPIC).is_some()
}

/// A leased message that is to become a dead letter.
struct Dying<'a> {
    group: &'a GroupName,
    message: &'a Message,
    deliveries: u32,
    reason: Option<&'a str>,
    key: LeaseKey,
}

/// What became of it.
enum Buried {
    Done,
    /// It could not be published.
    Later,
    /// It never can.
    Never,
}

/// Whether dead letters can be published.
#[derive(Debug, Default)]
pub(super) struct Graves {
    /// Why one could not be, and when.
    failed: Mutex<Option<(DeadLetterError, Instant)>>,
}

impl Graves {
    /// Why one could not be published.
    pub(super) fn failure(&self) -> Option<DeadLetterError> {
        self.failed.lock().map(|(error, _)| error)
    }

    /// Publishes a dead letter, unless one could not be a short time ago.
    async fn bury(
        &self,
        engine: &SharedEngine,
        map: &TopicMap,
        rule: &Rule,
        dying: Dying<'_>,
    ) -> Buried {
        if self.failed.lock().is_some_and(|(_, at)| at.elapsed() < SET_BACK) {
            return Buried::Later;
        }
        let (group, topic, id) =
            (dying.group.clone(), dying.message.topic().name.clone(), dying.message.id());
        match bury(engine, map, rule, dying).await {
            Ok(()) => Buried::Done,
            Err(error) if is_too_large(&error) => Buried::Never,
            Err(error) => {
                *self.failed.lock() = Some((error, Instant::now()));
                map.timer.report(RefusedDeadLetter { topic, group, id, error });
                Buried::Later
            }
        }
    }
}

fn is_too_large(error: &DeadLetterError) -> bool {
    use DeadLetterError::Publish;
    matches!(error, Publish(PublishError::Store(StoreError::Engine(EngineError::TooLarge { .. }))))
}

/// Publishes a leased message as a dead letter, and acknowledges it.
async fn bury(
    engine: &SharedEngine,
    map: &TopicMap,
    rule: &Rule,
    dying: Dying<'_>,
) -> Result<(), DeadLetterError> {
    let Dying { group, message, deliveries, reason, key } = dying;
    let dead = DeadLetter {
        group: 0,
        name: group.clone(),
        key: Key { id: message.id(), nonce: 0 },
        deliveries,
        reason: reason.map(DeadLetter::cut),
        topic: rule.target.clone(),
    };
    let (target, letter) = burials::letter(message, &dead)?;
    let topic = &message.topic().name;
    // It is published once although a nack is repeated at another bus. No client can have such a key: a header does not begin
    // with a space. The message may become a dead letter again, so it is the lease that counts.
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let own_key = format!(" dead-letter {} {:016x}", message.id(), hasher.finish());
    let letter = NewMessage { own_key: Some(own_key.into()), ..letter };
    publish(map, &target, letter).await?;
    for _ in 0..2 {
        let keys = vec![key.clone()];
        if engine.settle(topic, Some(group), keys, &Settlement::Ack).await.is_ok() {
            break;
        }
    }
    // If no ack has arrived, the group gets it again, and there is a second letter.
    Ok(())
}

/// Publishes a dead letter. If it is too large with the headers of the message, it has only those of a dead letter.
async fn publish(
    map: &TopicMap,
    target: &TopicName,
    letter: NewMessage,
) -> Result<(), DeadLetterError> {
    let publish = async |letter| {
        let published = TopicRef::new(map, target, &mut None).publish(letter);
        published.await.map(drop).map_err(DeadLetterError::from)
    };
    match publish(letter.clone()).await {
        Err(error) if is_too_large(&error) => {
            let own =
                letter.headers.iter().filter(|(name, _)| name.starts_with(DeadLetter::PREFIX));
            let headers = Headers::new(own).unwrap_or_default();
            publish(letter.headers(headers)).await
        }
        published => published,
    }
}

impl SharedEngine {
    /// Makes dead letters of leased messages that were delivered too often. Those that cannot be published now, the group
    /// gets again later, so that they do not stand before those that somebody could work on. Returns those that never can.
    pub(super) async fn bury_all(
        &self,
        map: &TopicMap,
        rule: &Rule,
        graves: &Graves,
        dead: Vec<Leased>,
    ) -> Vec<Leased> {
        let (mut left, mut set_back, mut group_of) = (Vec::new(), Vec::new(), None);
        for leased in dead {
            let Some(lease) = &leased.token.scope.engine else { continue };
            let dying = Dying {
                group: &lease.group,
                message: &leased.message,
                // This time is not one: nobody works on it.
                deliveries: leased.deliveries - 1,
                reason: Some(DeadLetter::EXPIRED),
                key: lease.key.clone(),
            };
            match graves.bury(self, map, rule, dying).await {
                Buried::Done => {}
                Buried::Later => {
                    set_back.push(lease.key.clone());
                    group_of = Some((leased.token.topic().clone(), lease.group.clone()));
                }
                Buried::Never => left.push(leased),
            }
        }
        if let Some((topic, group)) = group_of {
            let later = Settlement::Nack { delay: SET_BACK, reason: None };
            // If it fails, their leases end by time.
            let _ = self.settle(&topic, Some(&group), set_back, &later).await;
        }
        left
    }

    /// Settles leases of one group, at least one. A nack of the last delivery makes a dead letter.
    pub(super) async fn settle_leases(
        &self,
        map: &Weak<TopicMap>,
        tokens: &[LeaseToken],
        settlement: &Settlement,
    ) -> Result<SettledBatch, StoreError> {
        let is_nack = matches!(settlement, Settlement::Nack { .. });
        let all = tokens.iter().enumerate();
        let (last, others): (Vec<_>, Vec<_>) =
            all.partition(|(_, token)| is_nack && token.last_delivery().is_some());
        let key = |token: &LeaseToken| token.scope.engine.as_ref().map(|lease| lease.key.clone());
        let group = tokens[0].scope.engine.as_ref().map(|lease| &lease.group);
        let mut settled = SettledBatch::default();
        if !others.is_empty() {
            let keys = others.iter().filter_map(|(_, token)| key(token)).collect();
            settled = self.settle(tokens[0].topic(), group, keys, settlement).await?;
            settled.lost.iter_mut().for_each(|lost| *lost = others[*lost].0);
        }
        let (Some(group), false) = (group, last.is_empty()) else { return Ok(settled) };
        let lost = self.nack_all(map, group, &last, settlement).await.map_err(|error| {
            // Something was done.
            if others.is_empty() { error } else { EngineError::Unknown.into() }
        })?;
        settled.lost.extend(lost);
        settled.lost.sort_unstable();
        Ok(settled)
    }

    /// Ends leases of messages that are not to be delivered again. Returns the numbers of those that are over.
    async fn nack_all(
        &self,
        map: &Weak<TopicMap>,
        group: &GroupName,
        last: &[(usize, &LeaseToken)],
        nack: &Settlement,
    ) -> Result<Vec<usize>, StoreError> {
        /// How many are ended at a time.
        const TOGETHER: usize = 32;
        let numbers = last.iter().map(|(number, _)| *number);
        let topic = last[0].1.topic();
        // What it has of its own may have been changed since.
        let found = self.call(|engine| engine.group(topic, group)).await?;
        let (Some(found), Some(map)) = (found, map.upgrade()) else { return Ok(numbers.collect()) };
        let (rule, graves) = (Rule::new(topic, found.settings), Graves::default());
        let (mut lost, mut is_some_done) = (Vec::new(), false);
        for part in last.chunks(TOGETHER) {
            let nacks = part.iter().map(|(_, token)| -> Boxed<'_, _> {
                Box::pin(self.nack_last(&map, &rule, group, token, nack, &graves))
            });
            for (nacked, (number, _)) in together(nacks.collect()).await.into_iter().zip(part) {
                match nacked {
                    Ok(true) => is_some_done = true,
                    Ok(false) => lost.push(*number),
                    Err(error) if !is_some_done => return Err(error),
                    Err(_) => return Err(EngineError::Unknown.into()),
                }
            }
        }
        Ok(lost)
    }

    /// Ends the lease of a message that is not to be delivered again. Returns `false` if it is over.
    async fn nack_last(
        &self,
        map: &TopicMap,
        rule: &Rule,
        group: &GroupName,
        token: &LeaseToken,
        nack: &Settlement,
        graves: &Graves,
    ) -> Result<bool, StoreError> {
        let (topic, deliveries) = (token.topic(), token.last_delivery().unwrap_or(0));
        let Some(lease) = &token.scope.engine else { return Ok(false) };
        let settle = async |settlement: &Settlement| {
            let settled =
                self.settle(topic, Some(group), vec![lease.key.clone()], settlement).await?;
            Ok::<_, StoreError>(settled.lost.is_empty())
        };
        let Settlement::Nack { reason, .. } = nack else { return settle(nack).await };
        if !rule.is_last(deliveries) {
            return settle(nack).await;
        }
        let message = self.message(topic, token.scope.epoch, token.key.id).await?;
        let Some(message) = message.filter(|message| !is_letter(message)) else {
            return settle(nack).await;
        };
        // Only who has the lease may make a dead letter.
        if !settle(&Settlement::Extend { lease: SET_BACK }).await? {
            return Ok(false);
        }
        let (message, reason, key) = (&message, reason.as_deref(), lease.key.clone());
        let dying = Dying { group, message, deliveries, reason, key };
        match graves.bury(self, map, rule, dying).await {
            Buried::Done => Ok(true),
            Buried::Later => settle(&Settlement::Nack { delay: SET_BACK, reason: None }).await,
            Buried::Never => settle(nack).await,
        }
    }

    /// A message. `None` if it is gone.
    async fn message(
        &self,
        topic: &TopicName,
        epoch: u64,
        id: u64,
    ) -> Result<Option<Message>, EngineError> {
        let from = Begin::Sequence(id);
        let page = self.call(|engine| engine.history(topic, from, BatchLimit::ONE)).await?;
        let found = page.messages.into_iter().next();
        let found = found.filter(|found| page.epoch == epoch && found.message.id == id);
        Ok(found.map(|found| Message::recovered(&self.info(topic, epoch), found.message)))
    }
}

impl From<DeadLetterError> for LeaseError {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Read(error) | DeadLetterError::Publish(PublishError::Store(error)) => {
                Self::Store(error)
            }
            DeadLetterError::Publish(PublishError::Closed) => Self::Closed,
            // Their topic has no room for it.
            _ => Self::Store(StoreError::Engine(EngineError::Full)),
        }
    }
}
