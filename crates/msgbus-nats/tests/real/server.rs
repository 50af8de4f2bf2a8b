//! Real servers of NATS for the tests.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use msgbus_engine_testkit::SOON;
use msgbus_nats::{ConnectOptions, NatsEngine, NatsOptions};
use tempfile::TempDir;

/// A server that can be killed and started again.
#[derive(Debug)]
pub(crate) struct Server {
    program: PathBuf,
    port: u16,
    directory: TempDir,
    process: Option<Child>,
}

/// The servers to test with: that of the system, and those that `MSGBUS_NATS_SERVERS` names, separated by colons.
pub(crate) fn programs() -> Vec<PathBuf> {
    let others = std::env::var("MSGBUS_NATS_SERVERS").unwrap_or_default();
    let others = others.split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
    let system = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"];
    let system = system.iter().map(PathBuf::from).find(|path| path.exists());
    let all: Vec<PathBuf> = system.into_iter().chain(others).collect();
    if all.is_empty() {
        let is_needed = std::env::var_os("MSGBUS_TEST_ALL").is_some();
        assert!(!is_needed, "there is no nats-server");
        eprintln!("SKIPPED: there is no nats-server");
    }
    all
}

impl Server {
    pub(crate) fn start(program: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self { program: program.to_owned(), port, directory, process: None };
        server.run();
        server
    }

    /// Starts it, and waits until it accepts connections.
    pub(crate) fn run(&mut self) {
        let process = Command::new(&self.program)
            .args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-js", "-sd"])
            .arg(self.directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.unwrap());
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(start.elapsed() < SOON, "nats-server does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops it, so that it keeps what it knows.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = process.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
            process.wait().unwrap();
        }
    }

    /// Removes everything that it has kept. It must not be running.
    pub(crate) fn empty(&mut self) {
        assert!(self.process.is_none());
        self.directory = tempfile::tempdir().unwrap();
    }

    pub(crate) fn options(&self) -> NatsOptions {
        NatsOptions {
            lease: Duration::from_secs(3),
            timeout: Duration::from_secs(5),
            ..NatsOptions::new(format!("nats://127.0.0.1:{}", self.port))
        }
    }

    /// An engine that is connected.
    pub(crate) async fn engine(&self, options: NatsOptions) -> NatsEngine {
        let engine = NatsEngine::connect(options, ConnectOptions::new()).await.unwrap();
        let start = Instant::now();
        let topic = "warm/up".parse().unwrap();
        while msgbus_core::engine::Engine::stats(&engine, &topic).await.is_err() {
            assert!(start.elapsed() < SOON, "no connection");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        engine
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
