//! Grants: an action on the topics that match a pattern, written `publish:orders/**`.

use std::{fmt, str::FromStr};

use msgbus_core::{TopicName, TopicPattern};

/// An action on a topic, or on a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Publish,
    Pull,
    Subscribe,
    Delete,
    Inspect,
    /// To create, move and remove groups, and to delete topics.
    Admin,
    /// To ask a service.
    Request,
    /// To answer the requests of a service.
    Serve,
}

impl Action {
    pub(super) const ALL: [Self; 8] = [
        Self::Publish,
        Self::Pull,
        Self::Subscribe,
        Self::Delete,
        Self::Inspect,
        Self::Admin,
        Self::Request,
        Self::Serve,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Pull => "pull",
            Self::Subscribe => "subscribe",
            Self::Delete => "delete",
            Self::Inspect => "inspect",
            Self::Admin => "admin",
            Self::Request => "request",
            Self::Serve => "serve",
        }
    }

    /// Whether whoever may do this may also do the other.
    pub(super) fn covers(self, other: Self) -> bool {
        self == other || (self, other) == (Self::Admin, Self::Delete)
    }
}

/// A grant of a key: one action, or all actions, on the topics that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// `None` for every action.
    action: Option<Action>,
    pattern: TopicPattern,
    is_for_all_topics: bool,
}

/// A permission that a request needs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Permission<'a> {
    /// The action on this topic.
    Topic(Action, &'a TopicName),
    /// The action on some topic that may match this pattern.
    Pattern(Action, &'a TopicPattern),
    /// The action on every topic.
    EveryTopic(Action),
    /// The action on at least one topic.
    SomeTopic(Action),
    /// Any key, whatever its grants.
    Key,
    /// Nothing: only an unknown key is refused.
    Anything,
}

impl Grant {
    pub(super) const SHAPE: &str = "expected ACTION:TOPIC, such as publish:orders/** or *:**";

    pub(super) fn allows(&self, permission: Permission<'_>) -> bool {
        let is_for = |action| self.action.is_none_or(|own| own.covers(action));
        match permission {
            Permission::Topic(action, topic) => is_for(action) && self.pattern.matches(topic),
            Permission::Pattern(action, pattern) => {
                is_for(action) && self.pattern.overlaps(pattern)
            }
            Permission::EveryTopic(action) => is_for(action) && self.is_for_all_topics,
            Permission::SomeTopic(action) => is_for(action),
            Permission::Key | Permission::Anything => false,
        }
    }
}

impl FromStr for Grant {
    /// The error text. It says what is expected.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (action, pattern) = text.split_once(':').ok_or(Self::SHAPE)?;
        let known = Action::ALL.into_iter().find(|known| known.name() == action);
        if known.is_none() && action != "*" {
            let names = Action::ALL.map(Action::name).join(", ");
            return Err(format!(
                "unknown action {action:?}; expected one of {names}, or * for all"
            ));
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

/// Printed as a grant that allows it.
impl fmt::Display for Permission<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(action, topic) => write!(f, "{}:{topic}", action.name()),
            Self::Pattern(action, pattern) => write!(f, "{}:{pattern}", action.name()),
            Self::EveryTopic(action) | Self::SomeTopic(action) => write!(f, "{}:**", action.name()),
            Self::Key => f.write_str("a ticket"),
            Self::Anything => f.write_str("anything"),
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
            ("delete:a", Action::Admin, "a", false),
            ("admin:orders/**", Action::Admin, "orders/eu", true),
            ("admin:orders/**", Action::Delete, "orders/eu", true),
            ("admin:orders/**", Action::Delete, "other", false),
            ("admin:orders/**", Action::Pull, "orders/eu", false),
            ("*:a", Action::Admin, "a", true),
            ("*:a", Action::Inspect, "a", true),
            ("*:**", Action::Subscribe, "x/y", true),
        ] {
            let topic = topic.parse().unwrap();
            let parsed: Grant = grant.parse().unwrap();
            assert_eq!(
                parsed.allows(Permission::Topic(action, &topic)),
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
            assert_eq!(grant.allows(Permission::EveryTopic(Action::Inspect)), every, "{grant}");
            assert_eq!(grant.allows(Permission::SomeTopic(Action::Inspect)), some, "{grant}");
        }
    }

    #[test]
    fn errors_say_what_is_expected() {
        for (text, mention) in [
            ("publish", "ACTION:TOPIC"),
            ("", "ACTION:TOPIC"),
            (
                "publsh:a",
                "one of publish, pull, subscribe, delete, inspect, admin, request, serve, or * for all",
            ),
            (":a", "unknown action"),
            ("Publish:a", "unknown action"),
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
