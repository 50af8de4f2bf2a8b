//! The JSON of requests and of services. See docs/protocol.md, section 17.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{PayloadForm, write, write_payload};
use crate::{
    model::Headers,
    receive::Request,
    stats::{ServiceCounters, ServiceStats},
    wire::headers::{self, HeadersObject},
};

/// Appends a request as one JSON object, without a line end. `timeout` says how long its requester still waits.
pub fn write_request(out: &mut Vec<u8>, request: &Request, timeout: &str) {
    out.push(b'{');
    write_request_fields(out, request, timeout, PayloadForm::Base64);
    out.push(b'}');
}

/// Appends the fields of a request with commas between them, with its payload in this form.
pub fn write_request_fields(
    out: &mut Vec<u8>,
    request: &Request,
    timeout: &str,
    form: PayloadForm,
) {
    out.extend_from_slice(br#""reply":""#);
    out.extend_from_slice(request.token().to_string().as_bytes());
    out.extend_from_slice(br#"","timeout":"#);
    write(out, timeout);
    write_content(out, request.payload(), request.headers(), form);
}

/// Appends the fields `payload` or `text`, and `headers`, each after a comma. There is no `headers` if there are none.
pub fn write_content(out: &mut Vec<u8>, payload: &[u8], headers: &Headers, form: PayloadForm) {
    write_payload(out, payload, form);
    if let Some(headers) = HeadersObject::of(headers) {
        out.extend_from_slice(br#","headers":"#);
        write(out, &headers);
    }
}

/// An estimate of how many bytes [`write_content`] appends.
pub fn content_size_hint(payload: &[u8], headers: &Headers) -> usize {
    payload.len().div_ceil(3) * 4 + headers::size_hint(headers)
}

/// An estimate of how many bytes [`write_request`] appends.
pub fn request_size_hint(request: &Request) -> usize {
    const FIELDS: usize = 96;
    content_size_hint(request.payload(), request.headers()) + FIELDS
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
    away: usize,
    visiting: usize,
    asked: u64,
    replied: u64,
    failed: u64,
    timed_out: u64,
    refused: u64,
    given_up: u64,
    not_wanted: u64,
    taken: u64,
}

impl ServiceObject {
    fn new(stats: &ServiceStats) -> Self {
        let ServiceStats { responders, queued, in_hand, away, visiting, taken, counters, .. } =
            *stats;
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
            away,
            visiting,
            asked,
            replied,
            failed,
            timed_out,
            refused,
            given_up,
            not_wanted,
            taken,
        }
    }
}
