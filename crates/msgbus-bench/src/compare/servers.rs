//! The servers that are compared: how to start each of them, and its protocol.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    iter,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    rc::Rc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use msgbus_load::{
    Drs, FollowV1, Http, Middleman, MsgbusV1, PlainPulls, Protocol, Replaying, Server, Services,
    ServicesV1, Streaming, Target, Waiting,
};
use tempfile::TempDir;

use super::{
    peers::{self, Beanstalk, JetStream, Nats, NatsRequests, Redis, RedisStream},
    variants::{self, Door, Transport, V1, Variant},
    works::TOPIC,
};
use crate::{bare::Push, engines::EngineKind};

/// A server to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// This project.
    Msgbusd,
    /// This project with an option.
    With(&'static Variant),
    /// A bare server, which sets the limit.
    Bare(Push),
    /// nginx with nchan.
    Nchan,
    /// Redis as a queue.
    RedisList,
    /// Redis as a queue in an append-only file.
    RedisFile(Syncing),
    /// Redis as a stream with a consumer group, in memory.
    RedisStream,
    /// Redis as a channel.
    RedisChannel,
    /// NATS core.
    Nats,
    /// NATS core with requests and replies.
    NatsRequests,
    /// NATS with a stream.
    JetStream(Syncing),
    /// beanstalkd, with its write-ahead log if it writes anything.
    Beanstalk(Syncing),
    /// The server of an engine, used as msgbusd would use it.
    Native(EngineKind),
    /// The same, with all requests of all clients on one connection.
    Alone(EngineKind),
}

/// How many messages of a topic msgbusd keeps, if nothing else is configured.
const MAX_MESSAGES: u32 = 65_536;

/// When a server syncs what it has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syncing {
    /// Before it answers.
    Always,
    /// At its default interval.
    Later,
    /// It writes nothing: everything is in memory.
    Never,
}

