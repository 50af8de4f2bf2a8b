//! Taking the requests of a service.

use std::{collections::VecDeque, time::Duration};

use msgbus_core::TopicName;
use tokio::time::sleep;

use super::Request;
use crate::{client::Client, error::ClientError, reachability::Reachability};

/// Takes requests of a service. Each request goes to the responder that has waited longest.
#[derive(Debug)]
pub struct Responder {
    client: Client,
    service: TopicName,
    batch: usize,
    reachability: Reachability,
    taken: VecDeque<Request>,
}

impl Client {
    /// Serves a service. The responder connects at its first call.
    pub fn serve(&self, service: &TopicName) -> Responder {
        Responder {
            client: self.clone(),
            service: service.clone(),
            batch: 1,
            reachability: Reachability::default(),
            taken: VecDeque::new(),
        }
    }
}

impl Responder {
    /// The longest wait of one take. The server waits no longer.
    pub const MAX_WAIT: Duration = Duration::from_secs(60);

    /// Lets [`next`](Self::next) take up to this many requests at once, 1 by default. They wait in the responder until
    /// they are returned, while others may be free, so it is for those that work on several at a time.
    #[must_use]
    pub fn batch(self, batch: usize) -> Self {
        Self { batch: batch.max(1), ..self }
    }

    /// The service.
    pub fn service(&self) -> &TopicName {
        &self.service
    }

    /// Takes up to `max` requests, at most 1,000 or 8 MiB of payload, and waits up to this time, at most
    /// [`MAX_WAIT`](Self::MAX_WAIT), for the first one. Without a wait it takes only those that are there. Empty if there
    /// is none.
    ///
    /// # Errors
    /// See [`ClientError`]. Requests whose response was lost end by time, and so do those that the server hands out while
    /// the future is dropped.
    pub async fn take(&self, max: usize, wait: Duration) -> Result<Vec<Request>, ClientError> {
        let wait = wait.min(Self::MAX_WAIT);
        self.client
            .take_requests(
                &self.service,
                max.max(1),
                Some(wait).filter(|wait| wait.as_millis() > 0),
            )
            .await
    }

    /// Waits for the next request. Once the server has answered, it waits for as long as the server cannot be reached.
    ///
    /// # Errors
    /// See [`ClientError`]: the server refuses, or cannot be reached at the first call.
    pub async fn next(&mut self) -> Result<Request, ClientError> {
        loop {
            if let Some(request) = self.taken.pop_front() {
                return Ok(request);
            }
            let wait = if self.reachability.is_reached() { Self::MAX_WAIT } else { Duration::ZERO };
            match self.take(self.batch, wait).await {
                Ok(requests) => {
                    self.reachability.reached();
                    self.taken.extend(requests);
                }
                Err(error) => sleep(self.reachability.failed(error)?.pause).await,
            }
        }
    }
}
