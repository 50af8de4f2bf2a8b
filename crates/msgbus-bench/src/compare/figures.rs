//! Figures of runs, and their formatting.

use msgbus_load::Report;

/// Operations per second.
pub(super) fn rate(report: &Report) -> f64 {
    report.rate
}

/// The median latency, in microseconds.
pub(super) fn p50(report: &Report) -> f64 {
    report.latency.map_or(f64::NAN, |latency| latency.p50)
}

/// The 99th percentile of the latency, in microseconds.
pub(super) fn p99(report: &Report) -> f64 {
    report.latency.map_or(f64::NAN, |latency| latency.p99)
}

/// The growth of the server's memory per operation, in bytes.
#[expect(clippy::cast_precision_loss, reason = "bytes of one thing")]
pub(super) fn growth(report: &Report) -> f64 {
    report.server.map_or(f64::NAN, |cost| cost.growth as f64 / report.operations as f64)
}

/// The server's processor time per operation, in microseconds.
pub(super) fn server_cpu(report: &Report) -> f64 {
    report.server.map_or(f64::NAN, |cost| cost.cpu_per_operation)
}

/// The median; NaN if there are no values.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Formats a time in microseconds with a suitable unit.
pub(super) fn time(microseconds: f64) -> String {
    match microseconds {
        us if us.is_nan() => "-".to_owned(),
        us if us < 10.0 => format!("{us:.2} us"),
        us if us < 1e3 => format!("{us:.0} us"),
        us => format!("{:.1} ms", us / 1e3),
    }
}

/// Formats a number with about three digits.
pub(super) fn count(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}
