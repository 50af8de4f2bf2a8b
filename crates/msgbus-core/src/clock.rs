//! One reading of both clocks.

use std::time::Instant;

use chrono::{DateTime, Utc};

/// A moment, as the rules need it: on the monotonic clock for deciding, on the wall for showing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) utc: DateTime<Utc>,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self { instant: Instant::now(), utc: Utc::now() }
    }
}
