//! A map from small numbers, in which one that is the place of its entry is found at once.
//!
//! Targets and logical units are mostly numbered from 0 on without gaps, and are looked up for each
//! command.

/// Values in the order of their numbers.
#[derive(Debug)]
pub struct Numbered<N, V>(Vec<(N, V)>);

impl<N, V> Default for Numbered<N, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<N: Copy + Ord + Into<usize>, V> Numbered<N, V> {
    /// The value of `number`.
    #[inline]
    pub fn get(&self, number: N) -> Option<&V> {
        match self.0.get(number.into()) {
            Some((at, value)) if *at == number => Some(value),
            _ => self.search(number),
        }
    }

    #[cold]
    fn search(&self, number: N) -> Option<&V> {
        let index = self.place(number).ok()?;
        self.0.get(index).map(|(_, value)| value)
    }

    /// The value of `number`, to be changed.
    pub fn get_mut(&mut self, number: N) -> Option<&mut V> {
        let index = self.place(number).ok()?;
        self.0.get_mut(index).map(|(_, value)| value)
    }

    /// The value of `number`, which is the default where there was none.
    pub fn or_default(&mut self, number: N) -> &mut V
    where
        V: Default,
    {
        let index = self.place(number).unwrap_or_else(|index| {
            self.0.insert(index, (number, V::default()));
            index
        });
        &mut self.0[index].1
    }

    /// Puts `value` in the place of what `number` had.
    pub fn insert(&mut self, number: N, value: V) {
        match self.place(number) {
            Ok(index) => self.0[index].1 = value,
            Err(index) => self.0.insert(index, (number, value)),
        }
    }

    /// Takes out what `number` has.
    pub fn remove(&mut self, number: N) -> Option<V> {
        let index = self.place(number).ok()?;
        Some(self.0.remove(index).1)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All with their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (N, &V)> {
        self.0.iter().map(|(number, value)| (*number, value))
    }

    fn place(&self, number: N) -> Result<usize, usize> {
        self.0.binary_search_by_key(&number, |(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_found_by_its_number_with_gaps_and_without() {
        let mut numbered = Numbered::<u16, u32>::default();
        assert!(numbered.is_empty() && numbered.get(0).is_none());
        for number in [3, 0, 700, 1] {
            numbered.insert(number, u32::from(number) * 10);
        }
        for (number, value) in [(0, 0), (1, 10), (3, 30), (700, 7000)] {
            assert_eq!(numbered.get(number), Some(&value));
        }
        assert_eq!([2, 4, 701].map(|number| numbered.get(number)), [None; 3]);
        let numbers: Vec<_> = numbered.iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [0, 1, 3, 700]);
    }

    #[test]
    fn one_that_was_taken_out_leaves_the_others() {
        let mut numbered = Numbered::<u8, u32>::default();
        *numbered.or_default(1) += 5;
        numbered.insert(0, 7);
        *numbered.or_default(1) += 5;
        *numbered.get_mut(0).unwrap() += 1;
        numbered.insert(2, 9);
        assert_eq!(numbered.remove(1), Some(10));
        assert_eq!(numbered.remove(1), None);
        assert!(numbered.get_mut(1).is_none());
        assert_eq!(numbered.get(0), Some(&8));
        assert_eq!(numbered.get(2), Some(&9));
        numbered.insert(2, 4);
        assert_eq!(numbered.iter().collect::<Vec<_>>(), [(0, &8), (2, &4)]);
    }
}
