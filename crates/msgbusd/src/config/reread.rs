//! Reads the file of `--config` again while the daemon runs.

use std::path::Path;

use super::{
    ConfigError,
    file::{File, Rules},
    layers::{Layer, Raw, put_below},
    resolve,
};

/// The file of `--config` as it was at the start, with the flags and variables that override it.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    pub(super) path: Raw,
    /// Flags and variables, which override the file.
    pub(super) above: Layer,
    pub(super) at_start: File,
}

impl ConfigFile {
    /// The path of the file.
    pub fn path(&self) -> &Path {
        Path::new(&self.path.value)
    }

    /// Reads the file again and returns the names of the settings that differ from those at the start, sorted, and
    /// `topics` for the rules of topics and `engines` for engines. Changes take effect at the next start. Blocks for up to ten seconds, so do not
    /// call it on a serving thread.
    ///
    /// # Errors
    /// When the file cannot be read, or the daemon would not start with it.
    pub fn changes(&self) -> Result<Vec<&'static str>, ConfigError> {
        let file = File::read(&self.path)?;
        let mut layer = self.above.clone();
        put_below(&mut layer, file.settings.clone());
        resolve(&layer, &file.rules)?;
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
        let without_engines = |file: &File| Rules { engines: Vec::new(), ..file.rules.clone() };
        if without_engines(&self.at_start) != without_engines(file) {
            changed.push("topics");
        }
        if self.at_start.rules.engines != file.rules.engines {
            changed.push("engines");
        }
        changed
    }
}
