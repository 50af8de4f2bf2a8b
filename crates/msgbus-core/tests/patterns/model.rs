//! Random schedules against a naive model, which keeps every message and finds every result by walking them.

use std::collections::{BTreeMap, HashSet, VecDeque};

use fastrand::Rng;
use msgbus_core::{Event, MessageBus, NewMessage, Position, Subscription};

use super::{Only, name, small_bus};

const TOPICS: [&str; 5] = ["t/a", "t/b", "t/a/x", "u", "t/c"];
const PATTERN: &str = "t/**";
/// The id of the first message that is published after somebody has followed the pattern.
const FIRST_ID: u64 = 1 << 40;

/// A message that was published: its topic and its number, from 0.
type Number = usize;

#[derive(Default)]
struct Model {
    retained: usize,
    capacity: usize,
    /// The topic of each message.
    all: Vec<&'static str>,
    topics: BTreeMap<&'static str, VecDeque<Number>>,
    /// The order of the pattern, once somebody has followed it.
    order: Option<Order>,
}

#[derive(Default)]
struct Order {
    /// From the id `origin` on.
    messages: Vec<Number>,
    /// How many of them are no longer referred to.
    dropped: usize,
    is_filled: bool,
    is_cut: bool,
    first_id: u64,
}

struct Follower {
    subscription: Subscription,
    /// The id of the next message.
    next: u64,
    pending_gap: u64,
    sees: HashSet<&'static str>,
}

impl Model {
    fn publish(&mut self, topic: &'static str) {
        let number = self.all.len();
        self.all.push(topic);
        let log = self.topics.entry(topic).or_default();
        log.push_back(number);
        while log.len() > self.retained {
            log.pop_front();
        }
        if let Some(order) = self.order.as_mut().filter(|_| topic.starts_with("t/")) {
            order.messages.push(number);
            if order.messages.len() - order.dropped > self.capacity {
                order.dropped += 1;
                order.is_cut = true;
            }
        }
    }

    fn is_kept(&self, number: Number) -> bool {
        self.topics.get(self.all[number]).is_some_and(|log| log.contains(&number))
    }

    /// What the matching topics retain, oldest first.
    fn matching(&self) -> Vec<Number> {
        let topics = self.topics.iter().filter(|(name, _)| name.starts_with("t/"));
        let mut retained: Vec<_> = topics.flat_map(|(_, log)| log.iter().copied()).collect();
        retained.sort_unstable();
        retained
    }

    fn fill(&mut self) {
        let retained = self.matching();
        let capacity = self.capacity;
        let order = self.order.as_mut().unwrap();
        if std::mem::replace(&mut order.is_filled, true) {
            return;
        }
        let known: HashSet<_> = order.messages.iter().copied().collect();
        let earlier: Vec<_> = retained.into_iter().filter(|n| !known.contains(n)).collect();
        let room = capacity - (order.messages.len() - order.dropped);
        let fits = &earlier[earlier.len() - room.min(earlier.len())..];
        order.is_cut |= fits.len() < earlier.len();
        // Whatever was dropped is before them now, and will not be asked for.
        order.messages.drain(..order.dropped);
        order.first_id += order.dropped as u64;
        order.dropped = 0;
        order.first_id -= fits.len() as u64;
        order.messages.splice(0..0, fits.iter().copied());
    }

    /// The first id that a subscription to all receives, and how many it has missed before.
    fn start_of_all(&mut self) -> (u64, u64) {
        self.fill();
        let order = self.order.as_ref().unwrap();
        let referred = &order.messages[order.dropped..];
        let skipped = referred.iter().take_while(|n| !self.is_kept(**n)).count();
        let kept = referred.iter().filter(|n| self.is_kept(**n)).count();
        let missed = if order.is_cut { self.matching().len() - kept } else { 0 };
        (order.first_id + (order.dropped + skipped) as u64, missed as u64)
    }

    fn message(&self, id: u64) -> Option<Number> {
        let order = self.order.as_ref().unwrap();
        order.messages.get(usize::try_from(id - order.first_id).unwrap()).copied()
    }

