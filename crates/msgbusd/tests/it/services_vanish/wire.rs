//! A connection of a client that may vanish.

use std::{net::SocketAddr, time::Duration};

use fastrand::Rng;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How much later than promised the server may answer on a machine under load.
pub(super) const MARGIN: Duration = Duration::from_secs(60);

pub(super) struct Wire {
    stream: TcpStream,
    bytes: Vec<u8>,
    /// What has happened on it, for the message of a failure.
    history: Vec<String>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Wire {
    pub(super) async fn connect(server: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(server).await.unwrap(),
            bytes: Vec::new(),
            history: Vec::new(),
        }
    }

    /// Sends, in two pieces.
    pub(super) async fn send(&mut self, bytes: &[u8], rng: &mut Rng) {
        let start = &bytes[..bytes.len().min(100)];
        self.history.push(format!("{} bytes: {}", bytes.len(), String::from_utf8_lossy(start)));
        let (first, rest) = bytes.split_at(rng.usize(0..=bytes.len()));
        for part in [first, rest] {
            // The server may have refused the request already.
            let _ = timeout(MARGIN, self.stream.write_all(part)).await.expect("the server reads");
        }
    }

    /// The next response, which begins within `time` and the margin.
    ///
    /// # Panics
    /// When there is none: this client is still there.
    pub(super) async fn answer(&mut self, time: Duration) -> Answer {
        let answer = timeout(time + MARGIN, self.next_answer()).await;
        let Ok(Some(answer)) = answer else {
            panic!("no answer within {time:?}, {}: {:#?}", answer.is_err(), self.history)
        };
        self.history.push(answer.head.clone());
        answer
    }

    async fn next_answer(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.take_answer() {
                return Some(answer);
            }
            if self.stream.read_buf(&mut self.bytes).await.unwrap() == 0 {
                return None;
            }
        }
    }

    fn take_answer(&mut self) -> Option<Answer> {
        let end = self.bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        let length = answer.header("Content-Length").map_or(0, |length| length.parse().unwrap());
        answer.body = self.bytes.get(end..end + length)?.to_vec();
        self.bytes.drain(..end + length);
        Some(answer)
    }

    /// Closes the sending side.
    pub(super) async fn end_sending(&mut self) {
        self.history.push("closed the sending side".to_owned());
        let _ = self.stream.shutdown().await;
    }

    /// The end of the connection, with nothing before it.
    pub(super) async fn ends(&mut self) {
        let end = timeout(MARGIN, self.next_answer()).await.expect("the connection ends");
        assert!(end.is_none() && self.bytes.is_empty());
    }

    /// Reads some of what comes within a few milliseconds, and leaves with a reset or an orderly close.
    pub(super) async fn vanish(mut self, rng: &mut Rng) {
        let time = Duration::from_micros(rng.u64(0..20_000));
        let mut some = vec![0; rng.usize(1..200)];
        if rng.bool() {
            let _ = timeout(time, self.stream.read_exact(&mut some)).await;
        }
        if rng.bool() {
            self.stream.set_zero_linger().unwrap();
        }
    }
}
