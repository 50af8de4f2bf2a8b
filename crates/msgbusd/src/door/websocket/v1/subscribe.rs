//! `sub`, `unsub` and `credit`: subscriptions.

use msgbus_core::{GroupName, LeaseOptions, Position, TopicName};

use super::{
    V1,
    answer::Answer,
    identifier::{Identifier, Label},
    operation::{Credit, Subscribe, Unsubscribe},
    operations::{Begun, Opening, Operations},
    refusal::Refusal,
};
use crate::{
    auth::Target,
    dialogue::{Job, Lease},
    encode::format::FrameFormat,
    service::{
        follower::FollowOptions,
        parameters::{self, BadParameter, LEASES},
    },
};

impl Operations {
    pub(super) fn subscribe(
        &mut self,
        fields: &Subscribe<'_>,
        rid: Option<&Identifier<'_>>,
    ) -> Result<Begun, Refusal> {
        let sid = fields.sid.needed("sid")?.to_label();
        self.check_new(&sid)?;
        let name = fields.topic.needed_text("topic")?;
        let since = fields.since.text().map(parameters::since).transpose()?;
        if let Some(group) = fields.group.text() {
            let (topic, group) = (TopicName::new(name)?, GroupName::new(group)?);
            return self.work(fields, sid, topic, group, since);
        }
        for (name, is_given) in
            [("lease", fields.lease.get().is_some()), ("credit", fields.credit.get().is_some())]
        {
            if is_given {
                return Err(BadParameter::new(name, "only valid with group").into());
            }
        }
        let options = FollowOptions {
            from: since.unwrap_or_default(),
            lag: fields.lag.text().map(parameters::lag).transpose()?.unwrap_or_default(),
            format: FrameFormat::Object(fields.payload.form()),
        };
        let target: Target = name.parse()?;
        let following = self.contact.client.call().follow_target(&target, options);
        self.follow(sid, Opening::new(rid), following);
        Ok(Begun::Answers)
    }

    /// Refuses a subscription that cannot be added.
    pub(super) fn check_new(&self, sid: &Label) -> Result<(), Refusal> {
        if self.is_new(sid, 0)? { Ok(()) } else { Err(Refusal::SidInUse) }
    }

    /// Subscribes to the leases of a group.
    fn work(
        &mut self,
        fields: &Subscribe<'_>,
        sid: Label,
        topic: TopicName,
        group: GroupName,
        since: Option<Position>,
    ) -> Result<Begun, Refusal> {
        if fields.lag.get().is_some() {
            let why = "a group has no lag: what is evicted is counted by the group";
            return Err(BadParameter::new("lag", why).into());
        }
        let mut options = LeaseOptions::default();
        options.from = since.unwrap_or(options.from);
        options.lease = lease(fields.lease.text())?.unwrap_or(options.lease);
        let credit = credit(fields.credit.get().copied().unwrap_or(1), "credit", 0)?;
        let (name, job) = ((sid.clone(), fields.payload.form()), Job { topic, group, options });
        self.activities.lease(Lease::new(name, &self.contact.client, job, credit)?);
        Ok(Begun::Done(Answer::Sid(sid)))
    }

    pub(super) fn unsubscribe(
        &mut self,
        fields: &Unsubscribe<'_>,
        rid: Option<&Identifier<'_>>,
    ) -> Result<Begun, Refusal> {
        let sid = fields.sid.needed("sid")?.to_label();
        if let Some(opening) = self.activities.opening_of(&sid) {
            opening.unsubscribe(rid)?;
            return Ok(Begun::Answers);
        }
        Ok(Begun::Done(Answer::Sid(self.activities.end(&sid).ok_or(Refusal::UnknownSid)?)))
    }

    pub(super) fn credit(&mut self, fields: &Credit<'_>) -> Result<Begun, Refusal> {
        let sid = fields.sid.needed("sid")?.to_label();
        let more = credit(*fields.n.needed("n")?, "n", 1)?;
        let lease = self.activities.lease_of(&sid).ok_or(Refusal::UnknownSid)?;
        let credit = lease.map_err(|()| Refusal::NotAGroup)?.add_credit(more);
        Ok(Begun::Done(Answer::Credit { sid, credit }))
    }
}

/// A wanted duration of a lease.
pub(super) fn lease(text: Option<&str>) -> Result<Option<std::time::Duration>, BadParameter> {
    text.map(|text| parameters::duration("lease", text, &LEASES)).transpose()
}

fn credit(credit: u32, name: &'static str, least: usize) -> Result<usize, BadParameter> {
    let most = Lease::<V1>::MAX_CREDIT;
    let credit = usize::try_from(credit).unwrap_or(usize::MAX);
    if (least..=most).contains(&credit) {
        return Ok(credit);
    }
    Err(BadParameter::new(name, format!("use a whole number, {least} to {most}")))
}
