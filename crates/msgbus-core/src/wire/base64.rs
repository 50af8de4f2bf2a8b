//! Base64 of payloads, with vector instructions where the processor has them.

use std::sync::LazyLock;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use base64::engine::GeneralPurpose as Best;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use base64::engine::Simd as Best;
use base64::{Engine as _, engine::general_purpose::PAD};

pub(super) use base64::DecodeError;

/// The engine for this processor, which is detected once.
static ENGINE: LazyLock<Best> = LazyLock::new(|| {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    return Best::standard(PAD);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Best::new(&base64::alphabet::STANDARD, PAD);
});

/// The length of the base64 of `length` bytes.
pub(super) fn encoded_len(length: usize) -> usize {
    length.div_ceil(3).saturating_mul(4)
}

/// Appends `bytes` as base64.
pub(super) fn encode(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + encoded_len(bytes.len()), 0);
    // It cannot fail: the slice has the exact size.
    let _ = ENGINE.encode_slice(bytes, &mut out[start..]);
}

pub(super) fn decode(text: &[u8]) -> Result<Vec<u8>, DecodeError> {
    ENGINE.decode(text)
}
