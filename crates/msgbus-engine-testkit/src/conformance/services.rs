//! Services that are served at another bus than the one where they are asked.

use std::{sync::Arc, time::Duration};

use msgbus_core::{
    BatchLimit, Headers, MessageBus, NewRequest, Reply, Request, RequestError, ServiceStats,
};
use tokio::{task::JoinHandle, time::sleep};

use super::{Subject, is_unsupported};
use crate::{
    bus, fresh,
    requests::{Load, Timer, assert_balance, patient, respond, until_served},
    soon,
};

/// Two buses. `None` if the engine has no services.
struct Pair {
    one: MessageBus,
    other: MessageBus,
    timer: Timer,
}

async fn pair(subject: &Subject) -> Option<Pair> {
    let (one, other) = (bus(Arc::clone(&subject.one)), bus(Arc::clone(&subject.other)));
    let known = soon(one.is_served_anywhere(&fresh("nobody"))).await;
    if is_unsupported(&known) {
        return None;
    }
    assert_eq!(known, Ok(false));
    let timer = Timer::of([&one, &other]);
    Some(Pair { one, other, timer })
}

/// A request and its reply are as they were, whichever bus has the responder.
pub async fn requests_reach_responders_at_another_bus(subject: &Subject) {
    let Some(Pair { one, other, timer: _timer }) = pair(subject).await else { return };
    let service = fresh("größe x");
    assert_eq!(soon(one.request(&service, "x")).await, Err(RequestError::NoResponder));
    assert!(one.service(&service).is_none(), "nothing is kept of what nobody serves");
    let headers = Headers::new([("B", "1"), ("a", "größe"), ("B", "2")]).unwrap();
    let expected = headers.clone();
    let responder = respond(&other, &service, move |request| {
        assert_eq!(request.headers(), &expected);
        assert!(request.time_left() > Duration::from_secs(30));
        let payload = [request.payload().as_ref(), b"!\0\xff"].concat();
        request.reply(Reply { payload: payload.into(), headers: expected.clone() }).unwrap();
    });
    until_served(&one, &service, true).await;
    for _ in 0..20 {
        let reply = soon(one.request(&service, patient("hi").headers(headers.clone()))).await;
        let reply = reply.unwrap();
        assert_eq!((reply.payload.as_ref(), &reply.headers), (&b"hi!\0\xff"[..], &headers));
    }
    let (here, there) = (one.service(&service).unwrap(), other.service(&service).unwrap());
    assert_eq!((here.counters.asked, here.counters.replied, here.away), (20, 20, 0));
    assert_eq!((there.counters.asked, there.taken, there.visiting), (0, 20, 0));
    responder.abort();
    until_served(&one, &service, false).await;
    assert_eq!(soon(one.request(&service, "x")).await, Err(RequestError::NoResponder));
}

/// What a responder does with a request is what its requester hears.
pub async fn outcomes_are_those_of_the_responder(subject: &Subject) {
    let Some(Pair { one, other, timer: _timer }) = pair(subject).await else { return };
    let service = fresh("outcomes");
    let responder = respond(&other, &service, |request| match request.payload().as_ref() {
        b"fail" => request.fail("größe: no").unwrap(),
        b"leave" => drop(request),
        b"keep" => drop(request.into_token()),
        _ => request.reply("done").unwrap(),
    });
    until_served(&one, &service, true).await;
    let failed = RequestError::Failed { reason: "größe: no".into() };
    assert_eq!(soon(one.request(&service, patient("fail"))).await, Err(failed));
    let gone = soon(one.request(&service, patient("leave"))).await;
    assert_eq!(gone, Err(RequestError::ResponderGone));
    let kept = NewRequest::new("keep").timeout(Duration::from_millis(300));
    assert_eq!(soon(one.request(&service, kept)).await, Err(RequestError::TimedOut));
    assert!(soon(one.request(&service, patient("reply"))).await.is_ok());
    let counters = one.service(&service).unwrap().counters;
    assert_eq!((counters.asked, counters.replied), (4, 1));
    assert_eq!((counters.failed, counters.timed_out), (2, 1));
    responder.abort();
}

