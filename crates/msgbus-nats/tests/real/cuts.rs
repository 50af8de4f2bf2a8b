//! Connections that are cut while the server lives on.

use msgbus_engine_testkit::Proxy;

use super::*;

/// What the server has sent when a connection is cut is lost, and the server counts it as delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_get_everything_although_connections_are_cut() {
    for program in programs() {
        let server = Server::start(&program);
        let port = server.options().servers.rsplit_once(':').unwrap().1.parse().unwrap();
        let mut proxies = Vec::new();
        let mut buses = vec![bus(Arc::new(server.engine(server.options()).await))];
        for _ in 0..2 {
            let proxy = Proxy::to(port, Duration::from_millis(10)).await;
            let options = NatsOptions {
                servers: format!("nats://{}", proxy.address),
                publish_from: vec![Handle::current()],
                ..server.options()
            };
            buses.push(bus(Arc::new(server.engine(options).await)));
            proxies.push(proxy);
        }
        let plan = accounts::Plan {
            buses,
            topic: fresh("cut"),
            publishers: 8,
            messages: 250,
            followers: 6,
            cuts: 0,
            seed: fastrand::u64(..),
        };
        let cut = async {
            for turn in 0..12 {
                sleep(Duration::from_millis(100)).await;
                proxies[turn % 2].cut();
            }
        };
        let (report, _) = accounts::check(&plan, cut).await;
        assert_eq!((report.gaps, report.restarts), (0, 0), "nothing is gone: {report:?}");
    }
}
