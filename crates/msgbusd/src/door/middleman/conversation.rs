//! One client, and what it has begun.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use msgbus_core::{Position, PublishError, RecvError, TopicName};
use slab::Slab;
use tracing::debug;

use super::{
    activity::{Activity, Ask, Committing, End, Follow, Followed, push},
    client::Client,
    output,
    refused::Refused,
};
use crate::{
    auth::Action,
    config::Protocol,
    service::{
        Authority, error::ServiceError, follower::Follower, in_hand::InHand, publisher::Publishers,
    },
    websocket::{
        ready::{ReadyQueue, Signal},
        shared::{self, Left},
        transport::Outgoing,
    },
    worker::Counter,
};

/// The bytes after which what is ready waits until they are written.
const ENOUGH: usize = 64 << 10;

/// One client, and what it has begun.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) client: Client,
    /// The topic that only this client is subscribed to.
    pub(super) private: TopicName,
    pub(super) slots: Slab<Slot>,
    pub(super) queue: Arc<ReadyQueue>,
    pub(super) follows: HashMap<TopicName, usize>,
    pub(super) services: HashMap<TopicName, usize>,
    pub(super) in_hand: InHand<u64, ()>,
    pub(super) messages: Arc<Counter>,
    pub(super) publishers: Publishers,
    /// Whether something was published that has not been announced to the wake queue.
    pub(super) has_published: bool,
    /// Whether the key of the client is no longer in force.
    pub(super) is_revoked: bool,
    /// The numbers of subscriptions that are not open, of requests, of publishes that wait, and of other activities.
    pub(super) opening: usize,
    pub(super) asked: usize,
    pub(super) committing: usize,
    others: usize,
}

#[derive(Debug)]
pub(super) struct Slot {
    signal: Arc<Signal>,
    activity: Activity,
}

/// What one turn of an activity has come to.
enum Turn {
    /// It is woken when there is more to do.
    Waits,
    /// There may be more to do.
    Continues,
    Opened(Followed, Result<Follower, ServiceError>),
    Ended(Followed, End),
    /// It is over, with what the client is told.
    Over(Option<Refused>),
}

impl Conversation {
    pub(super) fn new(client: Client, private: TopicName, follower: Follower) -> Self {
        let mut conversation = Self {
            private: private.clone(),
            slots: Slab::new(),
            queue: Arc::default(),
            follows: HashMap::new(),
            services: HashMap::new(),
            in_hand: InHand::new(&client.worker),
            messages: client.worker.messages_of(Protocol::Middleman),
            publishers: Publishers::default(),
            has_published: false,
            is_revoked: false,
            opening: 0,
            asked: 0,
            committing: 0,
            others: 0,
            client,
        };
        conversation.follow(Followed::Private(private), follower);
        conversation
    }

    pub(super) fn follow(&mut self, followed: Followed, follower: Follower) {
        self.add(Activity::Follow(Box::new(Follow::new(followed, follower))));
    }

    pub(super) fn add(&mut self, activity: Activity) -> usize {
        *self.count_of(&activity) += 1;
        let slot = self.slots.vacant_entry();
        let key = slot.key();
        let signal = Signal::new(&self.queue, key);
        signal.queue();
        slot.insert(Slot { signal, activity });
        key
    }

    fn remove(&mut self, key: usize) {
        let Some(Slot { activity, .. }) = self.slots.try_remove(key) else { return };
        *self.count_of(&activity) -= 1;
        match &activity {
            Activity::Follow(follow) => {
                follow.follower.log_end(&"over");
                if let Followed::Topic(topic) = &follow.followed {
                    self.follows.remove(topic);
                }
            }
            Activity::Open(opening) => {
                if let Followed::Topic(topic) = &opening.followed {
                    self.follows.remove(topic);
                }
            }
            Activity::Serve(serve) => drop(self.services.remove(&serve.service)),
            _ => {}
        }
    }

    /// The count of activities of the same kind, if they are limited.
    fn count_of(&mut self, activity: &Activity) -> &mut usize {
        match activity {
            Activity::Open(..) => &mut self.opening,
            Activity::Ask(_) => &mut self.asked,
            Activity::Commit(_) => &mut self.committing,
            Activity::Follow(_) | Activity::Serve(_) => &mut self.others,
        }
    }

    pub(super) fn unsubscribe(&mut self, topic: &TopicName) {
        if let Some(key) = self.follows.get(topic) {
            self.remove(*key);
        }
    }

