//! A client that sends requests to any msgbusd.

use std::{io, rc::Rc};

use bytes::Bytes;
use fastrand::Rng;

use super::{
    super::{
        invariants::Invariant,
        raw_client::{Cut, Head, RawClient},
    },
    EngineSoak,
};

pub(super) struct Caller {
    soak: Rc<EngineSoak>,
    pub(super) rng: Rng,
    client: Option<RawClient>,
}

impl Caller {
    pub(super) fn new(soak: &Rc<EngineSoak>, rng: Rng) -> Self {
        Self { soak: Rc::clone(soak), rng, client: None }
    }

    /// Sends a request, to another msgbusd now and then. `headers` end with a line break each.
    pub(super) async fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        body: &[u8],
    ) -> io::Result<(Head, Bytes)> {
        if self.rng.u8(..20) == 0 {
            self.client = None;
        }
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        let answer = self.exchange(&[head.as_bytes(), body].concat(), method != "HEAD").await;
        if let Err(error) = &answer {
            let is_silence = error.kind() == io::ErrorKind::TimedOut;
            let mut invariants = self.soak.invariants.borrow_mut();
            invariants.check(Invariant::Responses, !is_silence, || {
                format!("{method} {target} timed out")
            });
            invariants.count("requests without a response", 1);
        }
        answer
    }

    async fn exchange(&mut self, request: &[u8], has_body: bool) -> io::Result<(Head, Bytes)> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => RawClient::open(self.soak.any_endpoint(&mut self.rng)).await?,
        };
        client.send(request).await?;
        let answer = client.read_response(has_body).await?;
        if answer.0.keeps_alive() {
            self.client = Some(client);
        }
        Ok(answer)
    }

    /// Sends a request and leaves.
    pub(super) async fn leave(&mut self, target: &str) -> io::Result<()> {
        let mut client = RawClient::open(self.soak.any_endpoint(&mut self.rng)).await?;
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.send(request.as_bytes()).await?;
        client.cut(if self.rng.bool() { Cut::Reset } else { Cut::Close });
        Ok(())
    }
}
