//! The contract of an engine as tests that every engine must pass. Each takes two handles to the same engine, as two
//! buses have them; they may be the same. The engine must be reachable, and retain what is published.

mod dead_letters;
mod group_admin;
mod groups;
mod services;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::Utc;
use msgbus_core::{
    BatchLimit, Event, Headers, NewMessage, Position, TopicName,
    engine::{Begin, Engine, EngineError, Page, Receipt},
    store::Durability,
};
use tokio::time::{Instant, timeout};

pub use self::{dead_letters::*, group_admin::*, groups::*, services::*};
use crate::{bus, fresh, soon};

/// Two handles to an engine, and what it can do beyond the contract.
#[derive(Debug, Clone)]
pub struct Subject {
    /// One handle.
    pub one: Arc<dyn Engine>,
    /// The other one.
    pub other: Arc<dyn Engine>,
    /// Whether a repeated idempotency key is noticed.
    pub knows_repeats: bool,
    /// Whether a message's own TTL is kept.
    pub knows_ttl: bool,
    /// A short lease that the engine can give, for the tests in which leases run out.
    pub lease: Duration,
}

/// Runs all tests, one after the other.
pub async fn all(subject: &Subject) {
    all_with_long_leases(subject).await;
    groups::jobs_come_back_when_their_worker_is_gone(subject).await;
    groups::an_extended_lease_goes_on(subject).await;
}

/// Runs the tests in which no lease runs out. An engine that gives all leases the same length should give long ones.
pub async fn all_with_long_leases(subject: &Subject) {
    publishes_with_rising_numbers(subject).await;
    history_has_everything_in_pages(subject).await;
    history_begins_at_a_time(subject).await;
    any_name_is_a_topic_of_its_own(subject).await;
    headers_and_bytes_are_kept(subject).await;
    repeats_are_noticed(subject).await;
    topics_without_messages_are_empty(subject).await;
    deleted_messages_are_gone(subject).await;
    topics_are_listed_in_order(subject).await;
    a_window_follows_what_is_published(subject).await;
    positions_resume_on_another_bus(subject).await;
    groups::each_job_goes_to_one_worker(subject).await;
    groups::jobs_come_back_until_they_are_done(subject).await;
    groups::a_lease_is_given_back_once(subject).await;
    groups::groups_are_independent(subject).await;
    groups::new_groups_begin_where_they_say(subject).await;
    groups::who_waits_gets_the_next_job(subject).await;
    groups::a_fetch_that_nobody_awaits_keeps_no_job(subject).await;
    groups::pulls_take_each_message_once(subject).await;
    dead_letters::jobs_that_fail_too_often_are_dead_letters(subject).await;
    dead_letters::a_job_may_become_a_dead_letter_again(subject).await;
    group_admin::groups_can_be_made_moved_and_removed(subject).await;
    group_admin::a_group_is_moved_while_others_work(subject).await;
    group_admin::leases_after_a_move_can_be_settled(subject).await;
    dead_letters::a_group_has_settings_of_its_own(subject).await;
    group_admin::a_topic_has_a_limited_number_of_groups(subject).await;
    services(subject).await;
}

/// Runs the tests of services.
pub async fn services(subject: &Subject) {
    services::requests_reach_responders_at_another_bus(subject).await;
    services::outcomes_are_those_of_the_responder(subject).await;
    services::requests_are_taken_back_everywhere(subject).await;
    services::free_responders_are_found(subject).await;
    services::requests_leave_with_the_responders(subject).await;
    services::requests_are_counted_once(subject).await;
}

pub(crate) const MANY: BatchLimit = BatchLimit { events: 1000, bytes: 1 << 20 };

pub(crate) fn texts(range: std::ops::Range<usize>) -> Vec<NewMessage> {
    range.map(|n| NewMessage::new(n.to_string())).collect()
}

pub(crate) async fn publish(
    engine: &Arc<dyn Engine>,
    topic: &TopicName,
    messages: Vec<NewMessage>,
) -> Receipt {
    soon(engine.publish(topic, messages)).await.unwrap()
}

async fn read(engine: &Arc<dyn Engine>, topic: &TopicName, from: Begin, limit: BatchLimit) -> Page {
    soon(engine.history(topic, from, limit)).await.unwrap()
}

