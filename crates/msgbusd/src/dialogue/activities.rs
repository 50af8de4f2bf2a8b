//! What takes time on one connection: its subscriptions and services, and operations that wait.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use msgbus_core::{Op, Position, PublishError, RecvError, Reply, ReplyToken, SubscribeError};
use slab::Slab;

use super::{
    Client, Conversation, Dialect, ENOUGH, End, MAX_UNREAD, Output as _,
    lease::Lease,
    names::Names,
    ready::{ReadyQueue, Signal},
    serve::{Holder, Serve},
    shared::Left,
};
use crate::{
    service::{
        error::ServiceError,
        follower::{Follower, Item},
        in_hand::InHand,
        requests::Asked,
    },
    websocket::transport::Outgoing,
    worker::Worker,
};

/// All activities of one connection.
#[derive(Debug)]
pub(crate) struct Activities<D: Dialect> {
    slots: Slab<Slot<D>>,
    queue: Arc<ReadyQueue>,
    names: Names,
    /// The requests that the client has from its services.
    in_hand: InHand<D::RequestKey, Holder>,
    /// The number of subscriptions that are not open yet.
    opening: usize,
    /// The number of requests that wait for their replies.
    asked: usize,
}

#[derive(Debug)]
struct Slot<D: Dialect> {
    signal: Arc<Signal>,
    activity: Activity<D>,
}

/// One activity.
#[derive(Debug)]
enum Activity<D: Dialect> {
    Follow(Box<Follow<D>>),
    Lease(Box<Lease<D>>),
    Serve(Box<Serve<D>>),
    Ask(Box<Ask<D>>),
    Wait(Box<Waiting<D>>),
}

/// A subscription to a topic or a pattern.
#[derive(Debug)]
struct Follow<D: Dialect> {
    name: D::Name,
    stage: Stage<D>,
}

#[derive(Debug)]
enum Stage<D: Dialect> {
    /// The position is not known yet.
    Opening(Box<(Following, D::Opening)>),
    Open(Follower),
}

/// A subscription that begins.
pub(crate) type Following = Op<Result<Follower, ServiceError>>;

/// A request that waits for its reply. Dropping it takes the request back.
#[derive(Debug)]
struct Ask<D: Dialect> {
    waiter: D::Waiter,
    asked: Asked,
}

/// An operation that waits.
struct Waiting<D: Dialect> {
    waiter: D::Waiter,
    outcome: Pending<D::Outcome>,
}

/// An outcome that is waited for.
pub(crate) type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What one turn of an activity has come to.
enum Turn<D: Dialect> {
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

