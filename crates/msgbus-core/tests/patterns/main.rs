//! Subscriptions to patterns: one order over the topics that match, existing and new ones.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod model;
mod threads;

use std::{collections::HashSet, sync::Arc};

use msgbus_core::{
    Event, LagPolicy, MessageBus, NewMessage, Options, Position, RecvError, SubscribeError,
    SubscribeOptions, Subscription, TopicFilter, TopicInfo, TopicName, TopicPattern, TopicRule,
};

fn bus() -> MessageBus {
    MessageBus::new(Options::default())
}

fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn follow(bus: &MessageBus, pattern: &str, from: Position) -> Subscription {
    bus.subscribe_pattern(&pattern.parse().unwrap(), from).unwrap()
}

fn put(bus: &MessageBus, topic: &str, text: &'static str) {
    bus.put(&name(topic), text).unwrap();
}

/// Receives until there is nothing more.
fn receive(subscription: &mut Subscription) -> Vec<String> {
    std::iter::from_fn(|| subscription.try_recv().unwrap()).map(|event| text(&event)).collect()
}

fn text(event: &Event) -> String {
    match event {
        Event::Message { message, .. } => {
            let payload = str::from_utf8(message.payload()).unwrap();
            format!("{}:{payload}", message.topic().name)
        }
        Event::Missed { count, .. } => format!("missed {count}"),
    }
}

/// The position after the latest event.
fn position(subscription: &Subscription, event: &Event) -> Position {
    let next_id = match event {
        Event::Message { id, .. } => id + 1,
        Event::Missed { next_id, .. } => *next_id,
    };
    Position::before(subscription.epoch(), next_id)
}

#[test]
fn topics_that_exist_and_topics_that_come_are_followed_in_one_order() {
    let bus = bus();
    put(&bus, "orders/eu", "before");
    let mut one = follow(&bus, "orders/**", Position::New);
    let mut other = follow(&bus, "orders/**", Position::New);
    let mut flat = follow(&bus, "orders/*", Position::New);
    assert!(one.is_of_pattern() && one.name() == "orders/**");
    assert_eq!((one.epoch(), one.epoch() == flat.epoch()), (other.epoch(), false));
    for (topic, text) in [
        ("orders/eu", "1"),
        ("orders/us", "2"),
        ("orders", "no"),
        ("orders/us/late", "3"),
        ("other", "no"),
        ("orders/eu", "4"),
    ] {
        put(&bus, topic, text);
    }
    let expected = ["orders/eu:1", "orders/us:2", "orders/us/late:3", "orders/eu:4"];
    assert_eq!(receive(&mut one), expected);
    assert_eq!(receive(&mut other), expected);
    assert_eq!(receive(&mut flat), ["orders/eu:1", "orders/us:2", "orders/eu:4"]);
    assert_eq!((one.stats().received, one.stats().missed, one.stats().pending), (4, 0, 0));
    let stats = bus.stats();
    assert_eq!((stats.subscribers, stats.patterns, stats.references), (3, 2, 7));
    assert_eq!(stats.counters.delivered, 11);
    drop(flat);
    assert_eq!(bus.stats().subscribers, 2);
    assert_eq!(bus.pattern(&"orders/**".parse().unwrap()).unwrap().subscribers.len(), 2);
}

#[test]
fn what_the_topics_retain_comes_first_and_oldest_first() {
    let bus = bus();
    for (topic, text) in [("a/1", "1"), ("a/2", "2"), ("b", "no"), ("a/1", "3"), ("a/3", "4")] {
        put(&bus, topic, text);
    }
    let mut live = follow(&bus, "a/*", Position::New);
    put(&bus, "a/2", "5");
    let mut all = follow(&bus, "a/*", Position::All);
    assert_eq!((all.start().missed, all.start().restarted), (0, false));
    let expected = ["a/1:1", "a/2:2", "a/1:3", "a/3:4", "a/2:5"];
    assert_eq!(receive(&mut all), expected);
    assert_eq!(receive(&mut live), ["a/2:5"], "it was in the middle");
    let mut later = follow(&bus, "a/*", Position::All);
    assert_eq!(receive(&mut later), expected, "the same order");
    let mut ago = follow(&bus, "a/*", Position::Ago(std::time::Duration::from_secs(60)));
    assert_eq!(receive(&mut ago), expected);
    let mut future = follow(&bus, "a/*", Position::At(chrono::DateTime::<chrono::Utc>::MAX_UTC));
    assert!(receive(&mut future).is_empty());
    assert_eq!(bus.get(&name("a/1")).unwrap().unwrap().payload(), "1", "pulls are apart");
}

