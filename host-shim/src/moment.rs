//! Points in time as another process reads them: nanoseconds of the monotonic clock.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The clock now, in nanoseconds, and the same as an instant.
fn now() -> (i128, Instant) {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    (nanos, Instant::now())
}

fn to_nanos(at: Instant) -> i64 {
    let (nanos, now) = now();
    let signed = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX / 2);
    let distance =
        signed(at.saturating_duration_since(now)) - signed(now.saturating_duration_since(at));
    i64::try_from(nanos + distance).unwrap_or(i64::MAX)
}

fn from_nanos(at: i64) -> Instant {
    let (nanos, now) = now();
    let distance = i128::from(at) - nanos;
    let time = Duration::from_nanos(u64::try_from(distance.unsigned_abs()).unwrap_or(u64::MAX));
    if distance < 0 {
        now.checked_sub(time).unwrap_or(now)
    } else {
        now.checked_add(time).unwrap_or(now)
    }
}

/// Writes `at`.
pub(crate) fn serialize<S: Serializer>(at: &Instant, to: S) -> Result<S::Ok, S::Error> {
    to_nanos(*at).serialize(to)
}

/// Reads what [`serialize`] wrote.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Instant, D::Error> {
    i64::deserialize(from).map(from_nanos)
}

/// A point in time, or none.
pub(crate) mod option {
    use super::{Deserialize, Deserializer, Instant, Serialize, Serializer};

    /// Writes `at`.
    pub(crate) fn serialize<S: Serializer>(at: &Option<Instant>, to: S) -> Result<S::Ok, S::Error> {
        at.map(super::to_nanos).serialize(to)
    }

    /// Reads what [`serialize`] wrote.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Instant>, D::Error> {
        Ok(Option::<i64>::deserialize(from)?.map(super::from_nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_after_it_was_written_and_read() {
        for away in [-7i64, 0, 30] {
            let now = Instant::now();
            let time = Duration::from_secs(away.unsigned_abs());
            let at = if away < 0 { now - time } else { now + time };
            let read = from_nanos(to_nanos(at));
            let error = read.max(at) - read.min(at);
            assert!(error < Duration::from_millis(500), "{away} s: {error:?}");
        }
    }
}
