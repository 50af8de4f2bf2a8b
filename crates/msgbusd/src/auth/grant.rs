//! What a key allows: an action on the topics of a pattern, written `publish:orders/**`.

use std::{fmt, str::FromStr};

use msgbus_core::{TopicName, TopicPattern};

/// What can be done to a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Publish,
    Pull,
    Subscribe,
    Delete,
    Inspect,
}

impl Action {
    const ALL: [Self; 5] =
        [Self::Publish, Self::Pull, Self::Subscribe, Self::Delete, Self::Inspect];

    fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Pull => "pull",
            Self::Subscribe => "subscribe",
            Self::Delete => "delete",
            Self::Inspect => "inspect",
        }
    }
}

/// One permission: an action, or all of them, on the topics that a pattern stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// `None` for every action.
    action: Option<Action>,
    pattern: TopicPattern,
    is_for_all_topics: bool,
}

/// What a request needs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Permission<'a> {
    /// The action on this topic.
    Topic(Action, &'a TopicName),
    /// The action on every topic.
    EveryTopic(Action),
    /// The action on one topic at least.
    SomeTopic(Action),
    /// A key, whatever it allows.
    Key,
}

impl Grant {
    pub(super) const SHAPE: &str = "write it as ACTION:TOPIC, as in publish:orders/** or *:**";

    pub(super) fn gives(&self, need: Permission<'_>) -> bool {
        let is_for = |action| self.action.is_none_or(|own| own == action);
        match need {
            Permission::Topic(action, topic) => is_for(action) && self.pattern.matches(topic),
            Permission::EveryTopic(action) => is_for(action) && self.is_for_all_topics,
            Permission::SomeTopic(action) => is_for(action),
            Permission::Key => false,
        }
    }
}

impl FromStr for Grant {
    /// What is wrong, and what would be right.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (action, pattern) = text.split_once(':').ok_or(Self::SHAPE)?;
        let known = Action::ALL.into_iter().find(|known| known.name() == action);
        if known.is_none() && action != "*" {
            let names = Action::ALL.map(Action::name).join(", ");
            return Err(format!("no such action: {action:?}; there are {names}, and * for all"));
        }
        Ok(Self {
            action: known,
            is_for_all_topics: pattern == "**",
            pattern: pattern.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.action.map_or("*", Action::name), self.pattern)
    }
}

/// As a grant that would give it.
impl fmt::Display for Permission<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(action, topic) => write!(f, "{}:{topic}", action.name()),
            Self::EveryTopic(action) | Self::SomeTopic(action) => write!(f, "{}:**", action.name()),
            Self::Key => f.write_str("a ticket"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_an_action_on_the_topics_of_a_pattern() {
        for (grant, action, topic, expected) in [
            ("publish:orders/eu", Action::Publish, "orders/eu", true),
            ("publish:orders/eu", Action::Publish, "orders/us", false),
            ("publish:orders/eu", Action::Pull, "orders/eu", false),
            ("pull:orders/*", Action::Pull, "orders/eu", true),
            ("pull:orders/*", Action::Pull, "orders/eu/late", false),
            ("pull:orders/*", Action::Pull, "orders", false),
            ("delete:orders/**", Action::Delete, "orders/eu/late", true),
            ("delete:orders/**", Action::Delete, "order/s", false),
            ("*:a", Action::Inspect, "a", true),
            ("*:**", Action::Subscribe, "x/y", true),
        ] {
            let topic = topic.parse().unwrap();
            let parsed: Grant = grant.parse().unwrap();
            assert_eq!(
                parsed.gives(Permission::Topic(action, &topic)),
                expected,
                "{grant} {topic}"
            );
            assert_eq!(parsed.to_string(), grant);
        }
    }

    #[test]
    fn every_topic_is_two_stars_and_nothing_less() {
        for (grant, every, some) in [
            ("inspect:**", true, true),
            ("*:**", true, true),
            ("inspect:*", false, true),
            ("inspect:a/**", false, true),
            ("pull:**", false, false),
        ] {
            let grant: Grant = grant.parse().unwrap();
            assert_eq!(grant.gives(Permission::EveryTopic(Action::Inspect)), every, "{grant}");
            assert_eq!(grant.gives(Permission::SomeTopic(Action::Inspect)), some, "{grant}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (text, mention) in [
            ("publish", "ACTION:TOPIC"),
            ("", "ACTION:TOPIC"),
            ("publsh:a", "there are publish, pull, subscribe, delete, inspect, and * for all"),
            (":a", "no such action"),
            ("Publish:a", "no such action"),
            ("publish:", "must not be empty"),
            ("publish:a//b", "empty"),
            ("publish:**/a", "last segment"),
            ("publish:a*", "whole segment"),
        ] {
            let error = text.parse::<Grant>().expect_err(text);
            assert!(error.contains(mention), "{text:?} gave {error:?}");
        }
    }
}
