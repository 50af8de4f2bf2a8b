//! `msgbus request`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, time::Duration};

use bytes::Bytes;
use msgbus_client::{Client, ClientError, NewRequest, Reply, RequestError, TopicName};
use tokio::time::Instant;

use crate::{
    failure::{Exit, Failure},
    input,
    output::{note, print_bytes},
    publish::Outage,
    reader::{Options, timeout},
};

/// The largest payload that is read, in bytes. No server accepts a larger one.
const MAX_PAYLOAD: usize = 1 << 30;

#[derive(Debug)]
pub(crate) struct Request {
    client: Client,
    service: TopicName,
    /// `None` reads standard input.
    payload: Option<OsString>,
    /// Without its payload.
    draft: NewRequest,
    timeout: Duration,
    quiet: bool,
}

impl Request {
    pub(crate) fn parse(
        options: &mut Options,
        service: TopicName,
        payload: Option<OsString>,
    ) -> Result<Self, Failure> {
        let draft = NewRequest::new(Bytes::new()).headers(options.message_headers()?);
        let retry = options.switch("--retry");
        Ok(Self {
            service,
            payload: payload.filter(|payload| payload != "-"),
            draft: if retry { draft.may_repeat() } else { draft },
            timeout: options.value("--timeout", timeout)?.unwrap_or(NewRequest::DEFAULT_TIMEOUT),
            client: options.client()?.0,
            quiet: options.quiet,
        })
    }

    /// Asks. Within --timeout it asks again only if nobody has seen the request: while no connection can be made, and
    /// while the server is busy.
    async fn ask(&self, payload: Bytes) -> Result<Reply, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut outage = Outage::default();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(*NewRequest::TIMEOUTS.start());
            let request = self.draft.clone().payload(payload.clone()).timeout(left);
            match self.client.request(&self.service, request).await {
                Ok(reply) => return Ok(reply),
                // The engine carries no requests between servers, and nobody serves at this one.
                Err(RequestError::Client(error @ ClientError::Refused { status: 501, .. })) => {
                    if !self.quiet {
                        note(&error.to_string());
                    }
                    let (service, error) = (self.service.clone(), RequestError::NoResponder);
                    return Err(Failure::NoReply { service, error });
                }
                Err(RequestError::Client(error)) => {
                    outage.wait(self.quiet, error, deadline).await?;
                }
                Err(error) => {
                    return Err(Failure::NoReply { service: self.service.clone(), error });
                }
            }
        }
    }
}

pub(crate) async fn run(args: Request) -> Result<Exit, Failure> {
    let payload = match &args.payload {
        Some(payload) => payload.clone().into_vec(),
        None => input::whole("the payload", MAX_PAYLOAD).await?,
    };
    let reply = args.ask(payload.into()).await?;
    print_bytes(&reply.payload)?;
    Ok(Exit::Done)
}
