//! The JSON of leased messages and of groups. See docs/protocol.md, section 14.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    JsonError, PayloadForm, Time, read_message, size_hint, time, write, write_message_as,
    write_number,
};
use crate::{
    model::{Leased, TopicName},
    stats::{GroupStats, LeaseStats},
};

/// Appends a leased message as one JSON object, without a line end: the message, and its lease in the last fields.
pub fn write_leased(out: &mut Vec<u8>, leased: &Leased) {
    write_leased_as(out, leased, PayloadForm::Base64);
}

/// Appends a leased message as [`write_leased`] does, with its payload in this form.
pub fn write_leased_as(out: &mut Vec<u8>, leased: &Leased, form: PayloadForm) {
    write_message_as(out, &leased.message, form);
    out.pop();
    out.push(b',');
    write_lease(out, leased);
    out.push(b'}');
}

/// Appends the fields of a lease, for an object that has others.
pub fn write_lease(out: &mut Vec<u8>, leased: &Leased) {
    out.extend_from_slice(br#""lease":""#);
    leased.token.write_to(out);
    out.extend_from_slice(br#"","deliveries":"#);
    write_number(out, leased.deliveries.into());
    out.extend_from_slice(br#","lease_expires":""#);
    time::write(out, leased.expires);
    out.push(b'"');
}

/// An estimate of how many bytes [`write_leased`] appends, as [`size_hint`] is one.
pub fn leased_size_hint(leased: &Leased) -> usize {
    const FIELDS: usize = 160;
    let name = leased.message.topic().name.as_str().len();
    size_hint(&leased.message) + FIELDS + name.div_ceil(3) * 4
}

/// Reads one leased message. Unknown fields are ignored.
///
/// # Errors
/// When `json` is not such an object.
pub fn read_leased(json: &[u8]) -> Result<Leased, JsonError> {
    #[derive(Deserialize)]
    struct LeaseIn<'a> {
        #[serde(borrow)]
        lease: Cow<'a, str>,
        deliveries: u32,
        lease_expires: DateTime<Utc>,
    }
    let message = read_message(json)?;
    let LeaseIn { lease, deliveries, lease_expires } = serde_json::from_slice(json)?;
    Ok(Leased { message, token: lease.parse()?, deliveries, expires: lease_expires })
}

/// Appends a group of a topic as one JSON object, with some of its leases.
pub fn write_group(
    out: &mut Vec<u8>,
    topic: &TopicName,
    group: &GroupStats,
    leases: &[LeaseStats],
) {
    let leases = leases.iter().map(LeaseObject::new).collect();
    write(out, &GroupObject { leases: Some(leases), ..GroupObject::new(topic, group) });
}

/// Appends the answer for a lease that was not settled as one JSON object, without a line end: the text by which the
/// client named it, and a code word.
pub fn write_unsettled(out: &mut Vec<u8>, lease: &str, error: &str) {
    #[derive(Serialize)]
    struct Unsettled<'a> {
        lease: &'a str,
        error: &'a str,
    }
    write(out, &Unsettled { lease, error });
}

#[derive(Serialize)]
pub(super) struct GroupObject<'a> {
    group: &'a str,
    topic: &'a str,
    next_id: u64,
    pending: u64,
    leased: u64,
    waiting: u64,
    delivered: u64,
    acked: u64,
    nacked: u64,
    lease_expired: u64,
    redelivered: u64,
    dead_lettered: u64,
    dead_letters_refused: u64,
    expired: u64,
    evicted: u64,
    oldest_unacked: Option<Time>,
    max_deliveries: u32,
    max_leases: u32,
    dead_letters: Option<String>,
    waiters: usize,
    /// Absent in the list of a topic's groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    leases: Option<Vec<LeaseObject<'a>>>,
}

impl<'a> GroupObject<'a> {
    pub(super) fn new(topic: &'a TopicName, group: &'a GroupStats) -> Self {
        let (settings, counters) = (&group.settings, &group.counters);
        Self {
            group: group.name.as_str(),
            topic: topic.as_str(),
            next_id: group.next_id,
            pending: group.pending,
            leased: group.leased,
            waiting: group.waiting,
            delivered: counters.delivered,
            acked: counters.acked,
            nacked: counters.nacked,
            lease_expired: counters.lease_expired,
            redelivered: counters.redelivered,
            dead_lettered: counters.dead_lettered,
            dead_letters_refused: counters.dead_letters_refused,
            expired: counters.expired,
            evicted: counters.evicted,
            oldest_unacked: group.oldest_unacked.map(Time),
            max_deliveries: settings.max_deliveries,
            max_leases: settings.max_leases,
            dead_letters: match &settings.dead_letters {
                Some(name) => Some(name.to_string()),
                // The name may be too long: then there are none.
                None => topic.dead_letters().ok().map(|name| name.to_string()),
            },
            waiters: group.waiters,
            leases: None,
        }
    }
}

