//! The file in which `sub --cursor` keeps its position. The first line is a value of `since`; the next
//! lines name the topic and the server that it belongs to. [`many`] keeps several positions.

mod file;
mod many;

use std::path::Path;

use msgbus_client::Position;

use self::file::{LockedFile, wrong};
pub(crate) use self::many::{Cursors, Start};
use crate::{failure::Failure, output::note};

#[derive(Debug)]
pub(crate) struct Cursor {
    file: LockedFile,
    saved: Option<Position>,
    /// The topic and the server that the file belongs to.
    owner: Owner,
}

/// The topic and the server that a position belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) topic: String,
    pub(crate) server: String,
}

impl Cursor {
    /// Opens and locks the file, which need not exist yet. With `anew`, ignores its content.
    pub(crate) fn open(path: &Path, owner: Owner, anew: bool) -> Result<Self, Failure> {
        let mut cursor = Self { file: LockedFile::open(path)?, saved: None, owner };
        if !anew {
            cursor.saved = cursor.read().map_err(|problem| wrong(path, &problem))?;
        }
        Ok(cursor)
    }

    /// Reads the position, and checks that it belongs to this topic.
    fn read(&self) -> Result<Option<Position>, String> {
        let Some(text) = self.file.read()? else { return Ok(None) };
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default().trim();
        if first == many::FIRST_LINE {
            return Err("it belongs to several topics or a pattern; use a separate file".to_owned());
        }
        let position = position(first)?;
        let mut owner = |key: &str| lines.next().and_then(|line| line.strip_prefix(key));
        let (topic, server) = (owner("topic: "), owner("server: "));
        if let Some(topic) = topic.filter(|topic| *topic != self.owner.topic) {
            return Err(format!(
                "it belongs to topic {topic}, not {}; use a separate file for each topic",
                self.owner.topic
            ));
        }
        self.owner.note_other_server(server);
        Ok(Some(position))
    }

    /// The position in the file.
    pub(crate) fn saved(&self) -> Option<Position> {
        self.saved
    }

    /// Replaces the file atomically: a reader finds the old position or the new one.
    pub(crate) fn save(&mut self, position: Position) -> Result<(), Failure> {
        if self.saved == Some(position) {
            return Ok(());
        }
        let Owner { topic, server } = &self.owner;
        self.file.write(&format!("{position}\ntopic: {topic}\nserver: {server}\n"))?;
        self.saved = Some(position);
        Ok(())
    }
}

impl Owner {
    /// Only a note, because a server may have several URIs.
    fn note_other_server(&self, server: Option<&str>) {
        if let Some(server) = server.filter(|server| *server != self.server) {
            note(&format!("the position is from {server}, but is now used with {}", self.server));
        }
    }
}

/// Parses a position in a file.
fn position(text: &str) -> Result<Position, String> {
    // A crash of the machine can leave an empty file. Starting anew would skip messages silently.
    if text.is_empty() {
        return Err("it is empty; remove it to start at --since".to_owned());
    }
    text.parse::<Position>().map_err(|_| bad(text))
}

/// The problem with a line that msgbus has not written.
fn bad(line: &str) -> String {
    let line: String = line.chars().take(100).collect();
    format!("not a position: {line:?}; is it another file? Remove it to start at --since")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use proptest::prelude::*;

    use super::*;

    fn owner() -> Owner {
        Owner { topic: "t".to_owned(), server: "http://s".to_owned() }
    }

    fn open(path: &Path) -> Result<Cursor, Failure> {
        Cursor::open(path, owner(), false)
    }

    #[test]
    fn one_run_at_a_time_uses_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor");
        let (mut first, mut late) = (open(&path).unwrap(), open(&path).unwrap());
        first.save(Position::Id(1)).unwrap();
        let error = late.save(Position::Id(9)).unwrap_err().to_string();
        assert!(error.contains("another run is using it"), "{error}");
        for id in 2..4 {
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains("another run is using it"), "{error}");
            first.save(Position::Id(id)).unwrap();
        }
        drop((first, late));
        assert_eq!(open(&path).unwrap().saved(), Some(Position::Id(3)));
    }

    #[test]
    fn a_link_is_kept_and_its_target_made() {
        let folder = tempfile::tempdir().unwrap();
        let (link, real) = (folder.path().join("link"), folder.path().join("real"));
        symlink("real", &link).unwrap();
        for id in 0..2 {
            open(&link).unwrap().save(Position::Id(id)).unwrap();
            assert!(link.is_symlink());
            assert!(fs::read_to_string(&real).unwrap().starts_with(&format!("{id}\n")));
        }
        let round = folder.path().join("round");
        symlink("round", &round).unwrap();
        assert!(open(&round).unwrap_err().to_string().contains("too many links"));
    }

    #[test]
    fn a_file_of_another_topic_is_noticed_and_one_of_old_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor");
        fs::write(&path, "5-7\n").unwrap();
        let mut cursor = open(&path).unwrap();
        assert_eq!(cursor.saved(), Some(Position::After { epoch: 5, id: 7 }));
        cursor.save(Position::Id(1)).unwrap();
        drop(cursor);
        let other = || Owner { topic: "u".to_owned(), ..owner() };
        let error = Cursor::open(&path, other(), false).unwrap_err().to_string();
        assert!(error.contains("it belongs to topic t, not u"), "{error}");
        assert_eq!(Cursor::open(&path, other(), true).unwrap().saved(), None);
    }

    #[test]
    fn an_error_names_the_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent/cursor");
        let error = open(&path).unwrap().save(Position::Id(1)).unwrap_err().to_string();
        let said = format!("cannot write --cursor {}: No such file or directory", path.display());
        assert!(error.starts_with(&said) && !error.contains(" at path "), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_in_the_file_it_is_kept_or_named_in_one_line(
            text in " ?([0-9]{1,20}(-([0-9]{1,20}|start))?|[0-9]{1,4}[mhd]|all|new|.{0,9})\n?"
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (file, other) = (folder.path().join("cursor"), folder.path().join("other"));
            fs::write(&file, &text).unwrap();
            match open(&file) {
                Ok(cursor) => {
                    let position = cursor.saved().expect("the file was there");
                    open(&other).unwrap().save(position).unwrap();
                    prop_assert_eq!(open(&other).unwrap().saved(), Some(position));
                }
                Err(error) => {
                    let error = error.to_string();
                    prop_assert!(error.starts_with("--cursor "), "{}", error);
                    prop_assert!(!error.contains(char::is_control), "{:?}", error);
                }
            }
        }
    }
}
