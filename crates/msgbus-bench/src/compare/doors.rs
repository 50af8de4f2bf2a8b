//! Clients of other systems at their doors, beside those of msgbus.

use super::{
    contender::Contender::{Msgbusd, With},
    variants::{CALLS_DRS, CALLS_DRS_TCP, FOLLOW_MIDDLEMAN, REQUESTS_MIDDLEMAN, SERVICES_V1},
    work::{Kind, Work},
};

/// The same requests as over `msgbus.v1`, but each in a frame of its own, as clients of middleman and drs send them; and
/// publishes by PUB to clients with SUB, which get each message as a frame, beside plain websockets.
pub(super) fn works() -> [Work; 2] {
    [
        Work::new(
            "doors-requests",
            "Old clients: 2 connections ask, 128 requests under way on each, 16 written together; 1 replies, 128 B",
            &[With(SERVICES_V1), With(REQUESTS_MIDDLEMAN), With(CALLS_DRS), With(CALLS_DRS_TCP)],
            Kind::Publish,
        )
        .with(|load| {
            (load.clients, load.batch, load.pipeline) = (2, 16, 8);
            load.messages = 1_000_000;
        }),
        Work::new(
            "doors-fanout",
            "Old clients: 8 publishers, 100 subscribers, 128 B, beside plain websockets",
            &[Msgbusd, With(FOLLOW_MIDDLEMAN)],
            Kind::FanOut(100),
        )
        .with(|load| (load.clients, load.messages) = (8, 30_000)),
    ]
}
