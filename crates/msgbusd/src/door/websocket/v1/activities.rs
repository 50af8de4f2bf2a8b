//! What takes time on one websocket: its subscriptions, and operations that wait.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use msgbus_core::{PublishError, Reply, ReplyToken, SubscribeError};
use slab::Slab;

use super::{
    Client, FRAME_SIZE, MAX_SUBSCRIPTIONS, MAX_UNREAD,
    answer::{Answer, write_refusal},
    ask::Ask,
    follow::{End, Follow},
    identifier::Label,
    in_hand::{Holder, InHand},
    names::Names,
    opening::{Opened, Opening},
    output::Output,
    refusal::Refusal,
    serve::Serve,
    work::Work,
};
use crate::{
    service::error::ServiceError,
    websocket::{
        ready::{ReadyQueue, Signal},
        shared::Left,
    },
};

/// All activities of one websocket.
#[derive(Debug)]
pub(crate) struct Activities {
    slots: Slab<Slot>,
    queue: Arc<ReadyQueue>,
    subscriptions: Names,
    in_hand: InHand,
    /// The number of requests that wait for their replies.
    asked: usize,
    is_draining: bool,
}

#[derive(Debug)]
struct Slot {
    signal: Arc<Signal>,
    activity: Activity,
}

/// One activity.
#[derive(Debug)]
enum Activity {
    Follow(Box<Follow>),
    Open(Box<Opening>),
    Work(Box<Work>),
    Serve(Box<Serve>),
    Ask(Box<Ask>),
    Wait(Box<Waiting>),
}

/// An operation that waits.
struct Waiting {
    /// As JSON.
    rid: Option<Label>,
    of: &'static str,
    outcome: Outcome,
}

/// The outcome of an operation that waits.
pub(super) type Outcome = Pin<Box<dyn Future<Output = Result<Answer, Refusal>> + Send>>;

/// What one turn of an activity has come to.
enum Turn {
    /// It is woken when there is more to do.
    Waits,
    /// There may be more to do.
    Continues,
    Opened(Opened),
    Over(End),
    Answered(Result<Answer, Refusal>),
    Replied(Result<Reply, ServiceError>),
}

