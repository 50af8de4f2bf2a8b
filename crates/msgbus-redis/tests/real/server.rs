//! What tests need of a server of Redis or Valkey beyond running it.

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use msgbus_core::engine::Engine as _;
pub(crate) use msgbus_engine_testkit::server::{Server, free_port};
use msgbus_engine_testkit::{
    SOON,
    server::{Kind, Program},
};
use msgbus_redis::{RedisEngine, RedisOptions};
use redis::{Value, aio::MultiplexedConnection};

/// The name of connections that no engine has made.
const TEST: &str = "test";

/// The servers to test with.
pub(crate) fn programs() -> Vec<Program> {
    Kind::Redis.programs()
}

/// A server of Redis or Valkey.
pub(crate) trait Redis {
    /// The log of writes.
    fn log(&self) -> PathBuf;

    /// The size of the log of writes, in bytes.
    fn log_size(&self) -> u64 {
        self.log().metadata().unwrap().len()
    }

    /// Takes the end of the log of writes away. It must not be running.
    fn cut_log(&self, size: u64);

    fn options(&self) -> RedisOptions;

    /// An engine that is connected.
    async fn engine(&self, options: RedisOptions) -> RedisEngine;

    /// A connection of another client.
    async fn client(&self) -> MultiplexedConnection;

    /// What the server answers to a command.
    async fn ask(&self, command: &str) -> Value;

    /// The text that the server answers to a command.
    async fn read(&self, command: &str) -> String;

    /// The numbers of the connections of clients other than [`client`](Self::client).
    async fn connections(&self) -> HashSet<String>;
}

impl Redis for Server {
    fn log(&self) -> PathBuf {
        let logs = std::fs::read_dir(self.directory().join("appendonlydir")).unwrap();
        let mut logs = logs.map(|entry| entry.unwrap().path());
        let is_log = |path: &PathBuf| path.extension().is_some_and(|end| end == "aof");
        logs.find(|path| is_log(path) && path.to_string_lossy().contains(".incr.")).unwrap()
    }

    fn cut_log(&self, size: u64) {
        assert!(!self.is_running());
        std::fs::OpenOptions::new().write(true).open(self.log()).unwrap().set_len(size).unwrap();
    }

    fn options(&self) -> RedisOptions {
        RedisOptions { timeout: Duration::from_secs(10), ..RedisOptions::new(self.url()) }
    }

    async fn engine(&self, options: RedisOptions) -> RedisEngine {
        let engine = RedisEngine::connect(options).unwrap();
        let start = Instant::now();
        let topic = "warm/up".parse().unwrap();
        while let Err(error) = engine.stats(&topic).await {
            assert!(start.elapsed() < SOON, "no connection: {error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        engine
    }

    async fn client(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        let start = Instant::now();
        loop {
            let config = redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(SOON))
                .set_response_timeout(Some(SOON));
            match client.get_multiplexed_async_connection_with_config(&config).await {
                Ok(mut connection) => {
                    let mut name = redis::cmd("CLIENT");
                    name.arg("SETNAME").arg(TEST);
                    name.exec_async(&mut connection).await.unwrap();
                    return connection;
                }
                Err(error) => assert!(start.elapsed() < SOON, "no connection: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ask(&self, command: &str) -> Value {
        let mut words = command.split(' ');
        let mut request = redis::cmd(words.next().unwrap());
        request.arg(words.collect::<Vec<_>>());
        request.query_async(&mut self.client().await).await.unwrap()
    }

    async fn read(&self, command: &str) -> String {
        text(self.ask(command).await)
    }

    async fn connections(&self) -> HashSet<String> {
        let list = self.read("CLIENT LIST").await;
        // The server may not have noticed yet that one has left.
        let own = format!(" name={TEST} ");
        let others = list.lines().filter(|line| !line.contains(&own));
        others.map(|line| line.split_whitespace().next().unwrap().replace("id=", "")).collect()
    }
}

pub(crate) fn text(value: Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).unwrap(),
        Value::VerbatimString { text, .. } => text,
        other => panic!("{other:?}"),
    }
}
