//! Damaged files: they are noticed and named, never taken for something else.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Weak},
};

use msgbus_core::{
    BatchLimit,
    store::{Adopted, CommitObserver, GroupChange, KeptGroup, OpenMessage, RecoveredMessage},
};

use super::{
    model::Ending,
    observer::Observer,
    world::{World, read},
};
use crate::{
    disk::{Disk, simulated::SimulatedDisk},
    error::OpenError,
    format::{Frame, LogRecord, Seal, SegmentHeader, frame},
    options::StoreOptions,
    recovery::{self, Mode},
    stats::RecoveryReport,
    store::Recovered,
};

type Files = BTreeMap<u32, Vec<u8>>;
type Contents = HashMap<u64, (Vec<RecoveredMessage>, Vec<(u8, KeptGroup)>)>;

/// The files of a store that was used for a while.
fn used_store(seed: u64, ending: Ending) -> (Files, Contents) {
    let mut world = World::new(seed);
    world.open(Ending::Kill).expect("an empty disk");
    for _ in 0..80 {
        world.step();
    }
    world.work();
    world.end(ending);
    let files = world.disk.contents();
    let contents = open(&SimulatedDisk::with_contents(&files), false).expect("good").1;
    (files, contents)
}

fn open(disk: &SimulatedDisk, repair: bool) -> Result<(RecoveryReport, Contents), OpenError> {
    let options = StoreOptions { segment_bytes: 8 << 10, repair, ..StoreOptions::default() };
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut recovered = Recovered::open(&disk, options, Some([1; 16]), true)?;
    let mut contents = HashMap::new();
    let shared = Arc::clone(&recovered.writer.shared);
    let promise = msgbus_core::store::Promise::Synced;
    recovered.hand_over(&mut |found| {
        let all = BatchLimit { events: usize::MAX, bytes: usize::MAX };
        let messages = read(&*found.store, &shared, 0, all);
        contents.insert(found.info.epoch, (messages, found.groups));
        let observer = Weak::<Observer>::new() as Weak<dyn CommitObserver>;
        Adopted { observer, promise }
    });
    Ok((recovered.report, contents))
}

/// Calls `each` with the files after one bit was flipped, for each byte that is not within a long row of zeros.
fn flipped(files: &Files, mut each: impl FnMut(u32, usize, &Files)) {
    let mut files = files.clone();
    for number in files.keys().copied().collect::<Vec<_>>() {
        let used = files[&number].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 100);
        for offset in 0..used.min(files[&number].len()) {
            let bit = 1 << (offset % 8);
            let flip = |files: &mut Files| {
                files.get_mut(&number).expect("a file")[offset] ^= bit;
            };
            flip(&mut files);
            each(number, offset, &files);
            flip(&mut files);
        }
    }
}

/// What stands in a log, also what is not needed any more.
#[derive(Debug, Default)]
struct Written {
    /// The ids and payloads of messages.
    messages: HashSet<(u64, Vec<u8>)>,
    /// By nonce.
    open: HashMap<u64, OpenMessage>,
}

impl Written {
    fn add(&mut self, record: &LogRecord<'_>) {
        match record {
            LogRecord::Message(message) => {
                let message = message.recover().expect("a message");
                self.messages.insert((message.id, message.payload.to_vec()));
            }
            LogRecord::Group(group) => {
                let open = match group.change().expect("a change") {
                    GroupChange::Set(group) => group.open.into_values().collect(),
                    GroupChange::Update(update) => update.open,
                    GroupChange::Removed => Vec::new(),
                };
                self.open.extend(open.into_iter().map(|message| (message.nonce, message)));
            }
            _ => {}
        }
    }

    /// Whether everything that was found was written once.
    fn has(&self, found: &Contents) -> bool {
        found.values().all(|(messages, groups)| {
            let known = |message: &RecoveredMessage| (message.id, message.payload.to_vec());
            let mut open = groups.iter().flat_map(|(_, group)| group.open.values());
            messages.iter().all(|message| self.messages.contains(&known(message)))
                && open.all(|message| self.open.get(&message.nonce) == Some(message))
        })
    }
}

fn written(files: &Files) -> Written {
    let mut found = Written::default();
    for content in files.values() {
        let header = content.first_chunk().expect("a header");
        let header = SegmentHeader::decode(header).expect("a header");
        let mut at = SegmentHeader::SIZE;
        let room = |at| (content.len() - at) as u64;
        while let Frame::Record { body, size } =
            frame(&content[at..], Seal::new(&header).at(at as u64), room(at))
        {
            found.add(&LogRecord::decode(body).expect("a record"));
            at += size;
        }
    }
    found
}

#[test]
fn a_flipped_bit_is_named_or_harmless_after_a_clean_stop() {
    let has_open = |(_, contents): &(Files, Contents)| {
        let mut groups = contents.values().flat_map(|(_, groups)| groups);
        groups.any(|(_, group)| !group.open.is_empty())
    };
    let mut stores = (0..).map(|seed| used_store(seed, Ending::Close));
    let (files, contents) = stores.find(has_open).expect("some store");
    let mut named = 0;
    flipped(&files, |number, at, files| match open(&SimulatedDisk::with_contents(files), false) {
        Ok((_, found)) => assert!(found == contents, "{number}, {at}"),
        Err(OpenError::Damaged { file, offset, .. }) => {
            assert_eq!(file, SimulatedDisk::new(0).path(number));
            assert!(offset <= at as u64, "{offset} is after {at}");
            named += 1;
        }
        Err(OpenError::NewerVersion { .. }) => panic!("{number}, {at}: no newer version"),
        Err(error) => panic!("{number}, {at}: {error}"),
    });
    let bytes: usize = files.values().map(Vec::len).sum();
    assert!(named > bytes / 4, "{named} of {bytes}");
}

