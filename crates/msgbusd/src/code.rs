//! The code words of all refusals of requests and connections, and of websocket protocol errors. docs/protocol.md,
//! section 8.

macro_rules! codes {
    ($($code:ident = $word:literal,)+) => {
        /// The stable word of a refusal, for programs and metrics.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code { $($code,)+ }

        impl Code {
            /// In the order of the variants, so that a code can be used as an index.
            pub(crate) const ALL: [Self; [$($word),+].len()] = [$(Self::$code,)+];

            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$code => $word,)+ }
            }
        }
    };
}

codes! {
    BadTopic = "bad_topic",
    BadParameter = "bad_parameter",
    BadHeader = "bad_header",
    BadHandshake = "bad_handshake",
    BadBody = "bad_body",
    BadJson = "bad_json",
    UnknownOp = "unknown_op",
    UnknownSid = "unknown_sid",
    SidInUse = "sid_in_use",
    KeyNeeded = "key_needed",
    WrongKey = "wrong_key",
    WrongTicket = "wrong_ticket",
    ForeignOrigin = "foreign_origin",
    NotGranted = "not_granted",
    Empty = "empty",
    NoSuchTopic = "no_such_topic",
    NoSuchGroup = "no_such_group",
    NothingHere = "nothing_here",
    MethodNotAllowed = "method_not_allowed",
    BodyTimeout = "body_timeout",
    LeaseLost = "lease_lost",
    InvalidLease = "invalid_lease",
    NoResponder = "no_responder",
    TooManyRequests = "too_many_requests",
    ResponderFailed = "responder_failed",
    RequestTimeout = "request_timeout",
    ReplyNotWanted = "reply_not_wanted",
    InvalidReply = "invalid_reply",
    TooManyLeases = "too_many_leases",
    TooManyGroups = "too_many_groups",
    PayloadTooLarge = "payload_too_large",
    EncodedLines = "encoded_lines",
    MessageHeadersTooLarge = "message_headers_too_large",
    ForeignHost = "foreign_host",
    WrongScheme = "wrong_scheme",
    BadWebsocketVersion = "bad_websocket_version",
    TooManyMessages = "too_many_messages",
    UnknownTransferCoding = "unknown_transfer_coding",
    Prefetch = "prefetch",
    TooManyTopics = "too_many_topics",
    BusFull = "bus_full",
    TooManyTickets = "too_many_tickets",
    TooManySubscriptions = "too_many_subscriptions",
    TooMuchInFlight = "too_much_in_flight",
    Closed = "closed",
    TopicFull = "topic_full",
    DiskFull = "disk_full",
    StoreBusy = "store_busy",
    StoreFailed = "store_failed",
    EngineUnavailable = "engine_unavailable",
    EngineBusy = "engine_busy",
    EngineTimeout = "engine_timeout",
    EngineFull = "engine_full",
    EngineDenied = "engine_denied",
    NotSupported = "not_supported",
    TooManyConnections = "too_many_connections",
    TooManyConnectionsOfAddress = "too_many_connections_of_address",
    BadHttp = "bad_http",
    HeaderTooLarge = "header_too_large",
    WebsocketTooLarge = "websocket_too_large",
    WebsocketNotUtf8 = "websocket_not_utf8",
    WebsocketViolation = "websocket_violation",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_contract() {
        let contract = include_str!("../../../docs/protocol.md");
        let table = contract.split("\n8.1. ").nth(1).unwrap().split("\n8.2. ").next().unwrap();
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index);
            assert!(table.contains(&format!("`{}`", code.word())), "{code:?} is in no row of 8.1");
        }
    }
}
