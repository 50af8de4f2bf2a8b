use msgbus_core::{MessageBus, Options, TopicName};

use super::*;

const TOPIC: Followed = Followed { epoch: 1, window: 0, is_pattern: false };

fn messages(payloads: impl IntoIterator<Item = Vec<u8>>) -> Vec<Message> {
    let bus = MessageBus::new(Options::default());
    let topic: TopicName = "t".parse().unwrap();
    let publish = |payload| {
        bus.put(&topic, payload).unwrap();
        bus.get(&topic).unwrap().unwrap()
    };
    payloads.into_iter().map(publish).collect()
}

fn frame(cache: &Arc<FrameCache>, message: &Message, inflight: &Inflight) -> Frame {
    cache.frame(message.id(), message, inflight)
}

fn bytes(frame: &Frame) -> Vec<u8> {
    frame.pieces().concat()
}

/// Where the bytes of a frame are.
fn start(frame: &Frame) -> *const u8 {
    frame.pieces()[0].as_ptr()
}

#[test]
fn small_frames_are_shared_until_they_are_replaced_or_cleared() {
    let messages = messages((0..=FrameCache::SLOTS).map(|n| n.to_string().into_bytes()));
    let (frames, inflight) = (FrameCaches::default(), Inflight::new(1));
    let is_same = |one: &Frame, other: &Frame| start(one) == start(other);
    let cache = frames.cache(TOPIC, FrameFormat::Binary);
    frame(&cache, &messages[0], &inflight);
    assert_eq!(frames.quota.used(), 0, "a single subscriber");

    let other = frames.cache(TOPIC, FrameFormat::Binary);
    let first = frame(&cache, &messages[0], &inflight);
    assert_eq!(bytes(&first), b"\x82\x010");
    assert!(is_same(&first, &frame(&other, &messages[0], &inflight)));
    assert!(frames.quota.used() > 0);

    // The last message replaces the first in its slot.
    frame(&cache, &messages[FrameCache::SLOTS], &inflight);
    assert!(!is_same(&first, &frame(&cache, &messages[0], &inflight)));

    frames.clear();
    assert_eq!(frames.quota.used(), 0);
    frame(&cache, &messages[1], &inflight);
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
        let cache = frames.cache(TOPIC, format);
        let first = frame(&cache, &messages[0], &inflight);
        // A lagging subscriber shares large frames, too.
        let next = frame(&cache, &messages[1], &inflight);
        let same = frame(&cache, &messages[0], &inflight);
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
fn large_frames_are_encoded_once_until_all_subscribers_have_received_them() {
    let messages = messages((0..20).map(|_| vec![b'x'; 20 << 10]));
    let (frames, inflight) = (FrameCaches::default(), Inflight::new(1 << 20));
    let [first, second, third] = [(); 3].map(|()| frames.cache(TOPIC, FrameFormat::Text));
    let taken: Vec<_> = messages.iter().map(|m| frame(&first, m, &inflight)).collect();
    let kept: usize = taken.iter().map(Frame::len).sum();
    let oldest = taken[0].len();
    let encoded: Vec<_> = taken.iter().map(start).collect();
    assert_eq!((frames.quota.used(), inflight.quota().used()), (kept, 0), "none is in use");
    for (message, encoded) in messages.iter().zip(&encoded) {
        assert_eq!(start(&frame(&second, message, &inflight)), *encoded);
    }
    assert_eq!(frames.quota.used(), kept, "a third subscriber needs them");
    for (message, encoded) in messages[1..].iter().zip(&encoded[1..]) {
        assert_eq!(start(&frame(&third, message, &inflight)), *encoded);
    }
    assert!(first.large.lock().kept(messages[0].id()).is_some());
    assert_eq!(frames.quota.used(), oldest, "the others are received by all");
    frames.clear();
    assert_eq!(frames.quota.used(), 0);
}

#[test]
fn kept_large_frames_are_bounded_and_the_oldest_make_space() {
    let messages = messages((0..20).map(|_| vec![b'x'; 1 << 20]));
    let (frames, inflight) = (FrameCaches::default(), Inflight::new(1));
    let [cache, _second, _third] = [(); 3].map(|()| frames.cache(TOPIC, FrameFormat::JsonLine));
    let is_kept = |id: usize| cache.large.lock().kept(messages[id].id()).is_some();
    let size = frame(&cache, &messages[0], &inflight).len();
    let count = LargeFrames::MAX_KEPT_BYTES / size;
    for message in &messages[1..=count] {
        frame(&cache, message, &inflight);
    }
    let kept = frames.quota.used();
    assert!(kept <= LargeFrames::MAX_KEPT_BYTES);
    assert!(!is_kept(0) && (1..=count).all(is_kept));
    // A lagging subscriber that encodes an old message keeps it for others that lag.
    frame(&cache, &messages[0], &inflight);
    assert!(is_kept(0) && !is_kept(1) && is_kept(2));

    // Other topics have used up the quota.
    let rest = frames.quota.try_acquire(frames.quota.limit() - frames.quota.used()).unwrap();
    frame(&cache, &messages[count + 1], &inflight);
    assert!(is_kept(count + 1) && !is_kept(2) && is_kept(4));
    assert!(frames.quota.used() <= frames.quota.limit());
    drop(rest);
    frames.clear();
    assert_eq!(frames.quota.used(), 0);
}
