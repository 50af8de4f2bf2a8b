//! A naive model of a service.

use std::{collections::VecDeque, mem, task::Poll, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    START, poll, service,
    steps::{ENDS, Step, step},
    take,
};
use crate::{
    model::{Headers, MonotonicTime, NewRequest, Reply, RequestError, RequestKey},
    requests::{Origin, Service, Ticket},
    stats::{ReplyTimes, ServiceCounters},
    topic::{Registration, WaiterId},
};

/// A request in the model.
#[derive(Debug)]
struct Asked {
    ticket: Ticket,
    /// Identifies the request, and comes back in its reply.
    payload: Bytes,
    deadline: MonotonicTime,
    may_repeat: bool,
    origin: Origin,
    state: Known,
}

#[derive(Debug, Clone, PartialEq)]
enum Known {
    Sought,
    Away,
    Queued,
    InHand(RequestKey),
    Done(Result<Reply, RequestError>),
    /// The requester has the outcome, or has left.
    Gone,
}

#[derive(Debug, Default)]
struct Model {
    requests: Vec<Asked>,
    /// In the order in which they are handed out.
    queue: VecDeque<usize>,
    responders: VecDeque<WaiterId>,
    /// Every key that was ever handed out, and the request that it was for.
    handed: Vec<(RequestKey, usize)>,
    /// Requests that were put back and not handed out again.
    put_back: Vec<usize>,
    seen: Option<MonotonicTime>,
    counters: ServiceCounters,
    foreign: ServiceCounters,
}

impl Model {
    /// The counters of a request.
    fn counters(&mut self, origin: Origin) -> &mut ServiceCounters {
        match origin {
            Origin::Here | Origin::HereForAll => &mut self.counters,
            Origin::Elsewhere => &mut self.foreign,
        }
    }

    fn in_hand(&self) -> usize {
        self.requests.iter().filter(|asked| matches!(asked.state, Known::InHand(_))).count()
    }

    fn is_absent(&self, now: MonotonicTime) -> bool {
        let is_recent = self.seen.is_some_and(|seen| now.since(seen) < Service::GRACE);
        self.responders.is_empty() && self.in_hand() == 0 && !is_recent
    }

    fn run_due(&mut self, now: MonotonicTime) {
        let is_absent = self.is_absent(now);
        for index in 0..self.requests.len() {
            let Asked { origin, deadline, .. } = self.requests[index];
            let state = &mut self.requests[index].state;
            let is_open = !matches!(state, Known::Done(_) | Known::Gone);
            if is_open && deadline <= now {
                if matches!(state, Known::InHand(_)) {
                    self.seen = Some(now);
                }
                *state = Known::Done(Err(RequestError::TimedOut));
                self.counters(origin).timed_out += 1;
            } else if is_absent && *state == Known::Queued {
                if origin == Origin::HereForAll {
                    *state = Known::Sought;
                    continue;
                }
                *state = Known::Done(Err(RequestError::NoResponder));
                self.counters(origin).refused += 1;
            }
        }
        let requests = &self.requests;
        self.queue.retain(|index| requests[*index].state == Known::Queued);
    }

    /// The request that a key is for, if a responder still has it by this key.
    fn held(&self, handed: usize, now: MonotonicTime) -> Option<(RequestKey, Option<usize>)> {
        let (key, index) = *self.handed.get(handed % self.handed.len().max(1))?;
        let asked = &self.requests[index];
        let is_held = asked.state == Known::InHand(key) && asked.deadline > now;
        Some((key, is_held.then_some(index)))
    }

