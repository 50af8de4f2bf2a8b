//! What servers say of a topic when something is published to it: the messages themselves if they are small, so that nobody
//! has to ask for them.

use std::{
    mem::take,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use msgbus_core::{Headers, store::RecoveredMessage};

use crate::message::{Shape, decode_headers, recovered, time};

/// What was said on a channel since somebody has last looked, without exception.
#[derive(Debug)]
pub(crate) struct Told {
    texts: Vec<Vec<u8>>,
    bytes: usize,
    /// Of all channels.
    total: Arc<AtomicUsize>,
}

impl Told {
    /// How many bytes are kept for all channels until somebody looks. Who finds that something was not kept asks the server.
    const MAX_BYTES: usize = 16 << 20;

    pub(crate) fn new(total: &Arc<AtomicUsize>) -> Self {
        Self { texts: Vec::new(), bytes: 0, total: Arc::clone(total) }
    }

    /// Returns `false` if there is no room.
    pub(crate) fn add(&mut self, text: Vec<u8>) -> bool {
        self.bytes += text.len();
        let before = self.total.fetch_add(text.len(), Relaxed);
        let has_room = before + text.len() <= Self::MAX_BYTES;
        self.texts.push(text);
        has_room
    }

    /// The messages from a number on, which is that of the next one. `None` if they are not all that there is: another epoch,
    /// a number that was left out, something that does not say what was published.
    pub(crate) fn messages(
        mut self,
        epoch: u64,
        mut next: u64,
        max_age_ms: u64,
    ) -> Option<Vec<RecoveredMessage>> {
        let mut messages = Vec::new();
        let mut end = 0;
        for text in take(&mut self.texts) {
            let news = News::parse(&text, max_age_ms).filter(|news| news.epoch == epoch)?;
            // Some may have been read from the server meanwhile.
            let first = news.messages.first().filter(|first| first.id <= next)?.id;
            end = first + news.messages.len() as u64;
            messages.extend(news.messages.into_iter().filter(|message| message.id >= next));
            next = next.max(end);
        }
        (end == next).then_some(messages)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Relaxed);
    }
}

/// What was published by one call of the script. The numbers follow one another.
struct News {
    epoch: u64,
    messages: Vec<RecoveredMessage>,
}

impl News {
    fn parse(text: &[u8], max_age_ms: u64) -> Option<Self> {
        let mut parts = Texts(text);
        let (epoch, first, published) = (parts.number()?, parts.number()?, parts.number()?);
        let shapes = parts.next()?;
        let end = first.checked_add(shapes.len() as u64)?;
        let mut messages = Vec::new();
        for (id, shape) in (first..end).zip(shapes) {
            let shape = Shape::parse(*shape);
            let mut own = None;
            if shape.has_ttl {
                own = Some(time(published.saturating_add(parts.number()?)));
            }
            let mut headers = Headers::default();
            if shape.has_headers {
                headers = decode_headers(parts.next()?);
            }
            let payload = Bytes::copy_from_slice(parts.next()?);
            messages.push(recovered(id, time(published), own, max_age_ms, headers, payload));
        }
        parts.0.is_empty().then_some(Self { epoch, messages })
    }
}

/// Texts in `MessagePack`, which scripts know.
struct Texts<'a>(&'a [u8]);

impl<'a> Iterator for Texts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (&kind, rest) = self.0.split_first()?;
        let digits = match kind {
            0xa0..=0xbf => 0,
            0xd9 => 1,
            0xda => 2,
            0xdb => 4,
            _ => return None,
        };
        let (digits, rest) = rest.split_at_checked(digits)?;
        let length = match digits {
            [] => usize::from(kind & 0x1f),
            digits => digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)),
        };
        let (text, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }
}

