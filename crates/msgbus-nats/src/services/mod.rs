//! Requests to services at other nodes.
//!
//! A node that serves a service answers who looks for one with an address of its own, to which the request is sent. So a
//! request is sent to one node at most, which certainly listens; one that is away, or whose responders have left, costs
//! its requester another look. First any node is asked, and if no responder waits there, all are.

mod ask;
mod outcome;
mod serve;

use msgbus_core::TopicName;

pub(crate) use self::{
    ask::{is_served, request},
    serve::{Serving, finish, serve},
};
use crate::{connection::Connection, subject::subject};

/// The queue group of nodes.
const GROUP: &str = "msgbus";
/// Asks for the address of a node.
const FIND: &str = "Msgbus-Find";
/// The address of a node, and whether a responder waits there.
const SERVER: &str = "Msgbus-Server";
const FREE: &str = "Msgbus-Free";
/// The node has no room for the request. It has no address then.
const FULL: &str = "Msgbus-Full";
/// How long the requester still waits, in milliseconds.
const TIMEOUT: &str = "Msgbus-Timeout";
/// Another responder may get the request.
const RETRY: &str = "Msgbus-Retry";
/// The name of a request, by which it can be taken back.
const REQUEST: &str = "Msgbus-Request";
/// Takes back the request of this name.
const CANCEL: &str = "Msgbus-Cancel";
/// What became of a request. Without it, it is a reply.
const OUTCOME: &str = "Msgbus-Outcome";

/// Whom a question is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// Any node that serves the service.
    Any,
    /// All of them. The one that suits best answers first.
    All,
}

/// Where nodes are looked for. Not below the prefix: the stream would keep it.
fn question_subject(connection: &Connection, service: &TopicName, whom: Whom) -> String {
    let kind = match whom {
        Whom::Any => "services",
        Whom::All => "servers",
    };
    subject(&format!("{}-{kind}", connection.options.prefix), service)
}
