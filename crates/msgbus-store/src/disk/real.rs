//! The disk of this machine.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Access, Disk, DiskFile};

/// Segments in a directory, named by their number in 16 hexadecimal digits.
#[derive(Debug)]
pub(crate) struct RealDisk {
    directory: PathBuf,
}

impl RealDisk {
    /// Ends the name of a segment.
    const SEGMENT: &str = "seg";
    /// Ends the name of a segment that is being made. It gets its name when it is complete.
    const UNFINISHED: &str = "new";
    /// Ends the name of the copy of a damaged segment.
    const DAMAGED: &str = "seg.bad";

    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Removes what a crash has left of segments that were being made.
    pub(crate) fn remove_unfinished(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == Self::UNFINISHED) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn named(&self, number: u32, extension: &str) -> PathBuf {
        self.directory.join(format!("{number:016x}.{extension}"))
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_suffix(".seg"))
                .filter(|digits| digits.len() == 16)
                .and_then(|digits| u32::from_str_radix(digits, 16).ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn create(&self, number: u32, len: u64, header: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        let unfinished = self.named(number, Self::UNFINISHED);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        let complete = || {
            allocate(&file, len)?;
            file.write_all_at(header, 0)?;
            file.sync_all()?;
            fs::rename(&unfinished, self.path(number))
        };
        if let Err(error) = complete() {
            // A full disk leaves a file of a part of the size. If it cannot be removed, the next start does it.
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, number: u32, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(access == Access::Write).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        fs::remove_file(self.path(number))
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_directory(&self.directory)
    }

    fn keep_copy(&self, number: u32) -> io::Result<PathBuf> {
        let copy = self.named(number, Self::DAMAGED);
        fs::copy(self.path(number), &copy)?;
        File::open(&copy)?.sync_all()?;
        Ok(copy)
    }

    fn path(&self, number: u32) -> PathBuf {
        self.named(number, Self::SEGMENT)
    }
}

/// Makes the names in a directory survive a power cut.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// Reserves room for `len` bytes, which read as zeros, so that writing them cannot fail for want of room.
#[cfg(target_os = "linux")]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    use rustix::{fs::FallocateFlags, io::Errno};
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return write_zeros(file, len),
            result => return Ok(result?),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    write_zeros(file, len)
}

fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < len {
        let part = usize::try_from(len - offset).map_or(zeros.len(), |rest| rest.min(zeros.len()));
        file.write_all_at(&zeros[..part], offset)?;
        offset += part as u64;
    }
    Ok(())
}
