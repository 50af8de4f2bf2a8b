//! Misbehaving clients of the binary: they do not affect other clients, leave nothing behind, and memory stays bounded.
//! docs/operations.md, "Limits"; docs/protocol.md, sections 8.2 and 11.

mod doors;

use std::{
    fs,
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rlimit::Resource;

use crate::binary::{Running, msgbusd, msgbusd_of_files};

const PUT: &[u8] = b"PUT /t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi";
const MIB: u64 = 1 << 20;
/// Long enough for anything that a test waits for.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Waits until a condition holds.
fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < TEST_TIMEOUT, "it takes too long: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

impl Running {
    fn of(&self, what: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{what}", self.child.id())).unwrap()
    }

    /// Memory in use, in bytes.
    fn memory(&self) -> u64 {
        let status = self.of("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// CPU time, in hundredths of a second.
    fn work(&self) -> u64 {
        let stat = self.of("stat");
        let behind_the_name = stat.rsplit_once(") ").unwrap().1;
        let fields: Vec<&str> = behind_the_name.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Its open files, by number.
    fn files(&self) -> Vec<u64> {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        folder.map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    fn wait_for_log(&mut self, text: &str) {
        let mut log = String::new();
        while !log.contains(text) {
            assert_ne!(self.log.read_line(&mut log).unwrap(), 0, "it ended: {log}");
        }
    }

    fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// The status that a new client gets, if it gets one.
    fn health(&self) -> Option<u16> {
        let mut stream = self.connect();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .ok()?;
        let answer = rest(&mut stream);
        answer.split(' ').nth(1)?.parse().ok()
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream
}

/// Everything until the server closes or resets the connection.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Two clients that were connected before: one publishes, the other one subscribes.
struct Regulars {
    publisher: TcpStream,
    follower: TcpStream,
}

impl Regulars {
    fn of(daemon: &Running) -> Self {
        let mut follower = daemon.connect();
        follower.write_all(b"GET /t?stream=raw HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        read_until(&mut follower, "\r\n\r\n");
        let mut regulars = Self { publisher: daemon.connect(), follower };
        regulars.are_served();
        regulars
    }

    fn are_served(&mut self) {
        self.publisher.write_all(PUT).unwrap();
        let answer = read_until(&mut self.publisher, "\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        assert_eq!(read_until(&mut self.follower, "hi\n\r\n"), "3\r\nhi\n\r\n");
    }
}

fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with(end) {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0].into());
    }
    text
}

#[test]
fn without_file_descriptors_open_connections_are_served_and_new_ones_later() {
    const FREE_FILES: usize = 8;
    let mut daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--threads", "2"]));
    let mut regulars = Regulars::of(&daemon);
    let files = daemon.files();
    // However many files it has inherited, this many numbers below the limit are free.
    let most = (0..).filter(|number| !files.contains(number)).nth(FREE_FILES).unwrap();
    let id = i32::try_from(daemon.child.id()).unwrap();
    rlimit::prlimit(id, Resource::NOFILE, Some((most, most)), None).unwrap();

    let start = Instant::now();
    let flood: Vec<_> = (0..4 * FREE_FILES).map(|_| daemon.connect()).collect();
    daemon.wait_for_log("cannot accept connections for now");
    let before = daemon.work();
    for _ in 0..20 {
        regulars.are_served();
        thread::sleep(Duration::from_millis(50));
    }
    let worked = daemon.work() - before;
    // A busy loop works all the time.
    assert!(worked < 50, "{worked} hundredths of a second of work in one that was quiet");

    drop(flood);
    assert_eq!(daemon.health(), Some(200));
    regulars.are_served();
    daemon.signal("-KILL");
    let mut log = String::new();
    daemon.log.read_to_string(&mut log).unwrap();
    let told = log.matches("cannot accept").count() as u64;
    assert!(told <= start.elapsed().as_secs() / 5 + 1, "not ten times a second: {log}");
}

#[test]
fn a_flood_of_idle_connections_is_refused_before_file_descriptors_run_out() {
    let args = "--threads 1 --header-timeout 2s";
    let mut daemon = Running::start(&mut msgbusd_of_files(128, args));
    let mut regulars = Regulars::of(&daemon);
    let (memory, files) = (daemon.memory(), daemon.files().len());
    let mut flood: Vec<_> = (0..400).map(|_| daemon.connect()).collect();
    regulars.are_served();
    let grown = daemon.memory().saturating_sub(memory);
    assert!(grown < 16 * MIB, "{grown} bytes more");

    let mut told = 0;
    for silent in &mut flood {
        let answer = rest(silent);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
        told += usize::from(!answer.is_empty());
        regulars.are_served();
    }
    assert!((1..400).contains(&told), "{told} have been told");
    drop(flood);
    soon("a free file", || daemon.health() == Some(200));
    soon("files", || daemon.files().len() <= files);
    daemon.signal("-TERM");
    let mut log = String::new();
    daemon.log.read_to_string(&mut log).unwrap();
    assert!(!log.contains("cannot accept"), "{log}");
}

#[test]
fn incomplete_requests_leave_nothing_behind() {
    let deadlines = ["--header-timeout", "--body-timeout", "--idle-timeout", "--write-timeout"];
    let mut command = msgbusd(&["--bind", "127.0.0.1:0"]);
    command.args(deadlines.iter().flat_map(|deadline| [deadline, "1s"]));
    let daemon = Running::start(&mut command);
    let files = daemon.files().len();
    // The publisher is idle for too long meanwhile, and has to connect again.
    let mut regulars = Regulars::of(&daemon);

    let head = "GET /half HTTP/1.1\r\nHost: localhost\r\n";
    let websocket = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let parts = [
        String::new(),
        "G".to_owned(),
        head.to_owned(),
        "PUT /half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhal".to_owned(),
        "PUT /half HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal"
            .to_owned(),
        format!("{head}\r\n"),
        "GET /half?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /half?stream=sse HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        format!("{head}{websocket}"),
        format!("{head}{websocket}\u{1}"),
    ];
    let mut waiting = Vec::new();
    for part in &parts {
        for shutdown in [None, Some(Shutdown::Write), Some(Shutdown::Both)] {
            for _ in 0..5 {
                let mut stream = daemon.connect();
                stream.write_all(part.as_bytes()).unwrap();
                match shutdown {
                    Some(how) => {
                        // The server may have been faster.
                        let _ = stream.shutdown(how);
                        waiting.push(stream);
                    }
                    // Clients that may be silent stay connected until they leave.
                    None if part.contains('?') || part.contains("Upgrade") => {}
                    None => waiting.push(stream),
                }
            }
        }
    }
    for stream in &mut waiting {
        rest(stream);
    }
    drop(waiting);
    soon("files", || daemon.files().len() <= files + 1);
    assert!(daemon.say("GET /half").starts_with("HTTP/1.1 404 "), "nothing was published");
    regulars.publisher = daemon.connect();
    regulars.are_served();
}

/// Sends the piece repeatedly until the server refuses more, and returns its response.
fn go_on_for_ever(address: SocketAddr, opening: &[u8], piece: &[u8]) -> String {
    const MOST: usize = 256 << 20;
    let mut stream = connect(address);
    let mut listener = stream.try_clone().unwrap();
    let heard = thread::spawn(move || rest(&mut listener));
    let piece = piece.repeat((16 << 10) / piece.len());
    let mut said = 0;
    if stream.write_all(opening).is_ok() {
        while stream.write_all(&piece).is_ok() {
            said += piece.len();
            assert!(said < MOST, "{said} bytes of {:?} are taken", &piece[..10]);
        }
    }
    heard.join().unwrap()
}

#[test]
fn endless_requests_are_cut_and_not_buffered() {
    const AT_ONCE: usize = 4;
    let args = ["--bind", "127.0.0.1:0", "--max-payload-size", "64KiB"];
    let daemon = Running::start(&mut msgbusd(&args));
    let mut regulars = Regulars::of(&daemon);
    let memory = daemon.memory();
    let head = "GET /endless HTTP/1.1\r\nHost: localhost\r\n";
    let body = "PUT /endless HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let x = "x".repeat(1000);
    for (what, opening, piece, status) in [
        ("header lines", head.to_owned(), "X: y\r\n", "431"),
        ("a header line", format!("{head}X: "), &x[..], "431"),
        ("a target", "GET /".to_owned(), &x, "431"),
        ("a method", String::new(), &x, "431"),
        ("nonsense", String::new(), "\u{1}\u{2}\u{3}", "400"),
        ("chunks", body.to_owned(), "10\r\n0123456789abcdef\r\n", "413"),
        ("tiny chunks", body.to_owned(), "1\r\nx\r\n", "413"),
        ("a chunk's extension", format!("{body}5;"), &x, "400"),
        ("a chunk's length", body.to_owned(), "f", "400"),
        ("trailers", format!("{body}0\r\n"), "X: y\r\n", "400"),
    ] {
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    let answer =
                        go_on_for_ever(daemon.address, opening.as_bytes(), piece.as_bytes());
                    let expected = format!("HTTP/1.1 {status} ");
                    assert!(answer.starts_with(&expected), "{what}: {answer:?}");
                });
            }
            regulars.are_served();
        });
        regulars.are_served();
    }
    let grown = daemon.memory().saturating_sub(memory);
    assert!(grown < 64 * MIB, "{grown} bytes more");
    assert!(daemon.say("GET /endless").starts_with("HTTP/1.1 404 "), "nothing was published");
}

