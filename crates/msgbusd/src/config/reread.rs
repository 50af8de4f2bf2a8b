//! The file of `--config`, read again while the daemon runs.

use std::path::Path;

use super::{
    ConfigError,
    file::File,
    layers::{Layer, Raw, put_below},
    resolve,
};

/// The file of `--config` as it was at the start, and what it takes to read it again.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    pub(super) path: Raw,
    /// Flags and variables, which count before the file.
    pub(super) above: Layer,
    pub(super) at_start: File,
}

impl ConfigFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        Path::new(&self.path.value)
    }

    /// Reads the file again and names, in order, what it sets otherwise than at the start: settings, and
    /// `topics` for the rules of topics. None of it counts before the next start. Blocks for ten seconds
    /// at the most: it is not for a thread that serves.
    ///
    /// # Errors
    /// When it cannot be read, or is so that the daemon would not start with it.
    pub fn changes(&self) -> Result<Vec<&'static str>, ConfigError> {
        let file = File::read(&self.path)?;
        let mut layer = self.above.clone();
        put_below(&mut layer, file.settings.clone());
        resolve(&layer, file.rules.clone())?;
        Ok(self.differences(&file))
    }

    fn differences(&self, file: &File) -> Vec<&'static str> {
        let values = |file: &File, name: &str| -> Vec<String> {
            let raw = file.settings.get(name).into_iter().flatten();
            raw.map(|raw| raw.value.clone()).collect()
        };
        let names = self.at_start.settings.keys().chain(file.settings.keys()).copied();
        let mut changed: Vec<_> = names
            .filter(|name| !self.above.contains_key(name))
            .filter(|name| values(&self.at_start, name) != values(file, name))
            .collect();
        changed.sort_unstable();
        changed.dedup();
        if self.at_start.rules != file.rules {
            changed.push("topics");
        }
        changed
    }
}
