//! How a server is spoken to: bytes in, bytes out, no sockets.

use std::{fmt, io};

use crate::stamp::Stamp;

/// What a server speaks.
pub trait Protocol: fmt::Debug {
    /// How a topic is written in requests: what [`Requester`] and [`follower`](Self::follower)
    /// are given.
    fn encode_topic(&self, topic: &str) -> String {
        topic.to_owned()
    }

    /// The client's side of a connection that asks and is answered, in order.
    fn requester(&self) -> Box<dyn Requester>;

    /// The client's side of a connection that follows a topic.
    fn follower(&self, topic: &str) -> Box<dyn Follower>;
}

/// What is published at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// One message.
    Message(&'a [u8]),
    /// As many messages as there are lines.
    Lines(&'a [u8]),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it was for.
    Done,
    /// There was nothing to pull.
    Empty,
    /// The server would not.
    Refused,
}

/// One connection that asks and is answered, in order.
pub trait Requester {
    /// What is said first, and not answered.
    fn open(&self, out: &mut Vec<u8>) {
        let _ = out;
    }

    /// Writes a request to publish.
    fn publish(&self, topic: &str, body: Body<'_>, out: &mut Vec<u8>);

    /// Writes a request to pull one message.
    fn pull(&self, topic: &str, out: &mut Vec<u8>);

    /// Reads as many whole answers as there are in `input`, and says how many bytes they took.
    ///
    /// # Errors
    /// When this is no answer.
    fn answers(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize>;
}

/// What a follower hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It follows now: everything published from here on will come.
    Ready,
    /// A message, with its stamp if it has one.
    Message(Option<Stamp>),
}

/// One connection that follows a topic.
pub trait Follower {
    /// What is said first.
    fn open(&self, out: &mut Vec<u8>);

    /// Reads as much as is whole in `input`, and says how many bytes that took. What has to be
    /// said to the server goes to `reply`.
    ///
    /// # Errors
    /// When the server has ended it, or this is not the protocol.
    fn hear(
        &mut self,
        input: &[u8],
        reply: &mut Vec<u8>,
        each: &mut dyn FnMut(Heard),
    ) -> io::Result<usize>;
}
