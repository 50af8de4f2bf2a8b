//! Sets of ids that are dense from 0 on, as bit sets.

/// A set of ids.
#[derive(Debug, Default)]
pub(super) struct IdSet {
    words: Vec<u64>,
    len: u64,
}

impl IdSet {
    /// Adds an id. Returns whether it was new.
    pub(super) fn insert(&mut self, id: u64) -> bool {
        let Ok(word) = usize::try_from(id / 64) else { return false };
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (id % 64);
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u64::from(is_new);
        is_new
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        let word = usize::try_from(id / 64).ok().and_then(|word| self.words.get(word));
        word.is_some_and(|word| word & 1 << (id % 64) != 0)
    }

    /// The ids in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        (0..self.end()).filter(|id| self.contains(*id))
    }

    /// One more than the greatest id; 0 if the set is empty.
    pub(super) fn end(&self) -> u64 {
        let Some(last) = self.words.iter().rposition(|word| *word != 0) else { return 0 };
        last as u64 * 64 + u64::from(64 - self.words[last].leading_zeros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once() {
        let mut ids = IdSet::default();
        assert_eq!(ids.end(), 0);
        for (id, is_new) in [(0, true), (63, true), (64, true), (0, false), (64, false), (5, true)]
        {
            assert_eq!(ids.insert(id), is_new, "{id}");
        }
        assert_eq!((ids.len(), ids.end()), (4, 65));
        assert_eq!(
            [0, 1, 5, 64, 65, 1000].map(|id| ids.contains(id)),
            [true, false, true, true, false, false]
        );
        assert_eq!(ids.iter().collect::<Vec<_>>(), [0, 5, 63, 64]);
    }
}