#[test]
fn a_head_has_at_most_100_headers() {
    let daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0"]));
    for (others, status) in [(98, "200"), (99, "431")] {
        let headers = "X: y\r\n".repeat(others);
        let mut stream = daemon.connect();
        let request = format!(
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let answer = rest(&mut stream);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{others}: {answer}");
    }
}

#[test]
fn other_protocols_on_the_port_are_refused() {
    let daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0"]));
    let mut regulars = Regulars::of(&daemon);
    for (what, status, hello) in [
        ("TLS", "HTTP/1.1 400", &b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\0\r\n\r\n"[..]),
        ("HTTP/2", "", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("SSH", "HTTP/1.1 400", b"SSH-2.0-OpenSSH_10.0\r\n"),
        ("SMTP", "HTTP/1.1 400", b"EHLO a\r\n"),
        ("Redis", "HTTP/1.1 400", b"*1\r\n$4\r\nPING\r\n"),
        ("zeros", "HTTP/1.1 400", &[0; 1000]),
    ] {
        let mut stream = daemon.connect();
        stream.write_all(hello).unwrap();
        let answer = rest(&mut stream);
        assert_eq!(answer.get(..12).unwrap_or_default(), status, "{what}: {answer}");
        regulars.are_served();
    }
}

/// Each reader keeps only its own response in memory.
#[test]
fn readers_that_stall_on_large_responses_are_cut_and_their_memory_is_freed() {
    const GREEDY: usize = 10;
    let daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--write-timeout", "1s"]));
    let payload = "x".repeat(1 << 20);
    for _ in 0..8 {
        let mut stream = daemon.connect();
        let head =
            format!("PUT /large HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", 1 << 20);
        stream.write_all(format!("{head}Connection: close\r\n\r\n{payload}").as_bytes()).unwrap();
        assert!(rest(&mut stream).starts_with("HTTP/1.1 202 "));
    }
    let mut regulars = Regulars::of(&daemon);
    let (memory, files) = (daemon.memory(), daemon.files().len());
    let greedy: Vec<_> = (0..GREEDY)
        .map(|_| {
            let mut stream = daemon.connect();
            let pull = "GET /large?peek&max=100 HTTP/1.1\r\nHost: localhost\r\n\r\n";
            stream.write_all(pull.repeat(3).as_bytes()).unwrap();
            stream
        })
        .collect();
    let mut most = 0;
    soon("they are cut", || {
        regulars.are_served();
        most = most.max(daemon.memory().saturating_sub(memory));
        daemon.files().len() <= files
    });
    drop(greedy);
    let answer = 8 * MIB * 4 / 3 + MIB;
    assert!(most < GREEDY as u64 * answer * 3 / 2, "{} MiB more", most / MIB);
}
