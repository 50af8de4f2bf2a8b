//! Accounts of the jobs of a group, with workers on several buses, while an engine is disturbed: every job is done, and no
//! two workers have it at the same time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, Utc};
use msgbus_core::{
    BatchLimit, GroupName, Headers, LeaseOptions, Leased, MessageBus, NewMessage, SettleError,
    Settlement, TopicName,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::SOON;

/// Who does what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The buses, on the same engine.
    pub buses: Vec<MessageBus>,
    /// The topic.
    pub topic: TopicName,
    /// How many jobs.
    pub jobs: usize,
    /// How many workers.
    pub workers: usize,
    /// The length of a lease.
    pub lease: Duration,
    /// How many jobs out of a hundred fail, and how many are forgotten by their workers.
    pub failures: u32,
    /// Whether the engine never forgets a lease. Otherwise two workers may have a job.
    pub keeps_leases: bool,
    /// Whether the engine never forgets an ack that it has confirmed. Otherwise a job may be done again.
    pub keeps_acks: bool,
    /// What is random depends on it.
    pub seed: u64,
}

/// What has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Leases given.
    pub leases: usize,
    /// Jobs acknowledged by a worker, and accepted.
    pub done: usize,
    /// Jobs that have become dead letters.
    pub dead: usize,
    /// Settlements that came too late.
    pub lost: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The ends of the leases that are live, as far as their workers know.
    live: BTreeMap<u64, DateTime<Utc>>,
    done: BTreeSet<String>,
    /// When an ack was confirmed.
    acked: BTreeMap<u64, DateTime<Utc>>,
    /// What has happened to each message, for the report of a failure.
    log: BTreeMap<u64, Vec<String>>,
    report: Report,
}

