//! Runs the same work on msgbusd, on bare servers and on other installed servers, in turns.

mod axes;
mod chart;
pub(crate) mod contender;
mod count;
mod doors;
mod engines;
mod figures;
mod goals;
mod page;
pub(crate) mod peers;
mod services;
mod variants;
mod work;
mod works;

use std::{
    env, fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use msgbus_load::Report;
use tokio::{runtime, task::LocalSet};

pub use self::{contender::Contender, variants::Variant};
use self::{count::Count, work::Work};
use crate::{
    micro::Measure,
    running::{beside, build},
};

/// The options of a comparison.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether to do just enough to check that everything works.
    pub quick: bool,
    /// How many times each server runs each work.
    pub runs: usize,
    /// Runs only works whose key contains this text.
    pub filter: String,
    /// The folder for the page and its charts; `None` writes none.
    pub folder: Option<PathBuf>,
}

/// All runs of a work by each contender.
type Runs = Vec<(Contender, Vec<Report>)>;

/// All results.
#[derive(Debug, Default)]
struct Findings {
    /// By work, then by contender, in the order of the works' lists.
    works: Vec<(Work, Runs)>,
    /// How many consumers the followers of one topic in an engine were, there.
    consumers: Vec<(Contender, u64)>,
    micro: Vec<Measure>,
    counts: Vec<Count>,
    /// The size of msgbusd's release binary, in bytes.
    binary: u64,
    /// The times from msgbusd's start until it accepts connections, in milliseconds.
    startup: Vec<f64>,
    /// The version of each contender.
    versions: Vec<String>,
}

/// Runs the comparison, and returns the results as Markdown.
///
/// # Errors
/// msgbusd or a bare server fails. Other servers are skipped if they are not installed.
pub fn run(options: &Options) -> anyhow::Result<String> {
    build()?;
    // Each connection needs a file descriptor. If the limit cannot be raised, connecting fails with an error.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let mut findings =
        Findings { binary: fs::metadata(beside("msgbusd")?)?.len(), ..Findings::default() };
    let works: Vec<Work> = works::all(options.quick)
        .into_iter()
        .filter(|work| work.key.contains(&options.filter))
        .collect();
    ensure!(
        !works.is_empty() || options.filter == "count",
        "no work has {:?} in its key",
        options.filter
    );
    for work in works {
        let found = measure(&work, options, &mut findings)?;
        findings.works.push((work, found));
    }
    if options.filter.is_empty() {
        note("the engine alone");
        findings.micro = engine(options.quick)?;
    }
    if !options.quick && (options.filter.is_empty() || options.filter == "count") {
        // Last, and not fatal: a failure must not lose the other results.
        match count::all(&note) {
            Ok(counts) => findings.counts = counts,
            Err(error) => note(&format!("instructions and locks are not counted: {error:#}")),
        }
    }
    let text = page::text(&findings);
    if let Some(folder) = &options.folder {
        write(folder, &findings, &text)?;
    }
    Ok(text)
}

/// Runs the engine's benchmarks in a process of their own: memory can be measured only while the
/// allocator holds no freed memory.
fn engine(quick: bool) -> anyhow::Result<Vec<Measure>> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["micro", "--json"]);
    if quick {
        command.arg("--quick");
    }
    let output = command.output()?;
    ensure!(output.status.success(), "micro: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs a work. The contenders take turns, so that other load on the machine affects all of them alike.
fn measure(work: &Work, options: &Options, findings: &mut Findings) -> anyhow::Result<Runs> {
    let mut found = Runs::new();
    for contender in work.contenders {
        match contender.version() {
            Some(version) => {
                if !findings.versions.contains(&version) {
                    findings.versions.push(version);
                }
                found.push((*contender, Vec::new()));
            }
            None => note(&format!(
                "{}: {} is not installed or too old, skipped",
                work.key,
                contender.name()
            )),
        }
    }
    let runs = if options.quick { 1 } else { options.runs.max(work.min_runs()) };
    for run in 1..=runs {
        for (contender, reports) in &mut found {
            note(&format!("{}: {} ({run} of {runs})", work.key, contender.name()));
            let server = contender.start(work.size())?;
            if *contender == Contender::Msgbusd {
                findings.startup.push(server.startup.as_secs_f64() * 1e3);
            }
            let target = contender.target(&server)?;
            // A new runtime for each run, so that nothing is left over from the previous one.
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let report = LocalSet::new().block_on(&runtime, work.run(&target, *contender));
            let report = report.with_context(|| format!("{} at {}", contender.name(), work.key))?;
            reports.push(report);
            if work.key == engines::FOLLOWERS_KEY {
                let count = engines::consumers(*contender, &server)?;
                findings.consumers.push((*contender, count));
            }
        }
    }
    Ok(found)
}

fn write(folder: &Path, findings: &Findings, text: &str) -> anyhow::Result<()> {
    let charts = folder.join("charts");
    fs::create_dir_all(&charts)?;
    for (work, found) in findings.works.iter().filter(|(work, _)| work.point.is_none()) {
        fs::write(charts.join(format!("{}.svg", work.key)), chart::svg(work, found))?;
    }
    let path = folder.join("performance.md");
    let page = fs::read_to_string(&path).unwrap_or_else(|_| page::EMPTY.to_owned());
    fs::write(&path, page::renew(&page, text)?)?;
    note(&format!("written: {}", path.display()));
    Ok(())
}

/// Shows the progress, on a terminal or in a log.
#[expect(clippy::print_stderr, reason = "this is a command")]
fn note(text: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        if text.starts_with("written") {
            eprintln!();
        }
    } else {
        eprintln!("{text}");
    }
}
