//! Times operations in batches.

use std::time::{Duration, Instant};

use super::{Measure, Options};

/// Collects measures.
pub(super) struct Bench {
    options: Options,
    measures: Vec<Measure>,
}

impl Bench {
    const FEWEST_BATCHES: usize = 5;

    pub(super) fn new(options: &Options) -> Self {
        Self { options: options.clone(), measures: Vec::new() }
    }

    pub(super) fn is_quick(&self) -> bool {
        self.options.quick
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        name.contains(&self.options.filter)
    }

    /// Runs batches of `operations` until enough time has passed. A batch returns how long its operations
    /// took, without its setup and teardown.
    pub(super) fn time(
        &mut self,
        name: &str,
        operations: u32,
        mut batch: impl FnMut() -> Duration,
    ) {
        if !self.wants(name) {
            return;
        }
        let duration = Duration::from_millis(if self.is_quick() { 20 } else { 600 });
        let warm = Instant::now() + duration / 5;
        while Instant::now() < warm {
            batch();
        }
        let end = Instant::now() + duration;
        let mut times = Vec::new();
        while times.len() < Self::FEWEST_BATCHES || Instant::now() < end {
            times.push(batch());
        }
        times.sort_unstable();
        let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(operations);
        self.push(name, "ns", each(times[times.len() / 2]), each(times[0]));
    }

    pub(super) fn push(&mut self, name: &str, unit: &str, value: f64, min: f64) {
        self.measures.push(Measure { name: name.to_owned(), unit: unit.to_owned(), value, min });
    }

    pub(super) fn into_measures(self) -> Vec<Measure> {
        self.measures
    }
}

/// Measures how long `work` takes.
pub(super) fn clocked(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
