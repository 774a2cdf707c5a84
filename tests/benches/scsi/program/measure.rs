//! One measurement: workers run, and are looked at when it begins and when it ends.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::cpu::{self, Time};
use super::error::{Context, Error, Result};
use super::histogram::Histogram;
use super::load::Load;
use super::worker::{Board, Outcome, Phase, Worker};

/// How often it is looked whether the server is still there.
const LOOK: Duration = Duration::from_millis(20);
/// How long a server may finish nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is served from another side, as a measurement needs to know it.
pub trait Served {
    /// CPU time of the server so far, where it can be told from the driver's.
    fn cpu(&self) -> Option<Time>;
    /// If the server is gone, what it said last.
    fn gone(&mut self) -> Option<String>;
}

/// The figures of one measurement.
#[derive(Debug, Clone)]
pub struct Measured {
    pub requests: u64,
    pub elapsed: Duration,
    pub latencies: Histogram,
    /// CPU time of the server.
    pub cpu: Option<Duration>,
    /// How long both sides waited for a CPU that others had.
    pub waited: Duration,
    pub kicks: u64,
    pub sleeps: u64,
}

impl Measured {
    /// Requests per second.
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// The part of the time in which a side waited for a CPU: the more of it, the less the figures
    /// are worth.
    pub fn disturbed(&self) -> f64 {
        self.waited.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// CPU time of the server for a request, in nanoseconds.
    pub fn cpu_per_request(&self) -> Option<f64> {
        let cpu = self.cpu?.as_secs_f64() * 1e9;
        (self.requests > 0).then(|| cpu / self.requests as f64)
    }
}

/// The state at one moment.
struct Moment {
    at: Instant,
    server: Option<Time>,
    own: Option<Time>,
    done: u64,
}

struct Run<'a> {
    boards: &'a [Arc<Board>],
    calls: Vec<Arc<EventFd>>,
    threads: Vec<JoinHandle<Result<Outcome>>>,
    server: &'a mut dyn Served,
    last_progress: (u64, Instant),
    under_way: u64,
}

/// Runs `workers` against `server` as `load` says.
///
/// # Errors
/// The server is gone, stands still, or did something wrong.
pub fn measure(
    workers: Vec<Worker>,
    boards: &[Arc<Board>],
    load: &Load,
    server: &mut dyn Served,
) -> Result<Measured> {
    let calls = workers.iter().map(|w| Arc::clone(&w.call)).collect();
    let mut threads = Vec::new();
    for worker in workers {
        let thread = thread::Builder::new().name("load".into());
        let started = thread.spawn(move || worker.run());
        threads.push(started.doing("start a thread")?);
    }
    let mut run = Run {
        boards,
        calls,
        threads,
        server,
        last_progress: (0, Instant::now()),
        under_way: u64::from(load.depth) * u64::from(load.queues),
    };
    let result = run.watch(load);
    if result.is_err() {
        run.tell(Phase::GiveUp);
    }
    let mut outcomes = Vec::new();
    for thread in run.threads {
        outcomes.push(thread.join().map_err(|_| Error::Panicked)?);
    }
    // What a worker saw says more than that it ended early.
    let outcomes: Vec<Outcome> = outcomes.into_iter().collect::<Result<_>>()?;
    let (begin, end) = result?;
    let mut latencies = Histogram::new();
    outcomes.iter().for_each(|o| latencies.add(&o.latencies));
    Ok(Measured {
        requests: end.done - begin.done,
        elapsed: end.at - begin.at,
        latencies,
        cpu: since(begin.server, end.server, |time| time.taken),
        waited: since(begin.server, end.server, |time| time.waited).unwrap_or_default()
            + since(begin.own, end.own, |time| time.waited).unwrap_or_default(),
        kicks: outcomes.iter().map(|o| o.kicks).sum(),
        sleeps: outcomes.iter().map(|o| o.sleeps).sum(),
    })
}

/// What of a time came between two moments; threads that ended meanwhile count as none.
fn since(begin: Option<Time>, end: Option<Time>, what: fn(Time) -> Duration) -> Option<Duration> {
    let (begin, end) = begin.zip(end)?;
    Some(what(end).saturating_sub(what(begin)))
}

impl Run<'_> {
    /// Takes the workers through the phases.
    fn watch(&mut self, load: &Load) -> Result<(Moment, Moment)> {
        self.watch_until(Instant::now() + load.warm_up(), false)?;
        self.tell(Phase::Measure);
        let begin = self.moment();
        self.watch_until(begin.at + load.duration(), false)?;
        let end = self.moment();
        self.tell(Phase::Finish);
        self.watch_until(Instant::now() + Duration::from_secs(3600), true)?;
        Ok((begin, end))
    }

    fn moment(&self) -> Moment {
        Moment {
            server: self.server.cpu(),
            own: cpu::time(std::process::id()),
            done: self.done(),
            at: Instant::now(),
        }
    }

    /// Tells the workers, those too that sleep.
    fn tell(&self, phase: Phase) {
        self.boards.iter().for_each(|board| board.set(phase));
        if phase == Phase::GiveUp {
            for call in &self.calls {
                // It fails only if the counter is full, and then nobody sleeps.
                let _ = call.write(1);
            }
        }
    }

    fn done(&self) -> u64 {
        self.boards.iter().map(|board| board.done()).sum()
    }

    /// Waits until `end`; until all workers have ended, if that `may_end` it.
    fn watch_until(&mut self, end: Instant, may_end: bool) -> Result<()> {
        loop {
            let finished = |thread: &JoinHandle<_>| thread.is_finished();
            let all = self.threads.iter().all(finished);
            if (may_end && all) || (!may_end && self.threads.iter().any(finished)) {
                // A worker that ends by itself before it is told has an error to tell.
                return if may_end {
                    Ok(())
                } else {
                    Err(Error::Panicked)
                };
            }
            let now = Instant::now();
            if let Some(log) = self.server.gone() {
                return Err(Error::Died {
                    under_way: self.under_way,
                    log,
                });
            }
            let done = self.done();
            if done != self.last_progress.0 {
                self.last_progress = (done, now);
            }
            let idle = now - self.last_progress.1;
            if idle > PATIENCE {
                return Err(Error::Stalled {
                    after: idle,
                    under_way: self.under_way,
                });
            }
            let left = end.saturating_duration_since(now);
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(LOOK));
        }
    }
}
