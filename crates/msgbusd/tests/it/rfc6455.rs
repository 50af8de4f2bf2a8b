//! RFC 6455, sections 5 to 7, with handwritten frames on raw sockets, and sections 6.7 to 6.9 of protocol.md.
//!
//! Autobahn's fuzzing client needs a server that echoes; this one ignores data from clients.

use std::str;

use crate::support::{Connection, Daemon, HANDSHAKE, frame_length, soon};

// The first bytes of frames.
pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;
pub(crate) const FIRST_OF_TEXT: u8 = 0x01;
const FIRST_OF_BINARY: u8 = 0x02;
pub(crate) const NEXT: u8 = 0x00;
pub(crate) const LAST: u8 = 0x80;

/// The maximum size of a frame and of a message that the server reads.
const LARGEST: usize = 64 << 10;

/// A frame of a client.
pub(crate) fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    frame_of_length(first, &frame_length(payload.len()), payload)
}

/// A frame with a given encoding of its length.
pub(crate) fn frame_of_length(first: u8, length: &[u8], payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let masked = payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    let mut frame = vec![first, length[0] | 0x80];
    frame.extend_from_slice(&length[1..]);
    frame.extend_from_slice(&MASK);
    frame.extend(masked);
    frame
}

pub(crate) fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(CLOSE, [&code.to_be_bytes(), reason].concat())
}

/// Asserts that a client that sends this is closed with this code: by a topic, and by `msgbus.v1`, which may answer first.
async fn is_closed(daemon: &Daemon, said: &[u8], code: u16, what: &str) {
    is_closed_by_topic(daemon, said, code, what).await;
    let mut connection = daemon.raw_v1().await;
    connection.write(said).await;
    let payload = loop {
        match connection.frame().await {
            (CLOSE, payload) => break payload,
            (first, _) => assert_eq!(first, TEXT, "{what}"),
        }
    };
    assert_eq!(payload[..2], code.to_be_bytes(), "{what}");
    assert_eq!(connection.rest().await, b"", "{what}");
}

/// Asserts that a subscriber that sends this is closed with this code, and receives nothing else.
async fn is_closed_by_topic(daemon: &Daemon, said: &[u8], code: u16, what: &str) {
    let mut connection = daemon.raw_websocket("/t").await;
    connection.write(said).await;
    let heard = connection.rest().await;
    assert!(heard.len() >= 4 && heard[0] == CLOSE, "{what}: {heard:x?}");
    assert_eq!(u16::from_be_bytes([heard[2], heard[3]]), code, "{what}");
    assert_eq!(usize::from(heard[1]), heard.len() - 2, "{what}: one close frame: {heard:x?}");
    assert!(heard[1] <= 125 && str::from_utf8(&heard[4..]).is_ok(), "{what}: {heard:x?}");
}

/// Asserts that a client that sends this receives these pongs, and keeps receiving messages.
async fn is_served(daemon: &Daemon, said: &[u8], pongs: &[&[u8]], what: &str) {
    let mut connection = daemon.raw_websocket("/t?raw").await;
    connection.write(said).await;
    connection.write(&frame(PING, "still there?")).await;
    for pong in pongs.iter().chain([&&b"still there?"[..]]) {
        assert_eq!(connection.frame().await, (PONG, pong.to_vec()), "{what}");
    }
    daemon.put("/t", what).await;
    assert_eq!(connection.frame().await, (BINARY, what.into()), "{what}");
}

/// Asserts that other clients have not affected this one.
async fn still_receives(daemon: &Daemon, bystander: &mut Connection) {
    gone(daemon, 1).await;
    daemon.put("/t", "to the bystander").await;
    while bystander.frame().await != (BINARY, "to the bystander".into()) {}
}

