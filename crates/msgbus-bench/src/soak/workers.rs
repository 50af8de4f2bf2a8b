//! Workers in groups: they lease jobs and acknowledge them, late, twice or never, give them back, extend
//! leases, and are killed.

use std::{io, rc::Rc, time::Duration};

use fastrand::Rng;
use msgbus_core::{Message, json};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{
    Soak,
    acl_model::Access,
    credentials,
    groups::{GroupId, Held, Verb},
    invariants::{Invariant, Invariants},
    payload,
    raw_client::{Cut, Head, RawClient},
    settle::{settle_many, settle_one},
    topics::Topic,
};

const LEASES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_millis(1500), Duration::from_secs(3)];
/// A worker that has more leases settles them.
const MAX_HELD: usize = 200;

pub(super) struct Worker {
    soak: Rc<Soak>,
    rng: Rng,
    client: Option<RawClient>,
    group: GroupId,
    held: Vec<Held>,
}

/// A pull for a group.
struct Request {
    group: GroupId,
    access: Access,
    /// The header that authenticates.
    principal: String,
    query: String,
    lease: Duration,
    /// The maximum number of messages that it takes.
    most: u64,
    /// Whether to disconnect before the response.
    leaves: bool,
}

/// The fields of a lease in a response with several messages.
#[derive(Deserialize)]
pub(super) struct LeaseFields {
    pub(super) lease: String,
    pub(super) deliveries: u64,
}

impl Worker {
    pub(super) fn new(soak: &Rc<Soak>, mut rng: Rng) -> Self {
        let group = GroupId::random(&mut rng);
        Self { soak: Rc::clone(soak), rng, client: None, group, held: Vec::new() }
    }

