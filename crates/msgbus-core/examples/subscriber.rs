//! A subscriber in its own thread, without an async runtime.
//!
//! Run it with `cargo run -p msgbus-core --example subscriber`.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, thread};

use msgbus_core::{Event, MessageBus, Options, Position, TopicName};

fn main() -> Result<(), Box<dyn Error>> {
    let bus = MessageBus::new(Options::default());
    let news: TopicName = "news".parse()?;

    let mut subscription = bus.subscribe(&news, Position::New)?;
    let reader = thread::spawn(move || {
        loop {
            match subscription.recv_blocking() {
                Ok(Event::Message { message, .. }) => {
                    println!("{}: {}", message.id(), String::from_utf8_lossy(message.payload()));
                }
                Ok(Event::Missed { count, .. }) => println!("missed {count} messages"),
                Err(end) => break println!("ended: {end}"),
            }
        }
    });

    for headline in ["first", "second", "third"] {
        bus.put(&news, headline)?;
    }
    bus.close()?;
    reader.join().map_err(|_| "the reader panicked".into())
}
