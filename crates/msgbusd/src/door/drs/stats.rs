//! What `/stats` says.

use std::{
    collections::BTreeMap,
    env, fs,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use msgbus_core::TopicName;
use parking_lot::Mutex;
use serde::Serialize;

use super::command::{ERROR, EXCEPTION, RESPONSE};
use crate::{
    auth::{Action, Permission},
    dialogue::{Client, names::topic},
    service::requests,
};

/// The maximum number of actions that are counted.
const MAX_ACTIONS: usize = 1_000;
/// What the server itself answers.
const FUNCTIONS: [&str; 6] =
    ["auth.upgrade", "drs.kaboom", "drs.off", "drs.ping", "drs.serve", "drs.subscribe"];

/// What all connections of the door share.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(super) connections: AtomicUsize,
    commands: Mutex<BTreeMap<Box<str>, Count>>,
}

/// How the commands of an action ended.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Count {
    errors: u64,
    exceptions: u64,
    success: u64,
}

impl Stats {
    /// Counts the answer to a command. Peers choose the names of actions, so one that never had success is not counted.
    pub(super) fn count(&self, action: &str, answer: &str) {
        let mut commands = self.commands.lock();
        if answer == RESPONSE && commands.len() < MAX_ACTIONS && !commands.contains_key(action) {
            commands.insert(action.into(), Count::default());
        }
        let Some(count) = commands.get_mut(action) else { return };
        match answer {
            ERROR => count.errors += 1,
            EXCEPTION => count.exceptions += 1,
            _ => count.success += 1,
        }
    }

    /// As JSON: what the client may inspect.
    pub(super) fn to_json(&self, client: &Client) -> String {
        #[derive(Serialize)]
        struct Page<'a> {
            hostname: &'a str,
            connections: BTreeMap<&'a str, usize>,
            commands: BTreeMap<&'a str, Count>,
            functions: Vec<&'a str>,
        }
        let services = requests::services(&client.worker, client.principal.as_deref());
        let served = services.iter().filter(|service| client.worker.bus.is_served(&service.name));
        let mut functions: Vec<_> = served.map(|service| service.name.as_str()).collect();
        functions.extend(FUNCTIONS);
        functions.sort_unstable();
        let may_inspect = |name: TopicName| client.can(Permission::Topic(Action::Inspect, &name));
        let commands = self.commands.lock();
        let counted = commands.iter().filter(|(action, _)| topic(action).is_ok_and(may_inspect));
        let page = Page {
            hostname: &hostname(),
            connections: [("inbound", self.connections.load(Relaxed))].into(),
            commands: counted.map(|(action, count)| (&**action, *count)).collect(),
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