#[test]
fn a_position_resumes_and_one_of_another_order_restarts() {
    let bus = bus();
    let mut subscription = follow(&bus, "a/**", Position::New);
    let start = Position::before(subscription.epoch(), subscription.start().next_id);
    for text in ["1", "2", "3"] {
        put(&bus, "a/x", text);
        put(&bus, "a/y", text);
    }
    let first = subscription.try_recv().unwrap().unwrap();
    let resumed = position(&subscription, &first);
    drop(subscription);
    put(&bus, "a/z", "4");
    let rest = ["a/y:1", "a/x:2", "a/y:2", "a/x:3", "a/y:3", "a/z:4"];
    let mut again = follow(&bus, "a/**", resumed);
    assert!(!again.start().restarted);
    assert_eq!(receive(&mut again), rest);
    let mut from_start = follow(&bus, "a/**", start);
    assert_eq!(receive(&mut from_start).len(), 7);
    for foreign in
        [Position::After { epoch: 1, id: 5 }, Position::Start { epoch: 1 }, Position::Id(3)]
    {
        let mut restarted = follow(&bus, "a/**", foreign);
        assert!(restarted.start().restarted, "{foreign}");
        assert_eq!(receive(&mut restarted).len(), 7, "{foreign}");
    }
}

/// A bus whose topics retain `retained` messages, and whose patterns hold `capacity` references.
fn small_bus(retained: usize, capacity: usize) -> MessageBus {
    let mut options = Options::default();
    options.topic.max_messages = capacity;
    options.rules =
        vec![TopicRule { max_messages: Some(retained), ..TopicRule::new("**".parse().unwrap()) }];
    MessageBus::new(options)
}

#[test]
fn what_is_gone_by_its_turn_is_told_in_its_place() {
    let bus = small_bus(2, 100);
    let mut subscription = follow(&bus, "**", Position::New);
    for text in ["1", "2", "3"] {
        put(&bus, "x", text);
    }
    put(&bus, "gone", "1");
    put(&bus, "y", "1");
    assert_eq!(bus.delete(&name("gone")).wait(), Ok(true));
    put(&bus, "gone", "2");
    let expected = ["missed 1", "x:2", "x:3", "missed 1", "y:1", "gone:2"];
    assert_eq!(receive(&mut subscription), expected);
    assert_eq!((subscription.stats().received, subscription.stats().missed), (4, 2));

    let options = SubscribeOptions { lag: LagPolicy::Disconnect, ..SubscribeOptions::default() };
    let mut strict = bus.subscribe_pattern(&"**".parse().unwrap(), options).unwrap();
    for text in ["4", "5", "6"] {
        put(&bus, "x", text);
    }
    for _ in 0..2 {
        assert_eq!(strict.try_recv(), Err(RecvError::Lagged { missed: 1 }), "until it is dropped");
    }
}

#[test]
fn the_order_is_bounded_and_what_did_not_fit_is_told() {
    let bus = small_bus(100, 8);
    for number in 0..6 {
        bus.put(&name("x"), format!("x{number}")).unwrap();
        bus.put(&name("y"), format!("y{number}")).unwrap();
    }
    let mut all = follow(&bus, "*", Position::All);
    assert_eq!(all.start().missed, 4);
    let received = receive(&mut all);
    assert_eq!(received[..2], ["missed 4", "x:x2"]);
    assert_eq!(received.len(), 9);
    for number in 6..16 {
        bus.put(&name("x"), format!("x{number}")).unwrap();
    }
    assert_eq!(receive(&mut all)[..2], ["missed 2", "x:x8"], "it was overtaken");
    // 22 are retained, and 8 of them are in the order.
    let mut late = follow(&bus, "*", Position::All);
    assert_eq!(late.start().missed, 14);
    assert_eq!(receive(&mut late)[..2], ["missed 14", "x:x8"]);
    assert_eq!(bus.stats().references, 8);
}

