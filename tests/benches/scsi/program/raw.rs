//! The limit of a file: io_uring on it, with no virtqueue in between.
#![expect(
    unsafe_code,
    reason = "a read is given to the kernel as a pointer, and registered buffers likewise"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::cpu::{self, Time};
use super::error::{Context, Error, Result};
use super::histogram::Histogram;
use super::load::Load;
use super::measure::Measured;
use super::memory::Memory;
use super::slots::Operation;
use super::source::Source;

/// A file, and as many buffers as there are reads at once.
struct Reads {
    // Before the buffers: the kernel lets go of them first.
    ring: IoUring,
    buffers: Memory,
    source: Source,
    block_bytes: u32,
}

/// Reads blocks of `file` at random, `load.depth` of them at once, past the page cache.
///
/// # Errors
/// The file cannot be read so.
pub fn measure(file: &Path, load: &Load) -> Result<Measured> {
    let reading = || format!("read {} by io_uring", file.display());
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(file)
        .doing(reading())?;
    let mut reads = Reads::new(&opened, load).doing(reading())?;
    for slot in 0..load.depth {
        reads.push(slot).doing(reading())?;
    }
    let mut latencies = Histogram::new();
    let mut since = vec![Instant::now(); usize::from(load.depth)];
    let warm = Instant::now() + load.warm_up();
    let (mut begin, mut requests) = (None, 0u64);
    loop {
        // It takes no more than this to see completions that the kernel defers.
        reads.ring.submit_and_wait(1).doing(reading())?;
        let now = Instant::now();
        if begin.is_none() && now >= warm {
            latencies.clear();
            begin = Some((now, own_time()));
            requests = 0;
        }
        if let Some((begin, cpu)) = begin
            && now - begin >= load.duration()
        {
            reads.drain(load.depth).doing(reading())?;
            let end = own_time().zip(cpu);
            return Ok(Measured {
                requests,
                elapsed: now - begin,
                latencies,
                cpu: end.map(|(end, begin)| end.taken.saturating_sub(begin.taken)),
                waited: end.map_or(Duration::ZERO, |(end, begin)| {
                    end.waited.saturating_sub(begin.waited)
                }),
                kicks: 0,
                sleeps: 0,
            });
        }
        let done: Vec<cqueue::Entry> = reads.ring.completion().collect();
        for completion in done {
            if u32::try_from(completion.result()) != Ok(load.block_bytes) {
                return Err(Error::Request {
                    operation: Operation::Read,
                    block: 0,
                    answer: format!("io_uring gave {}", completion.result()),
                });
            }
            let slot = u16::try_from(completion.user_data()).expect("as pushed");
            let started = &mut since[usize::from(slot)];
            latencies.record(now - *started);
            *started = now;
            requests += 1;
            reads.push(slot).doing(reading())?;
        }
    }
}

fn own_time() -> Option<Time> {
    cpu::time(std::process::id())
}

impl Reads {
    fn new(file: &File, load: &Load) -> io::Result<Self> {
        let depth = u32::from(load.depth);
        let ring = IoUring::<squeue::Entry, cqueue::Entry>::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(depth.next_power_of_two())?;
        let block = u64::from(load.block_bytes);
        let buffers = Memory::new(block.next_multiple_of(4096) * u64::from(depth))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let all = libc::iovec {
            iov_base: buffers.start().cast(),
            iov_len: usize::try_from(buffers.len()).map_err(io::Error::other)?,
        };
        // SAFETY: `buffers` is mapped for as long as the ring is there: both are of one value,
        // where the ring is dropped first.
        unsafe { ring.submitter().register_buffers(&[all])? };
        Ok(Self {
            ring,
            buffers,
            source: Source::new(1, load, file.metadata()?.len() / block, None),
            block_bytes: load.block_bytes,
        })
    }

    /// Puts a read into the submission queue, for the buffer of `slot`.
    fn push(&mut self, slot: u16) -> io::Result<()> {
        let block = u64::from(self.block_bytes);
        let at = block.next_multiple_of(4096) * u64::from(slot);
        assert!(at + block <= self.buffers.len(), "a buffer for each slot");
        let offset = usize::try_from(at).map_err(io::Error::other)?;
        let next = self.source.next(false);
        let (_, from) = next.expect("there is always one where nothing is checked");
        let buffer = self.buffers.start().wrapping_add(offset);
        let read = opcode::ReadFixed::new(types::Fixed(0), buffer, self.block_bytes, 0)
            .offset(from * block)
            .build()
            .user_data(u64::from(slot));
        // SAFETY: the buffer is in registered memory, by the assertion, and nobody but the
        // kernel touches it.
        let pushed = unsafe { self.ring.submission().push(&read) };
        pushed.map_err(io::Error::other)
    }

    /// Waits for what is under way.
    fn drain(&mut self, depth: u16) -> io::Result<()> {
        self.ring.submit_and_wait(usize::from(depth)).map(drop)
    }
}
