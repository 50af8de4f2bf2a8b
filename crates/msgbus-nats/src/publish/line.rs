//! A connection on which messages are sent.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_nats::{
    Client, PublishErrorKind, Subject, Subscriber,
    connection::State,
    jetstream::{response::Response, stream::Info},
};
use bytes::Bytes;
use msgbus_core::engine::EngineError;
use tokio::time::timeout;

use super::pending::Encoded;
use crate::{
    connection::{Connection, Known, epoch},
    error::request_error,
};

/// For how long a connection that is not that of the engine is asked for the stream, at most. Publishes wait for it.
const SEARCH_LIMIT: Duration = Duration::from_secs(1);

/// The client, and the stream that was found with it.
pub(super) struct Line {
    client: Client,
    /// Whether it is the one with which the engine looks for the stream.
    is_of_engine: bool,
    /// Acknowledgements come to subjects that begin with it and end with the number of the message.
    inbox: String,
    found: Option<Found>,
}

/// The stream, as it is also known to the engine.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) known: Arc<Known>,
    /// How often there had been a connection. After another one, it may be another stream.
    pub(super) connects: u64,
}

impl Line {
    /// The connection of the engine.
    pub(super) fn of(connection: &Connection) -> Self {
        Self { is_of_engine: true, ..Self::new(connection.client.clone()) }
    }

    pub(super) fn new(client: Client) -> Self {
        let inbox = client.new_inbox();
        Self { client, is_of_engine: false, inbox, found: None }
    }

    /// Where acknowledgements come. `None` if the client has ended.
    pub(super) async fn acknowledgements(&self) -> Option<Subscriber> {
        self.client.subscribe(format!("{}.*", self.inbox)).await.ok()
    }

    pub(super) fn is_of_engine(&self) -> bool {
        self.is_of_engine
    }

    /// How often there was a connection.
    pub(super) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Relaxed)
    }

    /// Refuses at once while there is no connection.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            _ => Err(EngineError::Unavailable),
        }
    }

    /// The stream, if neither this nor the engine has had another connection since it was found.
    pub(super) fn stream(&self, connection: &Connection) -> Option<Found> {
        let known = connection.current()?;
        if self.is_of_engine {
            return Some(Found { connects: known.connects, known });
        }
        let found = self.found.as_ref()?;
        let is_current = Arc::ptr_eq(&found.known, &known) && found.connects == self.connects();
        is_current.then(|| found.clone())
    }

    /// Looks for the stream. What comes of it is for [`Self::set_found`].
    pub(super) fn find(
        &self,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Result<Found, EngineError>> + use<> {
        let (client, connects) = (self.client.clone(), self.connects());
        let is_of_engine = self.is_of_engine;
        async move {
            if is_of_engine {
                let known = connection.stream().await?;
                return Ok(Found { connects: known.connects, known });
            }
            let limit = SEARCH_LIMIT.min(connection.options.timeout / 2);
            let found = timeout(limit, find_there(client, connection)).await;
            let known = found.map_err(|_| EngineError::Unavailable)??;
            Ok(Found { known, connects })
        }
    }

    pub(super) fn set_found(&mut self, found: Found) {
        self.found = Some(found);
    }

    /// Sends a message, so that it is acknowledged by its number.
    pub(super) async fn send(
        &self,
        subject: Subject,
        number: u64,
        (headers, payload): Encoded,
    ) -> Result<(), EngineError> {
        let (client, reply) = (&self.client, format!("{}.{number}", self.inbox));
        let sent = match headers {
            Some(headers) => {
                client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
            None => client.publish_with_reply(subject, reply, payload).await,
        };
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => {
                EngineError::TooLarge { limit: client.max_payload() as u64 }
            }
            _ => EngineError::Unavailable,
        })
    }
}

/// The stream, if it is also where the client is connected.
async fn find_there(
    client: Client,
    connection: Arc<Connection>,
) -> Result<Arc<Known>, EngineError> {
    let known = connection.stream().await?;
    let subject = format!("$JS.API.STREAM.INFO.{}", connection.options.stream);
    let answer = client.request(subject, Bytes::new()).await;
    let answer = answer.map_err(|error| request_error(&error))?;
    match serde_json::from_slice::<Response<Info>>(&answer.payload) {
        Ok(Response::Ok(info)) if epoch(&info) == known.epoch => Ok(known),
        // It leads to another server.
        _ => Err(EngineError::Unavailable),
    }
}