impl Activities {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            slots: Slab::new(),
            queue: Arc::default(),
            subscriptions: Names::default(),
            in_hand: InHand::new(client),
            asked: 0,
            is_draining: false,
        }
    }

    /// Call this first when the task of the websocket is polled.
    pub(super) fn register(&self, task: &Waker) {
        self.queue.register(task);
    }

    /// The number of operations that are not answered.
    pub(super) fn outstanding(&self) -> usize {
        self.slots.len() - self.subscriptions.len()
    }

    /// As [`outstanding`](Self::outstanding), without those that hold up no others: requests.
    pub(super) fn held_up(&self) -> usize {
        self.outstanding() - self.asked
    }

    /// The number of requests that wait for their replies.
    pub(super) fn asked(&self) -> usize {
        self.asked
    }

    /// Refuses a subscription that cannot be added.
    pub(super) fn check_new(&self, sid: &str) -> Result<(), Refusal> {
        if self.find(sid).is_some() {
            return Err(Refusal::SidInUse);
        }
        if self.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Err(Refusal::TooManySubscriptions);
        }
        Ok(())
    }

    pub(super) fn follow(&mut self, follow: Follow) {
        let key = self.add(Activity::Follow(Box::new(follow)));
        self.name(key);
    }

    pub(super) fn open(&mut self, opening: Opening) {
        let key = self.add(Activity::Open(Box::new(opening)));
        self.name(key);
    }

    pub(super) fn work(&mut self, work: Work) {
        let key = self.add(Activity::Work(Box::new(work)));
        self.name(key);
    }

    pub(super) fn serve(&mut self, make: impl FnOnce(Holder) -> Serve) {
        let holder = Holder { key: self.slots.vacant_key(), number: self.in_hand.new_holder() };
        let key = self.add(Activity::Serve(Box::new(make(holder))));
        self.name(key);
    }

    pub(super) fn ask(&mut self, ask: Ask) {
        self.asked += 1;
        self.add(Activity::Ask(Box::new(ask)));
    }

    /// A request was answered. The one that served it may get another one.
    pub(super) fn answered(&mut self, token: &ReplyToken) {
        let Some(holder) = self.in_hand.remove(token) else { return };
        if let Some(Slot { signal, activity: Activity::Serve(serve) }) =
            self.slots.get_mut(holder.key)
            && serve.answered(holder, token)
        {
            signal.queue();
        }
    }

    /// Gives a request back that the client may not answer.
    pub(super) fn hand_back(&mut self, token: &ReplyToken) {
        self.in_hand.hand_back(token);
    }

    /// Makes a subscription known by its `sid`.
    fn name(&mut self, key: usize) {
        let Self { slots, subscriptions, .. } = self;
        subscriptions.insert(slots[key].sid(), key, |key| slots[key].sid());
    }

    fn find(&self, sid: &str) -> Option<usize> {
        self.subscriptions.find(sid, |key| self.slots[key].sid())
    }

    pub(super) fn wait(&mut self, rid: Option<Label>, of: &'static str, outcome: Outcome) {
        self.add(Activity::Wait(Box::new(Waiting { rid, of, outcome })));
    }

    fn add(&mut self, activity: Activity) -> usize {
        let slot = self.slots.vacant_entry();
        let key = slot.key();
        let signal = Signal::new(&self.queue, key);
        signal.queue();
        slot.insert(Slot { signal, activity });
        key
    }

    /// Ends a subscription. Returns its `sid`, unless there is none.
    pub(super) fn unsubscribe(&mut self, sid: &str) -> Result<Label, Refusal> {
        let key = self.find(sid).ok_or(Refusal::UnknownSid)?;
        self.remove(key, "unsub").ok_or(Refusal::UnknownSid)
    }

    /// The subscription with this `sid`, if its position is not known yet.
    pub(super) fn opening(&mut self, sid: &str) -> Option<&mut Opening> {
        let key = self.find(sid)?;
        match &mut self.slots[key].activity {
            Activity::Open(opening) => Some(opening),
            _ => None,
        }
    }

    /// The subscription of a group with this `sid`, which is polled once more.
    pub(super) fn worker(&mut self, sid: &str) -> Result<&mut Work, Refusal> {
        let key = self.find(sid).ok_or(Refusal::UnknownSid)?;
        match &mut self.slots[key] {
            Slot { signal, activity: Activity::Work(work) } => {
                signal.queue();
                Ok(work)
            }
            _ => Err(Refusal::NotAGroup),
        }
    }

    /// Gives the next activity that is ready its turn. Returns `false` if there is none.
    pub(super) fn run_next(&mut self, output: &mut Output<'_>) -> bool {
        let Some(key) = self.queue.pop() else { return false };
        self.run(key, output);
        true
    }

    /// Gives subscriptions to topics and patterns that are ready their turns, until there is enough to write, or until
    /// another activity has its turn.
    pub(super) fn run_follows(&mut self, output: &mut Output<'_>) -> Left {
        while output.waiting() < FRAME_SIZE {
            let Some(key) = self.queue.pop() else { return Left::Nothing };
            let activity = self.slots.get(key).map(|slot| &slot.activity);
            if activity.is_some_and(|activity| !matches!(activity, Activity::Follow(_))) {
                self.queue.put_back(key);
                return Left::Others;
            }
            self.run(key, output);
        }
        Left::Follows
    }

    fn run(&mut self, key: usize, output: &mut Output<'_>) {
        // It may be over since it was woken.
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.signal.taken();
        let waker = Waker::from(Arc::clone(&slot.signal));
        let cx = &mut Context::from_waker(&waker);
        let turn = slot.activity.poll(cx, output, &mut self.in_hand);
        self.settle(key, turn, output);
    }

    /// As [`run_next`](Self::run_next), for all that are ready, while the client accepts no more messages: operations go
    /// on, and subscriptions only end if the keys no longer allow them.
    pub(super) fn run_blocked(&mut self, output: &mut Output<'_>) {
        let mut held_back = Vec::new();
        while let Some(key) = self.queue.pop() {
            let Some(slot) = self.slots.get_mut(key) else { continue };
            slot.signal.taken();
            let waker = Waker::from(Arc::clone(&slot.signal));
            let cx = &mut Context::from_waker(&waker);
            let turn = match &mut slot.activity {
                // Replies are not buffered for a client that does not read.
                Activity::Ask(_) if output.waiting() >= MAX_UNREAD && !self.is_draining => {
                    Turn::Continues
                }
                Activity::Ask(_) if output.waiting() >= MAX_UNREAD => {
                    Turn::Replied(Err(PublishError::Closed.into()))
                }
                activity => activity.poll_blocked(cx),
            };
            if matches!(turn, Turn::Continues) {
                held_back.push(key);
            } else {
                self.settle(key, turn, output);
            }
        }
        for key in held_back {
            // One that was twice in the queue may be over by now.
            if let Some(slot) = self.slots.get(key) {
                slot.signal.queue();
            }
        }
    }

    /// Does what follows from a turn.
    fn settle(&mut self, key: usize, turn: Turn, output: &mut Output<'_>) {
        match turn {
            Turn::Waits => {}
            Turn::Continues => self.slots[key].signal.queue(),
            Turn::Opened(Opened::Follow(follow)) => {
                let slot = &mut self.slots[key];
                slot.activity = Activity::Follow(follow);
                slot.signal.queue();
            }
            Turn::Opened(Opened::Closed) => drop(self.remove(key, "closed")),
            Turn::Over(end) => self.end(key, &end, output),
            Turn::Answered(outcome) => {
                if let Activity::Wait(waiting) = self.slots.remove(key).activity {
                    waiting.answer(outcome, output);
                }
            }
            Turn::Replied(outcome) => {
                if let Activity::Ask(ask) = self.slots.remove(key).activity {
                    self.asked -= 1;
                    ask.answer(outcome, output);
                }
            }
        }
    }

    /// Ends a subscription, and tells the client.
    fn end(&mut self, key: usize, end: &End, output: &mut Output<'_>) {
        if let (End::Revoked, Some(Slot { activity: Activity::Serve(serve), .. })) =
            (end, self.slots.get_mut(key))
        {
            for token in serve.take_in_hand() {
                self.in_hand.hand_back(&token);
            }
        }
        if let Some(sid) = self.remove(key, end.word()) {
            end.write(&sid, output);
        }
    }

    /// Removes a subscription, and logs why. Returns its `sid`.
    fn remove(&mut self, key: usize, why: &str) -> Option<Label> {
        self.subscriptions.remove(self.slots.get(key)?.sid(), key);
        match self.slots.remove(key).activity {
            Activity::Follow(follow) => {
                follow.log_end(why);
                Some(follow.sid)
            }
            Activity::Open(opening) => Some(opening.sid),
            Activity::Work(work) => Some(work.sid),
            Activity::Serve(serve) => Some(serve.sid),
            Activity::Ask(_) | Activity::Wait(_) => None,
        }
    }

    /// Tells the client which subscriptions wait for the engine of their topic.
    pub(super) fn say_feeds(&mut self, output: &mut Output<'_>) {
        for (_, slot) in &mut self.slots {
            if let Activity::Follow(follow) = &mut slot.activity {
                follow.say_feed(output);
            }
        }
    }

    /// Ends all subscriptions, because the server stops, and polls all operations once more.
    pub(super) fn drain(&mut self, output: &mut Output<'_>) {
        self.is_draining = true;
        let keys: Vec<usize> = self.subscriptions.keys().collect();
        for key in keys {
            if let Activity::Open(opening) = &self.slots[key].activity {
                opening.refuse(SubscribeError::Closed.into(), output);
                drop(self.remove(key, "closed"));
            } else {
                self.end(key, &End::Closed, output);
            }
        }
        for (_, slot) in &self.slots {
            slot.signal.queue();
        }
    }

    /// Logs the end of all subscriptions.
    pub(super) fn log_end(&self, why: &str) {
        for (_, slot) in &self.slots {
            if let Activity::Follow(follow) = &slot.activity {
                follow.log_end(why);
            }
        }
    }
}

