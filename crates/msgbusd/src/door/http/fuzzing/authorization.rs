use std::{
    str,
    sync::{Arc, LazyLock},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hyper::{
    Request,
    header::{self, HeaderValue},
};
use percent_encoding::percent_decode_str;

use super::{
    super::{
        credentials,
        error::ApiError,
        query::Query,
        routes::{AdminRoute, Route},
    },
    MAX_ERROR_TEXT, head, replace,
};
use crate::{
    auth::{self, Keyring},
    config::Config,
    fuzzing::common::is_a_line,
    service::error::ServiceError,
    state::App,
};

/// The secret of the only key. It allows publishing to `orders/**` and following everything.
const SECRET: &str = "mbk_5eCr3t-0f_the/0nly+key";
/// The placeholder for a ticket in the input.
const TICKET: &str = "mbt_TICKET";
const KEYS: &str = r#"
[anonymous]
allow = ["pull:open/*"]

[keys.holder]
hash = "HASH"
allow = ["publish:orders/**", "subscribe:**"]
"#;

static APP: LazyLock<App> = LazyLock::new(|| {
    let file = auth::fuzzing::read(&KEYS.replace("HASH", &auth::fuzzing::hash(SECRET)));
    let keyring = Keyring::new(file.expect("it is right"));
    App::in_memory(Config::default(), Some(Arc::new(keyring)))
});

/// Authenticates a request. Only a request with the secret or a ticket gets the key, a ticket can be used once, all ways
/// to send a secret are equivalent, and no error quotes a secret.
///
/// # Panics
/// When a property does not hold.
pub fn authorization(data: &[u8]) {
    let keyring = APP.keyring.as_ref().expect("there are keys");
    let ticket = keyring
        .authenticate(SECRET)
        .and_then(|holder| keyring.open_ticket(holder).ok())
        .expect("the last one has been used up");
    if let Some(request) = head(&replace(data, TICKET, &ticket)) {
        asked(&request, &ticket);
    }
    keyring.redeem(&ticket);
    if let Ok(text) = str::from_utf8(data) {
        every_way(text);
    }
}

fn asked(request: &Request<()>, ticket: &str) {
    let Ok(route) = Route::of(request, &Query::of(request)) else { return };
    match credentials::check(&APP, &route, request, &Query::of(request)) {
        Ok(None) => assert!(matches!(route, Route::Admin(AdminRoute::Health | AdminRoute::Ready))),
        Ok(Some(principal)) if principal.key_name().is_some() => {
            let by_ticket = says_ticket(request, ticket);
            assert!(says_secret(request) || by_ticket, "the holder has said nothing");
            if !says_secret(request) {
                let again = credentials::check(&APP, &route, request, &Query::of(request));
                assert!(
                    matches!(again, Err(ApiError::Service { error: ServiceError::WrongTicket })),
                    "for once only: {again:?}"
                );
            }
            assert!(matches!(
                route,
                Route::Admin(AdminRoute::Ticket)
                    | Route::Service(_)
                    | Route::Pull(_)
                    | Route::Publish(_)
                    | Route::Websocket(_)
                    | Route::Stream(..)
                    | Route::Lease(..)
                    | Route::Settle(..)
                    | Route::SettleMany(_)
                    | Route::Peek(_)
                    | Route::PeekGroup(..)
            ));
        }
        Ok(Some(_)) => assert!(matches!(
            route,
            Route::Pull(_) | Route::Lease(..) | Route::Settle(..) | Route::SettleMany(_)
        )),
        Err(refusal) => {
            is_a_line(&refusal, MAX_ERROR_TEXT);
            // A topic may have such a name.
            let path = percent_decode_str(request.uri().path()).decode_utf8_lossy();
            for text in [refusal.to_string(), format!("{refusal:?}")] {
                assert!(!text.contains(SECRET) || path.contains("mbk_"), "{text}");
                assert!(!text.contains(ticket) || path.contains("mbt_"), "{text}");
            }
        }
    }
}

fn says_ticket(request: &Request<()>, ticket: &str) -> bool {
    let query = request.uri().query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .any(|(name, value)| name == "ticket" && value == ticket)
}

/// Whether the secret is anywhere in the headers, as it is or in base64.
fn says_secret(request: &Request<()>) -> bool {
    let is_said = |value: &HeaderValue| {
        let text = String::from_utf8_lossy(value.as_bytes());
        let mut words = text.split([' ', ',', '.', '\t']);
        let decoded = |word: &str| STANDARD.decode(word).or_else(|_| URL_SAFE_NO_PAD.decode(word));
        text.contains(SECRET)
            || words.any(|word| {
                decoded(word).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(SECRET))
            })
    };
    request.headers().values().any(is_said)
}

/// Sends the same text as a bearer token, a password and a subprotocol.
fn every_way(secret: &str) {
    if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return;
    }
    let base64 = |text: &str| STANDARD.encode(text);
    let ways = [
        (header::AUTHORIZATION, format!("Bearer {secret}")),
        (header::AUTHORIZATION, format!("bEARER   {secret}")),
        (header::AUTHORIZATION, format!("Basic {}", base64(&format!(":{secret}")))),
        (header::AUTHORIZATION, format!("basic {}", base64(&format!("anybody:{secret}")))),
        (
            header::SEC_WEBSOCKET_PROTOCOL,
            format!("msgbus, bearer.{}", URL_SAFE_NO_PAD.encode(secret)),
        ),
    ];
    for (name, value) in ways {
        let request = Request::builder()
            .uri("/a")
            .header(header::UPGRADE, "websocket")
            .header(name, &value)
            .body(())
            .expect("a secret fits in a header");
        let route = Route::of(&request, &Query::of(&request)).expect("a websocket");
        match credentials::check(&APP, &route, &request, &Query::of(&request)) {
            Ok(principal) => {
                assert_eq!(secret, SECRET, "{value}");
                assert_eq!(principal.expect("there are keys").key_name(), Some("holder"));
            }
            Err(refusal) => {
                assert!(
                    matches!(refusal, ApiError::Service { error: ServiceError::WrongKey }),
                    "{refusal}"
                );
                assert_ne!(secret, SECRET, "{value}");
            }
        }
    }
}
