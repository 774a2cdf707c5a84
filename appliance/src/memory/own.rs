//! Memory of our own that disks read into and write from as they do with a tenant's.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

use super::Mapping;

/// So many bytes, at least one.
///
/// # Errors
/// What memfd_create(2), ftruncate(2) and mmap(2) report.
pub fn own(len: usize) -> io::Result<Arc<Mapping>> {
    let file = File::from(memfd_create("own", MemfdFlags::CLOEXEC)?);
    let size = u64::try_from(len).map_err(io::Error::other)?;
    file.set_len(size)?;
    Ok(Arc::new(Mapping::new(file.as_fd(), 0, len, None)?))
}
