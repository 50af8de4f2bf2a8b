//! Headers of messages: storage, encoding, decoding and accounted size.

use msgbus_core::{Headers, Message, MessageBus, NewMessage, Options, TopicName, json};

fn with(headers: &[(&str, &str)]) -> NewMessage {
    NewMessage::new("a").headers(Headers::new(headers.iter().copied()).expect("valid headers"))
}

#[test]
fn headers_read_back_as_they_were_written_and_only_where_there_are_any() {
    let bus = MessageBus::new(Options::default());
    let topic: TopicName = "t".parse().unwrap();
    let drafts = [
        (NewMessage::new("a"), ""),
        (with(&[("content-type", "a/\"b\"")]), r#","headers":{"content-type":"a/\"b\""}"#),
        (with(&[("content-encoding", "br")]), r#","headers":{"content-encoding":"br"}"#),
        (
            with(&[("content-type", "text/plain"), ("content-encoding", "gzip")]),
            r#","headers":{"content-type":"text/plain","content-encoding":"gzip"}"#,
        ),
        (
            with(&[("X-B", "1"), ("x-a", "2"), ("X-B", ""), ("x-b", "é")]),
            r#","headers":{"X-B":["1",""],"x-a":"2","x-b":"é"}"#,
        ),
    ];
    for (draft, expected) in drafts {
        bus.put(&topic, draft).unwrap();
        let sent = bus.get(&topic).unwrap().unwrap();
        let mut out = Vec::new();
        json::write_message(&mut out, &sent);
        let text = str::from_utf8(&out).unwrap();
        let created = json::format_time(sent.created());
        assert!(text.ends_with(&format!(r#""created":"{created}"{expected}}}"#)), "{text}");
        let read = json::read_message(&out).unwrap();
        assert_eq!(read.headers().iter().count(), sent.headers().iter().count());
        assert_eq!(read.content_type(), sent.content_type());
        assert_eq!(read.content_encoding(), sent.content_encoding());
        let mut again = Vec::new();
        json::write_message(&mut again, &read);
        assert_eq!(again, out);
    }
    let newer = br#"{"id":0,"topic":{"name":"t","created":"2018-01-01T00:00:00Z"},"payload":"","created":"2018-01-01T00:00:00Z","headers":{"x-new":["a","b"]}}"#;
    let read = json::read_message(newer).unwrap();
    assert_eq!((read.content_type(), read.content_encoding()), (None, None));
    assert_eq!(read.headers().get_all("X-New").collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn headers_that_break_a_limit_are_an_error_with_a_text() {
    let json = |headers: &str| {
        format!(
            r#"{{"id":0,"topic":{{"name":"t","created":"2018-01-01T00:00:00Z"}},"payload":"","created":"2018-01-01T00:00:00Z","headers":{headers}}}"#
        )
    };
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(Headers::MAX_BYTES));
    for (headers, text) in [
        (r#"{"a b":"c"}"#, "a header name"),
        (r#"{"a":"c\n"}"#, "a header value"),
        (&long, "at most 8192 bytes"),
        (&format!("{{\"a\":[{}\"\"]}}", r#""","#.repeat(64)), "at most 64 headers"),
        (r#"{"a":1}"#, "not a message"),
        (r#"["a"]"#, "an object of headers"),
    ] {
        let error = json::read_message(json(headers).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    assert!(json::read_message(json("{}").as_bytes()).unwrap().headers().is_empty());
}

#[test]
fn headers_count_with_their_bytes_and_overhead() {
    let bus = MessageBus::new(Options::default());
    let topic: TopicName = "t".parse().unwrap();
    let mut bytes = 0;
    let mut charged = |draft: NewMessage| {
        bus.put(&topic, draft).unwrap();
        let before = std::mem::replace(&mut bytes, bus.topic(&topic).unwrap().bytes);
        bytes - before
    };
    assert_eq!(charged(NewMessage::new("x")), 1 + Message::OVERHEAD);
    let typed = with(&[("content-type", "a/b"), ("content-encoding", "gzip")]).payload("x");
    let expected = 1 + Message::OVERHEAD + 96 + "content-typea/bcontent-encodinggzip".len() as u64;
    assert_eq!(charged(typed.clone()), expected);
    assert_eq!(charged(typed.payload("")), expected - 1, "shared ones count in full");
}
