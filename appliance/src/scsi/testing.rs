//! A bench for tests: hosts that see units on disks that are never read or written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use uuid::Uuid;

use super::{Address, Answer, Begun, Buffers, Host, Initiator, LogicalUnit, Port, Step, Tags};
use crate::disk::{Abilities, Atomic, Disk, DiskError, Geometry, Op, OpenFile, Reply, Thin, Usage};
use crate::memory::Segments;
use crate::memory::testing::shared_memory;

/// What a disk says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub geometry: Geometry,
    pub abilities: Abilities,
    pub usage: Option<Usage>,
}

impl Shape {
    /// A 512e disk of 2 MiB that can read and write.
    pub const PLAIN: Self = Self {
        geometry: Geometry {
            block_size: 512,
            blocks: 0x1000,
            physical_block_size: 4096,
            read_only: false,
        },
        abilities: Abilities {
            thin: None,
            atomic: None,
            optimal: None,
        },
        usage: None,
    };
    /// One that can do everything, on 100 MiB of which 30 are used.
    pub const THIN: Self = Self {
        abilities: Abilities {
            thin: Some(Thin {
                granularity: 0x1_0000,
                mapped: true,
            }),
            atomic: Some(Atomic {
                min: 4096,
                max: 0x4000,
            }),
            optimal: Some(0x10_0000),
        },
        usage: Some(Usage {
            used: 30 << 20,
            available: 70 << 20,
        }),
        ..Self::PLAIN
    };
}

/// A disk of any shape, which may change.
#[derive(Debug)]
pub struct ShapedDisk {
    shape: Mutex<Shape>,
    /// The geometry when it was looked at last.
    seen: Mutex<Geometry>,
    flushes: AtomicUsize,
}

impl ShapedDisk {
    pub fn new(shape: Shape) -> Arc<Self> {
        Arc::new(Self {
            shape: Mutex::new(shape),
            seen: Mutex::new(shape.geometry),
            flushes: AtomicUsize::new(0),
        })
    }

    pub fn change(&self, change: impl FnOnce(&mut Shape)) {
        change(&mut self.shape.lock().unwrap());
    }

    /// How often it was flushed by itself.
    pub fn flushes(&self) -> usize {
        self.flushes.load(Ordering::SeqCst)
    }
}

impl Disk for ShapedDisk {
    fn geometry(&self) -> Geometry {
        *self.seen.lock().unwrap()
    }

    fn abilities(&self) -> Abilities {
        self.shape.lock().unwrap().abilities
    }

    fn usage(&self) -> Option<Usage> {
        self.shape.lock().unwrap().usage
    }

    fn refresh(&self) -> std::io::Result<bool> {
        let now = self.shape.lock().unwrap().geometry;
        let before = std::mem::replace(&mut *self.seen.lock().unwrap(), now);
        Ok(before != now)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Err(DiskError::Gone)
    }
}

/// A unit called "root" on a disk of this shape.
pub fn unit(shape: Shape) -> LogicalUnit {
    LogicalUnit::new("root", ShapedDisk::new(shape)).unwrap()
}

/// Virtio's field for this LUN of target 0.
pub fn field(lun: u16) -> [u8; 8] {
    Address { target: 0, lun }.field()
}

/// The HBA of this number.
pub const fn initiator(number: u8) -> Initiator {
    Initiator {
        uuid: Uuid::from_bytes([number; 16]),
        number,
    }
}

/// Target 0 of HBA 1.
pub const PORT: Port = Port {
    initiator: initiator(1),
    target: 0,
};

/// An HBA.
pub struct Bench {
    pub host: Host,
}

impl Bench {
    /// One that sees a unit of this shape as LUN 0, of which it was told that it is new.
    pub fn new(shape: Shape) -> Self {
        Self::of(&Arc::new(unit(shape)))
    }

    /// One that sees this unit as LUN 0, of which it was told that it is new.
    pub fn of(unit: &Arc<LogicalUnit>) -> Self {
        let bench = Self::fresh([(0, Arc::clone(unit))]);
        assert_eq!(bench.sense(&[0])[12..14], [0x29, 0x00]);
        bench
    }

    /// One that sees these units of target 0 and was told nothing.
    pub fn fresh<const N: usize>(units: [(u16, Arc<LogicalUnit>); N]) -> Self {
        Self::fresh_hba(1, units)
    }

