//! `request`: asks a service.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use msgbus_core::{
    NewRequest, PublishError, Reply, TopicName,
    json::{self, PayloadForm},
};

use super::{
    MAX_ASKED,
    answer::write_refusal,
    content::{Content, write_json},
    identifier::{Identifier, Label},
    operation,
    operations::{Begun, Operations},
    output::Output,
    refusal::Refusal,
};
use crate::{
    service::{
        error::ServiceError,
        parameters::{self, TIMEOUTS},
        requests::Asked,
    },
    worker::Worker,
};

/// A request that waits for its reply. Dropping it takes the request back.
#[derive(Debug)]
pub(super) struct Ask {
    worker: Arc<Worker>,
    rid: Label,
    form: PayloadForm,
    asked: Asked,
}

impl Operations {
    pub(super) fn ask(
        &mut self,
        fields: &operation::Ask<'_>,
        rid: Option<&Identifier<'_>>,
    ) -> Result<Begun, Refusal> {
        let rid = rid.ok_or(Refusal::Missing("rid"))?.to_label();
        let service = service_name(fields.service.needed_text("service")?)?;
        let content = Content::of(&fields.text, &fields.json, &fields.base64, &fields.headers);
        let timeout = fields.timeout.text();
        let timeout =
            timeout.map(|text| parameters::duration("timeout", text, &TIMEOUTS)).transpose()?;
        let request = NewRequest::new(content.payload(self.client.worker.config.max_payload)?)
            .headers(content.headers()?.unwrap_or_default())
            .timeout(timeout.unwrap_or(NewRequest::DEFAULT_TIMEOUT));
        let may_repeat = fields.retry.get().is_some_and(|retry| *retry);
        if self.activities.asked() >= MAX_ASKED {
            return Err(Refusal::TooManyAsked);
        }
        let call = self.client.call();
        let request = if may_repeat { request.may_repeat() } else { request };
        let asked = call.ask(&service)?.send(request)?;
        let worker = Arc::clone(&self.client.worker);
        self.activities.ask(Ask { worker, rid, form: fields.payload.form(), asked });
        Ok(Begun::Answers)
    }
}

/// The name of a service, which follows the rules of topic names.
pub(super) fn service_name(name: &str) -> Result<TopicName, Refusal> {
    TopicName::new(name).map_err(Refusal::ServiceName)
}

impl Ask {
    /// Waits for the reply, unless the server stops.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, ServiceError>> {
        let polled = Pin::new(&mut self.asked).poll(cx);
        if polled.is_pending() && self.worker.tasks.stop.is_draining() {
            return Poll::Ready(Err(PublishError::Closed.into()));
        }
        polled
    }

    pub(super) fn answer(self, outcome: Result<Reply, ServiceError>, output: &mut Output<'_>) {
        let Self { worker, rid, form, .. } = self;
        match outcome {
            Ok(Reply { payload, headers }) => {
                let text = output.text();
                text.extend_from_slice(br#"{"op":"ok","rid":"#);
                text.extend_from_slice(rid.as_bytes());
                let size = json::content_size_hint(&payload, &headers);
                write_json(output, &worker.inflight, size, |out| {
                    json::write_content(out, &payload, &headers, form);
                });
                output.text().push(b'}');
                output.end_line();
            }
            Err(error) => {
                let refusal = Refusal::from(error);
                worker.metrics.refusal(refusal.code());
                write_refusal(&refusal, Some(rid.as_bytes()), Some("request"), output);
            }
        }
    }
}
