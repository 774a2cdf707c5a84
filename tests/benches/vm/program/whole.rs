//! CPU time of the whole machine, of which our processes have a part and others the rest.

use std::fs;
use std::time::Duration;

/// Milliseconds of a tick, in which the kernel tells programs CPU times (proc(5): `USER_HZ`, which
/// is 100 on x86-64).
const TICK_MS: u64 = 10;

/// What all CPUs have been busy with since the machine started, with what its hypervisor gave to
/// others; `None` where /proc does not say.
pub fn busy() -> Option<Duration> {
    of_stat(&fs::read_to_string("/proc/stat").ok()?)
}

/// The line "cpu", proc(5): user, nice, system, idle, iowait, irq, softirq, steal; guests' time is
/// in that of users.
fn of_stat(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields = line.split_whitespace().take(8).map(str::parse);
    let fields: Vec<u64> = fields.collect::<Result<_, _>>().ok()?;
    let [user, nice, system, _, _, irq, softirq, steal] = fields[..] else {
        return None;
    };
    let ticks = user + nice + system + irq + softirq + steal;
    Some(Duration::from_millis(TICK_MS * ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_disks_and_idling_is_not_busy() {
        let stat = "cpu  100 20 30 99999 88888 4 5 6 7 8\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(of_stat(stat), Some(Duration::from_millis(1650)));
        assert_eq!(of_stat("cpu  100 20\n"), None);
    }

    #[test]
    fn this_machine_says_it() {
        assert!(busy().is_some_and(|busy| busy > Duration::ZERO));
    }
}
