//! What takes time on one connection: its subscriptions and services, and operations that wait.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use msgbus_core::{Position, PublishError, ReplyToken};
use slab::Slab;

use super::{
    Dialect,
    follow::{Follow, Stage},
    lease::Lease,
    names::Names,
    ready::{ReadyQueue, Signal},
    serve::{Holder, Serve},
    turns::Turn,
};
use crate::{
    service::{follower::Follower, in_hand::InHand, requests::Asked},
    worker::Worker,
};

/// All activities of one connection.
#[derive(Debug)]
pub(crate) struct Activities<D: Dialect> {
    pub(super) slots: Slab<Slot<D>>,
    pub(super) queue: Arc<ReadyQueue>,
    pub(super) names: Names,
    /// The requests that the client has from its services.
    pub(super) in_hand: InHand<D::RequestKey, Holder>,
    /// The number of subscriptions that are not open yet.
    pub(super) opening: usize,
    /// The number of requests that wait for their replies.
    asked: usize,
}

#[derive(Debug)]
pub(super) struct Slot<D: Dialect> {
    pub(super) signal: Arc<Signal>,
    pub(super) activity: Activity<D>,
}

/// One activity.
#[derive(Debug)]
pub(super) enum Activity<D: Dialect> {
    Follow(Box<Follow<D>>),
    Lease(Box<Lease<D>>),
    Serve(Box<Serve<D>>),
    Ask(Box<Ask<D>>),
    Wait(Box<Waiting<D>>),
}

/// A request that waits for its reply. Dropping it takes the request back.
#[derive(Debug)]
pub(super) struct Ask<D: Dialect> {
    pub(super) waiter: D::Waiter,
    asked: Asked,
}

/// An operation that waits.
pub(super) struct Waiting<D: Dialect> {
    pub(super) waiter: D::Waiter,
    outcome: Pending<D::Outcome>,
}

/// An outcome that is waited for.
pub(crate) type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<D: Dialect> Activities<D> {
    pub(super) fn new(worker: &Arc<Worker>) -> Self {
        Self {
            slots: Slab::new(),
            queue: Arc::default(),
            names: Names::default(),
            in_hand: InHand::new(worker),
            opening: 0,
            asked: 0,
        }
    }

    /// Call this first when the task of the connection is polled.
    pub(crate) fn register(&self, task: &Waker) {
        self.queue.register(task);
    }

    /// The number of subscriptions and services.
    pub(crate) fn named(&self) -> usize {
        self.names.len()
    }

    /// The number of operations that are not answered, with requests.
    pub(crate) fn outstanding(&self) -> usize {
        self.slots.len() - self.names.len()
    }

    /// As [`outstanding`](Self::outstanding), without those that hold up no others: requests.
    pub(crate) fn held_up(&self) -> usize {
        self.outstanding() - self.asked
    }

    /// The number of requests that wait for their replies.
    pub(crate) fn asked(&self) -> usize {
        self.asked
    }

    /// The number of subscriptions that are not open yet.
    pub(crate) fn opening(&self) -> usize {
        self.opening
    }

    /// The names of subscriptions and services.
    pub(crate) fn names(&self) -> impl Iterator<Item = &D::Name> {
        self.names.keys().filter_map(|key| self.slots[key].activity.name())
    }

    pub(crate) fn has(&self, name: &D::Name) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &D::Name) -> Option<usize> {
        self.names.find(name, |key| self.slots[key].activity.name())
    }

    pub(super) fn follow(&mut self, name: D::Name, stage: Stage<D>) {
        self.add(Activity::Follow(Box::new(Follow { name, stage })));
    }

    pub(crate) fn lease(&mut self, lease: Lease<D>) {
        self.add(Activity::Lease(Box::new(lease)));
    }

    pub(super) fn serve(&mut self, make: impl FnOnce(usize) -> Serve<D>) {
        let key = self.slots.vacant_key();
        self.add(Activity::Serve(Box::new(make(key))));
    }

    pub(crate) fn ask(&mut self, waiter: D::Waiter, asked: Asked) {
        self.asked += 1;
        self.add(Activity::Ask(Box::new(Ask { waiter, asked })));
    }

    pub(crate) fn wait(&mut self, waiter: D::Waiter, outcome: Pending<D::Outcome>) {
        self.add(Activity::Wait(Box::new(Waiting { waiter, outcome })));
    }

    fn add(&mut self, activity: Activity<D>) {
        let is_named = activity.name().is_some();
        let slot = self.slots.vacant_entry();
        let key = slot.key();
        let signal = Signal::new(&self.queue, key);
        signal.queue();
        slot.insert(Slot { signal, activity });
        if is_named {
            let Self { slots, names, .. } = self;
            names.insert(key, |key| slots[key].activity.name());
        }
    }

    /// Ends a subscription or a service. Returns its name, unless there is none.
    pub(crate) fn end(&mut self, name: &D::Name) -> Option<D::Name> {
        let key = self.find(name)?;
        self.remove(key, &"unsubscribed").into_name()
    }

    /// Ends a subscription that another one replaces. Returns its follower, if it has one.
    pub(crate) fn replace(&mut self, name: &D::Name) -> Option<Follower> {
        let key = self.find(name)?;
        match self.remove(key, &"replaced") {
            Activity::Follow(follow) => follow.into_follower(),
            _ => None,
        }
    }

    /// How a subscription is answered, if its position is not known yet.
    pub(crate) fn opening_of(&mut self, name: &D::Name) -> Option<&mut D::Opening> {
        let key = self.find(name)?;
        match &mut self.slots[key].activity {
            Activity::Follow(follow) => match &mut follow.stage {
                Stage::Opening(opening) => Some(&mut opening.1),
                Stage::Open(_) => None,
            },
            _ => None,
        }
    }

    /// The subscription of a group with this name, which is polled once more. `Err` if it is none.
    pub(crate) fn lease_of(&mut self, name: &D::Name) -> Option<Result<&mut Lease<D>, ()>> {
        let key = self.find(name)?;
        Some(match &mut self.slots[key] {
            Slot { signal, activity: Activity::Lease(lease) } => {
                signal.queue();
                Ok(lease)
            }
            _ => Err(()),
        })
    }

    /// A request was answered, and the client may get another one. `None` if it is not known here: it came from another
    /// connection, or is over.
    pub(crate) fn answered(&mut self, key: &D::RequestKey) -> Option<(ReplyToken, Holder)> {
        let was_full = self.in_hand.len() >= D::MAX_IN_HAND;
        let (token, holder) = self.in_hand.remove(key)?;
        if was_full {
            for (_, slot) in &self.slots {
                if let Activity::Serve(_) = slot.activity {
                    slot.signal.queue();
                }
            }
        } else if let Some(Slot { signal, activity: Activity::Serve(serve) }) =
            self.slots.get(holder.key)
            && serve.was_full(&holder)
        {
            signal.queue();
        }
        Some((token, holder))
    }

    /// Removes an activity, and logs why.
    pub(super) fn remove(&mut self, key: usize, why: &dyn std::fmt::Debug) -> Activity<D> {
        if let Some(name) = self.slots[key].activity.name() {
            self.names.remove(name, key);
        }
        let activity = self.slots.remove(key).activity;
        match &activity {
            Activity::Follow(follow) => match &follow.stage {
                Stage::Open(follower) => follower.log_end(why),
                Stage::Opening(_) => self.opening -= 1,
            },
            Activity::Ask(_) => self.asked -= 1,
            _ => {}
        }
        activity
    }
}

