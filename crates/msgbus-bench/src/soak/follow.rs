//! Subscribers: on every transport, reading at once, slowly or not at all, and resuming.

use std::{io, rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Phase, Soak, credentials,
    invariants::Invariant,
    raw_client::{Head, RawClient},
    subscription_model::{ReadPace, SubscriptionModel},
    topics::Topic,
    transport::{Item, Transport},
};

pub(super) struct Follower {
    soak: Rc<Soak>,
    rng: Rng,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client disconnected.
    Left,
    /// The server ended it, with a reason.
    Announced,
    /// The server ended it because of the keys, and reported that.
    Revoked,
    /// The server ended it without a reason, as it does if a client reads nothing.
    Ended,
    /// The soak is over.
    Over,
}

/// Counts a subscription that the server may already list but that is not in `live` yet.
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
            let access = {
                let keys = self.soak.keys.borrow();
                keys.access(keys.random_principal(&mut self.rng), &topic)
            };
            let mut model = SubscriptionModel::new(topic, transport, access, self.random_pace());
            self.soak.invariants.borrow_mut().count(model.transport.name(), 1);
            loop {
                let end = self.connect(&mut model).await;
                let goes_on = model.transport.has_ids() && self.rng.u8(..10) < 7;
                if !matches!(end, Ok(End::Left)) {
                    sleep(Duration::from_millis(self.rng.u64(5..100))).await;
                }
                if !self.soak.is_loading() || !goes_on || model.position.is_none() {
                    break;
                }
                self.soak.invariants.borrow_mut().count("subscriptions resumed", 1);
            }
        }
    }

    fn random_pace(&mut self) -> ReadPace {
        match self.rng.u8(..10) {
            0..6 => ReadPace::InTime,
            6..9 => ReadPace::Slowly,
            _ => ReadPace::Stops,
        }
    }

    /// One connection, from the request to its end.
    async fn connect(&mut self, model: &mut SubscriptionModel) -> io::Result<End> {
        let connecting = Connecting::new(&self.soak);
        let Some(mut client) = self.send_request(model).await? else { return Ok(End::Ended) };
        if self.rng.u8(..40) == 0 {
            self.soak.invariants.borrow_mut().count("subscriptions cut during the handshake", 1);
            client.cut(self.soak.random_cut(&mut self.rng));
            return Ok(End::Left);
        }
        let head = client.read_head().await;
        let head = head.inspect_err(|error| self.soak.record_error(error, "a subscription"))?;
        if !self.is_accepted(model, &head) {
            return Ok(End::Ended);
        }
        if head.has("transfer-encoding") {
            client.expect_chunks()?;
        }
        let name = client.local_address()?;
        model.begin(&self.soak, &head, &name);
        drop(connecting);
        let end = self.follow(model, &mut client, &name).await;
        self.soak.live.borrow_mut().remove(&name);
        self.check_end(model, &end);
        if let Ok(End::Left) = end {
            self.leave(model, client).await;
        }
        end
    }

    /// Connects and requests the subscription. `None` if there is no ticket for it.
    async fn send_request(
        &mut self,
        model: &mut SubscriptionModel,
    ) -> io::Result<Option<RawClient>> {
        let credentials = credentials::for_subscription(
            &self.soak,
            model.access.principal,
            model.transport,
            &mut self.rng,
        )
        .await?;
        let Some(credentials) = credentials else { return Ok(None) };
        let mut client = RawClient::open(&self.soak.endpoint).await?;
        let (query, version) = (self.query(model, credentials.query), self.rng.u8(..2));
        let name = model.topic.name();
        let request = model.transport.request(name, &query, &credentials.headers, version);
        request.lines().next().unwrap_or_default().clone_into(&mut model.request);
        model.access = self.soak.keys.borrow().renew(&model.access);
        client.send(request.as_bytes()).await?;
        Ok(Some(client))
    }

    /// Checks the response, and returns whether the server accepted the subscription.
    fn is_accepted(&self, model: &SubscriptionModel, head: &Head) -> bool {
        let mut invariants = self.soak.invariants.borrow_mut();
        let name = model.topic.name();
        let keys = self.soak.keys.borrow();
        let what = format!("following {name}");
        if keys.check_response(&mut invariants, &model.access, head.status, &what) {
            return false;
        }
        let is_accepted = matches!(head.status, 101 | 200);
        if !is_accepted {
            invariants.count("subscriptions refused at a limit", 1);
            invariants.check(Invariant::Responses, head.status == 503, || {
                format!("subscribing to {name}: {}", head.status)
            });
        }
        is_accepted
    }

    /// Counts an end that the server caused, and checks that it had a reason.
    fn check_end(&self, model: &SubscriptionModel, end: &io::Result<End>) {
        let mut invariants = self.soak.invariants.borrow_mut();
        match end {
            Ok(End::Left | End::Over | End::Revoked) => {}
            Ok(End::Announced) => {
                invariants.count("subscriptions ended by the server with a reason", 1);
            }
            Ok(End::Ended) | Err(_) => invariants.count("subscriptions cut by the server", 1),
        }
        let following = || format!("following {} by {:?}", model.topic.name(), model.transport);
        // The server cuts a connection without a reason only if it reads nothing. Raw lines have no way
        // to carry a reason.
        if model.pace == ReadPace::InTime && model.transport != Transport::RawStream {
            let is_cut = matches!(end, Ok(End::Ended) | Err(_));
            invariants
                .check(Invariant::StillAllowed, !is_cut, || format!("{}: {end:?}", following()));
        }
        if let Err(error) = end {
            // What is not understood is the server's fault; that it may cut is in the contract.
            let is_fault = error.kind() == io::ErrorKind::InvalidData;
            invariants
                .check(Invariant::Responses, !is_fault, || format!("{}: {error}", following()));
        }
    }

    /// Writes a lot before it reads anything. The server must keep reading: pings, and text that it
    /// ignores.
    async fn chatter(&mut self, client: &mut RawClient) -> io::Result<()> {
        const FRAMES: usize = 200;
        const LENGTH: u8 = 100;
        let mut frames = Vec::new();
        for _ in 0..FRAMES {
            let opcode = if self.rng.bool() { 0x89 } else { 0x81 };
            frames.extend_from_slice(&[opcode, 0x80 | LENGTH, 0, 0, 0, 0]);
            frames.resize(frames.len() + usize::from(LENGTH), b'x');
        }
        self.soak.invariants.borrow_mut().count("subscribers that write a lot before they read", 1);
        client.send(&frames).await
    }

    fn query(&mut self, model: &SubscriptionModel, ticket: String) -> String {
        let since = match model.position {
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

    /// Reads until the client or the server ends the connection.
    async fn follow(
        &mut self,
        model: &mut SubscriptionModel,
        client: &mut RawClient,
        name: &str,
    ) -> io::Result<End> {
        if model.transport.is_websocket() && self.rng.u8(..8) == 0 {
            self.chatter(client).await?;
        }
        let mut phase = self.soak.phase.subscribe();
        let leave_at = Instant::now() + Duration::from_millis(self.rng.u64(50..8000));
        loop {
            while let Some(item) = model.transport.next(&mut client.input)? {
                match item {
                    Item::Ping(text) => client.send(&pong(&text)).await?,
                    Item::End => return Ok(End::Announced),
                    Item::Revoked => {
                        let mut invariants = self.soak.invariants.borrow_mut();
                        let keys = self.soak.keys.borrow();
                        keys.check_revoked(&mut invariants, &model.access, model.topic.name());
                        return Ok(End::Revoked);
                    }
                    item => model.take(&self.soak, name, item),
                }
            }
            self.note_read(name, client.undecoded());
            let now = *phase.borrow_and_update();
            if now == Phase::Over {
                return Ok(End::Over);
            }
            let is_loading = now == Phase::Load;
            if is_loading && model.pace == ReadPace::Slowly {
                sleep(Duration::from_millis(self.rng.u64(..100))).await;
            }
            select! {
                read = client.read_more() => if read? == 0 {
                    return Ok(End::Ended);
                },
                _ = phase.changed() => {}
                () = sleep_until(leave_at), if is_loading => return Ok(End::Left),
            }
        }
    }

    fn note_read(&self, name: &str, undecoded: usize) {
        if let Some(live) = self.soak.live.borrow_mut().get_mut(name) {
            (live.client.undecoded, live.client.last_read) = (undecoded, Instant::now());
        }
    }

    /// Disconnects, in one of many ways.
    async fn leave(&mut self, model: &SubscriptionModel, mut client: RawClient) {
        if model.pace == ReadPace::Stops {
            self.soak.invariants.borrow_mut().count("subscribers that stopped reading", 1);
            // Longer than the server's write timeout.
            let mut phase = self.soak.phase.subscribe();
            select! {
                () = sleep(Duration::from_secs(5)) => {}
                _ = phase.wait_for(|phase| *phase != Phase::Load) => {}
            }
            return client.cut(self.soak.random_cut(&mut self.rng));
        }
        if model.transport.is_websocket() {
            let words: &[u8] = match self.rng.u8(..6) {
                // A close frame, half a frame, text that is ignored, or a protocol error.
                0 => &[0x88, 0x82, 0, 0, 0, 0, 3, 0xe8],
                1 => &[0x81, 0xfe, 1],
                2 => &[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'],
                3 => &[0x8f, 0x80],
                _ => &[],
            };
            // The server may have closed the connection already.
            let _ = client.send(words).await;
        }
        client.cut(self.soak.random_cut(&mut self.rng));
    }
}

/// A pong, masked with zeros.
pub(super) fn pong(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x8a, 0x80 | u8::try_from(text.len()).unwrap_or(0), 0, 0, 0, 0];
    frame.extend_from_slice(text);
    frame
}
