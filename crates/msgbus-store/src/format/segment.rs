//! The header of a segment.

use super::fields::Fields;

/// Says what a file is, before its first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The number of the segment, which its name says too.
    pub(crate) number: u32,
    /// The same in all segments of a store, and random.
    pub(crate) store_id: u64,
    /// The size of the file in bytes. A shorter file was cut.
    pub(crate) len: u64,
}

/// Why a file is not a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// It does not begin as one, or its header is damaged.
    NotASegment,
    /// A newer version of msgbus wrote it.
    NewerVersion(u32),
}

impl SegmentHeader {
    /// The size of a header in bytes, and the offset of the first record.
    pub(crate) const SIZE: usize = 64;
    /// The offset of the first record.
    pub(crate) const END: u64 = Self::SIZE as u64;
    /// The version of the format that this code writes, and the newest that it reads.
    pub(crate) const VERSION: u32 = 1;
    const MAGIC: [u8; 8] = *b"msgbus\r\n";
    /// How many bytes the checksum covers.
    const CHECKED: usize = Self::SIZE - 4;

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = Vec::with_capacity(Self::SIZE);
        out.extend_from_slice(&Self::MAGIC);
        out.extend_from_slice(&Self::VERSION.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.store_id.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.resize(Self::CHECKED, 0);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        let mut header = [0; Self::SIZE];
        header.copy_from_slice(&out);
        header
    }

    pub(crate) fn decode(header: &[u8; Self::SIZE]) -> Result<Self, HeaderError> {
        let (checked, checksum) = header.split_at(Self::CHECKED);
        let mut fields = Fields(checked);
        let mut decode = || {
            let magic = fields.array::<8>()?;
            let version = fields.u32()?;
            Ok::<_, super::DecodeError>((
                magic,
                version,
                Self { number: fields.u32()?, store_id: fields.u64()?, len: fields.u64()? },
            ))
        };
        let (magic, version, decoded) = decode().map_err(|_| HeaderError::NotASegment)?;
        if magic != Self::MAGIC || crc32fast::hash(checked).to_le_bytes() != checksum {
            return Err(HeaderError::NotASegment);
        }
        if version > Self::VERSION {
            return Err(HeaderError::NewerVersion(version));
        }
        Ok(decoded)
    }
}
