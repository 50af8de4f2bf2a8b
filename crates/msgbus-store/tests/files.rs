//! The store with real files and threads.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use msgbus_core::{
    BatchLimit, GroupCounters, GroupSettings, Message, TopicInfo, json,
    store::{
        Adopted, CommitObserver, GroupChange, KeptGroup, OpenMessage, Promise, Record,
        RecoveredMessage, RecoveredTopic, Store, StoreError, Ticket, TopicState, TopicStore,
    },
};
use msgbus_store::{LogStore, OpenError, StoreOptions, backup, check, compact, dump};

/// Waits for what it is told.
#[derive(Debug, Default)]
struct Observer {
    told: Mutex<(Option<Ticket>, Option<StoreError>)>,
    changed: Condvar,
}

impl CommitObserver for Observer {
    fn committed(&self, up_to: Ticket) {
        self.told.lock().unwrap().0 = Some(up_to);
        self.changed.notify_all();
    }

    fn refused(&self, error: StoreError) {
        self.told.lock().unwrap().1 = Some(error);
        self.changed.notify_all();
    }
}

impl Observer {
    fn wait(&self, ticket: Ticket) {
        let told = self.told.lock().unwrap();
        let limit = Duration::from_secs(60);
        let waiting = |told: &mut (Option<Ticket>, Option<StoreError>)| {
            assert_eq!(told.1, None);
            told.0.is_none_or(|last| last < ticket)
        };
        let waited = self.changed.wait_timeout_while(told, limit, waiting).unwrap();
        assert!(!waited.1.timed_out(), "{ticket:?} is not committed");
    }
}

fn message(id: u64, text: &str) -> Message {
    let time = "2026-01-02T03:04:05.678901234Z";
    let json = format!(
        "{{\"id\":{id},\"created\":\"{time}\",\"payload\":\"{text}\",\"topic\":{{\"name\":\"t\",\
         \"created\":\"{time}\"}}}}"
    );
    json::read_message(json.as_bytes()).unwrap()
}

struct Topic {
    store: Box<dyn TopicStore>,
    observer: Arc<Observer>,
    state: TopicState,
}

impl Topic {
    fn create(store: &LogStore, name: &str, epoch: u64) -> Self {
        let info = TopicInfo {
            name: name.parse().unwrap(),
            epoch,
            created: message(0, "").created(),
            ttl: None,
        };
        let observer = Arc::new(Observer::default());
        let weak = Arc::downgrade(&observer) as Weak<dyn CommitObserver>;
        let store = store.create(&Arc::new(info), Promise::Synced, weak).unwrap();
        Self { store, observer, state: TopicState::default() }
    }

    /// Sets a group that has been given these messages.
    fn lease(&mut self, ids: Range<u64>) -> Ticket {
        let next_id = ids.end;
        let open = ids.map(|id| {
            let (nonce, deliveries, is_leased, until, reason) = (id, 1, true, 5, None);
            (id, OpenMessage { id, nonce, deliveries, is_leased, until, reason })
        });
        let group = KeptGroup {
            name: "workers".parse().unwrap(),
            settings: GroupSettings::default(),
            is_explicit: false,
            base: 0,
            next_id,
            open: open.collect(),
            counters: GroupCounters::default(),
        };
        let change = GroupChange::Set(Box::new(group));
        self.store.append(Record::Group { number: 7, change }, self.state).unwrap()
    }

    fn append(&mut self, count: u64) -> Ticket {
        let ids = self.state.next_id..self.state.next_id + count;
        self.state.next_id += count;
        self.state.appended += count;
        let messages = ids.map(|id| message(id, &format!("{id:08}"))).collect();
        self.store.append(Record::Messages(messages), self.state).unwrap()
    }
}

fn open(path: &Path, options: StoreOptions) -> (LogStore, Vec<RecoveredTopic>) {
    let store = LogStore::open(path, options).unwrap();
    let mut topics = Vec::new();
    store
        .recover(&mut |found| {
            topics.push(found);
            let observer = Weak::<Observer>::new() as Weak<dyn CommitObserver>;
            Adopted { observer, promise: Promise::Synced }
        })
        .unwrap();
    (store, topics)
}

