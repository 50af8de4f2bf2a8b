//! Where drs is served besides plain TCP: in TLS, and on unix sockets.

use std::path::Path;

use futures_util::{SinkExt as _, StreamExt as _};
use msgbusd::{
    Bind,
    config::{DoorBind, Protocol},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpStream, UnixStream},
};
use tokio_tungstenite::tungstenite::Message;

use super::{ALL, Over, daemon_with};
use crate::{
    binary::{Running, msgbusd},
    support::{Daemon, soon},
    tls::Files,
};

const CALL: &str = r#"{"key":"k","action":"x"}"#;
const ANSWER: &str =
    "{\"key\":\"k\",\"action\":\"drs.error\",\"body\":{\"message\":\"No handlers for x\"}}\n";

/// Asserts that a call is answered on this stream.
async fn is_served(over: Over, stream: impl AsyncRead + AsyncWrite + Unpin, scheme: &str) {
    if over == Over::Websocket {
        let uri = format!("{scheme}://localhost/socket");
        let opening = Box::pin(tokio_tungstenite::client_async(uri, stream));
        let (mut socket, _) = soon(opening).await.unwrap();
        socket.send(Message::text(CALL)).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text(ANSWER));
    } else {
        let mut stream = BufReader::new(stream);
        stream.write_all(CALL.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_line(&mut answer)).await.unwrap();
        assert_eq!(answer, ANSWER);
    }
}

#[tokio::test]
async fn tls_is_as_configured() {
    let files = Files::new();
    let daemon = daemon_with(|config| config.certificate = Some(files.config()));
    for over in ALL {
        let stream = TcpStream::connect(daemon.drs_address(over)).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = soon(files.client("").connect(name, stream)).await.unwrap();
        is_served(over, stream, "wss").await;
        // Nothing is said without TLS.
        let mut plain = daemon.drs_raw(over).await;
        plain.write(CALL.as_bytes()).await;
        let rest = plain.rest().await;
        assert!(!String::from_utf8_lossy(&rest).contains("drs."), "{rest:?}");
    }
}

#[tokio::test]
async fn unix_sockets_need_no_tls_beside_it() {
    let files = Files::new();
    let path = |over| files.folder.path().join(format!("{over:?}"));
    let daemon = Daemon::on_threads(2, |config| {
        config.certificate = Some(files.config());
        for (over, protocol) in ALL.into_iter().zip([Protocol::DrsWebsocket, Protocol::DrsStream]) {
            config.doors.push(DoorBind { protocol, bind: Bind::Unix(path(over)) });
        }
    });
    for over in ALL {
        is_served(over, UnixStream::connect(path(over)).await.unwrap(), "ws").await;
    }
    assert_eq!(soon(daemon.stop()).await.unwrap().cut, 0);
    for over in ALL {
        assert!(!path(over).exists(), "they take their files along");
    }
}

#[tokio::test]
async fn flags_name_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (ws, tcp, old) = (path("ws"), path("tcp"), path("middleman"));
    let mut running = Running::start(&mut msgbusd(&[
        "--bind",
        "127.0.0.1:0",
        "--middleman",
        &format!("unix:{old}"),
        "--drs",
        &format!("ws://unix:{ws}"),
        "--drs",
        &format!("tcp://unix:{tcp}"),
    ]));
    running.logs(&format!("drs-tcp clients are served at unix:{tcp}"));
    for (over, path) in ALL.into_iter().zip([&ws, &tcp]) {
        is_served(over, UnixStream::connect(path).await.unwrap(), "ws").await;
    }
    assert!(Path::new(&old).exists());
    running.signal("-TERM");
    assert!(running.end().0.success());
}
