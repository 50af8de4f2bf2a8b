//! The load for a server.

use std::{rc::Rc, time::Duration};

use crate::{connection::Connect, process::Server, progress::Progress, protocol::Protocol};

/// The server under load.
#[derive(Debug, Clone)]
pub struct Target {
    /// Opens connections to it.
    pub connector: Rc<dyn Connect>,
    /// The protocol that it speaks.
    pub protocol: Rc<dyn Protocol>,
    /// The processes to measure, if any.
    pub server: Option<Server>,
}

/// The work for the server.
#[derive(Debug, Clone)]
pub struct Load {
    /// The number of connections that publish or pull.
    pub clients: usize,
    /// The topics, which all clients use.
    pub topics: Vec<String>,
    /// The pattern that each follower of [`fan_out`](crate::fan_out) follows. It must match all topics. Without one, the
    /// followers share the topics among themselves.
    pub pattern: Option<String>,
    /// The number of messages, summed over all clients.
    pub messages: u64,
    /// Ends the run after this time even if messages are left.
    pub duration: Option<Duration>,
    /// The payload size, in bytes.
    pub size: usize,
    /// Messages per second, summed over all clients; `None` for as many as the server takes.
    pub rate: Option<f64>,
    /// The number of requests in flight on each connection.
    pub pipeline: usize,
    /// The number of messages per publish request.
    pub batch: usize,
    /// Counts the completed operations.
    pub progress: Progress,
}