fn small() -> StoreOptions {
    StoreOptions { segment_bytes: 64 << 10, ..StoreOptions::default() }
}

fn ids(messages: &[RecoveredMessage]) -> Vec<u64> {
    messages.iter().map(|message| message.id).collect()
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b");
    let (store, topics) = open(&path, small());
    assert!(topics.is_empty());
    let mut topic = Topic::create(&store, "t", 7);
    for _ in 0..200 {
        let ticket = topic.append(30);
        topic.observer.wait(ticket);
    }
    assert!(store.stats().segments > 3 && store.stats().syncs >= 200, "{:?}", store.stats());
    let last = topic.append(1);
    store.close().unwrap();
    topic.observer.wait(last);
    let refused = topic.store.append(Record::Pulled, topic.state);
    assert_eq!(refused, Err(StoreError::Closed));
    drop(store);

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("LOCK"))), (0o700, 0o600));

    let (store, topics) = open(&path, small());
    let [found] = &topics[..] else { panic!("{topics:?}") };
    let kept: Vec<_> = found.messages.iter().map(|message| message.id).collect();
    assert_eq!(kept, (0..6001).collect::<Vec<_>>());
    assert_eq!(found.state, topic.state);
    let report = store.stats().recovery;
    assert!(report.was_clean && report.messages == 6001 && !report.after_power_cut, "{report:?}");
}

#[test]
fn messages_are_read_back_page_by_page() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path(), small());
    let mut topics = [Topic::create(&store, "a", 1), Topic::create(&store, "b", 2)];
    for _ in 0..300 {
        for topic in &mut topics {
            topic.append(7);
        }
    }
    let last = topics[0].append(1);
    topics[0].observer.wait(last);
    topics[0].store.release(50);
    let mut next_id = 0;
    let mut found = Vec::new();
    loop {
        let read = topics[0].store.read(next_id, BatchLimit { events: 100, bytes: 500 });
        let page = block_on(read).unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 84, "6 bytes each");
        next_id = last.id + 1;
        found.extend(page);
    }
    assert_eq!(ids(&found), (50..2101).collect::<Vec<_>>());
    assert!(
        found
            .iter()
            .all(|found| found.payload == message(found.id, &format!("{:08}", found.id)).payload())
    );
    drop(store);
    let closed = block_on(topics[0].store.read(0, BatchLimit { events: 1, bytes: 1 }));
    assert_eq!(closed, Err(StoreError::Closed));
}

/// Waits on this thread.
fn block_on<T>(mut future: std::pin::Pin<Box<dyn Future<Output = T> + Send + Sync>>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn one_process_uses_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let store = LogStore::open(directory.path(), small()).unwrap();
    let error = LogStore::open(directory.path(), small()).unwrap_err();
    let pid = std::process::id();
    assert!(matches!(error, OpenError::InUse { pid: Some(found), .. } if found == pid), "{error}");
    assert!(error.to_string().contains(&format!("(pid {pid})")), "{error}");
    drop(store);
    LogStore::open(directory.path(), small()).unwrap();
}

