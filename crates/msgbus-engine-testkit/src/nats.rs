//! Real servers of NATS.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::SOON;

/// A server that can be killed and started again.
#[derive(Debug)]
pub struct NatsServer {
    program: PathBuf,
    port: u16,
    directory: TempDir,
    process: Option<Child>,
    /// Whether it keeps messages.
    pub has_jetstream: bool,
    /// Further arguments of its command line.
    pub arguments: Vec<String>,
}

/// The servers to test with: that of the system, and those that `MSGBUS_NATS_SERVERS` names, separated by colons.
pub fn programs() -> Vec<PathBuf> {
    let others = std::env::var("MSGBUS_NATS_SERVERS").unwrap_or_default();
    let others = others.split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
    let system = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"];
    let system = system.iter().map(PathBuf::from).find(|path| path.exists());
    let all: Vec<PathBuf> = system.into_iter().chain(others).collect();
    if all.is_empty() {
        let is_needed = std::env::var_os("MSGBUS_TEST_ALL").is_some();
        assert!(!is_needed, "there is no nats-server");
        #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
        let say = || eprintln!("SKIPPED: there is no nats-server");
        say();
    }
    all
}

/// A port on which nobody listens, and which the system gives to no connection.
fn free_port() -> u16 {
    /// No two servers of this process get the same, also if one does not run yet.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 22_000;
    let start = fastrand::u16(1..COUNT);
    let _ = NEXT.compare_exchange(0, start, Relaxed, Relaxed);
    loop {
        let port = FIRST + NEXT.fetch_add(1, Relaxed) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl NatsServer {
    /// Starts a server on a free port.
    pub fn start(program: &Path) -> Self {
        let mut server = Self::new(program);
        server.run();
        server
    }

    /// A server that does not run yet.
    pub fn new(program: &Path) -> Self {
        let port = free_port();
        let directory = tempfile::tempdir().unwrap();
        Self {
            program: program.to_owned(),
            port,
            directory,
            process: None,
            has_jetstream: true,
            arguments: Vec::new(),
        }
    }

    /// Starts it, and waits until it accepts connections.
    pub fn run(&mut self) {
        let start = Instant::now();
        self.spawn();
        loop {
            let is_open = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            let process = self.process.as_mut().unwrap();
            match process.try_wait().unwrap() {
                None if is_open => return,
                None => std::thread::sleep(Duration::from_millis(5)),
                Some(_) => {
                    // Somebody else has the port for the moment.
                    std::thread::sleep(Duration::from_millis(100));
                    self.spawn();
                }
            }
            assert!(start.elapsed() < SOON, "nats-server does not start");
        }
    }

    fn spawn(&mut self) {
        let mut command = Command::new(&self.program);
        if self.has_jetstream {
            command.args(["-js", "-sd"]).arg(self.directory.path());
        }
        let process = command
            .args(["-a", "127.0.0.1", "-p", &self.port.to_string()])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.unwrap());
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops it, so that it keeps what it knows.
    pub fn stop(&mut self) {
        if self.process.is_some() {
            self.signal("-TERM");
        }
        if let Some(mut process) = self.process.take() {
            process.wait().unwrap();
        }
    }

    /// Sends it a signal. With `-STOP` it is silent, until `-CONT`.
    pub fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Removes everything that it has kept. It must not be running.
    pub fn empty(&mut self) {
        assert!(self.process.is_none());
        self.directory = tempfile::tempdir().unwrap();
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
