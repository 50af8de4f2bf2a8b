//! Begins the operations of one client.

use std::{
    mem,
    task::{Context, Poll, Waker},
};

use tracing::debug;

use super::{
    Client, MAX_OUTSTANDING, MAX_UNREAD,
    activities::{Activities, Outcome},
    answer::{Answer, write_refusal},
    identifier::Identifier,
    operation::{self, Operation, Ping, Request, Unreadable},
    output::Output,
    refusal::Refusal,
};
use crate::{
    service::publisher::Publishers,
    websocket::{
        shared::{self, Left},
        transport::Outgoing,
    },
};

/// The operations of one client, and what they have begun.
#[derive(Debug)]
pub(crate) struct Operations {
    pub(super) client: Client,
    pub(super) activities: Activities,
    pub(super) publishers: Publishers,
    /// Whether something was published that has not been announced to the wake queue.
    pub(super) has_published: bool,
    /// The generation of the keys that `client` was last looked up in.
    generation: Option<u64>,
}

/// An operation that was not refused.
pub(super) enum Begun {
    Done(Answer),
    /// It may be done already.
    Waits(Outcome),
    /// An activity will answer.
    Answers,
}

impl Operations {
    pub(super) fn new(client: Client) -> Self {
        Self {
            activities: Activities::new(&client),
            client,
            publishers: Publishers::default(),
            has_published: false,
            generation: None,
        }
    }

    /// Ends all activities, and returns them, to be dropped without the lock.
    pub(super) fn end(&mut self) -> Activities {
        let none = Activities::new(&self.client);
        mem::replace(&mut self.activities, none)
    }

    /// Whether another operation may begin while this many bytes wait to be written.
    pub(super) fn may_begin(&self, unwritten: usize) -> bool {
        self.activities.held_up() < MAX_OUTSTANDING && unwritten < MAX_UNREAD
    }

    /// Begins the operation of a line.
    pub(super) fn begin(&mut self, line: &str, output: &mut Output<'_>) {
        self.client.worker.operation();
        self.refresh();
        match operation::parse(line) {
            Ok(Request { rid, operation }) => {
                if let Err(refusal) = self.perform(&operation, rid.as_ref(), output) {
                    self.refuse(&refusal, rid.as_ref(), Some(operation.name()), output);
                }
            }
            Err(Unreadable { rid, of, refusal }) => {
                self.refuse(&refusal, rid.as_ref(), of, output);
            }
        }
    }

    fn perform(
        &mut self,
        operation: &Operation<'_>,
        rid: Option<&Identifier<'_>>,
        output: &mut Output<'_>,
    ) -> Result<(), Refusal> {
        let begun = match operation {
            Operation::Publish(fields) => self.publish(fields)?,
            Operation::Subscribe(fields) => self.subscribe(fields, rid)?,
            Operation::Unsubscribe(fields) => self.unsubscribe(fields, rid)?,
            Operation::Pull(_) if rid.is_none() => return Err(Refusal::Missing("rid")),
            Operation::Pull(fields) => self.pull(fields)?,
            Operation::Ack(fields) => self.ack(fields)?,
            Operation::Nack(fields) => self.nack(fields)?,
            Operation::Extend(fields) => self.extend(fields)?,
            Operation::Credit(fields) => self.credit(fields)?,
            Operation::Ask(fields) => self.ask(fields, rid)?,
            Operation::Serve(fields) => self.serve(fields)?,
            Operation::Reply(fields) => self.reply(fields)?,
            Operation::Ping(Ping { .. }) => Begun::Done(Answer::Pong),
        };
        let answer = match begun {
            Begun::Done(answer) => answer,
            Begun::Answers => return Ok(()),
            Begun::Waits(mut outcome) => {
                match outcome.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(answer) => answer?,
                    Poll::Pending => {
                        let rid = rid.map(Identifier::to_label);
                        self.activities.wait(rid, operation.name(), outcome);
                        return Ok(());
                    }
                }
            }
        };
        write(answer, rid, output);
        Ok(())
    }

    fn refuse(
        &self,
        refusal: &Refusal,
        rid: Option<&Identifier<'_>>,
        of: Option<&'static str>,
        output: &mut Output<'_>,
    ) {
        let code = refusal.code();
        self.client.worker.metrics.refusal(code);
        // The text is not logged: it may repeat what the client sent.
        debug!(peer = %self.client.peer, op = of, code = code.word(), "refused");
        let rid = rid.map(Identifier::to_label);
        write_refusal(refusal, rid.as_ref().map(|rid| rid.as_bytes()), of, output);
    }

    /// Applies what a reload of the keys has changed, such as the rate of the client.
    fn refresh(&mut self) {
        let Some(keyring) = &self.client.worker.keyring else { return };
        let generation = Some(keyring.generation());
        if self.generation == generation {
            return;
        }
        self.generation = generation;
        if let Some(principal) = &self.client.principal
            && let Some(current) = keyring.refresh(principal)
        {
            self.client.principal = Some(current);
        }
    }
}

impl shared::Activities for Operations {
    fn run_follows(&mut self, outgoing: &mut Outgoing) -> Left {
        self.activities.run_follows(&mut Output::new(outgoing))
    }
}

/// Writes an answer, if the client wants one.
fn write(answer: Answer, rid: Option<&Identifier<'_>>, output: &mut Output<'_>) {
    match rid {
        Some(Identifier::Number(number)) => {
            answer.write(Some(itoa::Buffer::new().format(*number).as_bytes()), output);
        }
        Some(text) => answer.write(Some(text.to_label().as_bytes()), output),
        None if matches!(answer, Answer::Pong) => answer.write(None, output),
        None => {}
    }
}