impl Texts<'_> {
    fn number(&mut self) -> Option<u64> {
        str::from_utf8(self.next()?).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the script packs them.
    fn pack(texts: &[&[u8]]) -> Vec<u8> {
        let mut packed = Vec::new();
        for text in texts {
            let length = u32::try_from(text.len()).unwrap().to_be_bytes();
            match text.len() {
                0..32 => packed.push(0xa0 | length[3]),
                32..0x100 => packed.extend([0xd9, length[3]]),
                0x100..0x10000 => packed.extend([0xda, length[2], length[3]]),
                _ => packed.extend([0xdb].iter().chain(&length)),
            }
            packed.extend(*text);
        }
        packed
    }

    fn plain(epoch: u64, first: u64, count: usize) -> Vec<u8> {
        let (epoch, first) = (epoch.to_string(), first.to_string());
        let shapes = "0".repeat(count);
        let mut texts = vec![epoch.as_bytes(), first.as_bytes(), b"5000", shapes.as_bytes()];
        texts.extend(std::iter::repeat_n(&b"x"[..], count));
        pack(&texts)
    }

    fn told(texts: &[Vec<u8>]) -> Told {
        let mut told = Told::new(&Arc::default());
        assert!(texts.iter().all(|text| told.add(text.clone())));
        told
    }

    fn ids(texts: &[Vec<u8>], next: u64) -> Option<Vec<u64>> {
        let messages = told(texts).messages(7, next, 0)?;
        Some(messages.into_iter().map(|message| message.id).collect())
    }

    #[test]
    fn only_all_messages_are_enough() {
        let two = [plain(7, 3, 2), plain(7, 5, 1)];
        assert_eq!(ids(&two, 3), Some(vec![3, 4, 5]));
        assert_eq!(ids(&two, 4), Some(vec![4, 5]), "one was read meanwhile");
        assert_eq!(ids(&two, 6), Some(vec![]));
        assert_eq!(ids(&two, 2), None, "one was left out");
        assert_eq!(ids(&two, 7), None, "the server has fewer");
        assert_eq!(ids(&[plain(7, 3, 1), plain(7, 5, 1)], 3), None);
        assert_eq!(ids(&[plain(8, 3, 1)], 3), None, "another epoch");
        assert_eq!(ids(&[], 3), None);
        assert_eq!(ids(&[plain(7, 3, 0)], 3), None);
        for text in ["", "17", "+"] {
            assert_eq!(ids(&[plain(7, 3, 1), text.into()], 3), None, "{text:?}");
        }
    }

    #[test]
    fn messages_are_told_whole() {
        let long = vec![7; 70_000];
        let headers = r#"[["a","b"]]"#.as_bytes();
        let text = pack(&[
            b"7",
            b"1",
            b"5000",
            b"0647",
            &long,
            b"10",
            headers,
            &long[..40],
            headers,
            &long[..300],
            b"20",
            headers,
            b"",
        ]);
        let messages = told(std::slice::from_ref(&text)).messages(7, 1, 9).unwrap();
        let sizes: Vec<_> = messages.iter().map(|message| message.payload.len()).collect();
        assert_eq!(sizes, [70_000, 40, 300, 0]);
        let headers: Vec<_> =
            messages.iter().map(|message| message.headers.iter().count()).collect();
        assert_eq!(headers, [0, 1, 1, 1]);
        let expires = messages.iter().map(|message| message.expires);
        let expected = [5009, 5009, 5009, 5009].map(|expires| Some(time(expires)));
        assert_eq!(expires.collect::<Vec<_>>(), expected);
        let messages = told(std::slice::from_ref(&text)).messages(7, 1, 0).unwrap();
        let expires = messages.iter().map(|message| message.expires);
        assert_eq!(expires.collect::<Vec<_>>(), [None, Some(time(5010)), None, Some(time(5020))]);
        for length in 0..text.len() {
            assert!(told(&[text[..length].to_vec()]).messages(7, 1, 0).is_none(), "{length}");
        }
    }

    #[test]
    fn what_nobody_takes_is_limited() {
        let total = Arc::default();
        let mut told = Told::new(&total);
        assert!(told.add(vec![0; Told::MAX_BYTES]));
        let mut other = Told::new(&total);
        assert!(!other.add(vec![0]));
        drop(told);
        assert!(other.add(vec![0]));
        drop(other);
        assert_eq!(total.load(Relaxed), 0);
    }
}
