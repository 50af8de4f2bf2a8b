//! The topics of a soak on an engine.

use fastrand::Rng;

/// The prefix of the engine whose topics lose nothing.
pub(super) const KEPT: &str = "kept";
/// The prefix of the engine whose topics have a TTL and few messages.
pub(super) const SHORT: &str = "short";
/// The most messages of a topic with few.
pub(super) const MAX_MESSAGES: u64 = 300;

const ALL: [&str; 11] = [
    "keep/0", "keep/a.b", "jobs/0", "jobs/a%b", "pull/0", "pull/1", "short/0", "short/1",
    "short/2", "gone/0", "gone/1",
];
const JOBS: [&str; 2] = ["jobs/0", "jobs/a%b"];
/// The groups of each topic for jobs.
const GROUPS: [&str; 2] = ["alpha", "beta"];
const PULLED: [&str; 2] = ["pull/0", "pull/1"];
const DELETED: [&str; 2] = ["gone/0", "gone/1"];

/// The configuration file of a msgbusd: the same engine, with two prefixes.
pub(super) fn config(url: &str) -> String {
    format!(
        r#"
drain-timeout = "3s"
max-total-bytes = "64MiB"
max-queue-size = 1000000
ttl = 0

[engines.{KEPT}]
url = "{url}"
prefix = "{KEPT}"
lease = "2s"
timeout = "2s"

[engines.{SHORT}]
url = "{url}"
prefix = "{SHORT}"
lease = "2s"
timeout = "2s"
ttl = "3s"
max-queue-size = {MAX_MESSAGES}

[topics."**"]
engine = "{KEPT}"

[topics."short/*"]
engine = "{SHORT}"
"#
    )
}

/// A topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Topic(pub(super) &'static str);

impl Topic {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        ALL.iter().copied().map(Self)
    }

    pub(super) fn any(rng: &mut Rng) -> Self {
        Self(ALL[rng.usize(..ALL.len())])
    }

    /// A topic to be deleted.
    pub(super) fn any_to_delete(rng: &mut Rng) -> Self {
        Self(DELETED[rng.usize(..DELETED.len())])
    }

    pub(super) fn name(self) -> &'static str {
        self.0
    }

    /// The name in a URL.
    pub(super) fn path(self) -> String {
        self.0.replace('%', "%25")
    }

    /// The prefix of the engine where it lives.
    pub(super) fn prefix(self) -> &'static str {
        if self.0.starts_with("short/") { SHORT } else { KEPT }
    }

    /// Whether nothing removes its messages during a round.
    pub(super) fn is_kept(self) -> bool {
        self.prefix() == KEPT && !self.is_deleted()
    }

    /// Whether it is deleted at any moment.
    pub(super) fn is_deleted(self) -> bool {
        self.0.starts_with("gone/")
    }
}

/// A topic whose messages are given to workers: those of a group, or those that pull without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Queue {
    pub(super) topic: Topic,
    /// The group; `None` for plain pulls.
    pub(super) group: Option<&'static str>,
}

impl Queue {
    /// The groups of all topics for jobs.
    pub(super) fn groups() -> impl Iterator<Item = Self> {
        let of = |topic| GROUPS.map(|group| Self { topic: Topic(topic), group: Some(group) });
        JOBS.into_iter().flat_map(of)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        let pulled = PULLED.map(|topic| Self { topic: Topic(topic), group: None });
        Self::groups().chain(pulled)
    }

    pub(super) fn any(rng: &mut Rng) -> Self {
        let all: Vec<Self> = Self::all().collect();
        all[rng.usize(..all.len())]
    }

    /// The path that describes the group.
    pub(super) fn group_path(self) -> Option<String> {
        Some(format!("/-/groups/{}/{}", self.group?, self.topic.path()))
    }
}
