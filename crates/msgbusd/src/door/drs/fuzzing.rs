//! The fuzz target for commands from a peer.

use std::{mem, sync::Arc};

use serde_json::Value;

use super::{Conversation, Drs, split::Split};
use crate::{
    config::{Config, Protocol},
    dialogue::{Client, Dialect as _, Output as _},
    fuzzing::block_on,
    net::peer::Peer,
    state::App,
    websocket::outgoing::Outgoing,
    worker::Worker,
};

const MAX: usize = 1 << 10;

/// Reads `data` as the bytes of a peer. The commands in it do not depend on how it is split, and each that the server
/// sends is one JSON object in a line.
///
/// # Panics
/// When a property does not hold.
pub fn commands(data: &[u8]) {
    let whole = split(data, usize::MAX, MAX);
    assert_eq!(whole, split(data, 1, MAX));
    assert_eq!(whole, split(data, 7, MAX));
    let (commands, _) = whole;
    assert!(commands.iter().all(|command| (2..=MAX).contains(&command.len())));
    block_on(async {
        let worker = Worker::new(&Arc::new(App::in_memory(Config::default(), None)));
        let client = Client::anonymous(&worker, Peer { address: None, has_tls: false });
        let protocol = Protocol::DrsWebsocket;
        let door = Drs::new(&Arc::default(), &worker, protocol, Vec::new());
        let mut conversation = Conversation::new(door, client, Outgoing::default());
        for command in &commands {
            if Drs::begin(&mut conversation, command, &mut 1).is_err() {
                break;
            }
            conversation.run();
        }
        conversation.drain();
        let outgoing = mem::take(conversation.contact.output.outgoing());
        let sent = String::from_utf8(outgoing.payloads()).expect("text");
        assert!(sent.is_empty() || sent.ends_with('\n'));
        for value in serde_json::Deserializer::from_str(&sent).into_iter::<Value>() {
            match value {
                Ok(value) => assert!(value["action"].is_string(), "{value}"),
                // Bodies may have numbers, nesting and escapes that this reader refuses.
                Err(error) if is_of_reader(&error) => break,
                Err(error) => panic!("{error}: {sent}"),
            }
        }
        worker.tasks.stop.cut();
    });
}

fn is_of_reader(error: &serde_json::Error) -> bool {
    let text = error.to_string();
    ["out of range", "recursion limit", "surrogate", "hex escape"]
        .iter()
        .any(|of| text.contains(of))
}

/// The commands, and why there are no more.
pub(super) fn split(data: &[u8], piece: usize, max: usize) -> (Vec<Vec<u8>>, Option<String>) {
    let (mut split, mut found, mut held) = (Split::default(), Vec::new(), Vec::new());
    for piece in data.chunks(piece.min(data.len().max(1))) {
        held.extend_from_slice(piece);
        loop {
            held = split.trim(&held).to_vec();
            match split.next(&held, max) {
                Ok(Some(length)) => found.push(held.drain(..length).collect()),
                Ok(None) => break,
                Err(malformed) => return (found, Some(format!("{malformed:?}"))),
            }
        }
    }
    (found, None)
}
