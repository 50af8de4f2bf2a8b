//! Who is at the other end of a connection.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// The other end of a connection, as far as the connection says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// `None` on a unix socket.
    pub(crate) address: Option<SocketAddr>,
    /// Whether it speaks TLS, and so has seen a certificate for the name that it asked for.
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
