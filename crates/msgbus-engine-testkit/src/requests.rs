//! Services under load: responders, many requests, and their accounts.

use std::time::Duration;

use msgbus_core::{
    BatchLimit, MessageBus, NewRequest, Request, RequestError, ServiceStats, TopicName,
};
use tokio::{task::JoinHandle, time::sleep};

use crate::soon;

/// Ends what is due at buses, as programs do, until it is dropped.
#[derive(Debug)]
pub struct Timer(JoinHandle<()>);

impl Timer {
    /// That of these buses.
    pub fn of<'a>(buses: impl IntoIterator<Item = &'a MessageBus>) -> Self {
        let buses: Vec<MessageBus> = buses.into_iter().cloned().collect();
        Self(tokio::spawn(async move {
            loop {
                for bus in &buses {
                    bus.run_due();
                }
                sleep(Duration::from_millis(10)).await;
            }
        }))
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A responder that answers each request as `answer` says.
pub fn respond(
    bus: &MessageBus,
    service: &TopicName,
    answer: impl Fn(Request) + Send + 'static,
) -> JoinHandle<()> {
    let (bus, service) = (bus.clone(), service.clone());
    tokio::spawn(async move {
        while let Ok(requests) = bus.serve(&service, BatchLimit::ONE).unwrap().await {
            requests.into_iter().for_each(&answer);
        }
    })
}

/// Waits until a bus knows whether a service is served, here or elsewhere.
pub async fn until_served(bus: &MessageBus, service: &TopicName, is_served: bool) {
    let known = async {
        while bus.is_served_anywhere(service).await != Ok(is_served) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(known).await;
}

/// A request that waits as long as it may.
pub fn patient(payload: impl Into<NewRequest>) -> NewRequest {
    payload.into().timeout(NewRequest::MAX_TIMEOUT)
}

/// Requests of many at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// How many.
    pub count: usize,
    /// The time between two of them.
    pub pause: Duration,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// How many had their own reply.
    pub replied: usize,
    /// Why the others had none.
    pub errors: Vec<RequestError>,
}

impl Load {
    /// Asks at these buses in turn. A reply is the payload of its request, which is its number.
    pub async fn ask(
        self,
        buses: &[&MessageBus],
        service: &TopicName,
        request: impl Fn(usize) -> NewRequest,
    ) -> Outcomes {
        let mut asked = Vec::new();
        for n in 0..self.count {
            asked.push(tokio::spawn(buses[n % buses.len()].request(service, request(n))));
            sleep(self.pause).await;
        }
        let mut outcomes = Outcomes::default();
        for (n, asked) in asked.into_iter().enumerate() {
            match soon(asked).await.unwrap() {
                Ok(reply) => {
                    assert_eq!(reply.payload, n.to_string(), "that of another one");
                    outcomes.replied += 1;
                }
                Err(error) => outcomes.errors.push(error),
            }
        }
        outcomes
    }
}

/// Every request that a bus was asked is over, and counted once.
pub fn assert_balance(stats: &ServiceStats) {
    let counters = &stats.counters;
    let over = counters.replied + counters.failed + counters.timed_out;
    assert_eq!(counters.asked, over + counters.refused + counters.given_up, "{stats:?}");
    assert_eq!((stats.queued, stats.in_hand, stats.away), (0, 0, 0), "{stats:?}");
}
