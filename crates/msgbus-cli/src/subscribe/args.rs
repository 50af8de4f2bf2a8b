//! The arguments of `msgbus sub` and `msgbus tail`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use msgbus_client::{Client, Position, TopicPattern};

use crate::{
    args::Invocation,
    commands::Command,
    failure::Failure,
    output::{Format, Style},
    reader::{Options, count, duration, position, text},
};

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are switches of the command line")]
pub(crate) struct Sub {
    pub(crate) client: Client,
    /// The program to run for each message, and its arguments.
    pub(crate) command: Option<(OsString, Vec<OsString>)>,
    pub(crate) since: Position,
    /// Whether `since` overrides the position in the cursor file.
    pub(crate) ignore_cursor: bool,
    /// Start this many messages before the end, instead of at `since`.
    pub(crate) back: Option<u64>,
    /// Exit after the messages that exist at the start.
    pub(crate) poll: bool,
    pub(crate) strict: bool,
    pub(crate) cursor: Option<PathBuf>,
    pub(crate) count: Option<u64>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) style: Style,
    pub(crate) quiet: bool,
    pub(crate) debug: bool,
}

impl Options {
    pub(crate) fn subscribe(
        &mut self,
        arguments: &mut impl Iterator<Item = OsString>,
        command: Option<(OsString, Vec<OsString>)>,
    ) -> Result<Invocation, Failure> {
        let topics = self.followed(Command::Sub, arguments)?;
        let (client, debug) = self.client()?;
        self.switch("--follow");
        let style = self.style()?;
        if command.is_some() && style.format == Some(Format::Pretty) {
            return Err(Failure::usage(
                "a command receives json or raw; pretty is for terminals only",
            ));
        }
        let (since, ignore_cursor) = self.since()?;
        let cursor = self.value("--cursor", |path| Ok(PathBuf::from(path)))?;
        let poll = self.switch("--poll");
        if poll && command.is_some() {
            return Err(Failure::usage("--poll prints messages and cannot run a command"));
        }
        let sub = Sub {
            command,
            // Polling from "new" would never print a message.
            since: if poll && since == Position::New { Position::All } else { since },
            ignore_cursor,
            back: None,
            poll,
            strict: self.switch("--strict"),
            cursor,
            count: self.value("--count", count)?,
            timeout: self.value("--timeout", duration)?,
            style,
            quiet: self.quiet,
            debug,
            client,
        };
        following(topics, sub)
    }

    /// The start position from --since, --all or --new, and whether it overrides the cursor.
    fn since(&mut self) -> Result<(Position, bool), Failure> {
        let since = self.value("--since", position)?;
        match (since, self.switch("--all"), self.switch("--new")) {
            (since, false, false) => Ok((since.unwrap_or_default(), false)),
            (None, true, false) => Ok((Position::All, false)),
            (None, false, true) => Ok((Position::New, true)),
            _ => Err(Failure::usage("give one of --since, --all and --new")),
        }
    }

    pub(crate) fn tail(
        &mut self,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<Invocation, Failure> {
        const BACK: u64 = 10;
        let topics = self.followed(Command::Tail, arguments)?;
        let (client, debug) = self.client()?;
        self.switch("--follow");
        let sub = Sub {
            command: None,
            since: Position::New,
            ignore_cursor: false,
            back: Some(self.value("--count", count)?.unwrap_or(BACK)),
            poll: false,
            strict: self.switch("--strict"),
            cursor: None,
            count: None,
            timeout: self.value("--timeout", duration)?,
            style: self.style()?,
            quiet: self.quiet,
            debug,
            client,
        };
        following(topics, sub)
    }

    /// Parses the topics and patterns of a command that follows them: all arguments.
    fn followed(
        &self,
        command: Command,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<Vec<TopicPattern>, Failure> {
        let usage = format!("no topic given; usage: {}", command.spec().usage());
        let mut topics = Vec::new();
        loop {
            match arguments.next() {
                None if topics.is_empty() => return Err(Failure::usage(usage)),
                None => return Ok(topics),
                given => topics.push(self.pattern(&text(given, &usage)?)?),
            }
        }
    }
}

/// One topic, or several.
fn following(topics: Vec<TopicPattern>, sub: Sub) -> Result<Invocation, Failure> {
    if let [topic] = &topics[..]
        && let Ok(topic) = topic.to_string().parse()
    {
        return Ok(Invocation::Sub(topic, sub));
    }
    // An id, or an epoch and an id: each topic has its own.
    if matches!(sub.since, Position::Id(_) | Position::After { .. } | Position::Start { .. }) {
        return Err(Failure::usage(
            "--since: a position with an id is for one topic; use all, new, 10m or a time",
        ));
    }
    Ok(Invocation::SubMany(topics, sub))
}
