//! A file that is open only while it is needed.

use std::{io, sync::Arc};

use parking_lot::Mutex;

use super::{Access, Disk, DiskFile};

/// A segment that may be closed, and is opened again when it is used. So a log may have more segments than a process may
/// have open files.
#[derive(Debug)]
pub(crate) struct ClosableFile {
    disk: Arc<dyn Disk>,
    number: u32,
    access: Access,
    open: Mutex<Option<Arc<dyn DiskFile>>>,
}

impl ClosableFile {
    pub(crate) fn new(disk: Arc<dyn Disk>, number: u32, access: Access) -> Self {
        Self { disk, number, access, open: Mutex::new(None) }
    }

    pub(crate) fn close(&self) {
        *self.open.lock() = None;
    }

    fn open(&self) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock();
        if let Some(file) = &*open {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(self.number, self.access)?;
        *open = Some(Arc::clone(&file));
        Ok(file)
    }
}

impl DiskFile for ClosableFile {
    fn len(&self) -> io::Result<u64> {
        self.open()?.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.open()?.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.open()?.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.open()?.sync()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.open()?.set_len(len)
    }
}
