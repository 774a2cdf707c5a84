//! Copies to and from shared memory in as few accesses as their alignment allows.
//!
//! A window onto a tenant may be mapped uncached; there each access costs, and not each byte. Every
//! byte is accessed once, and none outside what is asked for.
#![expect(
    unsafe_code,
    reason = "volatile accesses at pointers into a mapping happen here"
)]

/// What the machine loads and stores at once.
#[cfg(target_arch = "x86_64")]
type Widest = std::arch::x86_64::__m128i;
#[cfg(target_arch = "aarch64")]
type Widest = std::arch::aarch64::uint64x2_t;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Widest = u128;

/// Bytes of [`Widest`].
const WIDEST: usize = size_of::<Widest>();
const _: () = assert!(WIDEST == 16);

/// Bytes of the next access, where `len` are left to be copied at `address`: the largest power of
/// two that they have room for and that divides the address.
#[inline]
fn width(address: usize, len: usize) -> usize {
    let aligned = |bytes: usize| len >= bytes && address.is_multiple_of(bytes);
    if aligned(WIDEST) {
        WIDEST
    } else if aligned(8) {
        8
    } else if aligned(4) {
        4
    } else if aligned(2) {
        2
    } else {
        1
    }
}

/// Copies from `from` into all of `to`.
///
/// # Safety
/// `from` and the bytes after it, as many as `to` has, are readable memory that only volatile
/// and atomic accesses reach.
#[inline]
pub(super) unsafe fn read(from: *const u8, to: &mut [u8]) {
    if (to.len() | from.addr()).is_multiple_of(WIDEST) {
        // Descriptors, which is all that most reads are.
        for (at, to) in (0..).step_by(WIDEST).zip(to.chunks_exact_mut(WIDEST)) {
            // SAFETY: the caller's word for `from`, which is aligned as `at` is; both have the
            // bytes.
            unsafe { load::<Widest>(from.add(at), to.as_mut_ptr()) }
        }
    } else {
        // SAFETY: the caller's word.
        unsafe { read_stepwise(from, to) }
    }
}

/// # Safety
/// As [`read`].
#[inline(never)]
unsafe fn read_stepwise(from: *const u8, to: &mut [u8]) {
    let mut rest = to;
    let mut from = from;
    while !rest.is_empty() {
        let width = width(from.addr(), rest.len());
        let (now, later) = rest.split_at_mut(width);
        let to = now.as_mut_ptr();
        // SAFETY: `width` bytes are left, at `from` by the caller's word and at `to` as just
        // split; `width` saw that `from` is aligned.
        unsafe {
            match width {
                WIDEST => load::<Widest>(from, to),
                8 => load::<u64>(from, to),
                4 => load::<u32>(from, to),
                2 => load::<u16>(from, to),
                _ => load::<u8>(from, to),
            }
            from = from.add(width);
        }
        rest = later;
    }
}

/// Copies all of `from` to `to`.
///
/// # Safety
/// `to` and the bytes after it, as many as `from` has, are writable memory that only volatile and
/// atomic accesses reach.
pub(super) unsafe fn write(from: &[u8], to: *mut u8) {
    let mut rest = from;
    let mut to = to;
    while !rest.is_empty() {
        let width = width(to.addr(), rest.len());
        let (now, later) = rest.split_at(width);
        let from = now.as_ptr();
        // SAFETY: `width` bytes are left, at `to` by the caller's word and at `from` as just
        // split; `width` saw that `to` is aligned.
        unsafe {
            match width {
                WIDEST => store::<Widest>(from, to),
                8 => store::<u64>(from, to),
                4 => store::<u32>(from, to),
                2 => store::<u16>(from, to),
                _ => store::<u8>(from, to),
            }
            to = to.add(width);
        }
        rest = later;
    }
}

/// # Safety
/// `from` is aligned for a `T` and shared memory, `to` our own; both have the bytes of a `T`,
/// which any bytes are.
#[inline]
unsafe fn load<T>(from: *const u8, to: *mut u8) {
    // SAFETY: as the caller says.
    unsafe {
        to.cast::<T>()
            .write_unaligned(from.cast::<T>().read_volatile());
    }
}

/// # Safety
/// As [`load`], the other way round.
#[inline]
unsafe fn store<T>(from: *const u8, to: *mut u8) {
    // SAFETY: as the caller says.
    unsafe {
        to.cast::<T>()
            .write_volatile(from.cast::<T>().read_unaligned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widths(address: usize, len: usize) -> Vec<usize> {
        let mut at = 0;
        std::iter::from_fn(|| {
            (at < len).then(|| {
                let width = width(address + at, len - at);
                at += width;
                width
            })
        })
        .collect()
    }

    #[test]
    fn a_descriptor_is_one_access() {
        assert_eq!(widths(0x1000, 16), [16]);
        assert_eq!(widths(0x1008, 16), [8, 8]);
    }

    #[test]
    fn a_run_of_32_avail_entries_after_flags_and_index_is_six_accesses() {
        assert_eq!(widths(0x1004, 64), [4, 8, 16, 16, 16, 4]);
    }

    #[test]
    fn copies_at_every_alignment_and_length_touch_just_their_bytes() {
        #[repr(align(16))]
        struct Shared([u8; 96]);
        let source: [u8; 96] = std::array::from_fn(|at| u8::try_from(at + 1).unwrap());
        for (start, len) in (0..32).flat_map(|start| (0..64).map(move |len| (start, len))) {
            let mut shared = Shared([0; 96]);
            let end = start + len;
            // SAFETY: `end` is within `shared`, which nothing else reaches.
            unsafe { write(&source[start..end], shared.0.as_mut_ptr().add(start)) };
            assert_eq!(shared.0[start..end], source[start..end]);
            assert!(shared.0[..start].iter().all(|byte| *byte == 0));
            assert!(shared.0[end..].iter().all(|byte| *byte == 0));

            let shared = Shared(source);
            let mut copy = [0; 96];
            // SAFETY: as above.
            unsafe { read(shared.0.as_ptr().add(start), &mut copy[..len]) };
            assert_eq!(copy[..len], source[start..end]);
            assert!(copy[len..].iter().all(|byte| *byte == 0));
        }
    }
}
