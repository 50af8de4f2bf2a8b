//! The runtimes from which messages are sent. A publish leaves from the runtime in which it is made, if it can: the way to
//! another thread and back takes longer than the publish itself.

use std::{collections::HashMap, sync::Arc};

use tokio::runtime::{Handle, Id};

use crate::together::Together;

/// What waits to be sent, for each of these runtimes.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Of the runtime of the engine.
    own: Arc<Together>,
    others: HashMap<Id, Arc<Together>>,
}

impl Lanes {
    pub(crate) fn new(own: Handle, others: &[Handle]) -> Self {
        let lane = |runtime: &Handle| (runtime.id(), Arc::new(Together::new(runtime.clone())));
        Self { own: Arc::new(Together::new(own)), others: others.iter().map(lane).collect() }
    }

    /// That of the current runtime, or of the engine if there is none.
    pub(crate) fn here(&self) -> &Arc<Together> {
        if self.others.is_empty() {
            return &self.own;
        }
        let here = Handle::try_current().ok().and_then(|here| self.others.get(&here.id()));
        here.unwrap_or(&self.own)
    }
}
