//! What requesters and responders know of services, compared with the counters of the server.

use std::{collections::BTreeMap, io, ops::RangeInclusive, time::Duration};

use fastrand::Rng;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{
    Soak,
    invariants::{Count, Invariant, Invariants},
    raw_client::RawClient,
    reconcile::connect,
    topics::Topic,
};

/// Longer than any timeout of a request.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A random service. Its name has the grants of the topic of this name. Nobody serves the last one.
pub(super) fn any(rng: &mut Rng) -> Topic {
    Topic::named(match rng.u8(..20) {
        0..8 => "plain/service",
        8..14 => "quick/service",
        14..19 => "keep/service",
        _ => "extra/nobody",
    })
}

/// A random service that somebody serves.
pub(super) fn any_served(rng: &mut Rng) -> Topic {
    Topic::named(["plain/service", "quick/service", "keep/service"][rng.usize(..3)])
}

/// The end of a request, as its requester knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Replied,
    Failed,
    TimedOut,
    /// Refused because of the service or of a limit of the server. The latter does not count as asked.
    Refused,
    /// The requester has left, or has got no response.
    Unknown,
}

/// What clients know of a service since the server was started.
#[derive(Debug, Default)]
struct ServiceRecord {
    endings: [u64; 5],
    /// Replies that were accepted, as responders know it.
    replies: Count,
    not_wanted: Count,
    /// Requests that failed because there was no memory for their reply, which the responder knows to be accepted.
    without_memory: u64,
}

impl ServiceRecord {
    /// How many requests have ended in this way.
    fn ended(&self, ending: Ending) -> Count {
        let of = |ending: Ending| self.endings[ending as usize];
        Count { confirmed: of(ending), unconfirmed: of(Ending::Unknown) }
    }

    /// How many replies the server may have counted, as responders know it. It counts a failure instead of a reply for
    /// which it has no memory.
    fn replies(&self) -> RangeInclusive<u64> {
        let (least, most) = self.replies.range().into_inner();
        least.saturating_sub(self.without_memory + self.endings[Ending::Unknown as usize])..=most
    }
}

/// A request of this round.
#[derive(Debug)]
struct Asked {
    may_repeat: bool,
    hands: u32,
    has_reply: bool,
}

/// What clients know of all services.
#[derive(Debug, Default)]
pub(super) struct ServiceRecords {
    services: BTreeMap<String, ServiceRecord>,
    requests: BTreeMap<u64, Asked>,
    last: u64,
}

impl ServiceRecords {
    /// A new request. Its payload has the number.
    pub(super) fn ask(&mut self, may_repeat: bool) -> u64 {
        self.last += 1;
        self.requests.insert(self.last, Asked { may_repeat, hands: 0, has_reply: false });
        self.last
    }

    pub(super) fn end(&mut self, service: &Topic, ending: Ending) {
        self.record(service).endings[ending as usize] += 1;
    }

    /// Records that there was no memory for the reply to a request, which is over.
    pub(super) fn has_no_memory(&mut self, service: &Topic) {
        self.record(service).without_memory += 1;
    }

    fn record(&mut self, service: &Topic) -> &mut ServiceRecord {
        self.services.entry(service.name().to_owned()).or_default()
    }

    /// Records an answer of a responder without a response.
    pub(super) fn may_have_answered(&mut self, service: &Topic, is_reply: bool) {
        let record = self.record(service);
        record.replies.unconfirmed += u64::from(is_reply);
        record.not_wanted.unconfirmed += 1;
    }

    /// Forgets the requests of a round, which are all over.
    pub(super) fn forget_requests(&mut self) {
        self.requests.clear();
    }

    /// Forgets the counts, which do not survive a restart of the server.
    pub(super) fn forget_counts(&mut self) {
        self.services.clear();
    }
}

impl Invariants {
    /// Records that a responder has got a request.
    pub(super) fn record_request(&mut self, number: u64) {
        self.count("requests taken by responders", 1);
        let Some(asked) = self.services.requests.get_mut(&number) else {
            return self.check(Invariant::Replies, false, || format!("nobody asked {number}"));
        };
        asked.hands += 1;
        let may_be = asked.hands == 1 || asked.may_repeat;
        self.check(Invariant::Replies, may_be, || format!("request {number} was served twice"));
    }

    /// Records the response to an answer of a responder: whether it was accepted.
    pub(super) fn record_answer(
        &mut self,
        service: &Topic,
        number: u64,
        is_reply: bool,
        is_wanted: bool,
    ) {
        let record = self.services.record(service);
        if !is_wanted {
            record.not_wanted.confirmed += 1;
            return self.count("replies that were not wanted", 1);
        }
        if !is_reply {
            return;
        }
        record.replies.confirmed += 1;
        let asked = self.services.requests.get_mut(&number);
        let is_first = asked.is_some_and(|asked| !std::mem::replace(&mut asked.has_reply, true));
        self.check(Invariant::Replies, is_first, || format!("request {number} has two replies"));
    }
}

/// The counters of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) struct ServiceCounts {
    #[serde(default)]
    responders: u64,
    #[serde(default)]
    queued: u64,
    #[serde(default)]
    in_hand: u64,
    #[serde(default)]
    away: u64,
    asked: u64,
    replied: u64,
    failed: u64,
    timed_out: u64,
    refused: u64,
    given_up: u64,
    not_wanted: u64,
}

pub(super) type AllCounts = BTreeMap<String, ServiceCounts>;

