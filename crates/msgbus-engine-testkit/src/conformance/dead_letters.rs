//! The part of the contract that is about dead letters.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use msgbus_core::{
    BatchLimit, GroupConfig, GroupError, GroupName, Headers, LeaseOptions, Message, MessageBus,
    NewMessage, Position, SettleError, Settlement, TopicName,
    engine::{Begin, Engine, EngineError, EngineGroupSettings},
    store::StoreError,
};

use super::{
    MANY, Subject,
    groups::{ACK, LONG, group, settle, take_later},
    publish, texts,
};
use crate::{SOON, bus, fresh, soon};

/// After ten deliveries a message goes to the topic for dead letters. Each message has its letter for each group, also those
/// of a batch with one idempotency key.
pub async fn jobs_that_fail_too_often_are_dead_letters(subject: &Subject) {
    let topic = fresh("dying");
    let bus = bus(Arc::clone(&subject.one));
    let bad = |text: &'static str| {
        NewMessage::new(text).header(Headers::IDEMPOTENCY_KEY, "one for all").unwrap()
    };
    soon(bus.publish_batch(&topic, vec![bad("bad 1"), bad("bad 2")])).await.unwrap();
    for workers in [group("a"), group("b")] {
        fail_until_there_is_a_good_job(&bus, &topic, &workers).await;
    }
    let dead = topic.dead_letters().unwrap();
    let redrive = group("redrive");
    let shown = soon(bus.peek_group(&dead, &redrive, MANY)).await.unwrap().unwrap();
    let letters: Vec<_> = shown.messages().cloned().collect();
    let mut found: Vec<_> = letters
        .iter()
        .map(|letter| {
            let header = |name| letter.headers().get(name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(header("dead-letter-topic"), topic.as_str());
            assert_eq!(header("dead-letter-deliveries"), "10");
            assert_eq!(header("dead-letter-reason"), "broken");
            assert_eq!(header(Headers::IDEMPOTENCY_KEY), "one for all");
            (header("dead-letter-group").to_owned(), letter.payload().clone())
        })
        .collect();
    found.sort();
    let expected =
        ["a", "b"].map(|group| ["bad 1", "bad 2"].map(|text| (group.to_owned(), text.into())));
    assert_eq!(found, expected.as_flattened(), "once for each");
    what_a_group_has_not_acknowledged_is_shown(&bus, &dead, &redrive).await;
}

/// A group that begins anew may fail at the same job again, and that is another dead letter.
pub async fn a_job_may_become_a_dead_letter_again(subject: &Subject) {
    let (topic, workers) = (fresh("anew"), group("workers"));
    let bus = bus(Arc::clone(&subject.one));
    soon(bus.publish(&topic, "bad")).await.unwrap();
    let config = GroupConfig {
        max_deliveries: Some(1),
        from: Some(Position::All),
        ..GroupConfig::default()
    };
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    for expected in 1..3 {
        let set = soon(bus.set_group(&topic, &workers, &config)).await;
        if matches!(
            set,
            Err(GroupError::Store(StoreError::Engine(EngineError::NotSupported { .. })))
        ) {
            return;
        }
        let options = LeaseOptions { lease: LONG, ..LeaseOptions::default() };
        let leased = soon(bus.lease_wait(&topic, &workers, options).unwrap()).await.unwrap();
        assert_eq!(leased[0].deliveries, 1);
        soon(bus.settle(&leased[0].token, &back)).await.unwrap();
        let dead = topic.dead_letters().unwrap();
        let letters = soon(bus.peek_group(&dead, &workers, MANY)).await.unwrap().unwrap();
        assert_eq!(letters.messages().count(), expected);
    }
}