/// All messages from a position on. Checks that they are in order, and none is missing.
async fn read_all(engine: &Arc<dyn Engine>, topic: &TopicName, from: Begin) -> Vec<(u64, Bytes)> {
    let mut all: Vec<(u64, Bytes)> = Vec::new();
    let mut from = from;
    loop {
        let page = read(engine, topic, from, BatchLimit { events: 7, bytes: 1 << 20 }).await;
        assert!(page.messages.len() <= 7);
        for read in &page.messages {
            assert_eq!(read.skipped, Some(0), "nothing is gone");
            let id = read.message.id;
            assert!(all.last().is_none_or(|(last, _)| *last < id), "in order");
            assert!(id < page.next);
            all.push((id, read.message.payload.clone()));
        }
        assert_eq!(page.skipped, Some(0));
        if page.messages.is_empty() {
            return all;
        }
        from = Begin::Sequence(page.next);
    }
}

/// Numbers rise over all publishes and both handles, and never are 0 in the epoch.
pub async fn publishes_with_rising_numbers(subject: &Subject) {
    let topic = fresh("rising");
    let mut last = 0;
    let mut epoch = None;
    for count in [1, 1, 5, 1, 30] {
        for engine in [&subject.one, &subject.other] {
            let receipt = publish(engine, &topic, texts(0..count)).await;
            assert!(receipt.epoch > 0 && *epoch.get_or_insert(receipt.epoch) == receipt.epoch);
            assert!(receipt.first > last && receipt.last >= receipt.first + count as u64 - 1);
            last = receipt.last;
        }
    }
    let stats = soon(subject.one.stats(&topic)).await.unwrap().unwrap();
    assert_eq!((stats.retained, Some(stats.epoch)), (76, epoch));
    assert!(stats.first <= last && stats.next > last);
}

/// Pages have all messages, from wherever they begin.
pub async fn history_has_everything_in_pages(subject: &Subject) {
    let topic = fresh("history");
    let (mut ids, mut expected) = (Vec::new(), Vec::new());
    for n in 0..40 {
        let other = fresh("between");
        publish(&subject.one, &other, texts(0..1)).await;
        let receipt = publish(&subject.one, &topic, texts(n..n + 1)).await;
        ids.push(receipt.first);
        expected.push((receipt.first, Bytes::from(n.to_string())));
    }
    assert_eq!(read_all(&subject.other, &topic, Begin::First).await, expected);
    for index in [0, 1, 17, 39] {
        let all = read_all(&subject.other, &topic, Begin::Sequence(ids[index])).await;
        assert_eq!(all, expected[index..]);
        let all = read_all(&subject.other, &topic, Begin::Sequence(ids[index] + 1)).await;
        assert_eq!(all, expected[index + 1..]);
    }
    let page = read(&subject.one, &topic, Begin::Sequence(ids[3]), BatchLimit::ONE).await;
    assert_eq!(page.messages.len(), 1);
    assert!((ids[3] + 1..=ids[4]).contains(&page.next));
    let end = read(&subject.one, &topic, Begin::Next, MANY).await;
    assert!(end.messages.is_empty() && end.next > ids[39]);
    let beyond = read(&subject.one, &topic, Begin::Sequence(end.next + 1000), MANY).await;
    assert!(beyond.messages.is_empty() && beyond.next < end.next + 1000, "{beyond:?}");
}

/// A time is a position.
pub async fn history_begins_at_a_time(subject: &Subject) {
    let topic = fresh("time");
    let start = Utc::now();
    publish(&subject.one, &topic, texts(0..3)).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    publish(&subject.one, &topic, texts(3..5)).await;
    let all = read(&subject.one, &topic, Begin::First, MANY).await;
    let created: Vec<_> = all.messages.iter().map(|read| read.message.created).collect();
    assert!(created.is_sorted() && created[0] > start - Duration::from_secs(60));
    let payloads = |page: Page| -> Vec<Bytes> {
        page.messages.into_iter().map(|read| read.message.payload).collect()
    };
    let between = Begin::Time(created[3] - Duration::from_millis(500));
    assert_eq!(payloads(read(&subject.one, &topic, between, MANY).await), ["3", "4"]);
    let before = Begin::Time(created[0] - Duration::from_secs(1));
    assert_eq!(payloads(read(&subject.one, &topic, before, MANY).await).len(), 5);
    let later = Begin::Time(created[4] + Duration::from_secs(3600));
    assert!(payloads(read(&subject.one, &topic, later, MANY).await).is_empty());
}

