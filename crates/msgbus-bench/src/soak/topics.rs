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
max-topics = 24
max-total-bytes = "6MiB"
max-payload-size = "32KiB"
max-connections = 96
header-timeout = "2s"
body-timeout = "2s"
idle-timeout = "5s"
write-timeout = "3s"

[topics."quick/*"]
ttl = "500ms"

[topics."reject/*"]
overflow = "reject"

[topics."keep/*"]
ttl = 0
overflow = "reject"
max-queue-size = 20000
max-queue-bytes = "3MiB"

[topics."jobs/*"]
ttl = 0
overflow = "reject"
max-queue-size = 2000
max-queue-bytes = "1MiB"

[topics."tasks/*"]
ttl = "2s"
"#;

/// The end of the name of a topic of dead letters.
const DEAD_LETTERS: &str = "/dead-letters";

/// The name of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Topic(String);

impl Topic {
    /// A random topic. With the extra ones there are more than the server's limit.
    pub(super) fn any(rng: &mut Rng) -> Self {
        Self(match rng.u8(..100) {
            0..45 => format!("plain/{}", rng.u8(..4)),
            45..57 => format!("quick/{}", rng.u8(..2)),
            57..67 => format!("reject/{}", rng.u8(..2)),
            67..73 => format!("keep/{}", rng.u8(..2)),
            73..83 => format!("jobs/{}", rng.u8(..2)),
            83..93 => format!("tasks/{}", rng.u8(..2)),
            _ => format!("extra/{}", rng.u8(..20)),
        })
    }

    /// A random topic for plain pulls: not one that retains all messages, nor one for groups only.
    pub(super) fn any_to_pull(rng: &mut Rng) -> Self {
        Self::any_but(rng, |topic| topic.is_kept() || topic.is_for_jobs())
    }

    /// A random topic to be deleted.
    pub(super) fn any_to_delete(rng: &mut Rng) -> Self {
        Self::any_but(rng, Self::is_for_jobs)
    }

    fn any_but(rng: &mut Rng, is_excluded: impl Fn(&Self) -> bool) -> Self {
        loop {
            let topic = Self::any(rng);
            if !is_excluded(&topic) {
                return topic;
            }
        }
    }

    /// The topic with this name.
    pub(super) fn named(name: &str) -> Self {
        Self(name.to_owned())
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

    /// Whether its groups lose nothing: it rejects on overflow, has no TTL, is not deleted, and no client
    /// pulls from it without a group.
    pub(super) fn is_for_jobs(&self) -> bool {
        self.0.starts_with("jobs/") && !self.is_of_dead_letters()
    }

    /// Whether only the server publishes to it.
    pub(super) fn is_of_dead_letters(&self) -> bool {
        self.0.ends_with(DEAD_LETTERS)
    }

    /// The topic where its messages were published: another one for dead letters.
    pub(super) fn origin(&self) -> &str {
        self.0.strip_suffix(DEAD_LETTERS).unwrap_or(&self.0)
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
