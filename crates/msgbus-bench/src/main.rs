//! `msgbus-bench`: measures msgbus and prints what it found.

use std::io::{self, Write as _};

use anyhow::{Context as _, bail};
use msgbus_bench::micro;
use pico_args::Arguments;

const USAGE: &str = "\
usage: msgbus-bench COMMAND

  micro [--quick] [--json] [FILTER]   the engine alone: time and memory for each operation whose name
                                      contains FILTER
";

fn main() -> anyhow::Result<()> {
    let mut args = Arguments::from_env();
    let command = args.subcommand()?;
    let report = match command.as_deref() {
        Some("micro") => micro_report(args)?,
        None => USAGE.to_owned(),
        Some(other) => bail!("there is no {other}\n{USAGE}"),
    };
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

/// Everything that was said has to have been understood.
fn end(args: Arguments) -> anyhow::Result<()> {
    match args.finish().first() {
        Some(rest) => bail!("what is {}?\n{USAGE}", rest.display()),
        None => Ok(()),
    }
}
