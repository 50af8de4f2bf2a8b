//! The ways to authenticate: header, websocket subprotocol and ticket.

use std::{io, time::Duration};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use fastrand::Rng;
use serde::Deserialize;
use tokio::time::sleep;

use super::{
    Soak,
    invariants::Invariant,
    keys::{Keys, Principal},
    raw_client::{invalid, send_request},
    transport::Transport,
};

/// The credentials of a request.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    /// Each with its line break.
    pub(super) headers: String,
    /// A query parameter, or empty.
    pub(super) query: String,
}

#[derive(Deserialize)]
struct Ticket {
    ticket: String,
}

pub(super) fn bearer(secret: &str) -> String {
    format!("Authorization: Bearer {secret}\r\n")
}

/// The header with which any request can authenticate.
pub(super) fn header(keys: &Keys, principal: Principal, rng: &mut Rng) -> String {
    match keys.secret(principal) {
        None => String::new(),
        Some(secret) if rng.bool() => bearer(secret),
        Some(secret) => {
            format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("soak:{secret}")))
        }
    }
}

/// Credentials for a subscription, in any of the ways. `None` if no ticket was issued, or too late.
pub(super) async fn for_subscription(
    soak: &Soak,
    principal: Principal,
    transport: Transport,
    rng: &mut Rng,
) -> io::Result<Option<Credentials>> {
    let secret = soak.keys.borrow().secret(principal).map(str::to_owned);
    let mut credentials = Credentials::default();
    match (secret, rng.u8(..3)) {
        (None, _) => {}
        (Some(secret), 0) => match ticket(soak, principal, &secret).await? {
            Some(ticket) => {
                // The key may be revoked meanwhile.
                sleep(Duration::from_millis(rng.u64(..1000))).await;
                if !soak.is_loading() {
                    return Ok(None);
                }
                credentials.query = format!("ticket={ticket}");
            }
            None => return Ok(None),
        },
        (Some(secret), 1) if transport.is_websocket() => {
            let encoded = URL_SAFE_NO_PAD.encode(secret);
            credentials.headers = format!("Sec-WebSocket-Protocol: msgbus, bearer.{encoded}\r\n");
        }
        _ => credentials.headers = header(&soak.keys.borrow(), principal, rng),
    }
    Ok(Some(credentials))
}

async fn ticket(soak: &Soak, principal: Principal, secret: &str) -> io::Result<Option<String>> {
    let access = soak.keys.borrow().authentication(principal);
    let request = format!(
        "POST /-/ticket HTTP/1.1\r\nHost: soak.localhost\r\n{}Content-Length: 0\r\n\r\n",
        bearer(secret)
    );
    let (status, body) = send_request(&soak.endpoint, request.as_bytes(), true).await?;
    let mut invariants = soak.invariants.borrow_mut();
    soak.keys.borrow().check_response(&mut invariants, &access, status, "POST /-/ticket");
    invariants.check(Invariant::Responses, matches!(status, 200 | 401 | 503), || {
        format!("POST /-/ticket: {status}")
    });
    if status != 200 {
        return Ok(None);
    }
    invariants.count("tickets", 1);
    let Ticket { ticket } = serde_json::from_slice(&body).map_err(invalid)?;
    Ok(Some(ticket))
}
