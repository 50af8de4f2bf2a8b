//! The fuzz targets of what a request says.

mod authorization;
mod connection;
mod origin;
mod request;

use hyper::{Method, Request, header::HeaderValue};

pub use self::{
    authorization::authorization, connection::connection, origin::origin, request::request,
};
use crate::net::peer::Peer;

/// The most bytes of a refusal: a name of a topic may be in it, and the start of what was wrong.
const LONGEST_REFUSAL: usize = 1000;

/// A request as one would write it for `nc`: method and path, then headers, a line each. `None` where the
/// server's HTTP library would not let it through.
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

/// In the clear, and by no address, so that nothing is counted for it.
const PEER: Peer = Peer { address: None, has_tls: false };
