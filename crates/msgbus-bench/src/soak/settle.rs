//! Requests that settle leases, one or many, and how their responses are recorded.

use std::{collections::HashMap, io};

use fastrand::Rng;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Soak,
    acl_model::Access,
    groups::{Held, Outcome, Verb},
    invariants::Invariant,
    raw_client::{Head, RawClient},
};

/// The path of the request after the verb is the token, or nothing.
fn path(verb: Verb, token: &str, rng: u64) -> String {
    let token = if token.is_empty() { String::new() } else { format!("/{token}") };
    match verb {
        Verb::Ack => format!("/-/ack{token}"),
        Verb::Nack if rng.is_multiple_of(3) => format!("/-/nack{token}"),
        Verb::Nack => format!("/-/nack{token}?delay={}ms&reason=soak%20{rng}", rng % 2000),
        Verb::Extend(lease) => format!("/-/extend{token}?lease={}ms", lease.as_millis()),
    }
}

/// Settles one lease, and returns the status of the response; 0 if `leaves`, which does not wait for it.
/// `as_whom` is the access to check the response against, and the header that authenticates.
pub(super) async fn settle_one(
    soak: &Soak,
    client: &mut RawClient,
    (access, principal): (Option<&Access>, &str),
    held: &mut Held,
    verb: Verb,
    leaves: bool,
) -> io::Result<u16> {
    let path = path(verb, &held.token, held.id);
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: soak.localhost\r\n{principal}Content-Length: 0\r\n\r\n"
    );
    let sent = Instant::now();
    soak.invariants.borrow_mut().groups.begin_to_settle(held, verb, sent);
    let answer = match client.send(request.as_bytes()).await {
        Ok(()) if leaves => {
            record(soak, held, verb, Outcome::Unknown, sent);
            return Ok(0);
        }
        Ok(()) => client.read_response(true).await,
        Err(error) => Err(error),
    };
    let (head, body) = match answer {
        Ok(answer) => answer,
        Err(error) => {
            record(soak, held, verb, Outcome::Unknown, sent);
            soak.record_error(&error, "a settlement");
            return Err(error);
        }
    };
    let is_refused = access.is_some_and(|access| {
        let mut invariants = soak.invariants.borrow_mut();
        let what = format!("POST {verb:?} of {}", held.group.topic.name());
        soak.keys.borrow().check_response(&mut invariants, access, head.status, &what)
    });
    match head.status {
        _ if is_refused => {}
        204 => record(soak, held, verb, Outcome::Settled, sent),
        410 => record(soak, held, verb, Outcome::Lost, sent),
        503 => soak.invariants.borrow_mut().count("settlements refused at a limit", 1),
        status => {
            let text = String::from_utf8_lossy(&body).into_owned();
            soak.record_fault(&format!("{verb:?} of {held:?}: {status} {text}"));
        }
    }
    check_extension(soak, verb, &head);
    if head.keeps_alive() { Ok(head.status) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
}

fn check_extension(soak: &Soak, verb: Verb, head: &Head) {
    if head.status == 204 && matches!(verb, Verb::Extend(_)) {
        let is_told = head.has("msgbus-lease-expires");
        soak.invariants.borrow_mut().check(Invariant::Responses, is_told, || {
            "an extended lease without Msgbus-Lease-Expires".to_owned()
        });
    }
}

fn record(soak: &Soak, held: &mut Held, verb: Verb, outcome: Outcome, sent: Instant) {
    soak.invariants.borrow_mut().record_settlement(held, verb, outcome, sent);
}

/// A line of the response: a lease that was not settled.
#[derive(Deserialize)]
struct Unsettled {
    lease: String,
    error: String,
}

