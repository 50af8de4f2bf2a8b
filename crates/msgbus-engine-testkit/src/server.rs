//! Real servers of NATS, Redis and Valkey.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::SOON;

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// NATS with `JetStream`.
    Nats,
    /// Redis or Valkey. It has a write on its disk before it answers.
    Redis,
}

/// The program of a server.
#[derive(Debug, Clone)]
pub struct Program {
    /// What it is.
    pub kind: Kind,
    path: PathBuf,
}

/// As the engine is called in errors.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nats => "nats",
            Self::Redis => "redis",
        })
    }
}

impl Deref for Program {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

/// A server that can be killed and started again.
#[derive(Debug)]
pub struct Server {
    program: Program,
    port: u16,
    directory: TempDir,
    process: Option<Child>,
    /// Whether NATS keeps messages.
    pub has_jetstream: bool,
    /// Further arguments of its command line.
    pub arguments: Vec<String>,
}

impl Kind {
    /// The servers to test with: that of the system, and those that a variable names, separated by colons:
    /// `MSGBUS_NATS_SERVERS` or `MSGBUS_REDIS_SERVERS`.
    pub fn programs(self) -> Vec<Program> {
        let (variable, name, others) = match self {
            Self::Nats => ("MSGBUS_NATS_SERVERS", "nats-server", None),
            Self::Redis => ("MSGBUS_REDIS_SERVERS", "redis-server", Some("valkey-server")),
        };
        let directories = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(Path::new);
        let system = [name].into_iter().chain(others);
        let mut system = system.flat_map(|name| directories.map(|at| at.join(name)));
        let named = std::env::var(variable).unwrap_or_default();
        let named = named.split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
        let all: Vec<_> = system.find(|path| path.exists()).into_iter().chain(named).collect();
        if all.is_empty() {
            let is_needed = std::env::var_os("MSGBUS_TEST_ALL").is_some();
            assert!(!is_needed, "there is no {name}");
            #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
            let say = || eprintln!("SKIPPED: there is no {name}");
            say();
        }
        all.into_iter().map(|path| Program { kind: self, path }).collect()
    }
}

/// A port on which nobody listens, and which the system gives to no connection: a server gets it again when it is
/// started again.
pub fn free_port() -> u16 {
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

/// Whether this process of Redis serves the port. A server that asks for a password does not say.
fn is_redis(port: u16, process: u32) -> io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"INFO server\r\nQUIT\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let own = format!("process_id:{process}\r\n");
    Ok(answer.contains(&own) || answer.starts_with("-NOAUTH"))
}

impl Server {
    /// Starts a server on a free port.
    pub fn start(program: &Program) -> Self {
        Self::start_with(program, &[])
    }

    /// Starts a server with further arguments.
    pub fn start_with(program: &Program, arguments: &[&str]) -> Self {
        let mut server = Self::new(program);
        server.arguments = arguments.iter().map(ToString::to_string).collect();
        server.run();
        server
    }

    /// Starts a server that may not know the arguments.
    pub fn try_start(program: &Program, arguments: &[&str]) -> Option<Self> {
        let mut server = Self::new(program);
        server.arguments = arguments.iter().map(ToString::to_string).collect();
        server.try_run().then_some(server)
    }

    /// A server that does not run yet.
    pub fn new(program: &Program) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            program: program.clone(),
            port: free_port(),
            directory,
            process: None,
            has_jetstream: true,
            arguments: Vec::new(),
        }
    }

    /// Starts it, and waits until it accepts connections.
    pub fn run(&mut self) {
        let start = Instant::now();
        // Somebody else may have the port for the moment.
        while !self.try_run() {
            assert!(start.elapsed() < SOON, "{} does not start", self.program.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts it. Returns `false` if it has ended, or another server has the port.
    fn try_run(&mut self) -> bool {
        let start = Instant::now();
        let mut process = self.spawn();
        loop {
            assert!(start.elapsed() < SOON, "{} does not start", self.program.display());
            let serves = match self.program.kind {
                Kind::Nats => TcpStream::connect(("127.0.0.1", self.port)).map(|_| true),
                Kind::Redis => is_redis(self.port, process.id()),
            };
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            match serves {
                Ok(true) => {
                    self.process = Some(process);
                    return true;
                }
                Ok(false) => {
                    let _ = process.kill();
                    let _ = process.wait();
                    return false;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn spawn(&self) -> Child {
        let port = self.port.to_string();
        let mut command = Command::new(&*self.program);
        match self.program.kind {
            Kind::Nats => {
                command.args(["-a", "127.0.0.1", "-p", &port]);
                if self.has_jetstream {
                    command.args(["-js", "-sd"]).arg(self.directory.path());
                }
            }
            Kind::Redis => {
                command
                    .args(["--bind", "127.0.0.1", "--port", &port, "--save", ""])
                    .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
                    .arg(self.directory.path());
            }
        }
        command.args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends it a signal. With `-STOP` it is silent, until `-CONT`.
    pub fn signal(&self, signal: &str) {
        assert!(send_signal(self.process.as_ref().unwrap().id(), signal));
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

    /// Removes everything that it has kept. It must not be running.
    pub fn empty(&mut self) {
        assert!(self.process.is_none());
        self.directory = tempfile::tempdir().unwrap();
    }

    /// Where it keeps its data.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.program.kind
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.program.kind, self.port)
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

/// Sends a signal, such as `-TERM`, to a process. Every shell has `kill`; the program of that name is not on every machine.
pub fn send_signal(pid: u32, signal: &str) -> bool {
    let arguments = ["-c", "kill \"$0\" \"$1\"", signal, &pid.to_string()];
    Command::new("sh").args(arguments).status().unwrap().success()
}
