//! Requesters: they wait for replies, leave before, and allow that a request is served again.

use std::{io, rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep};

use super::{
    Soak,
    acl_model::Access,
    credentials,
    invariants::Invariant,
    raw_client::{Head, RawClient},
    services::{self, Ending},
    topics::Topic,
};

/// How much later than its timeout a request may end.
pub(super) const SLACK: Duration = Duration::from_secs(10);
/// What a requester is told if the server has no memory for the reply.
pub(super) const NO_MEMORY: &str = "the server has no memory for the reply";

pub(super) struct Requester {
    soak: Rc<Soak>,
    rng: Rng,
    client: Option<RawClient>,
}

struct Request {
    number: u64,
    service: Topic,
    access: Access,
    timeout: Duration,
    bytes: Vec<u8>,
}

impl Requester {
    pub(super) fn new(soak: &Rc<Soak>, rng: Rng) -> Self {
        Self { soak: Rc::clone(soak), rng, client: None }
    }

    pub(super) async fn run(mut self) {
        while self.soak.is_loading() {
            let request = self.request();
            let done = match self.rng.u8(..10) {
                0 => self.leave(&request).await,
                _ => self.ask(&request).await,
            };
            if done.is_err() {
                self.client = None;
                self.soak.invariants.borrow_mut().count("requester connections broken", 1);
            }
            sleep(Duration::from_millis(self.rng.u64(..20))).await;
        }
    }

    fn request(&mut self) -> Request {
        let service = services::any(&mut self.rng);
        let (access, principal) = {
            let keys = self.soak.keys.borrow();
            let principal = keys.random_principal(&mut self.rng);
            let header = credentials::header(&keys, principal, &mut self.rng);
            (keys.access(principal, &service), header)
        };
        let may_repeat = self.rng.u8(..3) == 0;
        let number = self.soak.invariants.borrow_mut().services.ask(may_repeat);
        let timeout = Duration::from_millis(self.rng.u64(20..1500));
        let size = if self.rng.u8(..20) == 0 { 20_000 } else { self.rng.usize(..400) };
        let payload = format!("{number} {:.>size$}", "");
        let retry = if may_repeat { "&retry" } else { "" };
        let head = format!(
            "POST /-/request/{}?timeout={}ms{retry} HTTP/1.1\r\nHost: soak.localhost\r\n\
             {principal}Content-Length: {}\r\n\r\n{payload}",
            service.name(),
            timeout.as_millis(),
            payload.len()
        );
        Request { number, service, access, timeout, bytes: head.into_bytes() }
    }

    fn end(&self, request: &Request, ending: Ending) {
        self.soak.invariants.borrow_mut().services.end(&request.service, ending);
    }

    /// Sends all or a part of a request, and leaves.
    async fn leave(&mut self, request: &Request) -> io::Result<()> {
        self.end(request, Ending::Unknown);
        let mut client = self.take_client().await?;
        let is_whole = self.rng.u8(..3) > 0;
        let length = request.bytes.len();
        let length = if is_whole { length } else { self.rng.usize(1..length) };
        client.send(&request.bytes[..length]).await?;
        sleep(Duration::from_millis(self.rng.u64(..50))).await;
        client.cut(self.soak.random_cut(&mut self.rng));
        self.soak.invariants.borrow_mut().count("requesters that left", 1);
        Ok(())
    }

    async fn ask(&mut self, request: &Request) -> io::Result<()> {
        let asked = Instant::now();
        let mut client = match self.take_client().await {
            Ok(client) => client,
            Err(error) => {
                self.end(request, Ending::Unknown);
                return Err(error);
            }
        };
        // A refusal arrives even if not all of the request could be sent.
        let _ = client.send(&request.bytes).await;
        match client.read_response(true).await {
            Ok((head, body)) => {
                self.record(request, &head, &body, asked.elapsed());
                if head.keeps_alive() {
                    self.client = Some(client);
                }
                Ok(())
            }
            Err(error) => {
                self.end(request, Ending::Unknown);
                self.soak.record_error(&error, "a request to a service");
                Err(error)
            }
        }
    }

    fn record(&self, request: &Request, head: &Head, body: &[u8], waited: Duration) {
        let mut invariants = self.soak.invariants.borrow_mut();
        let keys = self.soak.keys.borrow();
        let what = format!("request {} to {}", request.number, request.service.name());
        if keys.check_response(&mut invariants, &request.access, head.status, &what) {
            return;
        }
        let text = String::from_utf8_lossy(body);
        let ending = match head.status {
            200 => Ending::Replied,
            502 => Ending::Failed,
            504 => Ending::TimedOut,
            429 | 503 => Ending::Refused,
            status => {
                let fault = || format!("{what}: {status} {text}");
                return invariants.check(Invariant::Responses, false, fault);
            }
        };
        invariants.count(
            match ending {
                Ending::Replied => "requests replied",
                Ending::Failed => "requests failed",
                Ending::TimedOut => "requests timed out",
                Ending::Refused | Ending::Unknown => "requests refused",
            },
            1,
        );
        let is_in_time = waited <= request.timeout + SLACK;
        invariants.check(Invariant::Responses, is_in_time, || format!("{what}: {waited:?}"));
        if ending == Ending::Replied {
            let is_own = text.split(' ').next() == Some(&*request.number.to_string());
            invariants
                .check(Invariant::Replies, is_own, || format!("{what} has the reply {text:.60}"));
        }
        if ending == Ending::Failed && text.contains(NO_MEMORY) {
            invariants.count("replies for which there was no memory", 1);
            invariants.services.has_no_memory(&request.service);
        }
        invariants.services.end(&request.service, ending);
    }

    async fn take_client(&mut self) -> io::Result<RawClient> {
        match self.client.take() {
            Some(client) => Ok(client),
            None => RawClient::open(&self.soak.endpoint).await,
        }
    }
}
