use msgbus_core::{MessageBus, Options, TopicName};

use super::*;

fn messages(payloads: impl IntoIterator<Item = Vec<u8>>) -> Vec<Message> {
    let bus = MessageBus::new(Options::default());
    let topic: TopicName = "t".parse().unwrap();
    let publish = |payload| {
        bus.put(&topic, payload).unwrap();
        bus.get(&topic).unwrap().unwrap()
    };
    payloads.into_iter().map(publish).collect()
}

fn bytes(frame: &Frame) -> Vec<u8> {
    frame.pieces().concat()
}

#[test]
fn small_frames_are_shared_until_they_are_replaced_or_cleared() {
    let messages = messages((0..=FrameCache::SLOTS).map(|n| n.to_string().into_bytes()));
    let (frames, inflight) = (FrameCaches::default(), Inflight::new(1));
    let is_same = |one: &Frame, other: &Frame| one.head.as_ptr() == other.head.as_ptr();
    let cache = frames.cache(1, FrameFormat::Binary);
    cache.frame(&messages[0], &inflight);
    assert_eq!(frames.quota.used(), 0, "a single subscriber");

    let other = frames.cache(1, FrameFormat::Binary);
    let first = cache.frame(&messages[0], &inflight);
    assert_eq!(bytes(&first), b"\x82\x010");
    assert!(is_same(&first, &other.frame(&messages[0], &inflight)));
    assert!(frames.quota.used() > 0);

    // The last message replaces the first in its slot.
    cache.frame(&messages[FrameCache::SLOTS], &inflight);
    assert!(!is_same(&first, &cache.frame(&messages[0], &inflight)));

    frames.clear();
    assert_eq!(frames.quota.used(), 0);
    cache.frame(&messages[1], &inflight);
    drop((cache, other));
    assert_eq!(frames.quota.used(), 0);
}

#[test]
fn large_frames_are_encoded_and_counted_once_while_in_use() {
    let messages = messages([vec![b'x'; 100 << 10], vec![b'y'; 100 << 10]]);
    for format in [
        FrameFormat::Text,
        FrameFormat::Binary,
        FrameFormat::Sse,
        FrameFormat::JsonLine,
        FrameFormat::RawLine,
    ] {
        let (frames, inflight) = (FrameCaches::default(), Inflight::new(1 << 20));
        let cache = frames.cache(1, format);
        let first = cache.frame(&messages[0], &inflight);
        // A lagging subscriber shares large frames, too.
        let next = cache.frame(&messages[1], &inflight);
        let same = cache.frame(&messages[0], &inflight);
        let large =
            |frame: &Frame| frame.pieces().into_iter().max_by_key(|p| p.len()).unwrap().as_ptr();
        assert_eq!(large(&first), large(&same), "{format:?}");
        assert_eq!(inflight.quota().used(), first.len() + next.len(), "{format:?}");
        assert_eq!(frames.quota.used(), 0, "{format:?}");
        if let FrameFormat::Binary | FrameFormat::RawLine = format {
            assert_eq!(large(&first), messages[0].payload().as_ptr(), "not copied");
        }
        let mut rest = first.clone();
        drop((first, same));
        assert_eq!(rest.advance(50 << 10), 50 << 10);
        assert_eq!(inflight.quota().used(), rest.len() + (50 << 10) + next.len(), "{format:?}");
        drop((rest, next));
        assert_eq!(inflight.quota().used(), 0, "{format:?}");
    }
}

/// The first subscriber may have written and dropped a frame before the second asks for it.
#[test]
fn large_frames_are_encoded_once_for_consecutive_subscribers() {
    let messages = messages((0..6).map(|_| vec![b'x'; 20 << 10]));
    let (frames, inflight) = (FrameCaches::default(), Inflight::new(1 << 20));
    let cache = frames.cache(1, FrameFormat::Text);
    let other = frames.cache(1, FrameFormat::Text);
    let lengths: Vec<_> =
        messages.iter().map(|message| cache.frame(message, &inflight).len()).collect();
    assert_eq!(inflight.quota().used(), 0, "none is in use");
    let kept = frames.quota.used();
    assert_eq!(kept, lengths[2..].iter().sum::<usize>(), "as many as a batch may have");
    assert!(kept <= FrameCache::MAX_LARGE_BYTES);
    let is_kept = |frame: &Frame| {
        let large = cache.large.lock();
        large.latest.iter().any(|slot| slot.frame.head.as_ptr() == frame.head.as_ptr())
    };
    assert!(!is_kept(&other.frame(&messages[0], &inflight)), "a lagging subscriber gets a new one");
    for message in &messages[2..] {
        assert!(is_kept(&other.frame(message, &inflight)));
    }
    frames.clear();
    assert_eq!(frames.quota.used(), 0);
}

#[test]
fn a_frame_is_what_the_library_would_send() {
    for length in [0, 1, 125, 126, 16_374, 16_384, 16_385, 65_535, 65_536] {
        let message = &messages([vec![b'x'; length]])[0];
        for format in [FrameFormat::Binary, FrameFormat::Text] {
            let frame = bytes(&encode(message, format));
            let (header, size) =
                FrameHeader::parse(&mut std::io::Cursor::new(&frame)).unwrap().unwrap();
            assert!(header.is_final && header.mask.is_none());
            let payload = &frame[header.len(size)..];
            assert_eq!(size, payload.len() as u64);
            if format == FrameFormat::Binary {
                assert_eq!(
                    (header.opcode, payload),
                    (OpCode::Data(Data::Binary), &message.payload()[..])
                );
            } else {
                assert_eq!(header.opcode, OpCode::Data(Data::Text));
                assert_eq!(json::read_message(payload).unwrap().payload(), message.payload());
            }
        }
    }
}
