//! The file in which `sub --cursor` keeps its place: one line, a value of `since`.

use std::{
    fmt::Display,
    fs::{self, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use msgbus_client::Position;
use tempfile::Builder;

use crate::failure::Failure;

/// The mode of a file that was not there, before the umask.
const NEW_FILE: u32 = 0o666;

#[derive(Debug)]
pub(crate) struct Cursor {
    path: PathBuf,
    saved: Option<Position>,
}

impl Cursor {
    /// Reads the file, which need not be there yet.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Failure> {
        // What a link leads to is replaced, not the link.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let wrong = |problem: &dyn Display| {
            Failure::usage(format!("--cursor {}: {problem}", path.display()))
        };
        let saved = match fs::read_to_string(&path) {
            // As a crash of the machine can leave it. Beginning anew would skip what was missed.
            Ok(text) if text.trim().is_empty() => {
                return Err(wrong(&"it is empty; remove it to begin with --since"));
            }
            Ok(text) => Some(text.trim().parse().map_err(|error| wrong(&error))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(wrong(&error)),
        };
        Ok(Self { path, saved })
    }

    /// A cursor to be written, whatever the file says.
    pub(crate) fn anew(path: PathBuf) -> Self {
        Self { path: fs::canonicalize(&path).unwrap_or(path), saved: None }
    }

    /// What the file said, or what was written to it last.
    pub(crate) fn saved(&self) -> Option<Position> {
        self.saved
    }

    /// Replaces the file in one step: whoever reads it finds the old place or the new one.
    pub(crate) fn save(&mut self, position: Position) -> Result<(), Failure> {
        if self.saved == Some(position) {
            return Ok(());
        }
        replace(&self.path, &format!("{position}\n")).map_err(|error| {
            Failure::Other(format!("cannot write --cursor {}: {error}", self.path.display()))
        })?;
        self.saved = Some(position);
        Ok(())
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mode = fs::metadata(path).map_or(NEW_FILE, |old| old.permissions().mode());
    let mut file = Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_in_the_file_it_is_kept_or_named_in_one_line(
            text in " ?([0-9]{1,20}(-([0-9]{1,20}|start))?|[0-9]{1,4}[mhd]|all|new|.{0,9})\n?"
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (file, other) = (folder.path().join("cursor"), folder.path().join("other"));
            fs::write(&file, &text).unwrap();
            match Cursor::open(file) {
                Ok(cursor) => {
                    let position = cursor.saved().expect("the file was there");
                    Cursor::anew(other.clone()).save(position).unwrap();
                    prop_assert_eq!(Cursor::open(other).unwrap().saved(), Some(position));
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
