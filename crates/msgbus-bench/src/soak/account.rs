//! What the server says when all is quiet, against what the clients know.

use std::{io, time::Duration};

use msgbus_client::{Position, TopicDetails};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};

use super::{
    Soak,
    books::{Book, Books, Count},
    wire::Wire,
};

/// How long what is under way may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The books of the whole bus.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Totals {
    topics: u64,
    subscribers: u64,
    bytes: u64,
    retained: u64,
    published: u64,
    pulled: u64,
    delivered: u64,
    expired: u64,
    expired_unpulled: u64,
    evicted: u64,
    evicted_unpulled: u64,
    deleted: u64,
    deleted_unpulled: u64,
}

/// What holds of a topic at every moment.
pub(super) fn check_topic(books: &mut Books, details: &TopicDetails) {
    let topic = &details.topic;
    let sum = topic.retained + topic.expired + topic.evicted;
    books.check(Book::Topics, topic.published == sum && topic.next_id == sum, || {
        format!(
            "{}: published {}, next id {}, retained {}, expired {}, evicted {}",
            topic.name,
            topic.published,
            topic.next_id,
            topic.retained,
            topic.expired,
            topic.evicted
        )
    });
    let unpulled = topic.unpulled + topic.expired_unpulled + topic.evicted_unpulled;
    books.check(Book::Pulls, topic.published == topic.pulled + unpulled, || {
        format!(
            "{}: published {}, pulled {}, unpulled in all {unpulled}",
            topic.name, topic.published, topic.pulled
        )
    });
}

/// What holds of the bus at every moment.
pub(super) fn check_bus(books: &mut Books, totals: &Totals) {
    let sum = totals.retained + totals.expired + totals.evicted + totals.deleted;
    books.check(Book::Bus, totals.published == sum, || format!("{totals:?}"));
    // What is retained and was not pulled is not among the totals.
    let gone = totals.expired_unpulled + totals.evicted_unpulled + totals.deleted_unpulled;
    let least = totals.pulled + gone;
    let holds = (least..=least + totals.retained).contains(&totals.published);
    books.check(Book::Pulls, holds, || format!("{totals:?}"));
}

/// Waits until nothing is on its way, then compares all books.
pub(super) async fn settle(soak: &Soak) -> io::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    let mut wire = Wire::open(&soak.place).await?;
    // By now nobody sets out any more.
    while soak.connecting.get() > 0 && Instant::now() < give_up {
        sleep(LOOK_EVERY).await;
    }
    let (topics, totals) = loop {
        let topics = topics(soak, &mut wire).await?;
        let totals: Totals = get(soak, &mut wire, "/-/stats").await?;
        // From here until the comparison nothing is awaited: what is quiet here is compared as it is.
        let is_quiet = topics.iter().all(|details| is_quiet(soak, details));
        if is_quiet || Instant::now() > give_up {
            break (topics, totals);
        }
        sleep(LOOK_EVERY).await;
    };
    let mut books = soak.books.borrow_mut();
    for details in &topics {
        check_topic(&mut books, details);
        compare_topic(&mut books, details);
        compare_subscriptions(soak, &mut books, details);
    }
    check_bus(&mut books, &totals);
    let (published, pulled) = (books.all_published(), books.all_pulled());
    compare(&mut books, Book::Published, "the bus: published", totals.published, published);
    compare(&mut books, Book::Pulled, "the bus: pulled", totals.pulled, pulled);
    let received = books.received;
    books.check(Book::Subscriptions, received <= totals.delivered, || {
        format!("{received} were received, and {} delivered", totals.delivered)
    });
    Ok(())
}

/// Deletes all topics: nothing is to be left of them, nor of those who followed them.
pub(super) async fn clear(soak: &Soak) -> io::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    let mut wire = Wire::open(&soak.place).await?;
    let totals = loop {
        for name in names(soak, &mut wire).await? {
            let request = soak.request("DELETE", &format!("/{name}"));
            wire.send(request.as_bytes()).await?;
            wire.answer(true).await?;
        }
        let totals: Totals = get(soak, &mut wire, "/-/stats").await?;
        let is_empty = (totals.topics, totals.subscribers, totals.bytes) == (0, 0, 0);
        if is_empty || Instant::now() > give_up {
            break totals;
        }
        sleep(LOOK_EVERY).await;
    };
    let mut books = soak.books.borrow_mut();
    check_bus(&mut books, &totals);
    let left = (totals.topics, totals.subscribers, totals.bytes, totals.retained);
    books.check(Book::GivenBack, left == (0, 0, 0, 0), || format!("{totals:?}"));
    books.forget_topics();
    Ok(())
}