    /// Lets services look whether the client may have another request.
    pub(super) fn look_at_services(&self) {
        for key in self.services.values() {
            self.slots[*key].signal.queue();
        }
    }

    /// Tells the client why a message is not carried out.
    pub(super) fn refuse(
        &self,
        refused: &Refused,
        command: &str,
        target: &str,
        outgoing: &mut Outgoing,
    ) {
        let code = refused.code();
        self.client.worker.metrics.refusal(code);
        // The text is not logged: it may repeat what the client sent.
        debug!(peer = %self.client.peer, code = code.word(), "refused");
        outgoing.push(output::error(&refused.text(command, target)));
    }

    /// Gives activities that are ready their turns, until there is enough to write. Returns whether there was one.
    pub(super) fn run_ready(&mut self, outgoing: &mut Outgoing) -> bool {
        let mut has_run = false;
        while outgoing.len() < ENOUGH {
            let Some(key) = self.queue.pop() else { break };
            self.run_one(key, outgoing);
            has_run = true;
        }
        has_run
    }

    fn run_one(&mut self, key: usize, outgoing: &mut Outgoing) {
        // It may be over since it was woken.
        let Some(Slot { signal, activity }) = self.slots.get_mut(key) else { return };
        signal.taken();
        let waker = Waker::from(Arc::clone(signal));
        let cx = &mut Context::from_waker(&waker);
        let turn = match activity {
            Activity::Open(opening) => match Pin::new(&mut opening.following).poll(cx) {
                Poll::Pending => Turn::Waits,
                Poll::Ready(opened) => Turn::Opened(opening.followed.clone(), opened),
            },
            Activity::Follow(follow) => match follow.poll(cx, outgoing) {
                Poll::Pending => Turn::Waits,
                Poll::Ready(Ok(())) => Turn::Continues,
                Poll::Ready(Err(end)) => Turn::Ended(follow.followed.clone(), end),
            },
            Activity::Serve(serve) => {
                match serve.poll(cx, (&self.client, &mut self.in_hand), outgoing) {
                    Poll::Pending => Turn::Waits,
                    Poll::Ready(Ok(())) => Turn::Continues,
                    Poll::Ready(Err(refused)) => Turn::Over(Some(refused)),
                }
            }
            Activity::Ask(ask) => answered(ask, cx, &self.client, outgoing),
            Activity::Commit(committing) => committed(committing, cx),
        };
        self.settle(key, turn, outgoing);
    }

    /// Does what follows from a turn.
    fn settle(&mut self, key: usize, turn: Turn, outgoing: &mut Outgoing) {
        match turn {
            Turn::Waits => {}
            Turn::Continues => self.slots[key].signal.queue(),
            Turn::Opened(followed, Ok(follower)) => {
                let slot = &mut self.slots[key];
                slot.activity = Activity::Follow(Box::new(Follow::new(followed, follower)));
                slot.signal.queue();
                self.opening -= 1;
                self.others += 1;
            }
            Turn::Opened(followed, Err(error)) => {
                self.remove(key);
                self.refuse(&error.into(), "SUB", &followed.target(), outgoing);
            }
            Turn::Ended(followed, end) => {
                self.remove(key);
                self.ended(followed, end, outgoing);
            }
            Turn::Over(refused) => {
                if let Some(refused) = refused {
                    let (command, target) = self.slots[key].activity.of();
                    self.refuse(&refused, command, &target, outgoing);
                }
                self.remove(key);
            }
        }
    }

    /// Does what follows from the end of a subscription.
    fn ended(&mut self, followed: Followed, end: End, outgoing: &mut Outgoing) {
        match (followed, end) {
            (Followed::Private(_), End::Revoked) => self.is_revoked = true,
            (followed, End::Revoked) => {
                self.refuse(&Refused::NotTrusted, "SUB", &followed.target(), outgoing);
            }
            // Clients know nothing of deleted topics: they get what is published to the next one, from its beginning.
            (followed, End::Deleted) => {
                let client = &self.client;
                let enabled = &client.hub.subscribable;
                let authority = match &followed {
                    Followed::Topic(topic) => client.authority(Action::Subscribe, topic, enabled),
                    _ => Some(Authority::Key),
                };
                match authority {
                    Some(authority) => self.open(followed, authority, Position::All),
                    None => self.ended(followed, End::Revoked, outgoing),
                }
            }
            // The drain follows.
            (_, End::Failed(RecvError::Closed)) => {}
            (followed, End::Failed(error)) => {
                let text = format!("SUB {}: {error}", followed.target());
                outgoing.push(output::error(&text));
            }
        }
    }

