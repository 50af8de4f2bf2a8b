//! The keys of a topic.

use msgbus_core::{GroupName, TopicName};
use sha2::{Digest as _, Sha256};

use crate::RedisOptions;

/// Makes the keys of a topic. They have a hash tag, so that a cluster keeps them together.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    tag: String,
    is_of_dead_letters: bool,
}

impl Keys {
    pub(crate) fn new(prefix: &str, topic: &TopicName) -> Self {
        let tag = format!("{{{prefix}:{topic}}}");
        Self { tag, is_of_dead_letters: topic.is_of_dead_letters() }
    }

    /// What is known of the server. It is of no topic.
    pub(crate) fn of_server(prefix: &str) -> String {
        format!("{{{prefix}:}}:server")
    }

    /// Matches the keys of the messages of all topics that begin so.
    pub(crate) fn pattern_of_streams(prefix: &str, beginning: &str) -> String {
        let mut pattern = String::new();
        for character in format!("{{{prefix}:{beginning}").chars() {
            if ['*', '?', '[', ']', '^', '\\'].contains(&character) {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern + "*}:stream"
    }

    /// The topic whose messages have a key.
    pub(crate) fn topic_of(prefix: &str, key: &str) -> Option<TopicName> {
        let name = key.strip_prefix('{')?.strip_prefix(prefix)?.strip_prefix(':')?;
        name.strip_suffix("}:stream")?.parse().ok()
    }

    /// How long messages of the topic live, in milliseconds. 0: for ever, as dead letters do.
    pub(crate) fn max_age_ms(&self, options: &RedisOptions) -> u64 {
        if self.is_of_dead_letters { 0 } else { options.max_age_ms() }
    }

    /// The hash that describes the topic.
    pub(crate) fn topic(&self) -> String {
        format!("{}:topic", self.tag)
    }

    /// The messages.
    pub(crate) fn stream(&self) -> String {
        format!("{}:stream", self.tag)
    }

    /// When a group is given messages again.
    pub(crate) fn due(&self, group: &str) -> String {
        format!("{}:due:{group}", self.tag)
    }

    /// The channel on which it is said that there is something new.
    pub(crate) fn channel(&self) -> String {
        format!("{}:news", self.tag)
    }

    /// The key of a message that must not be published twice. `before` is how many messages with the same idempotency key
    /// come before it among those that are published together.
    pub(crate) fn repeat(&self, key: &str, before: usize) -> String {
        let hash = Sha256::new().chain_update(format!("{before} ")).chain_update(key).finalize();
        let hash = hash[..16].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        format!("{}:repeat:{hash}", self.tag)
    }
}

/// The name of a group in Redis.
pub(crate) fn group_name(group: Option<&GroupName>) -> String {
    group.map_or_else(|| "pull".to_owned(), |group| format!("group:{group}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of a key that decides on which server of a cluster it is.
    fn hash_tag(key: &str) -> &str {
        let (_, rest) = key.split_once('{').unwrap();
        rest.split_once('}').unwrap().0
    }

    #[test]
    fn the_keys_of_a_topic_are_together_and_no_others() {
        let names = ["a", "a/b", "}", "a}b", "{", "x}:stream", "größe", "a}:due:g"];
        let mut all = Vec::new();
        for name in names.iter().filter_map(|name| name.parse::<TopicName>().ok()) {
            let keys = Keys::new("msgbus", &name);
            let repeats = [keys.repeat("k", 0), keys.repeat("k", 1), keys.repeat("l", 0)];
            let mut of_topic = vec![keys.topic(), keys.stream(), keys.due("pull"), keys.channel()];
            of_topic.extend(repeats);
            assert!(!hash_tag(&of_topic[0]).is_empty());
            assert!(of_topic.iter().all(|key| hash_tag(key) == hash_tag(&of_topic[0])));
            assert_eq!(Keys::topic_of("msgbus", &keys.stream()), Some(name));
            all.extend(of_topic);
        }
        assert!(all.len() > 20);
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "each is another key");
        assert_eq!(Keys::pattern_of_streams("p", "a*/"), "{p:a\\*/*}:stream");
    }
}
