//! Disks without a file: one that is nothing, and one in memory, both for measuring.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{Disk, DiskError, Extent, Geometry, Op, OpenFile, Reply};
use crate::memory::{Mapping, Segments};

/// Bytes that are compared or changed at a time.
const CHUNK: usize = 64 << 10;

/// The geometry of a disk of `size` bytes; `None` if those are no whole blocks.
fn geometry(size: u64, block_size: u32, read_only: bool) -> Option<Geometry> {
    let block = u64::from(block_size);
    (size > 0 && size.is_multiple_of(block)).then_some(Geometry {
        block_size,
        blocks: size / block,
        physical_block_size: block_size,
        read_only,
    })
}

/// What is the same for both.
fn check(geometry: &Geometry, op: &Op) -> Result<(), DiskError> {
    if geometry.read_only && op.changes_blocks() {
        return Err(DiskError::ReadOnly);
    }
    Ok(())
}

/// Everything from `offset` on is allocated.
fn allocated(geometry: &Geometry, offset: u64) -> Reply {
    let end = geometry.blocks * u64::from(geometry.block_size);
    Reply::Allocation(vec![Extent {
        len: end - offset,
        allocated: true,
    }])
}

/// A disk that loses what is written, and leaves the buffer of a read as it is.
#[derive(Debug)]
pub struct NullDisk(Geometry);

impl NullDisk {
    /// A disk of `size` bytes; `None` if those are no whole blocks.
    pub fn new(size: u64, block_size: u32, read_only: bool) -> Option<Self> {
        geometry(size, block_size, read_only).map(Self)
    }
}

impl Disk for NullDisk {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn answers_at_once(&self) -> bool {
        true
    }

    fn at_once(&self, op: &Op, _: Option<&Segments>) -> Option<Result<Reply, DiskError>> {
        Some(check(&self.0, op).map(|()| match *op {
            Op::Allocation { offset, .. } => allocated(&self.0, offset),
            _ => Reply::Done,
        }))
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Err(DiskError::Unsupported)
    }
}

/// A disk in memory that is gone with it.
#[derive(Debug)]
pub struct RamDisk {
    geometry: Geometry,
    /// What changes blocks has it alone: HBAs that share the disk work on threads of their own.
    memory: RwLock<Mapping>,
}

impl RamDisk {
    /// A disk of `size` zeros, which take memory when they are written; `None` if those are no
    /// whole blocks.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) and mmap(2) report.
    pub fn new(size: u64, block_size: u32, read_only: bool) -> io::Result<Option<Self>> {
        let Some(geometry) = geometry(size, block_size, read_only) else {
            return Ok(None);
        };
        let file = File::from(memfd_create("ram-disk", MemfdFlags::CLOEXEC)?);
        file.set_len(size)?;
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let mapping = Mapping::new(file.as_fd(), 0, len, None)?;
        Ok(Some(Self {
            geometry,
            memory: RwLock::new(mapping),
        }))
    }

    fn carry_out(&self, op: &Op, data: Option<&Segments>) -> Result<Reply, DiskError> {
        check(&self.geometry, op)?;
        let memory = || self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let alone = || self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let data = || data.ok_or(DiskError::OutOfRange);
        let block = usize::try_from(self.geometry.block_size).map_err(|_| DiskError::OutOfRange)?;
        match *op {
            Op::Read { offset, len } => copy_out(&memory(), index(offset)?, data()?, len),
            Op::Write { offset, len, .. } | Op::WriteVerify { offset, len } => {
                copy_in(&alone(), index(offset)?, data()?, 0, len)
            }
            Op::WriteSame { offset, len, .. } => {
                let (memory, data) = (alone(), data()?);
                let end = index(offset)? + index(len)?;
                for at in (index(offset)?..end).step_by(block) {
                    copy_in(&memory, at, data, 0, block)?;
                }
                Ok(())
            }
            Op::Compare { offset, len, same } => {
                let period = same.then_some(block);
                compare(&memory(), index(offset)?, data()?, index(len)?, period)
            }
            Op::CompareAndWrite { offset, len, .. } => {
                let (memory, data) = (alone(), data()?);
                compare(&memory, index(offset)?, data, len, None)?;
                copy_in(&memory, index(offset)?, data, len, len)
            }
            Op::Or { offset, len, .. } => or(&alone(), index(offset)?, data()?, len),
            Op::Zero { offset, len, .. } => zero(&alone(), index(offset)?, index(len)?),
            Op::Allocation { offset, .. } => return Ok(allocated(&self.geometry, offset)),
            // Memory can be read.
            Op::Check { .. } | Op::Mend { .. } | Op::Prefetch { .. } | Op::Flush | Op::Barrier => {
                Ok(())
            }
            // It has nobody who could be told, or who keeps others away.
            Op::Copy { .. } | Op::Watch(_) | Op::Unmap { .. } | Op::Protected(_) => {
                Err(DiskError::Unsupported)
            }
        }?;
        Ok(Reply::Done)
    }
}

