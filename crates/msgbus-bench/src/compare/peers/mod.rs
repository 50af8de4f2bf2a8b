//! The protocols of other servers.

mod beanstalk;
mod beanstalk_worker;
mod jetstream;
mod jetstream_worker;
mod nats;
mod nats_requests;
mod redis;
mod redis_stream;

use std::io;

pub(crate) use self::jetstream::ask;
pub(super) use self::{
    beanstalk::Beanstalk,
    jetstream::{JetStream, can_sync_always, create_stream},
    nats::Nats,
    nats_requests::NatsRequests,
    redis::Redis,
    redis_stream::RedisStream,
};

/// The first line with its line break, if it is complete.
fn line(input: &[u8]) -> Option<&[u8]> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some(&input[..=end])
}

fn number(digits: &[u8]) -> io::Result<usize> {
    let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| unexpected(digits))
}

fn unexpected(input: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(&input[..input.len().min(100)]).into_owned();
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected input: {text:?}"))
}
