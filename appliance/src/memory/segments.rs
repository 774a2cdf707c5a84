//! The scattered pieces of tenant memory that make up one data buffer.
#![expect(
    unsafe_code,
    reason = "copies between the pieces and our own memory happen here"
)]

use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::pieces::{Piece, Pieces};
use super::{Held, Mapping};

/// Bytes of our own through which memory goes that is neither ours nor cached.
const THROUGH: usize = 4096;

/// A data buffer in the tenant's memory: pieces in order, all inside one mapping, which they
/// keep alive.
#[derive(Debug, Clone)]
pub struct Segments {
    mapping: Held,
    /// Each was checked when it was added.
    pieces: Pieces,
    len: usize,
}

/// A piece that is not inside the mapping, or one that makes the buffer longer than an address
/// space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a buffer lies outside the tenant's memory")]
pub struct OutOfBounds;

impl Segments {
    /// An empty buffer in `mapping`, of which it takes a hold of its own.
    pub fn new(mapping: Arc<Mapping>) -> Self {
        Self::within(Held::new(mapping))
    }

    /// An empty buffer in `mapping`, sharing the hold.
    #[inline]
    pub fn within(mapping: Held) -> Self {
        Self {
            mapping,
            pieces: Pieces::default(),
            len: 0,
        }
    }

    /// Appends `len` bytes at `offset` of the mapping.
    ///
    /// # Errors
    /// [`OutOfBounds`] if they are not all there.
    #[inline]
    pub fn push(&mut self, offset: u64, len: usize) -> Result<(), OutOfBounds> {
        let offset = usize::try_from(offset).map_err(|_| OutOfBounds)?;
        if !self.mapping.has(offset, len) {
            return Err(OutOfBounds);
        }
        let total = self.len.checked_add(len).ok_or(OutOfBounds)?;
        self.pieces.push(Piece { offset, len });
        self.len = total;
        Ok(())
    }

    /// Cuts the buffer in two: `self` keeps its first `at` bytes (or all, if it has no more), the
    /// rest is returned.
    #[must_use]
    #[inline]
    pub fn split_off(&mut self, at: usize) -> Self {
        let mut rest = Self::within(self.mapping.clone());
        if at >= self.len {
            return rest;
        }
        // As drivers make them: a header in a piece of its own.
        let is_own = self.pieces.first().is_some_and(|first| first.len == at);
        let others = if is_own {
            self.pieces.split_first()
        } else {
            None
        };
        match others {
            Some(pieces) => {
                rest.pieces = pieces;
                rest.len = self.len - at;
                self.len = at;
                rest
            }
            None => self.split_inside(at, rest),
        }
    }

    /// As [`Self::split_off`], where `rest` is to be and there is something for it.
    #[inline(never)]
    fn split_inside(&mut self, at: usize, mut rest: Self) -> Self {
        let mut keep = at;
        let mut kept = Pieces::default();
        for Piece { offset, len } in self.pieces.iter().copied() {
            let first = keep.min(len);
            keep -= first;
            // Both are inside a piece that `push` checked.
            if first > 0 {
                kept.push(Piece { offset, len: first });
            }
            if first < len {
                rest.pieces.push(Piece {
                    offset: offset + first,
                    len: len - first,
                });
            }
        }
        self.pieces = kept;
        rest.len = self.len - at;
        self.len = at;
        rest
    }

    /// Appends what is in `rest`, which was cut off a buffer that this one was, too.
    ///
    /// # Panics
    /// If it is in another mapping.
    pub fn append(&mut self, rest: &Self) {
        assert_eq!(
            self.mapping.as_ptr(),
            rest.mapping.as_ptr(),
            "both are of one chain"
        );
        for piece in rest.pieces.iter() {
            self.pieces.push(*piece);
        }
        self.len += rest.len;
    }

    /// Has the CPU fetch its start, which is wanted soon.
    #[inline]
    pub fn prefetch(&self) {
        if let Some(first) = self.pieces.first() {
            self.mapping.prefetch(first.offset);
        }
    }

