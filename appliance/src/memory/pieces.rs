//! The pieces of a buffer, without an allocation for the few that most buffers are in.

/// Pieces that need no allocation: a header or response, with data in one piece after it.
const INLINE: usize = 2;

/// Where a piece is in its mapping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// Offset in the mapping.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// Pieces in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces {
    /// How many there are.
    count: usize,
    /// The first ones.
    inline: [Piece; INLINE],
    /// Those that have no room there, of which few buffers have any.
    #[expect(
        clippy::box_collection,
        reason = "each request moves several of these about"
    )]
    more: Option<Box<Vec<Piece>>>,
}

impl Pieces {
    #[inline]
    pub fn push(&mut self, piece: Piece) {
        match self.inline.get_mut(self.count) {
            Some(place) => *place = piece,
            None => self.push_more(piece),
        }
        self.count += 1;
    }

    #[inline(never)]
    fn push_more(&mut self, piece: Piece) {
        self.more.get_or_insert_default().push(piece);
    }

    /// The first one.
    #[inline]
    pub fn first(&self) -> Option<Piece> {
        (self.count > 0).then_some(self.inline[0])
    }

    /// Keeps the first one and gives the others, where both need no allocation.
    #[inline]
    pub fn split_first(&mut self) -> Option<Self> {
        if self.count == 0 || self.count > INLINE {
            return None;
        }
        let mut rest = Self {
            count: self.count - 1,
            inline: [Piece::default(); INLINE],
            more: None,
        };
        rest.inline[..INLINE - 1].copy_from_slice(&self.inline[1..]);
        self.count = 1;
        Some(rest)
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.count
    }

    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Piece> {
        let inline = &self.inline[..self.count.min(INLINE)];
        inline
            .iter()
            .chain(self.more.iter().flat_map(|more| more.iter()))
    }

    /// Whether they take an allocation.
    #[cfg(test)]
    pub fn is_allocated(&self) -> bool {
        self.more.is_some()
    }
}

impl FromIterator<Piece> for Pieces {
    fn from_iter<I: IntoIterator<Item = Piece>>(pieces: I) -> Self {
        let mut all = Self::default();
        for piece in pieces {
            all.push(piece);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_pieces_the_second_is_cut_off_and_more_are_left_to_be_walked() {
        let all: Vec<Piece> = (0..3).map(|offset| Piece { offset, len: 1 }).collect();
        let of = |count: usize| all[..count].iter().copied().collect::<Pieces>();
        assert!(of(0).split_first().is_none() && of(3).split_first().is_none());
        for count in 1..=2 {
            let mut pieces = of(count);
            let rest = pieces.split_first().unwrap();
            assert!(pieces.iter().eq(&all[..1]));
            assert!(rest.iter().eq(&all[1..count]));
        }
    }

    #[test]
    fn pieces_stay_in_order_and_the_third_is_the_first_to_be_allocated() {
        let all: Vec<Piece> = (0..7).map(|offset| Piece { offset, len: 1 }).collect();
        for count in 0..all.len() {
            let pieces: Pieces = all[..count].iter().copied().collect();
            assert_eq!(pieces.len(), count);
            assert!(pieces.iter().eq(&all[..count]));
            assert_eq!(pieces.is_allocated(), count > 2);
        }
    }
}
