//! What `/stats` says.

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use msgbus_core::TopicName;
use parking_lot::Mutex;
use serde::Serialize;

use super::{
    FUNCTIONS,
    command::{ERROR, EXCEPTION},
};
use crate::{
    auth::{Action, Permission},
    dialogue::Client,
    service::requests,
};

/// The maximum number of actions that are counted. Peers choose their names.
const MAX_ACTIONS: usize = 1_000;

/// What all connections of the door share.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(super) connections: AtomicUsize,
    commands: Mutex<Counts>,
}

/// How the commands of each action ended.
#[derive(Debug, Default)]
pub(super) struct Counts(HashMap<TopicName, Count>);

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Count {
    errors: u64,
    exceptions: u64,
    success: u64,
}

impl Counts {
    /// Counts the answer to a command.
    pub(super) fn add(&mut self, action: &TopicName, answer: &str) {
        let Some(count) = self.count(action) else { return };
        match answer {
            ERROR => count.errors += 1,
            EXCEPTION => count.exceptions += 1,
            _ => count.success += 1,
        }
    }

    fn count(&mut self, action: &TopicName) -> Option<&mut Count> {
        if self.0.len() >= MAX_ACTIONS && !self.0.contains_key(action) {
            return None;
        }
        Some(self.0.entry(action.clone()).or_default())
    }
}

#[derive(Serialize)]
struct Page<'a> {
    hostname: &'a str,
    connections: Connections,
    commands: BTreeMap<&'a str, Count>,
    functions: Vec<&'a str>,
}

#[derive(Serialize)]
struct Connections {
    inbound: usize,
}

impl Stats {
    /// Adds what one connection has counted.
    pub(super) fn take(&self, counts: &mut Counts) {
        if counts.0.is_empty() {
            return;
        }
        let mut all = self.commands.lock();
        for (action, Count { errors, exceptions, success }) in counts.0.drain() {
            if let Some(sum) = all.count(&action) {
                sum.errors += errors;
                sum.exceptions += exceptions;
                sum.success += success;
            }
        }
    }

    /// As JSON: what the client may inspect.
    pub(super) fn to_json(&self, client: &Client) -> String {
        let principal = client.principal.as_deref();
        let may =
            |name| principal.is_none_or(|some| some.can(Permission::Topic(Action::Inspect, name)));
        let services = requests::services(&client.worker, principal);
        let served = services.iter().filter(|service| client.worker.bus.is_served(&service.name));
        let mut functions: Vec<_> = served.map(|service| service.name.as_str()).collect();
        functions.extend(FUNCTIONS);
        functions.sort_unstable();
        let commands = self.commands.lock();
        let counted = commands.0.iter().filter(|(action, _)| may(action));
        let page = Page {
            hostname: &hostname(),
            connections: Connections { inbound: self.connections.load(Relaxed) },
            commands: counted.map(|(action, count)| (action.as_str(), *count)).collect(),
            functions,
        };
        // It cannot fail: all keys are texts.
        serde_json::to_string(&page).unwrap_or_default()
    }
}

fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    name.or_else(|| env::var("HOSTNAME").ok()).unwrap_or_default().trim().to_owned()
}
