//! Blocks a thread on a poll, for programs without an executor.

use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// Polls until there is a result, and sleeps in between. Returns `None` if there is none at the deadline.
pub(crate) fn block_on_until<T>(
    deadline: Option<Instant>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut is_over = false;
    loop {
        if let Poll::Ready(answer) = poll(&mut cx) {
            return Some(answer);
        }
        if is_over {
            return None;
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            // This thread may have waited for the processor until now, so what is there is found by one more poll.
            Some(Duration::ZERO) => is_over = true,
            Some(left) => thread::park_timeout(left),
            None => thread::park(),
        }
    }
}

/// A waker for a blocked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_at_the_deadline_is_returned() {
        let mut polls = 0;
        let poll = |cx: &mut Context<'_>| {
            polls += 1;
            if polls == 1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(polls)
        };
        assert_eq!(block_on_until(Some(Instant::now()), poll), Some(2));
        assert_eq!(block_on_until(Some(Instant::now()), |_| Poll::<()>::Pending), None);
    }
}
