//! The store as the bus uses it.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::{Arc, Weak},
    thread::{self, JoinHandle},
    time::Instant,
};

use msgbus_core::{
    TopicInfo,
    store::{Adopted, CommitObserver, Promise, RecoveredTopic, Store, StoreError, TopicStore},
};
use parking_lot::Mutex;

use crate::{
    buffer::Admission,
    directory::{Directory, boot_id},
    disk::{Disk, RealDisk, is_full},
    error::OpenError,
    format::SegmentHeader,
    options::StoreOptions,
    recovery::{self, FoundTopic, Mode, Recovery},
    shared::Shared,
    stats::{RecoveryReport, StoreStats},
    tail::{BootId, OpenSegment, Tail, create_segment},
    topic::Handle,
    writer::{Next, Writer},
};

/// A store on the disk of this machine. One directory holds one log, which all topics share.
///
/// Dropping it closes it.
#[derive(Debug)]
pub struct LogStore {
    shared: Arc<Shared>,
    report: RecoveryReport,
    stage: Mutex<Stage>,
    /// Keeps others out of the directory.
    _directory: Directory,
}

/// The life of a store.
#[derive(Debug)]
enum Stage {
    /// What was recovered waits for [`Store::recover`].
    Recovered(Box<Recovered>),
    Running(Threads),
    Closed(Result<(), StoreError>),
}

#[derive(Debug)]
struct Threads {
    writer: JoinHandle<Result<(), StoreError>>,
    reader: JoinHandle<()>,
}

impl LogStore {
    /// Opens the store in a directory, which is made if there is none, and reads everything in it.
    ///
    /// # Errors
    /// When the directory cannot be used, or the store is damaged. See [`OpenError`].
    pub fn open(directory: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let directory = Directory::lock(directory)?;
        let disk = RealDisk::new(directory.log().to_owned());
        disk.remove_unfinished().map_err(|error| OpenError::io(directory.log(), error))?;
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let recovered = Recovered::open(&disk, options, boot_id(), true)?;
        Ok(Self {
            shared: Arc::clone(&recovered.writer.shared),
            report: recovered.report.clone(),
            stage: Mutex::new(Stage::Recovered(Box::new(recovered))),
            _directory: directory,
        })
    }

    /// What the store has done, and how it is.
    pub fn stats(&self) -> StoreStats {
        let Shared { buffer, segments, stats, .. } = &*self.shared;
        let load =
            |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        let (syncs, sync_time, longest_sync) = stats.syncs();
        let admission = buffer.admission();
        StoreStats {
            bytes: segments.total_bytes(),
            live_bytes: segments.live_bytes(),
            segments: segments.list().len(),
            written_bytes: load(&stats.written_bytes),
            syncs,
            sync_time,
            longest_sync,
            copied: load(&stats.copied),
            unreadable: stats.unreadable.lock().clone(),
            queued_bytes: buffer.bytes(),
            is_full: matches!(
                admission,
                Admission::WithoutMessages | Admission::Nothing(StoreError::Full)
            ),
            failure: stats.failure.lock().clone(),
            recovery: self.report.clone(),
        }
    }

    fn start(recovered: Recovered) -> std::io::Result<Threads> {
        let mut writer = recovered.writer;
        let readers = Arc::clone(&writer.shared.readers);
        let name = |role: &str| format!("msgbus-store-{role}");
        let reader = thread::Builder::new().name(name("reader")).spawn(move || readers.serve())?;
        let shared = Arc::clone(&writer.shared);
        let writer = thread::Builder::new().name(name("writer")).spawn(move || run(&mut writer));
        let writer = writer.inspect_err(|_| shared.readers.close())?;
        Ok(Threads { writer, reader })
    }
}

/// Writes until the store is closed.
fn run(writer: &mut Writer) -> Result<(), StoreError> {
    let shared = Arc::clone(&writer.shared);
    loop {
        let next = writer.turn(Instant::now());
        if shared.buffer.is_closing() {
            return writer.finish(Instant::now());
        }
        match next {
            Next::Now => {}
            Next::Wait(until) => shared.buffer.wait(until),
        }
    }
}

impl Store for LogStore {
    fn recover(&self, found: &mut dyn FnMut(RecoveredTopic) -> Adopted) -> Result<(), StoreError> {
        let mut stage = self.stage.lock();
        let mut recovered = match std::mem::replace(&mut *stage, Stage::Closed(Ok(()))) {
            Stage::Recovered(recovered) => recovered,
            other => {
                *stage = other;
                return Err(StoreError::Closed);
            }
        };
        recovered.hand_over(found);
        match Self::start(*recovered) {
            Ok(threads) => {
                *stage = Stage::Running(threads);
                Ok(())
            }
            Err(_) => {
                *stage = Stage::Closed(Err(StoreError::Failed));
                Err(StoreError::Failed)
            }
        }
    }

