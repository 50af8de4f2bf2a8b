//! Workers: they lease jobs and acknowledge them, late, many at once or never, give them back, or pull without a lease.

use std::{collections::HashSet, io, rc::Rc, time::Duration};

use bytes::Bytes;
use fastrand::Rng;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{
    super::{invariants::Invariant, payload, raw_client::Head, workers::read_leased},
    EngineSoak,
    accounts::{Name, Objection, name},
    caller::Caller,
    topics::Queue,
};
use msgbus_core::{Message, json};

/// As in the configuration: on NATS all leases last as long.
const LEASE: Duration = Duration::from_secs(2);

/// A lease that a worker has.
struct Held {
    name: Name,
    token: String,
}

/// A line of a response: a lease that was not settled.
#[derive(Deserialize)]
struct Unsettled {
    lease: String,
    error: String,
}

pub(super) struct Worker {
    soak: Rc<EngineSoak>,
    caller: Caller,
    queue: Queue,
    held: Vec<Held>,
}

impl Worker {
    pub(super) fn new(soak: &Rc<EngineSoak>, rng: Rng, queue: Queue) -> Self {
        Self { soak: Rc::clone(soak), caller: Caller::new(soak, rng), queue, held: Vec::new() }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            self.queue = Queue::any(&mut self.caller.rng);
            for _ in 0..self.caller.rng.u32(5..60) {
                if !self.soak.is_loading() {
                    break;
                }
                if self.step().await.is_err() {
                    sleep(Duration::from_millis(self.caller.rng.u64(5..100))).await;
                }
            }
            // Its leases are left behind.
            self.held.clear();
            self.soak.invariants.borrow_mut().count("workers killed", 1);
        }
    }

    async fn step(&mut self) -> io::Result<()> {
        let Some(group) = self.queue.group else { return self.pull().await };
        match self.caller.rng.u8(..20) {
            0..9 => {
                let (max, wait) = (self.caller.rng.u64(1..60), self.caller.rng.u64(1..300));
                self.take(group, &format!("&max={max}&wait={wait}ms")).await.map(drop)
            }
            9..13 => self.settle_one("ack").await,
            13 => self.settle_one("nack").await,
            14 => self.settle_one("extend").await,
            15..18 => {
                let from = self.caller.rng.usize(..=self.held.len());
                let some = self.held.split_off(from);
                self.ack_many(some).await
            }
            18 => {
                // Never acknowledged.
                self.held.pop();
                Ok(())
            }
            _ => {
                sleep(Duration::from_millis(self.caller.rng.u64(..1500))).await;
                Ok(())
            }
        }
    }

    /// Leases some messages. Returns how many.
    async fn take(&mut self, group: &str, how: &str) -> io::Result<usize> {
        let lease = LEASE.as_secs();
        let target = format!("/{}?group={group}&lease={lease}s{how}", self.queue.topic.path());
        let asked = Instant::now();
        let (head, body) = self.caller.ask("GET", &target, "", b"").await?;
        if head.status != 200 {
            self.check_status(&target, &head, &body, &[204, 404, 503, 504]);
            return if head.status < 500 { Ok(0) } else { Err(io::ErrorKind::Other.into()) };
        }
        let leased = read_leased(&head, &body)?;
        for (message, fields) in &leased {
            let Some(name) = self.check_payload(message) else { continue };
            self.soak.invariants.borrow_mut().count("messages leased", 1);
            let objection = {
                let mut accounts = self.soak.accounts.borrow_mut();
                accounts.queue(self.queue).lease(name, asked + LEASE)
            };
            self.check_delivery(message, objection);
            self.held.push(Held { name, token: fields.lease.clone() });
        }
        Ok(leased.len())
    }

    /// Pulls without a lease, and sometimes leaves before the response.
    async fn pull(&mut self) -> io::Result<()> {
        let max = self.caller.rng.u64(1..40);
        let wait = self.caller.rng.u64(1..300);
        let leaves = self.caller.rng.u8(..40) == 0;
        let target = format!("/{}?max={max}&wait={wait}ms", self.queue.topic.path());
        if leaves {
            self.soak.accounts.borrow_mut().queue(self.queue).unknown += max;
            return self.caller.leave(&target).await;
        }
        self.pull_some(&target, max).await.map(drop)
    }

    /// Pulls up to `most` messages. Returns how many there were.
    async fn pull_some(&mut self, target: &str, most: u64) -> io::Result<usize> {
        let answer = self.caller.ask("GET", target, "", b"").await;
        let is_unknown = answer.as_ref().map_or(true, |(head, _)| head.status == 504);
        if is_unknown {
            self.soak.accounts.borrow_mut().queue(self.queue).unknown += most;
        }
        let (head, body) = answer?;
        if head.status != 200 {
            self.check_status(target, &head, &body, &[204, 404, 503, 504]);
            return if head.status < 500 { Ok(0) } else { Err(io::ErrorKind::Other.into()) };
        }
        let mut count = 0;
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let message = json::read_message(line).map_err(io::Error::other)?;
            count += 1;
            let Some(name) = self.check_payload(&message) else { continue };
            self.soak.invariants.borrow_mut().count("messages pulled", 1);
            let objection = self.soak.accounts.borrow_mut().queue(self.queue).pull(name);
            self.check_delivery(&message, objection);
        }
        Ok(count)
    }

    /// Checks that nobody else has a message, unless the engine may have forgotten that.
    fn check_delivery(&self, message: &Message, objection: Option<Objection>) {
        let cluster = &self.soak.cluster;
        let mut invariants = self.soak.invariants.borrow_mut();
        let done = if self.queue.group.is_some() { Invariant::Acks } else { Invariant::Pulled };
        let (invariant, excuse) = match objection {
            None => return invariants.check(Invariant::Held, true, String::new),
            Some(Objection::Leased(time)) => (
                Invariant::Held,
                Some("leases that the engine ended early when it was restarted")
                    .filter(|_| cluster.may_have_shortened(time)),
            ),
            Some(Objection::Done(time)) => (
                done,
                Some("acks and pulls that the engine forgot when it was killed")
                    .filter(|_| cluster.may_have_forgotten(time)),
            ),
        };
        if let Some(excuse) = excuse {
            return invariants.count(excuse, 1);
        }
        invariants.check(invariant, false, || {
            format!("{:?}: #{}: {objection:?}, now {:?}", self.queue, message.id(), Instant::now())
        });
    }

    fn check_payload(&self, message: &Message) -> Option<Name> {
        let topic = self.queue.topic.name();
        let origin = payload::read(message.payload(), topic);
        let is_right = message.topic().name.as_str() == topic
            && origin.is_some_and(|origin| origin.describes(message));
        self.soak.invariants.borrow_mut().check(Invariant::Payloads, is_right, || {
            format!("{:?}: #{}: {:?}", self.queue, message.id(), message.payload())
        });
        origin.map(name)
    }

    async fn settle_one(&mut self, verb: &'static str) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let held = self.held.swap_remove(self.caller.rng.usize(..self.held.len()));
        let how = match verb {
            "nack" => format!("?delay={}ms", self.caller.rng.u64(..1000)),
            "extend" => format!("?lease={}s", LEASE.as_secs()),
            _ => String::new(),
        };
        let target = format!("/-/{verb}/{}{how}", held.token);
        self.begin_to_settle(&held);
        let answer = self.caller.ask("POST", &target, "", b"").await;
        match (&answer, verb) {
            (Ok((head, body)), _) if !matches!(head.status, 204 | 410 | 503 | 504) => {
                self.check_status(&target, head, body, &[]);
            }
            (Ok((head, _)), "ack") if head.status == 204 => self.record_ack(&held),
            (Ok((head, _)), "ack") if head.status == 410 => {}
            (_, "ack") => self.record_maybe(&held),
            _ => {}
        }
        answer.map(drop)
    }

    fn begin_to_settle(&self, held: &Held) {
        self.soak.accounts.borrow_mut().queue(self.queue).begin_to_settle(held.name);
    }

    fn record_ack(&self, held: &Held) {
        self.soak.invariants.borrow_mut().count("messages acknowledged", 1);
        self.soak.accounts.borrow_mut().queue(self.queue).done.insert(held.name, Instant::now());
    }

    fn record_maybe(&self, held: &Held) {
        self.soak.accounts.borrow_mut().queue(self.queue).maybe_done.insert(held.name);
    }

    fn record_all_maybe(&self, some: &[Held]) {
        for held in some {
            self.record_maybe(held);
        }
    }

    async fn ack_many(&mut self, some: Vec<Held>) -> io::Result<()> {
        if some.is_empty() {
            return Ok(());
        }
        for held in &some {
            self.begin_to_settle(held);
        }
        let tokens: Vec<&str> = some.iter().map(|held| &*held.token).collect();
        let answer = self.caller.ask("POST", "/-/ack", "", tokens.join("\n").as_bytes()).await;
        match &answer {
            Ok((head, body)) if head.status == 200 => self.record_many(&some, body)?,
            Ok((head, body)) => {
                self.check_status("/-/ack", head, body, &[503, 504]);
                self.record_all_maybe(&some);
            }
            Err(_) => self.record_all_maybe(&some),
        }
        answer.map(drop)
    }

    fn record_many(&self, some: &[Held], body: &[u8]) -> io::Result<()> {
        let (mut lost, mut maybe) = (HashSet::new(), HashSet::new());
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Unsettled { lease, error } = serde_json::from_slice(line)?;
            if error == "lease_lost" { &mut lost } else { &mut maybe }.insert(lease);
        }
        for held in some {
            if maybe.contains(&held.token) {
                self.record_maybe(held);
            } else if !lost.contains(&held.token) {
                self.record_ack(held);
            }
        }
        Ok(())
    }

    fn check_status(&self, target: &str, head: &Head, body: &Bytes, right: &[u16]) {
        let mut invariants = self.soak.invariants.borrow_mut();
        invariants.check(Invariant::Responses, right.contains(&head.status), || {
            format!("{target}: {} {}", head.status, String::from_utf8_lossy(body))
        });
    }

    /// Takes and acknowledges all that is there now. Returns whether there was anything.
    pub(super) async fn drain(&mut self) -> io::Result<bool> {
        let count = match self.queue.group {
            Some(group) => self.take(group, "&max=200&wait=100ms").await?,
            None => {
                let target = format!("/{}?max=200&wait=100ms", self.queue.topic.path());
                self.pull_some(&target, 200).await?
            }
        };
        let all = std::mem::take(&mut self.held);
        self.ack_many(all).await?;
        Ok(count > 0)
    }
}
