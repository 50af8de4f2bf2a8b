//! The topics of a soak, and the limits of its server, which are low enough to be reached.

use fastrand::Rng;

/// The connection limit of the server.
pub(super) const MAX_CONNECTIONS: usize = 96;
/// The largest payload, in bytes.
pub(super) const MAX_PAYLOAD: usize = 32 << 10;

/// The configuration file of the server.
pub(super) const CONFIG: &str = r#"
ttl = "20s"
max-queue-size = 500
max-queue-bytes = "256KiB"
max-topics = 16
max-total-bytes = "4MiB"
max-payload-size = "32KiB"
max-connections = 96
header-timeout = "2s"
body-timeout = "2s"
idle-timeout = "5s"
write-timeout = "1s"

[topics."quick/*"]
ttl = "500ms"

[topics."reject/*"]
overflow = "reject"

[topics."keep/*"]
ttl = 0
overflow = "reject"
max-queue-size = 20000
max-queue-bytes = "3MiB"
"#;

/// The name of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Topic(String);

impl Topic {
    /// A random topic. With the extra ones there are more than the server's limit.
    pub(super) fn any(rng: &mut Rng) -> Self {
        Self(match rng.u8(..100) {
            0..60 => format!("plain/{}", rng.u8(..4)),
            60..75 => format!("quick/{}", rng.u8(..2)),
            75..86 => format!("reject/{}", rng.u8(..2)),
            86..92 => format!("keep/{}", rng.u8(..2)),
            _ => format!("extra/{}", rng.u8(..20)),
        })
    }

    /// A random topic for pulling: not one that retains all messages.
    pub(super) fn any_to_pull(rng: &mut Rng) -> Self {
        loop {
            let topic = Self::any(rng);
            if !topic.is_kept() {
                return topic;
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }

    pub(super) fn is_quick(&self) -> bool {
        self.0.starts_with("quick/")
    }

    /// Whether it retains all messages until it is deleted: it rejects on overflow, has no TTL, and no
    /// client pulls from it.
    pub(super) fn is_kept(&self) -> bool {
        self.0.starts_with("keep/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_the_load_relies_on() {
        assert!(CONFIG.contains(&format!("max-connections = {MAX_CONNECTIONS}\n")));
        let payload = format!("max-payload-size = \"{}KiB\"\n", MAX_PAYLOAD >> 10);
        assert!(CONFIG.contains(&payload));
    }
}
