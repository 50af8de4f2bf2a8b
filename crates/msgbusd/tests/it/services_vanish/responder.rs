//! A responder, which may vanish at any moment, and replies too late, twice or by halves.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fastrand::Rng;
use serde_json::Value;
use tokio::time::sleep;

use super::{
    World,
    wire::{Answer, Wire},
};
use crate::support::until;

/// How long a poll waits.
const WAIT: Duration = Duration::from_millis(200);

pub(super) struct Responder {
    pub(super) world: Arc<World>,
    pub(super) rng: Rng,
    pub(super) wire: Option<Wire>,
}

/// A request that was handed out.
struct Taken {
    number: u64,
    hand: u64,
    token: String,
}

impl Responder {
    pub(super) async fn run(mut self) {
        while !self.world.is_over.load(SeqCst) {
            let mut wire = self.connect().await;
            let service = match self.rng.u8(0..20) {
                0 => "rare",
                n if n % 2 == 0 => "a",
                _ => "b/c",
            };
            let many = self.rng.u8(0..3) == 0;
            let max = if many { format!("&max={}", self.rng.u8(1..6)) } else { String::new() };
            let wait = WAIT.as_millis();
            let poll =
                format!("GET /-/serve/{service}?wait={wait}ms{max} HTTP/1.1\r\nHost: a\r\n\r\n");
            if self.rng.u8(0..3) == 0 {
                let length = self.rng.usize(1..=poll.len());
                wire.send(&poll.as_bytes()[..length], &mut self.rng).await;
                self.vanish(wire).await;
                continue;
            }
            wire.send(poll.as_bytes(), &mut self.rng).await;
            let is_last = self.rng.u8(0..10) == 0;
            if is_last {
                sleep(Duration::from_micros(self.rng.u64(0..5_000))).await;
                wire.end_sending().await;
            }
            let answer = wire.answer(WAIT).await;
            if is_last {
                wire.ends().await;
            } else {
                self.wire = Some(wire);
            }
            let mut taken = self.taken(&answer, many);
            self.rng.shuffle(&mut taken);
            for one in taken {
                self.act(one).await;
            }
        }
    }

    async fn connect(&mut self) -> Wire {
        match self.wire.take() {
            Some(wire) if self.rng.u8(0..8) > 0 => wire,
            _ => Wire::connect(self.world.server).await,
        }
    }

    async fn vanish(&mut self, wire: Wire) {
        wire.vanish(&mut self.rng).await;
        self.world.ledger.vanished_responders.fetch_add(1, SeqCst);
    }

    fn taken(&self, answer: &Answer, many: bool) -> Vec<Taken> {
        let take = |payload: &str, token: &str| {
            let number = payload.split(' ').next().unwrap().parse().unwrap();
            Taken { number, hand: self.world.ledger.take(number), token: token.to_owned() }
        };
        match answer.status {
            204 => Vec::new(),
            200 if many => {
                let line = |line| {
                    let request: Value = serde_json::from_str(line).unwrap();
                    let payload = STANDARD.decode(request["payload"].as_str().unwrap()).unwrap();
                    take(std::str::from_utf8(&payload).unwrap(), request["reply"].as_str().unwrap())
                };
                answer.text().lines().map(line).collect()
            }
            200 => vec![take(answer.text(), answer.header("Msgbus-Reply").unwrap())],
            other => panic!("{other} {}", answer.text()),
        }
    }

    async fn act(&mut self, taken: Taken) {
        match self.rng.u8(0..16) {
            0 | 8 => {
                if let Some(wire) = self.wire.take() {
                    self.vanish(wire).await;
                }
            }
            1 => self.decline(&taken).await,
            2 => {
                let error = format!("?error={}%20{}", taken.number, taken.hand);
                self.answer(&taken, &error).await;
            }
            3 | 9 => self.vanish_while_replying(&taken).await,
            4 => {
                // Its requester has the outcome by then, or does not wait.
                let ledger = &self.world.ledger;
                until(|| ledger.has_ended(taken.number)).await;
                self.answer(&taken, "").await;
            }
            5 => {
                self.answer(&taken, "").await;
                self.is_not_wanted(&taken.token).await;
            }
            6 => {
                // The token of another service, or one that was never given out.
                let at = self.rng.usize(0..32);
                let digit = if taken.token.as_bytes()[at] == b'0' { "1" } else { "0" };
                let mut wrong = taken.token.clone();
                wrong.replace_range(at..=at, digit);
                let wire = self.request(&wrong, "", "of nobody").await;
                assert_eq!(wire.status, 410);
                // A token of no service is counted nowhere.
                self.world.ledger.maybe_not_wanted.fetch_add(1, SeqCst);
                self.answer(&taken, "").await;
            }
            _ => self.answer(&taken, "").await,
        }
    }

    fn reply(&mut self, taken: &Taken) -> String {
        let width = if self.rng.u8(0..10) == 0 { 40_000 } else { self.rng.usize(0..400) };
        format!("{} {} {:.>width$}", taken.number, taken.hand, "")
    }

    async fn answer(&mut self, taken: &Taken, query: &str) {
        let reply = if query.is_empty() { self.reply(taken) } else { String::new() };
        let answer = self.request(&taken.token, query, &reply).await;
        assert!(matches!(answer.status, 204 | 410), "{} {}", answer.status, answer.text());
        self.world.ledger.answered(taken.number, taken.hand, answer.status == 204);
    }

    async fn decline(&mut self, taken: &Taken) {
        // Before it: the requester may know at once.
        self.world.ledger.declined(taken.number);
        let answer = self.request(&taken.token, "?retry", "").await;
        match answer.status {
            204 => self.is_not_wanted(&taken.token).await,
            410 => {
                self.world.ledger.not_wanted.fetch_add(1, SeqCst);
            }
            other => panic!("{other} {}", answer.text()),
        }
    }

    async fn is_not_wanted(&mut self, token: &str) {
        let answer = self.request(token, "", "again").await;
        assert_eq!(answer.status, 410, "{}", answer.text());
        assert!(answer.text().contains("nobody waits for this reply"), "{}", answer.text());
        self.world.ledger.not_wanted.fetch_add(1, SeqCst);
    }

    async fn vanish_while_replying(&mut self, taken: &Taken) {
        let reply = self.reply(taken);
        let request = request(&taken.token, "", &reply);
        let mut wire = self.connect().await;
        let length = self.rng.usize(1..=request.len());
        if length == request.len() || self.rng.bool() {
            self.world.ledger.may_have_answered(taken.number, taken.hand);
            wire.send(request.as_bytes(), &mut self.rng).await;
            return self.vanish(wire).await;
        }
        wire.send(&request.as_bytes()[..length], &mut self.rng).await;
        self.vanish(wire).await;
        // What was not sent completely is no reply: the next one counts.
        self.world.ledger.maybe_not_wanted.fetch_add(1, SeqCst);
        self.answer(taken, "").await;
    }

    async fn request(&mut self, token: &str, query: &str, body: &str) -> Answer {
        let mut wire = self.connect().await;
        wire.send(request(token, query, body).as_bytes(), &mut self.rng).await;
        let answer = wire.answer(Duration::ZERO).await;
        if answer.header("Connection") != Some("close") {
            self.wire = Some(wire);
        }
        answer
    }
}

fn request(token: &str, query: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /-/reply/{token}{query} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}
