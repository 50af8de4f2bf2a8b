//! The keys of leases: what NATS needs to settle one, and a code that nobody can make who does not know the secret.

use msgbus_core::engine::LeaseKey;
use sha2::{Digest as _, Sha256};

/// A delivery of a message to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// When the consumer was created, in nanoseconds since 1970.
    pub(crate) created: i64,
    /// The sequence of the message.
    pub(crate) id: u64,
    /// The number of the delivery.
    pub(crate) delivery: u64,
    /// How often the message was delivered.
    pub(crate) deliveries: u32,
    /// When the lease ends, in milliseconds since 1970.
    pub(crate) until: i64,
}

const FIELDS: usize = 8 + 8 + 8 + 4 + 8;
const CODE: usize = 16;

impl Key {
    pub(crate) fn seal(&self, secret: &str, consumer: &str) -> LeaseKey {
        let fields = self.fields();
        [&fields[..], &code(secret, consumer, &fields)].concat().into()
    }

    /// `None` if it was not sealed with this secret for this consumer.
    pub(crate) fn open(key: &[u8], secret: &str, consumer: &str) -> Option<Self> {
        let (fields, sealed) = key.split_first_chunk::<FIELDS>()?;
        // Compared without a branch for each byte, so that time says nothing.
        let expected = code(secret, consumer, fields);
        let differ = sealed.iter().zip(expected).fold(0, |all, (a, b)| all | (a ^ b));
        if sealed.len() != CODE || differ != 0 {
            return None;
        }
        let (created, rest) = fields.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (delivery, rest) = rest.split_first_chunk()?;
        let (deliveries, until) = rest.split_first_chunk()?;
        Some(Self {
            created: i64::from_le_bytes(*created),
            id: u64::from_le_bytes(*id),
            delivery: u64::from_le_bytes(*delivery),
            deliveries: u32::from_le_bytes(*deliveries),
            until: i64::from_le_bytes(until.try_into().ok()?),
        })
    }

    fn fields(&self) -> [u8; FIELDS] {
        let mut fields = [0; FIELDS];
        fields[..8].copy_from_slice(&self.created.to_le_bytes());
        fields[8..16].copy_from_slice(&self.id.to_le_bytes());
        fields[16..24].copy_from_slice(&self.delivery.to_le_bytes());
        fields[24..28].copy_from_slice(&self.deliveries.to_le_bytes());
        fields[28..].copy_from_slice(&self.until.to_le_bytes());
        fields
    }
}

/// The secret is hashed first and last, so that no code can be extended to that of a longer text.
fn code(secret: &str, consumer: &str, fields: &[u8; FIELDS]) -> [u8; CODE] {
    let inner = Sha256::new().chain_update(secret).chain_update([0]).chain_update(consumer);
    let inner = inner.chain_update([0]).chain_update(fields).finalize();
    let outer = Sha256::new().chain_update(inner).chain_update([0]).chain_update(secret).finalize();
    let mut code = [0; CODE];
    code.copy_from_slice(&outer[..CODE]);
    code
}

#[cfg(test)]
mod tests {
    use msgbus_core::engine::MAX_LEASE_KEY;

    use super::*;

    #[test]
    fn only_what_was_sealed_opens() {
        let key = Key { created: -1, id: u64::MAX, delivery: 2, deliveries: 3, until: -4 };
        let sealed = key.seal("s", "c");
        assert!(sealed.len() <= MAX_LEASE_KEY);
        assert_eq!(Key::open(&sealed, "s", "c"), Some(key));
        assert_eq!(Key::open(&sealed, "t", "c"), None);
        assert_eq!(Key::open(&sealed, "s", "d"), None);
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert_eq!(Key::open(&changed, "s", "c"), None);
            assert_eq!(Key::open(&sealed[..index], "s", "c"), None);
        }
    }
}
