//! The wire JSON of messages: written and read back, and what other versions wrote.

use std::time::Duration;

use msgbus_core::{MessageBus, Options, TopicName, json};

#[test]
fn a_message_reads_back_as_it_was_written() {
    let bus = MessageBus::new(Options::default());
    let topic: TopicName = "a/\"quoted\" & <odd>".parse().unwrap();
    for payload in [&b""[..], b"hi", b"\x00\xff\n"] {
        bus.put(&topic, payload).unwrap();
        let sent = bus.get(&topic).unwrap().unwrap();
        let mut out = Vec::new();
        json::write_message(&mut out, &sent);
        let read = json::read_message(&out).unwrap();
        assert_eq!((read.id(), read.payload()), (sent.id(), sent.payload()));
        assert_eq!((read.created(), read.expires()), (sent.created(), sent.expires()));
        assert_eq!(read.topic().name, topic);
        assert_eq!(read.topic().ttl, sent.topic().ttl);
    }
}

#[test]
fn every_version_of_prologic_msgbus_can_be_read() {
    let shape_d = br#"{"id":0,"topic":{"name":"hello","seq":1,"created":"2018-05-14T01:02:03.123456-07:00"},"payload":"aGk=","created":"2018-05-14T01:02:03.123467-07:00"}"#;
    let message = json::read_message(shape_d).unwrap();
    assert_eq!(message.payload(), "hi");
    assert_eq!((message.expires(), message.topic().ttl), (None, None));

    let shape_a = br#"{"id":3,"topic":{"name":"hello","ttl":60000000000,"seq":9,"created":"2018-01-01T00:00:00Z"},"payload":"","expires":"0001-01-01T00:00:00Z","created":"2018-01-01T00:00:00Z","new":[]}"#;
    let message = json::read_message(shape_a).unwrap();
    assert_eq!(message.topic().ttl, Some(Duration::from_secs(60)));
    assert_eq!(message.expires(), None);

    for rubbish in
        ["", "{}", "[]", "{\"id\":-1}", &String::from_utf8_lossy(shape_d).replace("aGk=", "a")]
    {
        assert!(json::read_message(rubbish.as_bytes()).is_err(), "{rubbish}");
    }
}