impl Disk for RamDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn answers_at_once(&self) -> bool {
        true
    }

    fn at_once(&self, op: &Op, data: Option<&Segments>) -> Option<Result<Reply, DiskError>> {
        Some(self.carry_out(op, data))
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Err(DiskError::Unsupported)
    }
}

/// A place in memory; what is inside the disk has one that is a usize.
fn index(offset: u64) -> Result<usize, DiskError> {
    usize::try_from(offset).map_err(|_| DiskError::OutOfRange)
}

fn copy_out(from: &Mapping, at: usize, to: &Segments, len: usize) -> Result<(), DiskError> {
    let slice = from.slice(at as u64, len).ok_or(DiskError::OutOfRange)?;
    if to.write_from(0, slice) < len {
        return Err(DiskError::OutOfRange);
    }
    Ok(())
}

/// Copies `len` bytes from byte `skip` of the buffer.
fn copy_in(
    to: &Mapping,
    at: usize,
    from: &Segments,
    skip: usize,
    len: usize,
) -> Result<(), DiskError> {
    let slice = to.slice(at as u64, len).ok_or(DiskError::OutOfRange)?;
    if from.read_into(skip, slice) < len {
        return Err(DiskError::OutOfRange);
    }
    Ok(())
}

/// Compares `len` bytes with the buffer, or with its first `period` bytes again and again.
fn compare(
    memory: &Mapping,
    start: usize,
    data: &Segments,
    len: usize,
    period: Option<usize>,
) -> Result<(), DiskError> {
    let step = period.unwrap_or(CHUNK);
    let (mut ours, mut theirs) = (vec![0; step], vec![0; step]);
    for at in (0..len).step_by(step) {
        let now = step.min(len - at);
        memory.read(start + at, &mut ours[..now]);
        data.read_at(if period.is_some() { 0 } else { at }, &mut theirs[..now]);
        let mut pairs = ours[..now].iter().zip(&theirs[..now]);
        if let Some(different) = pairs.position(|(ours, theirs)| ours != theirs) {
            let at = (at + different) as u64;
            return Err(DiskError::Miscompare { at });
        }
    }
    Ok(())
}

fn or(memory: &Mapping, start: usize, data: &Segments, len: usize) -> Result<(), DiskError> {
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    for at in (0..len).step_by(CHUNK) {
        let now = CHUNK.min(len - at);
        memory.read(start + at, &mut ours[..now]);
        data.read_at(at, &mut theirs[..now]);
        for (ours, theirs) in ours.iter_mut().zip(&theirs[..now]) {
            *ours |= theirs;
        }
        memory.write(start + at, &ours[..now]);
    }
    Ok(())
}

