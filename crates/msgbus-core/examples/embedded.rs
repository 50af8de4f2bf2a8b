//! The bus inside a program: publish, pull, and read the counters.
//!
//! Run it with `cargo run -p msgbus-core --example embedded`.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, time::Duration};

use msgbus_core::{MessageBus, NewMessage, Options, TopicName};

fn main() -> Result<(), Box<dyn Error>> {
    let bus = MessageBus::new(Options::default());
    let jobs: TopicName = "jobs/resize".parse()?;

    bus.put(&jobs, "cat.png")?;
    bus.put(&jobs, NewMessage::new("dog.png").ttl(Duration::from_secs(60)))?;

    while let Some(job) = bus.get(&jobs)? {
        println!("job {}: {}", job.id(), String::from_utf8_lossy(job.payload()));
    }

    if let Some(stats) = bus.topic(&jobs) {
        let counters = stats.counters;
        println!("published {}, pulled {}", counters.published, counters.pulled);
    }
    Ok(())
}
