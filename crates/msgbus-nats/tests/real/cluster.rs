//! Three servers with three replicas, whose leader is killed under load, again and again.

use async_nats::jetstream::stream::Info;

use super::*;

/// A cluster of the test's own.
struct Cluster(Vec<Server>);

impl Cluster {
    fn start(program: &Program) -> Self {
        let ports: Vec<u16> = std::iter::repeat_with(free_port).take(3).collect();
        let routes: Vec<_> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let servers = routes.iter().enumerate().map(|(number, own)| {
            let mut server = Server::new(program);
            let name = format!("n{number}");
            let arguments = ["--name", &name, "--cluster_name", "c", "--cluster", own, "--routes"];
            server.arguments = arguments.map(ToOwned::to_owned).to_vec();
            server.arguments.push(routes.join(","));
            server.run();
            server
        });
        Self(servers.collect())
    }

    fn options(&self) -> NatsOptions {
        let urls: Vec<_> = self.0.iter().map(Server::url).collect();
        NatsOptions {
            replicas: 3,
            lease: Duration::from_secs(20),
            timeout: Duration::from_secs(5),
            publish_from: vec![Handle::current()],
            ..NatsOptions::new(urls.join(","))
        }
    }

    async fn buses(&self) -> Vec<MessageBus> {
        let mut buses = Vec::new();
        for server in &self.0 {
            buses.push(bus(Arc::new(server.engine(self.options()).await)));
        }
        buses
    }

    /// What the leader of the stream says, once it has one, and all replicas have everything.
    async fn settled(&self) -> Info {
        let urls: Vec<_> = self.0.iter().map(Server::url).collect();
        let client = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let context = async_nats::jetstream::new(client.connect(urls).await.unwrap());
        loop {
            if let Ok(stream) = context.get_stream("msgbus").await {
                let info = stream.cached_info().clone();
                let cluster = info.cluster.clone().unwrap();
                let is_current = cluster.replicas.iter().all(|peer| peer.current && !peer.offline);
                if cluster.leader.is_some() && cluster.replicas.len() == 2 && is_current {
                    return info;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills the leader of the stream and starts it again, some times.
    async fn kill_leaders(&mut self, times: usize) {
        for _ in 0..times {
            let info = soon(self.settled()).await;
            sleep(Duration::from_millis(300)).await;
            let leader = info.cluster.unwrap().leader.unwrap();
            let leader: usize = leader.trim_start_matches('n').parse().unwrap();
            self.0[leader].kill();
            sleep(Duration::from_secs(2)).await;
            self.0[leader].run();
        }
        soon(self.settled()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_leaders_are_killed() {
    for program in programs() {
        let mut cluster = Cluster::start(&program);
        let buses = cluster.buses().await;
        let plan = accounts::Plan::new(buses, "cluster", 2000, 5);
        let (report, _) = accounts::check(&plan, Box::pin(cluster.kill_leaders(3))).await;
        assert_eq!(report.acknowledged, 4 * 2000 + 1);
        assert_eq!((report.gaps, report.restarts), (0, 0), "nothing is gone: {report:?}");
        let stats = until_ok(|| plan.buses[0].engine_stats(&plan.topic)).await.unwrap();
        assert!(stats.retained >= report.acknowledged as u64, "{stats:?}");
    }
}

/// A leader that is killed has not told the others of all leases that it has given. What it has confirmed, they know. (Before
/// 2.11, nats-server confirms acks before a majority knows of them.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_is_done_when_leaders_are_killed() {
    for program in programs().into_iter().filter(|program| is_current(program)) {
        let mut cluster = Cluster::start(&program);
        let plan = jobs::Plan {
            buses: cluster.buses().await,
            topic: fresh("jobs"),
            jobs: 100,
            workers: 6,
            lease: cluster.options().lease,
            failures: 4,
            keeps_leases: false,
            keeps_acks: true,
            seed: fastrand::u64(..),
        };
        let report = jobs::check(&plan, Box::pin(cluster.kill_leaders(4))).await;
        assert_eq!(report.done + report.dead, 100, "{report:?}");
    }
}
