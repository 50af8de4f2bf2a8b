//! Sections 4 and 5 of the facts: requests and their replies.

use std::time::Duration;

use super::{Broker, Peer, header, message};
use crate::support::{soon, until};

/// A responder of a service.
async fn responder(broker: &Broker, service: &str) -> Peer {
    let mut peer = broker.peer().await;
    peer.command(&format!("EREQ {service}")).await;
    peer.is_idle().await;
    peer
}

#[tokio::test]
async fn a_request_goes_to_one_responder_and_its_reply_to_the_requester() {
    let broker = Broker::start();
    let mut server = responder(&broker, "s").await;
    let (mut client, mut other) = (broker.peer().await, broker.peer().await);
    client.send("REQ s\r\ncmd: Add\r\nReqID: 7f\r\n\r\n1 2\r\n.\r\n").await;
    let request = format!(
        "REQ s\r\nCid: {}\r\nUid: \r\nRid: 1\r\ncmd: Add\r\nReqID: 7f\r\n\r\n1 2\r\n.\r\n",
        client.guid
    );
    server.gets(&request).await;
    // The target of the reply is not used for routing. Headers pass; the number is removed.
    server.send("RES x\r\nrid: 1\r\nReqID: 7f\r\nok: yes\r\n\r\n3\r\n.\r\n").await;
    client.gets(&message("RES s", &server.guid, "", "ReqID: 7f\r\nok: yes\r\n\r\n3")).await;
    other.is_idle().await;
    client.is_idle().await;
    // It is forgotten then.
    server.command("RES s\r\nrid: 1").await;
    server.fails("No client for request ID  RES s").await;
}

/// The requester's own number comes back, and `ReqID` also if the responder dropped it, in the spelling of the requester.
#[tokio::test]
async fn the_requesters_own_headers_come_back() {
    let broker = Broker::start();
    let mut server = responder(&broker, "s").await;
    let mut client = broker.peer().await;
    for (own, answer, back) in [
        ("rid: beef\nReqID: 7", "rid: {}", "ReqID: 7\r\nrid: beef\r\n"),
        ("RID: beef", "Rid: {}\nx: 1", "x: 1\r\nRID: beef\r\n"),
        ("ReqID: 7\nCmd: a", "rid: {}\nreqid: 7\ncmd: a", "ReqID: 7\r\nCmd: a\r\n"),
        ("reqID: 7", "rid: {}\nReqid: 8", "reqID: 8\r\n"),
        ("a: 1", "rid: {}", ""),
    ] {
        client.send(format!("REQ s\n{own}\n\n.\n")).await;
        let request = server.frame().await;
        let rid = header(&request, "Rid").to_owned();
        rid.parse::<u64>().unwrap();
        assert!(!request.contains("beef"), "{request}");
        server.send(format!("RES s\n{}\n\n.\n", answer.replace("{}", &rid))).await;
        client.gets(&message("RES s", &server.guid, "", &format!("{back}\r\n"))).await;
    }
}

/// Only the connection that was given the number may answer.
#[tokio::test]
async fn a_number_is_of_use_only_to_its_responder() {
    let broker = Broker::start();
    let (mut one, mut two) = (responder(&broker, "s").await, responder(&broker, "s").await);
    let mut client = broker.peer().await;
    client.command("REQ s").await;
    one.frame().await;
    two.send("RES s\nrid: 1\n\nforged\n.\n").await;
    two.fails("No client for request ID  RES s").await;
    client.send("RES s\nrid: 1\n\nforged\n.\n").await;
    client.fails("No client for request ID  RES s").await;
    one.send("RES s\nrid: 1\n\ntrue\n.\n").await;
    client.gets(&message("RES s", &one.guid, "", "\r\ntrue")).await;
}

#[tokio::test]
async fn responders_take_turns_and_a_second_ereq_changes_nothing() {
    let broker = Broker::start();
    let (mut one, mut two) = (responder(&broker, "s").await, responder(&broker, "s").await);
    one.command("EREQ s").await;
    one.is_idle().await;
    let mut client = broker.peer().await;
    for round in 0..20 {
        client.command("REQ s").await;
        client.command("REQ s").await;
        for server in [&mut one, &mut two] {
            let request = server.frame().await;
            let rid = header(&request, "Rid");
            assert_eq!(rid, (round + 1).to_string());
            server.command(&format!("RES s\r\nrid: {rid}")).await;
            client.frame().await;
        }
    }
}

/// Requests wait while all responders are busy with others.
#[tokio::test]
async fn without_responders_a_request_is_refused() {
    let broker = Broker::start();
    let mut client = broker.peer().await;
    client.command("REQ s").await;
    client.fails("No responder for REQ s").await;

    let mut server = responder(&broker, "s").await;
    client.command("REQ s").await;
    server.frame().await;
    drop(server);
    // The one that it had fails at once.
    client.fails("REQ s: the responder has left without a reply; it may have done the work").await;
    client.command("REQ s").await;
    client.fails("No responder for REQ s").await;
}

