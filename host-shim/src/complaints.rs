//! Log lines that would come again and again.

use std::time::{Duration, Instant};

/// How long the same line is not written again.
const PERIOD: Duration = Duration::from_secs(60);
/// Different lines remembered.
const REMEMBERED: usize = 8;

/// Remembers which lines were written lately: a tenant's QEMU that reconnects every second meets
/// the same error every second.
#[derive(Debug, Default)]
pub struct Complaints {
    written: Vec<(String, Instant)>,
}

impl Complaints {
    /// Whether `line` is to be written at `now`.
    pub fn is_news(&mut self, now: Instant, line: &str) -> bool {
        self.written
            .retain(|(_, at)| now.saturating_duration_since(*at) < PERIOD);
        if self.written.iter().any(|(known, _)| known == line) {
            return false;
        }
        if self.written.len() == REMEMBERED {
            self.written.remove(0);
        }
        self.written.push((line.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_is_written_once_a_minute() {
        let start = Instant::now();
        let mut complaints = Complaints::default();
        assert!(complaints.is_news(start, "two backends"));
        assert!(!complaints.is_news(start + Duration::from_secs(59), "two backends"));
        assert!(complaints.is_news(start, "unsealed"));
        assert!(complaints.is_news(start + PERIOD, "two backends"));
    }
}
