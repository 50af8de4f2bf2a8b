//! The protocol of a server, as bytes in and bytes out, without sockets.

use std::{fmt, io};

use crate::trace::Trace;

/// The protocol of a server.
pub trait Protocol: fmt::Debug {
    /// Encodes a topic for requests, once. [`Requester`] and [`follower`](Self::follower) are given
    /// the encoded form.
    fn encode_topic(&self, topic: &str) -> String {
        topic.to_owned()
    }

    /// Creates the client side of a connection for requests and responses.
    fn requester(&self) -> Box<dyn Requester>;

    /// Creates the client side of a subscription.
    fn follower(&self, topic: &str) -> Box<dyn Follower>;

    /// Creates the client side of a connection for a worker; `None` if the protocol has no
    /// acknowledgements.
    fn worker(&self) -> Option<Box<dyn Worker>> {
        None
    }

    /// Whether a requester publishes several messages with one request.
    fn publishes_lines(&self) -> bool {
        true
    }
}

/// The body of a publish request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// One message.
    Message(&'a [u8]),
    /// One message per line.
    Lines(&'a [u8]),
}

impl<'a> Body<'a> {
    /// The messages.
    pub fn messages(self) -> impl Iterator<Item = &'a [u8]> {
        let (bytes, count) = match self {
            Self::Message(bytes) => (bytes, 1),
            Self::Lines(bytes) => (bytes.strip_suffix(b"\n").unwrap_or(bytes), usize::MAX),
        };
        bytes.splitn(count, |byte| *byte == b'\n')
    }
}

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// There was no message to pull.
    Empty,
    /// The server rejected it.
    Refused,
}

/// The client side of a connection for requests and responses, which come in the order of the
/// requests.
pub trait Requester {
    /// Writes the opening bytes of the connection, if any. They get no response.
    fn open(&self, out: &mut Vec<u8>) {
        let _ = out;
    }

    /// Writes a request to publish.
    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>);

    /// Writes a request to pull one message.
    fn pull(&self, topic: &str, out: &mut Vec<u8>);

    /// Decodes the complete responses in `input`, and returns their length in bytes.
    ///
    /// # Errors
    /// The input is not a valid response.
    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize>;
}

/// An event of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The subscription is active: messages that are published from now on will be received.
    Ready,
    /// A message, with its trace if it has one.
    Message(Option<Trace>),
}

/// The client side of a subscription to a topic.
pub trait Follower {
    /// Writes the opening bytes of the connection.
    fn open(&self, out: &mut Vec<u8>);

    /// Decodes the complete frames in `input`, and returns their length in bytes. Writes replies to
    /// the server, such as pongs, to `reply`.
    ///
    /// # Errors
    /// The server has closed the subscription, or the input is not valid.
    fn decode(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Received),
    ) -> io::Result<usize>;
}

/// The result of a request of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It got this many messages, which have to be acknowledged.
    Taken(u64),
    /// This many messages are done.
    Done(u64),
    /// There was no message.
    Empty,
}

/// The client side of a connection that takes messages and acknowledges them, one request after the
/// other.
pub trait Worker {
    /// Writes the opening bytes of the connection, if any. They get no response.
    fn open(&self, out: &mut Vec<u8>) {
        let _ = out;
    }

    /// Writes a request for up to `most` messages.
    fn take(&mut self, topic: &str, most: usize, out: &mut Vec<u8>);

    /// Writes the acknowledgement of all messages of the last response.
    fn ack(&mut self, out: &mut Vec<u8>);

    /// Decodes the response in `input`, if it is complete, and returns how many bytes were used.
    ///
    /// # Errors
    /// The server rejected the request, or the input is not a valid response.
    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Step)) -> io::Result<usize>;
}
