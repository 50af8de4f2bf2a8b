//! The page: Markdown tables between two marks. The text around the marks is kept.

use std::fmt::Write as _;

use anyhow::Context as _;
use msgbus_load::Report;

use super::{
    Findings, Runs,
    contender::Contender,
    count::Count,
    figures::{count, growth, median, rate, server_cpu, time},
    goals,
    work::Work,
};
use crate::micro::Measure;

const BEGIN: &str =
    "<!-- measured: from here to the end mark this is written by msgbus-bench compare -->";
const END: &str = "<!-- measured: end -->";

/// The initial page.
pub(super) const EMPTY: &str = concat!(
    "# Performance\n\n",
    "<!-- measured: from here to the end mark this is written by msgbus-bench compare -->\n",
    "<!-- measured: end -->\n"
);

/// Replaces the measurements in a page.
pub(super) fn renew(page: &str, measured: &str) -> anyhow::Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("the page has no begin mark")?;
    let (_, after) = rest.split_once(END).context("the page has no end mark")?;
    Ok(format!("{before}{BEGIN}\n\n{measured}\n{END}{after}"))
}

/// Formats all results.
pub(super) fn text(findings: &Findings) -> String {
    let mut text = machine(findings);
    text.push_str("\n## Goals\n\n| work | goal | found | |\n|---|---|---|---|\n");
    for goal in goals::all(findings) {
        let verdict = if goal.is_met { "met" } else { "**not met**" };
        let _ = writeln!(text, "| {} | {} | {} | {verdict} |", goal.work, goal.wanted, goal.found);
    }
    for works in findings.works.chunk_by(|(one, _), (other, _)| one.title == other.title) {
        text.push_str(&match works {
            [(work, found)] if work.point.is_none() => chapter(work, found),
            points => axis(points),
        });
    }
    if !findings.counts.is_empty() {
        text.push_str(
            "\n## Threads: instructions and locks of one operation\n\n\
             Counted by valgrind, without the kernel. *Atomic* are all instructions that take a cache line \
             for themselves; *locks* those of them that take a lock.\n\n\
             | operation | threads | instructions | atomic | locks |\n|---|--:|--:|--:|--:|\n",
        );
        for Count { work, threads, instructions, atomics, locks } in &findings.counts {
            let _ = writeln!(
                text,
                "| {work} | {threads} | {instructions:.0} | {atomics:.1} | {locks:.1} |"
            );
        }
    }
    if !findings.micro.is_empty() {
        text.push_str(
            "\n## The engine alone\n\n| operation | median | least | |\n|---|--:|--:|---|\n",
        );
        for Measure { name, unit, value, min } in &findings.micro {
            let _ = writeln!(text, "| {name} | {value:.1} | {min:.1} | {unit} |");
        }
    }
    text
}

fn machine(findings: &Findings) -> String {
    let line = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
        line.and_then(|line| {
            Some(line.split_once([':', '='])?.1.trim().trim_matches('"').to_owned())
        })
        .unwrap_or_else(|| "unknown".to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "Measured on {cores} cores ({}), Linux {}, {}; client and server share them. \
         Beside each other: {}.\n\n\
         Only what stands in one table can be compared: the machine, and what else it does, make the \
         figures. Each is the median of all runs; a ratio is the median of the ratios of runs that were \
         done one after the other. *CPU* is the processor time of the server for each operation.\n",
        line("/proc/cpuinfo", "model name"),
        kernel.trim(),
        line("/etc/os-release", "PRETTY_NAME"),
        findings.versions.join("; "),
    )
}

fn chapter(work: &Work, found: &[(Contender, Vec<Report>)]) -> String {
    let title = work.title;
    let table = table(work, found);
    format!("\n## {title}\n\n![{title}](charts/{}.svg)\n\n{table}", work.key)
}

