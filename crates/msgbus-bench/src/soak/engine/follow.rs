//! Followers: on every transport, resuming at any msgbusd with the position that they have.

use std::{collections::HashMap, io, rc::Rc, time::Duration};

use fastrand::Rng;
use msgbus_core::Message;
use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};

use super::{
    super::{
        Phase,
        follow::pong,
        invariants::{Invariant, Invariants},
        payload::{self, Origin},
        raw_client::{Head, RawClient},
        transport::{Item, Transport},
    },
    EngineSoak,
    publish::is_in_batch,
    topics::Topic,
    trail::Trail,
};
use crate::engines::EngineKind;

/// A subscription that is active, for the comparison in the end.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) topic: Topic,
    /// How many messages of this round it has received, if it began with the first one and was told of no gap.
    pub(super) received: Option<u64>,
}

pub(super) struct Follower {
    soak: Rc<EngineSoak>,
    rng: Rng,
}

/// What a subscription should receive.
struct Model {
    number: u64,
    topic: Topic,
    transport: Transport,
    /// The epoch and the next id, once they are known.
    position: Option<(u64, u64)>,
    live: Live,
    /// How many gaps were announced.
    gaps: u64,
    /// The last message of each publisher, and how many gaps had been announced then.
    last: HashMap<u64, (u64, u64)>,
    trail: Trail,
}

/// Why a connection ended.
enum End {
    Left,
    Cut,
    Over,
}

impl Follower {
    pub(super) fn new(soak: &Rc<EngineSoak>, rng: Rng) -> Self {
        Self { soak: Rc::clone(soak), rng }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            let topic = Topic::any(&mut self.rng);
            let transport = Transport::ALL[self.rng.usize(..Transport::ALL.len())];
            self.soak.invariants.borrow_mut().count(transport.name(), 1);
            let mut model = Model::new(self.soak.new_number(), topic, transport);
            let is_from_start = self.rng.bool();
            // In the end only those that have begun are connected again.
            while self.soak.phase() != Phase::Over {
                let end = self.connect(&mut model, is_from_start).await;
                self.soak.live.borrow_mut().remove(&model.number);
                self.check_end(&model, &end);
                let stays = model.transport.has_ids() && self.rng.u8(..10) < 8;
                match end {
                    Ok(End::Over) => break,
                    Ok(End::Left) if !stays => break,
                    _ if !self.soak.is_loading() && model.position.is_none() => break,
                    Ok(End::Left) => {}
                    _ => sleep(Duration::from_millis(self.rng.u64(10..200))).await,
                }
                if !transport.has_ids() {
                    model = Model::new(self.soak.new_number(), topic, transport);
                }
                self.soak.invariants.borrow_mut().count("subscriptions resumed", 1);
            }
        }
    }

    /// Connections end at any moment, but what arrives can be understood.
    fn check_end(&self, model: &Model, end: &io::Result<End>) {
        let Err(error) = end else { return };
        let is_right = error.kind() != io::ErrorKind::InvalidData;
        self.soak.invariants.borrow_mut().check(Invariant::Responses, is_right, || {
            format!("following {:?} by {:?}: {error}", model.topic, model.transport)
        });
    }

    async fn connect(&mut self, model: &mut Model, is_from_start: bool) -> io::Result<End> {
        let query = match model.position {
            Some((epoch, 0)) => format!("since={epoch}-start&gaps"),
            Some((epoch, next)) => format!("since={epoch}-{}&gaps", next - 1),
            None if is_from_start => "since=all&gaps".to_owned(),
            None => "gaps".to_owned(),
        };
        let query = if model.transport == Transport::Websocket {
            query
        } else {
            query.trim_end_matches("gaps").trim_end_matches('&').to_owned()
        };
        let path = model.topic.path();
        let request = model.transport.request(&path, &query, "", self.rng.u8(..2));
        let endpoint = self.soak.any_endpoint(&mut self.rng);
        model.trail.connect(endpoint.address, &query);
        let mut client = RawClient::open(endpoint).await?;
        client.send(request.as_bytes()).await?;
        let head = client.read_head().await?;
        if !matches!(head.status, 101 | 200) {
            self.soak.invariants.borrow_mut().check(
                Invariant::Responses,
                matches!(head.status, 503 | 504),
                || format!("following {path}: {}", head.status),
            );
            return Ok(End::Cut);
        }
        if head.has("transfer-encoding") {
            client.expect_chunks()?;
        }
        model.begin(&self.soak, &head, is_from_start);
        self.follow(model, &mut client).await
    }

    async fn follow(&mut self, model: &mut Model, client: &mut RawClient) -> io::Result<End> {
        let mut phase = self.soak.phase.subscribe();
        let leave_at = Instant::now() + Duration::from_millis(self.rng.u64(50..8000));
        let is_slow = self.rng.u8(..4) == 0;
        loop {
            while let Some(item) = model.transport.next(&mut client.input)? {
                match item {
                    Item::Ping(text) => client.send(&pong(&text)).await?,
                    Item::End | Item::Revoked => return Ok(End::Cut),
                    item => model.take(&self.soak, item),
                }
            }
            let now = *phase.borrow_and_update();
            if now == Phase::Over {
                return Ok(End::Over);
            }
            let is_loading = now == Phase::Load;
            if is_loading && is_slow {
                sleep(Duration::from_millis(self.rng.u64(..100))).await;
            }
            select! {
                read = client.read_more() => if read? == 0 {
                    return Ok(End::Cut);
                },
                _ = phase.changed() => {}
                () = sleep_until(leave_at), if is_loading => return Ok(End::Left),
            }
        }
    }
}

