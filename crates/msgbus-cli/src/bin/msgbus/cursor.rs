//! The file in which `sub --cursor` keeps its place: one line, a value of `since`.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use msgbus_client::Position;
use tempfile::NamedTempFile;

use crate::failure::Failure;

#[derive(Debug)]
pub(crate) struct Cursor {
    path: PathBuf,
    saved: Option<Position>,
}

impl Cursor {
    /// Reads the file. One that is not there yet is as good as an empty one.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Failure> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(Failure::usage(format!("--cursor {}: {error}", path.display())));
            }
        };
        let saved = match text.trim() {
            "" => None,
            text => Some(text.parse().map_err(|error| {
                Failure::usage(format!("--cursor {}: {error}", path.display()))
            })?),
        };
        Ok(Self { path, saved })
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
    let mut file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}
