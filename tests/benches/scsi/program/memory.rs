//! The driver's memory: one memory file, which the server maps too.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use appliance::memory::Mapping;
use tests::world::memfd::memfd;
use vm_memory::{AtomicAccess, Bytes};

/// Alignment of what is handed out.
const PAGE: u64 = 4096;

/// Memory that starts at guest address 0, so that offsets are addresses.
pub struct Memory {
    file: File,
    mapping: Mapping,
}

impl Memory {
    /// `len` bytes, sealed like QEMU's.
    pub fn new(len: u64) -> io::Result<Self> {
        let file = memfd(len, true)?;
        let bytes = usize::try_from(len).map_err(io::Error::other)?;
        let mapping = Mapping::new(file.as_fd(), 0, bytes, None)?;
        Ok(Self { file, mapping })
    }

    /// The memory file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of it.
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The address in this process of guest address `at`, which vhost-user calls a user address.
    pub fn user_address(&self, at: u64) -> u64 {
        self.mapping.as_ptr().addr() as u64 + at
    }

    /// The address in this process of its first byte.
    pub fn start(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Loads a little-endian word.
    ///
    /// # Panics
    /// If it is misaligned or not in the memory: addresses are our own.
    #[inline]
    pub fn load<T: AtomicAccess>(&self, at: u64, order: Ordering) -> T {
        let slice = self.mapping.slice(at, size_of::<T>());
        slice
            .expect("in the memory")
            .load(0, order)
            .expect("aligned")
    }

    /// Stores a little-endian word.
    ///
    /// # Panics
    /// As [`Self::load`].
    #[inline]
    pub fn store<T: AtomicAccess>(&self, at: u64, value: T, order: Ordering) {
        let slice = self.mapping.slice(at, size_of::<T>());
        let stored = slice.expect("in the memory").store(value, 0, order);
        stored.expect("aligned");
    }

    /// Copies the bytes at `at` into `to`.
    ///
    /// # Panics
    /// If they are not in the memory.
    pub fn read(&self, at: u64, to: &mut [u8]) {
        self.mapping.read(offset(at), to);
    }

    /// Copies `from` to `at`.
    ///
    /// # Panics
    /// If it does not fit there.
    #[inline]
    pub fn write(&self, at: u64, from: &[u8]) {
        self.mapping.write(offset(at), from);
    }
}

fn offset(at: u64) -> usize {
    usize::try_from(at).expect("64 bits")
}

/// Hands out whole pages, one after the other.
pub struct Pages {
    next: u64,
}

impl Pages {
    /// The first page stays unused: a null address is a mistake that servers should see.
    pub fn new() -> Self {
        Self { next: PAGE }
    }

    /// The address of `len` bytes.
    pub fn take(&mut self, len: u64) -> u64 {
        let at = self.next;
        self.next += len.next_multiple_of(PAGE);
        at
    }

    /// How long a memory has to be that has all that was taken.
    pub fn total(&self) -> u64 {
        self.next
    }
}
