//! The load generator: one thread that keeps one queue filled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::error::{Context, Error, Result};
use super::histogram::Histogram;
use super::ring::Ring;
use super::sleep::Sleep;
use super::slots::{Operation, SECTOR, Slots};
use super::source::Source;

/// How far a measurement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Requests run, and do not count yet.
    WarmUp,
    /// Requests count.
    Measure,
    /// No new requests; those under way are waited for.
    Finish,
    /// Nothing is waited for.
    GiveUp,
}

/// What a worker and whoever measures share; a cache line of its own, so that two workers do
/// not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
pub struct Board {
    phase: AtomicU8,
    done: AtomicU64,
}

impl Board {
    pub fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::WarmUp as u8),
            done: AtomicU64::new(0),
        }
    }

    pub fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    #[inline]
    fn reached(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) >= phase as u8
    }

    /// Requests done so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }
}

/// What came of a worker.
#[derive(Debug)]
pub struct Outcome {
    /// Latencies of the requests that counted.
    pub latencies: Histogram,
    /// Kicks that the server wanted.
    pub kicks: u64,
    /// Times that this side slept for an interrupt.
    pub sleeps: u64,
    /// Requests that were under way when it was given up.
    pub abandoned: u64,
}

#[derive(Debug, Clone, Copy)]
struct UnderWay {
    operation: Operation,
    block: u64,
    since: Instant,
}

/// One queue and all that drives it.
pub struct Worker {
    pub ring: Ring,
    pub slots: Slots,
    pub source: Source,
    pub kick: Arc<EventFd>,
    pub call: Arc<EventFd>,
    pub board: Arc<Board>,
    /// Whether it looks for answers all the time, or sleeps until an interrupt.
    pub polled: bool,
}

impl Worker {
    /// Keeps the queue filled until the board says otherwise.
    ///
    /// # Errors
    /// The server broke the rules, a request failed, or brought the wrong data.
    pub fn run(mut self) -> Result<Outcome> {
        let depth = self.slots.layout().depth;
        let mut running: Vec<Option<UnderWay>> = vec![None; usize::from(depth)];
        let mut idle: Vec<u16> = (0..depth).rev().collect();
        let mut outcome = Outcome {
            latencies: Histogram::new(),
            kicks: 0,
            sleeps: 0,
            abandoned: 0,
        };
        let sleep = Sleep::new(Arc::clone(&self.call)).doing("watch an eventfd")?;
        let (mut done, mut measuring) = (0, false);
        if self.polled {
            self.ring.unwant_calls();
        }
        self.submit(&mut idle, &mut running, &mut outcome)?;
        while idle.len() < usize::from(depth) {
            let waiting = self.ring.look()?;
            if waiting == 0 {
                if self.board.reached(Phase::GiveUp) {
                    outcome.abandoned = u64::from(depth) - idle.len() as u64;
                    return Ok(outcome);
                }
                if !self.polled && !self.ring.want_call() {
                    outcome.sleeps += 1;
                    sleep.until_call().doing("wait for an interrupt")?;
                }
                continue;
            }
            if !measuring && self.board.reached(Phase::Measure) {
                measuring = true;
                outcome.latencies.clear();
            }
            let now = Instant::now();
            for _ in 0..waiting {
                let head = self.ring.take();
                let unknown = Error::UsedUnknown { head };
                let Some(slot) = self.slots.layout().slot(head) else {
                    return Err(unknown);
                };
                let Some(request) = running[usize::from(slot)].take() else {
                    return Err(unknown);
                };
                self.finish(slot, request)?;
                outcome.latencies.record(now.duration_since(request.since));
                idle.push(slot);
            }
            if self.polled {
                self.ring.unwant_calls();
            }
            done += u64::from(waiting);
            self.board.done.store(done, Ordering::Release);
            self.submit(&mut idle, &mut running, &mut outcome)?;
        }
        Ok(outcome)
    }

    /// Starts as many requests as there are idle slots.
    #[inline]
    fn submit(
        &mut self,
        idle: &mut Vec<u16>,
        running: &mut [Option<UnderWay>],
        outcome: &mut Outcome,
    ) -> Result<()> {
        let stopping = self.board.reached(Phase::Finish);
        let since = Instant::now();
        let mut offered = false;
        while let Some(&slot) = idle.last() {
            let Some((operation, block)) = self.source.next(stopping) else {
                break;
            };
            idle.pop();
            let per_block = u64::from(self.slots.layout().block_bytes) / SECTOR;
            if operation == Operation::Write
                && let Some(bytes) = self.source.write_data(block)
            {
                self.slots.set_data(slot, bytes);
            }
            let head = self.slots.prepare(slot, operation, block * per_block);
            running[usize::from(slot)] = Some(UnderWay {
                operation,
                block,
                since,
            });
            self.ring.offer(head);
            offered = true;
        }
        if offered && self.ring.publish() {
            outcome.kicks += 1;
            self.kick.write(1).doing("kick the server")?;
        }
        Ok(())
    }

    #[inline]
    fn finish(&mut self, slot: u16, request: UnderWay) -> Result<()> {
        let UnderWay {
            operation, block, ..
        } = request;
        self.slots.check(slot).map_err(|answer| Error::Request {
            operation,
            block,
            answer,
        })?;
        let slots = &self.slots;
        self.source
            .done(operation, block, |to| slots.data(slot, to))
    }
}
