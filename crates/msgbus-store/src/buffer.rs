//! What was appended and is not yet written. It is the only thing that publishers and the writer share.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use msgbus_core::store::{
    GroupChange, KeptGroup, OpenMessage, Record, StoreError, Ticket, TopicState,
};
use parking_lot::{Condvar, Mutex};

use crate::topic::Topic;

/// A record that waits to be written.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) topic: Arc<Topic>,
    pub(crate) ticket: Ticket,
    pub(crate) record: Record,
    pub(crate) state: TopicState,
    /// About what it takes in memory and on the disk, in bytes.
    pub(crate) size: usize,
}

/// Which records are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// All.
    All,
    /// Those without messages: the disk is full, but for a reserve.
    WithoutMessages,
    /// None, for this reason.
    Nothing(StoreError),
}

/// A bounded queue from many publishers to the writer.
#[derive(Debug)]
pub(crate) struct Buffer {
    inner: Mutex<Inner>,
    wake: Condvar,
    /// The maximum size of what is queued, in bytes. One record is accepted however large it is.
    limit: usize,
}

#[derive(Debug)]
struct Inner {
    queue: Vec<Queued>,
    /// The size of what is queued or being written.
    bytes: usize,
    admission: Admission,
    is_closing: bool,
    /// The writer sleeps, and must be woken.
    sleeps: bool,
    /// There is something to do besides writing.
    poked: bool,
}

impl Buffer {
    pub(crate) fn new(limit: usize) -> Self {
        let inner = Inner {
            queue: Vec::new(),
            bytes: 0,
            admission: Admission::All,
            is_closing: false,
            sleeps: false,
            poked: false,
        };
        Self { inner: Mutex::new(inner), wake: Condvar::new(), limit }
    }

    pub(crate) fn push(
        &self,
        topic: &Arc<Topic>,
        record: Record,
        state: TopicState,
    ) -> Result<Ticket, StoreError> {
        let size = size_of_record(&record);
        let is_small = !matches!(record, Record::Messages(_));
        // A backlog of messages does not keep a pull or a deletion out.
        let limit = if is_small { self.limit + self.limit / 4 } else { self.limit };
        let mut inner = self.inner.lock();
        match inner.admission {
            Admission::All => {}
            Admission::WithoutMessages if is_small => {}
            Admission::WithoutMessages => return Err(StoreError::Full),
            Admission::Nothing(error) => return Err(error),
        }
        if inner.is_closing {
            return Err(StoreError::Closed);
        }
        if inner.bytes > 0 && inner.bytes + size > limit {
            return Err(StoreError::Busy);
        }
        let ticket = topic.next_ticket();
        let topic = Arc::clone(topic);
        inner.queue.push(Queued { topic, ticket, record, state, size });
        inner.bytes += size;
        self.wake(inner.sleeps);
        Ok(ticket)
    }

    fn wake(&self, sleeps: bool) {
        if sleeps {
            self.wake.notify_one();
        }
    }

    /// Makes the writer look for something to do.
    pub(crate) fn poke(&self) {
        let mut inner = self.inner.lock();
        inner.poked = true;
        self.wake(inner.sleeps);
    }

    /// Moves everything that is queued to the end of `backlog`. It counts until [`done`](Self::done).
    pub(crate) fn take(&self, backlog: &mut VecDeque<Queued>, spare: &mut Vec<Queued>) {
        std::mem::swap(&mut self.inner.lock().queue, spare);
        backlog.extend(spare.drain(..));
    }

    /// Makes room for what was taken and is dealt with.
    pub(crate) fn done(&self, bytes: usize) {
        self.inner.lock().bytes -= bytes;
    }

    /// Stops accepting, and takes what is queued, in one step. So nothing is accepted that the topics will believe
    /// refused with the rest. Ends with [`admit`](Self::admit).
    pub(crate) fn refuse(&self, error: StoreError) -> Vec<Queued> {
        let mut inner = self.inner.lock();
        inner.admission = Admission::Nothing(error);
        std::mem::take(&mut inner.queue)
    }

    pub(crate) fn admit(&self, admission: Admission) {
        self.inner.lock().admission = admission;
    }

    pub(crate) fn admission(&self) -> Admission {
        self.inner.lock().admission
    }

    /// The size of what is queued or being written, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }

    /// Accepts nothing from now on. What is queued is still written.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.is_closing = true;
        self.wake(inner.sleeps);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.inner.lock().is_closing
    }

    /// Waits until there is something to do, or until a time.
    pub(crate) fn wait(&self, until: Option<Instant>) {
        let mut inner = self.inner.lock();
        inner.sleeps = true;
        while inner.queue.is_empty() && !inner.poked && !inner.is_closing {
            let Some(until) = until else {
                self.wake.wait(&mut inner);
                continue;
            };
            if self.wake.wait_until(&mut inner, until).timed_out() {
                break;
            }
        }
        inner.sleeps = false;
        inner.poked = false;
    }
}

fn size_of_record(record: &Record) -> usize {
    /// What a record takes in the queue and on the disk besides its messages, in bytes.
    const RECORD: usize = size_of::<Queued>() + 64;
    /// What a message takes on the disk besides its payload and headers, in bytes.
    const OVERHEAD: usize = 64;
    match record {
        Record::Messages(messages) => messages.iter().fold(RECORD, |size, message| {
            let headers = message.headers();
            let headers: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            size + OVERHEAD + message.payload().len() + headers
        }),
        Record::Group { change, .. } => RECORD + size_of_change(change),
        Record::Pulled | Record::Deleted => RECORD,
    }
}

fn size_of_change(change: &GroupChange) -> usize {
    let open = |message: &OpenMessage| {
        size_of::<OpenMessage>() + message.reason.as_ref().map_or(0, |reason| reason.len())
    };
    match change {
        GroupChange::Set(group) => {
            size_of::<KeptGroup>() + group.open.values().map(open).sum::<usize>()
        }
        GroupChange::Update(update) => {
            update.open.iter().map(open).sum::<usize>() + size_of_val(&*update.settled)
        }
        GroupChange::Removed => 0,
    }
}
