//! The command `msgbus`.

mod args;
#[cfg(feature = "bench")]
mod bench;
#[cfg(not(feature = "bench"))]
#[path = "no_bench.rs"]
mod bench;
mod commands;
mod completion;
mod config;
mod cursor;
mod dead_letters;
mod execute;
mod failure;
mod from_dump;
mod groups;
mod help;
mod input;
mod options;
mod output;
mod publish;
mod pull;
mod reader;
mod request;
mod serve;
mod services;
mod settle;
mod signals;
mod source;
mod split;
mod stderr;
mod subscribe;
mod suggestions;
mod tail;
mod topics;
mod work;

use std::{env, process::ExitCode, time::Duration};

use tokio::runtime;

use crate::{
    args::Invocation,
    failure::{Exit, Failure},
    signals::Stop,
};

fn main() -> ExitCode {
    let ended = args::parse(env::args_os().skip(1)).and_then(run);
    let exit = ended.unwrap_or_else(|failure| {
        if !matches!(failure, Failure::ClosedPipe) {
            output::note(&format!("{failure}{}", failure.hint()));
        }
        failure.exit()
    });
    exit.into()
}

/// Runs one command.
fn run(invocation: Invocation) -> Result<Exit, Failure> {
    match invocation {
        Invocation::Help(command) => output::print(&help::help(command)).map(|()| Exit::Done),
        Invocation::Man => output::print(&help::manual()).map(|()| Exit::Done),
        Invocation::Completion(shell) => {
            output::print(&completion::script(shell)).map(|()| Exit::Done)
        }
        Invocation::Version => {
            output::print(concat!("msgbus ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| Exit::Done)
        }
        Invocation::Bench(args) => bench::run(args),
        Invocation::Pub(args) => block_on(publish::run(args)),
        Invocation::FromDump(publisher) => block_on(from_dump::run(publisher)),
        Invocation::Pull(args) => {
            block_on(async { pull::run(args, listen(signals::GRACE)?).await })
        }
        Invocation::Settle(args) => block_on(settle::run(args)),
        Invocation::Work(args) => block_on(async { work::run(*args, listen(work::GRACE)?).await }),
        Invocation::Request(args) => block_on(request::run(*args)),
        Invocation::Serve(args) => {
            block_on(async { serve::run(*args, listen(work::GRACE)?).await })
        }
        Invocation::Services(args) => block_on(services::run(args)),
        Invocation::Dead(args) => block_on(dead_letters::list(args)),
        Invocation::Redrive(args) => {
            block_on(async { dead_letters::redrive(args, listen(signals::GRACE)?).await })
        }
        Invocation::Group(args) => block_on(groups::run(*args)),
        Invocation::Topics(args) => block_on(topics::list(args)),
        Invocation::Info(args) => block_on(topics::info(args)),
        Invocation::Purge(args) => {
            block_on(async { topics::purge(args, listen(signals::GRACE)?).await })
        }
        Invocation::Ping(args) => block_on(topics::ping(args)),
        Invocation::TopicNames(args) => block_on(topics::names(args)),
        Invocation::Rm(args) => block_on(topics::remove(args)),
        Invocation::Sub(topic, args) => {
            block_on(async { subscribe::run(topic, args, listen(signals::GRACE)?).await })
        }
        Invocation::SubMany(topics, args) => {
            block_on(async { subscribe::run_many(topics, args, listen(signals::GRACE)?).await })
        }
    }
}

/// Listens to signals. The process exits `grace` after the second one.
fn listen(grace: Duration) -> Result<Stop, Failure> {
    Stop::listen(grace)
        .map_err(|error| Failure::Other(format!("cannot listen to signals: {error}")))
}

fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    // A worker thread of its own handles a second Ctrl-C while the main thread is blocked in a write.
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("cannot start: {error}")))?;
    let ended = runtime.block_on(command);
    // Does not wait for a blocked read of standard input.
    runtime.shutdown_background();
    ended
}