    fn act(&mut self, service: &mut Service, step: Step, now: MonotonicTime) {
        match step {
            Step::Ask { timeout, may_repeat, origin } => {
                self.ask(service, timeout, may_repeat, origin, now);
            }
            Step::Join => {
                self.queue_sought();
                self.responders.push_back(service.join(now).unwrap());
                self.seen = Some(now);
            }
            Step::Leave { responder } => {
                if !self.responders.is_empty() {
                    let index = responder % self.responders.len();
                    let _ = service.leave(self.responders.remove(index).unwrap(), now);
                    self.seen = Some(now);
                }
            }
            Step::Take { responder, max } => self.take(service, responder, max, now),
            Step::Reply { handed, is_ok } => self.reply(service, handed, is_ok, now),
            Step::HandBack { handed } => self.hand_back(service, handed, now),
            Step::GiveUp { request } => self.give_up(service, request, now),
            Step::PutBack { handed } => self.put_back(service, handed, now),
            Step::Poll { request } => self.poll(service, request),
            Step::QueueHere { request } => self.queue_here(service, request, now),
            Step::SendAway { request } => self.send_away(service, request, now),
            Step::ComeBack { request, end } => self.come_back(service, request, end, now),
            Step::Wait { .. } => {
                self.run_due(now);
                let _ = service.run_due(now);
            }
        }
    }

    fn queue_sought(&mut self) {
        let sought = self.requests.iter_mut().enumerate();
        for (index, asked) in sought.filter(|(_, asked)| asked.state == Known::Sought) {
            asked.state = Known::Queued;
            self.queue.push_back(index);
        }
    }

    fn ask(
        &mut self,
        service: &mut Service,
        timeout: u64,
        may_repeat: bool,
        origin: Origin,
        now: MonotonicTime,
    ) {
        self.counters(origin).asked += 1;
        let is_free = self.responders.len() > self.queue.len();
        assert_eq!(service.is_free(), is_free);
        let payload = Bytes::from(format!("request {}", self.requests.len()));
        let timeout = Duration::from_secs(timeout);
        let request = NewRequest::new(payload.clone()).timeout(timeout);
        let request = if may_repeat { request.may_repeat() } else { request };
        match service.ask(request, origin, now) {
            Ok(placed) => {
                let for_all = origin == Origin::HereForAll;
                assert_eq!(placed.seeks_others, for_all && !is_free);
                let mut state = Known::Queued;
                if for_all && self.is_absent(now) {
                    state = Known::Sought;
                } else {
                    assert!(!self.is_absent(now));
                    self.queue.push_back(self.requests.len());
                }
                let (ticket, deadline) = (placed.ticket, now.after(timeout.into()));
                self.requests.push(Asked { ticket, payload, deadline, may_repeat, origin, state });
            }
            Err(error) => {
                assert_eq!((error, self.is_absent(now)), (RequestError::NoResponder, true));
                assert_ne!(origin, Origin::HereForAll);
                self.counters(origin).refused += 1;
            }
        }
    }

    fn queue_here(&mut self, service: &mut Service, request: usize, now: MonotonicTime) {
        let Some(index) = self.pick(request) else { return };
        let is_absent = self.is_absent(now);
        let asked = &mut self.requests[index];
        let queued = service.queue_here(asked.ticket, now);
        let is_away = matches!(asked.state, Known::Sought | Known::Away);
        assert_eq!(queued.is_err(), is_absent && is_away);
        if is_away && is_absent {
            asked.state = Known::Sought;
        } else if is_away {
            asked.state = Known::Queued;
            self.queue.push_back(index);
        }
    }

    fn send_away(&mut self, service: &mut Service, request: usize, now: MonotonicTime) {
        let Some(index) = self.pick(request) else { return };
        let asked = &mut self.requests[index];
        let sent = service.send_away(asked.ticket, now).map(|request| request.payload);
        let may_go = asked.origin == Origin::HereForAll
            && matches!(asked.state, Known::Sought | Known::Away | Known::Queued);
        assert_eq!(sent, may_go.then(|| asked.payload.clone()));
        if may_go {
            asked.state = Known::Away;
            self.queue.retain(|queued| *queued != index);
        }
    }