impl Contender {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msgbusd => "msgbusd",
            Self::With(variant) => variant.name,
            Self::Bare(Push::Nowhere) => "bare hyper",
            Self::Bare(Push::Proxy) => "bare proxy",
            Self::Bare(Push::Synced) => "bare group commit",
            Self::Bare(Push::Each) => "bare, a write each",
            Self::Bare(Push::Batches) => "bare, batches",
            Self::Bare(Push::AtOnce) => "bare, at once",
            Self::Nchan => "nchan",
            Self::RedisList => "redis (list)",
            Self::RedisFile(Syncing::Always) => "redis (list, synced)",
            Self::RedisFile(Syncing::Later | Syncing::Never) => "redis (list, file)",
            Self::RedisStream => "redis (stream)",
            Self::RedisChannel => "redis (channel)",
            Self::Nats => "nats",
            Self::NatsRequests => "nats (requests)",
            Self::JetStream(Syncing::Always) => "nats (stream, synced)",
            Self::JetStream(Syncing::Later) => "nats (stream)",
            Self::JetStream(Syncing::Never) => "nats (stream in memory)",
            Self::Beanstalk(Syncing::Always) => "beanstalkd, synced",
            Self::Beanstalk(Syncing::Later) => "beanstalkd, written",
            Self::Beanstalk(Syncing::Never) => "beanstalkd",
            Self::Native(EngineKind::Nats) => "nats (stream), 64 connections",
            Self::Native(EngineKind::Redis) => "redis (stream, file), 64 connections",
            Self::Alone(EngineKind::Nats) => "nats (stream), one connection",
            Self::Alone(EngineKind::Redis) => "redis (stream, file), one connection",
        }
    }

    /// The program, and the arguments that make it print its version.
    fn program(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::Msgbusd | Self::With(_) | Self::Bare(_) => None,
            Self::Native(EngineKind::Nats) | Self::Alone(EngineKind::Nats) => Self::Nats.program(),
            Self::Native(EngineKind::Redis) | Self::Alone(EngineKind::Redis) => {
                Self::RedisStream.program()
            }
            Self::Nchan => Some(("nginx", &["-v"])),
            Self::RedisList | Self::RedisFile(_) | Self::RedisStream | Self::RedisChannel => {
                Some(("redis-server", &["--version"]))
            }
            Self::Nats | Self::NatsRequests | Self::JetStream(_) => {
                Some(("nats-server", &["--version"]))
            }
            Self::Beanstalk(_) => Some(("beanstalkd", &["-v"])),
        }
    }

    /// The version; `None` if the server is not installed, or too old.
    pub fn version(self) -> Option<String> {
        if self.engine().is_some_and(|kind| Self::Native(kind).version().is_none()) {
            return None;
        }
        let program = if self.engine().is_some() { None } else { self.program() };
        let Some((program, words)) = program else {
            return Some(concat!("msgbus ", env!("CARGO_PKG_VERSION")).to_owned());
        };
        if self == Self::Nchan && nchan_module().is_none() {
            return None;
        }
        let output = Command::new(program).args(words).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        let version = String::from_utf8_lossy(&said).lines().next()?.trim().to_owned();
        let is_too_old =
            self == Self::JetStream(Syncing::Always) && !peers::can_sync_always(&version);
        (!is_too_old).then_some(version)
    }

    /// Whether its publishers ask a service.
    pub(super) fn asks(self) -> bool {
        match self {
            Self::With(variant) => variant.asks,
            _ => self == Self::NatsRequests,
        }
    }

    /// The engine that it stores its topics in.
    pub(super) fn engine(self) -> Option<EngineKind> {
        match self {
            Self::With(variant) => variant.engine,
            _ => None,
        }
    }

    fn transport(self) -> Transport {
        match self {
            Self::With(variant) => variant.transport,
            _ => Transport::Plain,
        }
    }

    fn protocol(self, port: u16) -> Rc<dyn Protocol> {
        let host = format!("127.0.0.1:{port}");
        let http = Http { host, ..Http::default() };
        match self {
            // It pushes nothing, so its followers can only be idle.
            Self::Bare(Push::Nowhere | Push::Synced) => {
                Rc::new(Streaming { http, waiting: Waiting::NextRequest })
            }
            Self::Msgbusd | Self::Bare(_) => Rc::new(http),
            Self::With(Variant { door: Some(door), asks, .. }) => {
                let (host, asks) = (http.host, *asks);
                match door {
                    Door::Middleman => Rc::new(Middleman { host, asks }),
                    Door::DrsWebsocket => Rc::new(Drs { host, has_frames: true }),
                    Door::DrsTcp => Rc::new(Drs { host, has_frames: false }),
                }
            }
            Self::With(variant) => {
                let authorization = variant.authorization.map(str::to_owned);
                let http = Http { authorization, ..http };
                match variant.waiting {
                    Some(waiting) => Rc::new(Streaming { http, waiting }),
                    None if variant.replays => Rc::new(Replaying(http)),
                    None if variant.pulls_plainly => Rc::new(PlainPulls(http)),
                    None => match variant.v1 {
                        Some(V1::Publish) => Rc::new(MsgbusV1(http)),
                        Some(V1::Follow(subscriptions)) => {
                            Rc::new(FollowV1 { http, subscriptions })
                        }
                        Some(V1::Ask) => Rc::new(ServicesV1(http)),
                        None if variant.asks => Rc::new(Services(http)),
                        None => Rc::new(http),
                    },
                }
            }
            Self::Nchan => Rc::new(Http { raw: true, ..http }),
            Self::RedisList | Self::RedisFile(_) => Rc::new(Redis::List),
            Self::RedisStream => Rc::new(RedisStream { max_messages: None }),
            Self::RedisChannel => Rc::new(Redis::Channel),
            Self::Nats => Rc::new(Nats),
            Self::NatsRequests => Rc::new(NatsRequests),
            Self::JetStream(_) | Self::Native(EngineKind::Nats) | Self::Alone(EngineKind::Nats) => {
                Rc::new(JetStream)
            }
            Self::Native(EngineKind::Redis) | Self::Alone(EngineKind::Redis) => {
                Rc::new(RedisStream { max_messages: Some(MAX_MESSAGES) })
            }
            Self::Beanstalk(_) => Rc::new(Beanstalk),
        }
    }

    /// Starts the server on a free port, and waits until it accepts connections. A bare server answers
    /// pulls with a message of `size` bytes.
    ///
    /// # Errors
    /// The server cannot be started, or does not listen.
    pub fn start(self, size: usize) -> anyhow::Result<Running> {
        let engine = self.engine().map(|kind| {
            Running::start(kind.program(), |port, folder| Ok(kind.command(port, folder)))
        });
        let engine = engine.transpose()?;
        let mut running = Running::start(self.name(), |port, folder| {
            let mut command = self.command(port, folder, size)?;
            if let (Some(kind), Some(engine)) = (self.engine(), &engine) {
                command.args(["--engine", &kind.url(engine.address())]);
            }
            Ok(command)
        })?;
        running.engine = engine.map(Box::new);
        if running.engine.is_some() {
            running.wait_until_ready()?;
        }
        if self == Self::Nchan {
            running.wait_for_workers()?;
        }
        if self.transport() == Transport::Unix {
            running.wait_for_socket(variants::SOCKET)?;
        }
        if let Self::JetStream(syncing) = self {
            let storage = if syncing == Syncing::Never { "memory" } else { "file" };
            peers::create_stream(running.address(), TOPIC, storage, None)?;
        }
        if let Self::Native(EngineKind::Nats) | Self::Alone(EngineKind::Nats) = self {
            peers::create_stream(running.address(), TOPIC, "file", Some(MAX_MESSAGES))?;
        }
        Ok(running)
    }

    fn command(self, port: u16, folder: &Path, size: usize) -> anyhow::Result<Command> {
        let address = address(port).to_string();
        Ok(match self {
            Self::Msgbusd => {
                let mut command = Command::new(beside("msgbusd")?);
                command.args(["--bind", &address]);
                command
            }
            Self::With(variant) => {
                variants::write_files(folder)?;
                // The port is that of the door, if there is one.
                let own = if variant.door.is_some() { 0 } else { port };
                let mut command = Self::Msgbusd.command(own, folder, size)?;
                command.args(variant.door.iter().flat_map(|door| door.flags(self::address(port))));
                command.args(variant.flags).current_dir(folder);
                command
            }
            Self::Bare(push) => {
                let mut command = Command::new(beside("msgbus-bare")?);
                command.args(["--bind", &address, "--push", push.name()]);
                command.args(["--size", &size.to_string()]).current_dir(folder);
                command
            }
            _ => return self.peer_command(port, folder),
        })
    }

    fn peer_command(self, port: u16, folder: &Path) -> anyhow::Result<Command> {
        let address = address(port).to_string();
        Ok(match self {
            Self::Msgbusd | Self::With(_) | Self::Bare(_) => bail!("{} is no peer", self.name()),
            Self::Nchan => {
                let config = folder.join("nginx.conf");
                fs::write(&config, nginx_config(&address, folder)?)?;
                let mut command = Command::new("nginx");
                command.arg("-p").arg(folder).arg("-c").arg(config);
                command.args(["-e", "stderr"]);
                command
            }
            Self::RedisList | Self::RedisStream | Self::RedisChannel => {
                let mut command = Command::new("redis-server");
                command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
                command.args(["--save", "", "--appendonly", "no"]);
                command
            }
            Self::RedisFile(sync) => {
                let mut command = Command::new("redis-server");
                command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
                let sync = if sync == Syncing::Always { "always" } else { "everysec" };
                command.args(["--appendonly", "yes", "--appendfsync", sync, "--dir"]).arg(folder);
                command
            }
            Self::Nats | Self::NatsRequests => {
                let mut command = Command::new("nats-server");
                command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
                command
            }
            Self::JetStream(sync) => {
                let config = folder.join("nats.conf");
                fs::write(&config, nats_config(&address, folder, sync))?;
                let mut command = Command::new("nats-server");
                command.arg("-c").arg(config);
                command
            }
            Self::Native(kind) | Self::Alone(kind) => kind.command(port, folder),
            Self::Beanstalk(sync) => {
                let mut command = Command::new("beanstalkd");
                command.args(["-l", "127.0.0.1", "-p", &port.to_string()]);
                if sync != Syncing::Never {
                    command.arg("-b").arg(folder);
                }
                if sync == Syncing::Always {
                    command.args(["-f", "0"]);
                }
                command
            }
        })
    }
}

