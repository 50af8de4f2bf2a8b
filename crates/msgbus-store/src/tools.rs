//! What people do with a store that they look after.

use std::{path::Path, sync::Arc, time::Instant};

use msgbus_core::{
    BatchLimit, TopicInfo, TopicName,
    store::{RecoveredMessage, StoreError},
};

use crate::{
    directory::{Directory, boot_id},
    disk::{Disk, RealDisk},
    error::OpenError,
    options::StoreOptions,
    page::Page,
    recovery::{self, Mode},
    stats::RecoveryReport,
    store::Recovered,
};

/// Verifies every record of a store, and changes nothing. Another process may use the store: then the end of the log
/// may look torn.
///
/// The store is good if nothing was [`skipped`](RecoveryReport::skipped).
///
/// # Errors
/// When the directory or a file cannot be read, or a file is of no use at all.
pub fn check(directory: &Path) -> Result<RecoveryReport, OpenError> {
    let disk = read_only(directory)?;
    recovery::recover(&disk, &Mode { skips_damage: true, ..Mode::default() })
        .map(|recovery| recovery.report)
}

/// Calls `each` with every message of a store, or of one topic of it, by name and id, until it returns false. Leaves
/// out what cannot be read, and changes nothing. Another process may use the store.
///
/// # Errors
/// As for [`check`], and when a message cannot be read again that was good before.
pub fn dump(
    directory: &Path,
    topic: Option<&TopicName>,
    each: &mut dyn FnMut(&TopicInfo, RecoveredMessage) -> bool,
) -> Result<RecoveryReport, OpenError> {
    /// How much is read at once.
    const LIMIT: BatchLimit = BatchLimit { events: 1024, bytes: 1 << 20 };
    let disk = read_only(directory)?;
    let mode = Mode { skips_damage: true, ..Mode::default() };
    let recovery = recovery::recover(&disk, &mode)?;
    let topics = recovery.replay.topics.into_iter();
    let mut topics: Vec<_> = topics
        .filter(|(_, found)| topic.is_none_or(|name| *name == found.info.name))
        .map(|(number, found)| found.into_topic(number, &recovery.segments).topic)
        .collect();
    topics.sort_by(|a, b| a.info.name.cmp(&b.info.name));
    for topic in topics {
        let mut next_id = 0;
        loop {
            let page = Page::new(&recovery.segments, &topic).read(next_id, LIMIT);
            let page = page.map_err(|error| unreadable(directory, error))?;
            let Some(last) = page.last() else { break };
            next_id = last.id + 1;
            for message in page {
                if !each(&topic.info, message) {
                    return Ok(recovery.report);
                }
            }
        }
    }
    Ok(recovery.report)
}

/// Copies everything that is needed of a store together, and frees the rest of its files. Returns its size before and
/// after, in bytes.
///
/// # Errors
/// As for [`LogStore::open`](crate::LogStore::open), when there is no store, and when there is no room for the copies.
/// Nothing is lost then.
pub fn compact(directory: &Path, options: StoreOptions) -> Result<(u64, u64), OpenError> {
    Directory::log_of(directory)?;
    let locked = Directory::lock(directory)?;
    let disk = RealDisk::new(locked.log().to_owned());
    let failed = |error| OpenError::io(locked.log(), error);
    disk.remove_unfinished().map_err(failed)?;
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let mut writer = Recovered::open(&disk, options, boot_id(), false)?.writer;
    let segments = Arc::clone(&writer.shared.segments);
    let before = segments.total_bytes();
    writer.compact_fully(Instant::now()).map_err(failed)?;
    writer.finish(Instant::now()).map_err(|error| unreadable(directory, error))?;
    Ok((before, segments.total_bytes()))
}

fn read_only(directory: &Path) -> Result<Arc<dyn Disk>, OpenError> {
    Ok(Arc::new(RealDisk::new(Directory::log_of(directory)?)))
}

fn unreadable(directory: &Path, error: StoreError) -> OpenError {
    OpenError::io(directory, std::io::Error::other(error))
}