fn zero(memory: &Mapping, start: usize, len: usize) -> Result<(), DiskError> {
    let zeros = vec![0; CHUNK.min(len)];
    for at in (0..len).step_by(CHUNK) {
        memory.write(start + at, &zeros[..CHUNK.min(len - at)]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Io, Request};
    use super::*;
    use crate::memory::testing::shared_memory;

    const SIZE: u64 = 1 << 20;

    /// A buffer of these bytes, in two pieces.
    fn buffer(bytes: &[u8]) -> Segments {
        let mut buffer = Segments::new(shared_memory(bytes.len().next_multiple_of(4096)));
        let half = bytes.len() / 2;
        buffer.push(0, half).unwrap();
        buffer.push(half as u64, bytes.len() - half).unwrap();
        assert_eq!(buffer.write_at(0, bytes), bytes.len());
        buffer
    }

    fn bytes_of(buffer: &Segments) -> Vec<u8> {
        let mut bytes = vec![0; buffer.len()];
        buffer.read_at(0, &mut bytes);
        bytes
    }

    /// How `op` ends on the disk, by the loop that workers use.
    fn run(disk: &Arc<dyn Disk>, op: Op, data: Option<&Segments>) -> Result<Reply, DiskError> {
        let mut io = Io::new().unwrap();
        let data = data.cloned();
        io.submit(disk, Request { tag: 5, op, data });
        let mut events = Vec::new();
        io.wait(None, &mut events).unwrap();
        match events.pop() {
            Some(Event::Done { tag: 5, result }) if events.is_empty() => result,
            other => panic!("{other:?}"),
        }
    }

    fn ram() -> Arc<dyn Disk> {
        Arc::new(RamDisk::new(SIZE, 512, false).unwrap().unwrap())
    }

    const fn write(offset: u64, len: usize) -> Op {
        Op::Write {
            offset,
            len,
            fua: true,
            atomic: false,
        }
    }

    fn block_at(disk: &Arc<dyn Disk>, offset: u64) -> Vec<u8> {
        let data = buffer(&[0xee; 512]);
        run(disk, Op::Read { offset, len: 512 }, Some(&data)).unwrap();
        bytes_of(&data)
    }

    #[test]
    fn a_ram_disk_keeps_what_is_written() {
        let disk = ram();
        let text: Vec<u8> = (0..1024u16).flat_map(u16::to_le_bytes).take(1024).collect();
        run(&disk, write(512, 1024), Some(&buffer(&text))).unwrap();
        assert_eq!(block_at(&disk, 0), [0; 512]);
        assert_eq!(block_at(&disk, 512), text[..512]);
        assert_eq!(block_at(&disk, 1024), text[512..]);
        run(&disk, Op::Flush, None).unwrap();
    }

    #[test]
    fn a_ram_disk_compares_and_combines_as_a_disk_does() {
        let disk = ram();
        run(&disk, write(0, 512), Some(&buffer(&[0x0f; 512]))).unwrap();
        let mut pair = vec![0x0f; 512];
        pair.extend([0xf0; 512]);
        let op = Op::CompareAndWrite {
            offset: 0,
            len: 512,
            fua: false,
        };
        run(&disk, op.clone(), Some(&buffer(&pair))).unwrap();
        assert_eq!(block_at(&disk, 0), [0xf0; 512]);
        pair[..512].fill(0xf0);
        pair[300] = 1;
        let error = run(&disk, op, Some(&buffer(&pair)));
        assert_eq!(error, Err(DiskError::Miscompare { at: 300 }));

        let or = Op::Or {
            offset: 0,
            len: 512,
            fua: false,
        };
        run(&disk, or, Some(&buffer(&[0x0f; 512]))).unwrap();
        assert_eq!(block_at(&disk, 0), [0xff; 512]);
        let same = Op::WriteSame {
            offset: 512,
            len: 1024,
            fua: false,
        };
        run(&disk, same, Some(&buffer(&[3; 512]))).unwrap();
        assert_eq!(block_at(&disk, 1024), [3; 512]);
        let compare = Op::Compare {
            offset: 0,
            len: 1024,
            same: true,
        };
        let error = run(&disk, compare, Some(&buffer(&[0xff; 512])));
        assert_eq!(error, Err(DiskError::Miscompare { at: 512 }));
        let zero = Op::Zero {
            offset: 0,
            len: 1024,
            unmap: true,
            fua: false,
        };
        run(&disk, zero, None).unwrap();
        assert_eq!(block_at(&disk, 512), [0; 512]);
        assert_eq!(block_at(&disk, 1024), [3; 512]);
    }

    #[test]
    fn a_null_disk_leaves_the_buffer_of_a_read_alone() {
        let disk: Arc<dyn Disk> = Arc::new(NullDisk::new(SIZE, 512, false).unwrap());
        run(&disk, write(0, 512), Some(&buffer(&[1; 512]))).unwrap();
        assert_eq!(block_at(&disk, 0), [0xee; 512]);
        let question = Op::Allocation {
            offset: 512,
            limit: 9,
        };
        let all = Extent {
            len: SIZE - 512,
            allocated: true,
        };
        assert_eq!(run(&disk, question, None), Ok(Reply::Allocation(vec![all])));
    }

    #[test]
    fn what_is_outside_or_read_only_is_refused_as_on_any_disk() {
        for disk in [
            Arc::new(NullDisk::new(SIZE, 512, true).unwrap()) as Arc<dyn Disk>,
            Arc::new(RamDisk::new(SIZE, 512, true).unwrap().unwrap()),
        ] {
            let data = buffer(&[0; 1024]);
            let result = run(&disk, write(0, 512), Some(&data));
            assert_eq!(result, Err(DiskError::ReadOnly));
            let beyond = Op::Read {
                offset: SIZE - 512,
                len: 1024,
            };
            assert_eq!(run(&disk, beyond, Some(&data)), Err(DiskError::OutOfRange));
            let short = Op::Read {
                offset: 0,
                len: 2048,
            };
            assert_eq!(run(&disk, short, Some(&data)), Err(DiskError::OutOfRange));
        }
        assert!(NullDisk::new(1000, 512, false).is_none());
        assert!(NullDisk::new(0, 512, false).is_none());
        assert!(RamDisk::new(4096 + 512, 4096, false).unwrap().is_none());
    }
}