impl Model {
    fn new(number: u64, topic: Topic, transport: Transport) -> Self {
        let live = Live { topic, received: None };
        let (last, trail) = (HashMap::new(), Trail::default());
        Self { number, topic, transport, position: None, live, gaps: 0, last, trail }
    }

    /// Checks the position at which a connection begins.
    fn begin(&mut self, soak: &EngineSoak, head: &Head, is_from_start: bool) {
        let mut invariants = soak.invariants.borrow_mut();
        let topic = self.topic;
        let (Some(epoch), Some(next)) =
            (head.number("msgbus-epoch"), head.number("msgbus-next-id"))
        else {
            return invariants.check(Invariant::Responses, false, || {
                format!("{topic:?}: no start position in the response")
            });
        };
        let missed = head.number("msgbus-missed");
        self.trail.begin(epoch, next, missed);
        if let Some((old, expected)) = self.position {
            let is_restarted = head.has("msgbus-restarted") || epoch != old;
            let is_right = !is_restarted || topic.is_deleted();
            invariants.check(Invariant::Told, is_right, || {
                format!("{topic:?}: resumed at {old}-{expected}, but it begins at {epoch}-{next}")
            });
            if is_restarted {
                self.last.clear();
                self.live.received = None;
            }
        } else {
            self.live.received = is_from_start.then_some(0);
        }
        if let Some(missed) = missed {
            self.take_gap(soak, &mut invariants, missed);
        }
        let expected = self.position.filter(|(old, _)| *old == epoch).map(|(_, next)| next);
        self.position = Some((epoch, expected.unwrap_or(next.saturating_sub(missed.unwrap_or(0)))));
        soak.live.borrow_mut().insert(self.number, self.live.clone());
    }

    fn take(&mut self, soak: &EngineSoak, item: Item) {
        let mut invariants = soak.invariants.borrow_mut();
        match item {
            Item::Message(message) => self.take_message(soak, &mut invariants, &message),
            Item::Payload(payload) => self.take_payload(soak, &mut invariants, &payload, None),
            Item::Gap(count) => self.take_gap(soak, &mut invariants, count),
            Item::Ping(_) | Item::End | Item::Revoked | Item::Other => return,
        }
        if let Some(live) = soak.live.borrow_mut().get_mut(&self.number) {
            live.received = self.live.received;
        }
    }

