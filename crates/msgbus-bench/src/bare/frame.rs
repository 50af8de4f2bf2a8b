//! The messages for subscribers and pullers.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

/// A message as JSON, of the same length in bytes as from msgbusd.
pub(super) fn json(payload: &[u8]) -> Vec<u8> {
    const BEFORE: &[u8] = b"{\"id\":100000,\"topic\":{\"name\":\"bench-00000000\",\
        \"ttl\":3600000000000,\"seq\":100001,\"created\":\"2026-01-01T00:00:00.000000000Z\"},\
        \"payload\":\"";
    const AFTER: &[u8] = b"\",\"expires\":\"2026-01-01T00:00:00.000000000Z\",\
        \"created\":\"2026-01-01T00:00:00.000000000Z\"}\n";
    // Includes the padding, so the buffer never grows.
    let encoded = payload.len().div_ceil(3) * 4;
    let mut json = Vec::with_capacity(BEFORE.len() + encoded + AFTER.len());
    json.extend_from_slice(BEFORE);
    json.resize(BEFORE.len() + encoded, 0);
    // Cannot fail: the buffer has the exact size.
    let _ = BASE64_STANDARD.encode_slice(payload, &mut json[BEFORE.len()..]);
    json.extend_from_slice(AFTER);
    json
}

/// A text frame.
pub(super) fn frame(payload: &[u8]) -> Bytes {
    const LONGEST_HEADER: usize = 10;
    let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    let mut frame = Vec::with_capacity(payload.len() + LONGEST_HEADER);
    // Writing to a Vec cannot fail.
    let _ = header.format(payload.len() as u64, &mut frame);
    frame.extend_from_slice(payload);
    frame.into()
}
