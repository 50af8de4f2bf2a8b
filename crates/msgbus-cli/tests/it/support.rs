//! A real server that can be stopped and started on the same port, a proxy that cuts connections,
//! and the built binary.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use msgbus_client::{Client, TopicName};
use msgbus_core::MessageBus;
use msgbusd::{Bind, Drained, Server, config::Config, keys::Keyring};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional,
    },
    net::{TcpListener, TcpStream},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// Long enough for anything that is going to happen at all.
const SOON: Duration = Duration::from_secs(60);

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(SOON, future).await.expect("it takes too long")
}

pub(crate) fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    pub(crate) bus: MessageBus,
    pub(crate) keyring: Option<Arc<Keyring>>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Drained>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(set: impl FnOnce(&mut Config)) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), set)
    }

    pub(crate) fn at(bind: SocketAddr, set: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { bind: vec![Bind::Tcp(bind)], ..Config::default() };
        config.timeouts.drain = Duration::from_secs(1);
        set(&mut config);
        let server = Server::bind(config).unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            address: server.local_addr().unwrap(),
            bus: server.bus().clone(),
            keyring: server.keyring().cloned(),
            stop,
            running: tokio::spawn(server.run(async {
                let _ = stopped.await;
            })),
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        soon(self.running).await.unwrap();
    }

    pub(crate) fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.uri()).unwrap()
    }

    pub(crate) fn put(&self, topic: &str, payload: impl Into<Vec<u8>>) -> u64 {
        self.bus.put(&name(topic), payload.into()).unwrap().id
    }

    /// Waits until so many subscribe.
    pub(crate) async fn subscribers(&self, count: usize) {
        soon(async {
            while self.bus.stats().subscribers != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// An address on which nobody listens.
pub(crate) fn nowhere() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Passes connections on to a server, and cuts them when told to.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cut: watch::Sender<u64>,
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    // While the server is away, the connection ends at once.
                    let Ok(mut far) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {
                            // A reset rather than an orderly end.
                            let _ = near.set_zero_linger();
                            let _ = far.set_zero_linger();
                        }
                    }
                });
            }
        });
        Self { address, cut }
    }

    pub(crate) fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    pub(crate) fn uri(&self) -> String {
        format!("http://{}", self.address)
    }
}

pub(crate) fn msgbus(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msgbus"));
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The same with no more data than this, in KiB: it is killed by an allocation beyond it.
pub(crate) fn in_memory(kib: u32, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -d {kib}; exec \"$@\"");
    command
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_msgbus")])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Finished {
    /// Asserts an end without a word.
    #[track_caller]
    pub(crate) fn is_silent(&self) {
        assert_eq!((self.code, &self.out[..], &self.err[..]), (Some(0), "", ""));
    }

    /// Asserts an exit code, and one line on standard error that mentions something.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, mention: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains(mention), "{:?} does not say {mention:?}", self.err);
        assert!(self.err.starts_with("msgbus: "), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
    }
}

/// Runs a command to its end, with this on its standard input.
pub(crate) async fn run_with(mut command: Command, input: &[u8]) -> Finished {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async {
        // It may end without reading all of it.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = soon(async { tokio::join!(feed, child.wait_with_output()) }).await;
    let output = output.unwrap();
    Finished {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) async fn run(command: Command) -> Finished {
    run_with(command, b"").await
}

/// A command that goes on.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        Self {
            stdin: child.stdin.take(),
            out: BufReader::new(child.stdout.take().unwrap()),
            err: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        soon(self.out.read_line(&mut line)).await.unwrap();
        line
    }

    /// The next line on standard error.
    pub(crate) async fn note(&mut self) -> String {
        let mut line = String::new();
        soon(self.err.read_line(&mut line)).await.unwrap();
        line
    }

    /// The ids of the next messages, printed as JSON.
    pub(crate) async fn ids(&mut self, count: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let line = self.line().await;
            ids.push(msgbus_core::json::read_message(line.as_bytes()).unwrap().id());
        }
        ids
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let status = std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) async fn end(mut self) -> Finished {
        drop(self.stdin);
        let (mut out, mut err) = (String::new(), String::new());
        let (_, _, status) = soon(async {
            tokio::join!(
                self.out.read_to_string(&mut out),
                self.err.read_to_string(&mut err),
                self.child.wait()
            )
        })
        .await;
        Finished { code: status.unwrap().code(), out, err }
    }
}
