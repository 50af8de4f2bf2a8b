//! What the system holds of a TCP connection on this machine, at both ends. Linux only.

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

/// The queues of one end of a connection, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queues {
    /// Written by this end, and not yet acknowledged by the system of the other end.
    unacknowledged: u64,
    /// Arrived at this end, and not yet read.
    unread: u64,
    /// Whether the system waits until the other end has space.
    is_blocked: bool,
}

impl Queues {
    /// The queues of the end at `local` of the connection to `remote`.
    ///
    /// # Errors
    /// The connection does not exist, or the system does not report it.
    pub(super) fn of(local: SocketAddr, remote: SocketAddr) -> io::Result<Self> {
        let table = fs::read_to_string("/proc/net/tcp")?;
        let line = table.lines().find_map(|line| Self::parse(line, local, remote));
        line.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Parses a line of `/proc/net/tcp`. `None` if it is not about this end.
    fn parse(line: &str, local: SocketAddr, remote: SocketAddr) -> Option<Self> {
        /// The timer that probes whether the other end has space again.
        const ZERO_WINDOW_PROBE: &str = "04";
        let mut fields = line.split_whitespace().skip(1);
        if (address(fields.next()?)?, address(fields.next()?)?) != (local, remote) {
            return None;
        }
        let (unacknowledged, unread) = fields.nth(1)?.split_once(':')?;
        let (timer, _) = fields.next()?.split_once(':')?;
        Some(Self {
            unacknowledged: u64::from_str_radix(unacknowledged, 16).ok()?,
            unread: u64::from_str_radix(unread, 16).ok()?,
            is_blocked: timer == ZERO_WINDOW_PROBE,
        })
    }
}

/// Parses an address and a port, both in hexadecimal. The bytes of the address are in the order of the network, printed
/// as one number of this machine.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(address), port).into())
}

impl fmt::Display for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unacknowledged, unread, is_blocked } = self;
        write!(f, "{unacknowledged} bytes not acknowledged, {unread} not read")?;
        f.write_str(if *is_blocked { ", waiting for space" } else { "" })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn written_bytes_are_unread_at_the_other_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let stream = TcpStream::connect(server).unwrap();
        let client = stream.local_addr().unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(b"unread").unwrap();
        let queues = |local, remote| loop {
            let queues = Queues::of(local, remote).unwrap();
            if queues.unacknowledged == 0 {
                return queues.to_string();
            }
        };
        assert_eq!(queues(server, client), "0 bytes not acknowledged, 0 not read");
        assert_eq!(queues(client, server), "0 bytes not acknowledged, 6 not read");
        drop(listener);
        assert!(Queues::of(client, client).is_err());
    }

    #[test]
    fn a_blocked_end_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let stream = TcpStream::connect(server).unwrap();
        let client = stream.local_addr().unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        loop {
            while accepted.write(&[0; 4 << 10]).is_ok() {}
            let queues = Queues::of(server, client).unwrap();
            if queues.is_blocked {
                assert!(queues.unacknowledged > 0 && queues.to_string().ends_with("for space"));
                return;
            }
        }
    }
}
