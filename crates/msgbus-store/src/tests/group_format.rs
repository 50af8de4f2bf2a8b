//! Records of groups are read as they were written, and nothing else is.

use msgbus_core::store::{GroupChange, TopicState};

use super::groups::{Groups, any_change, any_open, changed};
use crate::format::{DecodeError, Frame, GroupKind, GroupRecord, LogRecord, frame, record};

fn body(encode: impl Fn(&mut Vec<u8>, u32)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, 7);
    let Frame::Record { body, size } = frame(&bytes, 7, bytes.len() as u64) else {
        panic!("no record")
    };
    assert_eq!(size, bytes.len());
    body.to_vec()
}

fn decoded(body: &[u8]) -> Result<(GroupRecord<'_>, GroupChange), DecodeError> {
    let LogRecord::Group(group) = LogRecord::decode(body)? else { panic!("no group") };
    Ok((group, group.change()?))
}

#[test]
fn changes_are_read_as_they_were_written() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut groups = Groups::new();
    for round in 0..2000 {
        let topic = TopicState { next_id: round / 10, ..TopicState::default() };
        let (number, change) = any_change(&mut random, &groups, topic);
        let bytes = body(|out, seed| record::encode_group_change(out, seed, 9, number, &change));
        let (group, found) = decoded(&bytes).expect("a change");
        assert_eq!((group.topic, group.number, &found), (9, number, &change));
        // No part of it is a change.
        for length in 0..bytes.len() {
            let part = decoded(&bytes[..length]);
            assert_eq!(part.expect_err("a part"), DecodeError::Malformed, "{length}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decoded(&longer).expect_err("longer"), DecodeError::Malformed);
        groups = changed(&groups, number, &change);
        if let Some(kept) = groups.get(&number) {
            let bytes =
                body(|out, seed| record::encode_group_continued(out, seed, 9, number, kept));
            assert!(bytes.len() as u64 <= GroupRecord::MAX_SIZE - 8, "{}", bytes.len());
            let (group, found) = decoded(&bytes).expect("a group");
            assert_eq!(group.kind, GroupKind::Continued);
            let GroupChange::Set(mut found) = found else { panic!("{found:?}") };
            assert!(found.open.is_empty());
            found.open.clone_from(&kept.open);
            assert_eq!(&*found, kept);
        }
    }
}

#[test]
fn a_group_has_a_maximum_size() {
    let mut kept =
        match any_change(&mut fastrand::Rng::with_seed(1), &Groups::new(), TopicState::default()) {
            (_, GroupChange::Set(group)) => *group,
            other => panic!("{other:?}"),
        };
    kept.name = "x".repeat(64).parse().expect("a name");
    kept.settings.max_deliveries = u32::MAX;
    kept.settings.max_leases = u32::MAX;
    kept.settings.dead_letters = "y".repeat(255).parse().ok();
    (kept.base, kept.next_id) = (u64::MAX, u64::MAX);
    let counters = &mut kept.counters;
    for counter in [
        &mut counters.delivered,
        &mut counters.redelivered,
        &mut counters.acked,
        &mut counters.nacked,
        &mut counters.lease_expired,
        &mut counters.dead_lettered,
        &mut counters.dead_letters_refused,
        &mut counters.expired,
        &mut counters.evicted,
    ] {
        *counter = u64::MAX;
    }
    let mut bytes = Vec::new();
    record::encode_group_continued(&mut bytes, 7, 9, 63, &kept);
    assert!(bytes.len() as u64 <= GroupRecord::MAX_SIZE, "{}", bytes.len());
}

#[test]
fn what_is_beyond_a_limit_is_malformed() {
    let removed = body(|out, seed| {
        record::encode_group_change(out, seed, 9, 63, &GroupChange::Removed);
    });
    decoded(&removed).expect("good");
    for (at, byte) in [(1, 64), (2, 2), (3, 1)] {
        let mut bad = removed.clone();
        bad[at] = byte;
        assert_eq!(decoded(&bad).expect_err("beyond"), DecodeError::Malformed, "{at}");
    }
    // A count of messages, in an update that has nothing else.
    let update = |count: &[u8]| [&[18, 0, 0, 0, 9, 0, 0, 0][..], &[0; 10], count].concat();
    decoded(&update(&[0, 0])).expect("good");
    for count in [
        // 65,537, and as many zeros as messages could need.
        [&[0x81, 0x80, 0x04][..], &vec![0; 65_537 * 20]].concat(),
        vec![0xff; 10],
        vec![0x80; 20],
        // More than 64 bits.
        [&[0xff; 9][..], &[2, 0]].concat(),
    ] {
        assert_eq!(decoded(&update(&count)).expect_err("beyond"), DecodeError::Malformed);
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let mut open = any_open(&mut fastrand::Rng::with_seed(1), 5);
    open.reason = Some(format!("x{}", "é".repeat(200)).into());
    let update = msgbus_core::store::GroupUpdate { open: vec![open], ..Default::default() };
    let bytes = body(|out, seed| record::encode_group_update(out, seed, 9, 0, &update));
    let (_, GroupChange::Update(found)) = decoded(&bytes).expect("an update") else {
        panic!("no update")
    };
    let reason = found.open[0].reason.as_ref().expect("a reason");
    assert_eq!(**reason, format!("x{}", "é".repeat(127)));
}