    /// What a follower receives next: an id with a message, or a count.
    fn receive(&self, follower: &mut Follower) -> Option<Result<(u64, Number), u64>> {
        if follower.pending_gap > 0 {
            return Some(Err(std::mem::take(&mut follower.pending_gap)));
        }
        let order = self.order.as_ref().unwrap();
        let first = order.first_id + order.dropped as u64;
        let mut missed = first.saturating_sub(follower.next);
        follower.next = follower.next.max(first);
        while let Some(number) = self.message(follower.next) {
            let is_seen = follower.sees.contains(self.all[number]);
            if is_seen && self.is_kept(number) {
                if missed > 0 {
                    break;
                }
                follower.next += 1;
                return Some(Ok((follower.next - 1, number)));
            }
            missed += u64::from(is_seen);
            follower.next += 1;
        }
        (missed > 0).then_some(Err(missed))
    }
}

struct World {
    bus: MessageBus,
    model: Model,
    followers: Vec<Follower>,
    rng: Rng,
}

impl World {
    fn step(&mut self) {
        match self.rng.u8(0..20) {
            0..=8 => {
                let topic = TOPICS[self.rng.usize(0..TOPICS.len())];
                let count = if self.rng.u8(0..4) == 0 { self.rng.usize(1..5) } else { 1 };
                let first = self.model.all.len();
                let new = |number: usize| NewMessage::new(number.to_string());
                let messages = (first..first + count.min(self.model.retained)).map(new).collect();
                let batch = self.bus.put_batch(&name(topic), messages).unwrap();
                for _ in batch.ids {
                    self.model.publish(topic);
                }
            }
            9 => {
                let topic = TOPICS[self.rng.usize(0..TOPICS.len())];
                let is_deleted = self.bus.delete(&name(topic)).wait().unwrap();
                assert_eq!(is_deleted, self.model.topics.remove(topic).is_some());
            }
            10..=11 if self.followers.len() < 6 => self.follow(),
            12 if !self.followers.is_empty() => {
                let index = self.rng.usize(0..self.followers.len());
                self.followers.swap_remove(index);
            }
            _ if !self.followers.is_empty() => {
                let index = self.rng.usize(0..self.followers.len());
                let follower = &mut self.followers[index];
                let expected = self.model.receive(follower);
                let received = follower.subscription.try_recv().unwrap();
                let received = received.map(|event| match event {
                    Event::Message { id, message } => {
                        let number = str::from_utf8(message.payload()).unwrap().parse().unwrap();
                        assert_eq!(message.topic().name.as_str(), self.model.all[number]);
                        Ok((id, number))
                    }
                    Event::Missed { count, next_id } => {
                        assert_eq!(next_id, follower.next);
                        Err(count)
                    }
                });
                assert_eq!(received, expected);
            }
            _ => {}
        }
    }

    fn follow(&mut self) {
        let position = self.position();
        let sees_all = self.rng.bool();
        let sees: HashSet<_> = TOPICS.into_iter().filter(|_| sees_all || self.rng.bool()).collect();
        let subscription = super::follow(&self.bus, PATTERN, position)
            .filtered(Only(sees.iter().map(|topic| name(topic)).collect()));
        let start = subscription.start();
        let first_order = || Order { first_id: FIRST_ID, ..Order::default() };
        let order = self.model.order.get_or_insert_with(first_order);
        let (next, missed) = match position {
            Position::New => (order.first_id + order.messages.len() as u64, 0),
            Position::After { id, .. } => {
                let first = order.first_id + order.dropped as u64;
                (first.max(id + 1), first.saturating_sub(id + 1))
            }
            _ => self.model.start_of_all(),
        };
        assert_eq!((start.next_id, start.missed), (next, missed), "{position}");
        self.followers.push(Follower { subscription, next, pending_gap: missed, sees });
    }

    /// A position, often one of a follower.
    fn position(&mut self) -> Position {
        let follower = self.followers.first().map(|follower| {
            let epoch = follower.subscription.epoch();
            let back = self.rng.u64(0..3);
            (epoch, follower.next.saturating_sub(1 + back))
        });
        let first = self.model.order.as_ref().map(|order| order.first_id);
        match (follower, first, self.rng.u8(0..4)) {
            (_, _, 0) => Position::New,
            (Some((epoch, id)), Some(first), 1..=2) if id + 1 >= first => {
                Position::After { epoch, id }
            }
            _ => Position::All,
        }
    }
}

#[test]
fn random_schedules_agree_with_a_naive_model() {
    for seed in 0..600 {
        let mut rng = Rng::with_seed(seed);
        let (retained, capacity) = (rng.usize(1..6), rng.usize(1..20));
        let model = Model { retained, capacity, ..Model::default() };
        let bus = small_bus(retained, capacity);
        let mut world = World { bus, model, followers: Vec::new(), rng };
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..150 {
                world.step();
            }
        }));
        assert!(run.is_ok(), "seed {seed}");
    }
}
