//! What has to hold for any bytes from outside: the fuzz targets of this crate. `fuzz/` runs them with
//! bytes that it makes up, and the tests here with those that were worth keeping.

#[path = "../../../fuzz/common.rs"]
pub(crate) mod common;

pub use crate::{
    config::fuzzing::config,
    http::fuzzing::{authorization, connection, origin, request, websocket},
    keys::fuzzing::keys,
};

#[cfg(test)]
mod tests {
    use super::common::replay;

    #[test]
    fn request() {
        replay("request", super::request);
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
    fn config() {
        replay("config", super::config);
    }

    #[test]
    fn keys() {
        replay("keys", super::keys);
    }
}
