//! The protocols that clients speak. A door calls the service; doors do not import each other's code.

pub(crate) mod http;
#[cfg(test)]
mod line;
pub(crate) mod websocket;
