//! The ways to say who asks.

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
    books::Book,
    keys::{Keys, Who},
    transport::Transport,
    wire::{ask, invalid},
};

/// What goes with a request to say who asks.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Each with its line end.
    pub(super) headers: String,
    /// Without an end.
    pub(super) query: String,
}

#[derive(Deserialize)]
struct Ticket {
    ticket: String,
}

pub(super) fn bearer(secret: &str) -> String {
    format!("Authorization: Bearer {secret}\r\n")
}

/// As any request may say it.
pub(super) fn header(keys: &Keys, who: Who, rng: &mut Rng) -> String {
    match keys.secret(who) {
        None => String::new(),
        Some(secret) if rng.bool() => bearer(secret),
        Some(secret) => {
            format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("soak:{secret}")))
        }
    }
}

/// As one may say it who wants to follow a topic. `None` when that one has got no ticket, or got it too
/// late.
pub(super) async fn to_follow(
    soak: &Soak,
    who: Who,
    transport: Transport,
    rng: &mut Rng,
) -> io::Result<Option<Shown>> {
    let secret = soak.keys.borrow().secret(who).map(str::to_owned);
    let mut shown = Shown::default();
    match (secret, rng.u8(..3)) {
        (None, _) => {}
        (Some(secret), 0) => match ticket(soak, who, &secret).await? {
            Some(ticket) => {
                // Meanwhile the key may go.
                sleep(Duration::from_millis(rng.u64(..1000))).await;
                if !soak.is_loading() {
                    return Ok(None);
                }
                shown.query = format!("ticket={ticket}");
            }
            None => return Ok(None),
        },
        (Some(secret), 1) if transport.is_websocket() => {
            let encoded = URL_SAFE_NO_PAD.encode(secret);
            shown.headers = format!("Sec-WebSocket-Protocol: msgbus, bearer.{encoded}\r\n");
        }
        _ => shown.headers = header(&soak.keys.borrow(), who, rng),
    }
    Ok(Some(shown))
}

async fn ticket(soak: &Soak, who: Who, secret: &str) -> io::Result<Option<String>> {
    let claim = soak.keys.borrow().claim_to_be_known(who);
    let request = format!(
        "POST /-/ticket HTTP/1.1\r\nHost: soak.localhost\r\n{}Content-Length: 0\r\n\r\n",
        bearer(secret)
    );
    let (status, body) = ask(&soak.place, request.as_bytes(), true).await?;
    let mut books = soak.books.borrow_mut();
    soak.keys.borrow().check_answer(&mut books, &claim, status, "POST /-/ticket");
    books.check(Book::Answers, matches!(status, 200 | 401 | 503), || {
        format!("POST /-/ticket: {status}")
    });
    if status != 200 {
        return Ok(None);
    }
    books.count("tickets", 1);
    let Ticket { ticket } = serde_json::from_slice(&body).map_err(invalid)?;
    Ok(Some(ticket))
}
