//! `msgbusd`: reads its configuration, serves, and stops when it is told to.

use std::{env, future::pending, io, process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, anyhow};
use msgbusd::{
    Certificate, Server, StartError, Workers,
    config::{self, Config, Invocation, Scheduler},
    keys::{Keyring, NewKey},
};
use tokio::{
    runtime, select,
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tracing::{Level, info, warn};
use tracing_subscriber::{
    filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

const USAGE: u8 = 2;
const STOPPED_BY_SIGNAL: u8 = 130;
/// How close signals are that mean the same.
const ONE_WISH: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    match config::parse(env::args_os().skip(1), env::vars_os()) {
        Ok(Invocation::Serve(config)) => serve(*config).unwrap_or_else(|error| {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }),
        Ok(Invocation::Help) => print(&config::help()),
        Ok(Invocation::Version) => print(concat!("msgbusd ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Invocation::KeyHelp) => print(&config::key_help()),
        Ok(Invocation::NewKey(key)) => show(&key),
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(USAGE)
        }
    }
}

/// Prints what was asked for. Nobody reading it any more is no error.
fn print(text: &str) -> ExitCode {
    use io::Write as _;
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// The secret apart from the lines for the file, so that neither need ever be where the other is.
#[expect(clippy::print_stderr, reason = "it is where the secret is shown")]
fn show(key: &NewKey) -> ExitCode {
    eprintln!("{}", key.secret);
    print(&key.lines)
}

#[expect(clippy::print_stderr, reason = "there is no log yet, or it is not the place")]
fn complain(problem: &str) {
    eprintln!("msgbusd: {problem}");
}

fn serve(mut config: Config) -> anyhow::Result<ExitCode> {
    let level = if config.debug { Level::DEBUG } else { Level::INFO };
    // Ours alone: the libraries tell of every frame.
    let ours = Targets::new().with_target(env!("CARGO_PKG_NAME"), level);
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_target(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .finish()
        .with(ours)
        .init();
    let threads =
        config.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    match config.scheduler {
        Scheduler::Pinned => {
            fit_to_file_limit(&mut config, threads);
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let workers = Workers::pinned(threads)
                .with_context(|| format!("cannot start {threads} threads; see --threads"))?;
            runtime.block_on(run(config, Some(workers)))
        }
        Scheduler::Stealing => {
            fit_to_file_limit(&mut config, 0);
            let runtime = runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .enable_all()
                .build()?;
            runtime.block_on(run(config, None))
        }
    }
}

async fn run(config: Config, workers: Option<Workers>) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    announce_notices(&config);
    let bounds = config.bounds();
    let mut server = Server::bind(config).map_err(|error| match error {
        StartError::Listen { .. } => anyhow!("{error}; choose another place with --bind"),
        error @ StartError::Certificate(_) => error.into(),
    })?;
    if let Some(workers) = workers {
        server = server.with_workers(workers);
    }
    let (keyring, certificate) = (server.keyring().cloned(), server.certificate().cloned());
    if let Some(keyring) = &keyring {
        info!("keys: {} from {}", keyring.count(), keyring.path().display());
    }
    if keyring.is_some() || certificate.is_some() {
        tokio::spawn(reload(keyring, certificate, signal(SignalKind::hangup())?));
    }
    let places: Vec<String> = server.places().iter().map(|place| server.uri(place)).collect();
    info!("msgbusd {} listening on {} ({bounds})", env!("CARGO_PKG_VERSION"), places.join(" and "));

    let (stop, stopped) = tokio::sync::oneshot::channel();
    let serving = server.run(async {
        // The sender is gone only when it has sent.
        let _ = stopped.await;
    });
    let twice = async {
        let name = signals.next().await;
        info!("{name}: stopping; once more ends at once");
        let _ = stop.send(());
        // Some senders signal a process and its group: that is one wish, not two.
        signals.ignore_for(ONE_WISH).await;
        signals.next().await
    };
    select! {
        drained = serving => {
            info!("stopped");
            Ok(if drained.cut == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        name = twice => {
            warn!("{name}: stopped at once, without waiting for what was under way");
            Ok(ExitCode::from(STOPPED_BY_SIGNAL))
        }
    }
}

fn announce_notices(config: &Config) {
    for notice in &config.notices {
        warn!("{notice}");
    }
    for place in config.bind.iter().filter(|bind| bind.is_reachable()) {
        if config.keys.is_none() {
            warn!("--open: anybody who can reach {place} may publish and read");
        } else if config.certificate.is_none() {
            warn!("keys come to {place} in the clear: use --tls-cert, or put TLS in front");
        }
    }
}

/// Reads the keys and the certificate again at each signal.
async fn reload(
    keyring: Option<Arc<Keyring>>,
    certificate: Option<Arc<Certificate>>,
    mut hangups: Signal,
) {
    while hangups.recv().await.is_some() {
        if let Some(keyring) = &keyring {
            match keyring.reload() {
                Ok(()) => {
                    info!("SIGHUP: keys: {} from {}", keyring.count(), keyring.path().display());
                }
                Err(error) => warn!("SIGHUP: {error}; the keys stay as they were"),
            }
        }
        if let Some(certificate) = &certificate {
            match certificate.reload() {
                Ok(()) => info!("SIGHUP: certificate: from {}", certificate.path().display()),
                Err(error) => warn!("SIGHUP: {error}; the certificate stays as it was"),
            }
        }
    }
}

/// Each connection is a file: takes as many as the system lets us have, and makes do with
/// what the runtimes of these threads leave.
fn fit_to_file_limit(config: &mut Config, threads: usize) {
    // Where there is no such limit nothing needs to fit.
    let Ok(files) = rlimit::increase_nofile_limit(u64::MAX) else { return };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let fit = files.saturating_sub(FILES_OF_OUR_OWN + threads * FILES_OF_A_THREAD).max(1);
    if config.max_connections > fit {
        warn!(
            "--max-connections is lowered to {fit}: the system lets us open {files} files (ulimit -n)"
        );
        config.max_connections = fit;
    }
}

/// Files that are no connections: the listener, the log, the runtime's own, connections that are
/// told that they are too many, and some to spare.
const FILES_OF_OUR_OWN: usize = 100;
/// Of a runtime that has its own events.
const FILES_OF_A_THREAD: usize = 4;

/// The signals that mean: stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Lets those that come within this time be part of the last one.
    async fn ignore_for(&mut self, time: Duration) {
        let end = sleep(time);
        tokio::pin!(end);
        loop {
            select! {
                _ = self.next() => {}
                () = &mut end => return,
            }
        }
    }

    /// Waits for the next one and names it.
    async fn next(&mut self) -> &'static str {
        select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            else => pending().await,
        }
    }
}
