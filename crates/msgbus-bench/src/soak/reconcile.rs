//! Compares the server's counters with what the clients know, after all traffic has stopped.

use std::{io, time::Duration};

use bytes::Bytes;
use msgbus_client::{Position, TopicDetails};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};

use super::{
    Soak,
    drain::{self, Described},
    invariants::{Count, Invariant, Invariants},
    raw_client::RawClient,
    socket_queues::Queues,
    topics::Topic,
};

/// How long messages in flight may take to arrive.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The counters of the whole bus.
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

/// Checks the invariants of a topic that hold at every moment.
pub(super) fn check_topic(invariants: &mut Invariants, details: &TopicDetails) {
    let topic = &details.topic;
    let sum = topic.retained + topic.expired + topic.evicted;
    invariants.check(Invariant::Topics, topic.published == sum && topic.next_id == sum, || {
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
    invariants.check(Invariant::Pulls, topic.published == topic.pulled + unpulled, || {
        format!(
            "{}: published {}, pulled {}, unpulled or removed unpulled {unpulled}",
            topic.name, topic.published, topic.pulled
        )
    });
}

/// Checks the invariants of the bus that hold at every moment.
pub(super) fn check_bus(invariants: &mut Invariants, totals: &Totals) {
    let sum = totals.retained + totals.expired + totals.evicted + totals.deleted;
    invariants.check(Invariant::Bus, totals.published == sum, || format!("{totals:?}"));
    // The totals do not say how many of the retained messages are unpulled, so this is a range.
    let removed_unpulled =
        totals.expired_unpulled + totals.evicted_unpulled + totals.deleted_unpulled;
    let least = totals.pulled + removed_unpulled;
    let holds = (least..=least + totals.retained).contains(&totals.published);
    invariants.check(Invariant::Pulls, holds, || format!("{totals:?}"));
}

/// Waits until nothing is in flight, then compares all counters.
pub(super) async fn settle(soak: &Soak) -> io::Result<()> {
    let give_up = Instant::now() + SETTLE_TIMEOUT;
    // No new subscriptions are started in this phase.
    while soak.connecting.get() > 0 && Instant::now() < give_up {
        sleep(POLL_INTERVAL).await;
    }
    let mut client = connect(soak, give_up).await?;
    let (topics, totals) = loop {
        let topics = topics(soak, &mut client).await?;
        let totals: Totals = get(soak, &mut client, "/-/stats").await?;
        // No await until the comparison, so the clients' state cannot change in between.
        let is_quiet = topics.iter().all(|(details, ..)| is_quiet(soak, details));
        if is_quiet || Instant::now() > give_up {
            break (topics, totals);
        }
        sleep(POLL_INTERVAL).await;
    };
    let mut invariants = soak.invariants.borrow_mut();
    for (details, groups, life) in &topics {
        check_topic(&mut invariants, details);
        compare_topic(&mut invariants, details, *life);
        drain::compare_groups(&mut invariants, details, &groups.groups, *life);
        compare_subscriptions(soak, &mut invariants, details);
    }
    check_bus(&mut invariants, &totals);
    Ok(())
}

/// Connects. Until the server has noticed the end of the last burst of connections, it may refuse one more.
pub(super) async fn connect(soak: &Soak, give_up: Instant) -> io::Result<RawClient> {
    loop {
        let error = match try_connect(soak).await {
            Ok((client, 200)) => return Ok(client),
            Ok((_, status)) => io::Error::other(format!("GET /-/stats: {status}")),
            Err(error) => error,
        };
        if Instant::now() > give_up {
            return Err(error);
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Connects, and returns the status of a first response.
async fn try_connect(soak: &Soak) -> io::Result<(RawClient, u16)> {
    let mut client = RawClient::open(&soak.endpoint).await?;
    let (status, _) = get_bytes(soak, &mut client, "/-/stats").await?;
    Ok((client, status))
}

/// Compares what has become of all jobs, and the counters of the bus, when all jobs are done.
pub(super) async fn finish(soak: &Soak) -> io::Result<()> {
    let mut client = RawClient::open(&soak.endpoint).await?;
    let topics = topics(soak, &mut client).await?;
    let totals: Totals = get(soak, &mut client, "/-/stats").await?;
    let mut invariants = soak.invariants.borrow_mut();
    for (details, groups, life) in &topics {
        drain::compare_groups(&mut invariants, details, &groups.groups, *life);
    }
    drain::compare_jobs(&mut invariants, &topics);
    check_bus(&mut invariants, &totals);
    if soak.is_durable {
        // The counters of deleted topics do not survive a restart.
        return Ok(());
    }
    let (mut published, pulled) = (invariants.all_published(), invariants.all_pulled());
    published.confirmed += invariants.dead_letters;
    compare(
        &mut invariants,
        Invariant::Published,
        "the bus: published",
        totals.published,
        published,
    );
    compare(&mut invariants, Invariant::Pulled, "the bus: pulled", totals.pulled, pulled);
    let received = invariants.received;
    invariants.check(Invariant::Subscriptions, received <= totals.delivered, || {
        format!("{received} received, but the server delivered {}", totals.delivered)
    });
    Ok(())
}

/// Compares the counters of all topics with what the clients know, after the server was killed and started again.
pub(super) async fn after_restart(soak: &Soak) -> io::Result<()> {
    let mut client = RawClient::open(&soak.endpoint).await?;
    let topics = topics(soak, &mut client).await?;
    let totals: Totals = get(soak, &mut client, "/-/stats").await?;
    let mut invariants = soak.invariants.borrow_mut();
    for (details, groups, life) in &topics {
        check_topic(&mut invariants, details);
        compare_topic(&mut invariants, details, *life);
        drain::compare_groups(&mut invariants, details, &groups.groups, *life);
    }
    check_bus(&mut invariants, &totals);
    Ok(())
}

/// Deletes all topics, and checks that the server holds no messages and no subscribers afterwards.
pub(super) async fn clear(soak: &Soak) -> io::Result<()> {
    let give_up = Instant::now() + SETTLE_TIMEOUT;
    let mut client = RawClient::open(&soak.endpoint).await?;
    let totals = loop {
        for name in names(soak, &mut client).await? {
            let request = soak.request("DELETE", &format!("/{name}"));
            client.send(request.as_bytes()).await?;
            client.read_response(true).await?;
        }
        let totals: Totals = get(soak, &mut client, "/-/stats").await?;
        let is_empty = (totals.topics, totals.subscribers, totals.bytes) == (0, 0, 0);
        if is_empty || Instant::now() > give_up {
            break totals;
        }
        sleep(POLL_INTERVAL).await;
    };
    let mut invariants = soak.invariants.borrow_mut();
    check_bus(&mut invariants, &totals);
    let left = (totals.topics, totals.subscribers, totals.bytes, totals.retained);
    invariants.check(Invariant::Released, left == (0, 0, 0, 0), || format!("{totals:?}"));
    invariants.forget_topics();
    Ok(())
}

/// Whether all subscribers of this topic have received all messages, revoked ones have been disconnected,
/// and both sides have noticed all broken connections.
fn is_quiet(soak: &Soak, details: &TopicDetails) -> bool {
    let live = soak.live.borrow();
    let keys = soak.keys.borrow();
    let local = live.values().filter(|live| live.topic == details.topic.name).count();
    let counts_agree = local == details.subscriptions.len();
    counts_agree
        && details.subscriptions.iter().all(|reported| {
            let local = reported.peer.as_deref().and_then(|peer| live.get(address(peer)));
            reported.lag == 0
                && local.is_some_and(|local| {
                    local.received == reported.received && !keys.is_revoked(&local.access)
                })
        })
}

fn compare_topic(invariants: &mut Invariants, details: &TopicDetails, created: u64) {
    let topic = &details.topic;
    if Topic::named(&topic.name).is_of_dead_letters() {
        // No client publishes there.
        return;
    }
    let epoch = topic.epoch.parse().unwrap_or(0);
    let known = invariants.record(&topic.name);
    let (published, end) = known.map(|known| known.published(epoch)).unwrap_or_default();
    let (pulled, pulled_end) = known.map(|known| known.pulled(created)).unwrap_or_default();
    let name = &topic.name;
    compare(
        invariants,
        Invariant::Published,
        &format!("{name}: published"),
        topic.published,
        published,
    );
    compare(invariants, Invariant::Pulled, &format!("{name}: pulled"), topic.pulled, pulled);
    invariants.check(Invariant::Published, end.max(pulled_end) <= topic.next_id, || {
        format!(
            "{name}: ids up to {end} were confirmed, up to {pulled_end} pulled, but {} is next",
            topic.next_id
        )
    });
}

fn compare(
    invariants: &mut Invariants,
    invariant: Invariant,
    what: &str,
    reported: u64,
    local: Count,
) {
    let local = local.range();
    invariants.check(invariant, local.contains(&reported), || {
        format!("{what} {reported}, expected {} to {}", local.start(), local.end())
    });
}

fn compare_subscriptions(soak: &Soak, invariants: &mut Invariants, details: &TopicDetails) {
    let live = soak.live.borrow();
    let topic = &details.topic;
    for reported in &details.subscriptions {
        let local = reported.peer.as_deref().and_then(|peer| live.get(address(peer)));
        let Some(local) = local.filter(|local| local.topic == topic.name) else {
            invariants.check(Invariant::Subscriptions, false, || {
                format!("{}: unknown subscriber {:?}", topic.name, reported.peer)
            });
            continue;
        };
        invariants.check(
            Invariant::NotAllowed,
            !soak.keys.borrow().is_revoked(&local.access),
            || {
                format!(
                    "{}: {:?} is still subscribed, {:?}",
                    topic.name, reported.peer, local.access
                )
            },
        );
        let since_start = topic.next_id.saturating_sub(local.start);
        // Messages missed at the end do not show in an id yet, so this is not an equality.
        let is_in_reach = local.next.is_none_or(|next| next <= topic.next_id);
        let holds = reported.received == local.received
            && reported.received + reported.missed == since_start
            && reported.lag == 0
            && is_in_reach
            && local.epoch.to_string() == topic.epoch;
        invariants.check(Invariant::Subscriptions, holds, || {
            let queues = queues(soak, reported.peer.as_deref().unwrap_or_default());
            format!("next id {}: server {reported:?}, client {local:?}; {queues}", topic.next_id)
        });
        invariants.count("subscriptions active at the end of a round", 1);
    }
    let local = live.values().filter(|live| live.topic == topic.name).count();
    invariants.check(Invariant::Subscriptions, local == details.subscriptions.len(), || {
        format!(
            "{}: {local} subscriptions here, {} at the server",
            topic.name,
            details.subscriptions.len()
        )
    });
}

/// Parses the creation time of a topic, into nanoseconds since 1970.
fn created(text: &str) -> u64 {
    match text.parse() {
        Ok(Position::At(time)) => time.timestamp_nanos_opt().unwrap_or_default().unsigned_abs(),
        _ => 0,
    }
}

async fn topics(soak: &Soak, client: &mut RawClient) -> io::Result<Vec<Described>> {
    let mut topics = Vec::new();
    for name in names(soak, client).await? {
        let (status, body) = get_bytes(soak, client, &format!("/-/topics/{name}")).await?;
        if status == 404 {
            // A topic without messages is removed with its last subscriber.
            continue;
        }
        let details: TopicDetails = serde_json::from_slice(&body)?;
        let life = created(&details.topic.created);
        topics.push((details, serde_json::from_slice(&body)?, life));
    }
    Ok(topics)
}

async fn names(soak: &Soak, client: &mut RawClient) -> io::Result<Vec<String>> {
    client.send(soak.request("GET", "/").as_bytes()).await?;
    let (_, body) = client.read_response(true).await?;
    Ok(String::from_utf8_lossy(&body).lines().map(str::to_owned).collect())
}

async fn get<T: DeserializeOwned>(
    soak: &Soak,
    client: &mut RawClient,
    path: &str,
) -> io::Result<T> {
    Ok(serde_json::from_slice(&get_bytes(soak, client, path).await?.1)?)
}

/// The status and the body of the response.
async fn get_bytes(soak: &Soak, client: &mut RawClient, path: &str) -> io::Result<(u16, Bytes)> {
    client.send(soak.request("GET", path).as_bytes()).await?;
    let (head, body) = client.read_response(true).await?;
    Ok((head.status, body))
}

/// What the system holds of a subscriber's connection. If one side lacks messages and the queues are empty, either the
/// server has not written them or the client has not decoded them.
fn queues(soak: &Soak, peer: &str) -> String {
    let Ok(client) = address(peer).parse() else { return "no address".to_owned() };
    let server = soak.endpoint.address;
    let [server, client] = [(server, client), (client, server)].map(|(local, remote)| {
        Queues::of(local, remote).map_or_else(|error| error.to_string(), |found| found.to_string())
    });
    format!("the server's socket: {server}; the client's: {client}")
}

/// The address in a subscriber's label, which may be preceded by the name of a key.
fn address(peer: &str) -> &str {
    peer.rsplit('@').next().unwrap_or(peer)
}