fn address(port: u16) -> SocketAddr {
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

/// The path of a program of this workspace, in the folder of this program.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} does not exist; build the workspace first", path.display());
    }
    Ok(path)
}

fn nchan_module() -> Option<&'static str> {
    ["/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/lib64/nginx/modules/ngx_nchan_module.so"]
        .into_iter()
        .find(|path| Path::new(path).exists())
}

/// A configuration in which nchan publishes and subscribes at the same paths as msgbusd.
fn nginx_config(address: &str, folder: &Path) -> anyhow::Result<String> {
    let module = nchan_module().context("the nchan module is not installed")?;
    let folder = folder.display();
    Ok(format!(
        "load_module {module};\n\
         daemon off; pid {folder}/pid; error_log stderr; worker_processes auto;\n\
         worker_rlimit_nofile 65536;\n\
         events {{ worker_connections 32768; }}\n\
         http {{\n\
           access_log off; keepalive_requests 1000000000; client_body_temp_path {folder};\n\
           proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};\n\
           scgi_temp_path {folder}; nchan_shared_memory_size 512M;\n\
           server {{\n\
             listen {address} backlog=4096;\n\
             location / {{\n\
               nchan_pubsub websocket http; nchan_channel_id $uri;\n\
               nchan_message_buffer_length 65536; nchan_subscriber_first_message newest;\n\
             }}\n\
           }}\n\
         }}\n"
    ))
}

