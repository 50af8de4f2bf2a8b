//! How many messages a second somebody may publish.

use std::num::NonZeroU32;

/// Messages per second.
pub(crate) type Rate = NonZeroU32;

/// The highest that can be set: beyond it there is no measuring.
pub(crate) const HIGHEST: u32 = 10_000_000;

/// A whole number from 1 to [`HIGHEST`].
pub(crate) fn parse(text: &str) -> Option<Rate> {
    text.parse().ok().filter(|rate: &Rate| rate.get() <= HIGHEST)
}