#[test]
fn a_directory_that_is_of_no_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "text").unwrap();
    let error = LogStore::open(&file, small()).unwrap_err();
    assert!(matches!(error, OpenError::NotADirectory { .. }), "{error:?}");

    let path = directory.path().join("store");
    drop(LogStore::open(&path, small()).unwrap());
    let segment = path.join("log/0000000000000001.seg");
    let good = fs::read(&segment).unwrap();
    let mut newer = good.clone();
    newer[8] = 2;
    let checksum = crc32fast::hash(&newer[..60]);
    newer[60..64].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&segment, newer).unwrap();
    let error = LogStore::open(&path, small()).unwrap_err();
    assert!(matches!(error, OpenError::NewerVersion { found: 2, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("0000000000000001.seg") && !text.contains('\n'), "{text}");

    fs::write(&segment, "no segment").unwrap();
    let error = LogStore::open(&path, small()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    fs::write(&segment, good).unwrap();
    // What a crash has left of a segment that was being made.
    fs::write(path.join("log/0000000000000002.new"), "half").unwrap();
    drop(LogStore::open(&path, small()).unwrap());
    assert!(!path.join("log/0000000000000002.new").exists());
}

#[test]
fn tools_check_dump_and_compact() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path(), small());
    let mut topics = [Topic::create(&store, "b", 1), Topic::create(&store, "a", 2)];
    for _ in 0..400 {
        for topic in &mut topics {
            let ticket = topic.append(10);
            topic.observer.wait(ticket);
        }
    }
    topics[0].store.release(3990);
    let ticket = topics[0].lease(3980..3995);
    topics[0].observer.wait(ticket);
    let dumped = |topic: Option<&str>| {
        let topic = topic.map(|name| name.parse().unwrap());
        let mut found = Vec::new();
        let mut each = |info: &TopicInfo, message: RecoveredMessage| {
            found.push((info.name.to_string(), message.id));
            true
        };
        dump(directory.path(), topic.as_ref(), &mut each).unwrap();
        found
    };
    // While the store is in use.
    let report = check(directory.path()).unwrap();
    assert!(report.skipped.is_empty() && report.topics == 2, "{report:?}");
    assert_eq!(report.groups, 1);
    assert_eq!(dumped(Some("a")), (0..4000).map(|id| ("a".to_owned(), id)).collect::<Vec<_>>());
    let last = topics[0].append(1);
    topics[0].observer.wait(last);
    assert!(compact(directory.path(), small()).is_err(), "in use");
    drop(store);

    let (before, after) = compact(directory.path(), small()).unwrap();
    assert!(after < before * 3 / 4, "{before}, {after}");
    let mut expected: Vec<_> = (0..4000).map(|id| ("a".to_owned(), id)).collect();
    expected.extend((3990..4001).map(|id| ("b".to_owned(), id)));
    assert_eq!(dumped(None), expected);
    let report = check(directory.path()).unwrap();
    assert!(report.was_clean && report.messages == 4011, "{report:?}");
    assert_eq!((report.groups, report.open_messages), (1, 5), "{report:?}");
    let (_, topics) = open(directory.path(), small());
    let [(7, group)] = &topics.iter().find(|topic| topic.info.epoch == 1).unwrap().groups[..]
    else {
        panic!("{topics:?}")
    };
    assert_eq!((group.name.as_str(), group.next_id), ("workers", 3995));
    assert_eq!(group.open.keys().copied().collect::<Vec<_>>(), (3990..3995).collect::<Vec<_>>());
}

#[test]
fn a_backup_of_a_busy_store_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let (store, _) = open(&path, small());
    let mut ring = Topic::create(&store, "ring", 1);
    let mut topic = Topic::create(&store, "t", 2);
    for _ in 0..100 {
        topic.append(5);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            // Goes through many files, so that they are made and freed while they are copied.
            let limit = Instant::now() + Duration::from_secs(60);
            while !stop.load(Relaxed) && Instant::now() < limit {
                let ticket = ring.append(100);
                ring.observer.wait(ticket);
                ring.store.release(ring.state.next_id.saturating_sub(200));
            }
        });
        for round in 0..20 {
            let ticket = topic.append(5);
            topic.observer.wait(ticket);
            let copy = directory.path().join(format!("copy{round}"));
            let report = backup(&path, &copy).unwrap();
            assert!(report.skipped.is_empty(), "{report:?}");
            let check = check(&path).unwrap();
            assert!(check.skipped.is_empty(), "{check:?}");
            let (_, topics) = open(&copy, small());
            let found = topics.iter().find(|found| found.info.name.as_str() == "t").unwrap();
            assert_eq!(found.state.next_id, topic.state.next_id);
            assert!(matches!(backup(&path, &copy), Err(OpenError::NotEmpty { .. })));
        }
        stop.store(true, Relaxed);
        writing.join().unwrap();
    });
}
