//! A limit on the log lines that one cause can write.

use std::time::{Duration, Instant};

/// Counts occasions, of which so many a minute are logged: a tenant can cause them as fast as it
/// likes, but not flood the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogLimit {
    since: Instant,
    count: u32,
}

impl LogLimit {
    /// How many are written to the log in each period.
    const LINES: u32 = 8;
    const PERIOD: Duration = Duration::from_secs(60);

    /// Nothing was counted.
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            count: 0,
        }
    }

    /// Counts one more; returns whether it is to be written to the log, and how many were not in
    /// the period that is over now.
    pub fn add(&mut self, now: Instant) -> (bool, u32) {
        let mut silent = 0;
        if now.saturating_duration_since(self.since) >= Self::PERIOD {
            silent = self.count.saturating_sub(Self::LINES);
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        (self.count <= Self::LINES, silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_lines_a_minute_are_logged_and_the_others_counted() {
        let since = Instant::now();
        let mut limit = LogLimit::new(since);
        for _ in 0..8 {
            assert_eq!(limit.add(since), (true, 0));
        }
        assert_eq!(limit.add(since), (false, 0));
        let later = since + LogLimit::PERIOD;
        assert_eq!(limit.add(later), (true, 1));
        assert_eq!(limit.add(later + LogLimit::PERIOD), (true, 0));
    }
}