#[test]
fn a_flipped_bit_never_makes_another_message() {
    for seed in 0..3 {
        let (files, _) = used_store(seed, Ending::Kill);
        let written = written(&files);
        flipped(&files, |number, at, files| {
            if let Ok((_, found)) = open(&SimulatedDisk::with_contents(files), false) {
                assert!(written.has(&found), "{number}, {at}");
            }
        });
    }
}

#[test]
fn a_cut_file_is_named() {
    let (files, _) = used_store(2, Ending::Close);
    for (number, content) in &files {
        for length in 0..content.len() {
            let mut files = files.clone();
            files.get_mut(number).expect("a file").truncate(length);
            let error = open(&SimulatedDisk::with_contents(&files), false).expect_err("cut");
            let OpenError::Damaged { file, .. } = error else {
                panic!("{number}, {length}: {error}")
            };
            assert_eq!(file, SimulatedDisk::new(0).path(*number));
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let (files, _) = used_store(3, Ending::Close);
    let (first, last) = (files.keys().next().expect("one"), files.keys().last().expect("one"));
    for missing in first + 1..*last {
        let mut files = files.clone();
        files.remove(&missing);
        let error = open(&SimulatedDisk::with_contents(&files), false).expect_err("missing");
        let OpenError::Damaged { file, .. } = error else { panic!("{error}") };
        assert_eq!(file, SimulatedDisk::new(0).path(missing));
    }
}

#[test]
fn a_repair_skips_what_is_damaged_and_is_done_once() {
    let (files, contents) = used_store(4, Ending::Close);
    let count =
        |found: &Contents| found.values().map(|(messages, _)| messages.len()).sum::<usize>();
    let all = count(&contents);
    let written = written(&files);
    let (mut repaired, mut kept) = (0, 0);
    flipped(&files, |number, at, files| {
        let disk = SimulatedDisk::with_contents(files);
        let (report, found) = match open(&disk, true) {
            Err(OpenError::Damaged { can_repair: false, .. }) if at < 64 => return,
            result => result.unwrap_or_else(|error| panic!("{number}, {at}: {error}")),
        };
        // What had left its topic may be back, if the record that says so is lost.
        assert!(written.has(&found), "{number}, {at}");
        kept += count(&found);
        if report.skipped.is_empty() {
            kept -= all;
        } else {
            repaired += 1;
            let (again, same) = open(&disk, false).expect("repaired");
            assert!(again.skipped.is_empty(), "{number}, {at}: {again:?}");
            assert!(same == found, "{number}, {at}: {report:?} {again:?}");
        }
    });
    assert!(repaired > 1000, "{repaired}");
    assert!(kept > repaired * all * 3 / 4, "{} of {all} are kept", kept / repaired);
}

#[test]
fn a_record_is_only_valid_at_its_place() {
    let (mut files, contents) = used_store(5, Ending::Kill);
    let end = |content: &Vec<u8>| {
        content.iter().rposition(|byte| *byte != 0).map_or(0, |last| (last + 1).next_multiple_of(8))
    };
    let newest = *files.iter().rfind(|(_, content)| end(content) > 64).expect("a record").0;
    let content = files.get_mut(&newest).expect("a file");
    let length = u32::from_le_bytes(*content[68..].first_chunk().expect("a record"));
    let at = end(content);
    content.copy_within(64..72 + length as usize, at);
    let (report, found) = open(&SimulatedDisk::with_contents(&files), false).expect("a torn tail");
    assert_eq!(report.torn_tail.map(|torn| torn.offset), Some(at as u64));
    assert!(found == contents);
}

#[test]
fn any_bytes_are_read_without_a_panic() {
    let mut random = fastrand::Rng::with_seed(5);
    for seed in 0..2000 {
        let (mut files, _) =
            if seed % 500 == 0 { used_store(seed, Ending::Kill) } else { continue };
        for _ in 0..500 {
            for content in files.values_mut() {
                for _ in 0..random.usize(..20) {
                    let at = random.usize(64..content.len());
                    let end = (at + random.usize(..40)).min(content.len());
                    match random.u32(..3) {
                        0 => content[at..end].fill(0),
                        1 => random.fill(&mut content[at..end]),
                        _ => {
                            let to = random.usize(64..content.len() - 40);
                            content.copy_within(at..end, to);
                        }
                    }
                }
            }
            let disk = SimulatedDisk::with_contents(&files);
            let _ = open(&disk, false);
            let disk: Arc<dyn Disk> = Arc::new(disk);
            let mode = Mode { skips_damage: true, keeps_messages: true, ..Mode::default() };
            let _ = recovery::recover(&disk, &mode);
        }
    }
}
