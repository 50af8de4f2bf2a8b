//! Real servers of Redis and Valkey for the tests.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use msgbus_core::engine::Engine as _;
use msgbus_engine_testkit::SOON;
use msgbus_redis::{RedisEngine, RedisOptions};
use redis::{Value, aio::MultiplexedConnection};
use tempfile::TempDir;

/// A server that can be killed and started again. It has a write on its disk before it answers.
#[derive(Debug)]
pub(crate) struct Server {
    program: PathBuf,
    port: u16,
    directory: TempDir,
    arguments: Vec<String>,
    process: Option<Child>,
}

/// The servers to test with: that of the system, and those that `MSGBUS_REDIS_SERVERS` names, separated by colons.
pub(crate) fn programs() -> Vec<PathBuf> {
    let others = std::env::var("MSGBUS_REDIS_SERVERS").unwrap_or_default();
    let others = others.split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
    let system = ["/usr/bin/redis-server", "/usr/local/bin/redis-server", "/usr/bin/valkey-server"];
    let system = system.iter().map(PathBuf::from).find(|path| path.exists());
    let all: Vec<PathBuf> = system.into_iter().chain(others).collect();
    if all.is_empty() {
        let is_needed = std::env::var_os("MSGBUS_TEST_ALL").is_some();
        assert!(!is_needed, "there is no redis-server");
        eprintln!("SKIPPED: there is no redis-server");
    }
    all
}

/// A port that the system does not give to others, so that the server gets it again when it is restarted.
pub(crate) fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| fastrand::u16(15_000..32_000)).find(free).unwrap()
}

/// Whether this process serves the port. A server that asks for a password does not say.
fn serves(port: u16, process: u32) -> io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"INFO server\r\nQUIT\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let own = format!("process_id:{process}\r\n");
    Ok(answer.contains(&own) || answer.starts_with("-NOAUTH"))
}

impl Server {
    pub(crate) fn start(program: &Path) -> Self {
        Self::start_with(program, &[])
    }

    pub(crate) fn start_with(program: &Path, arguments: &[&str]) -> Self {
        let mut server = Self::new(program, arguments);
        server.run();
        server
    }

    /// A server that may not know the arguments.
    pub(crate) fn try_start(program: &Path, arguments: &[&str]) -> Option<Self> {
        let mut server = Self::new(program, arguments);
        server.try_run().then_some(server)
    }

    fn new(program: &Path, arguments: &[&str]) -> Self {
        Self {
            program: program.to_owned(),
            port: free_port(),
            directory: tempfile::tempdir().unwrap(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            process: None,
        }
    }

    /// Starts it, and waits until it accepts connections.
    pub(crate) fn run(&mut self) {
        let start = Instant::now();
        // Its port may have been in use for a moment.
        while !self.try_run() {
            assert!(start.elapsed() < SOON, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn try_run(&mut self) -> bool {
        let process = self.spawn();
        self.wait_for(process)
    }

    /// Waits until it accepts connections. Returns `false` if it has ended.
    fn wait_for(&mut self, mut process: Child) -> bool {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < SOON, "the server does not start");
            match serves(self.port, process.id()) {
                Ok(true) => {
                    self.process = Some(process);
                    return true;
                }
                // Somebody else has the port.
                Ok(false) => {
                    let _ = process.kill();
                    let _ = process.wait();
                    return false;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
            if process.try_wait().unwrap().is_some() {
                return false;
            }
        }
    }

    fn spawn(&self) -> Child {
        let process = Command::new(&self.program)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
            .arg(self.directory.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        process.unwrap()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Stops it, so that it keeps what it knows.
    pub(crate) fn stop(&mut self) {
        self.signal("-TERM");
        self.process.take().unwrap().wait().unwrap();
    }

    /// Removes everything that it has kept. It must not be running.
    pub(crate) fn empty(&mut self) {
        assert!(self.process.is_none());
        self.directory = tempfile::tempdir().unwrap();
    }

    /// The log of writes.
    fn log(&self) -> PathBuf {
        let logs = std::fs::read_dir(self.directory.path().join("appendonlydir")).unwrap();
        let mut logs = logs.map(|entry| entry.unwrap().path());
        let is_log = |path: &PathBuf| path.extension().is_some_and(|end| end == "aof");
        logs.find(|path| is_log(path) && path.to_string_lossy().contains(".incr.")).unwrap()
    }

    /// The size of the log of writes, in bytes.
    pub(crate) fn log_size(&self) -> u64 {
        self.log().metadata().unwrap().len()
    }

    /// Takes the end of the log of writes away. It must not be running.
    pub(crate) fn cut_log(&self, size: u64) {
        assert!(self.process.is_none());
        std::fs::OpenOptions::new().write(true).open(self.log()).unwrap().set_len(size).unwrap();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn options(&self) -> RedisOptions {
        RedisOptions {
            timeout: Duration::from_secs(10),
            ..RedisOptions::new(format!("redis://127.0.0.1:{}", self.port))
        }
    }

    /// An engine that is connected.
    pub(crate) async fn engine(&self, options: RedisOptions) -> RedisEngine {
        let engine = RedisEngine::connect(options).unwrap();
        let start = Instant::now();
        let topic = "warm/up".parse().unwrap();
        while let Err(error) = engine.stats(&topic).await {
            assert!(start.elapsed() < SOON, "no connection: {error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        engine
    }

    /// A connection of another client.
    pub(crate) async fn client(&self) -> MultiplexedConnection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let start = Instant::now();
        loop {
            let config = redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(SOON))
                .set_response_timeout(Some(SOON));
            match client.get_multiplexed_async_connection_with_config(&config).await {
                Ok(connection) => return connection,
                Err(error) => assert!(start.elapsed() < SOON, "no connection: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the server answers to a command.
    pub(crate) async fn ask(&self, command: &str) -> Value {
        let mut words = command.split(' ');
        let mut request = redis::cmd(words.next().unwrap());
        request.arg(words.collect::<Vec<_>>());
        request.query_async(&mut self.client().await).await.unwrap()
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
