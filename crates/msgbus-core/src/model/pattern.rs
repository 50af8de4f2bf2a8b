//! Patterns over topic names, and their order by specificity.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::name::{NameError, TopicName};

/// A pattern over topic names. `*` matches one segment, and `**` at the end matches all remaining segments (at
/// least one). A pattern without wildcards matches the topic of that name.
///
/// Patterns are ordered from the most specific to the least: segment by segment, a literal comes
/// before `*`, and `*` before `**`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPattern(Vec<Segment>);

/// The order of the variants is the order of specificity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Segment {
    Literal(String),
    One,
    Rest,
}

/// Why a text is not a valid pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PatternError {
    /// The pattern breaks a rule of topic names.
    #[error(transparent)]
    Name(#[from] NameError),
    /// `*` is part of a segment. It must be a whole segment.
    #[error("\"*\" stands for a whole segment, as in logs/*, not for a part of one")]
    PartOfSegment,
    /// `**` is not the last segment.
    #[error("\"**\" must be the last segment of a pattern")]
    RestNotLast,
}

impl TopicPattern {
    /// Whether the pattern matches `name`.
    pub fn matches(&self, name: &TopicName) -> bool {
        let mut pattern = self.0.iter();
        for segment in name.as_str().split('/') {
            match pattern.next() {
                Some(Segment::Literal(literal)) if literal == segment => {}
                Some(Segment::One) => {}
                Some(Segment::Rest) => return true,
                Some(Segment::Literal(_)) | None => return false,
            }
        }
        pattern.next().is_none()
    }

    /// Whether the pattern matches every name that the other one matches.
    pub fn covers(&self, other: &Self) -> bool {
        let (mut own, mut others) = (self.0.iter(), other.0.iter());
        loop {
            match (own.next(), others.next()) {
                (None, None) | (Some(Segment::Rest), Some(_)) => return true,
                (Some(Segment::One), Some(Segment::One | Segment::Literal(_))) => {}
                (Some(Segment::Literal(one)), Some(Segment::Literal(other))) if one == other => {}
                _ => return false,
            }
        }
    }

    /// Whether a topic may have a name that both patterns match.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut own, mut others) = (self.0.iter(), other.0.iter());
        loop {
            match (own.next(), others.next()) {
                (None, None) | (Some(Segment::Rest), Some(_)) | (Some(_), Some(Segment::Rest)) => {
                    return true;
                }
                (Some(Segment::Literal(one)), Some(Segment::Literal(other))) if one != other => {
                    return false;
                }
                (Some(_), Some(_)) => {}
                (None, Some(_)) | (Some(_), None) => return false,
            }
        }
    }
}

impl FromStr for TopicPattern {
    type Err = PatternError;

    /// # Errors
    /// When `text` breaks a rule of [`PatternError`].
    fn from_str(text: &str) -> Result<Self, PatternError> {
        // Replacing each wildcard by a valid segment must give a valid name.
        let stand_in: Vec<&str> = text
            .split('/')
            .map(|part| if matches!(part, "*" | "**") { "x" } else { part })
            .collect();
        TopicName::new(&stand_in.join("/"))?;
        let segments: Vec<Segment> = text
            .split('/')
            .map(|part| match part {
                "*" => Segment::One,
                "**" => Segment::Rest,
                literal => Segment::Literal(literal.to_owned()),
            })
            .collect();
        if segments
            .iter()
            .any(|segment| matches!(segment, Segment::Literal(text) if text.contains('*')))
        {
            return Err(PatternError::PartOfSegment);
        }
        if segments.iter().rev().skip(1).any(|segment| *segment == Segment::Rest) {
            return Err(PatternError::RestNotLast);
        }
        Ok(Self(segments))
    }
}

/// The pattern that matches only this topic.
impl From<&TopicName> for TopicPattern {
    fn from(name: &TopicName) -> Self {
        Self(name.as_str().split('/').map(|part| Segment::Literal(part.to_owned())).collect())
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("/")?;
            }
            f.write_str(match segment {
                Segment::Literal(literal) => literal,
                Segment::One => "*",
                Segment::Rest => "**",
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> TopicPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_is_one_segment_and_two_are_the_rest() {
        for (text, name, expected) in [
            ("a", "a", true),
            ("a", "a/b", false),
            ("a/b", "a", false),
            ("*", "a", true),
            ("*", "a/b", false),
            ("a/*", "a/b", true),
            ("a/*", "a", false),
            ("*/b", "a/b", true),
            ("**", "a/b/c", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/*/**", "a/b/c/d", true),
        ] {
            assert_eq!(pattern(text).matches(&name.parse().unwrap()), expected, "{text} on {name}");
        }
    }

    #[test]
    fn patterns_overlap_if_a_name_matches_both() {
        for (one, other, expected) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a/*", "a/b", true),
            ("a/*", "*/b", true),
            ("a/*", "b/*", false),
            ("a/*", "a/b/c", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**", "*/*/c", true),
            ("a/**", "b/**", false),
            ("**", "a", true),
            ("a/b/**", "a/**", true),
        ] {
            assert_eq!(pattern(one).overlaps(&pattern(other)), expected, "{one} {other}");
            assert_eq!(pattern(other).overlaps(&pattern(one)), expected, "{other} {one}");
        }
    }

    #[test]
    fn a_pattern_covers_those_that_match_no_other_names() {
        for (one, other, expected) in [
            ("a", "a", true),
            ("a", "b", false),
            ("*", "a", true),
            ("a", "*", false),
            ("*", "**", false),
            ("**", "*", true),
            ("**", "**", true),
            ("a/**", "a/*/c", true),
            ("a/**", "a", false),
            ("a/**", "**", false),
            ("a/*", "a/b/c", false),
            ("*/b", "a/*", false),
        ] {
            assert_eq!(pattern(one).covers(&pattern(other)), expected, "{one} {other}");
        }
    }

    #[test]
    fn the_most_specific_comes_first() {
        let mut patterns = ["**", "a/**", "*/b", "a/b", "*", "a/*", "a/*/c"].map(pattern);
        patterns.sort();
        let sorted: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        assert_eq!(sorted, ["a/b", "a/*", "a/*/c", "a/**", "*", "*/b", "**"]);
    }

    #[test]
    fn a_pattern_keeps_the_rules_of_names() {
        for text in ["", "a//b", "**/a", "/", "metrics", "-/*", "logs-*"] {
            assert!(text.parse::<TopicPattern>().is_err(), "{text}");
        }
    }
}
