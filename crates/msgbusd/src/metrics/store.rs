//! The series of the durable store.

use msgbus_store::StoreStats;

use super::Page;

/// The store of `--data`.
pub(super) fn write(page: &mut Page, store: &StoreStats) {
    for (name, help, value) in [
        ("msgbus_store_bytes", "Size of all files.", store.bytes),
        ("msgbus_store_live_bytes", "Bytes of the files that are needed.", store.live_bytes),
        ("msgbus_store_segments", "Files.", store.segments as u64),
        ("msgbus_store_queued_bytes", "Bytes waiting to be written.", store.queued_bytes as u64),
        ("msgbus_store_full", "Whether there is no room for messages.", store.is_full.into()),
        ("msgbus_store_failed", "Whether the disk has failed.", store.failure.is_some().into()),
        (
            "msgbus_store_unreadable",
            "Whether a file that cannot be read keeps all later ones from being freed.",
            store.unreadable.is_some().into(),
        ),
        (
            "msgbus_store_skipped_parts",
            "Damaged parts of files that --repair skipped at the start.",
            store.recovery.skipped.len() as u64,
        ),
        (
            "msgbus_store_skipped_bytes",
            "Bytes that --repair skipped at the start.",
            store.recovery.skipped.iter().map(|damage| damage.bytes).sum(),
        ),
    ] {
        page.gauge(name, help, value);
    }
    for (name, help, value) in [
        ("msgbus_store_written_bytes_total", "Bytes written.", store.written_bytes),
        ("msgbus_store_syncs_total", "Syncs.", store.syncs),
        ("msgbus_store_copied_total", "Messages copied to free files.", store.copied),
    ] {
        page.counter(name, help, value);
    }
    let seconds = store.sync_time.as_secs_f64();
    page.counter("msgbus_store_sync_seconds_total", "Time of all syncs.", seconds);
    let longest = store.longest_sync.as_secs_f64();
    page.gauge("msgbus_store_longest_sync_seconds", "Time of the longest sync.", longest);
    let recovery = store.recovery.time.as_secs_f64();
    page.gauge(
        "msgbus_store_recovery_seconds",
        "Time of reading the files at the start.",
        recovery,
    );
}
