//! Responders: they poll for requests and reply, late, twice or never, decline, and are killed at any moment.

use std::{io, rc::Rc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fastrand::Rng;
use serde::Deserialize;
use tokio::time::sleep;

use super::{
    Soak,
    acl_model::Access,
    credentials,
    invariants::Invariant,
    keys::Principal,
    raw_client::{Head, RawClient, invalid},
    services,
    topics::Topic,
};

pub(super) struct Responder {
    soak: Rc<Soak>,
    rng: Rng,
    client: Option<RawClient>,
    service: Topic,
    principal: Principal,
}

/// A request that a responder has.
struct Taken {
    number: u64,
    token: String,
}

/// The fields of a request in a response with several of them.
#[derive(Deserialize)]
struct RequestFields {
    reply: String,
    payload: String,
}

impl Responder {
    pub(super) fn new(soak: &Rc<Soak>, mut rng: Rng) -> Self {
        let principal = soak.keys.borrow().random_principal(&mut rng);
        let service = services::any_served(&mut rng);
        Self { soak: Rc::clone(soak), rng, client: None, service, principal }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            self.service = services::any_served(&mut self.rng);
            self.principal = self.soak.keys.borrow().random_principal(&mut self.rng);
            for _ in 0..self.rng.u32(1..30) {
                if !self.soak.is_loading() {
                    return;
                }
                if self.serve().await.is_err() {
                    self.client = None;
                    self.soak.invariants.borrow_mut().count("responder connections broken", 1);
                    sleep(Duration::from_millis(self.rng.u64(5..50))).await;
                }
            }
        }
    }

    fn access(&mut self) -> (Access, String) {
        let keys = self.soak.keys.borrow();
        let header = credentials::header(&keys, self.principal, &mut self.rng);
        (keys.access(self.principal, &self.service), header)
    }

    /// Leaves its connection and its requests behind.
    fn be_killed(&mut self, client: RawClient) {
        client.cut(self.soak.random_cut(&mut self.rng));
        self.soak.invariants.borrow_mut().count("responders killed", 1);
    }

    /// Takes some requests, and answers them.
    async fn serve(&mut self) -> io::Result<()> {
        let (access, header) = self.access();
        let many = self.rng.bool();
        let max = if many { format!("&max={}", self.rng.u8(1..8)) } else { String::new() };
        let request = format!(
            "GET /-/serve/{}?wait={}ms{max} HTTP/1.1\r\nHost: soak.localhost\r\n{header}\r\n",
            self.service.name(),
            self.rng.u64(1..1500)
        );
        let mut client = self.take_client().await?;
        client.send(request.as_bytes()).await?;
        if self.rng.u8(..16) == 0 {
            sleep(Duration::from_millis(self.rng.u64(..30))).await;
            self.be_killed(client);
            return Ok(());
        }
        let response = client.read_response(true).await;
        let (head, body) =
            response.inspect_err(|error| self.soak.record_error(error, "serving"))?;
        self.keep(client, &head);
        for taken in self.record(&access, &head, &body)? {
            self.act(taken).await?;
        }
        Ok(())
    }

    fn keep(&mut self, client: RawClient, head: &Head) {
        if head.keeps_alive() {
            self.client = Some(client);
        }
    }

    /// Checks and records the response to a poll.
    fn record(&self, access: &Access, head: &Head, body: &[u8]) -> io::Result<Vec<Taken>> {
        let mut invariants = self.soak.invariants.borrow_mut();
        let what = format!("serving {}", self.service.name());
        let keys = self.soak.keys.borrow();
        // A poll that began before its key was revoked ends without requests.
        let is_refused =
            head.status != 204 && keys.check_response(&mut invariants, access, head.status, &what);
        if is_refused {
            return Ok(Vec::new());
        }
        let is_right = matches!(head.status, 200 | 204 | 503);
        invariants.check(Invariant::Responses, is_right, || format!("{what}: {}", head.status));
        let taken = if head.status == 200 { read(head, body)? } else { Vec::new() };
        for one in &taken {
            invariants.record_request(one.number);
        }
        Ok(taken)
    }

    async fn act(&mut self, taken: Taken) -> io::Result<()> {
        if self.rng.u8(..3) == 0 {
            sleep(Duration::from_millis(self.rng.u64(..30))).await;
        }
        match self.rng.u8(..20) {
            0 => {
                if let Some(client) = self.client.take() {
                    self.be_killed(client);
                }
                Ok(())
            }
            1 => self.answer(&taken, "?retry", "").await,
            2 => self.answer(&taken, "?error=no%20paper", "").await,
            3 => self.be_killed_while_replying(&taken).await,
            4 => {
                // Often too late.
                sleep(Duration::from_millis(self.rng.u64(..1500))).await;
                self.reply(&taken).await
            }
            5 => {
                self.reply(&taken).await?;
                self.reply(&taken).await
            }
            _ => self.reply(&taken).await,
        }
    }

    fn payload(&mut self, taken: &Taken) -> String {
        let size = if self.rng.u8(..20) == 0 { 20_000 } else { self.rng.usize(..400) };
        format!("{} {:.>size$}", taken.number, "")
    }

    async fn reply(&mut self, taken: &Taken) -> io::Result<()> {
        let payload = self.payload(taken);
        self.answer(taken, "", &payload).await
    }

    fn request(&mut self, taken: &Taken, query: &str, body: &str) -> (Access, Vec<u8>) {
        let (access, header) = self.access();
        let request = format!(
            "POST /-/reply/{}{query} HTTP/1.1\r\nHost: soak.localhost\r\n{header}\
             Content-Length: {}\r\n\r\n{body}",
            taken.token,
            body.len()
        );
        (access, request.into_bytes())
    }

    async fn answer(&mut self, taken: &Taken, query: &str, body: &str) -> io::Result<()> {
        let (access, request) = self.request(taken, query, body);
        let is_reply = query.is_empty();
        let mut client = self.take_client().await?;
        let _ = client.send(&request).await;
        let response = client.read_response(true).await.inspect_err(|error| {
            self.soak.record_error(error, "a reply");
            let services = &mut self.soak.invariants.borrow_mut().services;
            services.may_have_answered(&self.service, is_reply);
        });
        let (head, _) = response?;
        self.keep(client, &head);
        let mut invariants = self.soak.invariants.borrow_mut();
        let what = format!("a reply of {}", self.service.name());
        let keys = self.soak.keys.borrow();
        match head.status {
            // Whether a reply is wanted is said before the grants are looked at.
            410 => invariants.record_answer(&self.service, taken.number, is_reply, false),
            status if keys.check_response(&mut invariants, &access, status, &what) => {}
            204 => invariants.record_answer(&self.service, taken.number, is_reply, true),
            status => invariants
                .check(Invariant::Responses, status == 503, || format!("{what}: {status}")),
        }
        Ok(())
    }

    async fn be_killed_while_replying(&mut self, taken: &Taken) -> io::Result<()> {
        let payload = self.payload(taken);
        let (_, request) = self.request(taken, "", &payload);
        let mut client = self.take_client().await?;
        let length = self.rng.usize(1..=request.len());
        let services = |soak: &Soak| {
            soak.invariants.borrow_mut().services.may_have_answered(&self.service, true);
        };
        services(&self.soak);
        client.send(&request[..length]).await?;
        self.be_killed(client);
        Ok(())
    }

    async fn take_client(&mut self) -> io::Result<RawClient> {
        match self.client.take() {
            Some(client) => Ok(client),
            None => RawClient::open(&self.soak.endpoint).await,
        }
    }
}

/// The requests in the response to a poll.
fn read(head: &Head, body: &[u8]) -> io::Result<Vec<Taken>> {
    let taken = |token: String, payload: &[u8]| {
        let number = payload.split(|byte| *byte == b' ').next().unwrap_or_default();
        let number = str::from_utf8(number).map_err(invalid)?.parse().map_err(invalid)?;
        Ok(Taken { number, token })
    };
    if let Some(token) = head.text("msgbus-reply") {
        return Ok(vec![taken(token.to_owned(), body)?]);
    }
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let RequestFields { reply, payload } = serde_json::from_slice(line)?;
            taken(reply, &STANDARD.decode(payload).map_err(invalid)?)
        })
        .collect()
}