/// Whatever a name consists of, it is another topic than any other name.
pub async fn any_name_is_a_topic_of_its_own(subject: &Subject) {
    let prefix = fresh("names");
    let names = [
        "a", "A", "a/b", "a.b", "a/b/c", "a..b", "*", ">", "a/*", "a/>", "$SYS", "a b", "größe",
        "%", "%2E", "~", "=", "_", "-", "a/.", "./a", "日本", "a\u{301}", "\\", "{}", "\"",
    ];
    let names = names.iter().filter_map(|name| format!("{prefix}/{name}").parse().ok());
    let mut names: Vec<TopicName> = names.collect();
    assert!(names.len() > 15, "most are names");
    names.push(format!("{prefix}/{}", "é".repeat(90)).parse().unwrap());
    let name = |length: usize| format!("{prefix}/{}", "x".repeat(length)).parse::<TopicName>();
    names.extend((100..255).rev().find_map(|length| name(length).ok()));
    for name in &names {
        publish(&subject.one, name, vec![NewMessage::new(name.as_str().to_owned())]).await;
    }
    for name in &names {
        let all = read_all(&subject.other, name, Begin::First).await;
        let payloads: Vec<_> = all.iter().map(|(_, payload)| payload.as_ref()).collect();
        assert_eq!(payloads, [name.as_str().as_bytes()], "{name}");
    }
}

/// What is published is read as it was.
pub async fn headers_and_bytes_are_kept(subject: &Subject) {
    let topic = fresh("bytes");
    let headers = [
        ("content-type", "text/plain; charset=utf-8"),
        ("X-Twice", "1"),
        ("x-twice", "2"),
        ("X-Twice", "größe, with  spaces: and = signs"),
        ("empty", ""),
    ];
    let headers = Headers::new(headers).unwrap();
    let all_bytes: Vec<u8> = (0..=255).collect();
    let large = NewMessage::new(vec![7; 100_000]);
    let hour = Duration::from_secs(3600);
    let messages = vec![
        NewMessage::new(all_bytes.clone()).headers(headers.clone()),
        NewMessage::new(""),
        if subject.knows_ttl { large.ttl(hour) } else { large },
    ];
    publish(&subject.one, &topic, messages).await;
    let page = read(&subject.other, &topic, Begin::First, MANY).await;
    let read: Vec<_> = page.messages.iter().map(|read| &read.message).collect();
    assert_eq!(read[0].payload, all_bytes);
    assert_eq!(read[0].headers, headers, "in order, repeated, as they were spelled");
    assert_eq!((read[1].payload.len(), read[1].headers.is_empty()), (0, true));
    assert_eq!(read[2].payload.len(), 100_000);
    if subject.knows_ttl {
        let left = read[2].expires.unwrap() - Utc::now();
        assert!((3000..=3700).contains(&left.num_seconds()), "{left}");
    }
}

/// Who publishes again with the same key gets the first receipt.
pub async fn repeats_are_noticed(subject: &Subject) {
    if !subject.knows_repeats {
        return;
    }
    let (topic, other) = (fresh("repeats"), fresh("repeats"));
    let message = NewMessage::new("once").header(Headers::IDEMPOTENCY_KEY, "k 1").unwrap();
    let first = publish(&subject.one, &topic, vec![message.clone()]).await;
    let second = publish(&subject.other, &topic, vec![message.clone()]).await;
    assert_eq!(first, second);
    let batch = vec![message; 3];
    let first = publish(&subject.one, &other, batch.clone()).await;
    assert_eq!(publish(&subject.other, &other, batch).await, first, "and so are batches");
    assert_eq!(read_all(&subject.one, &topic, Begin::First).await.len(), 1);
    let elsewhere = read_all(&subject.one, &other, Begin::First).await.len();
    assert_eq!(elsewhere, 3, "a key is of one topic, and of each message of a batch");
    // The place of a message in its call does not matter.
    let message = |key| NewMessage::new(key).header(Headers::IDEMPOTENCY_KEY, key).unwrap();
    let both = publish(&subject.one, &topic, vec![message("k 2"), message("k 3")]).await;
    let again = publish(&subject.other, &topic, vec![message("k 3")]).await;
    assert_eq!((again.first, again.last), (both.last, both.last));
}

