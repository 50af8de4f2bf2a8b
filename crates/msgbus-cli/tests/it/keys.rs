//! Keys: how the command and the library send them, and the errors without a valid one.

use std::{fs, path::PathBuf};

use msgbus_client::{Client, ClientError, Event, Key, Position};
use msgbusd::auth::{KeyFile, NewKey};

use crate::{
    relay::{Authority, UnixRelay},
    support::{Daemon, Finished, Running, msgbus, name, run, soon},
};

/// A server that requires a key, and a valid key.
struct Guarded {
    daemon: Daemon,
    folder: tempfile::TempDir,
    key: NewKey,
}

impl Guarded {
    fn start(allow: &[&str]) -> Self {
        let grants: Vec<_> = allow.iter().map(|grant| grant.parse().unwrap()).collect();
        let key = NewKey::make("tester", &grants).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, &key.lines).unwrap();
        let daemon = Daemon::with(|config| config.keys = Some(KeyFile::read(path).unwrap()));
        Self { daemon, folder, key }
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.folder.path().join("key");
        fs::write(&path, text).unwrap();
        path
    }

    /// Revokes all keys.
    fn forget(&self) {
        fs::write(self.folder.path().join("keys.toml"), "[anonymous]\nallow = []\n").unwrap();
        self.daemon.keyring.as_ref().unwrap().reload().unwrap();
    }

    async fn run(&self, args: &[&str], key: Option<&str>) -> Finished {
        let mut command = msgbus(args);
        command.env("MSGBUS_URI", self.daemon.uri());
        if let Some(key) = key {
            command.env("MSGBUS_KEY", key);
        }
        let finished = run(command).await;
        assert!(!format!("{finished:?}").contains(&self.key.secret), "it shows the key");
        finished
    }
}

#[tokio::test]
async fn every_command_sends_the_key() {
    let guarded = Guarded::start(&["*:**"]);
    let key = Some(&*guarded.key.secret);
    for (args, out) in [
        (&["pub", "t", "hi"][..], ""),
        (&["sub", "t", "--all", "-n1", "-oraw"], "hi\n"),
        (&["sub", "t", "--poll", "-oraw"], "hi\n"),
        (&["tail", "t", "-n1", "-oraw", "--timeout", "4s"], "hi\n"),
        (&["pull", "t", "--peek", "-oraw"], "hi\n"),
        (&["pull", "t", "-oraw"], "hi\n"),
    ] {
        let finished = guarded.run(args, key).await;
        assert_eq!((finished.code, &*finished.out), (Some(0), out), "{args:?}: {finished:?}");
        guarded.run(args, None).await.fails(1, "from --key-file FILE or MSGBUS_KEY");
    }
    for args in [&["topics"][..], &["info", "t"], &["rm", "t"]] {
        guarded.run(args, None).await.fails(1, "needs a key");
        let finished = guarded.run(args, key).await;
        assert_eq!((finished.code, &*finished.err), (Some(0), ""), "{args:?}");
    }
    for work in ["pub --msgs 10", "pull --msgs 10", "fanout --msgs 10 --subs 2"] {
        let line = format!("bench {work}");
        let args: Vec<&str> = line.split(' ').collect();
        let finished = guarded.run(&args, key).await;
        assert_eq!((finished.code, &*finished.err), (Some(0), ""), "{args:?}");
        guarded.run(&args, None).await.fails(1, "needs a key");
    }
}

#[tokio::test]
async fn groups_need_grants() {
    let grants = ["publish:**", "pull:t", "pull:t/dead-letters", "subscribe:t/dead-letters"];
    let guarded = Guarded::start(&grants);
    let key = Some(&*guarded.key.secret);
    let silent = async |args: &[&str]| {
        let finished = guarded.run(args, key).await;
        assert_eq!((finished.code, &*finished.out, &*finished.err), (Some(0), "", ""), "{args:?}");
    };
    silent(&["pub", "t", "hi"]).await;
    let pulled = guarded.run(&["pull", "t", "-g", "w", "-oraw"], key).await;
    assert_eq!((pulled.code, &*pulled.out), (Some(0), "hi\n"), "{pulled:?}");
    let token = pulled.err.trim();
    for without_key in [&["ack", token][..], &["pull", "t", "-g", "w"], &["redrive", "t"]] {
        guarded.run(without_key, None).await.fails(1, "key");
    }
    silent(&["ack", token]).await;
    silent(&["pub", "t", "hi"]).await;
    silent(&["work", "t", "-g", "w", "-n1", "true"]).await;
    // Without the permission to inspect, the default topic is used.
    silent(&["dead", "t"]).await;
    silent(&["redrive", "-q", "t"]).await;
    let refused: [&[&str]; 4] = [
        &["group", "t", "w"],
        &["group", "t", "w", "--max-deliveries", "1"],
        &["group", "t", "w", "--remove"],
        &["work", "u", "-g", "w", "true"],
    ];
    for args in refused {
        guarded.run(args, key).await.fails(1, "the server says 403: ");
    }
}

