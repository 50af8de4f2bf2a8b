//! Measures msgbus: its engine, and it beside others.

pub mod bare;
pub mod compare;
pub mod micro;
