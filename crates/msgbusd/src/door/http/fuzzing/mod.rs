//! The fuzz targets for requests.

mod authorization;
mod connection;
mod origin;
mod request;

use hyper::{Method, Request, header::HeaderValue};

pub use self::{
    authorization::authorization, connection::connection, origin::origin, request::request,
};
use crate::net::peer::Peer;

/// The maximum size of an error text, in bytes. It may quote a topic name and the beginning of an invalid value.
const MAX_ERROR_TEXT: usize = 1000;

/// Parses a request head: method and path, then one header per line. `None` if the HTTP library would reject it.
fn head(data: &[u8]) -> Option<Request<()>> {
    let mut lines = data.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let method = Method::from_bytes(words.next()?).ok()?;
    let mut request = Request::builder().method(method).uri(words.next()?);
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request = request.header(&line[..colon], value);
    }
    request.body(()).ok()
}

/// Replaces all placeholders in the input.
fn replace(data: &[u8], placeholder: &str, text: &str) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some(at) =
        rest.windows(placeholder.len()).position(|window| window == placeholder.as_bytes())
    {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(text.as_bytes());
        rest = &rest[at + placeholder.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}

/// A peer without TLS and without an address, so that no limit per address applies.
const PEER: Peer = Peer { address: None, has_tls: false };
