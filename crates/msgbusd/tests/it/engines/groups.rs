//! Groups of topics in an engine: a lease excludes the workers of all servers.

use super::on_each_pair;
use crate::support::soon;

#[tokio::test]
async fn a_lease_excludes_the_workers_of_all_servers() {
    on_each_pair(async |_engine, one, other| {
        one.put("/jobs", "job").await;
        let (id, deliveries, token) = one.lease("/jobs?group=workers&wait=60s").await;
        assert_eq!(deliveries, 1);
        assert_eq!(other.get("/jobs?group=workers&wait=300ms").await.status, 204);
        assert_eq!(one.get("/jobs?group=workers").await.status, 404);
        // Another group has its own leases.
        let (same, ..) = other.lease("/jobs?group=others&wait=60s").await;
        assert_eq!(same, id);

        let extended = other.post(&format!("/-/extend/{token}?lease=30s")).await;
        assert_eq!(extended.status, 204);
        assert!(extended.header("Msgbus-Lease-Expires").is_some());
        assert_eq!(other.post(&format!("/-/nack/{token}")).await.status, 204);
        let (again, deliveries, second) = other.lease("/jobs?group=workers&wait=60s").await;
        // nats-server 2.9 may have given it to the pull that waited before.
        assert!(again == id && (2..=3).contains(&deliveries), "{deliveries} deliveries of {again}");
        assert_eq!(other.post(&format!("/-/nack/{token}")).await.status, 410, "that is over");
        assert_eq!(one.ack(&second).await, 204);
        assert_eq!(other.get("/jobs?group=workers&wait=300ms").await.status, 204);
    })
    .await;
}

#[tokio::test]
async fn many_leases_are_settled_at_once_and_shown() {
    on_each_pair(async |_engine, one, other| {
        one.put("/jobs?split=lines", "a\nb\nc\n").await;
        assert_eq!(one.send("PUT", "/-/groups/g/jobs", &[], b"").await.status, 201);
        let shown = other.get("/-/groups/g/jobs").await.json();
        assert_eq!((&shown["pending"], &shown["unacked"]), (&3.into(), &0.into()));
        let mut tokens = Vec::new();
        while tokens.len() < 3 {
            let leased = one.get("/jobs?group=g&max=10&wait=60s").await;
            tokens.extend(leased.leases().into_iter().map(|(_, _, token)| token));
        }
        let body = format!("{}\nrubbish\n", tokens.join("\n"));
        let settled = other.send("POST", "/-/ack", &[], body.as_bytes()).await;
        assert_eq!((settled.status, settled.text().lines().count()), (200, 1));
        assert!(settled.text().contains("invalid_lease"), "{settled:?}");
        let shown = one.get("/-/groups/g/jobs").await.json();
        assert_eq!((&shown["pending"], &shown["unacked"]), (&0.into(), &0.into()));
        let moved = other.send("PUT", "/-/groups/g/jobs?since=all", &[], b"").await;
        assert_eq!((moved.status, &moved.json()["pending"]), (200, &3.into()));
        assert_eq!(other.send("DELETE", "/-/groups/g/jobs", &[], b"").await.status, 204);
        assert_eq!(one.get("/-/groups/g/jobs").await.status, 404);
    })
    .await;
}

/// Workers on `msgbus.v1` are pushed leases as they have credit.
#[tokio::test]
async fn workers_on_a_websocket_are_pushed_leases() {
    on_each_pair(async |_engine, one, other| {
        let mut v1 = other.client().await;
        let sub = serde_json::json!({"op": "sub", "rid": 1, "sid": "w", "topic": "jobs", "group": "g", "credit": 2});
        v1.send(&[sub]).await;
        assert_eq!(v1.line().await["op"], "ok");
        for n in 0..3 {
            one.put("/jobs", n.to_string()).await;
        }
        let (first, second) = (v1.line().await, v1.line().await);
        assert_eq!((&first["deliveries"], &second["deliveries"]), (&1.into(), &1.into()));
        assert_ne!(first["id"], second["id"]);
        let ack = serde_json::json!({"op": "ack", "rid": 2, "token": first["lease"]});
        v1.send(&[ack]).await;
        assert_eq!(v1.line().await["rid"], 2);
        v1.send(&[serde_json::json!({"op": "credit", "rid": 3, "sid": "w", "n": 1})]).await;
        assert_eq!(v1.line().await["rid"], 3);
        let third = soon(v1.line()).await;
        assert!(third["id"].as_u64() > second["id"].as_u64(), "{third}");
    })
    .await;
}
