//! Requests to services and their replies. docs/protocol.md, section 17.

mod failure;
mod http;
mod request;
mod responder;
mod summary;

pub(crate) use self::request::{Answer, Replier};
pub use self::{
    failure::{Failure, RequestError},
    request::Request,
    responder::Responder,
    summary::ServiceSummary,
};