impl<D: Dialect> Activity<D> {
    /// The name of a subscription or a service.
    pub(super) fn name(&self) -> Option<&D::Name> {
        match self {
            Self::Follow(follow) => Some(&follow.name),
            Self::Lease(lease) => Some(&lease.name),
            Self::Serve(serve) => Some(&serve.name),
            Self::Ask(_) | Self::Wait(_) => None,
        }
    }

    pub(super) fn into_name(self) -> Option<D::Name> {
        match self {
            Self::Follow(follow) => Some(follow.name),
            Self::Lease(lease) => Some(lease.name),
            Self::Serve(serve) => Some(serve.name),
            Self::Ask(_) | Self::Wait(_) => None,
        }
    }

    /// Where a subscription could go on.
    pub(super) fn position(&self) -> Position {
        match self {
            Self::Follow(follow) => match &follow.stage {
                Stage::Open(follower) => follower.position(),
                Stage::Opening(_) => Position::New,
            },
            _ => Position::New,
        }
    }

    pub(super) fn is_open_follow(&self) -> bool {
        matches!(self, Self::Follow(follow) if !follow.is_opening())
    }
}

impl<D: Dialect> Ask<D> {
    /// Waits for the reply, unless the server stops.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, is_draining: bool) -> Turn<D> {
        match Pin::new(&mut self.asked).poll(cx) {
            Poll::Ready(outcome) => Turn::Replied(outcome),
            Poll::Pending if is_draining => Turn::Replied(Err(PublishError::Closed.into())),
            Poll::Pending => Turn::Waits,
        }
    }
}

impl<D: Dialect> std::fmt::Debug for Waiting<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("waiter", &self.waiter).finish_non_exhaustive()
    }
}

impl<D: Dialect> Waiting<D> {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Turn<D> {
        match self.outcome.as_mut().poll(cx) {
            Poll::Ready(outcome) => Turn::Done(outcome),
            Poll::Pending => Turn::Waits,
        }
    }
}
