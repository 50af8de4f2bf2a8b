//! The servers of engines: how to start each of them.

use std::{net::SocketAddr, path::Path, process::Command, str::FromStr};

/// Which engine topics live in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// NATS with `JetStream`, in nats-server.
    Nats,
    /// Redis Streams, in redis-server with an append-only file.
    Redis,
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nats" => Ok(Self::Nats),
            "redis" => Ok(Self::Redis),
            other => Err(format!("{other:?} is no engine: nats or redis")),
        }
    }
}

impl EngineKind {
    /// The name of the program.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Nats => "nats-server",
            Self::Redis => "redis-server",
        }
    }

    /// Starts the server on this port, with its data in this folder. Both sync now and then.
    pub(crate) fn command(self, port: u16, folder: &Path) -> Command {
        let mut command = Command::new(self.program());
        let port = port.to_string();
        match self {
            Self::Nats => command.args(["-a", "127.0.0.1", "-p", &port, "-js", "-sd"]),
            Self::Redis => {
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", ""]);
                command.args(["--appendonly", "yes", "--dir"])
            }
        };
        command.arg(folder);
        command
    }

    pub(crate) fn url(self, address: SocketAddr) -> String {
        match self {
            Self::Nats => format!("nats://{address}"),
            Self::Redis => format!("redis://{address}"),
        }
    }
}
