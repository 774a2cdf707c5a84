//! One way under one load, once.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cpu::{self, Time};
use super::error::{Error, Result};
use super::fio::Figures;
use super::load::{Load, MARGIN, RAMP};
use super::rig::Rig;
use super::way::Way;
use super::whole;

/// How long a job may take more than it should, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether requests flow.
const LOOK: Duration = Duration::from_millis(20);

/// The figures of one measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    pub iops: f64,
    pub median_ns: f64,
    pub p99_ns: f64,
    /// CPU time of each process for a request, in nanoseconds.
    pub cpu_ns: Vec<(&'static str, f64)>,
    /// How long they waited for a CPU that another of them or somebody else had, of the time.
    pub waited: f64,
    /// CPUs that anybody but these processes used.
    pub others: f64,
    /// How the tenant was called, by vhost-pci.
    pub calls: Option<Calls>,
}

/// How a tenant was called, for a million requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Calls {
    /// Interrupts of the tenant.
    pub calls: f64,
    /// Those for which the shim had to be woken: writes of the appliance that trapped.
    pub trapped: f64,
}

impl Sample {
    /// CPU time of all processes for a request, in nanoseconds.
    pub fn all_cpu_ns(&self) -> f64 {
        self.cpu_ns.iter().map(|(_, time)| time).sum()
    }
}

/// What has been used up to a moment.
struct Meter {
    at: Instant,
    requests: u64,
    processes: Vec<(&'static str, Time)>,
    /// Of the whole machine.
    busy: Duration,
    /// Calls, and trapped ones, since the shim started, where that is the way.
    calls: Option<(u64, u64)>,
}

impl Meter {
    fn read(rig: &mut Rig, way: Way) -> Result<Self> {
        let processes = rig.processes()?.into_iter();
        let processes = processes
            .map(|(name, id)| Ok((name, cpu::time(id).ok_or(Error::Gone(name))?)))
            .collect::<Result<_>>()?;
        let calls = match way {
            Way::VhostPci => Some(rig.calls()?),
            Way::Iscsi | Way::NvmeTcp | Way::Qemu => None,
        };
        Ok(Self {
            at: Instant::now(),
            requests: rig.requests(way)?,
            processes,
            busy: whole::busy().unwrap_or_default(),
            calls,
        })
    }
}

/// Loads the disk by `way`, and takes CPU time over `seconds`.
///
/// # Errors
/// fio fails, or the requests went elsewhere.
pub fn measure(rig: &mut Rig, way: Way, load: Load, seconds: f64) -> Result<Sample> {
    let disk = rig.disk(way);
    let idle = rig.requests(way)?;
    let job = rig.tenant().start_sh(&load.command(&disk, seconds))?;
    let started = Instant::now();
    while rig.requests(way)? == idle && !job.is_done() && started.elapsed() < PATIENCE {
        thread::sleep(LOOK);
    }
    thread::sleep(Duration::from_secs(RAMP.into()) + Duration::from_secs_f64(MARGIN / 3.0));
    let before = Meter::read(rig, way)?;
    thread::sleep(Duration::from_secs_f64(seconds));
    let after = Meter::read(rig, way)?;
    let text = job.succeed(PATIENCE)?;
    let figures = Figures::parse(&text, load.writes)?;
    let reached = rig.requests(way)? - idle;
    if reached < figures.requests {
        return Err(Error::Counts {
            tenant: figures.requests,
            qemu: reached,
        });
    }
    sample(figures, &before, &after)
}

fn sample(figures: Figures, before: &Meter, after: &Meter) -> Result<Sample> {
    let time = (after.at - before.at).as_secs_f64();
    let requests = after.requests - before.requests;
    if requests == 0 {
        return Err(Error::Idle);
    }
    // Exact up to 2^53.
    let requests = requests as f64;
    let used = |of: fn(&Time) -> Duration| {
        let pairs = before.processes.iter().zip(&after.processes);
        pairs.map(move |((name, before), (_, after))| {
            let used = of(after).saturating_sub(of(before)).as_secs_f64();
            (*name, used)
        })
    };
    let sum =
        |all: &mut dyn Iterator<Item = (&str, f64)>| all.map(|(_, seconds)| seconds).sum::<f64>();
    let busy = after.busy.saturating_sub(before.busy).as_secs_f64();
    Ok(Sample {
        iops: figures.iops,
        median_ns: figures.median_ns,
        p99_ns: figures.p99_ns,
        cpu_ns: used(|time| time.taken)
            .map(|(name, seconds)| (name, seconds * 1e9 / requests))
            .collect(),
        waited: sum(&mut used(|time| time.waited)) / time,
        // The kernel counts the whole machine in ticks, so a little less than nothing is possible.
        others: ((busy - sum(&mut used(|time| time.taken))) / time).max(0.0),
        calls: before.calls.zip(after.calls).map(|(before, after)| Calls {
            calls: (after.0 - before.0) as f64 * 1e6 / requests,
            trapped: (after.1 - before.1) as f64 * 1e6 / requests,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With so much CPU time of each of two processes, and of the whole machine.
    fn meter(at: Instant, requests: u64, taken_ms: u64, waited_ms: u64, busy_ms: u64) -> Meter {
        let time = Time {
            taken: Duration::from_millis(taken_ms),
            waited: Duration::from_millis(waited_ms),
        };
        Meter {
            at,
            requests,
            processes: vec![("one", time), ("other", time)],
            busy: Duration::from_millis(busy_ms),
            calls: Some((requests / 2, requests / 10)),
        }
    }

    const FIGURES: Figures = Figures {
        iops: 1000.0,
        requests: 2000,
        median_ns: 1.0,
        p99_ns: 2.0,
    };

    #[test]
    fn cpu_time_is_shared_out_among_the_requests_of_the_same_time() {
        let start = Instant::now();
        let end = start + Duration::from_secs(2);
        let sample = sample(
            FIGURES,
            &meter(start, 100, 500, 100, 5000),
            &meter(end, 2100, 900, 200, 6800),
        )
        .unwrap();
        // 400 ms of each process for 2000 requests, and 100 ms of waiting of each in 2 s.
        assert_eq!(sample.cpu_ns, [("one", 200_000.0), ("other", 200_000.0)]);
        assert_eq!(sample.all_cpu_ns(), 400_000.0);
        assert!((sample.waited - 0.1).abs() < 1e-9, "{sample:?}");
        // 1800 ms in all, of which ours are 800.
        assert!((sample.others - 0.5).abs() < 1e-9, "{sample:?}");
        let calls = Calls {
            calls: 500_000.0,
            trapped: 100_000.0,
        };
        assert_eq!(sample.calls, Some(calls));
    }

    #[test]
    fn a_time_without_requests_is_no_figure() {
        let start = Instant::now();
        let end = start + Duration::from_secs(1);
        let result = sample(FIGURES, &meter(start, 7, 0, 0, 0), &meter(end, 7, 9, 0, 9));
        assert!(matches!(result, Err(Error::Idle)), "{result:?}");
    }
}
