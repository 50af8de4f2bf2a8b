//! Servers of this machine in processes of their own: starting, restarting and stopping them.

use std::{
    env, fs, io, iter,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

/// A running server. Dropping this stops it.
#[derive(Debug)]
pub struct Running {
    command: Command,
    child: Child,
    address: SocketAddr,
    folder: TempDir,
    /// The engine behind it. It is stopped afterwards.
    pub(crate) engine: Option<Box<Running>>,
    /// The time from its start until it accepted a connection.
    pub startup: Duration,
}

impl Running {
    /// Starts a server on a free port, with a folder that is removed when it stops, and waits until it
    /// accepts connections. `command` returns its command line.
    pub(crate) fn start(
        name: &str,
        command: impl FnOnce(u16, &Path) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Self> {
        let [free] = free_addresses()?;
        let port = free.port();
        let folder = tempfile::tempdir()?;
        let mut command = command(port, folder.path())?;
        let log = fs::File::create(folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let begin = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let startup = Duration::ZERO;
        let address = address(port);
        let mut running = Self { command, child, address, folder, engine: None, startup };
        running.wait_until_it_listens(begin).with_context(|| name.to_owned())?;
        Ok(running)
    }

    fn wait_until_it_listens(&mut self, begin: Instant) -> anyhow::Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(60);
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it exited with {status}: {}", self.log());
            }
            if begin.elapsed() > TIMEOUT {
                bail!("it does not listen: {}", self.log());
            }
            sleep(Duration::from_micros(200));
        }
        self.startup = begin.elapsed();
        Ok(())
    }

    /// Kills the server, so that it can write nothing more, and starts it again with the same command line.
    pub(crate) fn kill_and_start(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.start_again()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child processes of the server.
    pub(crate) fn children(&self) -> io::Result<Vec<u32>> {
        let pid = self.pid();
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
    }

    /// The folder of the server, which is removed when this is dropped.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills the server, or asks it to stop.
    pub(crate) fn end(&mut self, is_kill: bool) -> io::Result<()> {
        if is_kill { self.child.kill() } else { signal(self.child.id(), "TERM") }
    }

    /// How it has ended, if it has.
    pub(crate) fn status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Starts the server again, which has ended, with the same command line.
    pub(crate) fn start_again(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        self.child = self.command.spawn().context("cannot start it again")?;
        self.wait_until_it_listens(begin)
    }

    /// Stops the server, and returns its exit status; `None` if it had to be killed.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        const TIMEOUT: Duration = Duration::from_secs(30);
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        // If this fails, the server is killed below.
        let _ = signal(self.child.id(), "TERM");
        let begin = Instant::now();
        while begin.elapsed() < TIMEOUT {
            match self.child.try_wait() {
                Ok(None) => sleep(Duration::from_millis(20)),
                Ok(status) => return status,
                Err(_) => break,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }

    /// The address of the engine behind it.
    pub(crate) fn engine_address(&self) -> Option<SocketAddr> {
        Some(self.engine.as_ref()?.address)
    }

    /// The log of the server.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// Sends a signal to a process of this program.
pub(crate) fn signal(pid: u32, name: &str) -> io::Result<()> {
    // `kill` is built into every shell, but not every system has the program.
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status()?;
    if sent.success() { Ok(()) } else { Err(io::Error::other(format!("cannot send {name}"))) }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM first, so that the server ends its own children.
        self.stop();
    }
}

pub(crate) fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Addresses that the system does not give to others, with different ports, so that a server can be started again on them.
pub(crate) fn free_addresses<const COUNT: usize>() -> io::Result<[SocketAddr; COUNT]> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32768);
    let mut tries = iter::repeat_with(|| fastrand::u16(10_000..end.max(10_001))).take(1000);
    let mut addresses = [address(0); COUNT];
    let mut listeners = Vec::new();
    for free in &mut addresses {
        let listener = tries.find_map(|port| TcpListener::bind(address(port)).ok());
        let listener = listener.ok_or_else(|| io::Error::other("no port is free"))?;
        *free = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(addresses)
}

/// Builds the servers of this project.
pub(crate) fn build() -> anyhow::Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--locked", "-p", "msgbusd", "-p", "msgbus-bench"])
        .args(["--bin", "msgbusd", "--bin", "msgbus-bare"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "the servers cannot be built");
    Ok(())
}

/// The path of a program of this workspace, in the folder of this program.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} does not exist; build the workspace first", path.display());
    }
    Ok(path)
}
