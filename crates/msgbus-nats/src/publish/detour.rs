//! The way through the connection of the engine, for what cannot be sent on that of its runtime.

use std::sync::Arc;

use super::{Pending, queue::Queue};

/// For one runtime.
pub(super) struct Detour {
    to: Arc<Queue>,
    /// All that take it and are not answered share it.
    taken: Arc<()>,
}

impl Detour {
    pub(super) fn new(to: Arc<Queue>) -> Self {
        Self { to, taken: Arc::default() }
    }

    pub(super) fn take(&self, publishes: impl IntoIterator<Item = Pending>) {
        for mut publish in publishes {
            publish.detour = Some(Arc::clone(&self.taken));
            self.to.push(publish);
        }
    }

    /// Whether some are on the way: others must not overtake them.
    pub(super) fn is_taken(&self) -> bool {
        Arc::strong_count(&self.taken) > 1
    }
}
