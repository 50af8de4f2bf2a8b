//! The servers: an engine, and two msgbusd whose topics live in it.

use std::{
    cell::{Cell, RefCell},
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep};

use super::{super::raw_client::Endpoint, topics};
use crate::{
    compare::contender::{Contender, Syncing},
    engines::EngineKind,
    running::{Running, beside},
};

const NODES: usize = 2;

pub(super) struct Cluster {
    pub(super) kind: EngineKind,
    engine: RefCell<Running>,
    nodes: Vec<RefCell<Running>>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) engine_address: SocketAddr,
    /// When the engine was last restarted.
    restarted: Cell<Option<Instant>>,
    /// When the engine was last killed.
    killed: Cell<Option<Instant>>,
}

impl Cluster {
    pub(super) fn start(kind: EngineKind) -> anyhow::Result<Self> {
        if kind == EngineKind::Nats && Contender::JetStream(Syncing::Always).version().is_none() {
            bail!(
                "nats-server 2.10 or later is needed: older ones forget acks when they are stopped"
            );
        }
        let engine = Running::start(kind.program(), |port, folder| {
            let mut command = kind.command(port, folder);
            if kind == EngineKind::Redis {
                // What is killed forgets nothing then.
                command.args(["--appendfsync", "always"]);
            }
            Ok(command)
        })?;
        let url = kind.url(engine.address());
        let node = |_| Running::start("msgbusd", |port, folder| node(port, folder, &url));
        let nodes: Vec<_> = (0..NODES).map(node).collect::<anyhow::Result<_>>()?;
        Ok(Self {
            kind,
            engine_address: engine.address(),
            engine: RefCell::new(engine),
            endpoints: nodes
                .iter()
                .map(|node| Endpoint { address: node.address(), tls: None })
                .collect(),
            nodes: nodes.into_iter().map(RefCell::new).collect(),
            restarted: Cell::default(),
            killed: Cell::default(),
        })
    }

    /// Ends the engine, and starts it again after a pause.
    pub(super) async fn restart_engine(
        &self,
        is_kill: bool,
        pause: Duration,
    ) -> anyhow::Result<()> {
        restart(&self.engine, is_kill, pause).await?;
        let now = Some(Instant::now());
        self.restarted.set(now);
        if is_kill {
            self.killed.set(now);
        }
        Ok(())
    }

    /// Ends a msgbusd, and starts it again after a pause.
    pub(super) async fn restart_node(
        &self,
        node: usize,
        is_kill: bool,
        pause: Duration,
    ) -> anyhow::Result<()> {
        restart(&self.nodes[node % self.nodes.len()], is_kill, pause).await
    }

    /// Whether the engine may have forgotten an ack of this time: nats-server writes acks a little later than it answers.
    pub(super) fn may_have_forgotten(&self, time: Instant) -> bool {
        self.kind == EngineKind::Nats && self.killed.get().is_some_and(|killed| killed >= time)
    }

    /// Whether messages that were deleted at this time may be there again: nats-server may forget a part of a purge when it
    /// is killed.
    pub(super) fn may_have_revived(&self, deleted: Instant) -> bool {
        self.kind == EngineKind::Nats && self.killed.get().is_some_and(|killed| killed >= deleted)
    }

    /// How long ago the engine was restarted, and killed.
    pub(super) fn since_restarts(&self) -> String {
        let ago = |time: &Cell<Option<Instant>>| time.get().map(|time| time.elapsed());
        format!(
            "engine restarted {:?} ago, killed {:?} ago",
            ago(&self.restarted),
            ago(&self.killed)
        )
    }

    /// Whether the engine may have ended a lease of this time early: nats-server writes when it was given in whole seconds.
    pub(super) fn may_have_shortened(&self, time: Instant) -> bool {
        self.kind == EngineKind::Nats && self.restarted.get().is_some_and(|last| last >= time)
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.borrow().pid()).collect()
    }

    /// The logs of all servers.
    pub(super) fn log(&self) -> String {
        self.nodes.iter().map(|node| node.borrow().log()).collect::<Vec<_>>().join("\n---\n")
    }

    /// Stops all msgbusd. Returns those that have not stopped cleanly.
    pub(super) fn stop(&self) -> Vec<(Option<ExitStatus>, String)> {
        let ends = self.nodes.iter().map(|node| {
            let mut node = node.borrow_mut();
            (node.stop(), node.log())
        });
        ends.filter(|(status, _)| !status.is_some_and(|status| status.success())).collect()
    }
}

fn node(port: u16, folder: &Path, url: &str) -> anyhow::Result<Command> {
    let config = folder.join("soak.toml");
    fs::write(&config, topics::config(url))?;
    let mut command = Command::new(beside("msgbusd")?);
    command.arg("--bind").arg(format!("127.0.0.1:{port}")).arg("--config").arg(config);
    Ok(command)
}

async fn restart(server: &RefCell<Running>, is_kill: bool, pause: Duration) -> anyhow::Result<()> {
    /// Longer than the drain of msgbusd.
    const TIMEOUT: Duration = Duration::from_secs(30);
    server.borrow_mut().end(is_kill)?;
    let begin = Instant::now();
    while server.borrow_mut().status()?.is_none() {
        if begin.elapsed() > TIMEOUT {
            bail!("a server does not stop: {}", server.borrow().log());
        }
        sleep(Duration::from_millis(10)).await;
    }
    sleep(pause).await;
    server.borrow_mut().start_again().context("a server does not start again")
}
