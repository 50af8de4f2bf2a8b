//! Payloads as text in JSON.

use std::str;

use super::base64;

/// The payload as text, if it is UTF-8 and takes no more bytes in JSON than its base64 would: so a frame never becomes
/// larger than a client has to expect.
pub fn shorter_than_base64(payload: &[u8]) -> Option<&str> {
    let text = str::from_utf8(payload).ok()?;
    (escaped_len(payload) <= base64::encoded_len(payload.len())).then_some(text)
}

/// The length of a text between the quotes of JSON.
fn escaped_len(text: &[u8]) -> usize {
    text.iter().map(|byte| ESCAPED_LEN[usize::from(*byte)] as usize).sum()
}

/// The number of bytes that the serializer writes for each byte.
const ESCAPED_LEN: [u8; 256] = {
    let mut lengths = [1; 256];
    let mut control = 0;
    while control < 0x20 {
        lengths[control] = 6;
        control += 1;
    }
    let mut short = 0;
    while short < SHORT_ESCAPES.len() {
        lengths[SHORT_ESCAPES[short] as usize] = 2;
        short += 1;
    }
    lengths
};

/// Those that are escaped by one letter: `\b`, `\t`, `\n`, `\f`, `\r`, `"` and the backslash.
const SHORT_ESCAPES: [u8; 7] = [0x08, b'\t', b'\n', 0x0c, b'\r', b'"', b'\\'];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_that_of_the_serializer() {
        for byte in 0..0x80_u8 {
            let text = char::from(byte).to_string();
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(escaped_len(text.as_bytes()) + 2, json.len(), "{byte:x}");
        }
        assert_eq!(escaped_len("\u{7f}\u{e9}\u{2028}\u{1f600}".as_bytes()), 1 + 2 + 3 + 4);
    }

    #[test]
    fn text_is_used_unless_base64_is_shorter() {
        assert_eq!(shorter_than_base64(b""), Some(""));
        assert_eq!(shorter_than_base64(b"{\"a\":1}"), Some("{\"a\":1}"));
        assert_eq!(shorter_than_base64(b"\xff"), None);
        assert_eq!(shorter_than_base64(&[0; 100]), None);
        assert_eq!(shorter_than_base64(&[b'"'; 100]), None);
    }
}
