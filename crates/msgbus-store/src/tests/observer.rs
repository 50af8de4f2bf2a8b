//! Notes what a topic is told.

use msgbus_core::store::{CommitObserver, StoreError, Ticket};
use parking_lot::Mutex;

/// What a topic is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Committed(Ticket),
    Refused(StoreError),
}

/// Notes what a topic is told.
#[derive(Debug, Default)]
pub(super) struct Observer(Mutex<Vec<Told>>);

impl Observer {
    pub(super) fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock())
    }
}

impl CommitObserver for Observer {
    fn committed(&self, up_to: Ticket) {
        self.0.lock().push(Told::Committed(up_to));
    }

    fn refused(&self, error: StoreError) {
        self.0.lock().push(Told::Refused(error));
    }
}