    fn come_back(&mut self, service: &mut Service, request: usize, end: usize, now: MonotonicTime) {
        let Some(index) = self.pick(request) else { return };
        service.come_back(self.requests[index].ticket, ENDS[end](), now);
        let asked = &mut self.requests[index];
        if !matches!(asked.state, Known::Sought | Known::Away) {
            return;
        }
        let outcome = ENDS[end]();
        match &outcome {
            Ok(_) => self.counters.replied += 1,
            Err(RequestError::TimedOut) => self.counters.timed_out += 1,
            Err(RequestError::NoResponder) => self.counters.refused += 1,
            Err(_) => self.counters.failed += 1,
        }
        asked.state = Known::Done(outcome);
    }

    fn take(&mut self, service: &mut Service, responder: usize, max: usize, now: MonotonicTime) {
        if self.responders.is_empty() {
            return;
        }
        let responder = self.responders[responder % self.responders.len()];
        let handed = take(service, responder, max, now);
        let mut expected = Vec::new();
        if self.responders.front() == Some(&responder) {
            let requests = &self.requests;
            let can_go = self.queue.iter().copied().filter(|i| requests[*i].deadline > now);
            expected = can_go.take(max).collect();
        }
        assert_eq!(handed.len(), expected.len());
        if expected.is_empty() {
            return;
        }
        self.responders.pop_front();
        self.seen = Some(now);
        self.queue.retain(|index| !expected.contains(index));
        for (handed, index) in handed.into_iter().zip(expected) {
            assert_eq!(handed.payload, self.requests[index].payload);
            assert_eq!(handed.left, self.requests[index].deadline.since(now));
            let was_handed = self.handed.iter().any(|(_, earlier)| *earlier == index);
            let may_repeat = self.requests[index].may_repeat || self.put_back.contains(&index);
            assert!(!was_handed || may_repeat, "served twice");
            self.put_back.retain(|put_back| *put_back != index);
            self.requests[index].state = Known::InHand(handed.key);
            self.handed.push((handed.key, index));
        }
        self.queue_sought();
    }

    fn reply(&mut self, service: &mut Service, handed: usize, is_ok: bool, now: MonotonicTime) {
        let Some((key, held)) = self.held(handed, now) else { return };
        self.seen = Some(now);
        let reply = match held {
            Some(index) if is_ok => Ok(Reply::from(self.requests[index].payload.clone())),
            _ if is_ok => Ok(Reply::from("for nobody")),
            _ => Err(Box::from("broken")),
        };
        let replied = service.reply(key, reply.clone(), now);
        assert_eq!(replied.is_ok(), held.is_some());
        let Some(index) = held else {
            self.counters.not_wanted += 1;
            return;
        };
        let outcome = reply.map_err(|reason| RequestError::Failed { reason });
        let counters = self.counters(self.requests[index].origin);
        *(if is_ok { &mut counters.replied } else { &mut counters.failed }) += 1;
        self.requests[index].state = Known::Done(outcome);
    }

    fn hand_back(&mut self, service: &mut Service, handed: usize, now: MonotonicTime) {
        let Some((key, held)) = self.held(handed, now) else { return };
        self.seen = Some(now);
        let _ = service.hand_back(key, now);
        let Some(index) = held else { return };
        if self.requests[index].may_repeat {
            self.requests[index].state = Known::Queued;
            self.queue.push_front(index);
        } else {
            self.requests[index].state = Known::Done(Err(RequestError::ResponderGone));
            self.counters(self.requests[index].origin).failed += 1;
        }
    }

    fn put_back(&mut self, service: &mut Service, handed: usize, now: MonotonicTime) {
        let Some((key, held)) = self.held(handed, now) else { return };
        let index = held.unwrap_or_default();
        let payload = self.requests[index].payload.clone();
        let _ = service.put_back(key, (payload, Headers::default()), now);
        if held.is_some() {
            self.requests[index].state = Known::Queued;
            self.queue.push_front(index);
            self.put_back.push(index);
        }
    }

    fn pick(&self, request: usize) -> Option<usize> {
        let index = request % self.requests.len().max(1);
        (self.requests.get(index)?.state != Known::Gone).then_some(index)
    }

