//! Requests to a service, with their replies: one connection serves, and sends payloads back.

use super::{
    contender::Contender::{Bare, Msgbusd, NatsRequests, With},
    variants::{SERVICES, SERVICES_V1},
    work::{Kind, Work},
    works::latency,
};
use crate::bare::Push;

/// Beside publishes, a proxy that only forwards, and NATS. Over HTTP the responder takes up to 64 requests with one long
/// poll, and sends their replies and the next poll together; the others are pushed requests, and reply at once to those
/// that they have read together.
pub(super) fn works() -> [Work; 3] {
    [
        Work::new(
            "requests",
            "Services: 64 connections ask, 1 takes up to 64 requests at a time and replies, 128 B, beside publishes",
            &[With(SERVICES), Msgbusd, Bare(Push::Proxy), NatsRequests],
            Kind::Publish,
        )
        .with(|load| load.messages = 100_000),
        Work::new(
            "requests-v1",
            "Services: 2 connections ask, 128 requests under way on each, 16 written together; 1 replies, 128 B",
            &[With(SERVICES_V1), NatsRequests],
            Kind::Publish,
        )
        .with(|load| {
            (load.clients, load.batch, load.pipeline) = (2, 16, 8);
            load.messages = 1_000_000;
        }),
        Work::new(
            "requests-latency",
            "Services: 1,000 requests a second on 1 connection",
            &[With(SERVICES), Bare(Push::Proxy), With(SERVICES_V1), NatsRequests],
            Kind::Publish,
        )
        .with(latency),
    ]
}