    /// Works until the load is over. What it still holds then is settled later.
    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            self.group = GroupId::random(&mut self.rng);
            for _ in 0..self.rng.u32(5..60) {
                if !self.soak.is_loading() {
                    break;
                }
                if self.step().await.is_err() {
                    self.client = None;
                    self.soak.invariants.borrow_mut().count("worker connections broken", 1);
                    sleep(Duration::from_millis(self.rng.u64(5..50))).await;
                }
            }
            if self.soak.is_loading() && self.rng.u8(..3) > 0 {
                self.be_killed();
            }
        }
        self.soak.held.borrow_mut().append(&mut self.held);
    }

    /// Leaves its connection and its leases behind.
    fn be_killed(&mut self) {
        self.held.clear();
        if let Some(client) = self.client.take() {
            client.cut(self.soak.random_cut(&mut self.rng));
        }
        self.soak.invariants.borrow_mut().count("workers killed", 1);
    }

    async fn step(&mut self) -> io::Result<()> {
        if self.held.len() > MAX_HELD {
            return self.settle_some(Verb::Ack).await;
        }
        let extension = Verb::Extend(LEASES[self.rng.usize(..LEASES.len())]);
        match self.rng.u8(..20) {
            0..8 => self.take().await,
            8..12 => self.settle(Verb::Ack).await,
            12 => self.settle(Verb::Nack).await,
            13 => self.settle(extension).await,
            14..16 => self.settle_some(Verb::Ack).await,
            16 => self.settle_some(Verb::Nack).await,
            17 => self.settle_some(extension).await,
            18 => {
                // Never acknowledged.
                self.held.pop();
                Ok(())
            }
            _ => {
                // Afterwards acknowledgements are late.
                sleep(Duration::from_millis(self.rng.u64(..1500))).await;
                Ok(())
            }
        }
    }

    async fn take_client(&mut self) -> io::Result<RawClient> {
        match self.client.take() {
            Some(client) => Ok(client),
            None => RawClient::open(&self.soak.endpoint).await,
        }
    }

    fn request(&mut self) -> Request {
        let leaves = self.rng.u8(..50) == 0;
        let lease = LEASES[self.rng.usize(..LEASES.len())];
        let max = self.rng.u64(1..if leaves { 8 } else { 100 });
        let wait = self.rng.u64(1..500);
        let (how, most) = match self.rng.u8(..5) {
            0 => (String::new(), 1),
            1 => (format!("&wait={wait}ms"), 1),
            2 | 3 => (format!("&max={max}"), max),
            _ => (format!("&max={max}&wait={wait}ms"), max),
        };
        let group = self.group.clone();
        let query = format!("group={}&lease={}ms{how}", group.name, lease.as_millis());
        let keys = self.soak.keys.borrow();
        let principal = keys.random_principal(&mut self.rng);
        let access = keys.access(principal, &group.topic);
        let principal = credentials::header(&keys, principal, &mut self.rng);
        Request { group, access, principal, query, lease, most, leaves }
    }

    async fn take(&mut self) -> io::Result<()> {
        let request = self.request();
        let Request { group, query, principal, most, .. } = &request;
        let name = group.topic.name();
        let head =
            format!("GET /{name}?{query} HTTP/1.1\r\nHost: soak.localhost\r\n{principal}\r\n");
        let mut client = self.take_client().await?;
        let asked = Instant::now();
        client.send(head.as_bytes()).await?;
        if request.leaves {
            self.soak.invariants.borrow_mut().groups.may_have_delivered(group, *most);
            sleep(Duration::from_millis(self.rng.u64(..5))).await;
            client.cut(self.soak.random_cut(&mut self.rng));
            self.soak.invariants.borrow_mut().count("leases without waiting for the response", 1);
            return Ok(());
        }
        match client.read_response(true).await {
            Ok((head, body)) => {
                self.record(&request, &head, &body, asked);
                if head.keeps_alive() {
                    self.client = Some(client);
                }
                Ok(())
            }
            Err(error) => {
                self.soak.invariants.borrow_mut().groups.may_have_delivered(group, *most);
                self.soak.record_error(&error, "a lease");
                client.cut(Cut::Close);
                Err(error)
            }
        }
    }

    fn record(&mut self, request: &Request, head: &Head, body: &[u8], asked: Instant) {
        let what = format!("GET {}?{}", request.group.topic.name(), request.query);
        let mut invariants = self.soak.invariants.borrow_mut();
        let keys = self.soak.keys.borrow();
        if keys.check_response(&mut invariants, &request.access, head.status, &what) {
            return;
        }
        drop((invariants, keys));
        match head.status {
            200 => match read_leased(head, body) {
                Ok(leased) => {
                    let held = receive(
                        &self.soak,
                        &request.group,
                        Some(&request.access),
                        &leased,
                        (asked, request.lease),
                    );
                    self.held.extend(held);
                }
                Err(error) => self.soak.record_fault(&format!("{what}: {error}")),
            },
            204 | 404 => self.soak.invariants.borrow_mut().count("leases without a message", 1),
            429 => self.soak.invariants.borrow_mut().count("leases refused: too many are live", 1),
            503 => self.soak.invariants.borrow_mut().count("leases refused at a limit", 1),
            status => {
                let text = String::from_utf8_lossy(body).into_owned();
                self.soak.record_fault(&format!("{what}: {status} {text}"));
            }
        }
    }

    async fn settle(&mut self, verb: Verb) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let index = self.rng.usize(..self.held.len());
        let mut held = self.held.swap_remove(index);
        let (access, principal) = {
            let keys = self.soak.keys.borrow();
            let principal = keys.random_principal(&mut self.rng);
            let access = keys.access(principal, &held.group.topic);
            (access, credentials::header(&keys, principal, &mut self.rng))
        };
        let leaves = self.rng.u8(..50) == 0;
        let mut client = self.take_client().await?;
        let as_whom = (Some(&access), &*principal);
        let status = settle_one(&self.soak, &mut client, as_whom, &mut held, verb, leaves).await?;
        if leaves {
            client.cut(self.soak.random_cut(&mut self.rng));
            return Ok(());
        }
        let is_acked = verb == Verb::Ack && status == 204;
        if is_acked && self.rng.u8(..4) == 0 {
            self.ack_again(&mut client, &held).await?;
        }
        if !matches!(status, 204 | 410) || status == 204 && matches!(verb, Verb::Extend(_)) {
            self.held.push(held);
        }
        self.client = Some(client);
        Ok(())
    }

    /// A token is of no use after its ack.
    async fn ack_again(&mut self, client: &mut RawClient, held: &Held) -> io::Result<()> {
        let path = format!("/-/ack/{}", held.token);
        client.send(self.soak.request("POST", &path).as_bytes()).await?;
        let (head, _) = client.read_response(true).await?;
        let mut invariants = self.soak.invariants.borrow_mut();
        invariants.count("messages acknowledged a second time", 1);
        let is_right = matches!(head.status, 410 | 503);
        invariants.check(Invariant::Acks, is_right, || {
            format!("the second ack was answered {}: {held:?}", head.status)
        });
        Ok(())
    }

    async fn settle_some(&mut self, verb: Verb) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        self.rng.shuffle(&mut self.held);
        let some = self.held.split_off(self.rng.usize(..self.held.len()));
        let mut client = self.take_client().await?;
        let left = settle_many(&self.soak, &mut client, some, verb, &mut self.rng).await?;
        self.held.extend(left);
        self.client = Some(client);
        Ok(())
    }
}

