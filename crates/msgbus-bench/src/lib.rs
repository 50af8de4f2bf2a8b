//! Measures msgbus.

pub mod micro;
