//! `msgbus.v1`: one websocket for all operations on all topics. docs/protocol.md, section 16.
//!
//! [`operation`] parses a line ([`plain`] the most frequent ones), [`operations`] begins what it asks for, [`answer`] and
//! [`events`] write what the client gets, and [`session`] makes a [`Dialect`](crate::dialogue::Dialect) of them.

mod answer;
mod ask;
mod content;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod identifier;
mod operation;
mod operations;
mod output;
mod plain;
mod publish;
mod pull;
mod refusal;
mod serve;
mod session;
mod settle;
mod subscribe;

pub(crate) use self::session::session;

/// The protocol. It has no state besides what the client has begun.
#[derive(Debug)]
pub(crate) struct V1;
