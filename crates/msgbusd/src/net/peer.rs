//! The peer of a connection.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// What the server knows about the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// `None` on a unix socket.
    pub(crate) address: Option<SocketAddr>,
    /// Whether the connection uses TLS. A browser has then verified a certificate for the name that it asked for.
    pub(crate) has_tls: bool,
}

impl Peer {
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.address.map(|address| address.ip())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}
