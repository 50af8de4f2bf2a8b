//! `msgbusd`: reads its configuration, serves, and stops at a signal.

mod data;
mod drs_ipc;
mod files;
mod reload;
mod signals;

use std::{env, io, process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, anyhow};
use msgbus_core::{MessageBus, store::Durability};
use msgbusd::{
    Server, StartError, Workers,
    auth::NewKey,
    config::{self, Config, ConfigFile, Invocation, Scheduler},
    logging::{Log, counted},
};
use tokio::{
    runtime, select,
    signal::unix::{SignalKind, signal},
};
use tracing::{info, warn};

use self::{reload::Reload, signals::Signals};

const USAGE: u8 = 2;
const STOPPED_BY_SIGNAL: u8 = 130;
/// Signals within this time after the first one count as the same request to stop.
const SAME_REQUEST: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    match config::parse(env::args_os().skip(1), env::vars_os()) {
        Ok(Invocation::Serve { config, file }) => serve(*config, file.map(|file| *file)),
        Ok(Invocation::Print(text)) => print(&text),
        Ok(Invocation::NewKey(key)) => print_key(&key),
        Ok(Invocation::Data(command)) => {
            data::run(&command).unwrap_or_else(|error| fail(&format!("{error:#}"), 1))
        }
        Ok(Invocation::DrsIpc(server)) => {
            drs_ipc::run(&server).unwrap_or_else(|error| fail(&format!("{error:#}"), 1))
        }
        Err(error) => fail(&error.to_string(), USAGE),
    }
}

fn serve(config: Config, file: Option<ConfigFile>) -> ExitCode {
    let log = match Log::to_stderr() {
        Ok(log) => log,
        Err(error) => return fail(&format!("cannot start a thread: {error}"), 1),
    };
    log.install(config.debug);
    let code = start(config, file).unwrap_or_else(|error| {
        log.line(&format!("msgbusd: {error:#}"));
        ExitCode::FAILURE
    });
    log.flush();
    code
}

