//! What goes on beside the clients: servers are killed and restarted, topics deleted and inspected.

use std::{rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::time::sleep;

use super::{super::invariants::Invariant, EngineSoak, caller::Caller, topics::Topic};

/// Kills or stops a msgbusd or the engine, and starts it again, while the load runs.
pub(super) async fn restart(soak: Rc<EngineSoak>, mut rng: Rng) -> anyhow::Result<()> {
    loop {
        for _ in 0..rng.u32(10..40) {
            if !soak.is_loading() {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
        let pause = Duration::from_millis(rng.u64(..1500));
        let (is_kill, node) = (rng.bool(), rng.usize(..2));
        let what = match (rng.u8(..3), is_kill) {
            (0, true) => "kills of the engine",
            (0, false) => "stops of the engine",
            (_, true) => "kills of a msgbusd",
            (_, false) => "stops of a msgbusd",
        };
        soak.invariants.borrow_mut().count(what, 1);
        if what.ends_with("engine") {
            soak.cluster.restart_engine(is_kill, pause).await?;
        } else {
            soak.cluster.restart_node(node, is_kill, pause).await?;
        }
    }
}

/// Deletes topics.
pub(super) async fn delete(soak: Rc<EngineSoak>, mut rng: Rng) {
    let mut caller = Caller::new(&soak, rng.fork());
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(50..1500))).await;
        let target = format!("/{}", Topic::any_to_delete(&mut rng).path());
        if let Ok((head, _)) = caller.ask("DELETE", &target, "", b"").await {
            let mut invariants = soak.invariants.borrow_mut();
            invariants.count("topics deleted", u64::from(head.status == 204));
            let is_right = matches!(head.status, 204 | 404 | 503 | 504);
            invariants.check(Invariant::Responses, is_right, || {
                format!("DELETE {target}: {}", head.status)
            });
        }
    }
}

/// Inspects topics, groups and metrics.
pub(super) async fn inspect(soak: Rc<EngineSoak>, mut rng: Rng) {
    let mut caller = Caller::new(&soak, rng.fork());
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(10..300))).await;
        let path = Topic::any(&mut rng).path();
        let (method, target) = match rng.u8(..6) {
            0 => ("HEAD", format!("/{path}")),
            1 => ("GET", format!("/-/topics/{path}")),
            2 => ("GET", "/-/groups/alpha/jobs/0".to_owned()),
            3 => ("GET", "/metrics".to_owned()),
            4 => ("GET", "/?max=100".to_owned()),
            _ => ("GET", format!("/{path}?peek&since=1s&max=10")),
        };
        if let Ok((head, _)) = caller.ask(method, &target, "", b"").await {
            let mut invariants = soak.invariants.borrow_mut();
            invariants.count("inspections of topics, groups and metrics", 1);
            let is_right = matches!(head.status, 200 | 204 | 404 | 503 | 504);
            invariants.check(Invariant::Responses, is_right, || {
                format!("{method} {target}: {}", head.status)
            });
        }
    }
}