    /// The HBA of this number, which sees these units of target 0 and was told nothing.
    pub fn fresh_hba<const N: usize>(number: u8, units: [(u16, Arc<LogicalUnit>); N]) -> Self {
        let units = units.map(|(lun, unit)| (Address { target: 0, lun }, unit));
        Self {
            host: Host::new(initiator(number), units).unwrap(),
        }
    }

    /// The HBA of this number, which sees this unit as LUN 0, of which it was told that it is new.
    pub fn hba(number: u8, unit: &Arc<LogicalUnit>) -> Self {
        let bench = Self::fresh_hba(number, [(0, Arc::clone(unit))]);
        assert_eq!(bench.sense(&[0])[12..14], [0x29, 0x00]);
        bench
    }

    /// Starts a command to LUN 0 with these bytes as data-out and this much room for data-in.
    pub fn start(&self, cdb: &[u8], data_out: &[u8], data_in: usize) -> Step {
        self.start_at(field(0), 0, cdb, data_out, data_in)
    }

    /// The same anywhere, with any task attribute.
    pub fn start_at(
        &self,
        lun: [u8; 8],
        attribute: u8,
        cdb: &[u8],
        data_out: &[u8],
        data_in: usize,
    ) -> Step {
        let mut padded = [0; 32];
        padded[..cdb.len()].copy_from_slice(cdb);
        let mut segments = Segments::new(shared_memory(data_out.len().max(1)));
        segments.push(0, data_out.len()).unwrap();
        segments.write_at(0, data_out);
        let buffers = Buffers {
            data_out: &segments,
            data_in,
            tags: Tags::default(),
        };
        self.host.start(lun, attribute, &padded, buffers)
    }

    /// The answer to a command to LUN 0.
    pub fn answer(&self, cdb: &[u8], data_out: &[u8]) -> Answer {
        answered(self.start(cdb, data_out, 4096))
    }

    /// The answer to a command without data-out to this LUN.
    pub fn answer_at(&self, lun: u16, cdb: &[u8]) -> Answer {
        answered(self.start_at(field(lun), 0, cdb, &[], 4096))
    }

    /// Data of a command that must be GOOD.
    pub fn data(&self, cdb: &[u8]) -> Vec<u8> {
        let answer = self.answer(cdb, &[]);
        assert_eq!((answer.status, answer.sense), (0, vec![]));
        answer.data
    }

    /// Sense of a command that must fail.
    pub fn sense(&self, cdb: &[u8]) -> Vec<u8> {
        let answer = self.answer(cdb, &[]);
        assert_eq!(answer.status, 0x02);
        answer.sense
    }

    /// TEST UNIT READY: its status, and additional sense code and qualifier.
    pub fn ready(&self) -> (u8, [u8; 2]) {
        told(&self.answer(&[0], &[]))
    }

    /// The same at this LUN.
    pub fn ready_at(&self, lun: u16) -> (u8, [u8; 2]) {
        told(&self.answer_at(lun, &[0]))
    }
}

/// TEST UNIT READY was GOOD.
pub const READY: (u8, [u8; 2]) = (0, [0, 0]);

/// Status, and additional sense code and qualifier of fixed-format sense.
pub fn told(answer: &Answer) -> (u8, [u8; 2]) {
    match answer.sense.as_slice() {
        [0x70 | 0xf0, rest @ ..] => (answer.status, [rest[11], rest[12]]),
        _ => (answer.status, [0, 0]),
    }
}

/// The answer that a command has at once.
pub fn answered(step: Step) -> Answer {
    match step {
        Step::Answer(answer) => answer,
        Step::Preempt { pending, .. } => match pending.begin() {
            Begun::Answer(answer) => answer,
            Begun::Wait(_, pending) => pending.finish(Ok(Reply::Done)),
        },
        other => panic!("{other:?}"),
    }
}

/// The operation that a command starts, and the answer if it ends well.
pub fn operated(step: Step) -> (Op, Answer) {
    match step {
        Step::Disk { op, pending, .. } => (op, pending.finish(Ok(Reply::Done))),
        other => panic!("{other:?}"),
    }
}

/// A directory that goes with its test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("scsi-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
