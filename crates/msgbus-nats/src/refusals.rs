//! What the server does not permit. It says so beside the request, which is never answered.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use async_nats::ServerError;
use msgbus_core::engine::EngineError;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tracing::warn;

/// The subjects that the server has lately refused, and what the log has named of them.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    subjects: Mutex<HashMap<String, Instant>>,
    logged: Mutex<HashMap<String, Instant>>,
    /// Those who wait for refusals, by subject. Never locked together with the others.
    waiting: Mutex<HashMap<String, Waiting>>,
}

/// Those who wait for the refusal of a subject.
#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    news: Arc<Notify>,
}

/// One of them.
struct Waiter<'a> {
    refusals: &'a Refusals,
    subject: &'a str,
    news: Arc<Notify>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.refusals.waiting.lock();
        let Some(others) = waiting.get_mut(self.subject) else { return };
        others.count -= 1;
        if others.count == 0 {
            waiting.remove(self.subject);
        }
    }
}

/// The subjects of the requests to `JetStream` begin with it.
pub(crate) const API: &str = "$JS.";

impl Refusals {
    /// The maximum number of subjects that are remembered.
    const MAX: usize = 1000;
    /// How often the log names a subject, or others that begin alike, at most.
    const QUIET: Duration = Duration::from_secs(60);
    /// How many parts of subjects are alike. Acks and marks of leases differ in those after them.
    const ALIKE: usize = 4;

    /// Notes what the server has said. Returns whether it refuses a subject.
    pub(crate) fn hear(&self, error: &ServerError) -> bool {
        let ServerError::Other(text) = error else { return false };
        let Some(subject) = refused_subject(text) else { return false };
        let mut subjects = self.subjects.lock();
        if subjects.len() >= Self::MAX {
            subjects.clear();
        }
        subjects.insert(subject.to_owned(), Instant::now());
        drop(subjects);
        if let Some(waiting) = self.waiting.lock().get(subject) {
            waiting.news.notify_waiters();
        }
        if self.is_news(subject) {
            warn!("NATS refuses what the engine needs: {text}");
        }
        true
    }

    /// Whether the log has not named the subject lately, nor one that begins alike. Then it does so now.
    fn is_news(&self, subject: &str) -> bool {
        let begin = subject.split('.').take(Self::ALIKE).collect::<Vec<_>>().join(".");
        let mut logged = self.logged.lock();
        if logged.get(&begin).is_some_and(|at| at.elapsed() < Self::QUIET) {
            return false;
        }
        if logged.len() >= Self::MAX {
            logged.clear();
        }
        logged.insert(begin, Instant::now());
        true
    }

    /// Ready when the server refuses what was sent to a subject since then.
    pub(crate) async fn refused(&self, subject: &str, since: Instant) {
        let waiter = self.wait_for(subject);
        loop {
            let mut news = pin!(waiter.news.notified());
            news.as_mut().enable();
            if self.is_refused(subject, since) {
                return;
            }
            news.await;
        }
    }

    fn wait_for<'a>(&'a self, subject: &'a str) -> Waiter<'a> {
        let mut waiting = self.waiting.lock();
        let others = waiting.entry(subject.to_owned()).or_default();
        others.count += 1;
        Waiter { refusals: self, subject, news: Arc::clone(&others.news) }
    }

    /// Whether the server has refused what was sent to a subject since then.
    pub(crate) fn is_refused(&self, subject: &str, since: Instant) -> bool {
        self.subjects.lock().get(subject).is_some_and(|at| *at >= since)
    }

    /// Why a request was not answered that began then. If `to` ends with a dot, its subject begins with that.
    pub(crate) fn explain(&self, error: EngineError, to: &str, began: Instant) -> EngineError {
        if !matches!(error, EngineError::Unavailable | EngineError::Unknown) {
            return error;
        }
        let subjects = self.subjects.lock();
        let is_refused = |(subject, at): (&String, &Instant)| {
            *at >= began && (subject == to || to.ends_with('.') && subject.starts_with(to))
        };
        if subjects.iter().any(is_refused) { EngineError::Denied } else { error }
    }
}

