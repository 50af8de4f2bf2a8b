//! The results of a run.

use std::{io, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{load::Target, process::Server};

/// The results of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The duration of the run, in seconds.
    pub seconds: f64,
    /// The number of messages published, pulled or delivered, or of connections opened.
    pub operations: u64,
    /// `operations` per second.
    pub rate: f64,
    /// The latency of a request until its response, or of a message from its publish until it was
    /// received, in microseconds.
    pub latency: Option<Percentiles>,
    /// The message counts.
    pub accounts: Accounts,
    /// The resource use of the server, if its processes are known.
    pub server: Option<Cost>,
    /// The resource use of the load generator.
    pub generator: Option<Cost>,
}

/// A distribution, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are clear")]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// The message counts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Accounts {
    /// Messages that the server accepted.
    pub published: u64,
    /// Messages received, summed over all subscribers.
    pub received: u64,
    /// Messages that should have been received but were not.
    pub lost: u64,
    /// Messages received more than once.
    pub repeated: u64,
    /// Messages received after later ones of the same publisher.
    pub reordered: u64,
    /// Requests that the server rejected.
    pub refused: u64,
    /// Pulls that returned no message.
    pub empty: u64,
}

/// The resource use of processes during a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Processor time per operation, in microseconds.
    pub cpu_per_operation: f64,
    /// Resident memory at the end, in bytes.
    pub resident: u64,
    /// The growth of the resident memory during the run, in bytes.
    pub growth: i64,
}

/// Measures the resource use of processes during a run.
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

    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
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

/// The measurements of a run besides its operations.
#[derive(Debug)]
pub(crate) struct Meters {
    server: Option<Meter>,
    generator: Option<Meter>,
}

impl Meters {
    pub(crate) fn start(target: &Target) -> io::Result<Self> {
        Ok(Self {
            server: target.server.as_ref().map(Meter::start).transpose()?,
            // Optional: omitted if the system does not report it.
            generator: Meter::start(&Server::own()).ok(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
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

/// A histogram of latencies.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// In nanoseconds.
    histogram: Histogram<u64>,
}

impl Latencies {
    const MAX_NANOSECONDS: u64 = 100_000_000_000;
    const SIGNIFICANT_DIGITS: u8 = 3;

    pub(crate) fn new() -> Self {
        #[expect(clippy::unwrap_used, reason = "the constants are valid bounds")]
        let histogram =
            Histogram::new_with_max(Self::MAX_NANOSECONDS, Self::SIGNIFICANT_DIGITS).unwrap();
        Self { histogram }
    }

    /// Records a time in nanoseconds.
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
