//! The services of a server.

use std::collections::BTreeMap;

use hyper::{Method, Request as HttpRequest, StatusCode};
use serde::{Deserialize, Serialize};

use crate::{client::Client, error::ClientError, transport::RESPONSE_TIMEOUT};

/// A service and its counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/protocol.md, 17.6, describes the fields")]
pub struct ServiceSummary {
    #[serde(default)]
    pub name: String,
    /// Responders that wait for a request.
    pub responders: u64,
    /// Requests that wait for a responder.
    pub queued: u64,
    /// Requests that responders have.
    pub in_hand: u64,
    pub asked: u64,
    pub replied: u64,
    pub failed: u64,
    pub timed_out: u64,
    pub refused: u64,
    pub given_up: u64,
    pub not_wanted: u64,
}

impl Client {
    /// The services of the server, sorted by name. One that nobody uses is forgotten after ten minutes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn services(&self) -> Result<Vec<ServiceSummary>, ClientError> {
        let request = HttpRequest::builder().method(Method::GET).uri(self.server().services());
        let response = self.send(request, RESPONSE_TIMEOUT).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        let services: BTreeMap<String, ServiceSummary> = self.json(response).await?;
        let named = |(name, service)| ServiceSummary { name, ..service };
        Ok(services.into_iter().map(named).collect())
    }
}