/// Runs workers while `disturb` runs, until all jobs are done. In the end the engine must serve again.
///
/// # Panics
/// When a job is not done, or has two workers at a time.
pub async fn check(plan: &Plan, disturb: impl Future<Output = ()>) -> Report {
    let state = Arc::new(Mutex::new(State::default()));
    let mut workers = JoinSet::new();
    for number in 0..plan.workers {
        workers.spawn(work(plan.clone(), number, Arc::clone(&state)));
    }
    let dead = plan.topic.dead_letters().unwrap();
    let working = async {
        publish(plan).await;
        loop {
            let bus = &plan.buses[0];
            if let Ok(messages) = bus.pull(&dead, BatchLimit { events: 100, bytes: 1 << 20 }).await
            {
                let mut state = state.lock().unwrap();
                for message in messages {
                    let name = String::from_utf8_lossy(message.payload()).into_owned();
                    state.report.dead += usize::from(state.done.insert(name));
                }
            }
            if state.lock().unwrap().done.len() >= plan.jobs {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let all = timeout(SOON * 3, async { tokio::join!(working, disturb) });
    let is_done = tokio::select! {
        all = all => all.is_ok(),
        // Workers only end when they panic.
        Some(ended) = workers.join_next() => {
            ended.unwrap();
            false
        }
    };
    workers.abort_all();
    let state = state.lock().unwrap();
    assert!(is_done, "{} of {} jobs are done", state.done.len(), plan.jobs);
    assert_eq!(state.done.len(), plan.jobs);
    state.report
}

async fn publish(plan: &Plan) {
    for job in 0..plan.jobs {
        let key = format!("{:x}-{job}", plan.seed);
        let message = NewMessage::new(job.to_string());
        let message = message.header(Headers::IDEMPOTENCY_KEY, &key).unwrap();
        let bus = &plan.buses[job % plan.buses.len()];
        while bus.publish(&plan.topic, message.clone()).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn work(plan: Plan, number: usize, state: Arc<Mutex<State>>) {
    let mut random = fastrand::Rng::with_seed(plan.seed ^ (3000 + number as u64));
    let group: GroupName = "workers".parse().unwrap();
    loop {
        let bus = &plan.buses[random.usize(..plan.buses.len())];
        let limit = BatchLimit { events: random.usize(1..4), bytes: 1 << 20 };
        let options = LeaseOptions { lease: plan.lease, limit, ..LeaseOptions::default() };
        let waiting = bus.lease_wait(&plan.topic, &group, options).unwrap();
        let Ok(Ok(leased)) = timeout(Duration::from_millis(500), waiting).await else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        for leased in &leased {
            state.lock().unwrap().begin(leased, &plan);
        }
        for leased in leased {
            finish(&plan, &leased, &state, &mut random).await;
        }
    }
}

impl State {
    fn note(&mut self, id: u64, what: &str) {
        self.log.entry(id).or_default().push(format!("{}: {what}", Utc::now()));
    }

    fn begin(&mut self, leased: &Leased, plan: &Plan) {
        /// So much later a lease may be noticed that was given before.
        const LATE: Duration = Duration::from_secs(1);
        let (id, now) = (leased.message.id(), Utc::now());
        self.note(id, &format!("delivery {} until {}", leased.deliveries, leased.expires));
        // It may have taken so long that somebody else has it by now.
        if leased.expires <= now {
            return;
        }
        if let Some(end) = self.live.insert(id, leased.expires) {
            // The clocks of two machines, or of two calls, may differ.
            let is_over = end <= now + Duration::from_millis(10);
            let log = &self.log[&id];
            let is_right = is_over || !plan.keeps_leases;
            assert!(is_right, "{id} is leased until {end}, and again: {log:#?}");
        }
        if let Some(acked) = self.acked.get(&id) {
            let is_forgotten = leased.expires - plan.lease > *acked + LATE;
            let log = &self.log[&id];
            assert!(!is_forgotten || !plan.keeps_acks, "{id} is done, and leased again: {log:#?}");
        }
        self.report.leases += 1;
    }
}

/// Acknowledges a job, or fails, or forgets it.
async fn finish(plan: &Plan, leased: &Leased, state: &Mutex<State>, random: &mut fastrand::Rng) {
    let id = leased.message.id();
    let bus = &plan.buses[random.usize(..plan.buses.len())];
    let chance = random.u32(..100);
    if chance < plan.failures {
        state.lock().unwrap().live.remove(&id);
        let delay = Duration::from_millis(random.u64(..30));
        state.lock().unwrap().note(id, &format!("nack after {delay:?}"));
        let nacked = bus.settle(&leased.token, &Settlement::Nack { delay, reason: None }).await;
        state.lock().unwrap().note(id, &format!("nack: {nacked:?}"));
        return;
    }
    if chance < 2 * plan.failures {
        return;
    }
    sleep(Duration::from_millis(random.u64(..5))).await;
    if chance.is_multiple_of(2) {
        let extend = Settlement::Extend { lease: plan.lease };
        // A lease that was extended may have been extended although there is no answer.
        let extended = bus.settle(&leased.token, &extend).await;
        state.lock().unwrap().note(id, &format!("extend: {extended:?}"));
        if let Ok(Some(end)) = extended {
            let mut state = state.lock().unwrap();
            if let Some(known) = state.live.get_mut(&id)
                && *known == leased.expires
            {
                *known = end;
            }
        }
    }
    acknowledge(bus, leased, state).await;
}

/// Acknowledges a job, again and again while it is not known whether that was accepted.
async fn acknowledge(bus: &MessageBus, leased: &Leased, state: &Mutex<State>) {
    let id = leased.message.id();
    let mut is_unsure = false;
    loop {
        // Whoever is not sure repeats it.
        let acked = bus.settle(&leased.token, &Settlement::Ack).await;
        state.lock().unwrap().note(id, &format!("ack: {acked:?}"));
        match acked {
            // The first time it was accepted.
            Err(SettleError::Lost) if !is_unsure => {
                state.lock().unwrap().report.lost += 1;
                return;
            }
            Ok(_) | Err(SettleError::Lost) => {
                let name = String::from_utf8_lossy(leased.message.payload()).into_owned();
                let mut state = state.lock().unwrap();
                if acked.is_ok() {
                    state.acked.insert(id, Utc::now());
                }
                state.live.remove(&id);
                state.report.done += usize::from(state.done.insert(name));
                return;
            }
            Err(_) => {
                is_unsure = true;
                sleep(Duration::from_millis(5)).await;
            }
        }
    }
}
