//! Counts the instructions and locks of an operation with valgrind. Other load on the machine does not
//! affect these figures, and locks show before they are contended.
//!
//! Valgrind runs one thread at a time, so it shows how often a lock is taken, but not how long threads wait
//! for it. The kernel's instructions are not counted.

mod atomics;
mod profile;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use msgbus_load::Report;
use tokio::{runtime, task::LocalSet};

use self::{atomics::Kind, profile::Profile};
use super::{contender::Contender, work::Work, works};
use crate::running::Running;

/// The totals of a run.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    operations: f64,
    instructions: f64,
    atomics: f64,
    locks: f64,
}

/// The cost of one operation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Count {
    pub(super) work: &'static str,
    pub(super) threads: usize,
    /// Instructions of the server, without the kernel.
    pub(super) instructions: f64,
    /// Atomic instructions: locks, counters and reference counts.
    pub(super) atomics: f64,
    /// How often a mutex or a reader-writer lock is taken.
    pub(super) locks: f64,
}

/// The second run does this many times the work of the first. The difference contains no fixed costs, like
/// those of the start.
const TIMES: u64 = 3;

/// Counts for each number of threads. Empty if a tool is not installed.
pub(super) fn all(note: &dyn Fn(&str)) -> anyhow::Result<Vec<Count>> {
    const TOOLS: [&str; 3] = ["valgrind", "objdump", "addr2line"];
    for tool in TOOLS {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            note(&format!("{tool} is not installed: instructions and locks are not counted"));
            return Ok(Vec::new());
        }
    }
    note("msgbusd with line tables, for counting");
    let program = build()?;
    let mut kinds = BTreeMap::new();
    let mut counts = Vec::new();
    for work in works::counted() {
        for threads in [1, 2, 8] {
            note(&format!("counting: {}, {threads} threads", work.title));
            let few = run(&program, &work, 1, threads, &mut kinds)?;
            let many = run(&program, &work, TIMES, threads, &mut kinds)?;
            let each =
                |of: fn(&Taken) -> f64| (of(&many) - of(&few)) / (many.operations - few.operations);
            counts.push(Count {
                work: work.title,
                threads,
                instructions: each(|taken| taken.instructions),
                atomics: each(|taken| taken.atomics),
                locks: each(|taken| taken.locks),
            });
        }
    }
    Ok(counts)
}

/// Builds the release program with line tables, in a separate folder.
fn build() -> anyhow::Result<PathBuf> {
    let folder = env::current_exe()?.with_file_name("counted");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--locked", "-p", "msgbusd", "--target-dir"])
        .arg(&folder)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "msgbusd cannot be built");
    Ok(folder.join("release/msgbusd"))
}

/// The kinds of atomic instructions, by object and address.
type Kinds = BTreeMap<String, BTreeMap<u64, Kind>>;

fn run(
    program: &Path,
    work: &Work,
    times: u64,
    threads: usize,
    kinds: &mut Kinds,
) -> anyhow::Result<Taken> {
    let mut running = Running::start("msgbusd in valgrind", |port, folder| {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--dump-instr=yes", "--dump-line=no"]);
        // Fair scheduling; otherwise one thread may do the work of all eight.
        command.args(["--compress-strings=no", "--compress-pos=no", "--fair-sched=yes"]);
        command.arg(format!("--callgrind-out-file={}", folder.join("profile").display()));
        command.arg(program).args(["--bind", &format!("127.0.0.1:{port}")]);
        command.args(["--threads", &threads.to_string()]);
        Ok(command)
    })?;
    let target = Contender::Msgbusd.target(&running)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let work = work.clone().with(|load| load.messages *= times);
    let report: Report =
        LocalSet::new().block_on(&runtime, work.run(&target, Contender::Msgbusd))?;
    ensure!(running.stop().is_some_and(|status| status.success()), "{}", running.log());
    let profile = fs::read_to_string(running.folder().join("profile"))?;
    let profile = Profile::parse(&profile).context("cannot parse the profile")?;
    taken(&report, &profile, program, kinds)
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn taken(
    report: &Report,
    profile: &Profile,
    program: &Path,
    kinds: &mut Kinds,
) -> anyhow::Result<Taken> {
    let mut taken = Taken {
        operations: report.operations as f64,
        instructions: profile.total as f64,
        ..Taken::default()
    };
    for (object, addresses) in &profile.objects {
        if !kinds.contains_key(object) {
            let lines = Path::new(object) == program;
            kinds.insert(object.clone(), atomics::find(object, lines)?);
        }
        for (address, times) in addresses {
            match kinds[object].get(address) {
                Some(Kind::Lock) => {
                    taken.locks += *times as f64;
                    taken.atomics += *times as f64;
                }
                Some(Kind::Other) => taken.atomics += *times as f64,
                None => {}
            }
        }
    }
    Ok(taken)
}