    fn take_gap(&mut self, soak: &EngineSoak, invariants: &mut Invariants, count: u64) {
        let topic = self.topic;
        self.gaps += 1;
        invariants.count("gaps announced", 1);
        invariants.count("messages reported as missed", count);
        if !topic.is_kept() {
            self.live.received = None;
        }
        // On NATS that is: some, or none. The stream has holes, because topics are deleted.
        let is_doubt = soak.cluster.kind == EngineKind::Nats && count == 0;
        invariants.check(Invariant::Told, !topic.is_kept() || is_doubt, || {
            let (how, position) = (self.transport, self.position);
            format!(
                "a gap of {count} in {topic:?}, which retains all messages: {how:?} at {position:?}"
            )
        });
    }

    fn take_message(&mut self, soak: &EngineSoak, invariants: &mut Invariants, message: &Message) {
        let (epoch, next) = self.position.unwrap_or_default();
        let (topic, id) = (self.topic, message.id());
        invariants.check(Invariant::Order, id >= next, || {
            format!("{topic:?}, epoch {epoch}: #{id} after #{}", next.saturating_sub(1))
        });
        let named = message.topic().name.as_str();
        invariants.check(Invariant::Payloads, named == topic.name(), || {
            format!("#{id} of {named} came in {topic:?}")
        });
        self.position = Some((epoch, id + 1));
        self.take_payload(soak, invariants, message.payload(), Some(message));
    }

    fn take_payload(
        &mut self,
        soak: &EngineSoak,
        invariants: &mut Invariants,
        payload: &[u8],
        message: Option<&Message>,
    ) {
        let topic = self.topic;
        invariants.received += 1;
        self.trail.take(message.map(Message::id));
        let origin = payload::read(payload, topic.name());
        let is_whole =
            origin.is_some_and(|origin| message.is_none_or(|message| origin.describes(message)));
        invariants.check(Invariant::Payloads, is_whole, || {
            format!("following {topic:?}: {}", String::from_utf8_lossy(payload))
        });
        let Some(origin) = origin else { return };
        if !soak.is_of_round(origin) {
            return self.take_revived(soak, invariants, origin);
        }
        if let Some(received) = &mut self.live.received {
            *received += 1;
        }
        let (sequence, publisher) = (origin.sequence, origin.publisher);
        let last = self.last.insert(publisher, (sequence, self.gaps));
        let what = || {
            let (id, how) = (message.map(Message::id), self.transport);
            format!(
                "{topic:?}: {sequence} of publisher {publisher}, after {last:?}, #{id:?}, {how:?}; {}{}",
                soak.cluster.since_restarts(),
                self.trail
            )
        };
        // Redis publishes a repeat anew if the message was deleted before it came.
        let may_repeat = topic.is_deleted() && soak.cluster.kind == EngineKind::Redis;
        let rises = |(last, _)| last < sequence || (may_repeat && last == sequence);
        invariants.check(Invariant::Order, last.is_none_or(rises), what);
        // A batch may be there in part. Raw transports cannot tell that messages are gone, nor can NATS if they are
        // deleted before it has delivered them.
        let can_tell =
            message.is_some() && (soak.cluster.kind == EngineKind::Redis || !topic.is_deleted());
        let tells = topic.is_kept() || can_tell;
        if let Some((last, gaps)) = last.filter(|_| !is_in_batch(origin) && tells) {
            let is_next = sequence <= last + 1 || self.gaps > gaps;
            invariants.check(Invariant::Told, is_next, what);
        }
    }

    /// A message that was deleted before this round is there again. Not all of its neighbours need be.
    fn take_revived(&self, soak: &EngineSoak, invariants: &mut Invariants, origin: Origin) {
        invariants.count("received messages that had been deleted", 1);
        invariants.check(Invariant::Engine, soak.may_have_revived(), || {
            format!("{:?}: {origin:?} was deleted and is there again", self.topic)
        });
    }
}
