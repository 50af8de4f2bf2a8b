//! A message with a TTL of an hour has expired after a night of suspend.
//!
//! A time namespace does to the clocks of this process what a suspend does: `CLOCK_BOOTTIME` jumps by hours and
//! `CLOCK_MONOTONIC` does not. That needs root and a process with one thread, and therefore no test harness.

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
#[expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]
mod linux {
    use std::{
        env,
        fs::File,
        io::{BufRead as _, BufReader},
        os::fd::AsFd as _,
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use msgbus_core::{Event, MessageBus, NewMessage, Options, Position, TopicName};
    use rustix::thread::move_into_link_name_space;

    const NIGHT: &str = "28800";

    pub(super) fn main() {
        let bus = MessageBus::new(Options::default());
        let topic: TopicName = "t".parse().unwrap();
        bus.put(&topic, "an hour").unwrap();
        bus.put(&topic, NewMessage::new("a minute").ttl(Duration::from_secs(60))).unwrap();
        let mut subscription = bus.subscribe(&topic, Position::All).unwrap();
        let before = Instant::now();
        if let Err(error) = sleep_through_a_night() {
            // Set by .ci/run.
            assert!(env::var_os("MSGBUS_TEST_ALL").is_none(), "needs root and unshare: {error}");
            eprintln!("suspend: not tested, which needs root and unshare: {error}");
            return;
        }
        assert!(before.elapsed() < Duration::from_secs(3600), "the monotonic clock stood still");

        assert_eq!(bus.get(&topic).unwrap(), None);
        assert_eq!(subscription.recv_blocking(), Ok(Event::Missed { count: 2, next_id: 2 }));
        assert_eq!(bus.topic(&topic).unwrap().counters.expired.total, 2);
        bus.put(&topic, "in the morning").unwrap();
        assert_eq!(bus.get(&topic).unwrap().unwrap().payload(), "in the morning");
    }

    fn sleep_through_a_night() -> std::io::Result<()> {
        let mut night = night()?;
        let moved = File::open(format!("/proc/{}/ns/time_for_children", night.id()))
            .and_then(|night| Ok(move_into_link_name_space(night.as_fd(), None)?));
        // It ends when its standard input is closed.
        drop(night.stdin.take());
        night.wait()?;
        moved
    }

    /// A process in a namespace whose clock is a night ahead.
    fn night() -> std::io::Result<Child> {
        let mut night = Command::new("unshare")
            .args(["--time", "--boottime", NIGHT, "--fork", "sh", "-c", "echo ready; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(output) = night.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        Ok(night)
    }
}
