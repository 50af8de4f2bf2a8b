//! Headers of messages.

use std::fmt;

use thiserror::Error;
use triomphe::ThinArc;

/// The headers of a message: an ordered list of names and values. Spelling, order and repeats are kept, and
/// names are compared without regard to case. A clone costs one atomic increment.
///
/// Without headers nothing is allocated. All headers of a message are one allocation.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Option<ThinArc<(), u8>>);

/// Why a list of headers was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// There are more than [`Headers::MAX_COUNT`].
    #[error("a message has at most {max} headers", max = Headers::MAX_COUNT)]
    TooMany,
    /// Names and values together have more than [`Headers::MAX_BYTES`].
    #[error("the headers of a message have at most {max} bytes", max = Headers::MAX_BYTES)]
    TooLarge,
    /// A name is not a token: letters, digits and some of the punctuation of ASCII.
    #[error("a header name has only letters, digits and !#$%&'*+-.^_`|~")]
    Name,
    /// A value contains a control character, or begins or ends with a space.
    #[error("a header value must not contain control characters, or begin or end with a space")]
    Value,
}

impl Headers {
    /// The media type of the payload.
    pub const CONTENT_TYPE: &str = "content-type";
    /// The codings that were applied to the payload.
    pub const CONTENT_ENCODING: &str = "content-encoding";
    /// An identity given by the publisher.
    pub const MESSAGE_ID: &str = "message-id";
    /// Relates a message to another, such as a reply to its request.
    pub const CORRELATION_ID: &str = "correlation-id";
    /// The topic for replies.
    pub const REPLY_TO: &str = "reply-to";
    /// The kind of message.
    pub const TYPE: &str = "type";
    /// The identity of the message that caused this one.
    pub const PARENT_ID: &str = "parent-id";
    /// The same for each attempt to publish the same message.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// Begins the names of `CloudEvents` attributes.
    pub const CLOUD_EVENTS_PREFIX: &str = "ce-";

    /// The maximum number of headers of a message.
    pub const MAX_COUNT: usize = 64;
    /// The maximum size of all names and values of a message, in bytes.
    pub const MAX_BYTES: usize = 8 << 10;

    /// What headers add to the size of a message besides their names and values, in bytes.
    const OVERHEAD: u64 = 96;
    /// The lengths of a name and its value, in bytes.
    const PREFIX: usize = 4;

    /// Makes a list of headers.
    ///
    /// # Errors
    /// When a name or value is invalid, or a limit is exceeded.
    pub fn new<N: AsRef<str>, V: AsRef<str>>(
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, HeaderError> {
        let mut block = Vec::new();
        let mut count = 0;
        for (name, value) in headers {
            let (name, value) = (name.as_ref(), value.as_ref());
            count += 1;
            if count > Self::MAX_COUNT {
                return Err(HeaderError::TooMany);
            }
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err(HeaderError::Name);
            }
            if !is_value(value) {
                return Err(HeaderError::Value);
            }
            // Also keeps both lengths within 16 bits.
            if block.len() + name.len() + value.len() > Self::MAX_BYTES + (count - 1) * Self::PREFIX
            {
                return Err(HeaderError::TooLarge);
            }
            for text in [name, value] {
                let length = u16::try_from(text.len()).map_err(|_| HeaderError::TooLarge)?;
                block.extend_from_slice(&length.to_le_bytes());
            }
            block.extend_from_slice(name.as_bytes());
            block.extend_from_slice(value.as_bytes());
        }
        if block.is_empty() {
            return Ok(Self(None));
        }
        Ok(Self(Some(ThinArc::from_header_and_slice((), &block))))
    }

