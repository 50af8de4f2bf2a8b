//! The built `msgbus` against a real server: through pipes, on a terminal, across cut connections and
//! restarts. docs/cli.md.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod bench;
mod cursor;
mod engines;
mod from_dump;
mod keys;
mod killed_workers;
mod lease;
mod many;
mod poll;
mod publish;
mod pull;
mod relay;
mod secure;
mod services;
mod services_to;
mod subscribe;
mod subscribe_command;
mod support;
mod terminal;
mod texts;
mod topics;
mod unix;
mod usage;
mod work;
