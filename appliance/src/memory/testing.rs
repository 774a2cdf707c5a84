//! Memory for unit tests.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::Mapping;

/// A fresh file of `len` bytes.
pub(crate) fn private_file(len: usize) -> File {
    let path = std::env::temp_dir().join(format!("memory-{}", uuid::Uuid::new_v4()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    file.set_len(u64::try_from(len).unwrap()).unwrap();
    file
}

/// A mapping of a fresh file of `len` bytes.
pub(crate) fn private_memory(len: usize) -> Mapping {
    Mapping::new(private_file(len).as_fd(), 0, len, None).unwrap()
}

/// As [`private_memory`], to be shared.
pub(crate) fn shared_memory(len: usize) -> Arc<Mapping> {
    Arc::new(private_memory(len))
}