/// A topic that was never used has no messages, and needs not be made.
pub async fn topics_without_messages_are_empty(subject: &Subject) {
    let topic = fresh("never");
    let engine = &subject.one;
    assert_eq!(soon(engine.stats(&topic)).await.unwrap(), None);
    for from in [Begin::First, Begin::Next, Begin::Time(Utc::now())] {
        assert!(read(engine, &topic, from, MANY).await.messages.is_empty());
    }
    assert!(!soon(engine.delete(&topic)).await.unwrap());
}

/// A delete removes the messages of one topic, and numbers go on.
pub async fn deleted_messages_are_gone(subject: &Subject) {
    let (topic, other) = (fresh("deleted"), fresh("kept"));
    publish(&subject.one, &other, texts(0..2)).await;
    let before = publish(&subject.one, &topic, texts(0..5)).await;
    assert!(soon(subject.other.delete(&topic)).await.unwrap());
    assert!(read(&subject.one, &topic, Begin::First, MANY).await.messages.is_empty());
    assert_eq!(soon(subject.one.stats(&topic)).await.unwrap(), None);
    let from = Begin::Sequence(before.first);
    let gone = read(&subject.one, &topic, from, MANY).await;
    assert!(gone.skipped.is_none_or(|count| count == 5), "{gone:?}");
    let after = publish(&subject.one, &topic, texts(5..6)).await;
    assert!(after.epoch > before.epoch || after.first > before.last);
    let page = read(&subject.one, &topic, from, MANY).await;
    assert_eq!(page.messages.len(), 1);
    assert!(page.messages[0].skipped.is_none_or(|count| count == 5), "{page:?}");
    assert_eq!(read_all(&subject.one, &other, Begin::First).await.len(), 2);
}

/// Who follows a topic gets what is published from then on, through whatever bus, with the engine's numbers.
pub async fn a_window_follows_what_is_published(subject: &Subject) {
    let topic = fresh("window");
    let (one, other) = (bus(Arc::clone(&subject.one)), bus(Arc::clone(&subject.other)));
    let old = soon(one.publish(&topic, "old")).await.unwrap();
    let mut new = soon(one.follow(&topic, Position::New)).await.unwrap();
    let mut all = soon(one.follow(&topic, Position::All)).await.unwrap();
    assert_eq!((all.start().requested_id, all.start().missed), (old.id, 0));
    assert_eq!(one.engine_windows().len(), 1, "one for both");
    let mut ids = vec![old.id];
    for n in 0..100 {
        let publisher = if n % 3 == 0 { &one } else { &other };
        let published = soon(publisher.publish(&topic, n.to_string())).await.unwrap();
        assert_eq!((published.epoch, published.durability), (old.epoch, Durability::Engine));
        ids.push(published.id);
    }
    for (subscription, ids) in [(&mut new, &ids[1..]), (&mut all, &ids[..])] {
        assert_eq!(subscription.epoch(), old.epoch);
        for expected in ids {
            let event = soon(subscription.recv()).await.unwrap();
            assert!(matches!(event, Event::Message { id, .. } if id == *expected), "{event:?}");
        }
        assert_eq!(subscription.stats().received, ids.len() as u64);
        assert_eq!(subscription.stats().missed, 0);
    }
}

/// While most followers are still to receive what was published before, what comes is kept back for a moment. An engine that
/// takes nothing from a server has no need of that.
pub async fn messages_gather_while_followers_are_busy(subject: &Subject) {
    /// That of `WindowSink::time_to_gather`.
    const PAUSE: Duration = Duration::from_millis(2);
    /// The messages after which there is a pause for each: engines ask for more and more.
    const BEFORE: usize = 60;
    const AFTER: usize = 5;
    let topic = fresh("gather");
    let bus = bus(Arc::clone(&subject.one));
    let mut followers = Vec::new();
    for _ in 0..40 {
        followers.push(soon(bus.follow(&topic, Position::New)).await.unwrap());
    }
    let Some((first, others)) = followers.split_first_mut() else { unreachable!() };
    for follower in &mut *others {
        timeout(Duration::ZERO, follower.recv()).await.unwrap_err();
    }
    // The others do not receive now.
    for n in 0..BEFORE + AFTER {
        let begin = Instant::now();
        soon(bus.publish(&topic, n.to_string())).await.unwrap();
        soon(first.recv()).await.unwrap();
        assert!(n < BEFORE || begin.elapsed() >= PAUSE, "{n}: {:?}", begin.elapsed());
    }
    for follower in others {
        for _ in 0..BEFORE + AFTER {
            soon(follower.recv()).await.unwrap();
        }
    }
}

