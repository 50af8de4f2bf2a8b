//! The processor time and the memory of a server's processes. Linux only.

use std::{fs, io, time::Duration};

/// The processes of a server.
#[derive(Debug, Clone, Default)]
pub struct Server {
    pids: Vec<u32>,
}

impl Server {
    /// A server that consists of these processes.
    pub fn new(pids: impl Into<Vec<u32>>) -> Self {
        Self { pids: pids.into() }
    }

    /// This process.
    pub fn own() -> Self {
        Self::new([std::process::id()])
    }

    /// The processor time of all threads.
    ///
    /// # Errors
    /// A process does not exist, or the system does not report it.
    pub fn processor_time(&self) -> io::Result<Duration> {
        let mut nanoseconds = 0;
        for pid in &self.pids {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                // A thread may end meanwhile.
                let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
                nanoseconds += first_number(&text)?;
            }
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The resident memory, in bytes.
    ///
    /// # Errors
    /// See [`processor_time`](Self::processor_time).
    pub fn resident(&self) -> io::Result<u64> {
        let mut kilobytes = 0;
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            kilobytes += first_number(line.unwrap_or_default())?;
        }
        Ok(kilobytes * 1024)
    }
}

fn first_number(text: &str) -> io::Result<u64> {
    let number = text.split_whitespace().next().and_then(|word| word.parse().ok());
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc is not as expected"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something() {
        let server = Server::own();
        assert!(server.processor_time().unwrap() > Duration::ZERO);
        assert!(server.resident().unwrap() > 100_000);
        assert!(Server::new([u32::MAX]).resident().is_err());
    }
}
