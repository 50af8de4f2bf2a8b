//! A publish rate.

use std::num::NonZeroU32;

/// Messages per second.
pub(crate) type Rate = NonZeroU32;

/// The highest rate that can be set: higher rates cannot be measured.
pub(crate) const HIGHEST: u32 = 10_000_000;

/// Parses a whole number from 1 to [`HIGHEST`].
pub(crate) fn parse(text: &str) -> Option<Rate> {
    text.parse().ok().filter(|rate: &Rate| rate.get() <= HIGHEST)
}
