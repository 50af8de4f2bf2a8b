//! `serve` and `reply`: serves a service, and answers its requests.

use msgbus_core::{Reply, ReplyToken};

use super::{
    answer::Answer,
    ask::service_name,
    content::Content,
    operation,
    operations::{Begun, Operations},
    refusal::Refusal,
};
use crate::service::{parameters::BadParameter, requests::Answer as ServiceAnswer};

/// The highest number of requests that a client may have at a time from one `serve`.
const MAX_AT_A_TIME: usize = 10_000;

impl Operations {
    pub(super) fn serve_one(&mut self, fields: &operation::Serve<'_>) -> Result<Begun, Refusal> {
        let sid = fields.sid.needed("sid")?.to_label();
        self.check_new(&sid)?;
        let service = service_name(fields.service.needed_text("service")?)?;
        let max = usize::try_from(fields.max.get().copied().unwrap_or(1)).unwrap_or(usize::MAX);
        if !(1..=MAX_AT_A_TIME).contains(&max) {
            let why = format!("use a whole number, 1 to {MAX_AT_A_TIME}");
            return Err(BadParameter::new("max", why).into());
        }
        self.serve((sid.clone(), fields.payload.form()), service, max)?;
        Ok(Begun::Done(Answer::Sid(sid)))
    }

    pub(super) fn reply_one(&mut self, fields: &operation::Reply<'_>) -> Result<Begun, Refusal> {
        let token: ReplyToken = fields.token.needed_text("token")?.parse()?;
        let answer = answer_of(fields, self.contact.client.worker.config.max_payload)?;
        match self.activities.answered(&token) {
            Some((token, origin)) => origin.reply(&token, answer)?,
            // It came from another connection.
            None => self.contact.client.call().reply(&token, answer)?,
        }
        Ok(Begun::Done(Answer::Done))
    }
}

/// What the fields say to a request.
fn answer_of(fields: &operation::Reply<'_>, limit: usize) -> Result<ServiceAnswer, Refusal> {
    let content = Content::of(&fields.text, &fields.json, &fields.base64, &fields.headers);
    let declines = fields.retry.get().is_some_and(|retry| *retry);
    match (fields.error.text(), declines) {
        (None, false) => {
            let payload = content.payload(limit)?;
            Ok(ServiceAnswer::Reply(Reply {
                payload,
                headers: content.headers()?.unwrap_or_default(),
            }))
        }
        _ if content.is_given() => Err(Refusal::Exclusive("a payload, error and retry")),
        (Some(_), true) => Err(Refusal::Exclusive("a payload, error and retry")),
        (Some(reason), false) => Ok(ServiceAnswer::failure(reason)),
        (None, true) => Ok(ServiceAnswer::Decline),
    }
}
