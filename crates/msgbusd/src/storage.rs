//! The store of `--data`: opening it with progress, and reporting its failure.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use msgbus_core::{MessageBus, format_duration, store::StoreError};
use msgbus_store::{LogStore, OpenError, RecoveryReport, StoreOptions};
use tokio::runtime::Handle;
use tracing::{error, info, warn};

use crate::{
    config::{Config, format_size},
    engines::Engines,
    logging::counted,
    server::StartError,
};

/// The pause between two lines about the progress of a start.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// The pause between two lines about a store that has failed.
const FAILURE_INTERVAL: Duration = Duration::from_secs(60);

/// A bus, and what its topics live in.
pub(crate) struct Opened {
    pub(crate) bus: MessageBus,
    pub(crate) store: Option<Arc<LogStore>>,
    pub(crate) engines: Option<Engines>,
}

/// Opens the bus of a configuration: with the store in its directory, if it has one. Blocks until everything is read. It
/// does not wait for engines.
pub(crate) fn open(config: &Config, serving: &[Handle]) -> Result<Opened, StartError> {
    let engines = Engines::open(config, serving)?;
    let rules = engines.as_ref().map(|engines| engines.rules(config)).unwrap_or_default();
    let store =
        config.data.as_deref().map(|directory| open_store(config, directory)).transpose()?;
    let kept = store.clone().map(|store| store as _);
    let bus = MessageBus::with_engines(config.bus.clone(), kept, rules)
        .map_err(|error| unusable(config.data.as_deref().unwrap_or(Path::new("")), error))?;
    Ok(Opened { bus, store, engines })
}

fn open_store(config: &Config, directory: &Path) -> Result<Arc<LogStore>, OpenError> {
    let options = StoreOptions {
        max_bytes: config.max_disk_bytes,
        repair: config.repair,
        progress: Some(progress(directory)),
        ..StoreOptions::default()
    };
    let store = Arc::new(LogStore::open(directory, options)?);
    report(directory, &store.stats().recovery);
    Ok(store)
}

fn unusable(directory: &Path, error: StoreError) -> OpenError {
    OpenError::Io { path: directory.to_owned(), error: std::io::Error::other(error) }
}

/// Logs how far the start is, if it takes long.
fn progress(directory: &Path) -> Arc<dyn Fn(u64, u64) + Send + Sync> {
    let directory = directory.display().to_string();
    let last = Mutex::new(Instant::now());
    Arc::new(move |done, all| {
        let Ok(mut last) = last.lock() else { return };
        if last.elapsed() >= PROGRESS_INTERVAL {
            *last = Instant::now();
            let percent = done.saturating_mul(100) / all.max(1);
            info!("reading {directory}: {percent} % of {}", format_size(all));
        }
    })
}

/// Logs what was found at the start.
fn report(directory: &Path, found: &RecoveryReport) {
    let directory = directory.display();
    if let Some(torn) = &found.torn_tail {
        warn!(
            "removed {} of an unfinished write at offset {} of {}",
            counted(torn.bytes, "byte"),
            torn.offset,
            torn.file.display()
        );
    }
    for damage in &found.skipped {
        warn!(
            "--repair: skipped {} at offset {} of {}: {}",
            counted(damage.bytes, "byte"),
            damage.offset,
            damage.file.display(),
            damage.problem
        );
    }
    for name in &found.refused_names {
        warn!("left out the topic {name:?} of {directory}: this version does not allow its name");
    }
    info!(
        "keeping messages in {directory}: found {} in {}, in {}",
        counted(found.messages, "message"),
        counted(found.topics as u64, "topic"),
        format_duration(Duration::from_millis(u64::try_from(found.time.as_millis()).unwrap_or(0)))
    );
}

/// Logs that a store has failed or is full, once at first and then every minute.
#[derive(Debug, Default)]
pub(crate) struct StoreWatch {
    last_failure: Option<Instant>,
    was_full: bool,
}

impl StoreWatch {
    pub(crate) fn check(&mut self, store: &LogStore) {
        let stats = store.stats();
        if let Some(failure) = stats.failure {
            if self.last_failure.is_none_or(|last| last.elapsed() >= FAILURE_INTERVAL) {
                self.last_failure = Some(Instant::now());
                error!("the disk has failed ({failure}): nothing is kept until a restart");
            }
        } else if stats.is_full != self.was_full {
            self.was_full = stats.is_full;
            if stats.is_full {
                warn!("the disk is full: durable publishes are refused until there is room");
            } else {
                info!("the disk has room again");
            }
        }
    }
}