#[derive(Serialize)]
struct LeaseObject<'a> {
    id: u64,
    deliveries: u32,
    holder: Option<&'a str>,
    since: Time,
    expires: Time,
}

impl<'a> LeaseObject<'a> {
    fn new(lease: &'a LeaseStats) -> Self {
        Self {
            id: lease.id,
            deliveries: lease.deliveries,
            holder: lease.holder.as_deref(),
            since: Time(lease.since),
            expires: Time(lease.expires),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::{super::write_message, *};
    use crate::{
        model::{GroupSettings, Headers, LeaseToken, Message, TopicInfo, WallTime},
        stats::GroupCounters,
    };

    fn token(name: &str) -> LeaseToken {
        let bytes = [&[2, 63][..], &[7; 24], name.as_bytes()].concat();
        URL_SAFE_NO_PAD.encode(bytes).parse().expect("a token")
    }

    fn leased(name: &str, headers: &[(&str, &str)]) -> Leased {
        let topic = Arc::new(TopicInfo {
            name: name.parse().expect("a name"),
            epoch: 1,
            created: DateTime::UNIX_EPOCH,
            ttl: None,
        });
        let headers = Headers::new(headers.iter().copied()).expect("headers");
        let created = DateTime::UNIX_EPOCH.into();
        let payload = "x".into();
        Leased {
            message: Message::new(topic, 7, created, WallTime::NEVER, payload, headers),
            token: token(name),
            deliveries: 3,
            expires: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_lease_follows_the_fields_of_the_message() {
        for headers in [&[][..], &[("key", "value")]] {
            let leased = leased("jobs/größe", headers);
            let (mut plain, mut json) = (Vec::new(), Vec::new());
            write_message(&mut plain, &leased.message);
            write_leased(&mut json, &leased);
            assert!(json.len() <= leased_size_hint(&leased));
            let message = String::from_utf8(plain).expect("UTF-8");
            let expected = format!(
                r#"{},"lease":"{}","deliveries":3,"lease_expires":"1970-01-01T00:00:00.000000000Z"}}"#,
                message.strip_suffix('}').expect("an object"),
                leased.token,
            );
            assert_eq!(String::from_utf8_lossy(&json), expected);
            let read = read_leased(&json).expect("a leased message");
            assert_eq!(read.token, leased.token);
            assert_eq!((read.deliveries, read.expires), (3, leased.expires));
            assert_eq!(read.message.headers(), leased.message.headers());
            read_leased(message.as_bytes()).expect_err("no lease");
        }
        let longest = leased(&"x".repeat(255), &[]);
        let mut json = Vec::new();
        write_leased(&mut json, &longest);
        assert!(json.len() <= leased_size_hint(&longest));
        let broken =
            String::from_utf8(json).expect("UTF-8").replace(r#""lease":""#, r#""lease":"!"#);
        let error = read_leased(broken.as_bytes()).expect_err("not a token").to_string();
        assert!(error.starts_with("not a message: not a lease token"), "{error}");
    }

    #[test]
    fn what_was_not_settled_is_named_as_the_client_did() {
        let mut out = Vec::new();
        write_unsettled(&mut out, "\"é\u{1}", "invalid_lease");
        assert_eq!(out, "{\"lease\":\"\\\"é\\u0001\",\"error\":\"invalid_lease\"}".as_bytes());
    }

    #[test]
    fn a_group_names_the_topic_of_its_dead_letters() {
        let topic = "jobs".parse().expect("a name");
        let mut group = GroupStats {
            name: "workers".parse().expect("a name"),
            settings: GroupSettings::default(),
            next_id: 4,
            pending: 1,
            leased: 1,
            waiting: 1,
            counters: GroupCounters::default(),
            oldest_unacked: None,
            waiters: 0,
        };
        let leases = [LeaseStats {
            id: 1,
            deliveries: 2,
            holder: None,
            since: DateTime::UNIX_EPOCH,
            expires: DateTime::UNIX_EPOCH,
        }];
        let written = |group: &GroupStats| {
            let mut out = Vec::new();
            write_group(&mut out, &topic, group, &leases);
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(
            written(&group),
            concat!(
                r#"{"group":"workers","topic":"jobs","next_id":4,"pending":1,"leased":1,"waiting":1,"#,
                r#""delivered":0,"acked":0,"nacked":0,"lease_expired":0,"redelivered":0,"dead_lettered":0,"#,
                r#""dead_letters_refused":0,"expired":0,"evicted":0,"oldest_unacked":null,"#,
                r#""max_deliveries":10,"max_leases":1024,"dead_letters":"jobs/dead-letters","waiters":0,"#,
                r#""leases":[{"id":1,"deliveries":2,"holder":null,"since":"1970-01-01T00:00:00.000000000Z","#,
                r#""expires":"1970-01-01T00:00:00.000000000Z"}]}"#,
            )
        );
        group.settings.dead_letters = Some("failed".parse().expect("a name"));
        assert!(written(&group).contains(r#""dead_letters":"failed""#));
    }
}
