//! The positions of several topics and patterns in one file:
//!
//! ```text
//! msgbus positions of several topics
//! server: http://localhost:8000
//! 1795281601002381723-2 greetings
//! 1795284311902381723-1099511627780 orders/**
//!   since 2026-11-26T10:00:00Z
//!   2026-11-26T09:00:00.000000001Z 7 orders/eu
//! ```
//!
//! A pattern also has the time at which it began, and for each topic when the topic was created and the last id: the order
//! of a pattern does not survive a restart of the server, and then they tell what was received before.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use chrono::{DateTime, SecondsFormat, Utc};
use msgbus_client::{Message, Position, TopicName, TopicPositions};

use super::{
    Owner, bad,
    file::{LockedFile, wrong},
    position,
};
use crate::failure::Failure;

/// Distinguishes the file from one with a single position.
pub(super) const FIRST_LINE: &str = "msgbus positions of several topics";
const SINCE: &str = "  since ";

/// Where a topic or a pattern resumes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Start {
    pub(crate) position: Position,
    pub(crate) received: TopicPositions,
}

#[derive(Debug)]
pub(crate) struct Cursors {
    file: LockedFile,
    server: String,
    /// By the text of the topic or pattern. Those that are not followed now are kept.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    position: Position,
    since: Option<DateTime<Utc>>,
    /// When each topic was created, and its last id.
    topics: BTreeMap<TopicName, (DateTime<Utc>, u64)>,
}

impl Cursors {
    /// Opens and locks the file, which need not exist yet, and may be one of a single topic. With `anew`, nobody needs its
    /// content, so it may be anything.
    pub(crate) fn open(path: &Path, server: String, anew: bool) -> Result<Self, Failure> {
        let file = LockedFile::open(path)?;
        let mut cursors = Self { file, server, entries: BTreeMap::new() };
        match cursors.read() {
            Err(problem) if !anew => Err(wrong(path, &problem)),
            _ => Ok(cursors),
        }
    }

    fn read(&mut self) -> Result<(), String> {
        let Some(text) = self.file.read()? else { return Ok(()) };
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default().trim();
        let owner = Owner { topic: String::new(), server: self.server.clone() };
        if first != FIRST_LINE {
            let position = position(first)?;
            let topic = lines.next().and_then(|line| line.strip_prefix("topic: "));
            let topic = topic.ok_or("it does not name its topic; use a separate file")?;
            owner.note_other_server(lines.next().and_then(|line| line.strip_prefix("server: ")));
            self.entries.insert(topic.to_owned(), Entry { position, ..Entry::default() });
            return Ok(());
        }
        owner.note_other_server(lines.next().and_then(|line| line.strip_prefix("server: ")));
        let mut entry: Option<&mut Entry> = None;
        for line in lines {
            if line.starts_with("  ") {
                Self::read_detail(line, entry.as_deref_mut().ok_or_else(|| bad(line))?)?;
                continue;
            }
            let (text, topics) = line.split_once(' ').ok_or_else(|| bad(line))?;
            let position = position(text)?;
            let next = self.entries.entry(topics.to_owned()).or_default();
            next.position = position;
            entry = Some(next);
        }
        Ok(())
    }

    fn read_detail(line: &str, entry: &mut Entry) -> Result<(), String> {
        if let Some(since) = line.strip_prefix(SINCE) {
            entry.since = Some(since.parse().map_err(|_| bad(line))?);
            return Ok(());
        }
        let mut words = line.trim_start().splitn(3, ' ');
        let mut word = || words.next().ok_or_else(|| bad(line));
        let created = word()?.parse().map_err(|_| bad(line))?;
        let id = word()?.parse().map_err(|_| bad(line))?;
        let topic = word()?.parse().map_err(|_| bad(line))?;
        entry.topics.insert(topic, (created, id));
        Ok(())
    }

    /// Where a topic or pattern resumes, if the file has it.
    pub(crate) fn start(&self, topics: &str) -> Option<Start> {
        let entry = self.entries.get(topics)?;
        let mut received = TopicPositions::default();
        received.set_begin(entry.since);
        for (topic, (created, id)) in &entry.topics {
            received.insert(topic.clone(), *created, *id);
        }
        Some(Start { position: entry.position, received })
    }

    /// Notes where a subscription begins.
    pub(crate) fn begin(
        &mut self,
        topics: &str,
        position: Position,
        received: Option<&TopicPositions>,
    ) {
        let last = |(topic, created, id): (&TopicName, _, _)| (topic.clone(), (created, id));
        let entry = Entry {
            position,
            since: received.and_then(TopicPositions::begin),
            topics: received.into_iter().flat_map(TopicPositions::iter).map(last).collect(),
        };
        self.entries.insert(topics.to_owned(), entry);
    }

    /// Notes the position after an event. `message` is the message, if it is one of a pattern.
    pub(crate) fn note(&mut self, topics: &str, position: Position, message: Option<&Message>) {
        let Some(entry) = self.entries.get_mut(topics) else { return };
        entry.position = position;
        if let Some(message) = message {
            let topic = message.topic();
            let last = (topic.created, message.id());
            match entry.topics.get_mut(&topic.name) {
                Some(before) => *before = last,
                None => {
                    entry.topics.insert(topic.name.clone(), last);
                }
            }
        }
    }

    /// Replaces the file.
    pub(crate) fn save(&mut self) -> Result<(), Failure> {
        let mut text = format!("{FIRST_LINE}\nserver: {}\n", self.server);
        for (topics, entry) in &self.entries {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {topics}", entry.position);
            if let Some(since) = entry.since {
                let _ = writeln!(text, "{SINCE}{}", time(since));
            }
            for (topic, (created, id)) in &entry.topics {
                let _ = writeln!(text, "  {} {id} {topic}", time(*created));
            }
        }
        self.file.write(&text)
    }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(path: &Path) -> Result<Cursors, Failure> {
        Cursors::open(path, "http://s".to_owned(), false)
    }

    fn after(epoch: u64, id: u64) -> Position {
        Position::After { epoch, id }
    }

    #[test]
    fn what_was_saved_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor");
        let text = format!(
            "{FIRST_LINE}\nserver: http://s\n5-7 a b\n6-9 orders/**\n  since 2026-11-26T10:00:00Z\n  \
             2026-11-26T09:00:00.000000001Z 7 orders/größe 2\n"
        );
        fs::write(&path, &text).unwrap();
        let mut cursors = open(&path).unwrap();
        assert_eq!(cursors.start("a b").unwrap().position, after(5, 7));
        let start = cursors.start("orders/**").unwrap();
        let topics: Vec<_> =
            start.received.iter().map(|(name, _, id)| (name.as_str(), id)).collect();
        assert_eq!((start.position, topics), (after(6, 9), vec![("orders/größe 2", 7)]));
        assert!(start.received.begin().is_some() && cursors.start("other").is_none());
        cursors.save().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn the_file_of_a_single_topic_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor");
        fs::write(&path, "5-7\ntopic: t\nserver: http://s\n").unwrap();
        let cursors = open(&path).unwrap();
        assert_eq!(cursors.start("t").unwrap().position, after(5, 7));
        assert!(cursors.start("u").is_none());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_of_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor");
        for rest in ["5-7", "x t", "  since x", "5-7 t\n  x 7 a", "5-7 t\n  since x", "5-7 t\n  "] {
            fs::write(&path, format!("{FIRST_LINE}\nserver: http://s\n{rest}\n")).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains("not a position") && !error.contains('\n'), "{rest}: {error}");
        }
        for (text, said) in [("", "it is empty"), ("5-7\n", "it does not name its topic")] {
            fs::write(&path, text).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
