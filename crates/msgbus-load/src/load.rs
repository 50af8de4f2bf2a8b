//! What a server is given to do.

use std::{rc::Rc, time::Duration};

use crate::{connection::Dial, process::Server, progress::Progress, protocol::Protocol};

/// The server under load.
#[derive(Debug, Clone)]
pub struct Target {
    /// How it is reached.
    pub dial: Rc<dyn Dial>,
    /// What it speaks.
    pub protocol: Rc<dyn Protocol>,
    /// Its processes, where they are to be measured.
    pub server: Option<Server>,
}

/// What is asked of the server.
#[derive(Debug, Clone)]
pub struct Load {
    /// Connections that publish or pull.
    pub clients: usize,
    /// The topics, which the clients share between them.
    pub topics: Vec<String>,
    /// How many messages, by all clients together.
    pub messages: u64,
    /// Ends earlier after this time.
    pub duration: Option<Duration>,
    /// The size of a payload, in bytes.
    pub size: usize,
    /// How many messages in a second, by all clients together; as many as the server takes if
    /// `None`.
    pub rate: Option<f64>,
    /// How many requests a connection has under way.
    pub pipeline: usize,
    /// How many messages a request publishes.
    pub batch: usize,
    /// Counts the operations while they are done.
    pub progress: Progress,
}