/// Waits until only this many subscriptions are left.
async fn gone(daemon: &Daemon, left: usize) {
    soon(async {
        while daemon.bus.stats().subscribers > left {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn frames_that_break_the_protocol_are_closed_with_1002() {
    let daemon = Daemon::start();
    let mut bystander = daemon.raw_websocket("/t?raw").await;
    // 5.2: no extension gives the reserved bits a meaning.
    for bit in [0x40, 0x20, 0x10, 0x70] {
        for first in [TEXT, BINARY, PING, PONG, CLOSE, FIRST_OF_TEXT] {
            is_closed(&daemon, &frame(first | bit, ""), 1002, &format!("{first:x} {bit:x}")).await;
        }
    }
    // 5.2: nor the reserved opcodes.
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        for first in [opcode, 0x80 | opcode] {
            for payload in ["", "hi"] {
                let what = format!("opcode {first:x} {payload}");
                is_closed(&daemon, &frame(first, payload), 1002, &what).await;
            }
        }
    }
    for (what, said) in [
        // 5.1: clients mask.
        ("an empty text, not masked", b"\x81\0".to_vec()),
        ("a text, not masked", b"\x81\x02hi".to_vec()),
        ("a ping, not masked", b"\x89\x02hi".to_vec()),
        ("a close, not masked", b"\x88\x02\x03\xe8".to_vec()),
        ("one behind a good one", [frame(TEXT, "hi"), b"\x82\x01x".to_vec()].concat()),
        // 5.5: control frames are short, and whole.
        ("a ping of 126 bytes", frame(PING, [0; 126])),
        ("a pong of 126 bytes", frame(PONG, [0; 126])),
        ("a close of 126 bytes", close(1000, &[b'x'; 124])),
        ("a ping of 65536 bytes", frame(PING, vec![0; LARGEST])),
        ("half a ping", frame(PING & 0x7f, "hi")),
        ("half a pong", frame(PONG & 0x7f, "hi")),
        ("half a close", frame(CLOSE & 0x7f, b"\x03\xe8")),
        // 5.4: fragments follow each other.
        ("the last of nothing", frame(LAST, "hi")),
        ("the next of nothing", frame(NEXT, "hi")),
        ("the last twice", {
            [frame(FIRST_OF_TEXT, "a"), frame(LAST, "b"), frame(LAST, "c")].concat()
        }),
        ("the last of a whole message", [frame(TEXT, "a"), frame(LAST, "b")].concat()),
        ("a text in a text", [frame(FIRST_OF_TEXT, "a"), frame(TEXT, "b")].concat()),
        ("a binary in a text", [frame(FIRST_OF_TEXT, "a"), frame(BINARY, "b")].concat()),
        ("a beginning in a binary", {
            [frame(FIRST_OF_BINARY, "a"), frame(FIRST_OF_BINARY, "b")].concat()
        }),
        // 5.5.1: a close has no code, or all of it.
        ("a close with half a code", frame(CLOSE, b"\x03")),
    ] {
        is_closed(&daemon, &said, 1002, what).await;
    }
    still_receives(&daemon, &mut bystander).await;
}

#[tokio::test]
async fn text_that_is_not_utf8_is_closed_with_1007() {
    let daemon = Daemon::start();
    let mut bystander = daemon.raw_websocket("/t?raw").await;
    for bad in [
        &b"\xff"[..],
        b"\x80",             // A continuation of nothing.
        b"\xc0\x80",         // NUL in two bytes.
        b"\xed\xa0\x80",     // Half of a surrogate pair.
        b"\xf4\x90\x80\x80", // Beyond the last character.
        b"\xe2\x82",         // The end is missing.
    ] {
        let what = format!("{bad:x?}");
        is_closed(&daemon, &frame(TEXT, bad), 1007, &what).await;
        is_closed(&daemon, &frame(TEXT, [b"good \xc3\xa4", bad].concat()), 1007, &what).await;
        is_closed(&daemon, &close(1000, bad), 1007, &format!("the reason {what}")).await;
        // Each byte in a separate frame.
        let mut said = frame(FIRST_OF_TEXT, "\u{e4}");
        for byte in bad {
            said.extend(frame(NEXT, [*byte]));
        }
        said.extend(frame(LAST, ""));
        is_closed(&daemon, &said, 1007, &format!("in pieces, {what}")).await;

        is_served(&daemon, &frame(BINARY, bad), &[], "binary may be anything").await;
        is_served(&daemon, &frame(PING, bad), &[bad], "and so may pings").await;
    }
    // The server does not wait for the end of an invalid message.
    is_closed_by_topic(&daemon, &frame(FIRST_OF_TEXT, b"\xff"), 1007, "the first piece").await;
    still_receives(&daemon, &mut bystander).await;
}

#[tokio::test]
async fn what_is_too_large_is_closed_with_1009() {
    let daemon = Daemon::start();
    let mut bystander = daemon.raw_websocket("/t?raw").await;
    let announced = |length: u64| {
        let length = [&[127][..], &length.to_be_bytes()].concat();
        frame_of_length(BINARY, &length, b"")
    };
    let half = &vec![b'x'; LARGEST / 2];
    for (what, said) in [
        ("a text of a byte too many", frame(TEXT, vec![b'x'; LARGEST + 1])),
        ("a binary of a byte too many", frame(BINARY, vec![b'x'; LARGEST + 1])),
        ("one that only says so", announced(LARGEST as u64 + 1)),
        ("the largest there is", announced(u64::MAX >> 1)),
        // 5.2: this bit must be 0. The frame is too large in any case.
        ("the top bit of the length", announced(1 << 63)),
        ("all bits of the length", announced(u64::MAX)),
        ("pieces of a byte too many", {
            [frame(FIRST_OF_TEXT, half), frame(NEXT, half), frame(LAST, "x")].concat()
        }),
        ("many small ones", {
            [frame(FIRST_OF_BINARY, ""), frame(NEXT, [0; 1000]).repeat(66)].concat()
        }),
    ] {
        is_closed_by_topic(&daemon, &said, 1009, what).await;
    }
    still_receives(&daemon, &mut bystander).await;
}

#[tokio::test]
async fn valid_frames_are_read_and_ignored() {
    let daemon = Daemon::start();
    let half = &vec![b'x'; LARGEST / 2];
    let euro = "\u{20ac}".as_bytes();
    for (what, said) in [
        ("empty frames", [frame(TEXT, ""), frame(BINARY, "")].concat()),
        ("text of every length of character", frame(TEXT, "a\u{e4}\u{20ac}\u{1f600}\u{10ffff}\0")),
        ("the largest text", frame(TEXT, vec![b'x'; LARGEST])),
        ("the largest binary", frame(BINARY, vec![0xff; LARGEST])),
        ("the largest sum of pieces", {
            [frame(FIRST_OF_TEXT, half), frame(NEXT, half), frame(LAST, "")].concat()
        }),
        ("empty pieces", {
            [frame(FIRST_OF_TEXT, ""), frame(NEXT, "").repeat(1000), frame(LAST, "")].concat()
        }),
        ("pieces of a byte", {
            [frame(FIRST_OF_BINARY, ""), frame(NEXT, "x").repeat(5000), frame(LAST, "")].concat()
        }),
        ("pieces that cut characters", {
            let [first, last] = [frame(FIRST_OF_TEXT, &euro[..1]), frame(LAST, &euro[2..])];
            [first, frame(NEXT, ""), frame(NEXT, &euro[1..2]), last].concat()
        }),
        ("many tiny frames", frame(TEXT, "x").repeat(20_000)),
        ("many large ones", frame(BINARY, half).repeat(50)),
        // 5.2 requires the shortest form of senders, but does not require receivers to reject others.
        ("16 bits for 5", frame_of_length(TEXT, &[126, 0, 5], b"hello")),
        ("64 bits for 5", frame_of_length(TEXT, &[127, 0, 0, 0, 0, 0, 0, 0, 5], b"hello")),
        ("64 bits for 200", {
            frame_of_length(BINARY, &[127, 0, 0, 0, 0, 0, 0, 0, 200], &[0; 200])
        }),
        ("a mask of zeros", b"\x81\x82\0\0\0\0hi".to_vec()),
        // 5.5.3
        ("unsolicited pongs", {
            [frame(PONG, ""), frame(PONG, "1795281040102381723"), frame(PONG, [0xff; 125])].concat()
        }),
    ] {
        is_served(&daemon, &said, &[], what).await;
    }
}

#[tokio::test]
async fn pings_are_answered_with_their_own_bytes_and_in_order() {
    let daemon = Daemon::start();
    let payloads: Vec<Vec<u8>> = (0..=125).map(|length| vec![length; length.into()]).collect();
    let pongs: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
    let pings: Vec<Vec<u8>> = payloads.iter().map(|payload| frame(PING, payload)).collect();
    is_served(&daemon, &pings.concat(), &pongs, "pings of every length at once").await;
    let between = pings.iter().flat_map(|ping| [frame(NEXT, "x"), ping.clone()].concat());
    let said: Vec<u8> =
        frame(FIRST_OF_TEXT, "x").into_iter().chain(between).chain(frame(LAST, "x")).collect();
    is_served(&daemon, &said, &pongs, "pings between fragments").await;
    let said = frame_of_length(PING, &[126, 0, 2], b"hi");
    is_served(&daemon, &said, &[b"hi"], "a length of 16 bits").await;
}

#[tokio::test]
async fn frames_may_arrive_byte_by_byte() {
    let daemon = Daemon::start();
    let mut connection = daemon.raw_websocket("/t?raw").await;
    connection.0.set_nodelay(true).unwrap();
    let said = [
        frame(FIRST_OF_TEXT, "he"),
        frame(PING, "one"),
        frame_of_length(LAST, &[127, 0, 0, 0, 0, 0, 0, 0, 3], b"llo"),
        frame(PING, ""),
        frame(PING, "three"),
    ];
    for byte in said.concat() {
        connection.write(&[byte]).await;
        tokio::task::yield_now().await;
    }
    for pong in ["one", "", "three"] {
        assert_eq!(connection.frame().await, (PONG, pong.into()));
    }
    for byte in close(1000, b"bye") {
        connection.write(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(connection.rest().await, b"\x88\x05\x03\xe8bye");
}

#[tokio::test]
async fn messages_are_sent_between_fragments_of_the_client() {
    let daemon = Daemon::start();
    let mut connection = daemon.raw_websocket("/t?raw").await;
    for (fragment, message) in [
        (frame(FIRST_OF_TEXT, "a"), "one"),
        (frame(NEXT, "b"), "two"),
        // Half of a frame, and the rest of it.
        (frame(LAST, "c")[..3].to_vec(), "three"),
        (frame(LAST, "c")[3..].to_vec(), "four"),
    ] {
        connection.write(&fragment).await;
        daemon.put("/t", message).await;
        assert_eq!(connection.frame().await, (BINARY, message.into()));
    }
    connection.write(&frame(PING, "done")).await;
    assert_eq!(connection.frame().await, (PONG, "done".into()));
}

#[tokio::test]
async fn a_close_is_answered_once_with_its_own_code_and_reason() {
    let daemon = Daemon::start();
    let answers = async |said: &[u8], payload: &[u8], what: &str| {
        let mut connection = daemon.raw_websocket("/t").await;
        connection.write(said).await;
        let expected = [&[CLOSE][..], &frame_length(payload.len()), payload].concat();
        assert_eq!(connection.rest().await, expected, "{what}");
    };
    answers(&frame(CLOSE, ""), b"", "no code").await;
    for code in (1000..=1003).chain(1007..=1013).chain([3000, 3999, 4000, 4999]) {
        answers(&close(code, b""), &code.to_be_bytes(), &code.to_string()).await;
    }
    let longest = [&1000_u16.to_be_bytes()[..], "\u{e4}".repeat(61).as_bytes(), b"x"].concat();
    assert_eq!(longest.len(), 125);
    answers(&frame(CLOSE, &longest), &longest, "the longest reason").await;

    let bye = &b"\x03\xe8bye"[..];
    for (what, before, behind) in [
        ("two closes", vec![], close(1001, b"again")),
        ("text behind it", vec![], frame(TEXT, "hi").repeat(1000)),
        ("a ping behind it", vec![], frame(PING, "hi")),
        ("nonsense behind it", vec![], vec![0xff; 10_000]),
        ("in a message", frame(FIRST_OF_TEXT, "a"), frame(LAST, "b")),
    ] {
        answers(&[before, close(1000, b"bye"), behind].concat(), bye, what).await;
    }
    gone(&daemon, 0).await;
}

#[tokio::test]
async fn codes_that_are_not_for_closing_are_answered_with_1002() {
    let daemon = Daemon::start();
    for code in [0, 1, 999, 1004, 1005, 1006, 1014, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        is_closed(&daemon, &close(code, b"why not"), 1002, &code.to_string()).await;
    }
    gone(&daemon, 0).await;
}

#[tokio::test]
async fn after_its_close_the_server_sends_nothing_more() {
    let daemon = Daemon::start();
    let mut connection = daemon.raw_websocket("/t").await;
    connection.write(&frame(FIRST_OF_TEXT, "a")).await;
    assert_eq!(daemon.send("DELETE", "/t", &[], b"").await.status, 204);
    let (first, payload) = connection.frame().await;
    assert_eq!((first, &payload[..2]), (CLOSE, &4404_u16.to_be_bytes()[..]));
    daemon.put("/t", "of the next life").await;
    for said in [frame(LAST, "b"), frame(PING, "hi"), close(4404, b"")] {
        connection.write(&said).await;
    }
    assert_eq!(connection.rest().await, b"");
}

#[tokio::test]
async fn connections_that_break_anywhere_end_their_subscriptions_only() {
    let daemon = Daemon::start();
    let mut bystander = daemon.raw_websocket("/t?raw").await;
    for said in [
        vec![],
        vec![TEXT],
        frame(TEXT, "hello")[..4].to_vec(),
        frame(TEXT, "hello")[..8].to_vec(),
        frame(FIRST_OF_TEXT, "hel"),
        frame(BINARY, vec![0; LARGEST])[..10_000].to_vec(),
        frame(PING, "hi"),
    ] {
        for is_reset in [false, true] {
            let mut connection = daemon.raw_websocket("/t").await;
            connection.write(&said).await;
            if is_reset {
                connection.0.set_zero_linger().unwrap();
            }
            drop(connection);
        }
        let mut half_open = daemon.raw_websocket("/t").await;
        half_open.write(&said).await;
        tokio::io::AsyncWriteExt::shutdown(&mut half_open.0).await.unwrap();
        still_receives(&daemon, &mut bystander).await;
    }
}

#[tokio::test]
async fn extensions_are_offered_and_not_taken() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect().await;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-other\r\n\
        Sec-WebSocket-Protocol: chat, superchat\r\n";
    let request = format!("GET /t?raw HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}{offer}\r\n");
    connection.write(request.as_bytes()).await;
    let head = String::from_utf8(connection.read_until(b"\r\n\r\n").await).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for header in ["sec-websocket-extensions", "sec-websocket-protocol"] {
        assert!(!head.to_lowercase().contains(header), "{head}");
    }
    daemon.put("/t", "plain".repeat(100)).await;
    assert_eq!(connection.frame().await, (BINARY, "plain".repeat(100).into()));
    // "hello", as it would be compressed.
    connection.write(&frame(TEXT | 0x40, b"\xca\x48\xcd\xc9\xc9\x07\x00")).await;
    let (first, payload) = connection.frame().await;
    assert_eq!((first, &payload[..2]), (CLOSE, &1002_u16.to_be_bytes()[..]));
}

/// [`Connection::frame`] checks every frame: no mask, no reserved bit, the shortest length.
#[tokio::test]
async fn frames_of_every_length_encoding_are_written() {
    let daemon = Daemon::start();
    let mut connection = daemon.raw_websocket("/t?raw").await;
    for length in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 0x1_0001] {
        let payload = vec![b'x'; length];
        daemon.put("/t", &payload).await;
        assert!(connection.frame().await == (BINARY, payload), "{length}");
    }
}