/// Prints to standard output. A broken pipe is not an error.
fn print(text: &str) -> ExitCode {
    match write(io::stdout(), text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to standard output: {error}"), 1)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Prints the lines for the key file to standard output and the secret to standard error, so that they can be kept
/// apart. If the lines cannot be written, the secret is useless and is not printed.
fn print_key(key: &NewKey) -> ExitCode {
    if let Err(error) = write(io::stdout(), &key.lines) {
        return fail(&format!("cannot write the key to standard output: {error}"), 1);
    }
    match write(io::stderr(), &format!("{}\n", key.secret)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write the secret to standard error: {error}"), 1),
    }
}

fn write(mut to: impl io::Write, text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

/// Prints an error. It does not wait for long if standard error blocks.
fn fail(problem: &str, code: u8) -> ExitCode {
    let line = format!("msgbusd: {problem}");
    match Log::to_stderr() {
        Ok(log) => {
            log.line(&line);
            log.flush();
        }
        // Without the log thread, this may block.
        Err(_) => drop(write(io::stderr(), &format!("{line}\n"))),
    }
    ExitCode::from(code)
}

fn start(mut config: Config, file: Option<ConfigFile>) -> anyhow::Result<ExitCode> {
    let threads =
        config.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let pinned = if config.scheduler == Scheduler::Pinned { threads } else { 0 };
    let limit = files::raise_limit();
    if let Some(limit) = limit {
        files::fit(&mut config, limit, pinned)?;
    }
    let served = match config.scheduler {
        Scheduler::Pinned => pinned_runtime(threads)
            .and_then(|(runtime, workers)| runtime.block_on(run(config, file, Some(workers)))),
        Scheduler::Stealing => {
            stealing_runtime(threads).and_then(|runtime| runtime.block_on(run(config, file, None)))
        }
    };
    served.map_err(|error| files::explain(error, limit))
}

fn pinned_runtime(threads: usize) -> anyhow::Result<(runtime::Runtime, Workers)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let workers = Workers::pinned(threads)
        .with_context(|| format!("cannot start {threads} threads; see --threads"))?;
    Ok((runtime, workers))
}

fn stealing_runtime(threads: usize) -> anyhow::Result<runtime::Runtime> {
    Ok(runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?)
}

async fn run(
    config: Config,
    file: Option<ConfigFile>,
    workers: Option<Workers>,
) -> anyhow::Result<ExitCode> {
    // All before the start, which may take long: a SIGHUP that nobody listens to would end the process.
    let mut signals = Signals::new()?;
    let hangups = signal(SignalKind::hangup())?;
    announce_notices(&config);
    let summary = config.summary();
    let workers = workers.unwrap_or_else(Workers::current);
    let Some(server) = bind(config, workers, &mut signals).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    Reload::of(&server, file).at_each(hangups);
    let bus = server.bus().clone();
    let endpoints: Vec<String> =
        server.local_endpoints().iter().map(|endpoint| server.uri(endpoint)).collect();
    info!(
        "msgbusd {} listening on {} ({summary})",
        env!("CARGO_PKG_VERSION"),
        endpoints.join(" and ")
    );
    for door in server.door_endpoints() {
        info!("{} clients are served at {}", door.protocol.name(), door.bind);
    }

    let (stop, stopped) = tokio::sync::oneshot::channel();
    let serving = server.run(async {
        // The sender is not dropped before it has sent.
        let _ = stopped.await;
    });
    let second_signal = async {
        let name = signals.next().await;
        info!("received {name}, shutting down (repeat to exit immediately)");
        let _ = stop.send(());
        // Some senders signal a process and its group.
        signals.ignore_for(SAME_REQUEST).await;
        signals.next().await
    };
    select! {
        drained = serving => {
            info!("stopped; {}", messages_left(&bus));
            Ok(if drained.cut == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        name = second_signal => {
            warn!("received {name} again, stopped at once without draining; {}", messages_left(&bus));
            Ok(ExitCode::from(STOPPED_BY_SIGNAL))
        }
    }
}

/// Listens and reads the data. `None` if a signal has stopped that.
async fn bind(
    config: Config,
    workers: Workers,
    signals: &mut Signals,
) -> anyhow::Result<Option<Server>> {
    let bound = select! {
        bound = Server::bind_async(config, workers) => bound,
        name = signals.next() => {
            info!("received {name} before the start was complete: stopped");
            return Ok(None);
        }
    };
    bound.map(Some).map_err(|error| match error {
        StartError::Listen { flag, .. } if !files::is_out_of_files(&error) => {
            anyhow!("{error}; choose another address with {flag}")
        }
        error => error.into(),
    })
}

/// Describes what becomes of the messages when the process exits.
fn messages_left(bus: &MessageBus) -> String {
    let (mut kept, mut lost, mut topics) = (0, 0, 0);
    let mut walk = bus.walk_stats();
    while let Some(slice) = walk.next_slice() {
        for topic in slice {
            match topic.durability {
                Durability::Memory => {
                    lost += topic.retained;
                    topics += 1;
                }
                _ => kept += topic.retained,
            }
        }
    }
    let kept = match kept {
        0 => String::new(),
        _ => format!("kept {} on disk; ", counted(kept, "message")),
    };
    match lost {
        0 => format!("{kept}no messages were discarded"),
        _ => format!(
            "{kept}discarded {} in memory, in {}",
            counted(lost, "message"),
            counted(topics, "topic")
        ),
    }
}

fn announce_notices(config: &Config) {
    for notice in &config.notices {
        warn!("{notice}");
    }
    let doors = config.doors.iter().map(|door| &door.bind);
    for endpoint in config.bind.iter().chain(doors).filter(|bind| bind.is_reachable()) {
        if config.keys.is_none() {
            warn!("--open: any client that can reach {endpoint} may publish and read");
        } else if config.certificate.is_none() {
            warn!("keys are sent to {endpoint} unencrypted: use --tls-cert, or put TLS in front");
        }
    }
}
