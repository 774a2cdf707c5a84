//! Direct disks without bounce buffers.

use std::os::unix::fs::FileExt;

use super::*;
use crate::memory::Mapping;

/// A direct disk with `whole` on it, and its image.
fn disk(whole: &[u8]) -> (TempFile, Arc<dyn Disk>) {
    let (image, path) = image();
    image.as_file().write_all_at(whole, 0).unwrap();
    image.as_file().sync_all().unwrap();
    let options = FileOptions {
        bounce: false,
        ..FileOptions::new(path)
    };
    (image, Arc::new(FileDisk::open(&options).unwrap()))
}

/// Whether data would go straight between the disk and these pieces of a mapping.
fn is_in_place(disk: &dyn Disk, mapping: &Arc<Mapping>, pieces: &[(u64, usize)]) -> bool {
    let file = disk.file_for(&Op::Flush).unwrap();
    file.moves_in_place(Some(&segments(mapping, pieces)))
}

/// Pieces of 8192 bytes: in one, in several, and where a disk cannot reach them.
const BUFFERS: [(&[(u64, usize)], bool); 5] = [
    (&[(4096, 8192)], true),
    (&[(65536, 4096), (4096, 512), (8192, 3584)], true),
    (&[(4097, 8192)], false),
    (&[(4096, 4096), (65536, 4000), (69632, 96)], false),
    (&[(0, 511), (4096, 7681)], false),
];

#[test]
fn what_is_aligned_goes_straight_and_the_rest_through_the_pool() {
    let (_image, disk) = disk(&[]);
    let (_memory, mapping) = tenant(1 << 20);
    for (pieces, straight) in BUFFERS {
        assert_eq!(
            is_in_place(&*disk, &mapping, pieces),
            straight,
            "{pieces:?}"
        );
    }
    let (_image, path) = image();
    let bouncing = open(path, Cache::Direct);
    assert!(!is_in_place(&*bouncing, &mapping, BUFFERS[0].0));
}

#[test]
fn a_device_s_memory_is_reached_through_the_pool() {
    let (_image, disk) = disk(&[]);
    let file = TempFile::new().unwrap().into_file();
    file.set_len(1 << 20).unwrap();
    let owner: Arc<dyn std::any::Any + Send + Sync> = Arc::new(());
    let device = Mapping::new(file.as_fd(), 0, 1 << 20, Some(owner)).unwrap();
    assert!(!is_in_place(&*disk, &Arc::new(device), BUFFERS[0].0));
}

#[test]
fn data_arrives_either_way() {
    let whole = pattern(BLOCKS * 512, 3);
    let (image, disk) = disk(&whole);
    let (memory, mapping) = tenant(1 << 20);
    let mut io = Io::with_pool(3 * 4096).unwrap();
    for (tag, (pieces, _)) in (0..).zip(BUFFERS) {
        let offset = 8192 * tag;
        io.submit(&disk, read(1, offset, segments(&mapping, pieces)));
        assert_eq!(events(&mut io, 1), [done(1)], "{pieces:?}");
        let mut back = Vec::new();
        for &(at, len) in pieces {
            let mut piece = vec![0; len];
            memory.read_exact_at(&mut piece, at).unwrap();
            back.append(&mut piece);
        }
        let start = usize::try_from(offset).unwrap();
        assert!(back == whole[start..start + 8192], "{pieces:?}");

        // It goes to where another was, on stable storage or not.
        let there = 1 << 20 | offset;
        io.submit(
            &disk,
            write(2, there, tag % 2 == 0, segments(&mapping, pieces)),
        );
        assert_eq!(events(&mut io, 1), [done(2)], "{pieces:?}");
        let mut written = vec![0; 8192];
        image.as_file().read_exact_at(&mut written, there).unwrap();
        assert!(written == back, "{pieces:?}");
    }
}

#[test]
fn what_is_larger_than_a_piece_arrives_whole() {
    let whole = pattern(BLOCKS * 512, 3);
    let (_image, disk) = disk(&whole);
    let (memory, mapping) = tenant(4 << 20);
    let mut io = Io::with_pool(3 * 4096).unwrap();
    // The first has more pieces than the kernel takes at once.
    for (count, len) in [(4096, 512), (1, 2 << 20)] {
        let pieces: Vec<_> = (0..count).map(|at| (at * 2 * len, len)).collect();
        let sizes: Vec<_> = pieces.iter().map(|&(at, len)| (at as u64, len)).collect();
        assert!(is_in_place(&*disk, &mapping, &sizes));
        io.submit(&disk, read(1, 0, segments(&mapping, &sizes)));
        assert_eq!(events(&mut io, 1), [done(1)], "{count} pieces");
        let mut back = vec![0; count * len];
        for (piece, &(at, _)) in back.chunks_mut(len).zip(&sizes) {
            memory.read_exact_at(piece, at).unwrap();
        }
        assert!(back == whole, "{count} pieces");
    }
}
