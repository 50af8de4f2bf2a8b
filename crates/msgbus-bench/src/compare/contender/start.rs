//! How to start each server.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{Contender, MAX_MESSAGES, Syncing, nchan_module};
use crate::{
    compare::{
        peers,
        variants::{self, Transport},
        work::TOPIC,
    },
    engines::EngineKind,
    running::{Running, address, beside},
};

impl Contender {
    /// Starts the server on a free port, and waits until it accepts connections. A bare server answers
    /// pulls with a message of `size` bytes.
    ///
    /// # Errors
    /// The server cannot be started, or does not listen.
    pub fn start(self, size: usize) -> anyhow::Result<Running> {
        let engine = self.engine().map(|kind| {
            Running::start(kind.program(), |port, folder| Ok(kind.command(port, folder)))
        });
        let engine = engine.transpose()?;
        let mut running = Running::start(self.name(), |port, folder| {
            let mut command = self.command(port, folder, size)?;
            if let (Some(kind), Some(engine)) = (self.engine(), &engine) {
                command.args(["--engine", &kind.url(engine.address())]);
            }
            Ok(command)
        })?;
        running.engine = engine.map(Box::new);
        if running.engine.is_some() {
            wait_until_ready(&running)?;
        }
        if self == Self::Nchan {
            wait_for_workers(&running)?;
        }
        if self.transport() == Transport::Unix {
            wait_for_socket(&running, variants::SOCKET)?;
        }
        if let Self::JetStream(syncing) = self {
            let storage = if syncing == Syncing::Never { "memory" } else { "file" };
            peers::create_stream(running.address(), TOPIC, storage, None)?;
        }
        if let Self::Native(EngineKind::Nats) | Self::Alone(EngineKind::Nats) = self {
            peers::create_stream(running.address(), TOPIC, "file", Some(MAX_MESSAGES))?;
        }
        Ok(running)
    }

    fn command(self, port: u16, folder: &Path, size: usize) -> anyhow::Result<Command> {
        let address = address(port).to_string();
        Ok(match self {
            Self::Msgbusd => {
                let mut command = Command::new(beside("msgbusd")?);
                command.args(["--bind", &address]);
                command
            }
            Self::With(variant) => {
                variants::write_files(folder)?;
                // The port is that of the door, if there is one.
                let own = if variant.door.is_some() { 0 } else { port };
                let mut command = Self::Msgbusd.command(own, folder, size)?;
                command.args(variant.door.iter().flat_map(|door| door.flags(self::address(port))));
                command.args(variant.flags).current_dir(folder);
                command
            }
            Self::Bare(push) => {
                let mut command = Command::new(beside("msgbus-bare")?);
                command.args(["--bind", &address, "--push", push.name()]);
                command.args(["--size", &size.to_string()]).current_dir(folder);
                command
            }
            _ => return self.peer_command(port, folder),
        })
    }

    fn peer_command(self, port: u16, folder: &Path) -> anyhow::Result<Command> {
        let address = address(port).to_string();
        Ok(match self {
            Self::Msgbusd | Self::With(_) | Self::Bare(_) => bail!("{} is no peer", self.name()),
            Self::Nchan => {
                let config = folder.join("nginx.conf");
                fs::write(&config, nginx_config(&address, folder)?)?;
                let mut command = Command::new("nginx");
                command.arg("-p").arg(folder).arg("-c").arg(config);
                command.args(["-e", "stderr"]);
                command
            }
            Self::RedisList | Self::RedisStream | Self::RedisChannel => {
                let mut command = Command::new("redis-server");
                command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
                command.args(["--save", "", "--appendonly", "no"]);
                command
            }
            Self::RedisFile(sync) => {
                let mut command = Command::new("redis-server");
                command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
                let sync = if sync == Syncing::Always { "always" } else { "everysec" };
                command.args(["--appendonly", "yes", "--appendfsync", sync, "--dir"]).arg(folder);
                command
            }
            Self::Nats | Self::NatsRequests => {
                let mut command = Command::new("nats-server");
                command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
                command
            }
            Self::JetStream(sync) => {
                let config = folder.join("nats.conf");
                fs::write(&config, nats_config(&address, folder, sync))?;
                let mut command = Command::new("nats-server");
                command.arg("-c").arg(config);
                command
            }
            Self::Native(kind) | Self::Alone(kind) => kind.command(port, folder),
            Self::Beanstalk(sync) => {
                let mut command = Command::new("beanstalkd");
                command.args(["-l", "127.0.0.1", "-p", &port.to_string()]);
                if sync != Syncing::Never {
                    command.arg("-b").arg(folder);
                }
                if sync == Syncing::Always {
                    command.args(["-f", "0"]);
                }
                command
            }
        })
    }
}

/// nginx listens before its workers run, and they need a moment to connect to each other.
fn wait_for_workers(server: &Running) -> anyhow::Result<()> {
    const WORKER_SETUP: Duration = Duration::from_millis(500);
    for _ in 0..100 {
        if !server.children()?.is_empty() {
            sleep(WORKER_SETUP);
            return Ok(());
        }
        sleep(Duration::from_millis(20));
    }
    bail!("nginx has no workers: {}", server.log())
}

/// msgbusd does not wait for its engine.
fn wait_until_ready(server: &Running) -> anyhow::Result<()> {
    for _ in 0..500 {
        let mut stream = TcpStream::connect(server.address())?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        if response.split(' ').nth(1) == Some("200") {
            return Ok(());
        }
        sleep(Duration::from_millis(20));
    }
    bail!("its engine cannot be used: {}", server.log())
}

/// msgbusd opens its listeners one after the other, so the socket may follow the TCP port.
fn wait_for_socket(server: &Running, name: &str) -> anyhow::Result<()> {
    let path = server.folder().join(name);
    for _ in 0..500 {
        if UnixStream::connect(&path).is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(20));
    }
    bail!("nothing listens on {}: {}", path.display(), server.log())
}

/// A configuration in which nchan publishes and subscribes at the same paths as msgbusd.
fn nginx_config(address: &str, folder: &Path) -> anyhow::Result<String> {
    let module = nchan_module().context("the nchan module is not installed")?;
    let folder = folder.display();
    Ok(format!(
        "load_module {module};\n\
         daemon off; pid {folder}/pid; error_log stderr; worker_processes auto;\n\
         worker_rlimit_nofile 65536;\n\
         events {{ worker_connections 32768; }}\n\
         http {{\n\
           access_log off; keepalive_requests 1000000000; client_body_temp_path {folder};\n\
           proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};\n\
           scgi_temp_path {folder}; nchan_shared_memory_size 512M;\n\
           server {{\n\
             listen {address} backlog=4096;\n\
             location / {{\n\
               nchan_pubsub websocket http; nchan_channel_id $uri;\n\
               nchan_message_buffer_length 65536; nchan_subscriber_first_message newest;\n\
             }}\n\
           }}\n\
         }}\n"
    ))
}

fn nats_config(address: &str, folder: &Path, sync: Syncing) -> String {
    let folder = folder.display();
    let sync = if sync == Syncing::Always { "sync_interval: always" } else { "" };
    format!("listen: \"{address}\"\njetstream {{ store_dir: \"{folder}/streams\"\n{sync} }}\n")
}
