//! `msgbus bench` in a build without the load generator.

use std::ffi::OsString;

use crate::{
    failure::{Exit, Failure},
    reader::Options,
};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Bench {}

impl Bench {
    pub(crate) fn parse(_: &mut Options, _: Option<OsString>) -> Result<Self, Failure> {
        Err(Failure::usage("this msgbus was built without the load generator (feature \"bench\")"))
    }
}

pub(crate) fn run(bench: Bench) -> Result<Exit, Failure> {
    match bench {}
}
