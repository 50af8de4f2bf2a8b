//! How long to try again while the server cannot be reached.

use std::{mem, time::Duration};

use crate::{backoff::Backoff, error::ClientError};

/// Decides whether a request that takes work is repeated: the first one only if the server asks for it, so that a wrong
/// address is noticed; once the server has answered, for as long as it cannot be reached.
#[derive(Debug, Default)]
pub struct Reachability {
    backoff: Backoff,
    /// Whether the server has ever answered.
    established: bool,
    /// Whether the last request did not reach it.
    is_away: bool,
}

/// A pause before the next attempt.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outage {
    /// Why the last attempt failed.
    pub error: ClientError,
    /// How long to wait.
    pub pause: Duration,
    /// Whether the attempt before it was successful, so that people want to know.
    pub is_news: bool,
}

impl Reachability {
    /// Whether the last request reached the server. If not, the next one should not wait at the server, so that it is
    /// known at once whether it answers.
    pub fn is_reached(&self) -> bool {
        self.established && !self.is_away
    }

    /// The server has answered. Returns whether it could not be reached before.
    pub fn reached(&mut self) -> bool {
        self.backoff.reset();
        self.established = true;
        mem::take(&mut self.is_away)
    }

    /// A request has failed. Returns how long to wait before the next attempt.
    ///
    /// # Errors
    /// Returns the error if another attempt would not help.
    pub fn failed(&mut self, error: ClientError) -> Result<Outage, ClientError> {
        if !self.is_retryable(&error) {
            return Err(error);
        }
        let mut pause = self.backoff.next();
        let was_away = match &error {
            ClientError::Busy { retry_after, .. } => {
                pause = pause.max(*retry_after);
                self.established = true;
                false
            }
            _ => mem::replace(&mut self.is_away, true),
        };
        Ok(Outage { error, pause, is_news: !was_away })
    }

    fn is_retryable(&self, error: &ClientError) -> bool {
        match error {
            ClientError::Busy { .. } => true,
            // A proxy may answer while the server is down.
            ClientError::NotMsgbus { .. }
            | ClientError::Refused { status: 404 | 408 | 507, .. } => self.established,
            error => self.established && error.is_temporary(),
        }
    }
}
