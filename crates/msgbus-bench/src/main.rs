//! `msgbus-bench`: measures msgbus, or wears it, and prints what it found.

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

  micro [--quick] [--json] [FILTER]   the engine alone: time and memory for each operation whose name
                                      contains FILTER
  compare [--quick] [--runs N] [--to FOLDER] [FILTER]
                                      the same work on msgbusd, on bare servers, and on nginx with nchan,
                                      redis-server and nats-server where they are there. Prints what it
                                      found, and without FILTER writes it to FOLDER/performance.md [docs]
  soak [--minutes N] [--seed S] [--tls]
                                      every kind of client, decent or not, against msgbusd with small bounds
                                      for so many minutes [5]; then accounts for every message, and for
                                      memory and open files. Exit 1 when a book does not balance
";

fn main() -> anyhow::Result<ExitCode> {
    let mut args = Arguments::from_env();
    let command = args.subcommand()?;
    let report = match command.as_deref() {
        Some("micro") => micro_report(args)?,
        Some("compare") => comparison(args)?,
        Some("soak") => return worn(args),
        None => USAGE.to_owned(),
        Some(other) => bail!("there is no {other}\n{USAGE}"),
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
    // A page is whole, and not made in a hurry, unless it was asked for.
    let folder = to.or((!quick && filter.is_empty()).then(|| PathBuf::from("docs")));
    compare::run(&compare::Options { quick, runs, filter, folder })
}

fn worn(mut args: Arguments) -> anyhow::Result<ExitCode> {
    let minutes = args.opt_value_from_str("--minutes")?.unwrap_or(5.0);
    let seed = args.opt_value_from_str("--seed")?.unwrap_or_else(|| fastrand::u64(..));
    let tls = args.contains("--tls");
    end(args)?;
    let worn = soak::run(&soak::Options { minutes, seed, tls })?;
    print(&worn.report)?;
    Ok(if worn.balances { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that was said has to have been understood.
fn end(args: Arguments) -> anyhow::Result<()> {
    match args.finish().first() {
        Some(rest) => bail!("what is {}?\n{USAGE}", rest.display()),
        None => Ok(()),
    }
}
