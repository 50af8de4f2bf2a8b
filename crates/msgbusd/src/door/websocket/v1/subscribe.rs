//! `sub`, `unsub` and `credit`: subscriptions.

use msgbus_core::{GroupName, LeaseOptions, TopicName};

use super::{
    answer::Answer,
    follow::Follow,
    operation::{Credit, Subscribe, Unsubscribe},
    operations::{Begun, Operations},
    refusal::Refusal,
    work::{Job, Work},
};
use crate::{
    encode::frame_cache::FrameFormat,
    service::{
        follower::FollowOptions,
        parameters::{self, BadParameter, LEASES},
    },
};

impl Operations {
    pub(super) fn subscribe(&mut self, fields: &Subscribe<'_>) -> Result<Begun, Refusal> {
        let sid = fields.sid.needed("sid")?.to_label();
        self.activities.check_new(&sid)?;
        let topic = TopicName::new(fields.topic.needed_text("topic")?)?;
        let since = fields.since.text().map(parameters::since).transpose()?;
        if let Some(group) = fields.group.text() {
            if fields.lag.get().is_some() {
                let why = "a group has no lag: what is evicted is counted by the group";
                return Err(BadParameter::new("lag", why).into());
            }
            let mut options = LeaseOptions::default();
            options.from = since.unwrap_or(options.from);
            options.lease = lease(fields.lease.text())?.unwrap_or(options.lease);
            let (group, form) = (GroupName::new(group)?, fields.payload.form());
            let credit = credit(fields.credit.get().copied().unwrap_or(1), "credit", 0)?;
            let job = Job { topic, group, options, form };
            let work = Work::new(sid.clone(), &self.client, job, credit)?;
            self.activities.work(work);
            return Ok(Begun::Done(Answer::Sid(sid)));
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
        // It is ready at once: a topic is subscribed to under its lock.
        let follower = self.client.call().follow(&topic, options).wait()?;
        let subscription = follower.subscription();
        let (epoch, start) = (subscription.epoch(), subscription.start());
        self.activities.follow(Follow { sid: sid.clone(), follower });
        Ok(Begun::Done(Answer::Subscribed { sid, epoch, start }))
    }

    pub(super) fn unsubscribe(&mut self, fields: &Unsubscribe<'_>) -> Result<Begun, Refusal> {
        let sid = fields.sid.needed("sid")?.to_label();
        Ok(Begun::Done(Answer::Sid(self.activities.unsubscribe(&sid)?)))
    }

    pub(super) fn credit(&mut self, fields: &Credit<'_>) -> Result<Begun, Refusal> {
        let sid = fields.sid.needed("sid")?.to_label();
        let more = credit(*fields.n.needed("n")?, "n", 1)?;
        let credit = self.activities.worker(&sid)?.add_credit(more);
        Ok(Begun::Done(Answer::Credit { sid, credit }))
    }
}

/// A wanted duration of a lease.
pub(super) fn lease(text: Option<&str>) -> Result<Option<std::time::Duration>, BadParameter> {
    text.map(|text| parameters::duration("lease", text, &LEASES)).transpose()
}

fn credit(credit: u32, name: &'static str, least: usize) -> Result<usize, BadParameter> {
    let most = Work::MAX_CREDIT;
    let credit = usize::try_from(credit).unwrap_or(usize::MAX);
    if (least..=most).contains(&credit) {
        return Ok(credit);
    }
    Err(BadParameter::new(name, format!("use a whole number, {least} to {most}")))
}
