//! A disk in memory. It keeps apart what was not synced, and at a power cut it keeps any part of that, by sectors. It
//! fails or ends at any operation that it is told.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Access, Disk, DiskFile};

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing but what is asked for.
    Work,
    /// The operation with this number is the last one. It may take effect in part.
    EndAt(u64),
    /// The operation with this number fails.
    FailAt(u64, ErrorKind),
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    files: BTreeMap<u32, Arc<Mutex<FileState>>>,
    /// Removed, and perhaps back after a power cut.
    removed: Vec<(u32, Arc<Mutex<FileState>>)>,
    plan: Plan,
    operations: u64,
    has_ended: bool,
    /// The maximum size of all files, in bytes.
    capacity: u64,
    random: fastrand::Rng,
}

#[derive(Debug, Clone, Default)]
struct FileState {
    /// What is on the disk.
    synced: Vec<u8>,
    /// What a read returns.
    content: Vec<u8>,
    /// Writes since the last sync.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// The name survives a power cut.
    has_name: bool,
}

impl FileState {
    const SECTOR: usize = 512;

    fn write(&mut self, bytes: &[u8], offset: usize) {
        put(&mut self.content, bytes, offset);
        self.unsynced.push((offset, bytes.to_vec()));
    }

    /// Makes certain what was not synced yet, except for what a failed sync has forgotten.
    fn sync(&mut self) {
        for (offset, bytes) in self.unsynced.drain(..) {
            put(&mut self.synced, &bytes, offset);
        }
    }

    /// Keeps what was synced, and some sectors of what was not.
    fn cut_power(&mut self, random: &mut fastrand::Rng) {
        // Often nothing or everything survives.
        let kept = [0, 50, 90, 100][random.usize(..4)];
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            let mut start = 0;
            while start < bytes.len() {
                let end = (offset + start + 1).next_multiple_of(Self::SECTOR) - offset;
                let end = end.min(bytes.len());
                if random.usize(..100) < kept {
                    put(&mut self.synced, &bytes[start..end], offset + start);
                }
                start = end;
            }
        }
        self.content.clone_from(&self.synced);
        self.has_name = true;
    }
}

fn put(target: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    let end = offset + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[offset..end].copy_from_slice(bytes);
}

/// What becomes of an operation.
enum Fate {
    Works,
    /// It fails, and may take effect in part.
    Fails(io::Error),
}

impl State {
    fn operation(&mut self) -> io::Result<Fate> {
        let ended = || io::Error::other("the machine is off");
        if self.has_ended {
            return Err(ended());
        }
        self.operations += 1;
        match self.plan {
            Plan::EndAt(at) if at == self.operations => {
                self.has_ended = true;
                Ok(Fate::Fails(ended()))
            }
            Plan::FailAt(at, kind) if at == self.operations => Ok(Fate::Fails(kind.into())),
            _ => Ok(Fate::Works),
        }
    }
}

