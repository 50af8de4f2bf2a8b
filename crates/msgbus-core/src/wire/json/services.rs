//! The JSON of requests and of services. See docs/protocol.md, section 17.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::write;
use crate::{
    receive::Request,
    stats::{ServiceCounters, ServiceStats},
    wire::headers::{self, HeadersObject},
};

/// Appends a request as one JSON object, without a line end. `timeout` says how long its requester still waits.
pub fn write_request(out: &mut Vec<u8>, request: &Request, timeout: &str) {
    #[derive(Serialize)]
    struct RequestObject<'a> {
        reply: String,
        timeout: &'a str,
        payload: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        headers: Option<HeadersObject<'a>>,
    }
    let object = RequestObject {
        reply: request.token().to_string(),
        timeout,
        payload: STANDARD.encode(request.payload()).into(),
        headers: HeadersObject::of(request.headers()),
    };
    write(out, &object);
}

/// An estimate of how many bytes [`write_request`] appends.
pub fn request_size_hint(request: &Request) -> usize {
    const FIELDS: usize = 96;
    let payload = request.payload().len().div_ceil(3) * 4;
    payload + headers::size_hint(request.headers()) + FIELDS
}

/// Appends an object that maps the name of each service to its counters.
pub fn write_services(out: &mut Vec<u8>, services: &[ServiceStats]) {
    struct Services<'a>(&'a [ServiceStats]);
    impl Serialize for Services<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.0.len()))?;
            for service in self.0 {
                map.serialize_entry(service.name.as_str(), &ServiceObject::new(service))?;
            }
            map.end()
        }
    }
    write(out, &Services(services));
}

#[derive(Serialize)]
struct ServiceObject {
    responders: usize,
    queued: usize,
    in_hand: usize,
    asked: u64,
    replied: u64,
    failed: u64,
    timed_out: u64,
    refused: u64,
    given_up: u64,
    not_wanted: u64,
}

impl ServiceObject {
    fn new(stats: &ServiceStats) -> Self {
        let ServiceStats { responders, queued, in_hand, counters, .. } = *stats;
        let ServiceCounters {
            asked,
            replied,
            failed,
            timed_out,
            refused,
            given_up,
            not_wanted,
            ..
        } = counters;
        Self {
            responders,
            queued,
            in_hand,
            asked,
            replied,
            failed,
            timed_out,
            refused,
            given_up,
            not_wanted,
        }
    }
}
