//! The protocols that clients speak. A door calls the service; it never imports another door's code.

pub(crate) mod http;
#[cfg(test)]
mod line;
pub(crate) mod websocket;