/// A requester that leaves takes its request back, at the other bus too.
pub async fn requests_are_taken_back_everywhere(subject: &Subject) {
    let Some(Pair { one, other, timer: _timer }) = pair(subject).await else { return };
    let service = fresh("taken-back");
    let responder = respond(&other, &service, |request| request.reply("known").unwrap());
    until_served(&one, &service, true).await;
    soon(one.request(&service, patient("known"))).await.unwrap();
    responder.abort();
    // Until then, it may get the next one.
    assert!(responder.await.unwrap_err().is_cancelled());
    let first = other.serve(&service, BatchLimit::ONE).unwrap();
    let mut asked = Box::pin(one.request(&service, patient("in hand")));
    let request = tokio::select! {
        outcome = &mut asked => panic!("{outcome:?}"),
        request = soon(first) => request.unwrap().pop().unwrap(),
    };
    let token = request.into_token();
    assert!(other.is_in_hand(&token));
    // The responder is busy, so this one waits there.
    let mut queued = Box::pin(one.request(&service, patient("queued")));
    let waits = async {
        while other.service(&service).unwrap().visiting < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        outcome = &mut queued => panic!("{outcome:?}"),
        () = soon(waits) => {}
    }
    assert_eq!(one.service(&service).unwrap().away, 2);
    drop((asked, queued));
    let is_over = async {
        while other.service(&service).unwrap().visiting > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(is_over).await;
    assert!(other.reply(&token, Ok("late".into())).is_err(), "nobody waits for it");
    assert_eq!(one.service(&service).unwrap().counters.given_up, 2);
}

/// A responder that waits here is asked first; if all are busy, others are; if all are, the request waits.
pub async fn free_responders_are_found(subject: &Subject) {
    let Some(Pair { one, other, timer: _timer }) = pair(subject).await else { return };
    let service = fresh("free");
    let there = other.serve(&service, BatchLimit::ONE).unwrap();
    until_served(&one, &service, true).await;
    let here = one.serve(&service, BatchLimit::ONE).unwrap();
    let first = tokio::spawn(one.request(&service, patient("first")));
    let first_request = soon(here).await.unwrap().pop().unwrap();
    // The one here is busy.
    let second = tokio::spawn(one.request(&service, patient("second")));
    let second_request = soon(there).await.unwrap().pop().unwrap();
    assert_eq!(second_request.payload(), "second");
    let third = tokio::spawn(one.request(&service, patient("third")));
    let waits = async {
        while one.service(&service).unwrap().queued == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(waits).await;
    first_request.reply("1").unwrap();
    second_request.reply("2").unwrap();
    let here = soon(one.serve(&service, BatchLimit::ONE).unwrap()).await.unwrap().pop().unwrap();
    here.reply("3").unwrap();
    for (asked, reply) in [(first, "1"), (second, "2"), (third, "3")] {
        assert_eq!(soon(asked).await.unwrap().unwrap().payload, reply);
    }
}

/// A request that waits where its responders have left goes to another bus that serves.
pub async fn requests_leave_with_the_responders(subject: &Subject) {
    let Some(Pair { one, other, timer: _timer }) = pair(subject).await else { return };
    let service = fresh("left");
    let (at_one, at_other) = (
        one.serve(&service, BatchLimit::ONE).unwrap(),
        other.serve(&service, BatchLimit::ONE).unwrap(),
    );
    // Both are left busy for a moment, so that a request waits at one of them.
    drop((at_one, at_other));
    let asked = tokio::spawn(one.request(&service, patient("x")));
    let waits = async {
        while one.service(&service).unwrap().queued == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(waits).await;
    // A responder that polls, so that it serves for a while without ever being free.
    let keep = {
        let (other, service) = (other.clone(), service.clone());
        tokio::spawn(async move {
            loop {
                drop(other.serve(&service, BatchLimit::ONE).unwrap());
                sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let is_gone = async {
        while other.service(&service).is_none_or(|service| service.visiting == 0) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(is_gone).await;
    keep.abort();
    let request = soon(other.serve(&service, BatchLimit::ONE).unwrap()).await.unwrap();
    for request in request {
        request.reply("y").unwrap();
    }
    assert_eq!(soon(asked).await.unwrap().unwrap().payload, "y");
}

/// Requests of many, to responders that are slow, fail and leave, are all accounted for, once.
pub async fn requests_are_counted_once(subject: &Subject) {
    const REQUESTS: usize = 150;
    let Some(Pair { one, other, timer: _timer }) = pair(subject).await else { return };
    let service = fresh("counted");
    let answer = |request: Request| match fastrand::u8(..10) {
        0 => request.fail("no").unwrap_or_default(),
        1 => drop(request),
        2 => drop(request.into_token()),
        _ => {
            let payload = request.payload().clone();
            request.reply(payload).unwrap_or_default();
        }
    };
    let responders = [&one, &other, &one, &other].map(|bus| respond(bus, &service, answer));
    for bus in [&one, &other] {
        until_served(bus, &service, true).await;
    }
    let request = |n: usize| {
        let request = NewRequest::new(n.to_string()).timeout(Duration::from_millis(500));
        if n.is_multiple_of(3) { request.may_repeat() } else { request }
    };
    let load = Load { count: REQUESTS, pause: Duration::ZERO };
    let outcomes = load.ask(&[&one, &other], &service, request).await;
    for error in &outcomes.errors {
        let is_expected = matches!(
            error,
            RequestError::Failed { .. } | RequestError::ResponderGone | RequestError::TimedOut
        );
        assert!(is_expected, "{error}");
    }
    let stats = [one.service(&service).unwrap(), other.service(&service).unwrap()];
    stats.iter().for_each(assert_balance);
    let asked: u64 = stats.iter().map(|stats| stats.counters.asked).sum();
    let replied: u64 = stats.iter().map(|stats| stats.counters.replied).sum();
    assert_eq!((asked, replied), (REQUESTS as u64, outcomes.replied as u64));
    let refused = |stats: &ServiceStats| stats.counters.refused + stats.counters.given_up;
    assert_eq!(stats.iter().map(refused).sum::<u64>(), 0);
    responders.iter().for_each(JoinHandle::abort);
}