#[test]
fn references_count_toward_the_memory_of_the_bus() {
    let bus = bus();
    let subscription = follow(&bus, "**", Position::New);
    let (before, topic) = (bus.stats().bytes, name("t"));
    for _ in 0..1000 {
        bus.put(&topic, "x").unwrap();
    }
    let with_pattern = bus.stats().bytes - before;
    bus.put_batch(&name("u"), (0..1000).map(|_| NewMessage::new("x")).collect()).unwrap();
    assert!(with_pattern > 1000 * (129 + 128), "{with_pattern}");
    drop(subscription);

    let mut options = Options { max_bytes: 50_000, ..Options::default() };
    options.topic.max_bytes = 10_000;
    let bus = MessageBus::new(options);
    let mut subscription = follow(&bus, "**", Position::New);
    for _ in 0..1000 {
        bus.put(&topic, "x").unwrap();
    }
    assert!(bus.stats().bytes <= 50_000, "{:?}", bus.stats());
    let received = receive(&mut subscription);
    assert!(received[0].starts_with("missed 9"), "{received:?}");
    assert_eq!(subscription.stats().received + subscription.stats().missed, 1000);
}

#[derive(Debug)]
struct Only(HashSet<TopicName>);

impl TopicFilter for Only {
    fn allows(&mut self, topic: &TopicInfo) -> bool {
        self.0.contains(&topic.name)
    }
}

#[test]
fn a_filter_leaves_out_messages_and_their_loss() {
    let bus = small_bus(2, 100);
    let filter = Only([name("a")].into());
    let mut subscription = follow(&bus, "**", Position::New).filtered(filter);
    for topic in ["a", "b", "b", "b", "a", "a", "b"] {
        put(&bus, topic, "x");
    }
    assert_eq!(receive(&mut subscription), ["missed 1", "a:x", "a:x"]);
    assert_eq!((subscription.stats().received, subscription.stats().missed), (2, 1));
    put(&bus, "b", "y");
    assert!(receive(&mut subscription).is_empty());
}

#[test]
fn a_closed_bus_ends_subscriptions_after_the_last_message() {
    let bus = bus();
    let mut subscription = follow(&bus, "**", Position::New);
    put(&bus, "a", "1");
    let waiting = std::thread::spawn({
        let mut subscription = follow(&bus, "**", Position::New);
        move || subscription.recv_blocking()
    });
    bus.close().unwrap();
    assert_eq!(waiting.join().unwrap(), Err(RecvError::Closed));
    assert_eq!(text(&subscription.recv_blocking().unwrap()), "a:1");
    assert_eq!(subscription.recv_blocking(), Err(RecvError::Closed));
    let refused = bus.subscribe_pattern(&"**".parse().unwrap(), Position::New);
    assert_eq!(refused.err(), Some(SubscribeError::Closed));
}

#[test]
fn patterns_are_limited_and_unused_ones_give_way() {
    let bus = bus();
    let pattern = |number: usize| -> TopicPattern { format!("p{number}/*").parse().unwrap() };
    let follow = |number| bus.subscribe_pattern(&pattern(number), Position::New);
    let mut subscriptions: Vec<_> = (0..1024).map(|number| follow(number).unwrap()).collect();
    assert_eq!(follow(1024).err(), Some(SubscribeError::TooManyPatterns { limit: 1024 }));
    subscriptions.remove(7);
    assert!(bus.pattern(&pattern(7)).is_some(), "it can be resumed");
    let _another = follow(1024).unwrap();
    assert!(bus.pattern(&pattern(7)).is_none());
    assert_eq!(bus.stats().patterns, 1024);
}

/// A payload that somebody else may keep.
struct Owner(Arc<[u8]>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn a_bus_that_is_dropped_leaves_nothing_behind() {
    let bus = bus();
    let payload: Arc<[u8]> = Arc::from(*b"x");
    let subscription = follow(&bus, "**", Position::All);
    bus.put(&name("t"), bytes::Bytes::from_owner(Owner(Arc::clone(&payload)))).unwrap();
    drop(bus);
    assert_eq!(Arc::strong_count(&payload), 1);
    drop(subscription);
}