impl Slot {
    /// The `sid` of a subscription.
    fn sid(&self) -> &str {
        match &self.activity {
            Activity::Follow(follow) => &follow.sid,
            Activity::Open(opening) => &opening.sid,
            Activity::Work(work) => &work.sid,
            Activity::Serve(serve) => &serve.sid,
            Activity::Ask(_) | Activity::Wait(_) => "",
        }
    }
}

impl Activity {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Output<'_>,
        in_hand: &mut InHand,
    ) -> Turn {
        match self {
            Self::Follow(follow) => subscription_turn(follow.poll(cx, output)),
            Self::Open(opening) => open_turn(opening.poll(cx, output)),
            Self::Work(work) => subscription_turn(work.poll(cx, output)),
            Self::Serve(serve) => subscription_turn(serve.poll(cx, output, in_hand)),
            Self::Ask(ask) => ask_turn(ask.poll(cx)),
            Self::Wait(waiting) => waiting.poll(cx),
        }
    }

    /// Polls what goes on while the client accepts no messages. A subscription that was woken lets others have what it
    /// was woken for, and is ready again when the client accepts messages.
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Turn {
        let revoked = match self {
            Self::Follow(follow) => {
                follow.hold_back();
                follow.poll_revoked(cx)
            }
            Self::Open(_) => return Turn::Continues,
            Self::Work(work) => {
                work.hold_back();
                work.poll_revoked(cx)
            }
            Self::Serve(serve) => {
                serve.hold_back();
                serve.poll_revoked(cx)
            }
            Self::Ask(ask) => return ask_turn(ask.poll(cx)),
            Self::Wait(waiting) => return waiting.poll(cx),
        };
        match revoked {
            Poll::Ready(()) => Turn::Over(End::Revoked),
            Poll::Pending => Turn::Continues,
        }
    }
}

