//! Keys of msgbus: `token` in the address, and `auth.upgrade`.

use msgbusd::auth::KeyFile;

use super::{ALL, Over, daemon, daemon_with};
use crate::{
    keys::{File, key},
    support::Daemon,
};

fn with_keys(file: &File) -> Daemon {
    daemon_with(|config| {
        config.keys = Some(KeyFile::read(file.path()).unwrap());
        config.drs.broadcast = vec!["all/**".parse().unwrap()];
    })
}

#[tokio::test]
async fn a_login_makes_the_peer_the_holder_of_a_key() {
    let (one, two) =
        (key("one", &["*:one", "subscribe:all/one"]), key("two", &["*:two", "*:all/two"]));
    let file = File::new(&[], &[&one, &two]);
    let daemon = with_keys(&file);
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        let needed =
            r#"{"key":"k","action":"drs.error","body":{"message":"Authentication required"}}"#;
        for command in [
            r#"{"key":"k","action":"one"}"#,
            r#"{"key":"k","action":"drs.serve","body":"one"}"#,
            r#"{"key":"k","action":"drs.subscribe","body":"one"}"#,
        ] {
            peer.gives(command, needed).await;
        }
        peer.gives(
            r#"{"key":"k","action":"auth.upgrade","body":"wrong"}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"invalid key"}}"#,
        )
        .await;
        peer.gives(
            &format!(r#"{{"key":"k","action":"auth.upgrade","body":"{}"}}"#, one.secret),
            r#"{"key":"k","action":"drs.response","body":"one"}"#,
        )
        .await;
        peer.on("drs.serve", "one").await;
        peer.on("drs.subscribe", "one").await;
        peer.gives(
            r#"{"key":"k","action":"two"}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"the key \"one\" does not allow request:two"}}"#,
        )
        .await;
        // A later login replaces the user.
        peer.gives(
            &format!(r#"{{"key":"k","action":"auth.upgrade","body":"{}"}}"#, two.secret),
            r#"{"key":"k","action":"drs.response","body":"two"}"#,
        )
        .await;
        peer.gives(
            r#"{"key":"k","action":"two"}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"No handlers for two"}}"#,
        )
        .await;
        peer.gives(
            r#"{"key":"k","action":"drs.serve","body":"other"}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"the key \"two\" does not allow serve:other"}}"#,
        )
        .await;
        // What it handles already goes on as the user who began it.
        daemon.bus.put(&"one".parse().unwrap(), "1").unwrap();
        assert_eq!(peer.text().await, r#"{"action":"one","body":1}"#);
    }
}

/// What a peer serves goes on as the user who began it, also when another one has logged in.
#[tokio::test]
async fn answers_count_as_of_the_user_who_serves() {
    let (one, two) = (key("one", &["serve:s"]), key("two", &["subscribe:t"]));
    let file = File::new(&["request:s"], &[&one, &two]);
    let daemon = with_keys(&file);
    for over in ALL {
        let (mut caller, mut peer) = (daemon.drs(over).await, daemon.drs(over).await);
        for (key, action, name) in [(&one, "drs.serve", "s"), (&two, "drs.subscribe", "t")] {
            let login = format!(r#"{{"key":"k","action":"auth.upgrade","body":"{}"}}"#, key.secret);
            peer.send(&login).await;
            assert_eq!(peer.value().await["action"], "drs.response");
            peer.on(action, name).await;
        }
        caller.send(r#"{"key":"k","action":"s"}"#).await;
        let call = super::key_of(&peer.text().await);
        peer.send(&format!(r#"{{"key":"{call}","action":"drs.response","body":1}}"#)).await;
        assert_eq!(caller.text().await, r#"{"key":"k","action":"drs.response","body":1}"#);
    }
}

/// A request that a peer may no longer answer goes to another one.
#[tokio::test]
async fn a_call_of_a_peer_that_may_no_longer_answer_is_handed_on() {
    let (one, two) = (key("one", &["serve:s"]), key("two", &["serve:s"]));
    let file = File::new(&["request:s"], &[&one, &two]);
    let daemon = with_keys(&file);
    let serving = async |key: &msgbusd::auth::NewKey| {
        let mut peer = daemon.drs_at(&format!("/socket?token={}", key.secret)).await;
        peer.on("drs.serve", "s").await;
        peer
    };
    let mut first = serving(&one).await;
    let (reply, ()) = tokio::join!(daemon.put("/-/request/s?retry&timeout=60s", "x"), async {
        let call = super::key_of(&first.text().await);
        file.write(&["request:s"], &[&two]);
        daemon.keyring.as_ref().unwrap().reload().unwrap();
        let mut second = serving(&two).await;
        first.send(&format!(r#"{{"key":"{call}","action":"drs.response","body":1}}"#)).await;
        let call = super::key_of(&second.text().await);
        second.send(&format!(r#"{{"key":"{call}","action":"drs.response","body":2}}"#)).await;
        second.is_idle().await;
    });
    assert_eq!((reply.status, reply.text()), (200, "2"));
}

#[tokio::test]
async fn names_that_are_refused_are_told() {
    let holder = key("holder", &["subscribe:b"]);
    let file = File::new(&[], &[&holder]);
    let daemon = with_keys(&file);
    let refused =
        r#""drs.error","body":{"message":"the key \"holder\" does not allow subscribe:a"}}"#;
    for names in [r#"["a","b"]"#, r#"["b","a"]"#] {
        let mut peer = daemon.drs_at(&format!("/socket?token={}", holder.secret)).await;
        peer.gives(
            &format!(r#"{{"key":"k","action":"drs.subscribe","body":{names}}}"#),
            &format!(r#"{{"key":"k","action":{refused}"#),
        )
        .await;
        daemon.bus.put(&"b".parse().unwrap(), "1").unwrap();
        assert_eq!(peer.text().await, r#"{"action":"b","body":1}"#, "the other one is followed");
    }
    let mut peer = daemon.drs_at(&format!("/socket?token={}&subscribe=a,b", holder.secret)).await;
    assert_eq!(peer.text().await, format!(r#"{{"action":{refused}"#));
    let mut peer = daemon.drs_at("/socket?subscribe=b").await;
    assert_eq!(
        peer.text().await,
        r#"{"action":"drs.error","body":{"message":"Authentication required"}}"#
    );
}

#[tokio::test]
async fn broadcasts_go_to_those_who_may_follow_the_topic() {
    let (one, two) = (key("one", &["subscribe:all/one"]), key("two", &["subscribe:all/two"]));
    let file = File::new(&["subscribe:all/open"], &[&one, &two]);
    let daemon = with_keys(&file);
    let publish = |topic: &str| daemon.bus.put(&topic.parse().unwrap(), "1").unwrap();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.is_idle().await;
        daemon.subscribers(1).await;
        for (login, allowed) in
            [(None, "all/open"), (Some(&one), "all/one"), (Some(&two), "all/two")]
        {
            if let Some(key) = login {
                peer.send(&format!(
                    r#"{{"key":"k","action":"auth.upgrade","body":"{}"}}"#,
                    key.secret
                ))
                .await;
                assert_eq!(peer.value().await["action"], "drs.response");
                peer.is_idle().await;
            }
            for topic in ["all/one", "all/two", allowed] {
                publish(topic);
            }
            let count = if allowed == "all/open" { 1 } else { 2 };
            for _ in 0..count {
                assert_eq!(peer.text().await, format!(r#"{{"action":"{allowed}","body":1}}"#));
            }
            peer.is_idle().await;
        }
        drop(peer);
        daemon.subscribers(0).await;
    }
}

#[tokio::test]
async fn nothing_is_missed_during_a_login() {
    let keys: Vec<_> = (0..2).map(|n| key(&format!("k{n}"), &["subscribe:all/**"])).collect();
    let file = File::new(&["subscribe:all/**"], &[&keys[0], &keys[1]]);
    let daemon = with_keys(&file);
    let mut peer = daemon.drs(Over::Tcp).await;
    peer.is_idle().await;
    daemon.subscribers(1).await;
    let mut next = 0;
    for round in 0..50 {
        let secret = &keys[round % 2].secret;
        daemon.bus.put(&"all/t".parse().unwrap(), (2 * round).to_string()).unwrap();
        peer.send(&format!(r#"{{"key":"k","action":"auth.upgrade","body":"{secret}"}}"#)).await;
        daemon.bus.put(&"all/t".parse().unwrap(), (2 * round + 1).to_string()).unwrap();
        let mut answered = false;
        while next < 2 * (round + 1) || !answered {
            let command = peer.value().await;
            if command["action"] == "all/t" {
                assert_eq!(command["body"], next);
                next += 1;
            } else {
                answered = true;
            }
        }
    }
}

#[tokio::test]
async fn the_token_of_an_address_is_a_key_or_a_ticket() {
    let holder = key("holder", &["*:**"]);
    let file = File::new(&["inspect:**"], &[&holder]);
    let daemon = with_keys(&file);
    let needed = r#"{"key":"k","action":"drs.error","body":{"message":"Authentication required"}}"#;
    let nobody = r#"{"key":"k","action":"drs.error","body":{"message":"No handlers for s"}}"#;
    let bearer = format!("Authorization: Bearer {}", holder.secret);
    let ticket = daemon.send("POST", "/-/ticket", &[&bearer], b"").await;
    let ticket: serde_json::Value = serde_json::from_slice(&ticket.body).unwrap();
    let ticket = ticket["ticket"].as_str().unwrap().to_owned();
    for (target, answer) in [
        ("/socket".to_owned(), Some(needed)),
        ("/socket?token=&x=1&".to_owned(), Some(needed)),
        (format!("/socket?a=b&token={}&", holder.secret), Some(nobody)),
        (format!("/socket?token={ticket}"), Some(nobody)),
        ("/socket?token=wrong".to_owned(), None),
    ] {
        let mut peer = daemon.drs_at(&target).await;
        match answer {
            Some(answer) => peer.gives(r#"{"key":"k","action":"s"}"#, answer).await,
            // Without a message.
            None => peer.is_closed().await,
        }
    }
    assert!(daemon.metric(r#"msgbus_server_refused_total{code="wrong_key"}"#).await >= 1);
}

#[tokio::test]
async fn a_key_that_is_removed_ends_what_it_began() {
    let holder = key("holder", &["*:**"]);
    let file = File::new(&[], &[&holder]);
    let daemon = with_keys(&file);
    for over in ALL {
        file.write(&[], &[&holder]);
        daemon.keyring.as_ref().unwrap().reload().unwrap();
        let mut peer = daemon.drs(over).await;
        peer.send(&format!(r#"{{"key":"k","action":"auth.upgrade","body":"{}"}}"#, holder.secret))
            .await;
        peer.text().await;
        peer.on("drs.serve", "s").await;
        peer.on("drs.subscribe", "t").await;
        peer.is_idle().await;
        file.write(&[], &[]);
        daemon.keyring.as_ref().unwrap().reload().unwrap();
        let mut ends = Vec::new();
        while ends.len() < 3 {
            ends.push(peer.text().await);
        }
        ends.sort();
        assert_eq!(
            ends,
            [
                r#"{"action":"drs.end","body":{"serve":"s"}}"#,
                r#"{"action":"drs.end","body":{"subscribe":"all/**"}}"#,
                r#"{"action":"drs.end","body":{"subscribe":"t"}}"#
            ]
        );
        peer.gives(
            r#"{"key":"k","action":"s"}"#,
            r#"{"key":"k","action":"drs.error","body":{"message":"invalid key"}}"#,
        )
        .await;
    }
}

#[tokio::test]
async fn a_server_without_keys_lets_everybody_log_in() {
    let daemon = daemon();
    for over in ALL {
        let mut peer = daemon.drs(over).await;
        peer.gives(
            r#"{"key":"k","action":"auth.upgrade","body":"anything"}"#,
            r#"{"key":"k","action":"drs.response","body":"anonymous"}"#,
        )
        .await;
    }
    daemon.drs_at("/socket?token=anything").await.is_idle().await;
}
