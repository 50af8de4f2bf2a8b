//! A map from ids, which are mostly inserted in rising order and removed from the front.

use std::collections::VecDeque;

/// A sorted queue. A value that is removed leaves an empty slot, unless it is the first; when a fifth of the slots are
/// empty, they are removed together.
#[derive(Debug)]
pub(super) struct IdMap<T> {
    slots: VecDeque<Slot<T>>,
    /// The number of values.
    len: usize,
}

#[derive(Debug)]
struct Slot<T> {
    id: u64,
    value: Option<T>,
}

impl<T> Default for IdMap<T> {
    fn default() -> Self {
        Self { slots: VecDeque::new(), len: 0 }
    }
}

impl<T> IdMap<T> {
    /// The number of slots that may be unused, whatever the number of values.
    const SPARE: usize = 16;

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where the slot of an id is, or where it would be inserted.
    fn find(&self, id: u64) -> Result<usize, usize> {
        let first = self.slots.front().ok_or(0_usize)?.id;
        // No two slots have the same id, so it cannot be further back; and most often it is there.
        let last = id.checked_sub(first).ok_or(0_usize)?;
        if let Ok(last) = usize::try_from(last)
            && self.slots.get(last).is_some_and(|slot| slot.id == id)
        {
            return Ok(last);
        }
        self.slots.binary_search_by_key(&id, |slot| slot.id)
    }

    pub(super) fn get(&self, id: u64) -> Option<&T> {
        self.slots[self.find(id).ok()?].value.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let at = self.find(id).ok()?;
        self.slots[at].value.as_mut()
    }

    /// The values, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().filter_map(|slot| Some((slot.id, slot.value.as_ref()?)))
    }

    /// Sets a value. Returns the one before. It takes long if higher ids are there.
    pub(super) fn insert(&mut self, id: u64, value: T) -> Option<T> {
        let at = match self.slots.back() {
            Some(last) if last.id >= id => self.find(id),
            _ => Err(self.slots.len()),
        };
        let previous = match at {
            Ok(at) => self.slots[at].value.replace(value),
            Err(at) => {
                self.grow();
                self.slots.insert(at, Slot { id, value: Some(value) });
                None
            }
        };
        self.len += usize::from(previous.is_none());
        previous
    }

    /// Makes space for one more slot. Doubled, it would be half empty.
    fn grow(&mut self) {
        let used = self.slots.len();
        if used == self.slots.capacity() {
            self.slots.reserve_exact(used / 4 + Self::SPARE);
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let at = self.find(id).ok()?;
        let removed = self.slots[at].value.take()?;
        self.len -= 1;
        while self.slots.front().is_some_and(|slot| slot.value.is_none()) {
            self.slots.pop_front();
        }
        if self.slots.len() > self.len + self.len / 4 + Self::SPARE {
            self.slots.retain(|slot| slot.value.is_some());
        }
        if self.slots.capacity() > 4 * self.slots.len() + 2 * Self::SPARE {
            self.slots.shrink_to(2 * self.slots.len() + Self::SPARE);
        }
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        /// An id above all others.
        Append(u64),
        Insert(u64),
        /// One of the ids that are there.
        Remove(prop::sample::Index),
        RemoveAny(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => prop_oneof![4 => Just(1_u64), 1 => 2..50_u64].prop_map(Step::Append),
            1 => (0..300_u64).prop_map(Step::Insert),
            4 => any::<prop::sample::Index>().prop_map(Step::Remove),
            1 => (0..300_u64).prop_map(Step::RemoveAny),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_does_what_a_b_tree_does(steps in prop::collection::vec(step(), 1..400)) {
            let (mut map, mut tree) = (IdMap::default(), BTreeMap::new());
            for (value, step) in steps.into_iter().enumerate() {
                let id = match &step {
                    Step::Append(gap) => tree.keys().last().copied().unwrap_or(0) + gap,
                    Step::Insert(id) | Step::RemoveAny(id) => *id,
                    Step::Remove(_) if tree.is_empty() => 0,
                    Step::Remove(index) => *index.get(&tree.keys().copied().collect::<Vec<_>>()),
                };
                match step {
                    Step::Append(_) | Step::Insert(_) => {
                        prop_assert_eq!(map.insert(id, value), tree.insert(id, value));
                    }
                    Step::Remove(_) | Step::RemoveAny(_) => {
                        prop_assert_eq!(map.remove(id), tree.remove(&id));
                    }
                }
                prop_assert_eq!(map.get(id), tree.get(&id));
                prop_assert_eq!(map.get_mut(id), tree.get_mut(&id));
                prop_assert_eq!(map.len(), tree.len());
                let values: Vec<_> = map.iter().collect();
                prop_assert_eq!(values, tree.iter().map(|(id, value)| (*id, value)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn unused_slots_are_bounded() {
        let mut map = IdMap::default();
        let slots = |map: &IdMap<_>| (map.slots.len(), map.slots.capacity());
        for id in 0..100_000 {
            map.insert(id, ());
        }
        assert!(slots(&map).1 <= 125_020, "{:?}", slots(&map));
        // The first stays.
        for id in 1..99_000 {
            map.remove(id);
            assert!(slots(&map).0 <= map.len() + map.len() / 4 + 16, "{id}");
        }
        assert!(slots(&map).1 <= 6_000, "{:?}", slots(&map));
        for id in [0].into_iter().chain(99_000..100_000) {
            map.remove(id);
        }
        assert_eq!(map.len(), 0);
        assert!(slots(&map).0 == 0 && slots(&map).1 <= 32, "{:?}", slots(&map));
    }
}