    /// Adds a header at the end.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with(&self, name: &str, value: &str) -> Result<Self, HeaderError> {
        Self::new(self.iter().chain([(name, value)]))
    }

    /// Whether there are no headers.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.as_ref().map_or(&[], |block| &block.slice))
    }

    /// The value of the first header with this name in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_all(name).next()
    }

    /// The values of all headers with this name in any case, in order.
    pub fn get_all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.iter()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The media type of the payload.
    pub fn content_type(&self) -> Option<&str> {
        self.get(Self::CONTENT_TYPE)
    }

    /// The codings that were applied to the payload, such as `gzip`.
    pub fn content_encoding(&self) -> Option<&str> {
        self.get(Self::CONTENT_ENCODING)
    }

    /// Relates a message to another.
    pub fn correlation_id(&self) -> Option<&str> {
        self.get(Self::CORRELATION_ID)
    }

    /// The topic for replies.
    pub fn reply_to(&self) -> Option<&str> {
        self.get(Self::REPLY_TO)
    }

    /// What the headers add to the size of a message, in bytes. Shared headers count in full: the messages that
    /// share them may leave first.
    #[inline]
    pub fn accounted_size(&self) -> u64 {
        if self.is_empty() { 0 } else { self.size() }
    }

    #[inline(never)]
    fn size(&self) -> u64 {
        let length: usize = self.iter().map(|(name, value)| name.len() + value.len()).sum();
        Self::OVERHEAD + length as u64
    }
}

/// The headers of a message, see [`Headers::iter`].
#[derive(Debug, Clone)]
pub struct Iter<'a>(&'a [u8]);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = self.0.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_first_chunk::<2>()?;
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*name).into())?;
        let (value, rest) = rest.split_at_checked(u16::from_le_bytes(*value).into())?;
        self.0 = rest;
        Some((str::from_utf8(name).ok()?, str::from_utf8(value).ok()?))
    }
}

impl<'a> IntoIterator for &'a Headers {
    type Item = (&'a str, &'a str);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A value that HTTP can carry unchanged (RFC 9110, section 5.5).
fn is_value(value: &str) -> bool {
    let is_space = |c| c == ' ' || c == '\t';
    !value.chars().any(|c| c.is_control() && c != '\t')
        && !value.starts_with(is_space)
        && !value.ends_with(is_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_spelling_and_repeats_are_kept_and_case_is_ignored_for_look_up() {
        let list = [("X-A", "1"), ("content-type", "text/plain"), ("x-a", ""), ("X-A", "é")];
        let headers = Headers::new(list).unwrap();
        assert_eq!(headers.iter().collect::<Vec<_>>(), list);
        assert_eq!(headers.get_all("x-A").collect::<Vec<_>>(), ["1", "", "é"]);
        assert_eq!((headers.get("X-B"), headers.content_type()), (None, Some("text/plain")));
        assert_eq!(headers.with("b", "2").unwrap().iter().count(), 5);
    }

    #[test]
    fn no_headers_need_no_memory_and_some_need_one_word() {
        assert!(Headers::new::<&str, &str>([]).unwrap().0.is_none());
        assert_eq!(size_of::<Headers>(), size_of::<usize>());
    }

    #[test]
    fn limits_are_exact() {
        let long = "v".repeat(Headers::MAX_BYTES - 1);
        assert!(Headers::new([("n", &long)]).is_ok());
        assert_eq!(Headers::new([("nn", &long)]), Err(HeaderError::TooLarge));
        assert_eq!(Headers::new([("n", &*long), ("m", "")]), Err(HeaderError::TooLarge));
        let half = "v".repeat(Headers::MAX_BYTES / 2 - 1);
        assert!(Headers::new([("n", &half), ("m", &half)]).is_ok());
        assert!(Headers::new(vec![("n", "v"); Headers::MAX_COUNT]).is_ok());
        let many = vec![("n", "v"); Headers::MAX_COUNT + 1];
        assert_eq!(Headers::new(many), Err(HeaderError::TooMany));
    }

    #[test]
    fn names_and_values_fit_in_http() {
        for name in ["", "a b", "a:", "ä", "a\n"] {
            assert_eq!(Headers::new([(name, "v")]), Err(HeaderError::Name), "{name:?}");
        }
        for value in [" a", "a ", "\ta", "a\r\nb", "\0", "\u{85}"] {
            assert_eq!(Headers::new([("n", value)]), Err(HeaderError::Value), "{value:?}");
        }
        assert!(Headers::new([("n", "a\tb c")]).is_ok());
    }
}