    /// Offset in the mapping of its first byte, if it has one.
    #[inline]
    pub fn first_offset(&self) -> Option<usize> {
        self.pieces.first().map(|piece| piece.offset)
    }

    /// Bytes in the buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Pieces that the buffer is in.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Offset in the mapping and length of each piece.
    pub fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        let pieces = self.pieces.iter();
        pieces.map(|piece| (piece.offset as u64, piece.len as u64))
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes what is in the buffer, which is empty then.
    #[must_use]
    #[inline]
    pub fn take(&mut self) -> Self {
        Self {
            mapping: self.mapping.clone(),
            pieces: std::mem::take(&mut self.pieces),
            len: std::mem::take(&mut self.len),
        }
    }

    /// Copies from byte `at` of the buffer into `to`; returns how many bytes were there.
    #[inline]
    pub fn read_at(&self, at: usize, to: &mut [u8]) -> usize {
        if let Some(start) = self.start(at, to.len()) {
            start.copy_to(to);
            return to.len();
        }
        self.read_pieces(at, to)
    }

    #[inline(never)]
    fn read_pieces(&self, at: usize, to: &mut [u8]) -> usize {
        if self.mapping.is_uncached() {
            return self.read_wide(at, to);
        }
        let mut done = 0;
        for piece in self.pieces_from(at, to.len()) {
            let n = piece.len();
            piece.copy_to(&mut to[done..done + n]);
            done += n;
        }
        done
    }

    /// Copies `from` into the buffer from byte `at`; returns how many bytes had room.
    #[inline]
    pub fn write_at(&self, at: usize, from: &[u8]) -> usize {
        if from.is_empty() {
            return 0;
        }
        if let Some(start) = self.start(at, from.len()) {
            start.copy_from(from);
            return from.len();
        }
        self.write_pieces(at, from)
    }

    #[inline(never)]
    fn write_pieces(&self, at: usize, from: &[u8]) -> usize {
        if self.mapping.is_uncached() {
            return self.write_wide(at, from);
        }
        let mut done = 0;
        for piece in self.pieces_from(at, from.len()) {
            let n = piece.len();
            piece.copy_from(&from[done..done + n]);
            done += n;
        }
        done
    }

    /// Copies `from`, which others may change too, into the buffer from byte `at`; returns how many
    /// bytes had room.
    pub fn write_from(&self, at: usize, from: VolatileSlice<'_>) -> usize {
        let mut done = 0;
        if self.mapping.is_uncached() {
            let mut copy = [0; THROUGH];
            while let Ok(rest) = from.offset(done) {
                let now = rest.copy_to(&mut copy[..]);
                let had_room = self.write_wide(at + done, &copy[..now]);
                done += had_room;
                if had_room < THROUGH {
                    break;
                }
            }
            return done;
        }
        for piece in self.pieces_from(at, from.len()) {
            let Ok(rest) = from.offset(done) else { break };
            rest.copy_to_volatile_slice(piece);
            done += piece.len();
        }
        done
    }

    /// Copies from byte `at` of the buffer to `to`, which others may change too; returns how many
    /// bytes were there.
    pub fn read_into(&self, at: usize, to: VolatileSlice<'_>) -> usize {
        let mut done = 0;
        if self.mapping.is_uncached() {
            let mut copy = [0; THROUGH];
            while let Ok(rest) = to.offset(done) {
                let now = THROUGH.min(rest.len());
                let were_there = self.read_wide(at + done, &mut copy[..now]);
                rest.copy_from(&copy[..were_there]);
                done += were_there;
                if were_there < THROUGH {
                    break;
                }
            }
            return done;
        }
        for piece in self.pieces_from(at, to.len()) {
            let Ok(rest) = to.offset(done) else { break };
            piece.copy_to_volatile_slice(rest);
            done += piece.len();
        }
        done
    }

