//! A requester, which may vanish at any moment.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::time::sleep;

use super::{
    World,
    ledger::Outcome,
    wire::{Answer, MARGIN, Wire},
};

/// How much earlier than at the end of the timeout the server may give up: it counts in whole milliseconds.
const EARLY: Duration = Duration::from_millis(5);

pub(super) struct Requester {
    pub(super) world: Arc<World>,
    pub(super) rng: Rng,
    pub(super) wire: Option<Wire>,
}

/// A request that was sent, or begun.
struct Asked {
    number: u64,
    timeout: Duration,
    since: Instant,
}

impl Requester {
    pub(super) async fn run(mut self) {
        while self.world.needs_more() {
            let wire = match self.wire.take() {
                Some(wire) => wire,
                None => Wire::connect(self.world.server).await,
            };
            // Several at once are pipelined: the server answers them one after the other.
            let count = if self.rng.u8(0..4) == 0 { self.rng.usize(2..4) } else { 1 };
            match self.rng.u8(0..10) {
                0 => self.ask_and_vanish(wire, count, true).await,
                1..4 => self.ask_and_vanish(wire, count, false).await,
                4 | 5 => self.ask_and_end_sending(wire, count).await,
                _ => self.ask_and_wait(wire, count).await,
            }
        }
    }

    /// A request, and its bytes.
    fn ask(&mut self, out: &mut Vec<u8>) -> Asked {
        let may_repeat = self.rng.u8(0..3) == 0;
        let number = self.world.ledger.ask(may_repeat);
        let service = match self.rng.u8(0..40) {
            0 => "nobody",
            n if n % 3 == 0 => "a",
            n if n % 3 == 1 => "b/c",
            _ => "rare",
        };
        let timeout = if self.rng.bool() { self.rng.u64(20..200) } else { 1_000 };
        let width = if self.rng.u8(0..10) == 0 { 40_000 } else { self.rng.usize(0..400) };
        let payload = format!("{number} {:.>width$}", "");
        let retry = if may_repeat { "&retry" } else { "" };
        let mut head = format!("POST /-/request/{service}?timeout={timeout}ms{retry} HTTP/1.1\r\n");
        write!(head, "Host: a\r\nContent-Length: {}\r\n\r\n{payload}", payload.len()).unwrap();
        out.extend_from_slice(head.as_bytes());
        Asked { number, timeout: Duration::from_millis(timeout), since: Instant::now() }
    }

    fn ask_many(&mut self, count: usize) -> (Vec<Asked>, Vec<u8>) {
        let mut out = Vec::new();
        let asked = (0..count).map(|_| self.ask(&mut out)).collect();
        (asked, out)
    }

    async fn ask_and_wait(&mut self, mut wire: Wire, count: usize) {
        let (asked, bytes) = self.ask_many(count);
        wire.send(&bytes, &mut self.rng).await;
        let is_open = self.record_answers(&mut wire, asked, false).await;
        if is_open && self.rng.u8(0..4) > 0 {
            self.wire = Some(wire);
        }
    }

    async fn ask_and_end_sending(&mut self, mut wire: Wire, count: usize) {
        let (asked, bytes) = self.ask_many(count);
        wire.send(&bytes, &mut self.rng).await;
        sleep(Duration::from_micros(self.rng.u64(0..20_000))).await;
        wire.end_sending().await;
        self.world.ledger.vanished_requesters.fetch_add(1, SeqCst);
        self.record_answers(&mut wire, asked, true).await;
        wire.ends().await;
    }

    /// Returns whether the server keeps the connection open. If not, it answers no further requests.
    async fn record_answers(&self, wire: &mut Wire, asked: Vec<Asked>, has_ended: bool) -> bool {
        let mut is_open = true;
        for asked in asked {
            if !is_open {
                self.world.ledger.end(asked.number, Outcome::Vanished);
                continue;
            }
            let answer = wire.answer(if has_ended { Duration::ZERO } else { asked.timeout }).await;
            self.record(&asked, &answer, has_ended);
            is_open = answer.header("Connection") != Some("close");
        }
        is_open
    }

    /// Vanishes before the last request is sent, or at any time after it.
    async fn ask_and_vanish(&mut self, mut wire: Wire, count: usize, is_cut: bool) {
        let (mut asked, mut bytes) = self.ask_many(count - 1);
        let sent = bytes.len();
        asked.push(self.ask(&mut bytes));
        if is_cut {
            let last = asked.last().unwrap().number;
            self.world.ledger.with(last, |entry| entry.is_whole = false);
            bytes.truncate(self.rng.usize(sent..bytes.len()));
        }
        wire.send(&bytes, &mut self.rng).await;
        wire.vanish(&mut self.rng).await;
        self.world.ledger.vanished_requesters.fetch_add(1, SeqCst);
        for Asked { number, .. } in asked {
            self.world.ledger.end(number, Outcome::Vanished);
        }
    }

    fn record(&self, asked: &Asked, answer: &Answer, has_ended: bool) {
        let Asked { number, timeout, since } = *asked;
        let (waited, text) = (since.elapsed(), answer.text());
        assert!(waited < timeout * 3 + MARGIN, "{waited:?} instead of {timeout:?}");
        let outcome = match answer.status {
            200 => {
                let mut words = text.split(' ').map(str::parse::<u64>);
                assert_eq!(words.next(), Some(Ok(number)), "a reply to another requester");
                Outcome::Replied(words.next().unwrap().unwrap())
            }
            502 if text.contains("left without a reply") => Outcome::Left,
            502 => {
                let reason = text.trim_end().rsplit_once(": ").unwrap().1;
                let (of, hand) = reason.split_once(' ').unwrap();
                assert_eq!(of.parse(), Ok(number), "a failure of another request: {text}");
                Outcome::Failed(hand.parse().unwrap())
            }
            504 if text.contains("was taken back") => {
                assert!(has_ended, "{text}");
                Outcome::Vanished
            }
            504 => {
                assert!(waited + EARLY >= timeout, "{waited:?} instead of {timeout:?}");
                Outcome::TimedOut
            }
            503 => Outcome::NoResponder,
            other => panic!("request {number}: {other} {text}"),
        };
        self.world.ledger.end(number, outcome);
    }
}
