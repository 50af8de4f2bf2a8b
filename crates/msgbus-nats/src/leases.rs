//! What is known of leases beyond their keys. How long one lasts that was extended, and whether it was given back, all
//! nodes have to know: a [mark](crate::marks) says so.

use std::{collections::HashSet, mem::take, time::Duration};

use chrono::Utc;
use msgbus_core::engine::EngineError;
use parking_lot::Mutex;

use crate::{
    connection::{Connection, Known},
    consumers::{Found, MARGIN},
    key::Key,
    marks::{self, Mark},
};

/// The text of the mark of a lease that was given back. That of others is when they end, in milliseconds since 1970.
const OVER: &str = "over";
/// The kind of these marks.
const KIND: &str = "leases";
/// How much longer than the lease its mark is kept. Clocks may differ.
const KEEP: Duration = MARGIN.saturating_mul(2);

/// A lease, as all nodes know it.
pub(crate) struct Lease<'a> {
    connection: &'a Connection,
    known: &'a Known,
    found: &'a Found,
    subject: String,
    key: &'a Key,
    mark: Option<Mark>,
}

impl<'a> Lease<'a> {
    /// Finds out what is known of a lease of a consumer.
    pub(crate) async fn find(
        connection: &'a Connection,
        known: &'a Known,
        found: &'a Found,
        key: &'a Key,
    ) -> Result<Self, EngineError> {
        let Key { created, id, delivery, until, .. } = key;
        let name = format!("{}.{created}.{id}.{delivery}.{until}", found.name());
        let subject = marks::subject(connection, KIND, &name);
        let mark = marks::read(known, &subject).await?;
        Ok(Self { connection, known, found, subject, key, mark })
    }

    /// When it ends, in milliseconds since 1970. `None` if it was given back.
    pub(crate) fn end(&self) -> Option<i64> {
        match &self.mark {
            None => Some(self.key.until),
            Some(mark) if mark.text == OVER => None,
            Some(mark) => Some(mark.text.parse().unwrap_or(self.key.until).max(self.key.until)),
        }
    }

    /// Whether it is live now.
    pub(crate) fn is_live(&self) -> bool {
        self.end().is_some_and(|end| end > Utc::now().timestamp_millis())
    }

    /// Ends it, before the server is asked to: if its answer is lost, somebody else may have the message, and the same
    /// request would end their lease. Returns `false` if it is over.
    pub(crate) async fn give_back(mut self) -> Result<bool, EngineError> {
        while let Some(end) = self.end().filter(|_| self.is_live()) {
            if self.replace(OVER.to_owned(), end).await? {
                return Ok(self.is_live());
            }
        }
        Ok(false)
    }

    /// Notes that it was extended. Returns `false` if it was given back meanwhile.
    pub(crate) async fn extend(mut self, until: i64) -> Result<bool, EngineError> {
        while let Some(end) = self.end() {
            let until = until.max(end);
            if self.replace(until.to_string(), until).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Replaces its mark. If another node has done so, reads what that says, and returns `false`.
    async fn replace(&mut self, text: String, end: i64) -> Result<bool, EngineError> {
        let left = u64::try_from(end - Utc::now().timestamp_millis()).unwrap_or(0);
        let keep = Duration::from_millis(left) + KEEP;
        let (mark, subject) = (self.mark.as_ref(), &self.subject);
        let made = marks::replace(self.connection, self.known, subject, mark, text, keep).await?;
        match &made {
            Some(made) if !self.known.forgets_marks() => {
                let of_consumer = format!("{}.>", self.found.name());
                let marks = marks::subject(self.connection, KIND, &of_consumer);
                let keep = self.found.lease() + KEEP;
                self.connection.leftovers.note(marks, made.sequence, keep);
            }
            Some(_) => {}
            None => self.mark = marks::read(self.known, subject).await?,
        }
        Ok(made.is_some())
    }
}

/// Leases that are over because this node has settled them lately, so that nobody has to be asked. The older half is
/// forgotten when there are too many.
#[derive(Debug, Default)]
pub(crate) struct Settled(Mutex<Halves>);

#[derive(Debug, Default)]
struct Halves {
    recent: HashSet<Identity>,
    older: HashSet<Identity>,
}

/// A lease among those of all groups: the consumer by its creation, the message, the delivery, and its end. A server that was
/// killed may have forgotten deliveries, and gives the same messages again under the same numbers: only the end is another.
type Identity = (i64, u64, u64, i64);

fn identity(key: &Key) -> Identity {
    (key.created, key.id, key.delivery, key.until)
}

impl Settled {
    const MAX: usize = 100_000;

    pub(crate) fn has(&self, key: &Key) -> bool {
        let settled = self.0.lock();
        [&settled.recent, &settled.older].iter().any(|half| half.contains(&identity(key)))
    }

    pub(crate) fn add(&self, key: &Key) {
        let mut settled = self.0.lock();
        if settled.recent.len() >= Self::MAX / 2 {
            settled.older = take(&mut settled.recent);
        }
        settled.recent.insert(identity(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_leases_is_bounded() {
        let settled = Settled::default();
        let key = |id| Key { created: 1, id, delivery: 1, deliveries: 1, until: 100 };
        let count = 3 * Settled::MAX as u64;
        for id in 0..count {
            settled.add(&key(id));
        }
        assert!(settled.has(&key(count - 1)) && !settled.has(&key(0)));
        assert!(!settled.has(&Key { created: 2, ..key(count - 1) }), "of another consumer");
        assert!(!settled.has(&Key { until: 101, ..key(count - 1) }), "given again");
    }
}
