//! The bitmap in which a frontend wants to see which pages of its tenant were written to.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::Mapping;

/// Bytes of guest memory that one bit is for (vhost-user: a page of 4096 bytes).
const PAGE: u64 = 4096;
/// Bits of a word, which is changed as a whole: of a log that has 8 bytes as its unit.
const WORD_BITS: u64 = 64;
/// Where a log ends in its file at most, in bytes: it is mapped from the start of that, and to make
/// one as long as it likes costs a frontend nothing. As a log it is for addresses up to 16 TiB.
const MAX_LOG: u64 = 512 << 20;

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
    /// `InvalidInput` if it does not lie there, is empty, ends beyond 512 MiB or is not made of
    /// whole words of 8 bytes; otherwise what mmap(2) or fstat(2) report.
    pub fn new(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let refused = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let invalid = || refused(format!("{len} bytes at {offset:#x} are no log in its file"));
        let end = offset.checked_add(len).ok_or_else(invalid)?;
        let whole = offset.is_multiple_of(8) && len.is_multiple_of(8);
        if len == 0 || !whole || end > file.metadata()?.len() {
            return Err(invalid());
        }
        if end > MAX_LOG {
            return Err(refused(format!(
                "it ends {end} bytes into its file, and {} MiB are the most (guest addresses up to \
                 16 TiB)",
                MAX_LOG >> 20
            )));
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
        let first = address / PAGE;
        let last = (address.saturating_add(last) / PAGE).min(self.pages - 1);
        if first > last {
            return;
        }
        let (first_word, last_word) = (first / WORD_BITS, last / WORD_BITS);
        for word in first_word..=last_word {
            let mut bits = u64::MAX;
            if word == first_word {
                bits &= u64::MAX << (first % WORD_BITS);
            }
            if word == last_word {
                bits &= u64::MAX >> (WORD_BITS - 1 - last % WORD_BITS);
            }
            // The log ends inside the mapping, and `word` is in it.
            let Ok(word) = usize::try_from(word) else {
                return;
            };
            let word = self.mapping.atomic_u64(self.offset + 8 * word);
            // Bit n of a byte is for its n-th page, so of a word in the order of its bytes.
            word.fetch_or(bits.to_le(), Ordering::SeqCst);
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
    fn a_long_range_is_marked_from_its_first_page_to_its_last_and_no_further() {
        let file = file(4096);
        let log = DirtyLog::new(&file, 8, 32).unwrap();
        // Pages 60 to 200.
        log.mark(60 * 4096 + 5, 140 * 4096);
        let mut expected = [0; 48];
        expected[15] = 0xf0;
        expected[16..33].fill(0xff);
        expected[33] = 0x01;
        assert_eq!(bytes(&file, 0, 48), expected);
        // One word alone.
        log.mark(250 * 4096, 3 * 4096);
        assert_eq!(bytes(&file, 8 + 31, 1), [0x1c]);
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
        assert!(DirtyLog::new(&file, (512 << 20) - 8, 8).is_ok());
        let refused = DirtyLog::new(&file, 512 << 20, 8).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        assert!(refused.to_string().contains("512 MiB"), "{refused}");
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
