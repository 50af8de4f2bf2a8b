//! `msgbus serve`: answers the requests of a service with a command, or with a local HTTP server.

mod forward;
mod run;

use std::{cell::Cell, ffi::OsString, pin::pin, time::Duration};

use futures_util::{Stream, StreamExt as _, stream, stream::FuturesUnordered};
use msgbus_client::{Client, ClientError, Failure as ServiceFailure, Reply, Request, TopicName};
use msgbus_core::format_duration;
use tokio::{
    select,
    time::{sleep, sleep_until},
};

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
/// How long a take waits at the server. It is short, because the last one is waited for at the end.
const WAIT: Duration = Duration::from_secs(1);
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
    let taking = Taking { free: Cell::new(serve.parallel), ..Taking::default() };
    let mut batches = pin!(serve.requests(&taking));
    let (mut running, mut failure) = (FuturesUnordered::new(), None);
    let (mut stopped, mut again) = (stop.clone(), stop.clone());
    let mut is_open = true;
    while is_open || !running.is_empty() {
        let ended = select! {
            batch = batches.next(), if is_open && taking.free.get() > 0 => match batch {
                Some(Ok(requests)) => {
                    taking.free.set(taking.free.get().saturating_sub(requests.len()));
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
                taking.free.set(taking.free.get() + 1);
                ended
            }
            () = stopped.requested(), if !taking.is_last.get() => {
                is_open &= taking.end();
                Ok(())
            }
            () = overdue(&mut again), if is_open && taking.is_last.get() => {
                is_open = false;
                Ok(())
            }
        };
        if let Err(error) = ended {
            // What is in hand is finished, and no more is taken.
            is_open &= taking.end();
            failure.get_or_insert(error);
        }
    }
    match failure {
        _ if stop.is_requested_again() => Ok(Exit::SecondSignal),
        Some(failure) => Err(failure),
        None => Ok(Exit::Done),
    }
}

/// How requests are taken. A take that is dropped may lose requests, which the server has just handed out: so at the
/// end, one in flight is waited for.
#[derive(Default)]
struct Taking {
    /// How many more requests can be answered now.
    free: Cell<usize>,
    /// Whether a take is in flight.
    is_in_flight: Cell<bool>,
    /// Whether no other take follows.
    is_last: Cell<bool>,
}

impl Taking {
    /// Lets no other take follow. Returns whether one is in flight.
    fn end(&self) -> bool {
        self.is_last.set(true);
        self.is_in_flight.get()
    }
}

/// Completes when the last take should have ended, or at the second signal.
async fn overdue(again: &mut Stop) {
    select! {
        () = sleep(3 * WAIT) => {}
        () = again.requested_again() => {}
    }
}

impl Serve {
    /// All requests, in batches of at most as many as are free when it is asked for the next batch; a batch may be empty.
    /// Ends after an error, and after the last take.
    fn requests<'a>(
        &'a self,
        taking: &'a Taking,
    ) -> impl Stream<Item = Result<Vec<Request>, ClientError>> + use<'a> {
        let responder = self.client.serve(&self.service);
        let source = Some(Source::new(WAIT, self.quiet));
        stream::unfold((source, responder), move |(source, responder)| async move {
            let mut source = source.filter(|_| !taking.is_last.get())?;
            let take = async |wait| {
                taking.is_in_flight.set(true);
                let taken = responder.take(taking.free.get(), wait).await;
                taking.is_in_flight.set(false);
                taken.map(Some)
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
                note(&self.handler.describe(service, &failure));
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

    /// The note about a failure. What is behind --to is for this side only.
    fn describe(&self, service: &TopicName, failure: &ServiceFailure) -> String {
        match self {
            Self::Run(_) => format!("{service}: {failure}"),
            Self::Forward(forward) => format!("{service}: {}: {failure}", forward.uri),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Run(run) => run.execute.name(),
            Self::Forward(forward) => forward.uri.to_string(),
        }
    }
}
