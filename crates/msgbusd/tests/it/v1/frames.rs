//! 16.2 and 16.8: frames of clients, with handwritten bytes. What is closed by every websocket is tested in rfc6455.rs.

use crate::{
    rfc6455::{
        BINARY, CLOSE, FIRST_OF_TEXT, LAST, NEXT, PING, PONG, TEXT, close, frame, frame_of_length,
    },
    support::{Connection, Daemon},
};

/// By default: 4/3 of 1 MiB and 64 KiB.
const LARGEST: usize = (1_usize << 20).div_ceil(3) * 4 + (64 << 10);
const PONG_LINE: &[u8] = b"{\"op\":\"pong\"}\n";
const PING_LINE: &str = "{\"op\":\"ping\"}";

async fn is_closed(connection: &mut Connection, code: u16) {
    let (first, payload) = connection.frame().await;
    assert_eq!((first, &payload[..2]), (CLOSE, &code.to_be_bytes()[..]));
    assert_eq!(connection.rest().await, b"");
}

#[tokio::test]
async fn messages_may_arrive_in_pieces_of_any_size() {
    let daemon = Daemon::start();
    let said = [
        frame(FIRST_OF_TEXT, &PING_LINE[..5]),
        frame(PING, "one"),
        frame(NEXT, ""),
        frame_of_length(LAST, &[127, 0, 0, 0, 0, 0, 0, 0, 8], &PING_LINE.as_bytes()[5..]),
        frame(PING, ""),
        frame_of_length(TEXT, &[126, 0, 13], PING_LINE.as_bytes()),
        frame(PONG, "unsolicited"),
        frame(TEXT, ""),
    ]
    .concat();
    for size in [1, 2, 3, 7, 20, said.len()] {
        let mut connection = daemon.raw_v1().await;
        connection.0.set_nodelay(true).unwrap();
        for piece in said.chunks(size) {
            connection.write(piece).await;
            tokio::task::yield_now().await;
        }
        let (mut pongs, mut lines) = (Vec::new(), Vec::new());
        while pongs.len() + lines.len() < 4 {
            match connection.frame().await {
                (PONG, payload) => pongs.push(payload),
                (TEXT, payload) => {
                    lines
                        .extend(payload.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec));
                }
                (first, _) => panic!("{first:x}"),
            }
        }
        assert_eq!(pongs, [&b"one"[..], b""]);
        assert_eq!(lines, [PONG_LINE, PONG_LINE]);
        connection.write(&close(1000, b"bye")).await;
        assert_eq!(connection.rest().await, b"\x88\x05\x03\xe8bye", "{size}");
    }
}

#[tokio::test]
async fn a_message_has_a_largest_size() {
    let daemon = Daemon::start();
    let payload = "x".repeat(1 << 20);
    let publish = |text: &str| format!(r#"{{"op":"pub","topic":"t","rid":1,"text":"{text}"}}"#);
    let padded = |size: usize| {
        let operation = publish(&payload);
        format!("{operation}{}", "\n".repeat(size - operation.len()))
    };
    let whole = frame(TEXT, padded(LARGEST));
    let pieces = {
        let text = padded(LARGEST);
        let (first, last) = text.as_bytes().split_at(1000);
        [frame(FIRST_OF_TEXT, first), frame(LAST, last)].concat()
    };
    for said in [whole, pieces] {
        let mut connection = daemon.raw_v1().await;
        connection.write(&said).await;
        let (first, answer) = connection.frame().await;
        assert_eq!(first, TEXT);
        assert!(
            answer.starts_with(br#"{"op":"ok","rid":1"#),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    let announced = |length: u64| {
        let length = [&[127][..], &length.to_be_bytes()].concat();
        frame_of_length(TEXT, &length, b"")
    };
    for said in [
        announced(LARGEST as u64 + 1),
        announced(u64::MAX),
        [frame(FIRST_OF_TEXT, vec![b'x'; LARGEST]), frame(LAST, "x")].concat(),
    ] {
        let mut connection = daemon.raw_v1().await;
        connection.write(&said).await;
        is_closed(&mut connection, 1009).await;
    }
    assert_eq!(daemon.refused("websocket_too_large").await, 3);
}

#[tokio::test]
async fn binary_frames_are_closed_with_1003_after_what_came_before() {
    let daemon = Daemon::start();
    for said in [frame(BINARY, "{}"), [frame(0x02, "a"), frame(LAST, "b")].concat()] {
        let mut connection = daemon.raw_v1().await;
        connection.write(&[frame(TEXT, PING_LINE), said].concat()).await;
        assert_eq!(connection.frame().await, (TEXT, PONG_LINE.to_vec()));
        is_closed(&mut connection, 1003).await;
    }
}

#[tokio::test]
async fn operations_before_a_close_are_carried_out() {
    let daemon = Daemon::start();
    let mut connection = daemon.raw_v1().await;
    let publish = frame(TEXT, r#"{"op":"pub","topic":"t"}"#);
    connection.write(&[publish.repeat(100), close(1000, b"")].concat()).await;
    assert_eq!(connection.rest().await, b"\x88\x02\x03\xe8");
    assert_eq!(daemon.bus.stats().counters.published, 100);
}