/// Whoever has received something resumes after it, wherever that is.
pub async fn positions_resume_on_another_bus(subject: &Subject) {
    let topic = fresh("resume");
    let buses = [bus(Arc::clone(&subject.one)), bus(Arc::clone(&subject.other))];
    let mut ids = Vec::new();
    for n in 0..60 {
        ids.push(soon(buses[n % 2].publish(&topic, n.to_string())).await.unwrap().id);
    }
    let mut position = Position::All;
    let mut received = Vec::new();
    let mut turn = 0;
    while received.len() < ids.len() {
        let mut subscription = soon(buses[turn % 2].follow(&topic, position)).await.unwrap();
        assert!(!subscription.start().restarted);
        turn += 1;
        for _ in 0..turn {
            if received.len() == ids.len() {
                break;
            }
            match soon(subscription.recv()).await.unwrap() {
                Event::Message { id, .. } => received.push(id),
                missed @ Event::Missed { .. } => panic!("{missed:?} after {received:?}"),
            }
            let id = received[received.len() - 1];
            position = Position::After { epoch: subscription.epoch(), id };
        }
    }
    assert_eq!(received, ids);
    let ahead = Position::After { epoch: 1, id: ids[3] };
    let subscription = soon(buses[0].follow(&topic, ahead)).await.unwrap();
    assert!(subscription.start().restarted, "that was another epoch");
    assert_eq!(subscription.start().next_id, ids[0]);
}

/// Whether an engine said that it cannot do something. Then there is nothing to test.
pub(crate) fn is_unsupported<T>(answer: &Result<T, EngineError>) -> bool {
    matches!(answer, Err(EngineError::NotSupported { .. }))
}

/// Topics with messages are listed by name, page by page.
pub async fn topics_are_listed_in_order(subject: &Subject) {
    let base = fresh("list");
    for (name, count) in [("b", 2), ("a", 1), ("a/größe x", 3), ("c", 1)] {
        let topic = format!("{base}/{name}").parse().unwrap();
        publish(&subject.one, &topic, texts(0..count)).await;
    }
    let prefix = format!("{base}/");
    let list = async |after: &str, max| {
        let listed = soon(subject.other.topics(&prefix, after, max)).await;
        listed.map(|list| {
            let names = list.topics.iter().map(|(name, count)| {
                (name.as_str().strip_prefix(&prefix).unwrap().to_owned(), *count)
            });
            (names.collect::<Vec<_>>(), list.has_more)
        })
    };
    let all = list("", 10).await;
    if is_unsupported(&all) {
        return;
    }
    let expected = [("a", 1), ("a/größe x", 3), ("b", 2), ("c", 1)];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(all.unwrap(), (expected.to_vec(), false));
    assert_eq!(list("", 2).await.unwrap(), (expected[..2].to_vec(), true));
    let after = format!("{prefix}b");
    assert_eq!(list(&after, 2).await.unwrap(), (expected[3..].to_vec(), false));
    assert!(subject.other.health().is_up());
}

/// Operations that block work on threads that no runtime has.
pub async fn threads_without_a_runtime_may_block(engine: Arc<dyn Engine>) {
    let (bus, topic) = (bus(engine), fresh("blocking"));
    let thread = std::thread::spawn(move || {
        let mut follower = bus.subscribe(&topic, Position::New).unwrap();
        let published = bus.put(&topic, "hi").unwrap();
        let event = follower.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(event, Some(Event::Message { id, .. }) if id == published.id));
        assert_eq!(bus.get(&topic).unwrap().unwrap().payload(), "hi");
    });
    let joined = tokio::task::spawn_blocking(move || thread.join());
    assert!(soon(joined).await.unwrap().is_ok());
}
