//! The fuzz target for commands from a peer.

use std::{
    sync::Arc,
    task::{Context, Waker},
};

use serde_json::Value;

use super::{
    Client,
    exchange::Exchange,
    output::Output,
    stream::{Commands, Malformed},
};
use crate::{
    config::Config, fuzzing::block_on, net::peer::Peer, state::App, websocket::transport::Outgoing,
    worker::Worker,
};

const MAX: usize = 1 << 10;

/// Reads `data` as the bytes of a peer. The commands in it do not depend on how it is split, and each that the server
/// sends is one JSON object in a line.
///
/// # Panics
/// When a property does not hold.
pub fn commands(data: &[u8]) {
    let whole = split(data, usize::MAX);
    assert_eq!(whole, split(data, 1));
    assert_eq!(whole, split(data, 7));
    let (commands, _) = whole;
    assert!(commands.iter().all(|command| (2..=MAX).contains(&command.len())));
    block_on(async {
        let worker = Worker::new(&Arc::new(App::in_memory(Config::default(), None)));
        let peer = Peer { address: None, has_tls: false };
        let mut exchange = Exchange::new(Client::new(&Arc::default(), &worker, peer, true));
        let mut outgoing = Outgoing::default();
        for command in &commands {
            let mut output = Output::new(&mut outgoing, &worker.inflight, true);
            if exchange.begin(command, &mut output).is_err() {
                break;
            }
            let _ = exchange.poll(&mut Context::from_waker(Waker::noop()), false, &mut output);
        }
        exchange.drain(&mut Output::new(&mut outgoing, &worker.inflight, true));
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
fn split(data: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<Malformed>) {
    let mut commands = Commands::new(MAX);
    let mut found = Vec::new();
    for piece in data.chunks(piece.min(data.len().max(1))) {
        commands.push(piece);
        loop {
            match commands.next() {
                Ok(Some(command)) => found.push(commands.get(command).to_vec()),
                Ok(None) => break,
                Err(malformed) => return (found, Some(malformed)),
            }
        }
        commands.rest();
    }
    (found, None)
}
