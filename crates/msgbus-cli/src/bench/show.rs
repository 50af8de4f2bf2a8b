//! The output of a benchmark: progress, a table, JSON or CSV.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for display"
)]

use std::time::Duration;

use msgbus_load::{Cost, Percentiles, Progress, Report};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{Bench, Work};

/// Shows the progress until the future is dropped.
pub(super) async fn watch(bench: &Bench, progress: &Progress) {
    const WIDTH: u64 = 30;
    let receivers = match bench.work {
        Work::Fanout | Work::Latency => bench.subscribers as u64,
        _ => 1,
    };
    let begin = Instant::now();
    loop {
        sleep(Duration::from_millis(200)).await;
        let (done, time) = (progress.done(), begin.elapsed());
        // In thousandths.
        let part = match (bench.messages, bench.duration) {
            (Some(messages), _) => Some(done * 1000 / (messages * receivers).max(1)),
            (None, Some(all)) => Some((time.as_millis() * 1000 / all.as_millis().max(1)) as u64),
            (None, None) => None,
        };
        let bar = part.map_or(String::new(), |part| {
            let full = (part.min(1000) * WIDTH / 1000) as usize;
            format!("[{:<30}] {:>3}%  ", "#".repeat(full), part.min(1000) / 10)
        });
        let rate = done as f64 / time.as_secs_f64();
        anstream::eprint!("\r{bar}{} messages, {} a second ", grouped(done), grouped(rate as u64));
    }
}

pub(super) fn clear_line() {
    anstream::eprint!("\r\x1b[K");
}

pub(super) fn table(bench: &Bench, report: &Report) -> String {
    let accounts = &report.accounts;
    let what = match bench.work {
        Work::Pub => "messages published",
        Work::Pull => "messages pulled",
        Work::Sub | Work::Fanout | Work::Latency => "messages delivered",
        Work::Idle => "subscribers",
        Work::Request => "round trips",
    };
    let mut text = format!(
        "{} {what} in {:.2} s: {} a second\n",
        grouped(report.operations),
        report.seconds,
        grouped(report.rate as u64)
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10} {value}\n"));
    if let Some(Percentiles { p50, p90, p99, p999, max }) = report.latency {
        let times = [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)];
        line("latency", times.map(|(name, time)| format!("{name} {}", span(time))).join("  "));
    }
    if !matches!(bench.work, Work::Idle) {
        let counts = [
            (accounts.published, if bench.work == Work::Request { "replied" } else { "published" }),
            (accounts.received, "received"),
            (accounts.lost, "lost"),
            (accounts.repeated, "repeated"),
            (accounts.reordered, "reordered"),
            (accounts.refused, "refused"),
            (accounts.empty, "empty"),
        ];
        let shown = counts.into_iter().filter(|(count, name)| {
            *count > 0
                || bench.work != Work::Request && matches!(*name, "lost" | "repeated" | "reordered")
        });
        line(
            "messages",
            shown.map(|(n, name)| format!("{} {name}", grouped(n))).collect::<Vec<_>>().join(", "),
        );
    }
    if let Some(cost) = report.server {
        line("server", costs(&cost, report.operations, bench.work == Work::Idle));
    }
    if let Some(cost) = report.generator.filter(|_| bench.work != Work::Idle) {
        line("bench", format!("{} of processor time each", span(cost.cpu_per_operation)));
    }
    text
}

fn costs(cost: &Cost, operations: u64, is_idle: bool) -> String {
    let cpu = format!("{} of processor time each", span(cost.cpu_per_operation));
    let memory = format!("{:.1} MB resident", cost.resident as f64 / 1e6);
    let each = cost.growth as f64 / operations.max(1) as f64;
    if is_idle {
        format!("{each:.0} bytes each, {cpu}, {memory}")
    } else {
        format!("{cpu}, {memory}")
    }
}

/// Formats a time in microseconds with a suitable unit.
fn span(microseconds: f64) -> String {
    match microseconds {
        us if us < 10.0 => format!("{us:.2} us"),
        us if us < 1e3 => format!("{us:.0} us"),
        us if us < 1e6 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The settings and the results in one object.
#[derive(Serialize)]
struct Record<'a> {
    work: Work,
    clients: usize,
    subscribers: usize,
    topics: usize,
    size: usize,
    pipeline: usize,
    batch: usize,
    #[serde(flatten)]
    report: &'a Report,
}

fn record<'a>(bench: &Bench, report: &'a Report) -> Record<'a> {
    Record {
        work: bench.work,
        clients: bench.clients,
        subscribers: bench.subscribers,
        topics: bench.topics,
        size: bench.size,
        pipeline: bench.pipeline,
        batch: bench.batch,
        report,
    }
}

pub(super) fn json(bench: &Bench, report: &Report) -> String {
    // The record has string keys and nothing that can fail.
    let mut line = serde_json::to_string(&record(bench, report)).unwrap_or_default();
    line.push('\n');
    line
}

/// The same as flat columns; a nested field is named `parent_field`.
pub(super) fn csv(bench: &Bench, report: &Report) -> String {
    let mut cells = Vec::new();
    flatten("", &serde_json::to_value(record(bench, report)).unwrap_or_default(), &mut cells);
    let (names, values): (Vec<String>, Vec<String>) = cells.into_iter().unzip();
    format!("{}\n{}\n", names.join(","), values.join(","))
}

fn flatten(name: &str, value: &serde_json::Value, cells: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                let name = if name.is_empty() { key.clone() } else { format!("{name}_{key}") };
                flatten(&name, value, cells);
            }
        }
        serde_json::Value::Null => cells.push((name.to_owned(), String::new())),
        serde_json::Value::String(text) => cells.push((name.to_owned(), text.clone())),
        other => cells.push((name.to_owned(), other.to_string())),
    }
}
