//! Answers a request with a run of a command.

use std::{ffi::OsString, future::pending, process::Stdio};

use msgbus_client::{Failure as ServiceFailure, Headers, Reply, Request};

use super::{Answer, MAX_REPLY};
use crate::{
    execute::{Ended, Execute},
    failure::Failure,
    reader::Options,
};

#[derive(Debug)]
pub(super) struct Run {
    pub(super) execute: Execute,
    /// The headers of each reply.
    headers: Headers,
}

impl Run {
    pub(super) fn parse(
        options: &mut Options,
        (program, arguments): (OsString, Vec<OsString>),
    ) -> Result<Self, Failure> {
        let headers = options.message_headers()?;
        Ok(Self { execute: Execute::new(program, arguments, true)?, headers })
    }

    /// See [`Handler::handle`](super::Handler::handle).
    pub(super) async fn handle(
        &self,
        request: &Request,
        cut: impl Future<Output = ()>,
    ) -> Result<Option<Answer>, Failure> {
        let name = self.execute.name();
        let mut command = self.execute.command_for_request(request);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = request.payload().to_vec();
        let ended = self.execute.run(command, input, MAX_REPLY, pending(), cut).await?;
        Ok(match ended {
            Ended::Exited { status, output, .. } if status.success() => {
                Some(Ok(Reply { payload: output.into(), headers: self.headers.clone() }))
            }
            Ended::Exited { status, last_line, .. } => Some(Err(match last_line {
                Some(line) => line.into(),
                None => format!("{name} failed: {status}").into(),
            })),
            Ended::TooLong => {
                let limit = MAX_REPLY >> 20;
                Some(Err(ServiceFailure::new(format!("{name} printed more than {limit} MiB"))))
            }
            Ended::Killed => None,
        })
    }
}
