//! `msgbus work`: runs a command for each message of a group, and acknowledges what succeeded.
//!
//! Leases are extended by tasks of the client library, so a note that blocks does not cost a lease.

use std::{
    cell::Cell, convert::Infallible, ffi::OsString, future::pending, process::Stdio, time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use msgbus_client::{ClientError, Delivery, Group, LeaseOptions, Position, TopicName};
use tokio::{select, sync::Notify};

use crate::{
    commands::Command,
    execute::{Ended, Execute},
    failure::{Exit, Failure},
    output::{Format, note},
    reader::{Options, bounded, count, delay, lease, position},
    signals::Stop,
    source::Source,
};

/// The time between the second signal and the exit, in which messages are given back.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(5);
/// How long a take waits at the server.
const WAIT: Duration = Duration::from_secs(60);
/// The maximum of -P. It is also the usual maximum of leases of a group.
const MAX_PARALLEL: u64 = 1_024;

#[derive(Debug)]
pub(crate) struct Work {
    topic: TopicName,
    group: Group,
    execute: Execute,
    parallel: usize,
    retry_delay: Duration,
    count: Option<u64>,
    quiet: bool,
}

impl Work {
    pub(crate) fn parse(
        options: &mut Options,
        topic: TopicName,
        command: Option<(OsString, Vec<OsString>)>,
    ) -> Result<Self, Failure> {
        let usage = || format!("no command given; usage: {}", Command::Work.spec().usage());
        let (program, arguments) = command.ok_or_else(|| Failure::usage(usage()))?;
        let format = options.style()?.format;
        if format == Some(Format::Pretty) {
            return Err(Failure::usage(
                "a command receives json or raw; pretty is for terminals only",
            ));
        }
        let name = options.group()?.ok_or_else(|| {
            Failure::usage("no group given; add --group NAME, the same for all workers")
        })?;
        let parallel = options.value("--parallel", |text| bounded(text, 1..=MAX_PARALLEL))?;
        let retry_delay = options.value("--retry-delay", delay)?.unwrap_or(DEFAULT_RETRY_DELAY);
        let lease = options.value("--lease", lease)?.unwrap_or(LeaseOptions::DEFAULT_LEASE);
        let since: Option<Position> = options.value("--since", position)?;
        let count = options.value("--count", count)?;
        let group = options.client()?.0.group(&topic, &name).lease(lease);
        Ok(Self {
            topic,
            group: since.into_iter().fold(group, Group::since),
            execute: Execute::new(program, arguments, format == Some(Format::Raw))?,
            parallel: parallel.and_then(|count| usize::try_from(count).ok()).unwrap_or(1),
            retry_delay,
            count,
            quiet: options.quiet,
        })
    }
}

pub(crate) async fn run(work: Work, stop: Stop) -> Result<Exit, Failure> {
    let halt = Notify::new();
    let mut stopped = stop.clone();
    let end = async {
        select! {
            () = stopped.requested() => {}
            () = halt.notified() => {}
        }
    };
    let mut failure = None;
    {
        let deliveries = work.deliveries().take_until(Box::pin(end));
        let jobs = deliveries.map(async |delivery| match delivery {
            Ok(delivery) => work.run(delivery, stop.clone()).await,
            Err(failure) => Err(failure),
        });
        let mut jobs = Box::pin(jobs.buffer_unordered(work.parallel));
        while let Some(done) = jobs.next().await {
            if let Err(error) = done {
                // Running commands finish, and no more are started.
                halt.notify_one();
                failure.get_or_insert(error);
            }
        }
    }
    match failure {
        _ if stop.is_requested_again() => Ok(Exit::SecondSignal),
        Some(failure) => Err(failure),
        None => Ok(Exit::Done),
    }
}

impl Work {
    /// Runs the command for a message, and settles its lease.
    ///
    /// # Errors
    /// The command cannot be run.
    async fn run(&self, delivery: Delivery, mut stop: Stop) -> Result<(), Failure> {
        let (message, deliveries) = (delivery.message().clone(), delivery.deliveries());
        let (topic, id, name) = (&self.topic, message.id(), self.execute.name());
        let mut command = self.execute.command(&message);
        command.env("MSGBUS_DELIVERIES", deliveries.to_string()).stderr(Stdio::piped());
        let (is_lost, lost) = (Cell::new(false), delivery.lost());
        let lost = async {
            lost.await;
            is_lost.set(true);
            note(&format!("{topic}: the lease of message {id} was lost while {name} ran"));
            pending::<Infallible>().await
        };
        let input = self.execute.input(&message);
        let settled = match self.execute.run(command, input, 0, lost, stop.requested_again()).await
        {
            Ok(Ended::Exited { status, .. }) if status.success() => delivery.ack().await,
            Ok(Ended::Exited { status, last_line, .. }) => {
                note(&format!("{name} failed on message {id} (delivery {deliveries}): {status}"));
                let reason = last_line.unwrap_or_else(|| status.to_string());
                delivery.nack(self.retry_delay, Some(reason)).await
            }
            Ok(Ended::Killed | Ended::TooLong) => {
                let reason = "msgbus work was ended by a second signal".to_owned();
                delivery.nack(Duration::ZERO, Some(reason)).await
            }
            Err(failure) => {
                // If this fails, the message is redelivered when its lease is over.
                let _ = delivery.nack(self.retry_delay, Some(failure.to_string())).await;
                return Err(failure);
            }
        };
        if let Err(error) = settled
            && !is_lost.get()
        {
            note(&format!("{topic}: message {id} was not settled and may be redelivered: {error}"));
        }
        Ok(())
    }
}

impl Work {
    /// All deliveries, up to --count. Ends after an error.
    fn deliveries(&self) -> impl Stream<Item = Result<Delivery, Failure>> + use<'_> {
        let start = (Source::new(WAIT, self.quiet), self.count.unwrap_or(u64::MAX));
        stream::unfold(start, async |(mut source, left)| {
            let left = left.checked_sub(1)?;
            let taken = source.next(async |wait| self.take(wait).await).await;
            let left = if taken.is_ok() { left } else { 0 };
            Some((taken.map_err(Failure::from), (source, left)))
        })
    }

    async fn take(&self, wait: Duration) -> Result<Option<Delivery>, ClientError> {
        if wait.is_zero() { self.group.try_take().await } else { self.group.take(wait).await }
    }
}
