//! What is done with each message, and what came of it.

use std::{convert::Infallible, fmt::Display, future::pending, time::Duration};

use msgbus_client::Message;
use tokio::time::timeout;

use super::{Ended, Sub};
use crate::{
    execute::{self, Execute},
    failure::{Exit, Failure},
    output::{Format, Output, note},
    signals::Stop,
};

/// The time limit for flushing the output at the end.
const FINAL_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints each message, or runs the command for it.
pub(super) struct Handler {
    execute: Option<Execute>,
    output: Output,
    stop: Stop,
    has_cursor: bool,
}

impl Handler {
    pub(super) fn new(args: &Sub, output: Output, stop: Stop) -> Result<Self, Failure> {
        let raw = args.style.format == Some(Format::Raw);
        let command = args.command.clone();
        let execute =
            command.map(|(program, rest)| Execute::new(program, rest, raw)).transpose()?;
        Ok(Self { execute, output, stop, has_cursor: args.cursor.is_some() })
    }

    /// Handles a message. `alive` keeps the connection alive while the command runs.
    pub(super) async fn handle(
        &mut self,
        message: &Message,
        alive: impl Future<Output = Infallible>,
    ) -> Result<(), Failure> {
        let Some(execute) = &self.execute else { return self.output.write(message).await };
        let command = execute.command(message);
        let input = execute.input(message);
        match execute.run(command, input, 0, alive, self.stop.requested_again()).await? {
            execute::Ended::Exited { status, .. } if status.success() => Ok(()),
            execute::Ended::Exited { status, .. } => {
                let (name, id) = (execute.name(), message.id());
                self.report_failed(&format!("{name} failed on message {id}: {status}"))
            }
            // msgbus exits shortly after the second signal.
            execute::Ended::Killed | execute::Ended::TooLong => pending().await,
        }
    }

    /// Reports a failed command. That is an error only with a cursor, which must not move past the message.
    fn report_failed(&self, problem: &str) -> Result<(), Failure> {
        if self.has_cursor {
            return Err(Failure::Other(format!("{problem}; the next run starts with it")));
        }
        note(problem);
        Ok(())
    }

    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        self.output.flush().await
    }

    /// Flushes for a limited time. After an error, the output may be unusable.
    pub(super) async fn flush_at_end(&mut self, is_usable: bool) -> Result<(), Failure> {
        if !is_usable {
            return Ok(());
        }
        timeout(FINAL_FLUSH_TIMEOUT, self.output.flush()).await.unwrap_or(Ok(()))
    }
}

/// What decides about the exit code.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The number of messages that were printed, or that the command was run for.
    pub(super) handled: u64,
    /// Whether any message was missed.
    pub(super) missed: bool,
    /// Whether the server has answered.
    pub(super) reached: bool,
}

impl Progress {
    pub(super) fn report_missed(&mut self, topics: &impl Display, count: u64) {
        self.missed = true;
        let s = if count == 1 { "" } else { "s" };
        note(&match count {
            0 => format!("{topics}: messages may be missed; the engine of the topic cannot tell"),
            _ => format!(
                "{topics}: missed {count} message{s}: the server dropped them before they were \
                 delivered (topic limit or TTL)"
            ),
        });
    }

    pub(super) fn exit(&self, ended: &Ended, args: &Sub) -> Exit {
        match ended {
            Ended::OutOfTime if !self.reached => {
                note("no connection within --timeout");
                Exit::NoConnection
            }
            _ if self.missed && args.strict => Exit::Missed,
            Ended::OutOfTime if args.count.is_some() => Exit::Nothing,
            Ended::Counted | Ended::Stopped | Ended::OutOfTime => Exit::Done,
        }
    }
}

/// Says that the engine of a topic does not deliver, or does again.
pub(super) fn note_delivery(topics: &impl Display, is_stalled: bool) {
    let what =
        if is_stalled { "its engine is away; waiting for it" } else { "its engine delivers again" };
    note(&format!("{topics}: {what}"));
}
