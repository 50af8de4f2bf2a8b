//! Clients of other systems that never finish, never end or come slowly, at the doors for them: docs/compatibility.md.

use super::*;
use crate::support::HANDSHAKE;

const COUNT: usize = 10_000;

/// A daemon with every door, and their addresses.
struct Doors {
    daemon: Running,
    middleman: SocketAddr,
    drs: SocketAddr,
    drs_tcp: SocketAddr,
}

impl Doors {
    fn start(flags: &str) -> Self {
        let any = "127.0.0.1:0";
        let (drs, tcp) = (format!("ws://{any}"), format!("tcp://{any}"));
        let mut args = vec!["--bind", any, "--middleman", any, "--drs", &drs, "--drs", &tcp];
        args.extend(flags.split_whitespace());
        let mut daemon = Running::start(&mut msgbusd(&args));
        let mut address = |door: &str| {
            let line = daemon.logs(&format!("{door} clients are served at "));
            line.trim_end().rsplit(' ').next().unwrap().parse().unwrap()
        };
        let (middleman, drs, drs_tcp) =
            (address("middleman"), address("drs-ws"), address("drs-tcp"));
        Self { daemon, middleman, drs, drs_tcp }
    }

    /// Asserts that each door serves a new client.
    fn are_open(&self) {
        let mut old = opened(self.middleman, &frame(0x81, b"any"));
        read_until(&mut old, "MM OK");
        for (address, is_stream) in [(self.drs, false), (self.drs_tcp, true)] {
            let call = br#"{"key":"k","action":"x"}"#;
            let mut peer = if is_stream {
                opened_raw(address, call)
            } else {
                opened(address, &frame(0x81, call))
            };
            read_until(&mut peer, "No handlers for x");
        }
    }

    fn timeouts(&self, which: &str) -> usize {
        let page = self.daemon.say("GET /metrics");
        let name = format!("msgbus_server_timeouts_total{{which=\"{which}\"}} ");
        let count = page.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
        count.parse().unwrap()
    }