/// One table for several works of a kind, each next to its yardstick.
fn axis(points: &[(Work, Runs)]) -> String {
    let Some((work, found)) = points.first() else { return String::new() };
    let (title, name) = (work.title, yardstick(found).map_or("the limit", |(name, _)| name));
    let mut text = format!(
        "\n## {title}\n\n| | server | a second | of {name} | CPU | of {name} | p50 | p99 | p99.9 | wrong |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for (work, found) in points {
        let yardstick = yardstick(found).map_or(&[][..], |(_, reports)| reports);
        for (contender, reports) in found {
            let point = work.point.unwrap_or_default();
            let _ = writeln!(text, "| {point} | {} {}", contender.name(), row(reports, yardstick));
        }
    }
    text
}

fn table(work: &Work, found: &[(Contender, Vec<Report>)]) -> String {
    let (head, rows): (_, Vec<String>) = match yardstick(found) {
        _ if work.is_about_memory() => (
            "| server | bytes each | CPU each | resident |\n|---|--:|--:|--:|\n".to_owned(),
            found.iter().map(|(_, reports)| memory_row(reports)).collect(),
        ),
        Some((name, yardstick)) => (
            format!(
                "| server | a second | of {name} | CPU | of {name} | p50 | p99 | p99.9 | wrong |\n\
                 |---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
            ),
            found.iter().map(|(_, reports)| row(reports, yardstick)).collect(),
        ),
        None => (
            "| server | a second | CPU |\n|---|--:|--:|\n".to_owned(),
            found.iter().map(|(_, reports)| plain_row(reports)).collect(),
        ),
    };
    let mut text = head;
    for ((contender, _), row) in found.iter().zip(rows) {
        let _ = writeln!(text, "| {} {row}", contender.name());
    }
    text
}

/// The reference for the other rows: the server that sets the limit, msgbusd without options, or the first variant.
fn yardstick(found: &[(Contender, Vec<Report>)]) -> Option<(&'static str, &[Report])> {
    match found {
        [_, (Contender::Bare(_) | Contender::Native(_), limit), ..] => Some(("the limit", limit)),
        [.., (Contender::Msgbusd, plain)] if found.len() > 2 => Some(("plain", plain)),
        [(Contender::Msgbusd, plain), (Contender::With(_), _), ..]
        | [(Contender::With(_), _), (Contender::Msgbusd, plain), ..] => Some(("plain", plain)),
        [(Contender::With(_), first), ..] => Some(("the first", first)),
        _ => None,
    }
}

fn plain_row(reports: &[Report]) -> String {
    format!(
        "| {} | {} |",
        count(median(reports.iter().map(rate))),
        time(median(reports.iter().map(server_cpu)))
    )
}

fn row(reports: &[Report], yardstick: &[Report]) -> String {
    let pairs = || reports.iter().zip(yardstick);
    let of_rate = median(pairs().map(|(own, other)| own.rate / other.rate));
    let of_cpu = median(pairs().map(|(own, other)| server_cpu(own) / server_cpu(other)));
    let latency = |pick: fn(&msgbus_load::Percentiles) -> f64| {
        time(median(reports.iter().filter_map(|report| report.latency.as_ref()).map(pick)))
    };
    let wrong: u64 = reports
        .iter()
        .map(|report| report.accounts)
        .map(|a| a.lost + a.repeated + a.reordered + a.refused)
        .sum();
    format!(
        "| {} | {of_rate:.2} | {} | {of_cpu:.2} | {} | {} | {} | {wrong} |",
        count(median(reports.iter().map(rate))),
        time(median(reports.iter().map(server_cpu))),
        latency(|l| l.p50),
        latency(|l| l.p99),
        latency(|l| l.p999),
    )
}

#[expect(clippy::cast_precision_loss, reason = "bytes of one thing")]
fn memory_row(reports: &[Report]) -> String {
    let resident = reports.iter().filter_map(|report| Some(report.server?.resident as f64 / 1e6));
    format!(
        "| {:.0} | {} | {:.1} MB |",
        median(reports.iter().map(growth)),
        time(median(reports.iter().map(server_cpu))),
        median(resident)
    )
}