    fn give_up(&mut self, service: &mut Service, request: usize, now: MonotonicTime) {
        let Some(index) = self.pick(request) else { return };
        let asked = &mut self.requests[index];
        service.give_up(asked.ticket, now);
        if matches!(asked.state, Known::InHand(_)) {
            self.seen = Some(now);
        }
        let (origin, state) = (asked.origin, mem::replace(&mut asked.state, Known::Gone));
        if !matches!(state, Known::Done(_)) {
            self.counters(origin).given_up += 1;
        }
        self.queue.retain(|queued| *queued != index);
    }

    fn poll(&mut self, service: &mut Service, request: usize) {
        let Some(index) = self.pick(request) else { return };
        let asked = &mut self.requests[index];
        match (poll(service, asked.ticket), &asked.state) {
            (Poll::Ready(outcome), Known::Done(expected)) => {
                assert_eq!(outcome, *expected);
                asked.state = Known::Gone;
            }
            (Poll::Pending, state) if !matches!(state, Known::Done(_) | Known::Gone) => {}
            (polled, expected) => panic!("{polled:?} instead of {expected:?}"),
        }
    }

    fn check(&self, service: &Service, now: MonotonicTime) {
        let stats = service.stats();
        let without_times =
            |counters| ServiceCounters { reply_times: ReplyTimes::default(), ..counters };
        assert_eq!(without_times(stats.counters), self.counters);
        assert_eq!(without_times(service.accounts.foreign), self.foreign);
        assert_eq!((stats.responders, stats.taken), (self.responders.len(), self.foreign.asked));
        let count = |is_own: bool, is_counted: fn(&Known) -> bool| {
            let of_origin = |asked: &&Asked| (asked.origin != Origin::Elsewhere) == is_own;
            let found = self.requests.iter().filter(of_origin);
            found.filter(|asked| is_counted(&asked.state)).count()
        };
        let is_queued = |state: &Known| *state == Known::Queued;
        let is_in_hand = |state: &Known| matches!(state, Known::InHand(_));
        assert_eq!(stats.queued, count(true, is_queued));
        assert_eq!(stats.in_hand, count(true, is_in_hand));
        let is_away = |state: &Known| matches!(state, Known::Sought | Known::Away);
        assert_eq!(stats.away, count(true, is_away));
        assert_eq!(stats.visiting, count(false, is_queued) + count(false, is_in_hand));
        assert_eq!(service.in_hand, self.in_hand());
        let open = [stats.queued + stats.in_hand + stats.away, stats.visiting];
        for (counters, open) in [stats.counters, service.accounts.foreign].into_iter().zip(open) {
            let ServiceCounters { replied, failed, timed_out, refused, given_up, .. } = counters;
            let over = replied + failed + timed_out + refused + given_up;
            assert_eq!(counters.asked, over + open as u64);
            assert_eq!(counters.reply_times.counts.iter().sum::<u64>(), replied);
        }
        assert_eq!(service.is_absent(now), self.is_absent(now));
        let is_held = |asked: &&Asked| asked.state != Known::Gone;
        let sizes = self.requests.iter().filter(is_held).map(|asked| asked.payload.len() as u64);
        assert_eq!(service.bytes, sizes.map(|size| size + 256).sum::<u64>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_service_does_what_a_naive_model_does(steps in prop::collection::vec(step(), 1..200)) {
        let (mut service, mut model, mut now) = (service(u64::MAX), Model::default(), START);
        for step in steps {
            if let Step::Wait { seconds } = step {
                now = now.after(Duration::from_secs(seconds).into());
            }
            model.act(&mut service, step, now);
            model.check(&service, now);
        }
        // The timer is told of everything that is due: with it alone, all requests end.
        while let Some(Registration { at, .. }) = service.next_registration() {
            now = now.max(at);
            let _ = service.run_due(now);
            model.run_due(now);
            model.check(&service, now);
        }
        prop_assert!(model.queue.is_empty() && model.in_hand() == 0);
        let is_away = |asked: &Asked| matches!(asked.state, Known::Sought | Known::Away);
        prop_assert!(!model.requests.iter().any(is_away));
    }
}
