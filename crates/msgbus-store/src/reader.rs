//! Reads messages back while the store is in use. Threads of its own do it, so that nobody else waits for the disk.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use msgbus_core::{
    BatchLimit,
    store::{Read, RecoveredMessage, StoreError},
};
use parking_lot::{Condvar, Mutex};

use crate::{page::Page, segments::Segments, topic::Topic};

/// A queue of requests to read, and those who serve it.
#[derive(Debug)]
pub(crate) struct Readers {
    segments: Arc<Segments>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<Request>,
    is_closed: bool,
}

#[derive(Debug)]
struct Request {
    topic: Arc<Topic>,
    from_id: u64,
    limit: BatchLimit,
    answer: Arc<Mutex<Answer>>,
}

type Outcome = Result<Vec<RecoveredMessage>, StoreError>;

#[derive(Debug)]
enum Answer {
    Pending(Option<Waker>),
    Ready(Outcome),
    Taken,
}

impl Readers {
    pub(crate) fn new(segments: Arc<Segments>) -> Self {
        Self { segments, queue: Mutex::default(), wake: Condvar::new() }
    }

    /// Queues a request. The future gets what it finds.
    pub(crate) fn read(&self, topic: &Arc<Topic>, from_id: u64, limit: BatchLimit) -> Read {
        let answer = Arc::new(Mutex::new(Answer::Pending(None)));
        let request = Request { topic: Arc::clone(topic), from_id, limit, answer };
        let pending = Pending(Arc::clone(&request.answer));
        let mut queue = self.queue.lock();
        if queue.is_closed {
            drop(queue);
            return Box::pin(std::future::ready(Err(StoreError::Closed)));
        }
        queue.requests.push_back(request);
        drop(queue);
        self.wake.notify_one();
        Box::pin(pending)
    }

    /// Serves requests until the store is closed.
    pub(crate) fn serve(&self) {
        while let Some(request) = self.next() {
            self.answer(&request);
        }
    }

    /// Serves one request, if there is one.
    #[cfg(test)]
    pub(crate) fn serve_one(&self) {
        let request = self.queue.lock().requests.pop_front();
        if let Some(request) = request {
            self.answer(&request);
        }
    }

    fn next(&self) -> Option<Request> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(request) = queue.requests.pop_front() {
                return Some(request);
            }
            self.wake.wait(&mut queue);
        }
    }

    fn answer(&self, request: &Request) {
        // Nobody waits for it any more.
        if Arc::strong_count(&request.answer) == 1 {
            return;
        }
        let page = Page::new(&self.segments, &request.topic);
        request.complete(page.read(request.from_id, request.limit));
    }

    /// Refuses what is queued and everything that comes later.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.is_closed = true;
        let refused = std::mem::take(&mut queue.requests);
        drop(queue);
        self.wake.notify_all();
        for request in refused {
            request.complete(Err(StoreError::Closed));
        }
    }
}

impl Request {
    fn complete(&self, outcome: Outcome) {
        let before = std::mem::replace(&mut *self.answer.lock(), Answer::Ready(outcome));
        if let Answer::Pending(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// The future of a request.
#[derive(Debug)]
struct Pending(Arc<Mutex<Answer>>);

impl Future for Pending {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut answer = self.0.lock();
        match std::mem::replace(&mut *answer, Answer::Taken) {
            Answer::Ready(outcome) => Poll::Ready(outcome),
            Answer::Pending(_) | Answer::Taken => {
                *answer = Answer::Pending(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}
