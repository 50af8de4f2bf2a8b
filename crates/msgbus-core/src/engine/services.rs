//! Services, as buses see those of others.

use crate::model::{NewRequest, Reply, RequestError};

/// Whether a service is served at a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// A responder waits.
    Free,
    /// There are responders, which are busy: a request waits.
    Busy,
    /// There are responders, which are busy, and as many requests wait as may: one more is refused.
    Full,
    /// Nobody serves it.
    Absent,
}

/// Takes a request that is to be sent to another bus. `None` if it is not to be sent any more.
pub type TakeRequest = Box<dyn FnOnce() -> Option<NewRequest> + Send>;

/// Which bus is wanted for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// One where a responder waits, if there is one.
    IfFree,
    /// Any where there are responders.
    Queue,
}

/// What became of a request that was sent to another bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Its outcome.
    Over(Result<Reply, RequestError>),
    /// No bus was found where a responder waits, with [`Urgency::IfFree`]; or there was no request any more.
    Busy,
    /// The bus that was found does not take it. Another one may.
    Refused(RequestError),
    /// All buses that were found are [full](Availability::Full). The request was not taken.
    Full,
    /// No bus serves the service.
    Nobody,
}

impl From<Result<Reply, RequestError>> for Asked {
    /// What a bus that was asked has to say, after [`ServiceSink::ask`](super::ServiceSink::ask).
    fn from(outcome: Result<Reply, RequestError>) -> Self {
        match outcome {
            Err(error) if error.is_refusal() => Self::Refused(error),
            outcome => Self::Over(outcome),
        }
    }
}
