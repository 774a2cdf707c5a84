//! A limit on log lines that a peer can cause.

use std::time::{Duration, Instant};

/// Lines per period.
const LINES: u32 = 10;
/// The period.
const PERIOD: Duration = Duration::from_secs(10);

/// Allows so many log lines in a period and counts those it did not allow.
#[derive(Debug)]
pub(crate) struct LogBudget {
    since: Instant,
    left: u32,
    suppressed: u64,
}

impl LogBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            left: LINES,
            suppressed: 0,
        }
    }

    /// Whether a line may be written at `now`; if so, how many were suppressed before it.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.since) >= PERIOD {
            self.since = now;
            self.left = LINES;
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.suppressed += 1;
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_budget_are_counted_and_told_later() {
        let start = Instant::now();
        let mut budget = LogBudget::new(start);
        for _ in 0..10 {
            assert_eq!(budget.take(start), Some(0));
        }
        assert_eq!(budget.take(start), None);
        assert_eq!(budget.take(start + Duration::from_secs(9)), None);
        assert_eq!(budget.take(start + Duration::from_secs(10)), Some(2));
        assert_eq!(budget.take(start + Duration::from_secs(10)), Some(0));
    }
}