    fn follow(&mut self, name: D::Name, stage: Stage<D>) {
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

    /// Ends a subscription that another one replaces. Returns its follower, or how it is answered when it has one.
    pub(crate) fn replace(&mut self, name: &D::Name) -> Option<Result<Follower, D::Opening>> {
        let key = self.find(name)?;
        match self.remove(key, &"replaced") {
            Activity::Follow(follow) => Some(match follow.stage {
                Stage::Open(follower) => Ok(follower),
                Stage::Opening(opening) => Err(opening.1),
            }),
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
    fn remove(&mut self, key: usize, why: &dyn std::fmt::Debug) -> Activity<D> {
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

impl<D: Dialect> Conversation<D> {
    /// Begins a subscription, with a name that is not in use.
    pub(crate) fn follow(
        &mut self,
        name: D::Name,
        mut opening: D::Opening,
        mut following: Following,
        output: &mut D::Output<'_>,
    ) {
        let Self { door, client, activities, .. } = self;
        match Pin::new(&mut following).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => {
                activities.opening += 1;
                activities.follow(name, Stage::Opening(Box::new((following, opening))));
            }
            Poll::Ready(Ok(mut follower)) => {
                follower.wake_directly();
                if door.opened(client, &name, &mut opening, Ok(&follower), output) {
                    activities.follow(name, Stage::Open(follower));
                }
            }
            Poll::Ready(Err(error)) => {
                door.opened(client, &name, &mut opening, Err(error), output);
            }
        }
    }

    /// Gives activities that are ready their turns, until there is enough to write. Returns whether there was one.
    pub(crate) fn run(&mut self, outgoing: &mut Outgoing) -> bool {
        let mut output = D::Output::new(outgoing);
        let mut has_run = false;
        while output.waiting() < ENOUGH
            && let Some(key) = self.activities.queue.pop()
        {
            self.run_one(key, &mut output);
            has_run = true;
        }
        has_run
    }

    /// Gives subscriptions to topics and patterns that are ready their turns, until there is enough to write, or until
    /// another activity has its turn.
    pub(super) fn run_follows(&mut self, outgoing: &mut Outgoing) -> Left {
        let mut output = D::Output::new(outgoing);
        while output.waiting() < ENOUGH {
            let Some(key) = self.activities.queue.pop() else { return Left::Nothing };
            let activity = self.activities.slots.get(key).map(|slot| &slot.activity);
            if activity.is_some_and(|activity| !activity.is_open_follow()) {
                self.activities.queue.put_back(key);
                return Left::Others;
            }
            self.run_one(key, &mut output);
            if self.ends.is_some() {
                return Left::Others;
            }
        }
        Left::Follows
    }

    fn run_one(&mut self, key: usize, output: &mut D::Output<'_>) {
        let Self { door, client, activities, .. } = self;
        // It may be over since it was woken.
        let Some(slot) = activities.slots.get_mut(key) else { return };
        slot.signal.taken();
        let waker = Waker::from(Arc::clone(&slot.signal));
        let cx = &mut Context::from_waker(&waker);
        let turn = match &mut slot.activity {
            Activity::Follow(follow) => {
                follow.poll(cx, (door, client), &mut activities.opening, output)
            }
            Activity::Lease(lease) => named_turn(lease.poll(cx, client, output)),
            Activity::Serve(serve) => {
                named_turn(serve.poll(cx, (door, client), &mut activities.in_hand, output))
            }
            Activity::Ask(ask) => ask.poll(cx, client.worker.tasks.stop.is_draining()),
            Activity::Wait(waiting) => waiting.poll(cx),
        };
        self.after(key, turn, output);
    }

    /// As [`run`](Self::run), for all that are ready, while the client accepts nothing: operations go on, and
    /// subscriptions only end if the keys no longer allow them.
    pub(super) fn run_blocked(&mut self, outgoing: &mut Outgoing) {
        let mut output = D::Output::new(outgoing);
        let mut held_back = Vec::new();
        while let Some(key) = self.activities.queue.pop() {
            let Some(slot) = self.activities.slots.get_mut(key) else { continue };
            slot.signal.taken();
            let waker = Waker::from(Arc::clone(&slot.signal));
            let cx = &mut Context::from_waker(&waker);
            let is_draining = self.client.worker.tasks.stop.is_draining();
            let turn = match &mut slot.activity {
                // Replies are not buffered for a client that does not read.
                Activity::Ask(_) if output.waiting() >= MAX_UNREAD && is_draining => {
                    Turn::Replied(Err(PublishError::Closed.into()))
                }
                Activity::Ask(_) if output.waiting() >= MAX_UNREAD => Turn::Continues,
                Activity::Ask(ask) => ask.poll(cx, is_draining),
                Activity::Wait(waiting) => waiting.poll(cx),
                Activity::Follow(follow) => blocked_turn(follow.poll_blocked(cx)),
                Activity::Lease(lease) => blocked_turn(lease.poll_blocked(cx)),
                Activity::Serve(serve) => blocked_turn(serve.poll_blocked(cx)),
            };
            if matches!(turn, Turn::Continues) {
                held_back.push(key);
            } else {
                self.after(key, turn, &mut output);
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
    fn after(&mut self, key: usize, turn: Turn<D>, output: &mut D::Output<'_>) {
        let Self { door, client, activities, .. } = self;
        match turn {
            Turn::Waits => {}
            Turn::Continues => activities.slots[key].signal.queue(),
            Turn::Closed => drop(activities.remove(key, &"closed")),
            Turn::Over(end) => self.end(key, end, output),
            Turn::Done(outcome) => {
                if let Activity::Wait(waiting) = activities.remove(key, &"") {
                    door.done(client, waiting.waiter, outcome, output);
                }
            }
            Turn::Replied(outcome) => {
                if let Activity::Ask(ask) = activities.remove(key, &"") {
                    door.replied(client, ask.waiter, outcome, output);
                }
            }
        }
    }

    /// Ends a subscription or a service, and tells the client.
    fn end(&mut self, key: usize, end: End, output: &mut D::Output<'_>) {
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
            self.door.opened(&self.client, name, &mut opening.1, closed, output);
        } else if let Some(name) = activity.into_name() {
            D::ended(self, name, (end, at), output);
        }
    }

    /// The client is pinged: the time to say which subscriptions wait for the engine of their topic.
    pub(super) fn pinged(&mut self, outgoing: &mut Outgoing) {
        let Self { client, activities, .. } = self;
        let mut output = D::Output::new(outgoing);
        for (_, slot) in &mut activities.slots {
            if let Activity::Follow(follow) = &mut slot.activity
                && let Follow { name, stage: Stage::Open(follower) } = &mut **follow
                && let Some(feed) = follower.feed()
            {
                D::item(client, name, Item::Feed(feed), follower.next_id(), &mut output);
            }
        }
    }

    /// Ends all subscriptions and services, because the server stops or the client sends nothing more, and polls all
    /// operations once more.
    pub(crate) fn drain(&mut self, outgoing: &mut Outgoing) {
        let mut output = D::Output::new(outgoing);
        self.activities.in_hand.give_up();
        let keys: Vec<usize> = self.activities.names.keys().collect();
        for key in keys {
            self.end(key, End::Over(RecvError::Closed), &mut output);
        }
        for (_, slot) in &self.activities.slots {
            slot.signal.queue();
        }
    }

    /// Ends all activities, and returns them, to be dropped without the lock.
    pub(super) fn take(&mut self) -> Activities<D> {
        let none = Activities::new(&self.client.worker);
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

impl<D: Dialect> Activity<D> {
    /// The name of a subscription or a service.
    fn name(&self) -> Option<&D::Name> {
        match self {
            Self::Follow(follow) => Some(&follow.name),
            Self::Lease(lease) => Some(&lease.name),
            Self::Serve(serve) => Some(&serve.name),
            Self::Ask(_) | Self::Wait(_) => None,
        }
    }

    fn into_name(self) -> Option<D::Name> {
        match self {
            Self::Follow(follow) => Some(follow.name),
            Self::Lease(lease) => Some(lease.name),
            Self::Serve(serve) => Some(serve.name),
            Self::Ask(_) | Self::Wait(_) => None,
        }
    }

    /// Where a subscription could go on.
    fn position(&self) -> Position {
        match self {
            Self::Follow(follow) => match &follow.stage {
                Stage::Open(follower) => follower.position(),
                Stage::Opening(_) => Position::New,
            },
            _ => Position::New,
        }
    }

    fn is_open_follow(&self) -> bool {
        matches!(self, Self::Follow(follow) if matches!(follow.stage, Stage::Open(_)))
    }
}

impl<D: Dialect> Follow<D> {
    /// Waits until the position is known, or sends a batch of messages.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (door, client): (&mut D, &Client),
        opening: &mut usize,
        output: &mut D::Output<'_>,
    ) -> Turn<D> {
        let Self { name, stage } = self;
        let waiting = match stage {
            Stage::Open(follower) => {
                let give = |item, next_id| D::item(client, name, item, next_id, output);
                return named_turn(follower.poll_batch(cx, give).map_err(End::from));
            }
            Stage::Opening(waiting) => waiting,
        };
        let goes_on = match Pin::new(&mut waiting.0).poll(cx) {
            Poll::Pending => return Turn::Waits,
            Poll::Ready(Err(error)) => {
                door.opened(client, name, &mut waiting.1, Err(error), output);
                false
            }
            Poll::Ready(Ok(mut follower)) => {
                follower.wake_directly();
                let goes_on = door.opened(client, name, &mut waiting.1, Ok(&follower), output);
                *stage = Stage::Open(follower);
                *opening -= 1;
                goes_on
            }
        };
        if goes_on { Turn::Continues } else { Turn::Closed }
    }

    /// Lets others have what it waits for, while the client accepts nothing. Ready when the keys no longer allow it.
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Stage::Open(follower) = &mut self.stage else { return Poll::Pending };
        follower.stop_waiting_for_memory();
        follower.poll_revoked(cx)
    }
}

fn named_turn<D: Dialect>(polled: Poll<Result<(), End>>) -> Turn<D> {
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

impl<D: Dialect> Ask<D> {
    /// Waits for the reply, unless the server stops.
    fn poll(&mut self, cx: &mut Context<'_>, is_draining: bool) -> Turn<D> {
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
    fn poll(&mut self, cx: &mut Context<'_>) -> Turn<D> {
        match self.outcome.as_mut().poll(cx) {
            Poll::Ready(outcome) => Turn::Done(outcome),
            Poll::Pending => Turn::Waits,
        }
    }
}
