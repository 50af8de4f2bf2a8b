//! Who has asked for something, and gets an answer in any case.

use msgbus_core::engine::EngineError;
use tokio::sync::oneshot;

use crate::error::Request;

type Answer<T> = Result<T, EngineError>;

/// Who waits for the answer to what may have been sent to the server.
#[derive(Debug)]
pub(crate) struct Asker<T> {
    sender: Option<oneshot::Sender<Answer<T>>>,
    request: Request,
}

impl<T> Asker<T> {
    /// If this is dropped, as the runtime has ended or something has panicked, nobody knows whether a change was done.
    pub(crate) fn new(sender: oneshot::Sender<Answer<T>>, request: Request) -> Self {
        Self { sender: Some(sender), request }
    }

    /// Returns the answer if nobody waits for it any longer.
    pub(crate) fn answer(mut self, answer: Answer<T>) -> Result<(), Answer<T>> {
        self.sender.take().map_or(Ok(()), |sender| sender.send(answer))
    }

    /// Ready when nobody waits any longer.
    pub(crate) async fn left(&mut self) {
        if let Some(sender) = &mut self.sender {
            sender.closed().await;
        }
    }
}

impl<T> Drop for Asker<T> {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(Err(match self.request {
                Request::Harmless => EngineError::Closed,
                Request::Final => EngineError::Unknown,
            }));
        }
    }
}
