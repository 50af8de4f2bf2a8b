//! The turns of activities: each that was woken is polled, and the client is told what comes of it.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use msgbus_core::{PublishError, RecvError, Reply, SubscribeError};

use super::{
    Conversation, Dialect, ENOUGH, End, MAX_UNREAD, Output as _,
    activities::{Activities, Activity},
    follow::{Follow, Stage},
    shared::Left,
};
use crate::service::{error::ServiceError, follower::Item};

/// What one turn of an activity has come to.
pub(super) enum Turn<D: Dialect> {
    /// It is woken when there is more to do.
    Waits,
    /// There may be more to do.
    Continues,
    Over(End),
    /// It is over, and the client knows.
    Closed,
    Replied(Result<Reply, ServiceError>),
    Done(D::Outcome),
}

impl<D: Dialect> Conversation<D> {
    /// Gives activities that are ready their turns, until there is enough to write. Returns whether there was one.
    pub(crate) fn run(&mut self) -> bool {
        let mut has_run = false;
        while self.contact.output.waiting() < ENOUGH
            && let Some(key) = self.activities.queue.pop()
        {
            self.run_one(key);
            has_run = true;
        }
        has_run
    }

    /// Gives subscriptions to topics and patterns that are ready their turns, until there is enough to write, or until
    /// another activity has its turn.
    pub(super) fn run_follows(&mut self) -> Left {
        while self.contact.output.waiting() < ENOUGH {
            let Some(key) = self.activities.queue.pop() else { return Left::Nothing };
            let activity = self.activities.slots.get(key).map(|slot| &slot.activity);
            if activity.is_some_and(|activity| !activity.is_open_follow()) {
                self.activities.queue.put_back(key);
                return Left::Others;
            }
            self.run_one(key);
            if self.contact.ends.is_some() {
                return Left::Others;
            }
        }
        Left::Follows
    }

    fn run_one(&mut self, key: usize) {
        let Self { contact, activities, .. } = self;
        // It may be over since it was woken.
        let Some(slot) = activities.slots.get_mut(key) else { return };
        slot.signal.taken();
        let waker = Waker::from(Arc::clone(&slot.signal));
        let cx = &mut Context::from_waker(&waker);
        let turn = match &mut slot.activity {
            Activity::Follow(follow) => follow.poll(cx, contact, &mut activities.opening),
            Activity::Lease(lease) => named_turn(lease.poll(cx, contact)),
            Activity::Serve(serve) => named_turn(serve.poll(cx, contact, &mut activities.in_hand)),
            Activity::Ask(ask) => ask.poll(cx, contact.client.worker.tasks.stop.is_draining()),
            Activity::Wait(waiting) => waiting.poll(cx),
        };
        self.after(key, turn);
    }

    /// As [`run`](Self::run), for all that are ready, while the client accepts nothing: operations go on, and
    /// subscriptions only end if the keys no longer allow them.
    pub(super) fn run_blocked(&mut self) {
        let mut held_back = Vec::new();
        while let Some(key) = self.activities.queue.pop() {
            let Self { contact, activities, .. } = self;
            let Some(slot) = activities.slots.get_mut(key) else { continue };
            slot.signal.taken();
            let waker = Waker::from(Arc::clone(&slot.signal));
            let cx = &mut Context::from_waker(&waker);
            let is_draining = contact.client.worker.tasks.stop.is_draining();
            let has_unread = contact.output.waiting() >= MAX_UNREAD;
            let turn = match &mut slot.activity {
                // Replies are not buffered for a client that does not read.
                Activity::Ask(_) if has_unread && is_draining => {
                    Turn::Replied(Err(PublishError::Closed.into()))
                }
                Activity::Ask(_) if has_unread => Turn::Continues,
                Activity::Ask(ask) => ask.poll(cx, is_draining),
                Activity::Wait(waiting) => waiting.poll(cx),
                Activity::Follow(follow) if follow.is_opening() => {
                    follow.poll(cx, contact, &mut activities.opening)
                }
                Activity::Follow(follow) => blocked_turn(follow.poll_blocked(cx)),
                Activity::Lease(lease) => blocked_turn(lease.poll_blocked(cx)),
                Activity::Serve(serve) => blocked_turn(serve.poll_blocked(cx)),
            };
            if matches!(turn, Turn::Continues) {
                held_back.push(key);
            } else {
                self.after(key, turn);
            }
        }
        for key in held_back {
            // One that was twice in the queue may be over by now.
            if let Some(slot) = self.activities.slots.get(key) {
                slot.signal.queue();
            }
        }
    }