    /// As [`run_ready`](Self::run_ready), while the client accepts nothing: others get what its activities were woken for.
    pub(super) fn run_held_back(&mut self, outgoing: &mut Outgoing) {
        let mut held_back = Vec::new();
        while let Some(key) = self.queue.pop() {
            let Some(Slot { signal, activity }) = self.slots.get_mut(key) else { continue };
            signal.taken();
            let waker = Waker::from(Arc::clone(signal));
            let cx = &mut Context::from_waker(&waker);
            let turn = match activity {
                Activity::Follow(follow) => {
                    follow.follower.stop_waiting_for_memory();
                    let revoked = follow.follower.poll_revoked(cx);
                    revoked.map(|()| Turn::Ended(follow.followed.clone(), End::Revoked))
                }
                Activity::Serve(serve) => {
                    serve.hold_back(cx).map(|()| Turn::Over(Some(Refused::NotTrusted)))
                }
                Activity::Commit(committing) => Poll::Ready(committed(committing, cx)),
                // Replies are not buffered for a client that accepts nothing, unless the server stops.
                Activity::Ask(ask) if self.client.worker.tasks.stop.is_draining() => {
                    Poll::Ready(answered(ask, cx, &self.client, outgoing))
                }
                Activity::Open(_) | Activity::Ask(_) => Poll::Pending,
            };
            match turn {
                Poll::Ready(turn) => self.settle(key, turn, outgoing),
                Poll::Pending => held_back.push(key),
            }
        }
        for key in held_back {
            if let Some(slot) = self.slots.get(key) {
                slot.signal.queue();
            }
        }
    }

    /// Ends all subscriptions and services, and polls what waits once more.
    pub(super) fn end_subscriptions(&mut self) {
        let ends = |slot: &Slot| !matches!(slot.activity, Activity::Ask(_) | Activity::Commit(_));
        let ended: Vec<usize> =
            self.slots.iter().filter(|(_, slot)| ends(slot)).map(|(key, _)| key).collect();
        for key in ended {
            self.remove(key);
        }
        for (_, slot) in &self.slots {
            slot.signal.queue();
        }
    }
}

/// Sends the reply to a request. A server that stops waits for none.
fn answered(ask: &mut Ask, cx: &mut Context<'_>, client: &Client, outgoing: &mut Outgoing) -> Turn {
    match Pin::new(&mut ask.asked).poll(cx) {
        Poll::Pending if client.worker.tasks.stop.is_draining() => {
            Turn::Over(Some(ServiceError::Publish(PublishError::Closed).into()))
        }
        Poll::Pending => Turn::Waits,
        Poll::Ready(Ok(reply)) => {
            push(outgoing, ask.reply(&reply), &client.worker.inflight);
            Turn::Over(None)
        }
        Poll::Ready(Err(error)) => Turn::Over(Some(error.into())),
    }
}

fn committed(committing: &mut Committing, cx: &mut Context<'_>) -> Turn {
    match committing.commit.as_mut().poll(cx) {
        Poll::Pending => Turn::Waits,
        Poll::Ready(Ok(_)) => Turn::Over(None),
        Poll::Ready(Err(error)) => Turn::Over(Some(error.into())),
    }
}

impl Activity {
    /// The command that has begun it, and its target.
    fn of(&self) -> (&'static str, String) {
        match self {
            Self::Open(opening) => ("SUB", opening.followed.target()),
            Self::Follow(follow) => ("SUB", follow.followed.target()),
            Self::Serve(serve) => ("EREQ", output::target(serve.service.as_str()).into_owned()),
            Self::Ask(ask) => ("REQ", ask.target.to_string()),
            Self::Commit(committing) => ("PUB", committing.target.to_string()),
        }
    }
}

impl shared::Activities for Conversation {
    fn run_follows(&mut self, outgoing: &mut Outgoing) -> Left {
        while outgoing.len() < ENOUGH {
            let Some(key) = self.queue.pop() else { return Left::Nothing };
            let activity = self.slots.get(key).map(|slot| &slot.activity);
            if activity.is_some_and(|activity| !matches!(activity, Activity::Follow(_))) {
                self.queue.put_back(key);
                return Left::Others;
            }
            self.run_one(key, outgoing);
        }
        Left::Follows
    }
}
