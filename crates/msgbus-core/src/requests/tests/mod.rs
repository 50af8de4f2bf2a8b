//! Rules by example, and a property test against a naive model, which keeps every request in one `Vec`.

mod model;
mod steps;

use std::{
    task::{Poll, Waker},
    time::Duration,
};

use super::{pending::Pending, *};
use crate::{
    error::LimitReached,
    model::{Reply, RequestError},
    options::BatchLimit,
    topic::Budget,
};

const START: MonotonicTime = MonotonicTime::from_nanoseconds(1 << 50);

fn service(limit: u64) -> Service {
    let memory = Reservation::new(Budget::new(limit));
    Service::new("s".parse().unwrap(), memory)
}

fn later(seconds: u64) -> MonotonicTime {
    START.after(Duration::from_secs(seconds).into())
}

fn poll(service: &mut Service, ticket: Ticket) -> Poll<Result<Reply, RequestError>> {
    service.poll_outcome(ticket, Waker::noop())
}

/// What a responder gets, if it is its turn.
fn take(service: &mut Service, responder: WaiterId, max: usize, now: MonotonicTime) -> Vec<Handed> {
    let limit = BatchLimit { events: max, bytes: usize::MAX };
    match service.poll_take(responder, limit, now, Waker::noop()) {
        Poll::Ready((handed, _)) => handed,
        Poll::Pending => Vec::new(),
    }
}

#[test]
fn nobody_there_is_known_at_once_and_a_polling_responder_is_waited_for() {
    let mut service = service(u64::MAX);
    let responder = service.join(START).unwrap();
    let _ = service.leave(responder, START);
    let Placed { ticket, .. } = service.ask("x".into(), Origin::Here, later(1)).unwrap();
    assert!(poll(&mut service, ticket).is_pending());
    assert_eq!(service.next_registration().unwrap().at, later(2));
    let _ = service.run_due(later(2));
    assert_eq!(poll(&mut service, ticket), Poll::Ready(Err(RequestError::NoResponder)));
    assert_eq!(
        service.ask("x".into(), Origin::Here, later(2)).unwrap_err(),
        RequestError::NoResponder
    );
}

/// A search may still run when its request is over. The next request has the same slot.
#[test]
fn a_search_has_nothing_to_do_with_later_requests() {
    let mut service = service(u64::MAX);
    let over = service.ask("over".into(), Origin::HereForAll, START).unwrap().ticket;
    service.give_up(over, START);
    let next = service.ask("next".into(), Origin::HereForAll, START).unwrap().ticket;
    assert_eq!(next.slot, over.slot);
    assert_eq!(service.send_away(over, START), None);
    service.come_back(over, Ok(Reply::default()), START);
    assert!(poll(&mut service, next).is_pending());
    assert!(service.send_away(next, START).is_some());
    let _responder = service.join(START).unwrap();
    assert!(service.queue_here(over, START).is_ok());
    assert!(service.is_elsewhere(next));
}

/// Until another bus has it, a responder that joins here gets it.
#[test]
fn who_joins_gets_what_is_sought_elsewhere() {
    let mut service = service(u64::MAX);
    let ask =
        |service: &mut Service| service.ask("x".into(), Origin::HereForAll, START).unwrap().ticket;
    let [sent, sought, refused] = [ask(&mut service), ask(&mut service), ask(&mut service)];
    assert!(service.send_away(sent, START).is_some());
    assert!(service.send_away(refused, START).is_some());
    assert!(service.queue_here(refused, START).is_err());
    let responder = service.join(START).unwrap();
    assert!(
        service.is_elsewhere(sent)
            && !service.is_elsewhere(sought)
            && !service.is_elsewhere(refused)
    );
    assert_eq!(take(&mut service, responder, 3, START).len(), 2);
    assert_eq!(service.send_away(sought, START), None, "a responder here has it");
}

/// What is sought because as many wait here as may is queued when there is room.
#[test]
fn what_has_not_found_room_gets_it_later() {
    let mut service = service(u64::MAX);
    let [first, second] = [service.join(START).unwrap(), service.join(START).unwrap()];
    let mut ask =
        |origin| service.ask("x".into(), origin, START).map(|placed| placed.ticket).unwrap();
    for _ in 0..Service::MAX_QUEUED {
        ask(Origin::Here);
    }
    let sought = ask(Origin::HereForAll);
    assert!(service.is_elsewhere(sought));
    assert!(take(&mut service, second, 1, START).is_empty(), "it is not its turn");
    assert_eq!(take(&mut service, first, usize::MAX, START).len(), Service::MAX_QUEUED);
    assert_eq!(take(&mut service, second, usize::MAX, START).len(), 1);
}

/// A request that comes from another bus when this one has just been closed goes to a third one.
#[test]
fn a_service_that_is_closed_is_not_there_for_other_buses() {
    let mut service = service(u64::MAX);
    let _responder = service.join(START).unwrap();
    assert_eq!(service.availability(START), Availability::Free);
    let _ = service.close();
    assert_eq!(service.availability(START), Availability::Absent);
    let ask = |service: &mut Service, origin| service.ask("x".into(), origin, START).unwrap_err();
    assert_eq!(ask(&mut service, Origin::Elsewhere), RequestError::NoResponder);
    assert_eq!(ask(&mut service, Origin::Here), RequestError::Closed);
    assert_eq!(ask(&mut service, Origin::HereForAll), RequestError::Closed);
}

#[test]
fn requests_and_their_bytes_are_limited() {
    let mut service = self::service(1 << 20);
    let _responder = service.join(START).unwrap();
    let large = service.ask(vec![0; 2 << 20].into(), Origin::Here, START).unwrap_err();
    assert_eq!(large, RequestError::LimitReached(LimitReached::Bytes { limit: 1 << 20 }));
    for _ in 0..Service::MAX_QUEUED {
        service.ask("x".into(), Origin::Here, START).unwrap();
    }
    let limit = Service::MAX_QUEUED;
    let refused = service.ask("x".into(), Origin::Here, START).unwrap_err();
    assert_eq!(refused, RequestError::TooManyRequests { limit });
}

/// A reply counts until it is taken, and one for which there is no memory is a failure.
#[test]
fn replies_count_towards_the_bytes() {
    let mut service = self::service(1 << 20);
    let responder = service.join(START).unwrap();
    let asked: Vec<_> =
        (0..2).map(|_| service.ask("x".into(), Origin::Here, START).unwrap().ticket).collect();
    let handed = take(&mut service, responder, 2, START);
    for (handed, size) in handed.iter().zip([600 << 10, 500 << 10]) {
        let _ = service.reply(handed.key, Ok(vec![0; size].into()), START).unwrap();
    }
    assert!(service.bytes > 600 << 10 && service.bytes < 601 << 10, "{}", service.bytes);
    assert!(matches!(poll(&mut service, asked[0]), Poll::Ready(Ok(_))));
    let failed = poll(&mut service, asked[1]);
    assert!(matches!(failed, Poll::Ready(Err(RequestError::Failed { .. }))), "{failed:?}");
    assert_eq!(service.bytes, 0);
    let counters = service.stats().counters;
    assert_eq!((counters.replied, counters.failed), (1, 1));
}

#[test]
fn a_pending_request_is_small() {
    assert!(size_of::<Option<Pending>>() + 8 <= 300, "{}", size_of::<Option<Pending>>());
}
