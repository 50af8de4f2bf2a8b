//! Section 3 of the facts, and the faults that are not kept: how messages are written and read.

use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{Broker, message};
use futures_util::SinkExt as _;

#[tokio::test]
async fn the_transcript_of_the_facts() {
    let broker = Broker::start();
    let (mut one, mut other) = (broker.peer().await, broker.peer().await);
    other.command("SUB Chat").await;
    other.is_idle().await;
    one.send("PUB Chat\r\ncmd: Say\r\nroom: red\r\n\r\nhi\r\n.\r\n").await;
    let guid = &one.guid;
    let text =
        format!("PUB Chat\r\nCid: {guid}\r\nUid: \r\ncmd: Say\r\nroom: red\r\n\r\nhi\r\n.\r\n");
    other.gets(&text).await;
}

#[tokio::test]
async fn line_ends_header_blocks_and_empty_bodies() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    // Without headers, as Python sends it.
    peer.send("SUB k\n\n\r\n.\r\n").await;
    for (sent, got) in [
        ("PUB k\r\n\r\n.\r\n", "\r\n"),
        ("PUB k\n\n\r\n.\r\n", "\r\n"),
        ("PUB k\na:1\n\nx\r\n.\r\n", "a: 1\r\n\r\nx"),
        (
            "PUB k\r\na: 1\r\nA: 2\r\nb:  c:d \r\n more\r\n\r\nx\ny\r\n.\r\nz",
            "a: 1\r\nA: 2\r\nb: c:d more\r\n\r\nx\ny",
        ),
        ("PUB k\n\na\r\nb\n\r\n.\n", "\r\na\r\nb\n"),
    ] {
        peer.send(sent).await;
        let guid = peer.guid.clone();
        peer.gets(&message("PUB k", &guid, "", got)).await;
    }
}

/// The body is the same after any number of passes, with its dots.
#[tokio::test]
async fn bodies_pass_unchanged_and_dots_are_stuffed() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    peer.command("SUB k").await;
    for (stuffed, body) in [("..x\n...\n..", ".x\n..\n."), ("..", "."), ("a.\n.b", "a.\nb")] {
        peer.send(format!("PUB k\n\n{stuffed}\n.\n")).await;
        let frame = peer.frame().await;
        assert_eq!(broker.get("/k?raw").await.text(), body);
        let (_, again) = frame.split_once("\r\n\r\n").unwrap();
        for _ in 0..3 {
            peer.send(format!("PUB k\r\n\r\n{again}")).await;
            assert_eq!(peer.frame().await, frame);
            assert_eq!(broker.get("/k?raw").await.text(), body);
        }
    }
}

#[tokio::test]
async fn names_of_headers_keep_their_spelling_and_the_sender_is_not_forged() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    peer.command("SUB k").await;
    peer.send("PUB k\nReqID: 7\nCID: x\ncid: y\nuid: root\nx-Y-z: 1\n\n.\n").await;
    let guid = peer.guid.clone();
    peer.gets(&message("PUB k", &guid, "", "ReqID: 7\r\nx-Y-z: 1\r\n\r\n")).await;
}

#[tokio::test]
async fn the_target_is_everything_after_the_first_space() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    for target in ["a b", " a", "a ", "/", "metrics", "-/x", "*", "**", "a//b", "a%2Fb", "50%", "é"]
    {
        peer.command(&format!("SUB {target}")).await;
        peer.send(format!("PUB {target}\n\nx\n.\n")).await;
        let guid = peer.guid.clone();
        peer.gets(&message(&format!("PUB {target}"), &guid, "", "\r\nx")).await;
        peer.command(&format!("UNS {target}")).await;
    }
    peer.command(&format!("PUB {}", "x".repeat(256))).await;
    let long = "x".repeat(256);
    peer.fails(&format!("PUB {long}: a topic name has at most 255 bytes, this one has 256")).await;
}

/// A parse error is told, and then the connection is closed.
#[tokio::test]
async fn what_cannot_be_read_is_told_and_ends_the_connection() {
    let broker = Broker::start();
    for (text, why) in [
        ("", "the first line is a command, a space and a target"),
        ("PUB\r\n\r\n.\r\n", "the first line is a command, a space and a target"),
        ("PUB k\r\na: 1\r\n", "an empty line is missing after the headers"),
        (
            "PUB k\r\nno colon\r\n\r\n.\r\n",
            "a header is a name without spaces, a colon and a value",
        ),
        ("PUB k\r\n\r\nno dot", "the line with a dot that ends the body is missing"),
        ("PUB k\r\na b: 1\r\n\r\n.\r\n", "a header is a name without spaces, a colon and a value"),
    ] {
        let mut peer = broker.peer().await;
        peer.command("SUB k").await;
        peer.send("PUB k\n\nbefore\n.\n").await;
        let guid = peer.guid.clone();
        peer.gets(&message("PUB k", &guid, "", "\r\nbefore")).await;
        peer.send(text).await;
        peer.fails(why).await;
        assert_eq!(peer.close().await, Some((CloseCode::Protocol, why.to_owned())), "{text:?}");
    }
    let mut peer = broker.peer().await;
    peer.socket.send(Message::binary("PUB k\n\n.\n")).await.unwrap();
    assert_eq!(peer.close().await.unwrap().0, CloseCode::Unsupported);
}

/// What a message of msgbus cannot have is refused, and the connection stays.
#[tokio::test]
async fn headers_that_no_message_has_are_refused() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    let name = "a header name has only letters, digits and !#$%&'*+-.^_`|~";
    let value = "a header value must not contain control characters, or begin or end with a space";
    for (header, why) in [("a/b: 1", name), ("größe: 1", name), (": 1", name), ("a: \u{7}", value)]
    {
        for command in ["PUB", "REQ"] {
            peer.send(format!("{command} k\n{header}\n\n.\n")).await;
            peer.fails(&format!("{command} k: {why}")).await;
        }
    }
    peer.is_idle().await;
}

/// Commands are case-sensitive, and unknown ones are ignored.
#[tokio::test]
async fn unknown_commands_are_ignored() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    for line in ["sub k", "Sub k", "XYZ k", "INT k", "INT uid", " k"] {
        peer.command(line).await;
    }
    peer.is_idle().await;
    assert_eq!(broker.bus.stats().subscribers, 1, "the private topic");
}
