//! `msgbus pub`.

use std::{os::unix::ffi::OsStrExt as _, time::Duration};

use tokio::{io::AsyncReadExt as _, net::TcpListener};

use crate::support::{
    Daemon, Finished, Running, free_address, in_memory, msgbus, name, nowhere, run, run_with, soon,
};

async fn publish(daemon: &Daemon, args: &[&str], input: &[u8]) -> Finished {
    let mut command = msgbus(&[&["pub"], args].concat());
    command.env("MSGBUS_URI", daemon.uri());
    run_with(command, input).await
}

fn pulled(daemon: &Daemon, topic: &str) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| daemon.bus.get(&name(topic)).unwrap())
        .map(|m| m.payload().to_vec())
        .collect()
}

#[tokio::test]
async fn a_message_comes_from_the_argument_or_the_input() {
    let daemon = Daemon::start();
    publish(&daemon, &["t", "argument"], b"not read").await.is_silent();
    publish(&daemon, &["t"], b"piped\n\x00\xff").await.is_silent();
    publish(&daemon, &["t", "-"], b"dash").await.is_silent();
    publish(&daemon, &["t", ""], b"not read").await.is_silent();
    publish(&daemon, &["t", "--", "--dashes"], b"").await.is_silent();
    publish(&daemon, &["/t", "-w", "slashes"], b"").await.is_silent();
    let expected: [&[u8]; 6] =
        [b"argument", b"piped\n\x00\xff", b"dash", b"", b"--dashes", b"slashes"];
    assert_eq!(pulled(&daemon, "t"), expected);
}

#[tokio::test]
async fn an_argument_need_not_be_utf_8() {
    let daemon = Daemon::start();
    let mut command = msgbus(&["put", "t"]);
    command.arg(std::ffi::OsStr::from_bytes(b"\xff\xfe")).env("MSGBUS_URI", daemon.uri());
    run(command).await.is_silent();
    assert_eq!(pulled(&daemon, "t"), [b"\xff\xfe"]);
}

#[tokio::test]
async fn lines_are_messages() {
    let daemon = Daemon::start();
    publish(&daemon, &["t", "--lines"], b"one\r\ntwo\n\nfour").await.is_silent();
    assert_eq!(pulled(&daemon, "t"), [&b"one"[..], b"two", b"", b"four"]);
    publish(&daemon, &["t", "-l"], b"").await.is_silent();
    assert_eq!(pulled(&daemon, "t"), [b""; 0]);
}

#[tokio::test]
async fn the_failed_line_is_named() {
    let daemon = Daemon::with(|config| config.max_payload = 5);
    for how in ["--lines", "--split"] {
        let said = publish(&daemon, &["t", how], b"one\ntwo\ntoo long\nfour\n").await;
        said.fails(1, "line 3 and those after it were not published; lines 1 to 2 were");
        assert!(said.err.contains("413"), "{said:?}");
        assert_eq!(pulled(&daemon, "t"), [b"one", b"two"]);
    }
    let args = ["pub", "t", "--split", "-q", "--timeout=1s", "-u", &nowhere().to_string()];
    let away = run_with(msgbus(&args), b"one").await;
    away.fails(3, "line 1 and those after it were not published");
}

#[tokio::test]
async fn ttl_and_content_type_are_sent() {
    let daemon = Daemon::start();
    publish(&daemon, &["t", "x", "--ttl=90s", "-t", "text/plain"], b"").await.is_silent();
    let message = daemon.bus.get(&name("t")).unwrap().unwrap();
    assert_eq!((message.expires().unwrap() - message.created()).num_seconds(), 90);
    assert_eq!(message.content_type(), Some("text/plain"));
}

#[tokio::test]
async fn odd_names_arrive_as_they_are() {
    let daemon = Daemon::start();
    for topic in ["größe/日本", "a b?c#d%20", "x+y&z=1"] {
        publish(&daemon, &[topic, "x"], b"").await.is_silent();
        assert_eq!(pulled(&daemon, topic).len(), 1, "{topic}");
    }
}

#[tokio::test]
async fn a_busy_server_is_retried_within_the_timeout() {
    let daemon = Daemon::with(|config| config.bus.max_topics = 1);
    daemon.put("full", "x");
    let refused = publish(&daemon, &["t", "x", "--timeout", "3s"], b"").await;
    refused.fails(1, "the server says 503");

    let refusals =
        async || daemon.metric("msgbus_server_refused_total{code=\"too_many_topics\"}").await;
    let before = refusals().await;
    let patient = publish(&daemon, &["t", "x", "--timeout", "5m"], b"");
    let make_room = async {
        while refusals().await == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(daemon.bus.delete(&name("full")).wait().unwrap());
    };
    let (patient, ()) = tokio::join!(patient, make_room);
    patient.is_silent();
    assert_eq!(pulled(&daemon, "t"), [b"x"]);
}