/// The server would refuse again what it has refused since then: it is not tried.
pub(crate) fn lately(now: Instant) -> Instant {
    const LATELY: Duration = Duration::from_secs(1);
    now.checked_sub(LATELY).unwrap_or(now)
}

/// `Permissions Violation for Publish to "SUBJECT"`, and the same for subscriptions.
fn refused_subject(text: &str) -> Option<&str> {
    let (what, rest) = text.split_once('"')?;
    let is_violation = what.to_ascii_lowercase().starts_with("permissions violation");
    is_violation.then(|| rest.split_once('"').map_or(rest, |(subject, _)| subject))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        task::{Context, Wake, Waker},
    };

    use super::*;

    #[test]
    fn the_log_does_not_name_each_ack() {
        let refusals = Refusals::default();
        assert!(refusals.is_news("$JS.ACK.msgbus.g-1.1.7.7.0.0"));
        assert!(!refusals.is_news("$JS.ACK.msgbus.g-1.1.8.8.0.0"));
        assert!(refusals.is_news("$JS.API.CONSUMER.CREATE.msgbus.x"));
        assert!(!refusals.is_news("$JS.API.CONSUMER.CREATE.msgbus.y"));
    }

    fn refuse(refusals: &Refusals, subject: &str) {
        let text = format!("Permissions Violation for Publish to \"{subject}\"");
        assert!(refusals.hear(&ServerError::Other(text)));
    }

    /// There may be many of them, and many refusals of others.
    #[test]
    fn a_refusal_wakes_only_those_whom_it_concerns() {
        #[derive(Default)]
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        let (refusals, count) = (Refusals::default(), Arc::new(Count::default()));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        {
            let mut refused = [(); 2].map(|()| Box::pin(refusals.refused("to", Instant::now())));
            assert!(refused.iter_mut().all(|refused| refused.as_mut().poll(&mut cx).is_pending()));
            refuse(&refusals, "$JS.ACK.other");
            assert_eq!(count.0.load(Relaxed), 0);
            refuse(&refusals, "to");
            assert_eq!(count.0.load(Relaxed), 2);
            assert!(refused.iter_mut().all(|refused| refused.as_mut().poll(&mut cx).is_ready()));
        }
        assert!(refusals.waiting.lock().is_empty(), "nobody waits any more");
    }

    /// Two who wait for the same end at once: each still has its share of the news when the other looks.
    #[test]
    fn nothing_is_kept_for_those_who_wait_no_longer() {
        let refusals = Refusals::default();
        let (one, other) = (refusals.wait_for("to"), refusals.wait_for("to"));
        let share = Arc::clone(&one.news);
        drop((one, other));
        assert!(refusals.waiting.lock().is_empty());
        drop(share);
    }

    #[test]
    fn a_refusal_names_its_subject() {
        let (refusals, since) = (Refusals::default(), Instant::now());
        for text in ["Slow Consumer", "permissions violation", "No \"a\" here"] {
            assert!(!refusals.hear(&ServerError::Other(text.to_owned())));
        }
        let text = "Permissions Violation for Publish to \"$JS.API.INFO\"";
        assert!(refusals.hear(&ServerError::Other(text.to_owned())));
        for (error, to, began, expected) in [
            (EngineError::Unknown, API, since, EngineError::Denied),
            (EngineError::Full, API, since, EngineError::Full),
            (EngineError::Unknown, "$JS.API.IN", since, EngineError::Unknown),
            (EngineError::Unknown, "$JS.ACK.", since, EngineError::Unknown),
            (EngineError::Unavailable, API, Instant::now(), EngineError::Unavailable),
        ] {
            assert_eq!(refusals.explain(error, to, began), expected, "{to}");
        }
    }
}