fn nats_config(address: &str, folder: &Path, sync: Syncing) -> String {
    let folder = folder.display();
    let sync = if sync == Syncing::Always { "sync_interval: always" } else { "" };
    format!("listen: \"{address}\"\njetstream {{ store_dir: \"{folder}/streams\"\n{sync} }}\n")
}

/// A running server. Dropping this stops it.
#[derive(Debug)]
pub struct Running {
    command: Command,
    child: Child,
    address: SocketAddr,
    folder: TempDir,
    /// The engine behind it. It is stopped afterwards.
    engine: Option<Box<Running>>,
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
        const TIMEOUT: Duration = Duration::from_secs(10);
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
        const TIMEOUT: Duration = Duration::from_secs(15);
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

    /// The server as a target for load.
    ///
    /// # Errors
    /// The processes of the server cannot be inspected.
    pub fn target(&self, contender: Contender) -> anyhow::Result<Target> {
        let mut pids = vec![self.child.id()];
        pids.extend(children(self.child.id())?);
        Ok(Target {
            connector: contender.transport().connect(self.address, self.folder())?,
            protocol: contender.protocol(self.address.port()),
            server: Some(Server::new(pids)),
        })
    }

    /// nginx listens before its workers run, and they need a moment to connect to each other.
    fn wait_for_workers(&self) -> anyhow::Result<()> {
        const WORKER_SETUP: Duration = Duration::from_millis(500);
        for _ in 0..100 {
            if !children(self.child.id())?.is_empty() {
                sleep(WORKER_SETUP);
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("nginx has no workers: {}", self.log())
    }

    /// msgbusd does not wait for its engine.
    fn wait_until_ready(&self) -> anyhow::Result<()> {
        for _ in 0..500 {
            let mut stream = TcpStream::connect(self.address)?;
            stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut response = String::new();
            stream.read_to_string(&mut response)?;
            if response.split(' ').nth(1) == Some("200") {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("its engine cannot be used: {}", self.log())
    }

    /// The address of the engine behind it.
    pub(crate) fn engine_address(&self) -> Option<SocketAddr> {
        Some(self.engine.as_ref()?.address)
    }

    /// msgbusd opens its listeners one after the other, so the socket may follow the TCP port.
    fn wait_for_socket(&self, name: &str) -> anyhow::Result<()> {
        let path = self.folder().join(name);
        for _ in 0..500 {
            if UnixStream::connect(&path).is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("nothing listens on {}: {}", path.display(), self.log())
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

/// The child processes of a process.
fn children(pid: u32) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}
