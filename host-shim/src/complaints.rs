//! Log lines that a peer can cause again and again.

use std::time::{Duration, Instant};

use crate::log_budget::LogBudget;

/// How long the same line is not written again.
const PERIOD: Duration = Duration::from_secs(60);
/// Different lines remembered.
const REMEMBERED: usize = 8;

/// Remembers which lines were written lately: a tenant's QEMU that reconnects every second meets
/// the same error every second. One that finds a new error each time has a budget.
#[derive(Debug)]
pub struct Complaints {
    written: Vec<(String, Instant)>,
    /// The last one, written or not, with when it came.
    last: Option<(String, Instant)>,
    budget: LogBudget,
}

impl Complaints {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self {
            written: Vec::new(),
            last: None,
            budget: LogBudget::new(now),
        }
    }

    /// Whether `line` is to be written at `now`; if so, how many others were left out before it.
    pub fn is_news(&mut self, now: Instant, line: &str) -> Option<u64> {
        self.last = Some((line.to_owned(), now));
        self.written
            .retain(|(_, at)| now.saturating_duration_since(*at) < PERIOD);
        if self.written.iter().any(|(known, _)| known == line) {
            return None;
        }
        let left_out = self.budget.take(now)?;
        if self.written.len() == REMEMBERED {
            self.written.remove(0);
        }
        self.written.push((line.to_owned(), now));
        Some(left_out)
    }

    /// The last complaint and when it came, whether it was written or not.
    pub fn last(&self) -> Option<(&str, Instant)> {
        let (line, at) = self.last.as_ref()?;
        Some((line, *at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_is_written_once_a_minute() {
        let start = Instant::now();
        let mut complaints = Complaints::new(start);
        assert!(complaints.is_news(start, "two backends").is_some());
        let soon = start + Duration::from_secs(59);
        assert!(complaints.is_news(soon, "two backends").is_none());
        assert_eq!(complaints.last(), Some(("two backends", soon)));
        assert!(complaints.is_news(start, "unsealed").is_some());
        assert!(complaints.is_news(start + PERIOD, "two backends").is_some());
    }

    #[test]
    fn a_peer_that_finds_new_words_each_time_does_not_fill_the_log() {
        let start = Instant::now();
        let mut complaints = Complaints::new(start);
        let written = (0..1000)
            .filter(|n| complaints.is_news(start, &format!("vring {n}")).is_some())
            .count();
        assert_eq!(written, 10);
        let later = start + Duration::from_secs(10);
        assert_eq!(complaints.is_news(later, "vring 9"), None);
        assert_eq!(complaints.is_news(later, "something else"), Some(990));
    }
}
