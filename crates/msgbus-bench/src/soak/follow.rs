//! Those who follow: by every transport, in time, slowly, not at all, and again from where they were.

use std::{io, rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Phase, Soak,
    books::Book,
    show,
    topics::Topic,
    track::Track,
    transport::{Item, Transport},
    wire::Wire,
};

/// How well somebody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    InTime,
    Slowly,
    /// After a while not at all.
    Stops,
}

pub(super) struct Follower {
    soak: Rc<Soak>,
    rng: Rng,
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The follower has had enough.
    Left,
    /// The server has ended it, and said so.
    Told,
    /// The server has ended it because of the keys, and said so.
    Revoked,
    /// The server has ended it without a word, as it does with those who take no bytes.
    Ended,
    /// The soak is over.
    Over,
}

/// Somebody whom the server may know already, and the books not yet.
struct Connecting(Rc<Soak>);

impl Connecting {
    fn new(soak: &Rc<Soak>) -> Self {
        soak.connecting.update(|count| count + 1);
        Self(Rc::clone(soak))
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.update(|count| count - 1);
    }
}

impl Follower {
    pub(super) fn new(soak: &Rc<Soak>, rng: Rng) -> Self {
        Self { soak: Rc::clone(soak), rng }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            let topic = Topic::any(&mut self.rng);
            let transport = Transport::ALL[self.rng.usize(..Transport::ALL.len())];
            let claim = {
                let keys = self.soak.keys.borrow();
                keys.claim(keys.some(&mut self.rng), &topic)
            };
            let mut track = Track::new(topic, transport, claim);
            let reading = self.some_reading();
            self.soak.books.borrow_mut().count(track.transport.name(), 1);
            loop {
                let end = self.connect(&mut track, reading).await;
                let goes_on = track.transport.has_ids() && self.rng.u8(..10) < 7;
                if !matches!(end, Ok(End::Left)) {
                    sleep(Duration::from_millis(self.rng.u64(5..100))).await;
                }
                if !self.soak.is_loading() || !goes_on || track.place.is_none() {
                    break;
                }
                self.soak.books.borrow_mut().count("subscriptions resumed", 1);
            }
        }
    }

    fn some_reading(&mut self) -> Reading {
        match self.rng.u8(..10) {
            0..6 => Reading::InTime,
            6..9 => Reading::Slowly,
            _ => Reading::Stops,
        }
    }

    /// One connection, from the request to its end.
    async fn connect(&mut self, track: &mut Track, reading: Reading) -> io::Result<End> {
        let connecting = Connecting::new(&self.soak);
        let shown =
            show::to_follow(&self.soak, track.claim.who, track.transport, &mut self.rng).await?;
        let Some(shown) = shown else { return Ok(End::Ended) };
        let mut wire = match reading {
            Reading::InTime => Wire::open(&self.soak.place).await?,
            Reading::Slowly | Reading::Stops => Wire::open_narrow(&self.soak.place).await?,
        };
        let (query, version) = (self.query(track, shown.query), self.rng.u8(..2));
        let name = track.topic.name();
        let request = track.transport.request(name, &query, &shown.headers, version);
        track.claim = self.soak.keys.borrow().again(&track.claim);
        wire.send(request.as_bytes()).await?;
        if self.rng.u8(..40) == 0 {
            self.soak.books.borrow_mut().count("subscriptions left in the handshake", 1);
            wire.cut(self.soak.some_cut(&mut self.rng));
            return Ok(End::Left);
        }
        let head = match wire.head().await {
            Ok(head) => head,
            Err(error) => {
                self.soak.note_silence(&error, "a subscription");
                return Err(error);
            }
        };
        let is_refused = {
            let mut books = self.soak.books.borrow_mut();
            let what = format!("following {name}");
            let keys = self.soak.keys.borrow();
            keys.check_answer(&mut books, &track.claim, head.status, &what)
        };
        if is_refused {
            return Ok(End::Ended);
        }
        if !matches!(head.status, 101 | 200) {
            let mut books = self.soak.books.borrow_mut();
            books.count("subscriptions refused at a bound", 1);
            books.check(Book::Answers, head.status == 503, || {
                format!("subscribing to {name}: {}", head.status)
            });
            return Ok(End::Ended);
        }
        if head.has("transfer-encoding") {
            wire.expect_chunks()?;
        }
        let name = wire.name()?;
        track.begin(&self.soak, &head, &name);
        drop(connecting);
        let end = self.follow(track, reading, &mut wire, &name).await;
        self.soak.live.borrow_mut().remove(&name);
        let by_server = match end {
            Ok(End::Left) => {
                self.part(track.transport, reading, wire).await;
                None
            }
            Ok(End::Over | End::Revoked) => None,
            Ok(End::Told) => Some("subscriptions ended by the server, and told so"),
            Ok(End::Ended) | Err(_) => Some("subscriptions cut by the server"),
        };
        if let Some(what) = by_server {
            self.soak.books.borrow_mut().count(what, 1);
        }
        // Without a word only those are cut who take no bytes; the end of raw lines is told to nobody.
        if reading == Reading::InTime && track.transport != Transport::RawStream {
            let is_cut = matches!(end, Ok(End::Ended) | Err(_));
            self.soak.books.borrow_mut().check(Book::StillAllowed, !is_cut, || {
                format!("following {} by {:?}: {end:?}", track.topic.name(), track.transport)
            });
        }
        if let Err(error) = &end {
            // What is not understood is the server's fault; that it may cut is in the contract.
            let is_fault = error.kind() == io::ErrorKind::InvalidData;
            let what =
                || format!("following {} by {:?}: {error}", track.topic.name(), track.transport);
            self.soak.books.borrow_mut().check(Book::Answers, !is_fault, what);
        }
        end
    }

    /// Writes a lot before it reads anything, and the server goes on reading: pings, and text that it
    /// ignores.
    async fn chatter(&mut self, wire: &mut Wire) -> io::Result<()> {
        const FRAMES: usize = 200;
        const LENGTH: u8 = 100;
        let mut frames = Vec::new();
        for _ in 0..FRAMES {
            let opcode = if self.rng.bool() { 0x89 } else { 0x81 };
            frames.extend_from_slice(&[opcode, 0x80 | LENGTH, 0, 0, 0, 0]);
            frames.resize(frames.len() + usize::from(LENGTH), b'x');
        }
        self.soak.books.borrow_mut().count("subscribers that write a lot before they read", 1);
        wire.send(&frames).await
    }

    fn query(&mut self, track: &Track, ticket: String) -> String {
        let since = match track.place {
            Some((epoch, 0)) => format!("since={epoch}-start"),
            Some((epoch, next)) => format!("since={epoch}-{}", next - 1),
            None => match self.rng.u8(..4) {
                0 => "since=all".to_owned(),
                1 => "since=1s".to_owned(),
                2 => "since=0".to_owned(),
                _ => String::new(),
            },
        };
        let lag = if self.rng.u8(..8) == 0 { "lag=disconnect" } else { "" };
        let mut parts = vec![since, lag.to_owned(), ticket];
        parts.retain(|part| !part.is_empty());
        parts.join("&")
    }

    /// Reads until one of the two has had enough.
    async fn follow(
        &mut self,
        track: &mut Track,
        reading: Reading,
        wire: &mut Wire,
        name: &str,
    ) -> io::Result<End> {
        if track.transport.is_websocket() && self.rng.u8(..8) == 0 {
            self.chatter(wire).await?;
        }
        let mut phase = self.soak.phase.subscribe();
        let leave_at = Instant::now() + Duration::from_millis(self.rng.u64(50..8000));
        loop {
            while let Some(item) = track.transport.next(&mut wire.input)? {
                match item {
                    Item::Ping(text) => wire.send(&pong(&text)).await?,
                    Item::End => return Ok(End::Told),
                    Item::Revoked => {
                        let mut books = self.soak.books.borrow_mut();
                        let keys = self.soak.keys.borrow();
                        keys.check_revoked(&mut books, &track.claim, track.topic.name());
                        return Ok(End::Revoked);
                    }
                    item => track.take(&self.soak, name, item),
                }
            }
            let now = *phase.borrow_and_update();
            if now == Phase::Over {
                return Ok(End::Over);
            }
            let is_loading = now == Phase::Load;
            if is_loading && reading == Reading::Slowly {
                sleep(Duration::from_millis(self.rng.u64(..100))).await;
            }
            select! {
                read = wire.more() => if read? == 0 {
                    return Ok(End::Ended);
                },
                _ = phase.changed() => {}
                () = sleep_until(leave_at), if is_loading => return Ok(End::Left),
            }
        }
    }

    /// Leaves, in one of many ways.
    async fn part(&mut self, transport: Transport, reading: Reading, mut wire: Wire) {
        if reading == Reading::Stops {
            self.soak.books.borrow_mut().count("subscribers that stopped reading", 1);
            // Beyond the server's patience.
            let mut phase = self.soak.phase.subscribe();
            select! {
                () = sleep(Duration::from_millis(2500)) => {}
                _ = phase.wait_for(|phase| *phase != Phase::Load) => {}
            }
            return wire.cut(self.soak.some_cut(&mut self.rng));
        }
        if transport.is_websocket() {
            let words: &[u8] = match self.rng.u8(..6) {
                // A close, half a frame, text that is ignored, and what breaks the protocol.
                0 => &[0x88, 0x82, 0, 0, 0, 0, 3, 0xe8],
                1 => &[0x81, 0xfe, 1],
                2 => &[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'],
                3 => &[0x8f, 0x80],
                _ => &[],
            };
            // It may be faster.
            let _ = wire.send(words).await;
        }
        wire.cut(self.soak.some_cut(&mut self.rng));
    }
}

/// The answer to a ping, masked with zeros.
fn pong(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x8a, 0x80 | u8::try_from(text.len()).unwrap_or(0), 0, 0, 0, 0];
    frame.extend_from_slice(text);
    frame
}