#[tokio::test]
async fn the_key_is_sent_over_tls_and_sockets_too() {
    let guarded = Guarded::start(&["publish:t", "subscribe:t", "pull:t"]);
    let authority = Authority::new();
    let tls = authority.relay(guarded.daemon.address).await;
    let socket = UnixRelay::start(guarded.daemon.address);
    for uri in [tls.uri(), socket.uri()] {
        for (args, out) in [
            (&["pub", "t", "hi"][..], ""),
            (&["sub", "t", "--all", "-n1", "-oraw"], "hi\n"),
            (&["pull", "t", "-oraw"], "hi\n"),
        ] {
            let mut command = msgbus(args);
            command.args(["-u", &uri, "--ca-file", &authority.file()]);
            run(command).await.fails(1, "the server says 401: ");
            let mut command = msgbus(args);
            command.args(["-u", &uri, "--ca-file", &authority.file()]);
            command.env("MSGBUS_KEY", &guarded.key.secret);
            let said = run(command).await;
            assert_eq!((said.code, &*said.out, &*said.err), (Some(0), out, ""), "{args:?}");
        }
    }
}

#[tokio::test]
async fn the_key_comes_from_option_file_or_environment() {
    let guarded = Guarded::start(&["publish:t"]);
    let secret = &*guarded.key.secret;
    let file = guarded.file(&format!("{secret}\n"));
    let file = file.to_str().unwrap();
    guarded.run(&["pub", "t", "x", "--key", secret], Some("wrong")).await.is_silent();
    guarded.run(&["pub", "t", "x", "--key-file", file], Some("wrong")).await.is_silent();
    guarded.run(&["pub", "t", "x"], Some(secret)).await.is_silent();
    guarded.run(&["pub", "t", "x"], None).await.fails(1, "publish:t needs a key");

    let both = ["pub", "t", "x", "--key", secret, "--key-file", file];
    guarded.run(&both, None).await.fails(2, "give one of --key and --key-file");
    let absent = ["pub", "t", "x", "--key-file", "/does/not/exist"];
    guarded.run(&absent, None).await.fails(2, "--key-file: cannot read /does/not/exist: No such");
    let empty = guarded.file("\n");
    let empty = ["pub", "t", "x", "--key-file", empty.to_str().unwrap()];
    guarded.run(&empty, None).await.fails(2, "--key-file: not a key");
    let two_words = format!("{secret} {secret}");
    guarded.run(&["pub", "t", "x", "--key", &two_words], None).await.fails(2, "--key: not a key");
    guarded.run(&["pub", "t", "x"], Some(&two_words)).await.fails(2, "MSGBUS_KEY: not a key");
}

#[tokio::test]
async fn a_refusal_shows_the_servers_text() {
    let guarded = Guarded::start(&["publish:t"]);
    let key = Some(&*guarded.key.secret);
    for args in [&["pub", "u", "x"][..], &["pull", "u"], &["sub", "u"], &["rm", "u"]] {
        let said = guarded.run(args, key).await;
        said.fails(1, "the server says 403: the key \"tester\" does not allow ");
    }
    guarded.run(&["sub", "u"], Some("mbk_wrong")).await.fails(1, "401: invalid key");
}

#[tokio::test]
async fn a_revoked_key_ends_a_subscription() {
    let guarded = Guarded::start(&["subscribe:t"]);
    let mut command = msgbus(&["sub", "t"]);
    command.env("MSGBUS_URI", guarded.daemon.uri()).env("MSGBUS_KEY", &guarded.key.secret);
    let mut running = Running::start(command);
    guarded.daemon.subscribers(1).await;
    guarded.forget();
    let note = running.note().await;
    assert!(note.contains("the keys no longer allow this subscription"), "{note}");
    running.end().await.fails(1, "the server says 401: invalid key");
}

#[tokio::test]
async fn the_library_sends_the_key_only_to_the_server() {
    let guarded = Guarded::start(&["publish:t", "subscribe:t"]);
    let key: Key = guarded.key.secret.parse().unwrap();
    let client = Client::new(&guarded.daemon.uri()).unwrap().with_key(key.clone());
    assert_eq!(client.key(), Some(&key));
    client.publish(&name("t"), "hi").await.unwrap();
    let mut subscription = client.subscribe(&name("t"), Position::All);
    assert!(matches!(soon(subscription.next()).await.unwrap(), Event::Connected));
    let Event::Message(message) = soon(subscription.next()).await.unwrap() else { panic!() };
    assert_eq!(message.payload(), "hi");
    let error = client.pull(&name("t")).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 403, .. }), "{error}");
    assert!(!format!("{client:?} {subscription:?} {error:?}").contains(&guarded.key.secret));
}