#[tokio::test]
async fn lines_are_published_in_batches() {
    let daemon = Daemon::start();
    let lines: String = (0..2500).map(|n| n.to_string() + "\n").collect();
    publish(&daemon, &["t", "--split"], lines.as_bytes()).await.is_silent();
    let expected: Vec<Vec<u8>> = (0..2500).map(|n| n.to_string().into_bytes()).collect();
    assert_eq!(pulled(&daemon, "t"), expected);
    publish(&daemon, &["t", "--split"], b"").await.is_silent();
    publish(&daemon, &["t", "--wait", "as ever"], b"").await.is_silent();
    assert_eq!(pulled(&daemon, "t"), [b"as ever"]);

    let small = Daemon::with(|config| config.bus.topic.max_messages = 1500);
    let refused = publish(&small, &["t", "--split"], lines.as_bytes()).await;
    assert_eq!(refused.code, Some(0), "each batch fits: {refused:?}");
}

#[tokio::test]
async fn batches_shrink_to_what_the_server_accepts() {
    let lines: Vec<Vec<u8>> = (0..2500).map(|n| format!("{n:0>100}").into_bytes()).collect();
    let input = lines.join(&b'\n');
    for daemon in [
        Daemon::with(|config| config.max_payload = 3000),
        Daemon::with(|config| config.bus.topic.max_bytes = 20_000),
        Daemon::with(|config| config.bus.topic.max_messages = 10),
    ] {
        publish(&daemon, &["t", "--split"], &input).await.is_silent();
        let stats = daemon.bus.topic(&name("t")).unwrap();
        assert_eq!(stats.counters.published, 2500, "each once");
        let last = pulled(&daemon, "t");
        assert!(last.len() >= 10 && lines.ends_with(&last), "in order");
    }
}

#[tokio::test]
async fn a_long_line_is_published_alone() {
    let daemon = Daemon::start();
    let short = vec![b"short".to_vec(); 200];
    let longest = vec![b'x'; 1 << 20];
    let lines = [short, vec![longest, vec![], b"last".to_vec()]].concat();
    publish(&daemon, &["t", "--split"], &lines.join(&b'\n')).await.is_silent();
    assert!(pulled(&daemon, "t") == lines);
}

/// An input that the server rejects is not read to its end first.
#[tokio::test]
async fn an_input_without_end_is_refused_early_and_in_little_memory() {
    let daemon = Daemon::start();
    for args in [&["t"][..], &["t", "--lines"], &["t", "--split"]] {
        let mut command = in_memory(24_000, &[&["pub"], args].concat());
        command.env("MSGBUS_URI", daemon.uri()).stdin(std::process::Stdio::piped());
        let mut running = Running::start(command);
        let mut stdin = running.stdin.take().unwrap();
        let fed = soon(async {
            let mut fed = 0_u64;
            while tokio::io::AsyncWriteExt::write_all(&mut stdin, &[0; 1 << 14]).await.is_ok() {
                fed += 1 << 14;
            }
            fed
        })
        .await;
        assert!(fed < 8 << 20, "{fed} bytes were taken");
        let ended = running.end().await;
        ended.fails(1, "413: payload exceeds max-payload-size");
        assert_eq!(pulled(&daemon, "t"), [b""; 0]);
    }
}

#[tokio::test]
async fn a_message_larger_than_memory_is_streamed() {
    let daemon = Daemon::with(|config| config.max_payload = 32 << 20);
    let long = |end: &[u8]| [&vec![b'x'; 12 << 20][..], end].concat();
    let publish = async |args: &[&str], input: &[u8]| {
        let mut command = in_memory(24_000, &[&["pub", "t"], args].concat());
        command.env("MSGBUS_URI", daemon.uri());
        run_with(command, input).await.is_silent();
    };
    publish(&[], &long(b"\r\n")).await;
    assert!(pulled(&daemon, "t") == [long(b"\r\n")]);
    let lines = [b"first\n", &long(b"\r\n")[..], b"\r\r\n", &long(b"\ry\n"), &long(b"\r")].concat();
    for how in ["--lines", "--split"] {
        publish(&[how], &lines).await;
        let expected = [b"first".to_vec(), long(b""), b"\r".to_vec(), long(b"\ry"), long(b"\r")];
        assert!(pulled(&daemon, "t") == expected, "{how}");
    }
}

