//! What happens to a connection, and what the log says of it.

use std::{
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Release},
        },
    },
};

use async_nats::{ClientError, ConnectErrorKind, Event, ServerError};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::refusals::Refusals;

/// What hears of the connection of an engine.
pub(super) fn of_engine(
    is_denied: Arc<AtomicBool>,
    refusals: Arc<Refusals>,
    places: String,
    connected: [Arc<Notify>; 2],
) -> impl Fn(Event) -> Ready<()> {
    let is_told = AtomicBool::new(false);
    move |event| {
        if matches!(event, Event::Connected) {
            for connected in &connected {
                connected.notify_one();
            }
        }
        hear(&event, &is_denied, &refusals);
        tell_why_away(&event, &is_told, &places);
        ready(())
    }
}

/// What hears of those on which runtimes publish. What concerns all connections, that of the engine says.
pub(super) fn of_publishers(refusals: Arc<Refusals>) -> impl Fn(Event) -> Ready<()> {
    move |event| {
        if let Event::ServerError(error) = &event {
            refusals.hear(error);
        }
        debug!("NATS, to publish: {event}");
        ready(())
    }
}

/// Notes what has happened to the connection.
fn hear(event: &Event, is_denied: &AtomicBool, refusals: &Refusals) {
    if matches!(event, Event::Connected) {
        is_denied.store(false, Release);
    } else if is_refusal(event) && !is_denied.swap(true, AcqRel) {
        // Each attempt to connect fails with it.
        warn!("NATS refuses the credentials of this server");
    }
    match event {
        // Each attempt to connect fails with one.
        Event::ClientError(error) => debug!("NATS: {error}"),
        // One for each message. Its reader begins again.
        Event::SlowConsumer(_) => debug!("NATS: {event}"),
        Event::ServerError(error) if refusals.hear(error) => {}
        Event::Connected => info!("connected to NATS"),
        Event::Disconnected => warn!("the connection to NATS is lost"),
        event => info!("NATS: {event}"),
    }
}

/// Says once why there is no connection: each attempt to connect fails with a reason.
fn tell_why_away(event: &Event, is_told: &AtomicBool, places: &str) {
    match event {
        Event::Connected => is_told.store(false, Release),
        Event::ClientError(error) if !is_refusal(event) && !is_told.swap(true, AcqRel) => {
            warn!("cannot connect to NATS at {places}: {}", explain(error));
        }
        _ => {}
    }
}

/// Why an attempt to connect has failed. The client only gives the kind of the error, as a text.
fn explain(error: &ClientError) -> String {
    let reasons = [
        (ConnectErrorKind::Dns, "unknown host"),
        (
            ConnectErrorKind::Io,
            "the connection is refused or broken; does nats-server listen there?",
        ),
        (
            ConnectErrorKind::Tls,
            "TLS has failed; check the certificates, and whether the server uses TLS",
        ),
        (ConnectErrorKind::TimedOut, "no answer in time"),
    ];
    match error {
        ClientError::Other(text) => {
            let known = reasons.iter().find(|(kind, _)| *text == kind.to_string());
            known.map_or_else(|| text.clone(), |(_, reason)| (*reason).to_owned())
        }
        error => error.to_string(),
    }
}

/// Whether the server refuses the credentials. Of a failed attempt to connect, the client only gives the text.
fn is_refusal(event: &Event) -> bool {
    match event {
        Event::ServerError(ServerError::AuthorizationViolation) => true,
        Event::ClientError(ClientError::Other(text)) => {
            let refusals =
                [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication];
            refusals.iter().any(|kind| *text == kind.to_string())
        }
        _ => false,
    }
}