/// Messages expire after a short time, and dead letters do not. The engine keeps messages for at most two seconds.
pub async fn dead_letters_do_not_expire(engine: &Arc<dyn Engine>) {
    let topic = fresh("lasting");
    let dead = topic.dead_letters().unwrap();
    assert_eq!((engine.max_age(&dead), engine.max_age(&topic).is_some()), (None, true));
    for name in [&topic, &dead] {
        publish(engine, name, texts(0..1)).await;
    }
    let start = Instant::now();
    while soon(engine.stats(&topic)).await.unwrap().is_some() {
        assert!(start.elapsed() < SOON, "it does not expire");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let page = soon(engine.history(&dead, Begin::First, MANY)).await.unwrap();
    assert_eq!((page.messages.len(), page.messages[0].message.expires), (1, None));
    let listed = soon(engine.topics(topic.as_str(), "", 10)).await.unwrap();
    assert_eq!(listed.topics, [(dead.clone(), 1)]);
    assert!(soon(engine.delete(&dead)).await.unwrap());
}

/// Four messages are there, and the group was given none.
async fn what_a_group_has_not_acknowledged_is_shown(
    bus: &MessageBus,
    topic: &TopicName,
    group: &GroupName,
) {
    let shown = async || {
        let peek = soon(bus.peek_group(topic, group, MANY)).await.unwrap().unwrap();
        peek.messages().map(Message::id).collect::<Vec<_>>()
    };
    let all = shown().await;
    assert_eq!(all.len(), 4);
    let lease = async || {
        let options = LeaseOptions { lease: LONG, ..LeaseOptions::default() };
        soon(bus.lease_wait(topic, group, options).unwrap()).await.unwrap().pop().unwrap()
    };
    let first = lease().await;
    assert_eq!(shown().await, all, "it is leased, and not acknowledged");
    soon(bus.settle(&first.token, &ACK)).await.unwrap();
    assert_eq!(shown().await, all[1..]);
    let two = BatchLimit { events: 2, ..MANY };
    let peek = soon(bus.peek_group(topic, group, two)).await.unwrap().unwrap();
    assert_eq!(peek.messages().map(Message::id).collect::<Vec<_>>(), all[1..3]);
    for _ in 1..4 {
        soon(bus.settle(&lease().await.token, &ACK)).await.unwrap();
    }
    assert!(shown().await.is_empty());
}

/// Gives two jobs back until they have become dead letters, which shows by another one that comes alone.
async fn fail_until_there_is_a_good_job(bus: &MessageBus, topic: &TopicName, workers: &GroupName) {
    let options = || LeaseOptions { lease: LONG, ..LeaseOptions::default() };
    let mut deliveries = [0; 2];
    while deliveries.iter().any(|count| *count < 10) {
        let leased = soon(bus.lease_wait(topic, workers, options()).unwrap()).await.unwrap();
        for leased in leased {
            if leased.message.payload() == "good" {
                soon(bus.settle(&leased.token, &ACK)).await.unwrap();
                continue;
            }
            let number = usize::from(leased.message.payload() == "bad 2");
            // A lease that nobody has received counts, too.
            assert!(leased.deliveries > deliveries[number] && leased.deliveries <= 10);
            deliveries[number] = leased.deliveries;
            let text = leased.token.to_string();
            let back = Settlement::Nack { delay: Duration::ZERO, reason: Some("broken".into()) };
            soon(bus.settle(&text.parse().unwrap(), &back)).await.unwrap();
            if leased.deliveries == 10 {
                let dead = topic.dead_letters().unwrap();
                let letters = soon(bus.peek_group(&dead, workers, MANY)).await.unwrap().unwrap();
                let is_it = |letter: &Message| {
                    letter.payload() == leased.message.payload()
                        && letter.headers().get("dead-letter-group") == Some(workers.as_str())
                };
                assert!(letters.messages().any(is_it), "it is there at once");
                let again = soon(bus.settle(&leased.token, &back)).await;
                assert_eq!(again, Err(SettleError::Lost), "that lease is over");
            }
        }
    }
    soon(bus.publish(topic, "good")).await.unwrap();
    let leased = soon(bus.lease_wait(topic, workers, options()).unwrap()).await.unwrap();
    assert_eq!(leased[0].message.payload(), "good");
    for leased in &leased {
        soon(bus.settle(&leased.token, &ACK)).await.unwrap();
    }
}

/// What a group has of its own counts at every bus, and stays when it is moved.
pub async fn a_group_has_settings_of_its_own(subject: &Subject) {
    let (topic, workers, letters) = (fresh("settings"), group("workers"), fresh("letters"));
    publish(&subject.one, &topic, texts(0..1)).await;
    let [one, other] = [&subject.one, &subject.other].map(|engine| bus(Arc::clone(engine)));
    let config = GroupConfig {
        max_deliveries: Some(2),
        dead_letters: Some(letters.clone()),
        ..GroupConfig::default()
    };
    let set = soon(one.set_group(&topic, &workers, &config)).await;
    if matches!(set, Err(GroupError::Store(StoreError::Engine(EngineError::NotSupported { .. })))) {
        return;
    }
    set.unwrap();
    // What is not kept was not set.
    let change = EngineGroupSettings { max_deliveries: Some(1), dead_letters: None };
    let gone = soon(subject.one.change_group(&topic, &group("gone"), change)).await;
    assert_eq!(gone, Err(EngineError::Unavailable));
    let only = GroupConfig { max_deliveries: Some(1), ..GroupConfig::default() };
    soon(other.set_group(&topic, &workers, &only)).await.unwrap();
    let moved = GroupConfig { from: Some(Position::All), ..GroupConfig::default() };
    soon(one.set_group(&topic, &workers, &moved)).await.unwrap();
    let shown = soon(subject.other.group(&topic, &workers)).await.unwrap().unwrap();
    let settings = (shown.settings.max_deliveries, shown.settings.dead_letters.as_ref());
    assert_eq!(settings, (Some(1), Some(&letters)));
    let start = Instant::now();
    let options = LeaseOptions { lease: LONG, ..LeaseOptions::default() };
    let letter = loop {
        for leased in soon(other.lease(&topic, &workers, options.clone())).await.unwrap() {
            // Other buses may take a moment to hear of a change.
            let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
            let _ = soon(one.settle(&leased.token, &back)).await;
        }
        if let Some(letter) = soon(one.pull(&letters, BatchLimit::ONE)).await.unwrap().pop() {
            break letter;
        }
        assert!(start.elapsed() < SOON, "no dead letter");
    };
    let deliveries = letter.headers().get("dead-letter-deliveries").unwrap();
    assert!(deliveries.parse::<u32>().unwrap() < 10, "{deliveries}");
    let of_letters = fresh("failed").dead_letters().unwrap();
    soon(one.publish(&of_letters, "letter")).await.unwrap();
    for _ in 0..11 {
        let leased = take_later(&subject.one, &of_letters, &workers).await;
        let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
        settle(&subject.one, &of_letters, &workers, vec![leased.key], &back).await;
    }
    let options = LeaseOptions { lease: LONG, ..LeaseOptions::default() };
    let again = soon(one.lease_wait(&of_letters, &workers, options).unwrap()).await.unwrap();
    assert!(again[0].deliveries > 11, "groups of dead letters deliver without end");
}
