//! The threads of an HBA's workers beside the first.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::{AttachError, Line, eventfd};
use crate::fellow::Fellow;
use crate::front::Side;
use crate::inbox::{Message, Outbox};
use crate::pinning;
use crate::scsi::Host;
use crate::spread::Spread;
use crate::worker::{Behind, Vectors, Worker};

/// Workers that are told what to do by the first, whose thread this belongs to. Dropping it ends
/// them.
pub(super) struct Crew(Vec<Member>);

struct Member {
    stop: EventFd,
    /// Whether its thread waits for a disk, when all it had mapped is let go.
    outcome: mpsc::Receiver<bool>,
    thread: JoinHandle<()>,
}

/// What the other workers of an HBA share with the first.
pub(super) struct Shared<'a, S> {
    pub hba: &'a Arc<str>,
    pub host: &'a Host,
    pub spread: Spread,
    /// What stands in front of a worker that is not the first.
    pub side: &'a dyn Fn() -> S,
    /// The function's vectors, if it is one; then at least that of the mailbox.
    pub vectors: &'a [EventFd],
}

/// What one of them begins with.
struct Recruit<S> {
    hba: Arc<str>,
    host: Host,
    line: Line,
    side: S,
    /// What it waits for of the vectors, and how many there are.
    vectors: (Vec<(usize, EventFd)>, usize),
}

impl Crew {
    /// Starts the workers beside the first, on as many threads, and tells `line` of them.
    ///
    /// # Errors
    /// [`AttachError`]; none of them runs then.
    pub fn start<S: Side + 'static>(
        shared: &Shared<'_, S>,
        line: &mut Line,
    ) -> Result<Self, AttachError> {
        let making = AttachError::io("making an eventfd");
        let lines = line.split(shared.spread).map_err(making)?;
        let mut crew = Self(Vec::new());
        for line in lines {
            let place = line.team.place();
            let vectors = shared.vectors.iter().enumerate();
            let mine = vectors.filter(|(vector, _)| shared.spread.of_vector(*vector) == place);
            let mine = mine.map(|(vector, fd)| Ok((vector, fd.try_clone()?)));
            let mine = mine.collect::<Result<_, _>>();
            let recruit = Recruit {
                hba: Arc::clone(shared.hba),
                host: shared.host.share(),
                line,
                side: (shared.side)(),
                vectors: (
                    mine.map_err(AttachError::io("duplicating an eventfd"))?,
                    shared.vectors.len().max(1),
                ),
            };
            crew.0.push(Member::start(recruit)?);
        }
        Ok(crew)
    }

    /// Tells all of them to end.
    pub fn stop(&self) {
        for member in &self.0 {
            if let Err(error) = member.stop.write(1) {
                tracing::error!("a worker cannot be told to stop: {error}");
            }
        }
    }

    /// Waits until they have let go whatever they had mapped. Returns the threads that still wait
    /// for a disk.
    pub fn join(mut self) -> Vec<JoinHandle<()>> {
        self.end()
    }

    fn end(&mut self) -> Vec<JoinHandle<()>> {
        self.stop();
        let mut lingering = Vec::new();
        for member in self.0.drain(..) {
            // One that panicked has let everything go; the log has it.
            if member.outcome.recv().unwrap_or(false) {
                lingering.push(member.thread);
            } else {
                let _ = member.thread.join();
            }
        }
        lingering
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.end();
    }
}

impl Member {
    fn start<S: Side + 'static>(recruit: Recruit<S>) -> Result<Self, AttachError> {
        let stop = eventfd()?;
        let heard = stop
            .try_clone()
            .map_err(AttachError::io("duplicating an eventfd"))?;
        let (started, start) = mpsc::sync_channel(1);
        let (end, outcome) = mpsc::sync_channel(1);
        let name = format!("hba{}-{}", recruit.line.team.place(), recruit.hba);
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || live(recruit, &heard, &started, &end))
            .map_err(AttachError::io("starting a thread"))?;
        let member = Self {
            stop,
            outcome,
            thread,
        };
        match start.recv() {
            Ok(Ok(())) => Ok(member),
            Ok(Err(error)) => {
                let _ = member.thread.join();
                Err(error)
            }
            Err(_) => Err(AttachError::Worker("it panicked, see the log".into())),
        }
    }
}

/// Tells the other workers of this one's end, however that comes: before they are told of tasks that
/// have ended with it, and are not back. Whoever waits for these must not take them for done.
struct Farewell(Vec<Outbox>);

impl Drop for Farewell {
    fn drop(&mut self) {
        for other in &self.0 {
            other.send(Message::Fellow(Fellow::Ended));
        }
    }
}

/// The life of such a worker. What it had mapped is let go when `end` is told, but what a disk that
/// has not finished uses.
fn live<S: Side + 'static>(
    recruit: Recruit<S>,
    stop: &EventFd,
    started: &mpsc::SyncSender<Result<(), AttachError>>,
    end: &mpsc::SyncSender<bool>,
) {
    let Recruit {
        hba,
        host,
        line,
        side,
        vectors: (mine, count),
    } = recruit;
    let others = line.team.others().cloned().collect();
    let front = Box::new(Behind::new(side, line.team.first().clone()));
    let vectors = Vectors {
        mine: mine.iter().map(|(vector, fd)| (*vector, fd)).collect(),
        count,
    };
    let worker = pinning::keep_on(line.team.cpu())
        .map_err(AttachError::io("keeping a worker on its CPU"))
        .and_then(|()| {
            Worker::new(front, host, line, &vectors, stop)
                .map_err(AttachError::io("setting up io_uring"))
        });
    let mut worker = match worker {
        Ok(worker) => worker,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    // Made after the worker, so that a panic drops it before.
    let farewell = Farewell(others);
    let _ = started.send(Ok(()));
    if let Err(failure) = worker.run() {
        tracing::error!(hba = &*hba, "a worker of the HBA has failed: {failure}");
    }
    drop(farewell);
    let (unfinished, line) = worker.close();
    let _ = end.send(unfinished.is_some());
    if let Some(io) = unfinished {
        tracing::error!(
            hba = &*hba,
            requests = io.unfinished(),
            "a disk does not finish what was begun; the HBA is not attached again before it has"
        );
        io.drain();
        tracing::info!(hba = &*hba, "the disk has finished");
    }
    drop(line);
}
