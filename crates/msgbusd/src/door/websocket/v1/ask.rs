//! `request`: asks a service.

use msgbus_core::{NewRequest, Reply, TopicName, json};

use super::{
    V1,
    content::{Content, write_json},
    identifier::Identifier,
    operation,
    operations::{Begun, Operations, Waiter},
    refusal::Refusal,
};
use crate::{
    dialogue::Contact,
    service::{
        Authority,
        parameters::{self, TIMEOUTS},
    },
};

impl Operations {
    pub(super) fn ask_one(
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
        let request =
            NewRequest::new(content.payload(self.contact.client.worker.config.max_payload)?)
                .headers(content.headers()?.unwrap_or_default())
                .timeout(timeout.unwrap_or(NewRequest::DEFAULT_TIMEOUT));
        let may_repeat = fields.retry.get().is_some_and(|retry| *retry);
        let request = if may_repeat { request.may_repeat() } else { request };
        let waiter = Waiter { rid: Some(rid), of: "request", form: fields.payload.form() };
        self.ask(waiter, (&service, Authority::Own), request)?;
        Ok(Begun::Answers)
    }
}

/// The name of a service, which follows the rules of topic names.
pub(super) fn service_name(name: &str) -> Result<TopicName, Refusal> {
    TopicName::new(name).map_err(Refusal::ServiceName)
}

pub(super) fn write_reply(
    Contact { client, output, .. }: &mut Contact<V1>,
    waiter: &Waiter,
    Reply { payload, headers }: &Reply,
) {
    let text = output.text();
    text.extend_from_slice(br#"{"op":"ok","rid":"#);
    text.extend_from_slice(waiter.rid.as_deref().unwrap_or_default().as_bytes());
    let size = json::content_size_hint(payload, headers);
    write_json(output, &client.worker.inflight, size, |out| {
        json::write_content(out, payload, headers, waiter.form);
    });
    output.text().push(b'}');
    output.end_line();
}
