//! Begins the operations of one client.

use std::task::{Context, Poll, Waker};

use msgbus_core::json::PayloadForm;

use super::{
    V1,
    answer::{Answer, write_refusal},
    identifier::{Identifier, Label},
    operation::{self, Operation, Ping, Request, Unreadable},
    output::Output,
    refusal::Refusal,
};
use crate::{
    dialogue::{Contact, Conversation, activities::Pending},
    service::{error::ServiceError, follower::Follower},
};

/// The operations of one client, and what they have begun.
pub(crate) type Operations = Conversation<V1>;

/// An operation that was not refused.
pub(super) enum Begun {
    Done(Answer),
    /// It may be done already.
    Waits(Pending<Result<Answer, Refusal>>),
    /// An activity will answer.
    Answers,
}

/// What is answered when an operation is over.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// As JSON.
    pub(super) rid: Option<Label>,
    pub(super) of: &'static str,
    pub(super) form: PayloadForm,
}

impl Waiter {
    pub(super) fn refuse(&self, contact: &mut Contact<V1>, refusal: &Refusal) {
        contact.client.refused(Some(self.of), refusal.code());
        let rid = self.rid.as_ref().map(|rid| rid.as_bytes());
        write_refusal(refusal, rid, Some(self.of), &mut contact.output);
    }
}

/// A `sub` that is not answered yet.
#[derive(Debug)]
pub(crate) struct Opening {
    rid: Option<Label>,
    /// The `unsub` that came meanwhile, with its `rid`. It is answered after the `sub`.
    unsubscribed: Option<Unsubscribed>,
}

/// An `unsub`, with its `rid`.
#[derive(Debug)]
struct Unsubscribed(Option<Label>);

impl Opening {
    pub(super) fn new(rid: Option<&Identifier<'_>>) -> Self {
        Self { rid: rid.map(Identifier::to_label), unsubscribed: None }
    }

    /// Ends the subscription once it has begun. `rid` is that of the `unsub`.
    pub(super) fn unsubscribe(&mut self, rid: Option<&Identifier<'_>>) -> Result<(), Refusal> {
        if self.unsubscribed.is_some() {
            return Err(Refusal::UnknownSid);
        }
        self.unsubscribed = Some(Unsubscribed(rid.map(Identifier::to_label)));
        Ok(())
    }

    /// Answers the `sub`, and the `unsub` that came meanwhile. Returns whether the subscription goes on.
    pub(super) fn answer(
        &mut self,
        contact: &mut Contact<V1>,
        sid: &Label,
        outcome: Result<&Follower, ServiceError>,
    ) -> bool {
        let of = |rid, of| Waiter { rid, of, form: PayloadForm::default() };
        let (rid, unsubscribed) = (self.rid.take(), self.unsubscribed.take());
        match (outcome, &rid) {
            (Ok(follower), Some(rid)) => {
                let subscription = follower.subscription();
                let (epoch, start) = (subscription.epoch(), subscription.start());
                let answer = Answer::Subscribed { sid: sid.clone(), epoch, start };
                answer.write(Some(rid.as_bytes()), &mut contact.output);
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                of(rid, "sub").refuse(contact, &error.into());
                if let Some(Unsubscribed(rid)) = unsubscribed {
                    of(rid, "unsub").refuse(contact, &Refusal::UnknownSid);
                }
                return false;
            }
        }
        if let Some(Unsubscribed(Some(rid))) = &unsubscribed {
            Answer::Sid(sid.clone()).write(Some(rid.as_bytes()), &mut contact.output);
        }
        unsubscribed.is_none()
    }
}

impl Operations {
    /// Begins the operation of a line.
    pub(super) fn begin(&mut self, line: &str) {
        self.contact.client.worker.operation();
        self.contact.client.refresh();
        match operation::parse(line) {
            Ok(Request { rid, operation }) => {
                if let Err(refusal) = self.perform(&operation, rid.as_ref()) {
                    self.refuse(&refusal, rid.as_ref(), Some(operation.name()));
                }
            }
            Err(Unreadable { rid, of, refusal }) => {
                self.refuse(&refusal, rid.as_ref(), of);
            }
        }
    }

    fn perform(
        &mut self,
        operation: &Operation<'_>,
        rid: Option<&Identifier<'_>>,
    ) -> Result<(), Refusal> {
        let begun = match operation {
            Operation::Publish(fields) => self.publish_one(fields)?,
            Operation::Subscribe(fields) => self.subscribe(fields, rid)?,
            Operation::Unsubscribe(fields) => self.unsubscribe(fields, rid)?,
            Operation::Pull(_) if rid.is_none() => return Err(Refusal::Missing("rid")),
            Operation::Pull(fields) => self.pull(fields)?,
            Operation::Ack(fields) => self.ack(fields)?,
            Operation::Nack(fields) => self.nack(fields)?,
            Operation::Extend(fields) => self.extend(fields)?,
            Operation::Credit(fields) => self.credit(fields)?,
            Operation::Ask(fields) => self.ask_one(fields, rid)?,
            Operation::Serve(fields) => self.serve_one(fields)?,
            Operation::Reply(fields) => self.reply_one(fields)?,
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
                        let (of, form) = (operation.name(), PayloadForm::default());
                        self.activities.wait(Waiter { rid, of, form }, outcome);
                        return Ok(());
                    }
                }
            }
        };
        write(answer, rid, &mut self.contact.output);
        Ok(())
    }

    fn refuse(
        &mut self,
        refusal: &Refusal,
        rid: Option<&Identifier<'_>>,
        of: Option<&'static str>,
    ) {
        self.contact.client.refused(of, refusal.code());
        let rid = rid.map(Identifier::to_label);
        let rid = rid.as_ref().map(|rid| rid.as_bytes());
        write_refusal(refusal, rid, of, &mut self.contact.output);
    }
}

/// Writes an answer, if the client wants one.
fn write(answer: Answer, rid: Option<&Identifier<'_>>, output: &mut Output) {
    match rid {
        Some(Identifier::Number(number)) => {
            answer.write(Some(itoa::Buffer::new().format(*number).as_bytes()), output);
        }
        Some(text) => answer.write(Some(text.to_label().as_bytes()), output),
        None if matches!(answer, Answer::Pong) => answer.write(None, output),
        None => {}
    }
}
