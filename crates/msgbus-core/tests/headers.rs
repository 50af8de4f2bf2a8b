//! Headers of messages: storage, encoding, decoding and accounted size.

use msgbus_core::{Message, MessageBus, NewMessage, Options, TopicName, json};

#[test]
fn headers_read_back_as_they_were_written_and_only_where_there_are_any() {
    let bus = MessageBus::new(Options::default());
    let topic: TopicName = "t".parse().unwrap();
    let drafts = [
        (NewMessage::new("a"), ""),
        (NewMessage::new("a").content_type("a/\"b\""), r#","headers":{"content-type":"a/\"b\""}"#),
        (NewMessage::new("a").content_encoding("br"), r#","headers":{"content-encoding":"br"}"#),
        (
            NewMessage::new("a").content_encoding("gzip").content_type("text/plain"),
            r#","headers":{"content-type":"text/plain","content-encoding":"gzip"}"#,
        ),
    ];
    for (draft, expected) in drafts {
        bus.put(&topic, draft).unwrap();
        let sent = bus.get(&topic).unwrap();
        let mut out = Vec::new();
        json::write_message(&mut out, &sent);
        let text = str::from_utf8(&out).unwrap();
        let created = json::format_time(sent.created());
        assert!(text.ends_with(&format!(r#""created":"{created}"{expected}}}"#)), "{text}");
        let read = json::read_message(&out).unwrap();
        assert_eq!(read.content_type(), sent.content_type());
        assert_eq!(read.content_encoding(), sent.content_encoding());
        let mut again = Vec::new();
        json::write_message(&mut again, &read);
        assert_eq!(again, out);
    }
    let newer = br#"{"id":0,"topic":{"name":"t","created":"2018-01-01T00:00:00Z"},"payload":"","created":"2018-01-01T00:00:00Z","headers":{"x-new":["a","b"]}}"#;
    let read = json::read_message(newer).unwrap();
    assert_eq!((read.content_type(), read.content_encoding()), (None, None));
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
    let typed = NewMessage::new("x").content_type("a/b").content_encoding("gzip");
    let expected = 1 + Message::OVERHEAD + 96 + "content-typea/bcontent-encodinggzip".len() as u64;
    assert_eq!(charged(typed.clone()), expected);
    assert_eq!(charged(typed.payload("")), expected - 1, "shared ones count in full");
}
