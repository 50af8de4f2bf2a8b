//! The part of the contract that is about groups as operators see them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use msgbus_core::{
    GroupSettings, Settlement,
    engine::{Begin, EngineError, EngineGroup, EngineGroupSettings, Fetch},
};

use super::{
    Subject,
    groups::{ACK, LONG, fetch, group, is_empty, settle, take_later},
    is_unsupported, publish, texts,
};
use crate::{fresh, soon};

/// Groups can be made before anybody works for them, moved, and removed.
pub async fn groups_can_be_made_moved_and_removed(subject: &Subject) {
    let (topic, workers) = (fresh("admin"), group("workers"));
    publish(&subject.one, &topic, texts(0..3)).await;
    let made = soon(subject.one.set_group(&topic, &workers, None)).await;
    if is_unsupported(&made) {
        return;
    }
    assert!(made.unwrap(), "it is new");
    let stats = async || soon(subject.other.group(&topic, &workers)).await.unwrap();
    assert_eq!(stats().await, Some(shown(3, 0)));
    let job = take_later(&subject.other, &topic, &workers).await;
    assert_eq!(job.message.payload, "0");
    let old = job.key;
    assert_eq!(stats().await, Some(shown(2, 1)));
    assert!(!soon(subject.one.set_group(&topic, &workers, None)).await.unwrap());
    assert_eq!(stats().await, Some(shown(2, 1)), "it is as it was");
    assert!(!soon(subject.one.set_group(&topic, &workers, Some(Begin::Next))).await.unwrap());
    assert_eq!(stats().await, Some(shown(0, 0)));
    assert!(is_empty(&subject.other, &topic, &workers).await);
    // Who works on a job of before cannot end the leases of others.
    assert!(!soon(subject.one.set_group(&topic, &workers, Some(Begin::First))).await.unwrap());
    let job = take_later(&subject.one, &topic, &workers).await;
    assert_eq!(job.message.payload, "0");
    let back = Settlement::Nack { delay: Duration::ZERO, reason: None };
    for engine in [&subject.other, &subject.one] {
        let lost = settle(engine, &topic, &workers, vec![old.clone()], &back).await;
        assert_eq!(lost, [0], "that lease is over");
    }
    assert!(soon(subject.one.remove_group(&topic, &workers)).await.unwrap());
    assert!(!soon(subject.other.remove_group(&topic, &workers)).await.unwrap());
    assert_eq!(stats().await, None);
    let job = take_later(&subject.other, &topic, &workers).await;
    assert_eq!(job.message.payload, "0", "the group is a new one");
}

fn shown(pending: u64, unacked: u64) -> EngineGroup {
    EngineGroup { pending, unacked, settings: EngineGroupSettings::default() }
}

/// A bus that has not heard yet that a group was moved gives leases that can be settled, at any bus.
pub async fn leases_after_a_move_can_be_settled(subject: &Subject) {
    let extend = Settlement::Extend { lease: LONG };
    for taken in [0, 1] {
        let (topic, workers) = (fresh("just-moved"), group("workers"));
        publish(&subject.one, &topic, texts(0..3)).await;
        if is_unsupported(&soon(subject.one.set_group(&topic, &workers, None)).await) {
            return;
        }
        for _ in 0..taken {
            take_later(&subject.other, &topic, &workers).await;
        }
        assert_eq!(
            soon(subject.other.settle(&topic, Some(&workers), vec![Box::default()], &ACK))
                .await
                .unwrap()
                .lost,
            [0]
        );
        let moved = subject.one.set_group(&topic, &workers, Some(Begin::First));
        assert_eq!(soon(moved).await, Ok(false), "it was there");
        for engine in [&subject.one, &subject.other, &subject.one] {
            let key = take_later(&subject.other, &topic, &workers).await.key;
            if taken > 0 {
                let lost = settle(engine, &topic, &workers, vec![key.clone()], &extend).await;
                assert!(lost.is_empty(), "it is live");
            }
            assert!(settle(engine, &topic, &workers, vec![key], &ACK).await.is_empty());
        }
        assert!(is_empty(&subject.one, &topic, &workers).await, "all are done");
    }
}

/// Workers that wait do not make a group again that is being moved: it begins where the move says.
pub async fn a_group_is_moved_while_others_work(subject: &Subject) {
    let (topic, workers) = (fresh("moved"), group("workers"));
    publish(&subject.one, &topic, texts(0..3)).await;
    if is_unsupported(&soon(subject.one.set_group(&topic, &workers, None)).await) {
        return;
    }
    for _ in 0..5 {
        let waiting = [&subject.one, &subject.other].map(|engine| {
            let fetch = Fetch { from: Begin::Next, ..fetch(1, Duration::from_millis(500)) };
            let (engine, topic, workers) = (Arc::clone(engine), topic.clone(), workers.clone());
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while let Some(job) = {
                    let leases = engine.fetch(&topic, Some(&workers), fetch).await;
                    leases.map(|leases| leases.messages).unwrap_or_default().pop()
                } {
                    let keys = vec![job.key];
                    let _ = engine.settle(&topic, Some(&workers), keys, &ACK).await;
                    seen.push(job.message.id);
                }
                seen
            })
        });
        let moved = subject.one.set_group(&topic, &workers, Some(Begin::First));
        assert_eq!(soon(moved).await, Ok(false), "it was there");
        for waiting in waiting {
            let _ = soon(waiting).await.unwrap();
        }
        let shown = soon(subject.other.group(&topic, &workers)).await.unwrap();
        assert!(shown.is_some(), "it is there");
    }
    assert!(soon(subject.one.remove_group(&topic, &workers)).await.unwrap());
    assert!(soon(subject.other.set_group(&topic, &workers, Some(Begin::First))).await.unwrap());
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        seen.insert(take_later(&subject.one, &topic, &workers).await.message.id);
    }
}

/// A client that makes up names of groups does not fill the engine.
pub async fn a_topic_has_a_limited_number_of_groups(subject: &Subject) {
    let topic = fresh("many-groups");
    publish(&subject.one, &topic, texts(0..1)).await;
    let limit = GroupSettings::MAX_GROUPS;
    for number in 0..limit {
        let made = soon(subject.one.set_group(&topic, &group(&format!("g{number}")), None)).await;
        if is_unsupported(&made) {
            return;
        }
        assert_eq!(made, Ok(true));
    }
    let (other, refused) = (group("other"), EngineError::TooManyGroups { limit });
    assert_eq!(soon(subject.other.set_group(&topic, &other, None)).await, Err(refused));
    let fetched = subject.other.fetch(&topic, Some(&other), fetch(1, Duration::from_secs(1)));
    assert_eq!(soon(fetched).await.map(drop), Err(refused));
    // Those that are there go on, and so do plain pulls.
    assert_eq!(soon(subject.other.set_group(&topic, &group("g0"), None)).await, Ok(false));
    take_later(&subject.other, &topic, &group("g1")).await;
    let pulled = subject.other.fetch(&topic, None, fetch(1, Duration::from_secs(10)));
    assert_eq!(soon(pulled).await.unwrap().messages.len(), 1);
}
