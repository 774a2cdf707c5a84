//! CPU time of a process: of all its threads, those too that the kernel runs for it.

use std::fs;
use std::time::Duration;

/// Of all threads of a process together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// On a CPU.
    pub taken: Duration,
    /// Ready to run, while others had the CPUs.
    pub waited: Duration,
}

/// What `pid` has taken so far; `None` once it is gone.
pub fn time(pid: u32) -> Option<Time> {
    let mut total = Time::default();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread may end while it is looked at.
        if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
            let time = of_schedstat(&text)?;
            total.taken += time.taken;
            total.waited += time.waited;
        }
    }
    Some(total)
}

/// The first two numbers of a schedstat, in nanoseconds.
fn of_schedstat(schedstat: &str) -> Option<Time> {
    let mut numbers = schedstat.split_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok().map(Duration::from_nanos);
    Some(Time {
        taken: next()?,
        waited: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_numbers_are_taken_and_waited() {
        let time = of_schedstat("1234567 89 10\n").unwrap();
        assert_eq!(time.taken, Duration::from_nanos(1_234_567));
        assert_eq!(time.waited, Duration::from_nanos(89));
        assert_eq!(of_schedstat(""), None);
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        assert!(time(std::process::id()).is_some());
        assert_eq!(time(u32::MAX), None);
    }
}