/// `pub` retries across a restart of the server.
#[tokio::test]
async fn an_unreachable_server_is_retried_within_the_timeout() {
    let address = free_address();
    let uri = format!("http://{address}");
    for (args, input) in
        [(&["pub", "t", "x"][..], vec![]), (&["pub", "-q", "t"], vec![b'x'; 3 << 20])]
    {
        let mut command = msgbus(args);
        command.env("MSGBUS_URI", &uri).stdin(std::process::Stdio::piped());
        let mut running = Running::start(command);
        let mut stdin = running.stdin.take().unwrap();
        if args.contains(&"-q") {
            tokio::time::sleep(Duration::from_millis(300)).await;
        } else {
            let note = running.note().await;
            assert!(note.contains("connection refused; is msgbusd running there?"), "{note}");
            assert!(note.contains("(retrying for up to 30s)"), "{note}");
        }
        let daemon = Daemon::at(address, |config| config.max_payload = 4 << 20);
        tokio::io::AsyncWriteExt::write_all(&mut stdin, &input).await.unwrap();
        drop(stdin);
        running.end().await.is_silent();
        assert_eq!(daemon.bus.stats().counters.published, 1);
        daemon.stop().await;
    }
    let mut command = msgbus(&["pub", "t", "x", "--timeout", "600ms", "-q"]);
    command.env("MSGBUS_URI", &uri);
    run(command).await.fails(3, "connection refused");
}

#[tokio::test]
async fn a_possibly_accepted_message_is_not_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let mut command = msgbus(&["pub", "t", "x"]);
    command.env("MSGBUS_URI", &uri);
    let cut = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
    };
    let (ended, ()) = tokio::join!(run(command), cut);
    ended.fails(3, "lost the connection to ");
    let again = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    assert!(again.is_err(), "it came twice");
}

#[tokio::test]
async fn a_server_that_reads_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command = msgbus(&["pub", "t", "--timeout", "4s"]);
    command.env("MSGBUS_URI", format!("http://{}", listener.local_addr().unwrap()));
    let server = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4];
            stream.read_exact(&mut request).await.unwrap();
            if &request == b"GET " {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
            }
            held.push(stream);
        }
    });
    let ended = run_with(command, &vec![b'x'; 64 << 20]).await;
    ended.fails(1, "the server read nothing for 4s; nothing was published");
    server.abort();
}

#[tokio::test]
async fn headers_are_sent_and_shown() {
    let daemon = Daemon::start();
    let headers = [
        "-H",
        "Correlation-Id: 17",
        "--header",
        "CE-Type:a.b",
        "-H",
        "Reply-To: to me",
        "-H",
        "tag:",
    ];
    let args: Vec<&str> = ["t", "x"].into_iter().chain(headers).chain(["-H", "Tag: é"]).collect();
    publish(&daemon, &args, b"").await.is_silent();
    let show = async |args: &[&str]| {
        let args: Vec<_> = ["sub", "t", "--all", "-n1"].iter().chain(args).copied().collect();
        let mut command = msgbus(&args);
        command.env("MSGBUS_URI", daemon.uri());
        command.env("MSGBUS_HEADER_OF_ANOTHER", "x");
        run(command).await.out
    };
    let json = show(&["-o", "json"]).await;
    let field =
        r#""headers":{"correlation-id":"17","ce-type":"a.b","reply-to":"to me","tag":["","é"]}}"#;
    assert!(json.contains(field), "{json}");
    let pretty = show(&["-o", "pretty"]).await;
    let line = "t #0 correlation-id=17 ce-type=a.b reply-to=to me tag= tag=é x\n";
    assert!(pretty.ends_with(line), "{pretty}");
    let variables = show(&["sh", "-c", "env | grep -a ^MSGBUS_HEADER | sort"]).await;
    let expected = "MSGBUS_HEADER_CE_TYPE=a.b\nMSGBUS_HEADER_CORRELATION_ID=17\n\
                    MSGBUS_HEADER_REPLY_TO=to me\nMSGBUS_HEADER_TAG=é\n";
    assert_eq!(variables, expected);
}

#[tokio::test]
async fn invalid_headers_are_rejected_before_anything_is_sent() {
    let daemon = Daemon::start();
    for (header, text) in [
        ("no colon", "--header: expected 'name: value'"),
        ("a b: c", "--header: a header name has only"),
        ("a: b\u{7}", "--header: a header value must not"),
    ] {
        publish(&daemon, &["t", "x", "-H", header], b"").await.fails(2, text);
    }
    assert!(daemon.bus.topics().is_empty());
}

#[tokio::test]
async fn content_type_and_encoding_are_sent_and_shown() {
    let daemon = Daemon::start();
    let args = ["t", "-t", "application/json", "--content-encoding", "gzip"];
    publish(&daemon, &args, b"\xff\0").await.is_silent();
    let show = async |format: &str| {
        let mut command = msgbus(&["sub", "t", "--all", "--poll", "-o", format]);
        command.env("MSGBUS_URI", daemon.uri());
        run(command).await.out
    };
    let headers = r#""headers":{"content-type":"application/json","content-encoding":"gzip"}"#;
    let json = show("json").await;
    assert!(json.contains(headers), "{json}");
    let pretty = show("pretty").await;
    assert!(pretty.ends_with("(2 bytes, gzip, application/json) ff 00\n"), "{pretty}");
}