impl SimulatedDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: BTreeMap::new(),
            removed: Vec::new(),
            plan: Plan::Work,
            operations: 0,
            has_ended: false,
            capacity: u64::MAX,
            random: fastrand::Rng::with_seed(seed),
        })))
    }

    /// Counts operations from 0.
    pub(crate) fn plan(&self, plan: Plan) {
        let mut state = self.0.lock();
        state.plan = plan;
        state.operations = 0;
    }

    /// How many operations there were since [`plan`](Self::plan).
    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.0.lock().capacity = capacity;
    }

    /// Whether the planned end has come.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.lock().has_ended
    }

    /// The process ends. What was written is still there.
    pub(crate) fn kill(&self) {
        let mut state = self.0.lock();
        state.plan = Plan::Work;
        state.has_ended = false;
    }

    /// The machine loses its power.
    pub(crate) fn cut_power(&self) {
        self.kill();
        let mut state = self.0.lock();
        let State { files, removed, random, .. } = &mut *state;
        files.retain(|_, file| file.lock().has_name || random.bool());
        for (number, file) in removed.drain(..) {
            if random.bool() {
                files.insert(number, file);
            }
        }
        for file in files.values_mut() {
            // A handle of the time before must not see what comes.
            let mut copy = file.lock().clone();
            copy.cut_power(random);
            *file = Arc::new(Mutex::new(copy));
        }
    }

    /// The content of all files.
    pub(crate) fn contents(&self) -> BTreeMap<u32, Vec<u8>> {
        let state = self.0.lock();
        state.files.iter().map(|(number, file)| (*number, file.lock().content.clone())).collect()
    }

    /// A disk with these files.
    pub(crate) fn with_contents(contents: &BTreeMap<u32, Vec<u8>>) -> Self {
        let disk = Self::new(0);
        for (number, content) in contents {
            let file = FileState {
                synced: content.clone(),
                content: content.clone(),
                unsynced: Vec::new(),
                has_name: true,
            };
            disk.0.lock().files.insert(*number, Arc::new(Mutex::new(file)));
        }
        disk
    }

    fn open_file(&self, file: &Arc<Mutex<FileState>>) -> Arc<dyn DiskFile> {
        Arc::new(SimulatedFile { disk: self.clone(), file: Arc::clone(file) })
    }
}

impl Disk for SimulatedDisk {
    fn list(&self) -> io::Result<Vec<u32>> {
        Ok(self.0.lock().files.keys().copied().collect())
    }

    fn create(&self, number: u32, len: u64, header: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        let fate = state.operation()?;
        let used: u64 = state.files.values().map(|file| file.lock().content.len() as u64).sum();
        if used + len > state.capacity {
            return Err(ErrorKind::StorageFull.into());
        }
        if let Fate::Fails(error) = fate
            && (!state.has_ended || state.random.bool())
        {
            return Err(error);
        }
        let mut file = FileState::default();
        put(&mut file.content, header, 0);
        file.content.resize(usize::try_from(len).expect("small"), 0);
        file.synced.clone_from(&file.content);
        let file = Arc::new(Mutex::new(file));
        state.files.insert(number, Arc::clone(&file));
        drop(state);
        Ok(self.open_file(&file))
    }

    fn open(&self, number: u32, _: Access) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.0.lock().files.get(&number).cloned();
        file.map(|file| self.open_file(&file)).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        let mut state = self.0.lock();
        if let Fate::Fails(error) = state.operation()?
            && (!state.has_ended || state.random.bool())
        {
            return Err(error);
        }
        let file = state.files.remove(&number).ok_or(ErrorKind::NotFound)?;
        state.removed.push((number, file));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if let Fate::Fails(error) = state.operation()? {
            return Err(error);
        }
        state.removed.clear();
        for file in state.files.values() {
            file.lock().has_name = true;
        }
        Ok(())
    }

    fn keep_copy(&self, number: u32) -> io::Result<PathBuf> {
        Ok(self.path(number))
    }

    fn path(&self, number: u32) -> PathBuf {
        format!("log/{number:016x}.seg").into()
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    file: Arc<Mutex<FileState>>,
}

impl DiskFile for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.lock().content.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.file.lock();
        let offset = usize::try_from(offset).expect("small");
        let content = file.content.get(offset..offset + buffer.len());
        buffer.copy_from_slice(content.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let offset = usize::try_from(offset).expect("small");
        match state.operation()? {
            Fate::Works => {
                self.file.lock().write(bytes, offset);
                Ok(())
            }
            Fate::Fails(error) => {
                let part = state.random.usize(..=bytes.len());
                self.file.lock().write(&bytes[..part], offset);
                Err(error)
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let mut file = self.file.lock();
        match state.operation()? {
            Fate::Works => file.sync(),
            Fate::Fails(error) => {
                if state.has_ended {
                    // It may have been done when the power went.
                    if state.random.bool() {
                        file.sync();
                    }
                } else {
                    // The kernel forgets what it could not write.
                    file.unsynced.clear();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut file = self.file.lock();
        let len = usize::try_from(len).expect("small");
        file.content.resize(len, 0);
        file.synced.resize(len, 0);
        Ok(())
    }
}
