//! A service and a page, in the manner of the known clients and with their peculiarities.

use std::collections::HashMap;

use super::{Broker, Peer};
use crate::{keys::key, support::soon};

/// A service as those in Python: it waits for the id of its connection, has heads with bare line feeds and no space after
/// the colon, knows names of headers in lower case only, and answers with all headers of the request.
struct Service {
    peer: Peer,
    name: &'static str,
}

/// A message as the service sees it.
struct Received {
    command: String,
    headers: HashMap<String, String>,
    body: String,
}

impl Service {
    async fn start(broker: &Broker, key: &str, name: &'static str) -> Self {
        let mut service = Self { peer: broker.login(key).await, name };
        for command in ["EPUB", "EREQ", "SUB"] {
            service.send(command, name, &[], "").await;
        }
        service.peer.is_idle().await;
        service
    }

    async fn send(&mut self, command: &str, target: &str, headers: &[(&str, &str)], body: &str) {
        let lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let headers = lines.concat();
        self.peer.send(format!("{command} {target}\n{headers}\n{body}\r\n.\r\n")).await;
    }

    async fn receive(&mut self) -> Received {
        let text = self.peer.frame().await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let command = lines.next().unwrap().split(' ').next().unwrap().to_owned();
        let headers = lines.map(|line| line.split_once(':').unwrap());
        Received {
            command,
            headers: headers
                .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
                .collect(),
            body: body.strip_suffix("\r\n.\r\n").unwrap().to_owned(),
        }
    }

    /// Handles one message by its header `cmd`.
    async fn handle(&mut self) -> Received {
        let received = self.receive().await;
        let headers: Vec<(&str, &str)> =
            received.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        match (&*received.command, &*received.headers["cmd"]) {
            ("REQ", "echo") => self.send("RES", self.name, &headers, &received.body).await,
            ("REQ" | "PUB", "fail") => {
                let target = format!("MSG:{}", received.headers["cid"]);
                let headers = [("cmd", "error"), ("type", "ValueError"), ("msg", "no")];
                self.send("PUB", &target, &headers, "").await;
            }
            ("PUB", _) => {}
            other => panic!("{other:?}"),
        }
        received
    }
}

/// A page as those in JavaScript: it trims lines, splits at the first colon, compares names of headers with their case,
/// joins the lines of the body, and throws on what it does not know.
struct Page {
    peer: Peer,
}

#[derive(Debug, PartialEq)]
enum Called {
    /// The callback of a target, with the body.
    Target(String, String),
    /// The callback of a request, by its `ReqID`.
    Reply(String, String),
    /// It has thrown.
    Thrown,
}

impl Page {
    async fn start(broker: &Broker, key: &str) -> Self {
        let mut peer = broker.open().await;
        peer.send(key).await;
        assert_eq!(peer.frame().await, "MM OK");
        Self { peer }
    }

    /// Sends the last header only.
    async fn send(&mut self, command: &str, target: &str, header: &str, body: &str) {
        self.peer.send(format!("{command} {target}\r\n{header}\r\n\r\n{body}\r\n.\r\n")).await;
    }

    async fn receive(&mut self) -> Called {
        let text = self.peer.frame().await;
        let mut lines = text.split('\n').map(str::trim);
        let first = lines.next().unwrap();
        let words: Vec<&str> = first.split(' ').collect();
        let [command, target] = words[..] else { return Called::Thrown };
        let mut headers = HashMap::new();
        for line in lines.by_ref().take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            headers.insert(name.to_owned(), value.trim().to_owned());
        }
        let body: Vec<&str> = lines.take_while(|line| *line != ".").collect();
        let body = body.join("\n");
        match (command, headers.get("ReqID")) {
            ("PUB", _) => Called::Target(target.to_owned(), body),
            ("RES", Some(request)) => Called::Reply(request.clone(), body),
            _ => Called::Thrown,
        }
    }
}

#[tokio::test]
async fn a_service_and_a_page_work_together() {
    let (service, page) = (key("chat-service", &["serve:Chat"]), key("page", &["pull:nothing"]));
    let broker = Broker::with_keys(&[&service, &page], |_| {});
    let mut chat = Service::start(&broker, &service.secret, "Chat").await;
    chat.send("ESUB", "Chat", &[], "").await;
    chat.peer.is_idle().await;
    let mut page = Page::start(&broker, &page.secret).await;
    assert_eq!(page.receive().await, Called::Thrown, "the id, which is harmless");

    page.send("SUB", "Chat", "x: y", "").await;
    page.peer.is_idle().await;
    page.send("PUB", "Chat", "cmd: say", "hi\n there ").await;
    let said = chat.handle().await;
    assert_eq!((&*said.body, &*said.headers["uid"]), ("hi\n there ", ""));
    assert_eq!(page.receive().await, Called::Target("Chat".to_owned(), "hi\nthere".to_owned()));

    // The page sends one header only: the name of the method is in the request of a later page.
    page.peer.send("REQ Chat\r\ncmd: echo\r\nReqID: f00\r\n\r\nagain\r\n.\r\n").await;
    let asked = chat.handle().await;
    assert_eq!((&*asked.headers["reqid"], &*asked.headers["rid"]), ("f00", "1"));
    assert_eq!(page.receive().await, Called::Reply("f00".to_owned(), "again".to_owned()));

    page.send("PUB", "Chat", "cmd: fail", "x").await;
    let failed = chat.handle().await;
    assert_eq!(page.receive().await, Called::Target("Chat".to_owned(), "x".to_owned()));
    let private = format!("MSG:{}", failed.headers["cid"]);
    assert_eq!(page.receive().await, Called::Target(private, String::new()));

    page.send("PUB", "Secret", "a: b", "x").await;
    let error = "Not trusted PUB Secret".to_owned();
    assert_eq!(page.receive().await, Called::Target("ERROR".to_owned(), error));
}

/// A service asks another with its own `rid`, which never worked before.
#[tokio::test]
async fn services_ask_each_other_by_their_own_numbers() {
    let broker = Broker::start();
    let mut one = Service::start(&broker, "xyzzy", "One").await;
    let mut two = Service::start(&broker, "xyzzy", "Two").await;
    let own = "0f8a";
    one.send("REQ", "Two", &[("cmd", "echo"), ("rid", own)], "{\"a\":1}").await;
    let asked = soon(two.handle()).await;
    assert_eq!(asked.headers["rid"], "1");
    let reply = one.receive().await;
    assert_eq!((&*reply.command, &*reply.body, &*reply.headers["rid"]), ("RES", "{\"a\":1}", own));
}
