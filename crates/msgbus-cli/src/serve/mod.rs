//! `msgbus serve`: answers the requests of a service with a command, or with a local HTTP server.

mod forward;
mod run;

use std::{cell::Cell, ffi::OsString, pin::pin};

use futures_util::{Stream, StreamExt as _, stream, stream::FuturesUnordered};
use msgbus_client::{Client, ClientError, Failure as ServiceFailure, Reply, Request, TopicName};
use msgbus_core::format_duration;
use tokio::{select, sync::Notify, time::sleep_until};

use self::{forward::Forward, run::Run};
use crate::{
    commands::Command,
    failure::{Exit, Failure},
    output::note,
    reader::{Options, bounded},
    signals::Stop,
    source::Source,
};

/// The largest reply that is read from a command or an HTTP server, in bytes. Servers usually accept less.
const MAX_REPLY: usize = 64 << 20;
/// The maximum of -P.
const MAX_PARALLEL: u64 = 1_024;
/// The default of -P with --to.
const FORWARDS: usize = 16;

#[derive(Debug)]
pub(crate) struct Serve {
    client: Client,
    service: TopicName,
    handler: Handler,
    parallel: usize,
    quiet: bool,
}

/// What answers requests.
#[derive(Debug)]
enum Handler {
    Run(Run),
    Forward(Box<Forward>),
}

/// What a handler says to a request.
type Answer = Result<Reply, ServiceFailure>;

impl Serve {
    pub(crate) fn parse(
        options: &mut Options,
        service: TopicName,
        command: Option<(OsString, Vec<OsString>)>,
    ) -> Result<Self, Failure> {
        let parallel = options.value("--parallel", |text| bounded(text, 1..=MAX_PARALLEL))?;
        let parallel = parallel.and_then(|count| usize::try_from(count).ok());
        let to = options.value("--to", |text| Ok(text.to_owned()))?;
        let (handler, default) = match (command, to) {
            (Some(command), None) => (Handler::Run(Run::parse(options, command)?), 1),
            (None, Some(to)) => {
                (Handler::Forward(Box::new(Forward::parse(options, &to)?)), FORWARDS)
            }
            (Some(_), Some(_)) => return Err(Failure::usage("give one of --to and a command")),
            (None, None) => {
                let usage = Command::Serve.spec().usage();
                return Err(Failure::usage(format!(
                    "no command and no --to given; usage: {usage}"
                )));
            }
        };
        Ok(Self {
            service,
            handler,
            parallel: parallel.unwrap_or(default),
            client: options.client()?.0,
            quiet: options.quiet,
        })
    }
}

pub(crate) async fn run(serve: Serve, stop: Stop) -> Result<Exit, Failure> {
    let halt = Notify::new();
    let mut stopped = stop.clone();
    let end = async {
        select! {
            () = stopped.requested() => {}
            () = halt.notified() => {}
        }
    };
    let free = Cell::new(serve.parallel);
    let mut batches = pin!(serve.requests(&free).take_until(Box::pin(end)));
    let (mut running, mut failure) = (FuturesUnordered::new(), None);
    let mut is_open = true;
    while is_open || !running.is_empty() {
        let ended = select! {
            batch = batches.next(), if is_open && free.get() > 0 => match batch {
                Some(Ok(requests)) => {
                    free.set(free.get().saturating_sub(requests.len()));
                    running.extend(requests.into_iter().map(|it| serve.answer(it, stop.clone())));
                    Ok(())
                }
                Some(Err(error)) => Err(error.into()),
                None => {
                    is_open = false;
                    Ok(())
                }
            },
            Some(ended) = running.next() => {
                free.set(free.get() + 1);
                ended
            }
        };
        if let Err(error) = ended {
            // What is in hand is finished, and no more is taken.
            halt.notify_one();
            failure.get_or_insert(error);
        }
    }
    match failure {
        _ if stop.is_requested_again() => Ok(Exit::SecondSignal),
        Some(failure) => Err(failure),
        None => Ok(Exit::Done),
    }
}

impl Serve {
    /// All requests, in batches of at most as many as are free when it is asked for the next batch. Ends after an error.
    fn requests<'a>(
        &'a self,
        free: &'a Cell<usize>,
    ) -> impl Stream<Item = Result<Vec<Request>, ClientError>> + use<'a> {
        let responder = self.client.serve(&self.service);
        let source = Some(Source::new(self.quiet));
        stream::unfold((source, responder), move |(source, responder)| async move {
            let mut source = source?;
            let take = async |wait| {
                let requests = responder.take(free.get(), wait).await?;
                Ok(Some(requests).filter(|requests| !requests.is_empty()))
            };
            let taken = source.next(take).await;
            let source = Some(source).filter(|_| taken.is_ok());
            Some((taken, (source, responder)))
        })
    }

    /// Answers a request.
    ///
    /// # Errors
    /// No request can be answered, because the command cannot be run.
    async fn answer(&self, request: Request, mut stop: Stop) -> Result<(), Failure> {
        let (service, deadline) = (&self.service, request.deadline());
        let left = format_duration(request.time_left());
        let stopped = stop.clone();
        let cut = async {
            select! {
                () = sleep_until(deadline) => {}
                () = stop.requested_again() => {}
            }
        };
        let answered = match self.handler.handle(&request, cut).await {
            Ok(Some(Ok(reply))) => request.reply(reply).await,
            Ok(Some(Err(failure))) => {
                note(&format!("{service}: {failure}"));
                request.fail(failure).await
            }
            Ok(None) if stopped.is_requested_again() => request.decline().await,
            Ok(None) => {
                // The server knows it too: nobody waits any more.
                let name = self.handler.name();
                note(&format!(
                    "{service}: {name} had no reply within {left}, the limit of the request"
                ));
                return Ok(());
            }
            Err(failure) => {
                // If this fails, the request ends by time.
                let _ = request.fail(failure.to_string()).await;
                return Err(failure);
            }
        };
        if let Err(error) = answered {
            note(&format!("{service}: an answer was not accepted: {error}"));
        }
        Ok(())
    }
}

impl Handler {
    /// Answers a request; `None` if `cut` completes before.
    ///
    /// # Errors
    /// No request can be answered.
    async fn handle(
        &self,
        request: &Request,
        cut: impl Future<Output = ()>,
    ) -> Result<Option<Answer>, Failure> {
        match self {
            Self::Run(run) => run.handle(request, cut).await,
            Self::Forward(forward) => Ok(select! {
                answer = forward.handle(request) => Some(answer),
                () = cut => None,
            }),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Run(run) => run.execute.name(),
            Self::Forward(forward) => forward.uri.to_string(),
        }
    }
}
