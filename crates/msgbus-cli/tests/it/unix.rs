//! Servers on a unix socket.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
};

use crate::{
    relay::UnixRelay,
    support::{Daemon, Proxy, Running, msgbus, run, soon},
};

#[tokio::test]
async fn every_command_takes_a_socket() {
    let daemon = Daemon::start();
    let relay = UnixRelay::start(daemon.address);
    run(msgbus(&["--uri", &relay.uri(), "pub", "t", "hi"])).await.is_silent();
    for (args, out) in [
        (&["sub", "t", "--all", "-n1", "-oraw"][..], "hi\n"),
        (&["sub", "t", "--poll", "-oraw"], "hi\n"),
        (&["pull", "t", "-oraw"], "hi\n"),
        (&["rm", "t"], ""),
    ] {
        let mut command = msgbus(args);
        // Traffic stays on this machine, so there is no warning about the key.
        command.env("MSGBUS_URI", relay.uri()).env("MSGBUS_KEY", "mbk_x");
        let said = run(command).await;
        assert_eq!((said.code, &*said.out, &*said.err), (Some(0), out, ""), "{args:?}");
    }
    for work in ["pub --msgs 500 --pipeline 8", "pull --msgs 100", "fanout --msgs 100 --subs 3"] {
        let mut command = msgbus(&["bench"]);
        command.args(work.split(' ')).env("MSGBUS_URI", relay.uri());
        let said = run(command).await;
        assert_eq!((said.code, &*said.err), (Some(0), ""), "{work}");
        assert!(said.out.contains("0 lost, 0 repeated, 0 reordered"), "{}", said.out);
    }
}

#[tokio::test]
async fn a_subscription_resumes_when_the_socket_is_cut() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let relay = UnixRelay::start(proxy.address);
    let mut running = Running::start(msgbus(&["sub", "t", "--all", "-u", &relay.uri()]));
    for round in 0..2 {
        daemon.put("t", "x");
        assert_eq!(running.ids(1).await, [round]);
        proxy.cut();
        let note = running.note().await;
        assert!(note.contains("lost the connection to unix:/"), "{note}");
        assert_eq!(running.note().await, "msgbus: connected again\n");
    }
}

#[tokio::test]
async fn the_host_is_localhost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a socket?");
    let listener = UnixListener::bind(&path).unwrap();
    let uri = format!("unix:{}", path.display());
    for (args, target) in [(["pull", "a/t"], "/a/t"), (["sub", "a/t"], "/a/t?gaps")] {
        let running = tokio::spawn(run({
            let mut command = msgbus(&args);
            command.env("MSGBUS_URI", &uri);
            command
        }));
        let (mut stream, _) = soon(listener.accept()).await.unwrap();
        let mut request = String::new();
        while !request.contains("\r\n\r\n") {
            let mut bytes = [0; 1024];
            let count = soon(stream.read(&mut bytes)).await.unwrap();
            request.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        let request = request.to_lowercase();
        assert!(request.starts_with(&format!("get {target} http/1.1\r\n")), "{request}");
        assert!(request.contains("\r\nhost: localhost\r\n"), "{request}");
        stream.write_all(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        running.await.unwrap().fails(1, "400");
    }
}

#[tokio::test]
async fn a_missing_socket_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let uri = format!("unix:{}", path.display());
    let ask = async |args: &[&str], mention: &str| {
        let mut command = msgbus(args);
        command.env("MSGBUS_URI", &uri);
        run(command).await.fails(3, mention);
    };
    let publish = &["pub", "t", "x", "-q", "--timeout=1s"][..];
    for args in [publish, &["pull", "t"], &["sub", "t"], &["bench", "pub"]] {
        ask(args, "there is no such socket; is msgbusd running?").await;
    }
    // A stale socket file.
    drop(UnixListener::bind(&path).unwrap());
    ask(publish, "connection refused; is msgbusd running there?").await;
    run(msgbus(&["pub", "t", "x", "-u", "unix:relative"])).await.fails(2, "unix:/path");
}
