//! A LUN of World: a sparse image file, and its lines in the appliance's configuration.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a LUN is to be like.
#[derive(Debug, Clone)]
pub struct Lun {
    len: u64,
    read_only: bool,
    cache: &'static str,
}

impl Lun {
    /// An image of `len` zero bytes.
    pub fn file(len: u64) -> Self {
        Self {
            len,
            read_only: false,
            cache: "direct",
        }
    }

    /// The tenant may only read it.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Cached in the appliance until the tenant flushes.
    pub fn write_back(mut self) -> Self {
        self.cache = "write-back";
        self
    }

    /// Makes the image in `directory`.
    pub(super) fn make(&self, directory: &Path, name: &str) -> io::Result<Image> {
        let path = directory.join(format!("{name}.img"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        file.set_len(self.len)?;
        Ok(Image {
            name: name.to_owned(),
            path,
            file,
            lun: self.clone(),
        })
    }
}

/// A LUN's image.
pub(super) struct Image {
    pub(super) name: String,
    path: PathBuf,
    file: File,
    lun: Lun,
}

impl Image {
    /// Its lines in the configuration.
    pub(super) fn toml(&self) -> String {
        format!(
            "[[lun]]\nname = {:?}\npath = {:?}\nread_only = {}\ncache = {:?}\n",
            self.name, self.path, self.lun.read_only, self.lun.cache
        )
    }

    /// Bytes of the image, as the host reads them.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}