#[tokio::test]
async fn a_request_has_a_time_limit() {
    let broker = Broker::with(|config| config.middleman.timeout = Duration::from_millis(200));
    let mut server = responder(&broker, "s").await;
    let mut client = broker.peer().await;
    client.command("REQ s").await;
    server.frame().await;
    client.fails("REQ s: there was no reply in time; a responder may have done the work").await;
    server.command("RES s\r\nrid: 1").await;
    server.fails("No client for request ID  RES s").await;
    client.is_idle().await;
}

/// A service that sends all headers of its request back, as those in Python do, may do so with as many as there may be.
/// A reply that is too large fails its request, and nothing else.
#[tokio::test]
async fn a_requester_ends_no_service_by_many_headers() {
    let broker = Broker::with(|config| config.max_payload = 1000);
    let mut server = responder(&broker, "s").await;
    let mut client = broker.peer().await;
    let many = "a: 1\n".repeat(62);
    client.send(format!("REQ s\n{many}\n.\n")).await;
    let request = server.frame().await;
    assert_eq!(request.lines().filter(|line| line.contains(": ")).count(), 65);
    server.send(request.replacen("REQ", "RES", 1)).await;
    let reply = client.frame().await;
    assert_eq!(reply.lines().filter(|line| *line == "a: 1").count(), 62, "{reply}");

    let long = "x".repeat(1001);
    for (reply, why) in [
        (format!("{}\n", "a: 1\n".repeat(63)), "a message has at most 64 headers"),
        (
            format!("a: {}\n\n", "x".repeat(9000)),
            "the headers of a message have at most 8192 bytes",
        ),
        (format!("\n{long}\n"), "payload exceeds max-payload-size: at most 1000 bytes are allowed"),
    ] {
        client.command("REQ s").await;
        let rid = header(&server.frame().await, "Rid").to_owned();
        server.send(format!("RES s\nrid: {rid}\n{reply}.\n")).await;
        server.fails(&format!("RES s: {why}")).await;
        client.fails(&format!("REQ s: the responder failed: RES s: {why}")).await;
    }
    // A request over HTTP may have two more, which leaves no room for the headers that the server adds.
    let headers: Vec<String> =
        (0..64).map(|number| format!("Msgbus-Header-h{number}: 1")).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let asking = broker.send("POST", "/-/request/s", &headers, b"");
    let (failed, ()) = soon(async {
        tokio::join!(asking, async {
            let request = server.frame().await;
            server.send(request.replacen("REQ", "RES", 1)).await;
            server.fails("RES s: a message has at most 64 headers").await;
        })
    })
    .await;
    assert_eq!(failed.status, 502);
    server.is_idle().await;
}

/// A reply without a number is dropped silently.
#[tokio::test]
async fn replies_without_a_number_are_ignored() {
    let broker = Broker::start();
    let mut peer = broker.peer().await;
    peer.command("RES s").await;
    peer.command("RES s\r\nrid: one").await;
    peer.command("RES s\r\nrid:").await;
    peer.is_idle().await;
}

/// A requester that has left wants no reply.
#[tokio::test]
async fn requests_end_with_their_requester() {
    let broker = Broker::start();
    let mut server = responder(&broker, "s").await;
    let mut client = broker.peer().await;
    client.command("REQ s").await;
    server.frame().await;
    drop(client);
    let name = "s".parse().unwrap();
    until(|| broker.bus.service(&name).unwrap().in_hand == 0).await;
    server.command("RES s\r\nrid: 1").await;
    server.fails("No client for request ID  RES s").await;
}

/// Many requests of many clients: each gets its own reply, once.
#[tokio::test]
async fn replies_are_those_of_their_requests() {
    let broker = Broker::start();
    let mut servers = Vec::new();
    for _ in 0..3 {
        let mut server = responder(&broker, "s").await;
        servers.push(tokio::spawn(async move {
            loop {
                let Some(frame) = server.next().await else { return };
                let text = frame.to_text().unwrap().to_owned();
                let (_, body) = text.split_once("\r\n\r\n").unwrap();
                let rid = header(&text, "Rid");
                server.send(format!("RES s\r\nrid: {rid}\r\n\r\nre {body}")).await;
            }
        }));
    }
    let mut clients = Vec::new();
    for client in 0..5 {
        let mut peer = broker.peer().await;
        clients.push(tokio::spawn(async move {
            for number in 0..40 {
                peer.send(format!("REQ s\nReqID: {number}\n\n{client} {number}\n.\n")).await;
            }
            let mut seen = [false; 40];
            for _ in 0..40 {
                let reply = peer.frame().await;
                let number: usize = header(&reply, "ReqID").parse().unwrap();
                assert!(
                    reply.ends_with(&format!("\r\n\r\nre {client} {number}\r\n.\r\n")),
                    "{reply}"
                );
                assert!(!std::mem::replace(&mut seen[number], true));
            }
            peer.is_idle().await;
        }));
    }
    for client in clients {
        soon(client).await.unwrap();
    }
    for server in servers {
        server.abort();
    }
    let stats = broker.bus.service(&"s".parse().unwrap()).unwrap();
    assert_eq!((stats.counters.asked, stats.counters.replied), (200, 200));
}
