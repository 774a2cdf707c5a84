//! What a file or block device can do, found out without changing it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::io::MAX_ATOMIC_WRITE;
use super::{Abilities, Atomic, Thin, sys};

/// Most bytes of a physical block that a file has: the page that its filesystem's cache consists
/// of. A larger preference of the filesystem is about speed only.
const MAX_FILE_BLOCK: u32 = 4096;
/// How far behind a file's end it is tried whether holes can be punched. Nobody who makes the file
/// longer at that moment gets so far.
const PROBE_DISTANCE: u64 = 1 << 30;
/// Where the kernel describes block devices.
const SYS_DEV_BLOCK: &str = "/sys/dev/block";

/// A file to be looked at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub file: &'a File,
    pub is_device: bool,
    /// Bytes of it.
    pub size: u64,
    /// Bytes of a logical block of the disk that it is to be.
    pub block_size: u32,
    /// Whether it is used with O_DIRECT.
    pub direct: bool,
    pub read_only: bool,
    /// Whether nobody else may write it.
    pub alone: bool,
}

/// What was found.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    /// Bytes of a physical block: a power of two, at least a logical block.
    pub physical_block: u32,
    /// Bytes that are given back, or made zero, without writing any.
    pub granule: u64,
    pub abilities: Abilities,
}

impl Subject<'_> {
    /// # Errors
    /// What the kernel reports.
    pub fn traits(&self) -> io::Result<Traits> {
        let (physical, granule, thin, optimal) = if self.is_device {
            self.of_device()?
        } else {
            self.of_file()?
        };
        let physical = if physical.is_power_of_two() {
            physical.max(self.block_size)
        } else {
            self.block_size
        };
        Ok(Traits {
            physical_block: physical,
            granule: granule.max(self.block_size).into(),
            abilities: Abilities {
                thin,
                atomic: self.atomic(sys::atomic_write_unit(self.file)?),
                // To be told of a piece as small as a block, some drivers would send no larger
                // ones.
                optimal: optimal.filter(|&optimal| optimal > physical),
            },
        })
    }

    fn of_file(&self) -> io::Result<(u32, u32, Option<Thin>, Option<u32>)> {
        // st_blksize is what the filesystem likes best; f_frsize its block.
        let preferred = u32::try_from(self.file.metadata()?.blksize()).unwrap_or(u32::MAX);
        let block = u32::try_from(sys::filesystem(self.file)?.block).unwrap_or(u32::MAX);
        let direct = sys::direct_alignment(self.file)?.map_or(0, |alignment| alignment.offset);
        let granule = block.clamp(self.block_size, 1 << 20);
        let thin = self.can_punch(granule).then_some(Thin {
            granularity: granule,
            mapped: true,
        });
        let physical = preferred.min(MAX_FILE_BLOCK).max(direct);
        Ok((physical, granule, thin, Some(preferred)))
    }

    /// Tries it far behind the file's end, where there is nothing to lose. ext4, XFS, btrfs and
    /// tmpfs can; what cannot says EOPNOTSUPP before it looks at the range.
    fn can_punch(&self, granule: u32) -> bool {
        if self.read_only {
            return false;
        }
        let granule = u64::from(granule);
        let behind = self.size.checked_next_multiple_of(granule);
        let behind = behind.and_then(|end| end.checked_add(PROBE_DISTANCE));
        behind.is_some_and(|offset| sys::punch_hole(self.file, offset, granule).is_ok())
    }

    fn of_device(&self) -> io::Result<(u32, u32, Option<Thin>, Option<u32>)> {
        let physical = sys::device_physical_block(self.file)?;
        let logical = sys::device_logical_block(self.file)?;
        let queue = Queue::of(self.file.metadata()?.rdev(), Path::new(SYS_DEV_BLOCK));
        let optimal = queue.value("optimal_io_size");
        Ok((physical, logical, queue.thin(self.block_size), optimal))
    }

    /// Atomic writes where the kernel has them from the shortest to the longest of `unit`. What is
    /// beside the blocks of a command is read and written with them, and would undo what others
    /// write there meanwhile: our locks keep away only who is in this process.
    fn atomic(&self, unit: Option<(u32, u32)>) -> Option<Atomic> {
        let (min, max) = unit.filter(|_| self.direct && !self.read_only && self.alone)?;
        let min = min.max(self.block_size);
        let max = max.min(MAX_ATOMIC_WRITE);
        (min <= max).then_some(Atomic { min, max })
    }
}

/// The limits of a block device's queue, as sysfs shows them.
struct Queue(Option<PathBuf>);

