//! `msgbus-bench`: measures or stress-tests msgbus, and prints the results.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use msgbus_bench::{compare, micro, soak};
use pico_args::Arguments;

const USAGE: &str = "\
usage: msgbus-bench COMMAND

  micro [--quick] [--json] [FILTER]   measures the engine alone: time and memory of each operation whose
                                      name contains FILTER
  compare [--quick] [--runs N] [--to FOLDER] [FILTER]
                                      runs the same work on msgbusd, on bare servers, and on nginx with
                                      nchan, redis-server and nats-server if they are installed. Prints the
                                      results, and without FILTER writes them to FOLDER/performance.md [docs]
  soak [--minutes N] [--seed S] [--tls] [--data] [--engine nats|redis]
                                      runs clients of every kind, well-behaved or not, against msgbusd with
                                      low limits for N minutes [5]; then accounts for every message, for
                                      memory and for open files. With --data topics are durable, and the
                                      server is killed after each round. With --engine topics live in
                                      nats-server or redis-server, two servers share them, and all of them
                                      are killed and restarted all the time. Exits with 1 if an invariant is
                                      violated
";

fn main() -> anyhow::Result<ExitCode> {
    let mut args = Arguments::from_env();
    let command = args.subcommand()?;
    let report = match command.as_deref() {
        Some("micro") => micro_report(args)?,
        Some("compare") => comparison(args)?,
        Some("soak") => return soak_report(args),
        None => USAGE.to_owned(),
        Some(other) => bail!("no such command: {other}\n{USAGE}"),
    };
    print(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn print(report: &str) -> anyhow::Result<()> {
    io::stdout().write_all(report.as_bytes()).context("cannot print")
}

fn micro_report(mut args: Arguments) -> anyhow::Result<String> {
    let json = args.contains("--json");
    let mut options = micro::Options { quick: args.contains("--quick"), ..Default::default() };
    options.filter = args.opt_free_from_str()?.unwrap_or_default();
    end(args)?;
    let measures = micro::run(&options);
    Ok(if json { serde_json::to_string(&measures)? + "\n" } else { micro::table(&measures) })
}

fn comparison(mut args: Arguments) -> anyhow::Result<String> {
    let quick = args.contains("--quick");
    let runs = args.opt_value_from_str("--runs")?.unwrap_or(if quick { 1 } else { 3 });
    let to: Option<PathBuf> = args.opt_value_from_str("--to")?;
    let filter: String = args.opt_free_from_str()?.unwrap_or_default();
    end(args)?;
    // By default the page is written only by complete runs that are not quick.
    let folder = to.or((!quick && filter.is_empty()).then(|| PathBuf::from("docs")));
    compare::run(&compare::Options { quick, runs, filter, folder })
}

fn soak_report(mut args: Arguments) -> anyhow::Result<ExitCode> {
    let minutes = args.opt_value_from_str("--minutes")?.unwrap_or(5.0);
    let seed = args.opt_value_from_str("--seed")?.unwrap_or_else(|| fastrand::u64(..));
    let tls = args.contains("--tls");
    let data = args.contains("--data");
    let engine = args.opt_value_from_str("--engine")?;
    end(args)?;
    let result = soak::run(&soak::Options { minutes, seed, tls, data, engine })?;
    print(&result.report)?;
    Ok(if result.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Rejects arguments that were not read.
fn end(args: Arguments) -> anyhow::Result<()> {
    match args.finish().first() {
        Some(rest) => bail!("unexpected argument: {}\n{USAGE}", rest.display()),
        None => Ok(()),
    }
}
