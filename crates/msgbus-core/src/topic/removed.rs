//! Messages on their way out of a log. Freeing memory takes longer than anything else that happens under a
//! topic's lock, so it waits until the lock is released.

use crate::model::Message;

/// Messages that have left a log. There is usually one, for which nothing is allocated.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    first: Option<Message>,
    others: Vec<Message>,
}

impl Removed {
    pub(crate) fn push(&mut self, message: Message) {
        if self.first.is_none() {
            self.first = Some(message);
        } else {
            self.others.push(message);
        }
    }

    pub(crate) fn extend(&mut self, message: Option<Message>) {
        if let Some(message) = message {
            self.push(message);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}
