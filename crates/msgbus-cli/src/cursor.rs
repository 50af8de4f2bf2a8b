//! The file in which `sub --cursor` keeps its position. The first line is a value of `since`; the next
//! lines name the topic and the server that it belongs to.
//!
//! The file is replaced at each step, never written in place. A run always holds a lock on the current
//! file: it locks the new file before that replaces the old one.

use std::{
    fmt::Display,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use msgbus_client::Position;
use rustix::fs::{FlockOperation, flock};
use tempfile::Builder;

use crate::{failure::Failure, output::note};

/// The mode of a newly created file, before the umask.
const NEW_FILE: u32 = 0o666;
/// The limit of the Linux kernel.
const MAX_LINKS: usize = 40;
/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Cursor {
    path: PathBuf,
    saved: Option<Position>,
    /// The topic and the server that the file belongs to.
    owner: Owner,
    /// The locked file; `None` until it exists.
    locked: Option<File>,
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
        let name = path.display().to_string();
        let wrong = |problem: &dyn Display| Failure::usage(format!("--cursor {name}: {problem}"));
        let path = target(path).map_err(|error| wrong(&error))?;
        let mut cursor = Self { path, saved: None, owner, locked: None };
        let Some(mut file) = locked(&cursor.path).map_err(|error| wrong(&error))? else {
            return Ok(cursor);
        };
        if !anew {
            let mut text = String::new();
            (&mut file).take(MAX_SIZE).read_to_string(&mut text).map_err(|error| wrong(&error))?;
            cursor.saved = Some(cursor.read(&text).map_err(|problem| wrong(&problem))?);
        }
        cursor.locked = Some(file);
        Ok(cursor)
    }

    /// Parses the position, and checks that it belongs to this topic.
    fn read(&self, text: &str) -> Result<Position, String> {
        let mut lines = text.lines();
        let position = lines.next().unwrap_or_default().trim();
        // A crash of the machine can leave an empty file. Starting anew would skip messages silently.
        if position.is_empty() {
            return Err("it is empty; remove it to start at --since".to_owned());
        }
        let position = position.parse::<Position>().map_err(|error| error.to_string())?;
        let mut owner = |key: &str| lines.next().and_then(|line| line.strip_prefix(key));
        let (topic, server) = (owner("topic: "), owner("server: "));
        if let Some(topic) = topic.filter(|topic| *topic != self.owner.topic) {
            return Err(format!(
                "it belongs to topic {topic}, not {}; use a separate file for each topic",
                self.owner.topic
            ));
        }
        // Only a note, because a server may have several URIs.
        if let Some(server) = server.filter(|server| *server != self.owner.server) {
            note(&format!(
                "the position is from {server}, but is now used with {}",
                self.owner.server
            ));
        }
        Ok(position)
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
        let text = format!("{position}\ntopic: {topic}\nserver: {server}\n");
        let file = replace(&self.path, &text, self.locked.is_none()).map_err(|error| {
            let name = self.path.display();
            match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    Failure::Other(format!("--cursor {name}: {}", in_use()))
                }
                _ => Failure::Other(format!("cannot write --cursor {name}: {error}")),
            }
        })?;
        self.locked = Some(file);
        self.saved = Some(position);
        Ok(())
    }
}

fn in_use() -> io::Error {
    io::Error::other("another run is using it; use a separate file for each run")
}

/// Resolves symbolic links, also dangling ones, so that the target is replaced and not the link.
fn target(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}

/// Opens and locks the file; `None` if it does not exist.
fn locked(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = match OpenOptions::new().read(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        lock(&file)?;
        // The file may have been replaced between opening and locking.
        match fs::metadata(path) {
            Ok(now) if now.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            _ => {}
        }
    }
}

fn lock(file: &File) -> io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use()),
        // Some file systems do not support locks.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Replaces the file with a new one, and returns the new one, locked. With `is_first`, an existing file is
/// an error.
fn replace(path: &Path, text: &str, is_first: bool) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mode = fs::metadata(path).map_or(NEW_FILE, |old| old.permissions().mode());
    let mut file = Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(without_path)?;
    file.as_file_mut().write_all(text.as_bytes())?;
    lock(file.as_file())?;
    if is_first {
        file.persist_noclobber(path).map_err(|error| error.error)
    } else {
        file.persist(path).map_err(|error| error.error)
    }
}

/// Removes the name of the temporary file from an error. The name means nothing to the user.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn without_path(error: io::Error) -> io::Error {
    let text = error.to_string();
    let known = text.split_once(" at path ").map_or(&*text, |(problem, _)| problem);
    io::Error::new(error.kind(), known)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
