//! Memory that the device reads and writes.
//!
//! It is a huge page: contiguous in guest-physical addresses, and the kernel does not move it.
//! A tenant has no IOMMU, so those are the addresses that the device uses.

use std::{
    cell::Cell,
    fs::{self, File},
    os::unix::fs::FileExt,
    sync::atomic::Ordering,
};

use tests::vm::error::FileContext;
use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory, VolatileSlice};

use crate::error::{Error, Result};

const FREE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const PAGEMAP: &str = "/proc/self/pagemap";
/// Bytes of the pages that the pagemap counts in.
const SMALL_PAGE: u64 = 4096;
/// Where pieces begin; as much as any structure of virtio asks for.
const ALIGNMENT: usize = 64;
/// What is put where nothing may be written any more. No disk has it: not zero, and not
/// [`PATTERN`](crate::slow_unit::PATTERN).
pub const CANARY: u8 = 0xc5;

/// A huge page; each piece of it is given out once.
#[derive(Debug)]
pub struct Dma {
    region: MmapRegion,
    address: u64,
    taken: Cell<usize>,
}

/// A piece of a [`Dma`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub offset: usize,
    /// How long it is.
    pub len: usize,
}

impl Dma {
    /// Bytes of it.
    pub const LEN: usize = 2 << 20;

    /// A huge page of zeros.
    ///
    /// # Errors
    /// The kernel has none, or does not tell its address.
    pub fn new() -> Result<Self> {
        if read_number(FREE_PAGES)? == 0 {
            let more = read_number(PAGES)? + 1;
            fs::write(PAGES, more.to_string()).file("write", PAGES)?;
        }
        let region = MmapRegion::build(
            None,
            Self::LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_HUGETLB
                | libc::MAP_HUGE_2MB
                | libc::MAP_LOCKED
                | libc::MAP_POPULATE,
        );
        let region = region.map_err(|source| Error::Map {
            what: "a huge page",
            source,
        })?;
        let dma = Self {
            address: physical_address(region.as_ptr() as u64)?,
            region,
            taken: Cell::new(0),
        };
        dma.fill(dma.all(), 0);
        Ok(dma)
    }

    /// The whole of it.
    pub fn all(&self) -> Span {
        Span {
            offset: 0,
            len: Self::LEN,
        }
    }

    /// A piece that nobody had before.
    ///
    /// # Panics
    /// If the page is used up: the checks take less.
    pub fn take(&self, len: usize) -> Span {
        let offset = self.taken.get().next_multiple_of(ALIGNMENT);
        assert!(offset + len <= Self::LEN, "the huge page is used up");
        self.taken.set(offset + len);
        Span { offset, len }
    }

    /// The guest-physical address of a piece.
    pub fn address(&self, span: Span) -> u64 {
        self.address + span.offset as u64
    }

    /// The bytes of a piece.
    pub fn read(&self, span: Span) -> Vec<u8> {
        let mut bytes = vec![0; span.len];
        let copied = self.slice(span).read_slice(&mut bytes, 0);
        copied.expect("as long as the piece");
        bytes
    }

    /// Writes `bytes` to the start of a piece.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, span: Span, bytes: &[u8]) {
        let copied = self.slice(span).write_slice(bytes, 0);
        copied.expect("bytes that fit the piece");
    }

    /// Fills a piece with `byte`.
    pub fn fill(&self, span: Span, byte: u8) {
        self.write(span, &vec![byte; span.len]);
    }

    /// Reads a number that the device may write at any time; what it wrote before is seen, too.
    ///
    /// # Panics
    /// If there is none at `at`.
    pub fn load<T: AtomicAccess>(&self, span: Span, at: usize) -> T {
        let number = self.slice(span).load(at, Ordering::Acquire);
        number.expect("an aligned number in the piece")
    }

    /// Writes a number after everything that was written before.
    ///
    /// # Panics
    /// If there is no room for it at `at`.
    pub fn store<T: AtomicAccess>(&self, span: Span, at: usize, number: T) {
        let stored = self.slice(span).store(number, at, Ordering::Release);
        stored.expect("an aligned number in the piece");
    }

    /// Says where in pieces that were filled with [`CANARY`] something else stands.
    ///
    /// # Errors
    /// The first such place; `what` and `event` are for the reader.
    pub fn expect_untouched(
        &self,
        spans: &[Span],
        what: &'static str,
        event: &'static str,
    ) -> Result<()> {
        for span in spans {
            let bytes = self.read(*span);
            if let Some(at) = bytes.iter().position(|byte| *byte != CANARY) {
                return Err(Error::Touched {
                    what,
                    offset: span.offset + at,
                    event,
                    byte: bytes[at],
                });
            }
        }
        Ok(())
    }

    fn slice(&self, span: Span) -> VolatileSlice<'_> {
        let slice = self.region.get_slice(span.offset, span.len);
        slice.expect("a piece of this page")
    }
}

fn read_number(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).file("read", path)?;
    text.trim()
        .parse()
        .map_err(|_| Error::Wrong(format!("{path} holds no number, but `{}`", text.trim())))
}

/// The guest-physical address of the page that is mapped at `address` (the kernel's
/// admin-guide/mm/pagemap: one word a page, bit 63 present, bits 0-54 the frame).
fn physical_address(address: u64) -> Result<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;

    let mut entry = [0; 8];
    let pagemap = File::open(PAGEMAP).file("open", PAGEMAP)?;
    let at = address / SMALL_PAGE * 8;
    pagemap
        .read_exact_at(&mut entry, at)
        .file("read", PAGEMAP)?;
    let entry = u64::from_le_bytes(entry);
    let frame = entry & FRAME;
    if entry & PRESENT == 0 || frame == 0 {
        let problem = format!("{PAGEMAP} does not show where a huge page is; run this as root");
        return Err(Error::Wrong(problem));
    }
    Ok(frame * SMALL_PAGE)
}