/// The messages of a response, each with its token and its delivery count.
pub(super) fn read_leased(head: &Head, body: &[u8]) -> io::Result<Vec<(Message, LeaseFields)>> {
    if let Some(lease) = head.text("msgbus-lease") {
        let deliveries = head.number("msgbus-deliveries").unwrap_or(0);
        let message = json::read_message(body).map_err(io::Error::other)?;
        return Ok(vec![(message, LeaseFields { lease: lease.to_owned(), deliveries })]);
    }
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let message = json::read_message(line).map_err(io::Error::other)?;
            Ok((message, serde_json::from_slice(line)?))
        })
        .collect()
}

/// Checks and records the messages of a response to a pull that was sent at `when.0` with leases of `when.1`.
pub(super) fn receive(
    soak: &Soak,
    group: &GroupId,
    access: Option<&Access>,
    leased: &[(Message, LeaseFields)],
    (asked, lease): (Instant, Duration),
) -> Vec<Held> {
    let mut invariants = soak.invariants.borrow_mut();
    let over_at = Instant::now() + lease;
    let is_redelivered = |(_, fields): &(Message, LeaseFields)| fields.deliveries > 1;
    let new = leased.iter().position(|one| !is_redelivered(one)).unwrap_or(leased.len());
    let rise = |part: &[(Message, LeaseFields)]| part.is_sorted_by_key(|(message, _)| message.id());
    let is_in_order =
        rise(&leased[..new]) && rise(&leased[new..]) && !leased[new..].iter().any(is_redelivered);
    invariants.check(Invariant::Order, is_in_order, || {
        let ids: Vec<_> =
            leased.iter().map(|(message, fields)| (message.id(), fields.deliveries)).collect();
        format!("redelivered messages come first, the oldest first: {group:?}: {ids:?}")
    });
    let mut all = Vec::new();
    for (message, fields) in leased {
        check_payload(soak, &mut invariants, group, access, message);
        let created = message.topic().created.timestamp_nanos_opt().unwrap_or_default();
        let held = Held {
            group: group.clone(),
            life: created.unsigned_abs(),
            id: message.id(),
            token: fields.lease.clone(),
            live_until: asked + lease,
            over_at,
        };
        invariants.record_lease(&held, fields.deliveries);
        all.push(held);
    }
    all
}

fn check_payload(
    soak: &Soak,
    invariants: &mut Invariants,
    group: &GroupId,
    access: Option<&Access>,
    message: &Message,
) {
    let name = group.topic.name();
    let origin = payload::read(message.payload(), group.topic.origin());
    let is_right = message.topic().name.as_str() == name
        && origin.is_some_and(|origin| origin.describes(message));
    invariants.check(Invariant::Payloads, is_right, || format!("{group:?}: #{}", message.id()));
    if group.topic.is_of_dead_letters() {
        return check_dead_letter(invariants, group, message);
    }
    if let (Some(origin), Some(access)) = (origin, access) {
        soak.keys.borrow().check_message(invariants, access, origin, name);
    }
}

fn check_dead_letter(invariants: &mut Invariants, group: &GroupId, message: &Message) {
    let header = |name| message.headers().get(name);
    let number = |name| header(name).and_then(|text| text.parse::<u64>().ok());
    let origin = group.topic.origin();
    let is_complete = header("dead-letter-topic") == Some(origin)
        && number("dead-letter-deliveries").is_some_and(|deliveries| deliveries > 0);
    let (of, id) = (header("dead-letter-group"), number("dead-letter-id"));
    invariants.check(Invariant::DeadLetters, is_complete && of.is_some() && id.is_some(), || {
        format!("{group:?}: #{}: {:?}", message.id(), message.headers())
    });
    if let (Some(of), Some(id)) = (of, id)
        && Topic::named(origin).is_for_jobs()
    {
        invariants.record_dead_letter(origin, of, id, message.id());
    }
}