/// Settles many leases with one request, some of them twice. Returns those that go on.
pub(super) async fn settle_many(
    soak: &Soak,
    client: &mut RawClient,
    mut all: Vec<Held>,
    verb: Verb,
    rng: &mut Rng,
) -> io::Result<Vec<Held>> {
    let mut tokens: Vec<&str> = all.iter().map(|held| &*held.token).collect();
    if verb == Verb::Ack && rng.u8(..4) == 0 {
        let repeated = rng.usize(..=tokens.len());
        tokens.extend_from_within(..repeated);
    }
    // How often each token was sent, without those that are reported as lost.
    let mut settled: HashMap<String, i32> = HashMap::new();
    for token in &tokens {
        *settled.entry((*token).to_owned()).or_default() += 1;
    }
    let request = soak.post(&path(verb, "", rng.u64(..)), &tokens.join("\n"));
    let sent = Instant::now();
    for held in &all {
        soak.invariants.borrow_mut().groups.begin_to_settle(held, verb, sent);
    }
    let answer = match client.send(&request).await {
        Ok(()) => client.read_response(true).await,
        Err(error) => Err(error),
    };
    let (head, body) = match answer {
        Ok(answer) => answer,
        Err(error) => {
            for held in &mut all {
                record(soak, held, verb, Outcome::Unknown, sent);
            }
            soak.record_error(&error, "settlements");
            return Err(error);
        }
    };
    if head.status != 200 {
        // Some may be settled.
        for held in &mut all {
            record(soak, held, verb, Outcome::Unknown, sent);
        }
        soak.invariants.borrow_mut().count("settlements refused at a limit", 1);
        soak.invariants.borrow_mut().check(Invariant::Responses, head.status == 503, || {
            format!("{verb:?} of many: {} {}", head.status, String::from_utf8_lossy(&body))
        });
        return Ok(all);
    }
    remove_lost(soak, &body, &mut settled)?;
    all.retain_mut(|held| {
        let times = settled.get(&held.token).copied().unwrap_or(0);
        record_one_of_many(soak, held, verb, times, sent)
    });
    Ok(all)
}

/// Reads which leases were not settled.
fn remove_lost(soak: &Soak, body: &[u8], settled: &mut HashMap<String, i32>) -> io::Result<()> {
    let mut invariants = soak.invariants.borrow_mut();
    invariants.count("requests that settled many leases", 1);
    for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Unsettled { lease, error } = serde_json::from_slice(line)?;
        let times = settled.get_mut(&lease);
        let is_right = times.is_some() && error == "lease_lost";
        invariants.check(Invariant::Responses, is_right, || format!("{lease}: {error}"));
        if let Some(times) = times {
            *times -= 1;
        }
    }
    Ok(())
}

/// Records a lease that a request has settled so many times. Returns whether it goes on.
fn record_one_of_many(soak: &Soak, held: &mut Held, verb: Verb, times: i32, sent: Instant) -> bool {
    // A token that was sent twice is settled at most once.
    soak.invariants.borrow_mut().check(Invariant::Acks, (0..2).contains(&times), || {
        format!("{verb:?}: settled {times} times in one request: {held:?}")
    });
    let outcome = if times > 0 { Outcome::Settled } else { Outcome::Lost };
    record(soak, held, verb, outcome, sent);
    times > 0 && matches!(verb, Verb::Extend(_))
}

/// Acknowledges the leases that workers hold at the end of a round, one by one. If the server was killed
/// meanwhile, they have survived that.
pub(super) async fn settle_held(soak: &Soak) -> io::Result<()> {
    let all = std::mem::take(&mut *soak.held.borrow_mut());
    let mut client = RawClient::open(&soak.endpoint).await?;
    for mut held in all {
        let live = Instant::now() < held.live_until && held.group.is_lossless();
        let what = "leases acknowledged after the load, and after a kill of the server";
        soak.invariants.borrow_mut().count(what, u64::from(live));
        let as_whom = (None, &*soak.admin_header);
        settle_one(soak, &mut client, as_whom, &mut held, Verb::Ack, false).await?;
    }
    Ok(())
}