    /// The `len` bytes from byte `at` as I/O vectors, fewer where the buffer ends. They point
    /// into the mapping, so they are valid for as long as a clone of `self` is kept.
    pub fn iovecs(&self, at: usize, len: usize) -> impl Iterator<Item = libc::iovec> {
        self.pieces_from(at, len).map(|piece| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        })
    }

    /// Whether a disk can read and write the buffer itself, each piece of which has to begin at a
    /// multiple of `alignment` (a power of two, a page at most) and be as long as one.
    pub fn is_for_disks(&self, alignment: usize) -> bool {
        let mask = alignment - 1;
        // Mappings begin with a page.
        let mut pieces = self.pieces.iter();
        self.mapping.is_ram() && pieces.all(|piece| (piece.offset | piece.len) & mask == 0)
    }

    /// As [`Self::read_at`], each byte read once and with as many others as its place allows.
    #[cold]
    fn read_wide(&self, at: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        for Piece { offset, len } in self.places_from(at, to.len()) {
            self.mapping.read(offset, &mut to[done..done + len]);
            done += len;
        }
        done
    }

    /// As [`Self::write_at`], in the same way.
    #[cold]
    fn write_wide(&self, at: usize, from: &[u8]) -> usize {
        let mut done = 0;
        for Piece { offset, len } in self.places_from(at, from.len()) {
            self.mapping.write(offset, &from[done..done + len]);
            done += len;
        }
        done
    }

    /// As [`Self::iovecs`], into an array; `None` if they are more.
    pub fn few_iovecs<const N: usize>(&self, len: usize) -> Option<([libc::iovec; N], usize)> {
        let mut vectors = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; N];
        let mut count = 0;
        for vector in self.iovecs(0, len) {
            *vectors.get_mut(count)? = vector;
            count += 1;
        }
        Some((vectors, count))
    }

    /// The first `len` bytes, if that is what is asked for, they are in one piece, and the CPU
    /// reaches them through its caches: the usual header or response.
    #[inline]
    fn start(&self, at: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let first = self.pieces.first()?;
        if at != 0 || len > first.len || self.mapping.is_uncached() {
            return None;
        }
        // SAFETY: `push` checked that the piece, which has these bytes, is inside the mapping.
        Some(unsafe { VolatileSlice::new(self.mapping.as_ptr().add(first.offset), len) })
    }

    fn pieces_from(&self, at: usize, len: usize) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.places_from(at, len).map(|Piece { offset, len }| {
            // SAFETY: `push` checked that a piece is inside the mapping, and `places_from` gives
            // parts of pieces.
            unsafe { VolatileSlice::new(self.mapping.as_ptr().add(offset), len) }
        })
    }

    /// Where in the mapping the `len` bytes from byte `at` are, fewer where the buffer ends.
    fn places_from(&self, at: usize, len: usize) -> impl Iterator<Item = Piece> {
        let mut skip = at;
        let mut want = len;
        self.pieces.iter().filter_map(move |piece| {
            let Piece { offset, len: piece } = *piece;
            let skipped = skip.min(piece);
            skip -= skipped;
            let n = want.min(piece - skipped);
            want -= n;
            if n == 0 {
                return None;
            }
            Some(Piece {
                offset: offset + skipped,
                len: n,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn mapping() -> Arc<Mapping> {
        let file = tempfile();
        file.set_len(8192).unwrap();
        Arc::new(Mapping::new(file.as_fd(), 0, 8192, None).unwrap())
    }

    fn tempfile() -> std::fs::File {
        // SAFETY: the name is a C string; the result is checked before it is owned.
        let fd = unsafe { libc::memfd_create(c"segments".as_ptr(), 0) };
        assert!(fd >= 0);
        // SAFETY: `fd` was just created and nobody else owns it.
        unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
    }

    #[test]
    fn copies_cross_from_one_piece_to_the_next() {
        let mut segments = Segments::new(mapping());
        segments.push(4096, 3).unwrap();
        segments.push(0, 4).unwrap();
        assert_eq!(segments.write_at(1, b"abcdef!!"), 6);
        let mut back = [0; 7];
        assert_eq!(segments.read_at(0, &mut back), 7);
        assert_eq!(&back, b"\0abcdef");
        assert_eq!(segments.read_at(5, &mut back), 2);
        assert_eq!(
            segments
                .iovecs(2, 100)
                .map(|v| v.iov_len)
                .collect::<Vec<_>>(),
            [1, 4]
        );
    }

    #[test]
    fn copies_are_the_same_where_memory_is_uncached() {
        let uncached = mapping();
        uncached.set_uncached();
        let mut segments = Segments::new(uncached);
        segments.push(4099, 1021).unwrap();
        segments.push(1, 4090).unwrap();
        let bytes: Vec<u8> = (0..251).cycle().take(5111).collect();
        let own = mapping();
        own.write(0, &bytes);

        assert_eq!(segments.write_at(1, &bytes), 5110);
        let mut back = vec![0; 6000];
        assert_eq!(segments.read_at(1, &mut back), 5110);
        assert_eq!(back[..5110], bytes[..5110]);
        let mut edge = [0; 2];
        segments.mapping.read(5119, &mut edge);
        assert_eq!(edge, [bytes[1019], 0], "the piece ends there");

        segments.write_at(0, &[0; 5111]);
        assert_eq!(segments.write_from(0, own.slice(0, 5111).unwrap()), 5111);
        assert_eq!(segments.write_from(5000, own.slice(0, 200).unwrap()), 111);
        assert_eq!(segments.read_at(0, &mut back), 5111);
        assert_eq!(back[..5000], bytes[..5000]);
        assert_eq!(back[5000..5111], bytes[..111]);
        segments.write_at(0, &bytes);
        own.write(0, &[0; 8192]);
        assert_eq!(segments.read_into(10, own.slice(0, 8192).unwrap()), 5101);
        own.read(0, &mut back);
        assert_eq!(back[..5101], bytes[10..]);
        assert!(back[5101..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_buffer_is_cut_inside_a_piece_and_between_two() {
        let mut segments = Segments::new(mapping());
        segments.push(0, 4).unwrap();
        segments.push(4096, 4).unwrap();
        segments.write_at(0, b"abcdefgh");
        let mut tail = segments.split_off(3);
        let end = tail.split_off(1);
        assert_eq!([segments.len(), tail.len(), end.len()], [3, 1, 4]);
        let mut bytes = [0; 4];
        assert_eq!(end.read_at(0, &mut bytes), 4);
        assert_eq!(&bytes, b"efgh");
        assert!(segments.split_off(3).is_empty());
        assert_eq!(segments.split_off(0).len(), 3);
    }

    #[test]
    fn a_buffer_cut_beyond_its_end_stays_whole() {
        let mut segments = Segments::new(mapping());
        assert!(segments.split_off(0).is_empty());
        for _ in 0..5 {
            segments.push(8, 2).unwrap();
        }
        assert_eq!(segments.split_off(11).pieces(), 0);
        assert_eq!([segments.len(), segments.pieces()], [10, 5]);
        let tail = segments.split_off(4);
        assert_eq!([segments.len(), segments.pieces()], [4, 2]);
        assert_eq!([tail.len(), tail.pieces()], [6, 3]);
    }

    #[test]
    fn a_header_with_data_and_its_halves_need_no_allocation() {
        let mut segments = Segments::new(mapping());
        segments.push(0, 51).unwrap();
        segments.push(4096, 4096).unwrap();
        assert!(!segments.pieces.is_allocated());
        let data = segments.split_off(51);
        assert!(!segments.pieces.is_allocated() && !data.pieces.is_allocated());
    }

    #[test]
    fn a_piece_outside_the_mapping_is_refused() {
        let mut segments = Segments::new(mapping());
        assert_eq!(segments.push(8190, 3), Err(OutOfBounds));
        assert_eq!(segments.push(u64::MAX, 2), Err(OutOfBounds));
        assert!(segments.is_empty());
    }
}
