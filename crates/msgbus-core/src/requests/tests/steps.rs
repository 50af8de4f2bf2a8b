//! What happens to a service.

use proptest::prelude::*;

use crate::{
    model::{Reply, RequestError},
    requests::Origin,
};

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Ask { timeout: u64, may_repeat: bool, origin: Origin },
    Join,
    Leave { responder: usize },
    Take { responder: usize, max: usize },
    Reply { handed: usize, is_ok: bool },
    HandBack { handed: usize },
    PutBack { handed: usize },
    GiveUp { request: usize },
    Poll { request: usize },
    QueueHere { request: usize },
    SendAway { request: usize },
    ComeBack { request: usize, end: usize },
    Wait { seconds: u64 },
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![Just(Origin::Here), Just(Origin::HereForAll), Just(Origin::Elsewhere)]
}

/// How requests end that were away.
pub(super) const ENDS: [fn() -> Result<Reply, RequestError>; 5] = [
    || Ok(Reply::default()),
    || Err(RequestError::Failed { reason: Box::default() }),
    || Err(RequestError::TimedOut),
    || Err(RequestError::NoResponder),
    || Err(RequestError::ResponderGone),
];

pub(super) fn step() -> impl Strategy<Value = Step> {
    let index = 0..1000usize;
    prop_oneof![
        6 => (1..20u64, any::<bool>(), origin())
            .prop_map(|(timeout, may_repeat, origin)| Step::Ask { timeout, may_repeat, origin }),
        4 => Just(Step::Join),
        1 => index.clone().prop_map(|responder| Step::Leave { responder }),
        5 => (index.clone(), 1..4usize).prop_map(|(responder, max)| Step::Take { responder, max }),
        5 => (index.clone(), any::<bool>()).prop_map(|(handed, is_ok)| Step::Reply { handed, is_ok }),
        1 => index.clone().prop_map(|handed| Step::HandBack { handed }),
        1 => index.clone().prop_map(|handed| Step::PutBack { handed }),
        1 => index.clone().prop_map(|request| Step::GiveUp { request }),
        4 => index.clone().prop_map(|request| Step::Poll { request }),
        2 => index.clone().prop_map(|request| Step::QueueHere { request }),
        2 => index.clone().prop_map(|request| Step::SendAway { request }),
        2 => (index, 0..ENDS.len()).prop_map(|(request, end)| Step::ComeBack { request, end }),
        3 => (1..4u64).prop_map(|seconds| Step::Wait { seconds }),
    ]
}
