use msgbus_core::{MessageBus, Options, TopicName};

use super::*;

fn messages(payloads: impl IntoIterator<Item = Vec<u8>>) -> Vec<Message> {
    let bus = MessageBus::new(Options::default());
    let topic: TopicName = "t".parse().unwrap();
    let publish = |payload| {
        bus.put(&topic, payload).unwrap();
        bus.get(&topic).unwrap()
    };
    payloads.into_iter().map(publish).collect()
}

fn bytes(frame: &Frame) -> Vec<u8> {
    frame.pieces().concat()
}

#[test]
fn small_frames_are_shared_while_fresh_and_gone_when_cleared() {
    let messages = messages((0..=FrameCache::SLOTS).map(|n| n.to_string().into_bytes()));
    let (frames, inflight) = (FrameCaches::default(), Inflight::new(1));
    let is_same = |one: &Frame, other: &Frame| one.head.as_ptr() == other.head.as_ptr();
    let ring = frames.cache(1, FrameFormat::Binary);
    ring.frame(&messages[0], &inflight);
    assert_eq!(frames.bound.used(), 0, "nobody to share with");

    let other = frames.cache(1, FrameFormat::Binary);
    let first = ring.frame(&messages[0], &inflight);
    assert_eq!(bytes(&first), b"\x82\x010");
    assert!(is_same(&first, &other.frame(&messages[0], &inflight)));
    assert!(frames.bound.used() > 0);

    // The last one has the slot of the first.
    ring.frame(&messages[FrameCache::SLOTS], &inflight);
    assert!(!is_same(&first, &ring.frame(&messages[0], &inflight)));

    frames.clear();
    assert_eq!(frames.bound.used(), 0);
    ring.frame(&messages[1], &inflight);
    drop((ring, other));
    assert_eq!(frames.bound.used(), 0);
}

#[test]
fn large_frames_are_made_and_counted_once_while_somebody_has_them() {
    let messages = messages([vec![b'x'; 100 << 10], vec![b'y'; 100 << 10]]);
    for form in [
        FrameFormat::Text,
        FrameFormat::Binary,
        FrameFormat::Sse,
        FrameFormat::JsonLine,
        FrameFormat::RawLine,
    ] {
        let (frames, inflight) = (FrameCaches::default(), Inflight::new(1 << 20));
        let ring = frames.cache(1, form);
        let first = ring.frame(&messages[0], &inflight);
        // Whoever lags shares, too.
        let next = ring.frame(&messages[1], &inflight);
        let same = ring.frame(&messages[0], &inflight);
        let large =
            |frame: &Frame| frame.pieces().into_iter().max_by_key(|p| p.len()).unwrap().as_ptr();
        assert_eq!(large(&first), large(&same), "{form:?}");
        assert_eq!(inflight.bound().used(), first.len() + next.len(), "{form:?}");
        assert_eq!(frames.bound.used(), 0, "{form:?}");
        if let FrameFormat::Binary | FrameFormat::RawLine = form {
            assert_eq!(large(&first), messages[0].payload().as_ptr(), "not copied");
        }
        let mut rest = first.clone();
        drop((first, same));
        assert_eq!(rest.advance(50 << 10), 50 << 10);
        assert_eq!(inflight.bound().used(), rest.len() + (50 << 10) + next.len(), "{form:?}");
        drop((rest, next));
        assert_eq!(inflight.bound().used(), 0, "{form:?}");
    }
}

/// The first subscriber may have written and dropped a frame before the second asks for it.
#[test]
fn large_frames_are_made_once_for_one_after_the_other() {
    let messages = messages((0..6).map(|_| vec![b'x'; 20 << 10]));
    let (frames, inflight) = (FrameCaches::default(), Inflight::new(1 << 20));
    let ring = frames.cache(1, FrameFormat::Text);
    let other = frames.cache(1, FrameFormat::Text);
    let lengths: Vec<_> =
        messages.iter().map(|message| ring.frame(message, &inflight).len()).collect();
    assert_eq!(inflight.bound().used(), 0, "nobody has one");
    let kept = frames.bound.used();
    assert_eq!(kept, lengths[2..].iter().sum::<usize>(), "as many as a batch may have");
    assert!(kept <= FrameCache::LATEST_LARGE);
    let is_kept = |frame: &Frame| {
        let large = ring.large.lock();
        large.latest.iter().any(|slot| slot.frame.head.as_ptr() == frame.head.as_ptr())
    };
    assert!(!is_kept(&other.frame(&messages[0], &inflight)), "it is made anew for who lags");
    for message in &messages[2..] {
        assert!(is_kept(&other.frame(message, &inflight)));
    }
    frames.clear();
    assert_eq!(frames.bound.used(), 0);
}

#[test]
fn a_frame_is_what_the_library_would_send() {
    for length in [0, 1, 125, 126, 16_374, 16_384, 16_385, 65_535, 65_536] {
        let message = &messages([vec![b'x'; length]])[0];
        for form in [FrameFormat::Binary, FrameFormat::Text] {
            let frame = bytes(&encode(message, form));
            let (header, size) =
                FrameHeader::parse(&mut std::io::Cursor::new(&frame)).unwrap().unwrap();
            assert!(header.is_final && header.mask.is_none());
            let payload = &frame[header.len(size)..];
            assert_eq!(size, payload.len() as u64);
            if form == FrameFormat::Binary {
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
