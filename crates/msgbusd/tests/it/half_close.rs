//! docs/protocol.md, 1.7: clients that close their sending side after their requests, like `nc -N`, socat and ncat.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};

use crate::{
    support::{Daemon, soon},
    tls::Files,
};

const PUT: &str = "PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
const GET: &str = "GET /t HTTP/1.1\r\nHost: a\r\n\r\n";
const TIMES: usize = 1000;
/// At a time.
const CLIENTS: usize = 10;

/// Sends a text, closes its side at once, and reads the response.
async fn say(daemon: &Daemon, text: &str) -> String {
    say_to(TcpStream::connect(daemon.address).await.unwrap(), text).await
}

async fn say_to(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

/// Sends the same text a thousand times, and expects the same status.
async fn each_is_answered(daemon: &Daemon, text: &'static str, status: &str) {
    let address = daemon.address;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let mut answers = Vec::new();
            for _ in 0..TIMES / CLIENTS {
                answers.push(say_to(TcpStream::connect(address).await.unwrap(), text).await);
            }
            answers
        });
    }
    let answers = clients.join_all().await.concat();
    let start = format!("HTTP/1.1 {status} ");
    let wrong = answers.iter().filter(|answer| !answer.starts_with(&start)).count();
    assert_eq!((answers.len(), wrong), (TIMES, 0));
}

/// Publishes to another topic for as long as the test runs.
fn load(daemon: &Daemon) -> JoinHandle<()> {
    let address = daemon.address;
    tokio::spawn(async move {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let requests = PUT.replace("/t", "/load").repeat(16);
        let mut answers = vec![0; 64 << 10];
        loop {
            connection.write_all(requests.as_bytes()).await.unwrap();
            assert!(connection.read(&mut answers).await.unwrap() > 0);
        }
    })
}

#[tokio::test]
async fn a_thousand_publishes_and_pulls_are_all_answered() {
    for with_load in [false, true] {
        let daemon = Daemon::on_threads(2, |_| {});
        let load = with_load.then(|| load(&daemon));
        each_is_answered(&daemon, PUT, "202").await;
        assert_eq!(daemon.bus.topic(&"t".parse().unwrap()).unwrap().retained, TIMES as u64);
        each_is_answered(&daemon, GET, "200").await;
        assert_eq!(daemon.bus.topic(&"t".parse().unwrap()).unwrap().unpulled, 0);
        if let Some(load) = load {
            assert!(!load.is_finished());
            load.abort();
        }
    }
}

#[tokio::test]
async fn requests_in_a_row_are_all_answered() {
    let daemon = Daemon::on_threads(2, |_| {});
    for count in [2, 16, 17, 100] {
        let answers = say(&daemon, &(PUT.repeat(count) + &GET.repeat(count))).await;
        assert_eq!(answers.matches("HTTP/1.1 202 ").count(), count);
        assert_eq!(answers.matches("HTTP/1.1 200 ").count(), count);
    }
}

#[tokio::test]
async fn an_incomplete_request_is_not_executed() {
    let daemon = Daemon::start();
    for part in ["GET /t HT", "PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhi"] {
        let answers = say(&daemon, &(PUT.to_owned() + part)).await;
        assert_eq!(answers.matches("HTTP/1.1 202 ").count(), 1, "{answers}");
    }
    assert_eq!(daemon.bus.stats().counters.published, 2);
}

#[tokio::test]
async fn a_response_does_not_wait_for_the_rest_of_the_next_request() {
    let daemon = Daemon::start();
    for behind in ["GET /t HT", "PUT /t HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhi"] {
        let mut connection = daemon.connect().await;
        connection.write((PUT.to_owned() + behind).as_bytes()).await;
        assert!(connection.read_until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 202 "));
    }
    let mut connection = daemon.connect().await;
    let waits = "GET /empty?wait=60s HTTP/1.1\r\nHost: a\r\n\r\n";
    connection.write((PUT.to_owned() + waits + PUT).as_bytes()).await;
    assert!(connection.read_until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 202 "));
}

#[tokio::test]
async fn half_close_works_on_unix_sockets_and_with_tls() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new();
    let path = folder.path().join("socket");
    let daemon = Daemon::with(|config| {
        config.certificate = Some(files.config());
        config.bind.push(msgbusd::Bind::Unix(path.clone()));
    });
    for _ in 0..100 {
        let answer = say_to(UnixStream::connect(&path).await.unwrap(), PUT).await;
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        let answers = say_to(files.connect(&daemon, "").await, &PUT.repeat(3)).await;
        assert_eq!(answers.matches("HTTP/1.1 202 ").count(), 3, "{answers}");
    }
}

#[tokio::test]
async fn a_waiting_request_gets_what_is_there_and_then_ends() {
    let daemon = Daemon::start();
    let start = Instant::now();
    let waits = "GET /t?wait=60s HTTP/1.1\r\nHost: a\r\n\r\n";
    daemon.put("/t", "there").await;
    let answers = say(&daemon, &waits.repeat(3)).await;
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 1, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 204 ").count(), 2, "{answers}");
    for form in ["sse", "ndjson", "raw"] {
        let follows = format!("GET /t?stream={form}&since=all HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = say(&daemon, &follows).await;
        assert!(answer.ends_with("\r\n0\r\n\r\n"), "it ends as it should: {answer}");
        assert!(answer.contains(if form == "raw" { "there" } else { "dGhlcmU=" }), "{answer}");
    }
    let mut follows = daemon.raw_websocket("/t").await;
    follows.0.shutdown().await.unwrap();
    follows.rest().await;
    assert!(start.elapsed() < Duration::from_secs(30), "nothing has waited for its end");
}

#[tokio::test]
async fn a_client_that_disconnects_later_takes_nothing_either() {
    let daemon = Daemon::start();
    let mut waiting = daemon.connect().await;
    let waits = "GET /t?wait=60s HTTP/1.1\r\nHost: a\r\n\r\n";
    waiting.write(waits.as_bytes()).await;
    let topic = "t".parse().unwrap();
    soon(async {
        while daemon.bus.topic(&topic).is_none_or(|topic| topic.waiters == 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    waiting.0.shutdown().await.unwrap();
    let answer = timeout(Duration::from_secs(50), waiting.rest()).await.expect("at once");
    assert!(answer.starts_with(b"HTTP/1.1 204 "));
    daemon.put("/t", "x").await;
    assert_eq!(daemon.get("/t").await.status, 200, "it is for the next one");
}