/// Checks the accounts of services, which balance at every moment.
pub(super) fn check_services(invariants: &mut Invariants, all: &AllCounts) {
    for (name, counts) in all {
        let &ServiceCounts { replied, failed, timed_out, refused, given_up, .. } = counts;
        let over = replied + failed + timed_out + refused + given_up;
        let holds = counts.asked == over + counts.queued + counts.in_hand + counts.away;
        invariants.check(Invariant::Requests, holds, || format!("{name}: {counts:?}"));
    }
}

/// Waits until all requests are over, then compares all counters. Nobody asks or serves meanwhile.
pub(super) async fn settle(soak: &Soak) -> io::Result<()> {
    let give_up = Instant::now() + SETTLE_TIMEOUT;
    let mut client = connect(soak, give_up).await?;
    let is_over = |counts: &ServiceCounts| {
        counts.responders + counts.queued + counts.in_hand + counts.away == 0
    };
    let all = loop {
        let all: AllCounts = serde_json::from_slice(&get(soak, &mut client, "/-/services").await?)?;
        if all.values().all(is_over) || Instant::now() > give_up {
            break all;
        }
        sleep(POLL_INTERVAL).await;
    };
    let page = get(soak, &mut client, "/metrics").await?;
    let mut invariants = soak.invariants.borrow_mut();
    invariants.check(Invariant::Requests, all.values().all(is_over), || format!("open: {all:?}"));
    check_services(&mut invariants, &all);
    for (name, counts) in &all {
        compare_with_metrics(&mut invariants, name, counts, &page);
        compare(&mut invariants, name, counts);
    }
    Ok(())
}

async fn get(soak: &Soak, client: &mut RawClient, path: &str) -> io::Result<Vec<u8>> {
    client.send(soak.request("GET", path).as_bytes()).await?;
    Ok(client.read_response(true).await?.1.to_vec())
}

fn compare_with_metrics(
    invariants: &mut Invariants,
    name: &str,
    counts: &ServiceCounts,
    page: &[u8],
) {
    let page = String::from_utf8_lossy(page);
    let sample = |counter: &str| {
        let prefix = format!("msgbus_service_{counter}_total{{service=\"{name}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&prefix)?.parse::<u64>().ok())
    };
    for (counter, count) in [
        ("asked", counts.asked),
        ("replied", counts.replied),
        ("failed", counts.failed),
        ("timed_out", counts.timed_out),
        ("refused", counts.refused),
        ("given_up", counts.given_up),
        ("not_wanted", counts.not_wanted),
    ] {
        invariants.check(Invariant::Requests, sample(counter) == Some(count), || {
            format!("{name}: {counter} is {count}, in /metrics {:?}", sample(counter))
        });
    }
}

/// Compares the counters of a service with what its clients know.
fn compare(invariants: &mut Invariants, name: &str, counts: &ServiceCounts) {
    let Some(record) = invariants.services.services.get(name) else { return };
    let [replied, failed, timed_out, refused] =
        [Ending::Replied, Ending::Failed, Ending::TimedOut, Ending::Refused]
            .map(|ending| record.ended(ending).range());
    let (replies, not_wanted) = (record.replies(), record.not_wanted.range());
    let most: u64 = record.endings.iter().sum();
    let unknown = record.endings[Ending::Unknown as usize];
    for (what, count, expected) in [
        ("replied", counts.replied, replied),
        ("replied, as responders know it,", counts.replied, replies),
        ("failed", counts.failed, failed),
        ("timed out", counts.timed_out, timed_out),
        // A limit of the server refuses requests that do not count as asked.
        ("refused", counts.refused, 0..=*refused.end()),
        ("given up", counts.given_up, 0..=unknown),
        ("asked", counts.asked, 0..=most),
        ("replies not wanted", counts.not_wanted, not_wanted),
    ] {
        invariants.check(Invariant::Replies, expected.contains(&count), || {
            format!("{name}: {what} {count}, expected {expected:?}")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(invariants: &Invariants) -> [u64; 2] {
        [Invariant::Requests, Invariant::Replies]
            .map(|invariant| invariants.state(invariant).map_or(0, |state| state.violations))
    }

    #[test]
    fn a_request_is_served_twice_only_if_it_may_be_and_has_one_reply() {
        let mut invariants = Invariants::default();
        let service = Topic::named("s");
        for (may_repeat, wrong) in [(true, 0), (false, 1)] {
            let number = invariants.services.ask(may_repeat);
            invariants.record_request(number);
            invariants.record_request(number);
            assert_eq!(violations(&invariants), [0, wrong]);
        }
        for wrong in [1, 2] {
            invariants.record_answer(&service, 1, true, true);
            assert_eq!(violations(&invariants), [0, wrong]);
        }
    }

    #[test]
    fn the_accounts_balance_and_agree_with_the_clients() {
        let mut invariants = Invariants::default();
        let service = Topic::named("s");
        for ending in [Ending::Replied, Ending::TimedOut, Ending::Unknown] {
            invariants.services.end(&service, ending);
        }
        invariants.record_answer(&service, invariants.services.last, false, true);
        invariants.services.may_have_answered(&service, true);
        let counts = ServiceCounts {
            asked: 3,
            replied: 1,
            timed_out: 1,
            given_up: 1,
            ..ServiceCounts::default()
        };
        let check = |invariants: &mut Invariants, counts| {
            check_services(invariants, &BTreeMap::from([("s".to_owned(), counts)]));
            compare(invariants, "s", &counts);
            violations(invariants)
        };
        assert_eq!(check(&mut invariants, counts), [0, 0]);
        let lost = ServiceCounts { given_up: 0, ..counts };
        assert_eq!(check(&mut invariants, lost), [1, 0]);
        let wrong = ServiceCounts { replied: 0, failed: 1, ..counts };
        assert_eq!(check(&mut invariants, wrong), [1, 1], "the requester has a reply");
    }
}
