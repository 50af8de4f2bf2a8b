//! `msgbusd data`: looks after a directory of `--data`.

use std::{ffi::OsString, path::PathBuf};

use chrono::{DateTime, Utc};
use msgbus_core::{Position, TopicName};
use pico_args::Arguments;

use super::{ConfigError, Invocation, layers::describe, values};

/// What to do with a directory of `--data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataCommand {
    /// Verify every record, and write nothing.
    Check {
        /// The directory.
        directory: PathBuf,
    },
    /// Print messages as JSON lines.
    Dump {
        /// The directory.
        directory: PathBuf,
        /// The only topic to print; `None` for all.
        topic: Option<TopicName>,
        /// The earliest time of publishing.
        since: Option<DateTime<Utc>>,
    },
    /// Copy the directory, also while a server uses it.
    Backup {
        /// The directory.
        directory: PathBuf,
        /// The directory to make.
        target: PathBuf,
    },
    /// Free the files of messages that have left.
    Compact {
        /// The directory.
        directory: PathBuf,
    },
}

const USAGE: &str = "use msgbusd data check|dump|backup|compact DIR, see msgbusd data --help";

const HELP: &str = "\
Look after a directory of --data

Usage: msgbusd data check DIR
       msgbusd data dump DIR [TOPIC] [--since TIME]
       msgbusd data backup DIR NEW_DIR
       msgbusd data compact DIR

check verifies every record and changes nothing; it ends with 1 if one is damaged.
dump prints the messages as JSON lines, oldest first; msgbus pub --from-dump publishes them again.
backup copies the directory to a new one, and verifies the copy.
compact copies what is needed and frees the rest; msgbusd must not run on the directory.
check, dump and backup may run beside msgbusd: what is written meanwhile may be missing.

Flags:
      --since TIME                  only messages published since then: 10m, or 2026-01-31T12:00:00Z
  -h, --help                        print this help

Examples:
  msgbusd data check /var/lib/msgbus
  msgbusd data dump /var/lib/msgbus orders --since 1h | msgbus pub --from-dump
";

/// Parses the arguments after `data`.
pub(super) fn parse(args: Vec<OsString>) -> Result<Invocation, ConfigError> {
    let mut args = Arguments::from_vec(args);
    if args.contains(["-h", "--help"]) {
        return Ok(Invocation::Print(HELP.to_owned()));
    }
    let since: Option<String> = args
        .opt_value_from_str("--since")
        .map_err(|error| ConfigError::new("--since", describe(&error)))?;
    let words = args.finish();
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let (what, rest) = words.split_first().ok_or_else(|| ConfigError::new("data", USAGE))?;
    let [directory, rest @ ..] = rest else { return Err(ConfigError::new("data", USAGE)) };
    let directory = values::file(directory).map_err(|why| ConfigError::new("data", why))?;
    if let Some(flag) = words.iter().find(|word| word.starts_with('-')) {
        return Err(ConfigError::new(*flag, format!("no such flag; {USAGE}")));
    }
    let command = match (*what, rest, &since) {
        ("check", [], None) => DataCommand::Check { directory },
        ("compact", [], None) => DataCommand::Compact { directory },
        ("backup", [target], None) => DataCommand::Backup {
            directory,
            target: values::file(target).map_err(|why| ConfigError::new("data", why))?,
        },
        ("dump", [] | [_], _) => DataCommand::Dump {
            directory,
            topic: rest.first().map(|name| topic_name(name)).transpose()?,
            since: since.as_deref().map(time).transpose()?,
        },
        _ => return Err(ConfigError::new("data", USAGE)),
    };
    Ok(Invocation::Data(command))
}

fn topic_name(text: &str) -> Result<TopicName, ConfigError> {
    text.parse().map_err(|error| ConfigError::new("data", format!("{text:?}: {error}")))
}

fn time(text: &str) -> Result<DateTime<Utc>, ConfigError> {
    let wrong =
        || ConfigError::new("--since", format!("not a time: {text:?}; use 10m, or RFC 3339"));
    match text.parse() {
        Ok(Position::At(time)) => Ok(time),
        Ok(Position::Ago(ago)) => Utc::now()
            .checked_sub_signed(chrono::TimeDelta::from_std(ago).map_err(|_| wrong())?)
            .ok_or_else(wrong),
        _ => Err(wrong()),
    }
}