impl Queue {
    /// The queue of the device with this number; that of the whole disk, if it is a partition.
    fn of(device: u64, sys_dev_block: &Path) -> Self {
        let (major, minor) = (libc::major(device), libc::minor(device));
        let device = sys_dev_block.join(format!("{major}:{minor}"));
        // Through the link first: a partition's directory is inside its disk's.
        let queue = device.canonicalize().ok().and_then(|device| {
            let of_disk = device.parent().map(|disk| disk.join("queue"));
            [Some(device.join("queue")), of_disk]
                .into_iter()
                .flatten()
                .find(|queue| queue.is_dir())
        });
        Self(queue)
    }

    /// A limit; `None` if it is 0, does not fit or is not known.
    fn value<T: FromStr + Default + PartialEq>(&self, name: &str) -> Option<T> {
        let text = std::fs::read_to_string(self.0.as_ref()?.join(name)).ok()?;
        text.trim()
            .parse()
            .ok()
            .filter(|value| *value != T::default())
    }

    /// How blocks are given back. What a discard leaves is not known to be zeros, so that it
    /// takes zeros that are written by giving back.
    fn thin(&self, block_size: u32) -> Option<Thin> {
        let granularity: u32 = self.value("discard_granularity")?;
        self.value::<u64>("discard_max_bytes")?;
        self.value::<u64>("write_zeroes_max_bytes")?;
        Some(Thin {
            // What is given back consists of blocks.
            granularity: granularity.checked_next_multiple_of(block_size)?,
            mapped: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    /// A /sys/dev/block with disk 8:16, its partition 8:17, and these limits.
    fn sysfs(limits: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().unwrap();
        let disk = root.as_path().join("devices/sdb");
        std::fs::create_dir_all(disk.join("queue")).unwrap();
        std::fs::create_dir_all(disk.join("sdb1")).unwrap();
        for (name, value) in limits {
            std::fs::write(disk.join("queue").join(name), value).unwrap();
        }
        let link = |target, name| std::os::unix::fs::symlink(target, root.as_path().join(name));
        link(disk.clone(), "8:16").unwrap();
        link(disk.join("sdb1"), "8:17").unwrap();
        root
    }

    fn queue(root: &TempDir, minor: u32) -> Queue {
        Queue::of(libc::makedev(8, minor), root.as_path())
    }

    #[test]
    fn a_device_that_zeroes_by_giving_back_is_thin_and_so_is_its_partition() {
        let root = sysfs(&[
            ("discard_granularity", "1048576\n"),
            ("discard_max_bytes", "4294966784\n"),
            ("write_zeroes_max_bytes", "4294966784\n"),
            ("optimal_io_size", "65536\n"),
        ]);
        for minor in [16, 17] {
            let queue = queue(&root, minor);
            let thin = Thin {
                granularity: 1 << 20,
                mapped: false,
            };
            assert_eq!(queue.thin(512), Some(thin));
            assert_eq!(queue.value::<u32>("optimal_io_size"), Some(65536));
        }
    }

    #[test]
    fn a_device_whose_discards_may_leave_anything_is_not_thin() {
        let root = sysfs(&[
            ("discard_granularity", "512\n"),
            ("discard_max_bytes", "4294966784\n"),
            ("write_zeroes_max_bytes", "0\n"),
        ]);
        assert_eq!(queue(&root, 16).thin(512), None);
        assert_eq!(queue(&root, 99).thin(512), None, "unknown device");
    }

    #[test]
    fn only_who_is_alone_with_a_disk_writes_atomically() {
        let file = TempFile::new().unwrap().into_file();
        let alone = Subject {
            file: &file,
            is_device: false,
            size: 8192,
            block_size: 512,
            direct: true,
            read_only: false,
            alone: true,
        };
        let shared = Subject {
            alone: false,
            ..alone
        };
        let unit = Some((4096, 16384));
        let atomic = Atomic {
            min: 4096,
            max: 16384,
        };
        assert_eq!(alone.atomic(unit), Some(atomic));
        assert_eq!(shared.atomic(unit), None);
    }

    #[test]
    fn a_granule_consists_of_blocks() {
        let root = sysfs(&[
            ("discard_granularity", "512\n"),
            ("discard_max_bytes", "1024\n"),
            ("write_zeroes_max_bytes", "1024\n"),
        ]);
        assert_eq!(queue(&root, 16).thin(4096).unwrap().granularity, 4096);
        let root = sysfs(&[
            ("discard_granularity", "6144\n"),
            ("discard_max_bytes", "6144\n"),
            ("write_zeroes_max_bytes", "6144\n"),
        ]);
        assert_eq!(queue(&root, 16).thin(512).unwrap().granularity, 6144);
        assert_eq!(queue(&root, 16).thin(4096).unwrap().granularity, 8192);
    }
}
