//! What a run has found out.

use std::{io, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{load::Target, process::Server};

/// The findings of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// How long the work took, in seconds.
    pub seconds: f64,
    /// What was done: messages published, pulled or delivered, or connections opened.
    pub operations: u64,
    /// `operations` in a second.
    pub rate: f64,
    /// How long each took: a request until its answer, a message from its publishing until it was
    /// received. In microseconds.
    pub latency: Option<Percentiles>,
    /// What became of the messages.
    pub accounts: Accounts,
    /// What it cost the server, where its processes are known.
    pub server: Option<Cost>,
    /// What it cost the load generator.
    pub generator: Option<Cost>,
}

/// A distribution, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// What became of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Accounts {
    /// Messages that the server has accepted.
    pub published: u64,
    /// Messages that were received, by all subscribers together.
    pub received: u64,
    /// Messages that should have been received, and were not.
    pub lost: u64,
    /// Messages that were received again.
    pub repeated: u64,
    /// Messages that came behind later ones of the same publisher.
    pub reordered: u64,
    /// Requests that the server refused.
    pub refused: u64,
    /// Pulls that found nothing.
    pub empty: u64,
}

/// What a run cost a process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Processor time for each operation, in microseconds.
    pub cpu_per_operation: f64,
    /// Memory at the end, in bytes.
    pub resident: u64,
    /// How much more memory that is than at the beginning, in bytes.
    pub growth: i64,
}

/// Measures what processes use while something runs.
#[derive(Debug)]
struct Meter {
    server: Server,
    processor_time: Duration,
    resident: u64,
}

impl Meter {
    fn start(server: &Server) -> io::Result<Self> {
        Ok(Self {
            processor_time: server.processor_time()?,
            resident: server.resident()?,
            server: server.clone(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
    fn stop(self, operations: u64) -> io::Result<Cost> {
        let used = self.server.processor_time()?.saturating_sub(self.processor_time);
        let resident = self.server.resident()?;
        Ok(Cost {
            cpu_per_operation: used.as_secs_f64() * 1e6 / operations.max(1) as f64,
            resident,
            growth: resident.cast_signed() - self.resident.cast_signed(),
        })
    }
}

/// What is measured beside the work.
#[derive(Debug)]
pub(crate) struct Meters {
    server: Option<Meter>,
    generator: Option<Meter>,
}

impl Meters {
    pub(crate) fn start(target: &Target) -> io::Result<Self> {
        Ok(Self {
            server: target.server.as_ref().map(Meter::start).transpose()?,
            // Nobody has asked for it: where it cannot be known, it is left out.
            generator: Meter::start(&Server::own()).ok(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
    pub(crate) fn report(
        self,
        time: Duration,
        operations: u64,
        accounts: Accounts,
        latencies: &Latencies,
    ) -> io::Result<Report> {
        Ok(Report {
            seconds: time.as_secs_f64(),
            operations,
            rate: operations as f64 / time.as_secs_f64(),
            latency: latencies.percentiles(),
            accounts,
            server: self.server.map(|meter| meter.stop(operations)).transpose()?,
            generator: self.generator.and_then(|meter| meter.stop(operations).ok()),
        })
    }
}

/// A distribution in the making.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// In nanoseconds.
    histogram: Histogram<u64>,
}

impl Latencies {
    const LONGEST: u64 = 100_000_000_000;
    const DIGITS: u8 = 3;

    pub(crate) fn new() -> Self {
        #[expect(clippy::unwrap_used, reason = "the bounds are constants that the library takes")]
        let histogram = Histogram::new_with_max(Self::LONGEST, Self::DIGITS).unwrap();
        Self { histogram }
    }

    /// Enters a time in nanoseconds.
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.histogram.saturating_record(nanoseconds);
    }

    #[expect(clippy::cast_precision_loss, reason = "three digits are kept")]
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let microseconds = |value: u64| value as f64 / 1e3;
        let at = |quantile| microseconds(self.histogram.value_at_quantile(quantile));
        (!self.histogram.is_empty()).then(|| Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: microseconds(self.histogram.max()),
        })
    }
}
