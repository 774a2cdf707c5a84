//! A server at a socket, driven: from the connection to the figures.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::cpu::Time;
use super::error::{Context, Error, Result};
use super::floor::Floor;
use super::load::Load;
use super::measure::{Measured, Served, measure};
use super::rig::Rig;
use super::ring::Ring;
use super::session::{Session, Watch, Wishes};
use super::slots::{Kind, SECTOR, Slots};
use super::worker::Board;

/// How long a server may take for a command before the load.
const PATIENCE: Duration = Duration::from_secs(10);
/// Unit attentions that a new initiator may meet.
const ATTENTIONS: usize = 8;

/// Adds to what a server's process tells, whether its socket was closed.
struct Connected<'a> {
    watch: Watch,
    process: &'a mut dyn Served,
}

impl Served for Connected<'_> {
    fn cpu(&self) -> Option<Time> {
        self.process.cpu()
    }

    fn gone(&mut self) -> Option<String> {
        let hung_up = self.watch.hung_up();
        let ended = self.process.gone();
        if hung_up && ended.is_none() {
            // A process that ends closes its socket a moment before.
            thread::sleep(Duration::from_millis(50));
            return Some(self.process.gone().unwrap_or_default());
        }
        ended
    }
}

/// Drives the server at `socket`.
///
/// # Errors
/// It is not there, or did something wrong.
pub fn drive(socket: &Path, kind: Kind, load: &Load, process: &mut dyn Served) -> Result<Measured> {
    load.check()?;
    let rig = Rig::new(kind, load)?;
    let wishes = Wishes {
        kind,
        queues: load.queues,
        indirect: load.indirect,
        event_idx: load.event_idx,
    };
    let mut session = Session::open(socket, wishes)?;
    session.start(&rig.memory, &rig.vrings())?;
    let watch = session.watch()?;
    let mut server = Connected { watch, process };
    let capacity = match kind {
        Kind::Blk => session.blk_capacity()?,
        Kind::Scsi => Probe::new(&rig, load, &mut server).capacity()?,
    };
    let boards = boards(load);
    let workers = rig.workers(load, capacity, &boards)?;
    let measured = measure(workers, &boards, load, &mut server)?;
    session.stop(rig.queues.len())?;
    Ok(measured)
}

/// What the load generator can do at most, with requests of `kind`.
///
/// # Errors
/// The machine has no threads or memory left.
pub fn floor(kind: Kind, load: &Load) -> Result<Measured> {
    load.check()?;
    let rig = Rig::in_process(kind, load)?;
    let boards = boards(load);
    let workers = rig.workers(load, 1 << 30, &boards)?;
    let mut floor = Floor::start(&rig, load.polled)?;
    measure(workers, &boards, load, &mut floor)
}

fn boards(load: &Load) -> Vec<Arc<Board>> {
    (0..load.queues).map(|_| Arc::new(Board::new())).collect()
}

/// A few SCSI commands before the load, on the first queue.
struct Probe<'a> {
    ring: Ring,
    slots: Slots,
    rig: &'a Rig,
    server: &'a mut dyn Served,
}

impl<'a> Probe<'a> {
    fn new(rig: &'a Rig, load: &Load, server: &'a mut dyn Served) -> Self {
        let place = rig.request_queues()[0].place;
        Self {
            ring: Ring::new(Arc::clone(&rig.memory), place, load.event_idx),
            slots: Slots::new(Arc::clone(&rig.memory), rig.layouts[0], load.lun),
            rig,
            server,
        }
    }

    /// Bytes of the LUN, once it has said all that a new initiator must hear.
    fn capacity(mut self) -> Result<u64> {
        let ready = [0; 6]; // SPC-4, TEST UNIT READY
        let mut answer = Ok(());
        for _ in 0..ATTENTIONS {
            answer = self.command(&ready, 0)?;
            if answer.is_ok() {
                break;
            }
        }
        answer.map_err(|answer| self.refused("TEST UNIT READY", answer))?;
        // SBC-4, READ CAPACITY (10): the last LBA and the block length, big-endian.
        let capacity = self.command(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8)?;
        capacity.map_err(|answer| self.refused("READ CAPACITY (10)", answer))?;
        let mut bytes = [0; 8];
        self.slots.data(0, &mut bytes);
        let [last, block] = [0, 4].map(|at| {
            let word = bytes[at..at + 4].try_into().expect("4 bytes");
            u64::from(u32::from_be_bytes(word))
        });
        if block != SECTOR {
            return Err(Error::Usage(format!(
                "the LUN has blocks of {block} bytes; the load knows 512 only"
            )));
        }
        Ok((last + 1) * block)
    }

    fn refused(&self, command: &'static str, answer: String) -> Error {
        Error::Usage(format!(
            "the server does not answer {command} as a SCSI target does: {answer}; is it \
             virtio-blk, or is the LUN another?"
        ))
    }

    /// One command, and how it was answered.
    fn command(&mut self, cdb: &[u8], len: u32) -> Result<Result<(), String>> {
        let head = self.slots.prepare_command(cdb, len);
        self.ring.unwant_calls();
        self.ring.offer(head);
        if self.ring.publish() {
            let kick = &self.rig.request_queues()[0].kick;
            kick.write(1).doing("kick the server")?;
        }
        let start = Instant::now();
        while self.ring.look()? == 0 {
            if let Some(log) = self.server.gone() {
                return Err(Error::Died { under_way: 1, log });
            }
            if start.elapsed() > PATIENCE {
                return Err(Error::Stalled {
                    after: start.elapsed(),
                    under_way: 1,
                });
            }
        }
        self.ring.take();
        Ok(self.slots.check(0))
    }
}