    /// The most memory that was in use so far, in bytes.
    fn peak(&self) -> u64 {
        let status = self.daemon.of("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

/// A connection on which these bytes were sent.
fn opened_raw(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(bytes).unwrap();
    stream
}

/// A websocket on which these bytes were sent.
fn opened(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = opened_raw(address, handshake().as_bytes());
    let head = read_until(&mut stream, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream.write_all(bytes).unwrap();
    stream
}

fn handshake() -> String {
    format!("GET /socket HTTP/1.1\r\nHost: localhost\r\n{HANDSHAKE}\r\n")
}

/// A frame of a client with this first byte, masked with zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

/// The beginning of a text frame that never ends.
fn endless_frame() -> Vec<u8> {
    [&[0x81, 0xff][..], &(1_u64 << 60).to_be_bytes(), &[0; 4]].concat()
}

#[test]
fn ten_thousand_clients_that_never_finish_hold_up_nobody_and_are_ended() {
    let limit = "--max-connections 10500 --header-timeout 20s --body-timeout 20s";
    assert!(rlimit::increase_nofile_limit(u64::MAX).unwrap() > 12_000);
    let doors = Doors::start(limit);
    let mut regulars = Regulars::of(&doors.daemon);
    doors.are_open();
    let files = doors.daemon.files().len();
    let memory = doors.daemon.memory();

    let handshake = handshake();
    let half_head = &handshake.as_bytes()[..60];
    // What they send, and which of the time limits ends them.
    let kinds: [(&str, &dyn Fn() -> TcpStream); 8] = [
        ("header", &|| opened_raw(doors.middleman, b"")),
        ("header", &|| opened_raw(doors.middleman, half_head)),
        ("header", &|| opened(doors.middleman, b"")),
        ("header", &|| opened(doors.middleman, &frame(0x81, b"half of a key")[..9])),
        ("header", &|| opened_raw(doors.drs, half_head)),
        ("body", &|| opened(doors.drs, &frame(0x81, b"{\"key\":")[..9])),
        ("body", &|| opened(doors.drs, &frame(0x81, b"{\"key\":"))),
        ("body", &|| opened_raw(doors.drs_tcp, b"{")),
    ];
    let mut flood = Vec::new();
    for number in 0..COUNT {
        flood.push(kinds[number % kinds.len()].1());
        if number % 1000 == 0 {
            regulars.are_served();
            doors.are_open();
        }
    }
    regulars.are_served();
    doors.are_open();
    for stream in &mut flood {
        let last = rest(stream);
        assert!(last.is_empty() || last.contains("did not arrive in time"), "{last}");
    }
    let of = |which| kinds.iter().filter(|(limit, _)| *limit == which).count();
    for which in ["header", "body"] {
        assert_eq!(doors.timeouts(which), of(which) * COUNT / kinds.len(), "{which}");
    }
    let grown = doors.peak().saturating_sub(memory);
    assert!(grown < 100 * MIB, "{} bytes each", grown / COUNT as u64);
    drop(flood);
    soon("files", || doors.daemon.files().len() <= files);
    doors.are_open();
}

#[test]
fn endless_messages_are_cut_and_not_buffered() {
    const AT_ONCE: usize = 4;
    let doors = Doors::start("--max-payload-size 64KiB");
    let mut regulars = Regulars::of(&doors.daemon);
    let memory = doors.daemon.memory();
    let (x, head) = ("x".repeat(1000), "GET /socket HTTP/1.1\r\nHost: localhost\r\n");
    let socket = handshake().into_bytes();
    let after = |bytes: &[u8]| [&socket[..], bytes].concat();
    let key = frame(0x81, b"any");
    let fragment = frame(0, b"more and more");
    for (what, address, opening, piece, last) in [
        ("header lines", doors.middleman, head.into(), &b"X: y\r\n"[..], "HTTP/1.1 431 "),
        ("a header line", doors.drs, format!("{head}X: ").into(), x.as_bytes(), "HTTP/1.1 431 "),
        ("a key", doors.middleman, after(&endless_frame()), x.as_bytes(), ""),
        ("parts of a key", doors.middleman, after(&frame(1, b"k")), &fragment, ""),
        (
            "a message",
            doors.middleman,
            after(&[key.clone(), endless_frame()].concat()),
            x.as_bytes(),
            "MM OK",
        ),
        (
            "parts of a message",
            doors.middleman,
            after(&[key.clone(), frame(1, b"PUB t")].concat()),
            &fragment,
            "MM OK",
        ),
        ("a frame", doors.drs, after(&endless_frame()), x.as_bytes(), "bytes are read"),
        ("parts of a frame", doors.drs, after(&frame(1, b"{")), &fragment, "bytes are read"),
        (
            "a command in frames",
            doors.drs,
            after(&frame(0x81, b"{\"body\":\"")),
            &frame(0x81, b"more and more"),
            "Command too large",
        ),
        ("a command", doors.drs_tcp, b"{\"body\":\"".to_vec(), x.as_bytes(), "Command too large"),
        ("nesting", doors.drs_tcp, b"{\"body\":".to_vec(), b"[", "nested too deeply"),
    ] {
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    let said = go_on_for_ever(address, &opening, piece);
                    // A client that still writes when it is closed may not get the last word.
                    let is_told = said.contains(last);
                    assert!(
                        is_told || said.is_empty() || said.starts_with("HTTP/1.1 101 "),
                        "{what}: {said:?}"
                    );
                });
            }
            regulars.are_served();
        });
        regulars.are_served();
        doors.are_open();
    }
    let grown = doors.daemon.memory().saturating_sub(memory);
    assert!(grown < 64 * MIB, "{grown} bytes more");
    assert!(doors.daemon.say("GET /t?since=all").len() < 4096, "nothing was published");
}

/// A byte now and then does not prolong the time for a head and a key.
#[test]
fn slow_handshakes_are_ended_although_they_go_on() {
    const EACH: usize = 100;
    let doors = Doors::start("--header-timeout 1s");
    let mut regulars = Regulars::of(&doors.daemon);
    let head = b"GET /socket HTTP/1.1\r\nX: ";
    let mut slow: Vec<TcpStream> = Vec::new();
    for _ in 0..EACH {
        slow.push(opened_raw(doors.middleman, head));
        slow.push(opened_raw(doors.drs, head));
        slow.push(opened(doors.middleman, &[0x81, 0xfe, 3, 0, 0, 0, 0, 0]));
    }
    soon("they are ended", || {
        for stream in &mut slow {
            // It may be closed.
            let _ = stream.write_all(b"x");
        }
        regulars.are_served();
        thread::sleep(Duration::from_millis(100));
        doors.timeouts("header") == 3 * EACH
    });
    for stream in &mut slow {
        assert_eq!(rest(stream), "");
    }
}
