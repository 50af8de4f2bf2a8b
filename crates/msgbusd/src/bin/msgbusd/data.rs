//! `msgbusd data`.

use std::{
    io::{self, BufWriter, ErrorKind, Write as _},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use msgbus_core::{Message, TopicName, json};
use msgbus_store::{RecoveryReport, StoreOptions};
use msgbusd::{config::DataCommand, logging::counted};

/// Runs a command, and prints its result to standard output.
///
/// # Errors
/// When the directory cannot be used, or standard output not be written to.
pub(crate) fn run(command: &DataCommand) -> anyhow::Result<ExitCode> {
    match command {
        DataCommand::Check { directory } => check(&msgbus_store::check(directory)?),
        DataCommand::Backup { directory, target } => {
            check(&msgbus_store::backup(directory, target)?)
        }
        DataCommand::Dump { directory, topic, since } => dump(directory, topic.as_ref(), *since),
        DataCommand::Compact { directory } => {
            let (before, after) = msgbus_store::compact(directory, StoreOptions::default())?;
            print(&format!("{before} bytes before, {after} bytes now\n"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Prints what was found, and fails if something is damaged.
fn check(report: &RecoveryReport) -> anyhow::Result<ExitCode> {
    print(&summary(report))?;
    Ok(if report.skipped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(report: &RecoveryReport) -> String {
    let mut text = String::new();
    for damage in &report.skipped {
        let (file, problem) = (damage.file.display(), &damage.problem);
        text += &format!(
            "{file}: damaged at offset {}, {}: {problem}\n",
            damage.offset,
            counted(damage.bytes, "byte")
        );
    }
    if let Some(torn) = &report.torn_tail {
        let file = torn.file.display();
        text += &format!(
            "{file}: an unfinished write at offset {}, {}; the next start removes it\n",
            torn.offset,
            counted(torn.bytes, "byte")
        );
    }
    text + &format!(
        "{} in {}, {}: {} in {}{}; {}\n",
        counted(report.records, "record"),
        counted(report.segments as u64, "file"),
        counted(report.bytes, "byte"),
        counted(report.messages, "message"),
        counted(report.topics as u64, "topic"),
        match report.groups {
            0 => String::new(),
            groups => format!(
                ", {} leased or waiting in {}",
                counted(report.open_messages, "message"),
                counted(groups as u64, "group")
            ),
        },
        match report.skipped.len() {
            0 => "all records are good".to_owned(),
            1 => "1 part is damaged".to_owned(),
            count => format!("{count} parts are damaged"),
        }
    )
}

fn dump(
    directory: &Path,
    topic: Option<&TopicName>,
    since: Option<DateTime<Utc>>,
) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut line = Vec::new();
    let mut failed = None;
    let report = msgbus_store::dump(directory, topic, &mut |info, kept| {
        if since.is_some_and(|since| kept.created < since) {
            return true;
        }
        line.clear();
        json::write_recovered(&mut line, &Message::recovered(&Arc::new(info.clone()), kept));
        line.push(b'\n');
        failed = out.write_all(&line).err();
        failed.is_none()
    })?;
    match failed.map_or_else(|| out.flush(), Err) {
        // Whoever reads has enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        written => written.context("cannot write to standard output")?,
    }
    if report.skipped.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("left out what is damaged; see msgbusd data check {}", directory.display())
}

fn print(text: &str) -> anyhow::Result<()> {
    super::write(io::stdout(), text).context("cannot write to standard output")
}