    fn create(
        &self,
        info: &Arc<TopicInfo>,
        promise: Promise,
        observer: Weak<dyn CommitObserver>,
    ) -> Result<Box<dyn TopicStore>, StoreError> {
        Ok(Box::new(self.shared.create(info, promise, observer)?))
    }

    fn close(&self) -> Result<(), StoreError> {
        self.shared.buffer.close();
        let mut stage = self.stage.lock();
        let result = match std::mem::replace(&mut *stage, Stage::Closed(Ok(()))) {
            Stage::Recovered(_) => Ok(()),
            Stage::Closed(result) => result,
            // An observer has dropped the bus, and with it the store: nobody is left to wait.
            Stage::Running(Threads { writer, .. }) if is_current(&writer) => {
                Err(StoreError::Closed)
            }
            Stage::Running(Threads { writer, reader }) => {
                let result = writer.join().unwrap_or(Err(StoreError::Failed));
                self.shared.readers.close();
                // A panic of the reader has failed its requests.
                let _ = reader.join();
                result
            }
        };
        *stage = Stage::Closed(result);
        result
    }
}

fn is_current<T>(thread: &JoinHandle<T>) -> bool {
    thread.thread().id() == thread::current().id()
}

impl Drop for LogStore {
    fn drop(&mut self) {
        // Who wants to know calls `close`.
        let _ = self.close();
    }
}

/// A log that was read, and is ready to be written.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) writer: Writer,
    pub(crate) report: RecoveryReport,
    topics: Vec<FoundTopic>,
}

impl Recovered {
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        options: StoreOptions,
        boot: Option<BootId>,
        keeps_messages: bool,
    ) -> Result<Self, OpenError> {
        let mode = Mode {
            writes: true,
            skips_damage: options.repair,
            keeps_messages,
            boot,
            progress: options.progress.clone(),
        };
        let Recovery { mut replay, segments, end, report } = recovery::recover(disk, &mode)?;
        let (segment, offset, spares) = match end {
            Some(end) => (end.segment, end.offset, end.spares),
            None => {
                let first = first_segment(disk, &options)?;
                segments.insert(Arc::clone(&first.segment));
                (first, SegmentHeader::END, [].into())
            }
        };
        let queue_bytes = options.queue_bytes;
        let boot = boot.unwrap_or_default();
        let tail = Tail::resume(Arc::clone(&segments), options, segment, offset, spares, boot);
        let shared = Arc::new(Shared::new(segments, queue_bytes));
        let mut topics = Vec::with_capacity(replay.topics.len());
        let mut numbers = HashMap::with_capacity(replay.topics.len());
        for (number, found) in replay.topics.drain() {
            let found = found.into_topic(number, &shared.segments);
            numbers.insert(number, Arc::clone(&found.topic));
            topics.push(found);
        }
        let mut writer = Writer::new(shared, tail, numbers, replay.last_number);
        let failed = |error| OpenError::io(disk.path(0), error);
        if report.after_power_cut {
            // What was left out must stay so, even if the next run takes this one for one after a power cut no more.
            writer.write_states().map_err(failed)?;
        }
        match writer.tail.make_reserve() {
            // It is looked for again when it is needed.
            Err(error) if is_full(&error) => {}
            result => result.map_err(failed)?,
        }
        Ok(Self { writer, report, topics })
    }

    /// Hands all topics over to the bus.
    pub(crate) fn hand_over(&mut self, found: &mut dyn FnMut(RecoveredTopic) -> Adopted) {
        let shared = &self.writer.shared;
        for FoundTopic { topic, state, messages, groups } in self.topics.drain(..) {
            let (promise, gaps) = {
                let progress = topic.progress.lock();
                (progress.written.promise, progress.gaps.clone())
            };
            let store = Handle { topic: Arc::clone(&topic), shared: Arc::clone(shared) };
            let info = TopicInfo::clone(&topic.info);
            let store = Box::new(store);
            let recovered = RecoveredTopic { info, promise, state, gaps, messages, groups, store };
            let Adopted { observer, promise } = found(recovered);
            topic.adopt(promise, observer);
        }
    }
}

/// Makes the first segment of a new store.
fn first_segment(disk: &Arc<dyn Disk>, options: &StoreOptions) -> Result<OpenSegment, OpenError> {
    let store_id = RandomState::new().hash_one(Instant::now());
    let header = SegmentHeader { number: 1, store_id, len: options.next_segment_bytes(0) };
    create_segment(disk, header).map_err(|error| OpenError::io(disk.path(1), error))
}
