//! Clients of other systems on the same services: they ask and serve by middleman and by drs, on websockets and on TCP, and
//! are killed at any moment. docs/compatibility.md.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Soak,
    door_client::{DoorClient, Event, Kind},
    invariants::Invariant,
    raw_client::Endpoint,
    requesters::{NO_MEMORY, SLACK},
    services::{self, Ending},
    topics::Topic,
};

/// Requests of these clients end within this time.
const TIMEOUT: Duration = Duration::from_millis(800);
/// How often a responder without requests looks whether the load is over.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Why a responder fails.
const REASON: &str = "no paper";

/// The doors of the server.
pub(super) struct Doors(Vec<(Kind, Endpoint)>);

impl Doors {
    /// The flags that open the doors at these addresses.
    pub(super) fn flags(addresses: [SocketAddr; 3]) -> Vec<String> {
        let mut flags: Vec<String> =
            ["--middleman-timeout", "800ms", "--drs-timeout", "800ms"].map(str::to_owned).into();
        for (kind, address) in Kind::ALL.into_iter().zip(addresses) {
            flags.extend(kind.flag(address));
        }
        flags
    }

    pub(super) fn at(addresses: [SocketAddr; 3], server: &Endpoint) -> Self {
        let endpoint = |address| Endpoint { address, ..server.clone() };
        Self(Kind::ALL.into_iter().zip(addresses.map(endpoint)).collect())
    }

    fn any(&self, rng: &mut Rng) -> &(Kind, Endpoint) {
        &self.0[rng.usize(..self.0.len())]
    }
}

/// Connects, with the key that allows everything.
async fn connect(soak: &Soak, rng: &mut Rng) -> io::Result<DoorClient> {
    let (kind, endpoint) = soak.doors.any(rng);
    let secret = soak.keys.borrow().permanent_secret().to_owned();
    let client = DoorClient::open(*kind, endpoint, &secret).await;
    let what = if client.is_ok() { "connections at old doors" } else { "of them refused" };
    soak.invariants.borrow_mut().count(what, 1);
    client
}

/// Asks services, one request after the other, and sometimes leaves.
pub(super) async fn ask(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        if let Ok(mut client) = connect(&soak, &mut rng).await {
            for _ in 0..rng.u32(1..40) {
                if !soak.is_loading() {
                    return;
                }
                if rng.u8(..12) == 0 {
                    leave(&soak, &mut rng, client).await;
                    break;
                }
                if ask_one(&soak, &mut rng, &mut client).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(rng.u64(..20))).await;
            }
        }
        sleep(Duration::from_millis(rng.u64(..30))).await;
    }
}

/// Asks, and is killed before there is a reply.
async fn leave(soak: &Soak, rng: &mut Rng, mut client: DoorClient) {
    let service = services::any(rng);
    let number = soak.invariants.borrow_mut().services.ask(false);
    let request = client.request(&service, number, rng.usize(..400));
    let length = if rng.bool() { request.len() } else { rng.usize(..request.len()) };
    soak.invariants.borrow_mut().services.end(&service, Ending::Unknown);
    let _ = client.send(&request[..length]).await;
    sleep(Duration::from_millis(rng.u64(..50))).await;
    client.cut(soak.random_cut(rng));
    soak.invariants.borrow_mut().count("requesters at old doors that left", 1);
}

async fn ask_one(soak: &Soak, rng: &mut Rng, client: &mut DoorClient) -> io::Result<()> {
    let service = services::any(rng);
    let number = soak.invariants.borrow_mut().services.ask(false);
    let size = if rng.u8(..20) == 0 { 20_000 } else { rng.usize(..400) };
    let request = client.request(&service, number, size);
    let asked = Instant::now();
    // What the server has said before it closed the connection is read in any case.
    let _ = client.send(&request).await;
    let answer = timeout(TIMEOUT + SLACK, client.next()).await;
    let (ended, text) = match answer.unwrap_or(Err(io::ErrorKind::TimedOut.into())) {
        Ok(Event::Answer { number, text }) => (number, text),
        Ok(Event::Request { .. }) => {
            soak.record_fault("a request to a client that serves nothing");
            return Ok(());
        }
        Err(error) => {
            soak.invariants.borrow_mut().services.end(&service, Ending::Unknown);
            soak.record_error(&error, "a request at an old door");
            return Err(error);
        }
    };
    let mut invariants = soak.invariants.borrow_mut();
    let what = || format!("request {number} at {:?}: {ended:?} {text:.80}", client.kind());
    let ending = match ended {
        Some(of) => {
            let is_own = of == number && text.split(' ').next() == Some(&*number.to_string());
            invariants.check(Invariant::Replies, is_own, what);
            Ending::Replied
        }
        None => ending(&text),
    };
    if text.contains(NO_MEMORY) {
        invariants.services.has_no_memory(&service);
    }
    let is_in_time = asked.elapsed() <= TIMEOUT + SLACK;
    invariants.check(Invariant::Responses, is_in_time, what);
    invariants.services.end(&service, ending);
    invariants.count("requests answered at old doors", 1);
    Ok(())
}

/// How a request has ended for which there is no reply.
fn ending(text: &str) -> Ending {
    let has = |part| text.contains(part);
    if has("no reply in time") {
        Ending::TimedOut
    } else if [REASON, NO_MEMORY, "has left without a reply", "Connection closed"]
        .into_iter()
        .any(has)
    {
        Ending::Failed
    } else {
        Ending::Refused
    }
}

/// Serves a service for a while, and answers: late, twice, with a failure, or never.
pub(super) async fn serve(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        if let Ok(client) = connect(&soak, &mut rng).await {
            let service = services::any_served(&mut rng);
            if let Err(error) = serve_some(&soak, &mut rng, client, &service).await {
                soak.record_error(&error, "serving at an old door");
            }
        }
        sleep(Duration::from_millis(rng.u64(5..50))).await;
    }
}

async fn serve_some(
    soak: &Soak,
    rng: &mut Rng,
    mut client: DoorClient,
    service: &Topic,
) -> io::Result<()> {
    let serve = client.serve(service);
    client.send(&serve).await?;
    for _ in 0..rng.u32(1..60) {
        let event = loop {
            if !soak.is_loading() {
                return Ok(());
            }
            if let Ok(event) = timeout(LOOK_AGAIN, client.next()).await {
                break event?;
            }
        };
        // An answer says that a reply came too late, or that the service is served.
        let Event::Request { id, number } = event else { continue };
        soak.invariants.borrow_mut().record_request(number);
        if rng.u8(..3) == 0 {
            sleep(Duration::from_millis(rng.u64(..30))).await;
        }
        let failure = match rng.u8(..24) {
            0 => {
                client.cut(soak.random_cut(rng));
                soak.invariants.borrow_mut().count("responders at old doors killed", 1);
                return Ok(());
            }
            // Nothing: the time of the request ends.
            1 => continue,
            2 => {
                sleep(TIMEOUT).await;
                None
            }
            3 => client.kind().failure(REASON),
            _ => None,
        };
        let answer = client.answer(service, &id, number, failure.as_deref());
        let times = if rng.u8(..20) == 0 { 2 } else { 1 };
        for _ in 0..times {
            let services = &mut soak.invariants.borrow_mut().services;
            services.may_have_answered(service, failure.is_none());
        }
        client.send(&answer.repeat(times)).await?;
    }
    client.cut(soak.random_cut(rng));
    Ok(())
}
