//! `ack`, `nack` and `extend`: settle leases.

use msgbus_core::{LeaseOptions, LeaseToken, Settlement, json};

use super::{
    answer::Answer,
    operation::{Ack, Extend, Field, Nack, Text},
    operations::{Begun, Operations},
    refusal::Refusal,
    subscribe::lease,
};
use crate::{
    code::Code,
    dialogue::Client,
    service::{
        lease::shortened,
        parameters::{self, DELAYS, MAX_SETTLED},
    },
};

/// The leases of one operation.
enum Leases {
    One(LeaseToken),
    /// Each with its number. A text that is no token is shortened.
    Many {
        tokens: Vec<(usize, LeaseToken)>,
        texts: Vec<Box<str>>,
        unsettled: Vec<(usize, Code)>,
    },
}

impl Operations {
    pub(super) fn ack(&self, fields: &Ack<'_>) -> Result<Begun, Refusal> {
        self.settle(&fields.token, &fields.tokens, Settlement::Ack)
    }

    pub(super) fn nack(&self, fields: &Nack<'_>) -> Result<Begun, Refusal> {
        let delay = fields.delay.text().map(|text| parameters::duration("delay", text, &DELAYS));
        let delay = delay.transpose()?.unwrap_or_default();
        let reason = fields.reason.text().map(Box::from);
        self.settle(&fields.token, &fields.tokens, Settlement::Nack { delay, reason })
    }

    pub(super) fn extend(&self, fields: &Extend<'_>) -> Result<Begun, Refusal> {
        let lease = lease(fields.lease.text())?.unwrap_or(LeaseOptions::default().lease);
        self.settle(&fields.token, &fields.tokens, Settlement::Extend { lease })
    }

    fn settle(
        &self,
        token: &Field<Text<'_>>,
        tokens: &Field<Vec<Text<'_>>>,
        settlement: Settlement,
    ) -> Result<Begun, Refusal> {
        let client = self.contact.client.clone();
        Ok(Begun::Waits(match Leases::of(token, tokens)? {
            Leases::One(token) => Box::pin(one(client, token, settlement)),
            Leases::Many { tokens, texts, unsettled } => Box::pin(async move {
                let settled = client.call().settle_all(tokens, settlement).await?;
                Ok(Answer::Unsettled(write_unsettled(&texts, unsettled, settled.unsettled)))
            }),
        }))
    }
}

impl Leases {
    fn of(token: &Field<Text<'_>>, tokens: &Field<Vec<Text<'_>>>) -> Result<Self, Refusal> {
        let texts = match (token.text(), tokens.get()) {
            (Some(_), Some(_)) => return Err(Refusal::Exclusive("token and tokens")),
            (Some(token), None) => return Ok(Self::One(token.parse()?)),
            (None, None) => return Err(Refusal::Missing("token")),
            (None, Some(tokens)) => tokens,
        };
        if texts.len() > MAX_SETTLED {
            return Err(Refusal::TooManyTokens { limit: MAX_SETTLED });
        }
        let (mut tokens, mut unsettled) = (Vec::with_capacity(texts.len()), Vec::new());
        let name = |(number, text): (usize, &Text<'_>)| -> Box<str> {
            let previous = tokens.last().map(|(_, token)| token);
            match LeaseToken::parse_like(text.as_str(), previous) {
                Ok(token) => {
                    tokens.push((number, token));
                    text.as_str().into()
                }
                Err(_) => {
                    unsettled.push((number, Code::InvalidLease));
                    shortened(text.as_str()).into()
                }
            }
        };
        let texts = texts.iter().enumerate().map(name).collect();
        Ok(Self::Many { tokens, texts, unsettled })
    }
}

async fn one(client: Client, token: LeaseToken, settlement: Settlement) -> Result<Answer, Refusal> {
    let expires = client.call().settle(&token, settlement).await?.map(json::format_time);
    Ok(expires.map_or(Answer::Done, Answer::Extended))
}

/// The leases that were not settled, in the order of their tokens.
fn write_unsettled(
    texts: &[Box<str>],
    mut unsettled: Vec<(usize, Code)>,
    more: Vec<(usize, Code)>,
) -> Vec<u8> {
    unsettled.extend(more);
    unsettled.sort_unstable_by_key(|(number, _)| *number);
    let mut out = Vec::new();
    for (index, (number, code)) in unsettled.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json::write_unsettled(&mut out, &texts[number], code.word());
    }
    out
}
