//! The one timer of all groups: it ends leases and delays when their time is over, whether or not a client calls.

use std::{collections::HashMap, sync::Arc, time::Duration};

use msgbus_core::{Due, RefusedDeadLetter, TopicName};
use tokio::{
    select,
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::warn;

use crate::state::App;

/// The minimum time between two runs. What is due meanwhile is done together.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// The maximum time between two runs while something will be due. This timer stands still while the machine is
/// suspended; leases do not.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Does what is due, and sleeps until the next time something is. Without groups it sleeps until there is one. It runs on
/// a blocking thread, because thousands of leases may end at a time.
pub(crate) async fn run(app: Arc<App>) {
    let mut log = RefusalLog::default();
    loop {
        let bus = app.bus.clone();
        // If a run panics, the next one tries again.
        let due = spawn_blocking(move || bus.run_due()).await;
        let due = due.unwrap_or_else(|_| Due { next: Some(MAX_PAUSE), ..Due::default() });
        log.write(due.refused);
        sleep(MIN_PAUSE).await;
        match due.next {
            Some(next) => {
                select! {
                    () = sleep(next.min(MAX_PAUSE).saturating_sub(MIN_PAUSE)) => {}
                    () = app.bus.due_earlier() => {}
                }
            }
            None => app.bus.due_earlier().await,
        }
    }
}

/// Logs refused dead letters, at most one line a minute for a topic.
#[derive(Debug, Default)]
struct RefusalLog(HashMap<TopicName, Instant>);

impl RefusalLog {
    const INTERVAL: Duration = Duration::from_secs(60);
    /// The maximum number of lines within the interval. The metrics count all refusals.
    const MAX_LINES: usize = 100;

    fn write(&mut self, refused: Vec<RefusedDeadLetter>) {
        for RefusedDeadLetter { topic, group, id, error } in refused {
            if self.admits(&topic, Instant::now()) {
                warn!(%topic, %group, id, "a dead letter was refused, and is kept: {error}");
            }
        }
    }

    /// Whether a line about this topic may be written now.
    fn admits(&mut self, topic: &TopicName, now: Instant) -> bool {
        let is_recent = |last: &Instant| now.duration_since(*last) < Self::INTERVAL;
        if self.0.get(topic).is_some_and(is_recent) {
            return false;
        }
        self.0.retain(|_, last| is_recent(last));
        if self.0.len() >= Self::MAX_LINES {
            return false;
        }
        self.0.insert(topic.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_gets_a_line_a_minute() {
        let (mut log, now) = (RefusalLog::default(), Instant::now());
        let (one, other) = ("one".parse().unwrap(), "other".parse().unwrap());
        assert!(log.admits(&one, now) && log.admits(&other, now));
        let later = now + RefusalLog::INTERVAL;
        assert!(!log.admits(&one, later - Duration::from_nanos(1)));
        assert!(log.admits(&one, later) && !log.admits(&one, later));
        for n in 0..2 * RefusalLog::MAX_LINES {
            log.admits(&format!("t{n}").parse().unwrap(), later);
        }
        assert_eq!(log.0.len(), RefusalLog::MAX_LINES);
        assert!(log.admits(&other, later + RefusalLog::INTERVAL));
        assert_eq!(log.0.len(), 1, "nothing is kept for longer");
    }
}
