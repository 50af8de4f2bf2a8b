//! Benchmarks of the engine, comparisons with other servers, and the soak test.

pub mod bare;
mod certificate;
pub mod compare;
pub mod engines;
pub mod micro;
mod running;
pub mod soak;
