//! Measures msgbus: its engine, and it beside others. And wears it: the soak.

pub mod bare;
mod certificate;
pub mod compare;
pub mod micro;
pub mod soak;
