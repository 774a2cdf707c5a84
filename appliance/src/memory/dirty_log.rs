//! The bitmap in which a frontend wants to see which pages of its tenant were written to.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::Mapping;

/// Bytes of guest memory that one bit is for (vhost-user: a page of 4096 bytes).
const PAGE: u64 = 4096;
/// Bits of a word, which is changed as a whole.
const WORD_BITS: u64 = 16;
/// Where a log ends in its file at most, in bytes: it is mapped from the start of that, and to make
/// one as long as it likes costs a frontend nothing. As a log it is for addresses up to 128 TiB.
const MAX_LOG: u64 = 4 << 30;

/// See the module's text. The frontend clears what it has seen while we set more.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    /// Where the first bit is.
    offset: usize,
    /// Bits.
    pages: u64,
}

impl DirtyLog {
    /// The log of `len` bytes from `offset` of `file`, whose length must not become shorter.
    ///
    /// # Errors
    /// `InvalidInput` if it does not lie there, is empty, ends beyond 4 GiB or is not made of whole
    /// words of 8 bytes; otherwise what mmap(2) or fstat(2) report.
    pub fn new(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let end = offset.checked_add(len).ok_or_else(invalid)?;
        let whole = offset.is_multiple_of(8) && len.is_multiple_of(8);
        if len == 0 || end > MAX_LOG || !whole || end > file.metadata()?.len() {
            return Err(invalid());
        }
        let size = usize::try_from(end).map_err(|_| invalid())?;
        Ok(Self {
            mapping: Mapping::new(file.as_fd(), 0, size, None)?,
            offset: usize::try_from(offset).map_err(|_| invalid())?,
            pages: len * 8,
        })
    }

    /// Marks the pages of the `len` bytes at guest address `address`, which were written to
    /// before. Those for which the log has no bit are left out: its frontend does not want them.
    pub fn mark(&self, address: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        let last = address.saturating_add(last) / PAGE;
        for page in address / PAGE..=last.min(self.pages - 1) {
            let (word, bit) = (page / WORD_BITS, page % WORD_BITS);
            // The log ends inside the mapping, and `page` is in it.
            let Ok(word) = usize::try_from(word) else {
                return;
            };
            let word = self.mapping.atomic_u16(self.offset + 2 * word);
            // Bit n of a byte is for its n-th page, so of a word in the order of its bytes.
            word.fetch_or((1_u16 << bit).to_le(), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn file(len: u64) -> File {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file
    }

    fn bytes(file: &File, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    #[test]
    fn a_bit_is_a_page_and_the_first_is_the_lowest_of_its_byte() {
        let file = file(4096);
        let log = DirtyLog::new(&file, 8, 8).unwrap();
        log.mark(0, 1);
        log.mark(9 * 4096 + 4095, 2);
        log.mark(63 * 4096, 4096);
        log.mark(5, 0);
        let expected = [0x01, 0x06, 0, 0, 0, 0, 0, 0x80];
        assert_eq!(bytes(&file, 8, 8), expected);
        assert_eq!(bytes(&file, 0, 8), [0; 8]);
    }

    #[test]
    fn pages_beyond_the_log_are_left_out() {
        let file = file(4096);
        let log = DirtyLog::new(&file, 0, 8).unwrap();
        log.mark(64 * 4096, 4096);
        log.mark(63 * 4096, 8 * 4096);
        log.mark(u64::MAX - 1, 100);
        let mut expected = [0; 16];
        expected[7] = 0x80;
        assert_eq!(bytes(&file, 0, 16), expected);
    }

    #[test]
    fn a_log_far_out_in_a_long_file_is_refused() {
        let file = file(1 << 40);
        assert!(DirtyLog::new(&file, MAX_LOG - 8, 8).is_ok());
        let refused = DirtyLog::new(&file, MAX_LOG, 8).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_log_that_does_not_lie_in_its_file_is_refused() {
        let file = file(4096);
        for (offset, len) in [
            (0, 0),
            (0, 4104),
            (4096, 8),
            (4, 8),
            (0, 12),
            (u64::MAX - 7, 16),
            (0, u64::MAX),
        ] {
            let refused = DirtyLog::new(&file, offset, len).unwrap_err();
            assert_eq!(
                refused.kind(),
                io::ErrorKind::InvalidInput,
                "{offset} {len}"
            );
        }
        assert!(DirtyLog::new(&file, 4088, 8).is_ok());
    }
}