    /// Does what follows from a turn.
    fn after(&mut self, key: usize, turn: Turn<D>) {
        let Self { contact, activities, .. } = self;
        match turn {
            Turn::Waits => {}
            Turn::Continues => activities.slots[key].signal.queue(),
            Turn::Closed => drop(activities.remove(key, &"closed")),
            Turn::Over(end) => self.end(key, end),
            Turn::Done(outcome) => {
                if let Activity::Wait(waiting) = activities.remove(key, &"") {
                    D::done(contact, waiting.waiter, outcome);
                }
            }
            Turn::Replied(outcome) => {
                if let Activity::Ask(ask) = activities.remove(key, &"") {
                    D::replied(contact, ask.waiter, outcome);
                }
            }
        }
    }

    /// Ends a subscription or a service, and tells the client.
    fn end(&mut self, key: usize, end: End) {
        let mut activity = self.activities.remove(key, &end);
        let at = activity.position();
        if let (End::Revoked, Activity::Serve(serve)) = (&end, &activity) {
            // The client may not answer them any more.
            self.activities.in_hand.hand_back(|holder| serve.holds(holder));
        }
        if let Activity::Follow(follow) = &mut activity
            && let Follow { name, stage: Stage::Opening(opening) } = &mut **follow
        {
            let closed = Err(SubscribeError::Closed.into());
            D::opened(&mut self.contact, name, &mut opening.1, closed);
        } else if let Some(name) = activity.into_name() {
            D::ended(self, name, (end, at));
        }
    }

    /// The client is pinged: the time to say which subscriptions wait for the engine of their topic.
    pub(super) fn pinged(&mut self) {
        let Self { contact, activities, .. } = self;
        for (_, slot) in &mut activities.slots {
            if let Activity::Follow(follow) = &mut slot.activity
                && let Follow { name, stage: Stage::Open(follower) } = &mut **follow
                && let Some(feed) = follower.feed()
            {
                D::item(contact, name, Item::Feed(feed), follower.next_id());
            }
        }
    }

    /// Ends all subscriptions and services, because the server stops or the client sends nothing more, and polls all
    /// operations once more.
    pub(crate) fn drain(&mut self) {
        self.activities.in_hand.give_up();
        let keys: Vec<usize> = self.activities.names.keys().collect();
        for key in keys {
            self.end(key, End::Over(RecvError::Closed));
        }
        for (_, slot) in &self.activities.slots {
            slot.signal.queue();
        }
    }

    /// Ends all activities, and returns them, to be dropped without the lock.
    pub(super) fn take(&mut self) -> Activities<D> {
        let none = Activities::new(&self.contact.client.worker);
        let activities = mem::replace(&mut self.activities, none);
        for (_, slot) in &activities.slots {
            if let Activity::Follow(follow) = &slot.activity
                && let Stage::Open(follower) = &follow.stage
            {
                follower.log_end(&"connection");
            }
        }
        activities
    }
}

pub(super) fn named_turn<D: Dialect>(polled: Poll<Result<(), End>>) -> Turn<D> {
    match polled {
        Poll::Pending => Turn::Waits,
        Poll::Ready(Ok(())) => Turn::Continues,
        Poll::Ready(Err(end)) => Turn::Over(end),
    }
}

/// What was woken while the client accepts nothing is ready again when it does.
fn blocked_turn<D: Dialect>(revoked: Poll<()>) -> Turn<D> {
    match revoked {
        Poll::Ready(()) => Turn::Over(End::Revoked),
        Poll::Pending => Turn::Continues,
    }
}