fn ask_turn(polled: Poll<Result<Reply, ServiceError>>) -> Turn {
    match polled {
        Poll::Pending => Turn::Waits,
        Poll::Ready(outcome) => Turn::Replied(outcome),
    }
}

fn open_turn(polled: Poll<Opened>) -> Turn {
    match polled {
        Poll::Pending => Turn::Waits,
        Poll::Ready(opened) => Turn::Opened(opened),
    }
}

fn subscription_turn(polled: Poll<Result<(), End>>) -> Turn {
    match polled {
        Poll::Pending => Turn::Waits,
        Poll::Ready(Ok(())) => Turn::Continues,
        Poll::Ready(Err(end)) => Turn::Over(end),
    }
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Turn {
        match self.outcome.as_mut().poll(cx) {
            Poll::Pending => Turn::Waits,
            Poll::Ready(outcome) => Turn::Answered(outcome),
        }
    }

    fn answer(self, outcome: Result<Answer, Refusal>, output: &mut Output<'_>) {
        let rid = self.rid.as_ref().map(|rid| rid.as_bytes());
        match outcome {
            Ok(answer) if rid.is_some() => answer.write(rid, output),
            Ok(_) => {}
            Err(refusal) => write_refusal(&refusal, rid, Some(self.of), output),
        }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("rid", &self.rid)
            .field("of", &self.of)
            .finish_non_exhaustive()
    }
}