/// Whether all subscribers of this topic have received all of it, those who may no longer follow it are
/// gone, and those who were cut have noticed.
fn is_quiet(soak: &Soak, details: &TopicDetails) -> bool {
    let live = soak.live.borrow();
    let keys = soak.keys.borrow();
    let here = live.values().filter(|live| live.topic == details.topic.name).count();
    let nobody_is_unaware = here == details.subscriptions.len();
    nobody_is_unaware
        && details.subscriptions.iter().all(|there| {
            let here = there.peer.as_deref().and_then(|peer| live.get(address(peer)));
            there.lag == 0
                && here.is_some_and(|here| {
                    here.received == there.received && !keys.is_over(&here.claim)
                })
        })
}

fn compare_topic(books: &mut Books, details: &TopicDetails) {
    let topic = &details.topic;
    let epoch = topic.epoch.parse().unwrap_or(0);
    let created = created(&topic.created);
    let known = books.known(&topic.name);
    let (published, end) = known.map(|known| known.published(epoch)).unwrap_or_default();
    let (pulled, pulled_end) = known.map(|known| known.pulled(created)).unwrap_or_default();
    let name = &topic.name;
    compare(books, Book::Published, &format!("{name}: published"), topic.published, published);
    compare(books, Book::Pulled, &format!("{name}: pulled"), topic.pulled, pulled);
    books.check(Book::Published, end.max(pulled_end) <= topic.next_id, || {
        format!(
            "{name}: ids up to {end} were told, up to {pulled_end} pulled, {} is next",
            topic.next_id
        )
    });
}

fn compare(books: &mut Books, book: Book, what: &str, there: u64, here: Count) {
    let here = here.range();
    books.check(book, here.contains(&there), || {
        format!("{what} {there}, known {} to {}", here.start(), here.end())
    });
}

fn compare_subscriptions(soak: &Soak, books: &mut Books, details: &TopicDetails) {
    let live = soak.live.borrow();
    let topic = &details.topic;
    for there in &details.subscriptions {
        let here = there.peer.as_deref().and_then(|peer| live.get(address(peer)));
        let Some(here) = here.filter(|here| here.topic == topic.name) else {
            books.check(Book::Subscriptions, false, || {
                format!("{}: nobody here is {:?}", topic.name, there.peer)
            });
            continue;
        };
        books.check(Book::NotAllowed, !soak.keys.borrow().is_over(&here.claim), || {
            format!("{}: {:?} follows it, {:?}", topic.name, there.peer, here.claim)
        });
        let since_start = topic.next_id.saturating_sub(here.start);
        // What is missed at the end shows in no id yet.
        let is_in_reach = here.next.is_none_or(|next| next <= topic.next_id);
        let holds = there.received == here.received
            && there.received + there.missed == since_start
            && there.lag == 0
            && is_in_reach
            && here.epoch.to_string() == topic.epoch;
        books.check(Book::Subscriptions, holds, || {
            format!("next id {}: {there:?} is {here:?}", topic.next_id)
        });
        books.count("subscriptions alive at the end of a round", 1);
    }
    let here = live.values().filter(|live| live.topic == topic.name).count();
    books.check(Book::Subscriptions, here == details.subscriptions.len(), || {
        format!("{}: {here} here, {} there", topic.name, details.subscriptions.len())
    });
}

/// A time of the wire in nanoseconds since 1970, as messages tell when their topic was made.
fn created(text: &str) -> u64 {
    match text.parse() {
        Ok(Position::At(time)) => time.timestamp_nanos_opt().unwrap_or_default().unsigned_abs(),
        _ => 0,
    }
}

async fn topics(soak: &Soak, wire: &mut Wire) -> io::Result<Vec<TopicDetails>> {
    let mut topics = Vec::new();
    for name in names(soak, wire).await? {
        topics.push(get(soak, wire, &format!("/-/topics/{name}")).await?);
    }
    Ok(topics)
}

async fn names(soak: &Soak, wire: &mut Wire) -> io::Result<Vec<String>> {
    wire.send(soak.request("GET", "/").as_bytes()).await?;
    let (_, body) = wire.answer(true).await?;
    Ok(String::from_utf8_lossy(&body).lines().map(str::to_owned).collect())
}

async fn get<T: DeserializeOwned>(soak: &Soak, wire: &mut Wire, path: &str) -> io::Result<T> {
    wire.send(soak.request("GET", path).as_bytes()).await?;
    let (_, body) = wire.answer(true).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// The address in a label of the server, which may have the name of a key before it.
fn address(peer: &str) -> &str {
    peer.rsplit('@').next().unwrap_or(peer)
}
