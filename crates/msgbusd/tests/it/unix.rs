//! docs/operations.md, unix sockets, beside other listeners.

use std::fs;

use futures_util::StreamExt as _;
use hyper::StatusCode;
use msgbus_core::json;
use msgbusd::Bind;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::{
    binary::msgbusd,
    http2::{http2, send, text},
    support::{Daemon, soon},
    tls::Files,
};

#[tokio::test]
async fn a_unix_socket_listens_beside_other_addresses() {
    let files = Files::new();
    let path = files.folder.path().join("bus.sock");
    let daemon = Daemon::with(|config| {
        config.bind.push(Bind::Unix(path.clone()));
        config.certificate = Some(files.config());
    });
    let mut tls = http2(&files, &daemon).await;
    assert_eq!(send(&mut tls, "PUT", "/t", "hi").await.status(), StatusCode::ACCEPTED);

    // No TLS on the unix socket: it does not leave the machine.
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /t?raw HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhi"), "{answer}");

    let stream = UnixStream::connect(&path).await.unwrap();
    let (mut socket, _) =
        tokio_tungstenite::client_async("ws://localhost/t", stream).await.unwrap();
    assert_eq!(send(&mut tls, "PUT", "/t", "you").await.status(), StatusCode::ACCEPTED);
    let frame = soon(socket.next()).await.unwrap().unwrap();
    assert_eq!(json::read_message(&frame.into_data()).unwrap().payload(), "you");
    let inspected = text(send(&mut tls, "GET", "/-/topics/t", "").await).await;
    assert!(inspected.contains("\"peer\":\"unix\""), "{inspected}");

    drop((socket, tls));
    assert_eq!(soon(daemon.stop()).await.unwrap().cut, 0);
    assert!(!path.exists(), "it takes its file along");
}

#[test]
fn a_unix_socket_in_use_or_of_another_kind_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    for path in [file, folder.path().join("not/there")] {
        let bind = format!("unix:{}", path.display());
        let output = msgbusd(&["--bind", &bind]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&bind) && text.contains("--bind"), "{text}");
    }
}

#[tokio::test]
async fn host_names_are_checked_on_unix_sockets_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus");
    let _daemon = Daemon::with(|config| config.bind.push(Bind::Unix(path.clone())));
    for (host, status) in [("localhost", 404), ("evil.example", 421)] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let request = format!("GET /t HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
}
