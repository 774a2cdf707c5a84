//! Which worker of an HBA serves which of its rings.

use spec::device::kick_vector;
use spec::virtio_scsi::{CONTROL_QUEUE, EVENT_QUEUE, FIRST_REQUEST_QUEUE};

/// How rings are spread: round robin over the workers, from the second on, as the first has the
/// control queue and the event queue. Where kicks come on vectors, rings that share one share their
/// worker, since only one can wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread {
    workers: usize,
    /// How many vectors there are, the mailbox's among them, if kicks come on these.
    vectors: Option<usize>,
}

impl Spread {
    /// Everything is the first worker's.
    pub const ALONE: Self = Self::by_ring(1);

    /// Each ring is kicked by something of its own.
    pub const fn by_ring(workers: usize) -> Self {
        Self {
            workers,
            vectors: None,
        }
    }

    /// Rings are kicked by so many vectors.
    pub const fn by_vector(workers: usize, vectors: usize) -> Self {
        Self {
            workers,
            vectors: Some(vectors),
        }
    }

    /// How many workers there are.
    pub const fn workers(self) -> usize {
        self.workers
    }

    /// The place of the worker that serves this ring, from 0.
    pub fn of_ring(self, ring: u16) -> usize {
        match self.vectors {
            _ if ring < FIRST_REQUEST_QUEUE => 0,
            None => self.nth(usize::from(ring - FIRST_REQUEST_QUEUE)),
            Some(vectors) => self.of_vector(kick_vector(ring.into(), vectors)),
        }
    }

    /// The place of the worker that waits for this vector.
    pub fn of_vector(self, vector: usize) -> usize {
        let Some(vectors) = self.vectors else {
            return 0;
        };
        let of = |ring: u16| kick_vector(ring.into(), vectors);
        let first = of(FIRST_REQUEST_QUEUE);
        if [0, of(CONTROL_QUEUE), of(EVENT_QUEUE)].contains(&vector) {
            0
        } else {
            self.nth(vector.saturating_sub(first))
        }
    }

    fn nth(self, queue: usize) -> usize {
        (queue + 1) % self.workers.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_rings(spread: Spread, rings: usize) -> Vec<usize> {
        (0..).take(rings).map(|ring| spread.of_ring(ring)).collect()
    }

    #[test]
    fn request_queues_go_round_from_the_second_worker_on_and_the_others_to_the_first() {
        assert_eq!(of_rings(Spread::by_ring(2), 7), [0, 0, 1, 0, 1, 0, 1]);
        assert_eq!(of_rings(Spread::by_ring(3), 7), [0, 0, 1, 2, 0, 1, 2]);
        assert_eq!(of_rings(Spread::ALONE, 4), [0; 4]);
    }

    #[test]
    fn with_a_vector_for_each_ring_they_are_spread_likewise() {
        let spread = Spread::by_vector(2, 16);
        assert_eq!(of_rings(spread, 7), [0, 0, 1, 0, 1, 0, 1]);
        assert_eq!([0, 1, 2].map(|vector| spread.of_vector(vector)), [0; 3]);
        assert_eq!([3, 4, 5].map(|vector| spread.of_vector(vector)), [1, 0, 1]);
    }

    #[test]
    fn rings_that_share_a_vector_share_their_worker() {
        for vectors in 1..20 {
            let spread = Spread::by_vector(3, vectors);
            for ring in 0..64 {
                let vector = kick_vector(ring.into(), vectors);
                let worker = spread.of_ring(ring);
                assert_eq!(worker, spread.of_vector(vector), "{vectors} {ring}");
                assert!(worker < 3);
            }
        }
        // One for the mailbox, one each for control queue and event queue, two for the others.
        assert_eq!(
            of_rings(Spread::by_vector(2, 5), 8),
            [0, 0, 1, 0, 0, 0, 1, 0]
        );
        assert_eq!(of_rings(Spread::by_vector(2, 2), 6), [0; 6]);
        assert_eq!(of_rings(Spread::by_vector(2, 1), 6), [0; 6]);
    }
}
