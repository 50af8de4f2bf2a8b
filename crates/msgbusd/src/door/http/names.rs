//! The names of the server's own headers.

use hyper::header::HeaderName;

macro_rules! own_headers {
    ($($header:ident = $name:literal,)+) => {
        $(pub(super) const $header: HeaderName = HeaderName::from_static($name);)+

        /// The headers that pages of allowed origins may read: all of these, and `Retry-After`.
        pub(super) const EXPOSED: &str = concat!($($name, ", ",)+ "retry-after");
    };
}

own_headers! {
    MSGBUS_ID = "msgbus-id",
    MSGBUS_FIRST_ID = "msgbus-first-id",
    MSGBUS_LAST_ID = "msgbus-last-id",
    MSGBUS_NEXT_ID = "msgbus-next-id",
    MSGBUS_EPOCH = "msgbus-epoch",
    MSGBUS_DURABILITY = "msgbus-durability",
    MSGBUS_MISSED = "msgbus-missed",
    MSGBUS_RESTARTED = "msgbus-restarted",
    MSGBUS_TOPICS = "msgbus-topics",
    MSGBUS_TOPIC = "msgbus-topic",
    MSGBUS_CREATED = "msgbus-created",
    MSGBUS_EXPIRES = "msgbus-expires",
    MSGBUS_LEASE = "msgbus-lease",
    MSGBUS_LEASE_EXPIRES = "msgbus-lease-expires",
    MSGBUS_DELIVERIES = "msgbus-deliveries",
    MSGBUS_REPLY = "msgbus-reply",
    MSGBUS_TIMEOUT = "msgbus-timeout",
    MSGBUS_RETAINED = "msgbus-retained",
    MSGBUS_UNPULLED = "msgbus-unpulled",
    MSGBUS_BYTES = "msgbus-bytes",
    MSGBUS_SUBSCRIBERS = "msgbus-subscribers",
    MSGBUS_PUBLISHED = "msgbus-published",
    MSGBUS_PULLED = "msgbus-pulled",
    MSGBUS_DELIVERED = "msgbus-delivered",
    MSGBUS_EXPIRED = "msgbus-expired",
    MSGBUS_EVICTED = "msgbus-evicted",
}

pub(super) const TTL: HeaderName = HeaderName::from_static("ttl");
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
pub(super) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
pub(super) const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
pub(super) const X_REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");
/// The headers by which browsers and link previews mark a prefetch.
pub(super) const PURPOSES: [HeaderName; 4] = [
    HeaderName::from_static("sec-purpose"),
    HeaderName::from_static("purpose"),
    HeaderName::from_static("x-purpose"),
    HeaderName::from_static("x-moz"),
];
