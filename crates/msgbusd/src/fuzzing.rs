//! The fuzz targets of this crate: properties that hold for any bytes from outside. `fuzz/` runs them with generated
//! input; the tests here replay the corpus.

use std::cell::RefCell;

use tokio::runtime::{Builder, Runtime};

#[path = "../../../fuzz/common.rs"]
pub(crate) mod common;

pub use crate::{
    auth::fuzzing::keys,
    config::fuzzing::config,
    door::{
        drs::fuzzing::commands,
        http::fuzzing::{authorization, connection, origin, request},
        middleman::fuzzing::middleman,
        websocket::v1::fuzzing::operations,
    },
    websocket::fuzzing::websocket,
};

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without a socket")
    );
}

/// Runs a future on a paused clock, which advances to the next timer when no task can run.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with_borrow(|runtime| runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use super::common::replay;

    #[test]
    fn request() {
        replay("request", super::request);
    }

    #[test]
    fn commands() {
        replay("commands", super::commands);
    }

    #[test]
    fn authorization() {
        replay("authorization", super::authorization);
    }

    #[test]
    fn origin() {
        replay("origin", super::origin);
    }

    #[test]
    fn connection() {
        replay("connection", super::connection);
    }

    #[test]
    fn websocket() {
        replay("websocket", super::websocket);
    }

    #[test]
    fn operations() {
        replay("operations", super::operations);
    }

    #[test]
    fn middleman() {
        replay("middleman", super::middleman);
    }

    #[test]
    fn config() {
        replay("config", super::config);
    }

    #[test]
    fn keys() {
        replay("keys", super::keys);
    }
}
