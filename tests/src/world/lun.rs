//! A LUN of World: a sparse image file, and its lines in the appliance's configuration.

use std::fmt::Write;
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
    bounces: bool,
    shared: bool,
    timeout: Option<u64>,
    pauses: bool,
    protection: Option<&'static str>,
    in_memory: bool,
    pub(super) gated: bool,
}

impl Lun {
    /// An image of `len` zero bytes.
    pub fn file(len: u64) -> Self {
        Self {
            len,
            read_only: false,
            cache: "direct",
            bounces: true,
            shared: false,
            timeout: None,
            pauses: false,
            protection: None,
            in_memory: false,
            gated: false,
        }
    }

    /// As many zero bytes in the appliance's memory; its image is of no use.
    pub fn ram(len: u64) -> Self {
        Self {
            in_memory: true,
            ..Self::file(len)
        }
    }

    /// Several HBAs may see it.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Its commands may take so many seconds.
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = Some(seconds);
        self
    }

    /// Its commands wait until the disk is mended that fails them.
    pub fn pauses(mut self) -> Self {
        self.pauses = true;
        self
    }

    /// Its blocks have protection information, of this type.
    pub fn protected(mut self, protection: &'static str) -> Self {
        self.protection = Some(protection);
        self
    }

    /// Its disk can be made to hang or fail.
    pub fn gated(mut self) -> Self {
        self.gated = true;
        self
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

    /// Moved straight between disk and tenant, where that is possible.
    pub fn in_place(mut self) -> Self {
        self.bounces = false;
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
    pub(super) file: File,
    lun: Lun,
}

impl Image {
    /// Its lines in the configuration.
    pub(super) fn toml(&self) -> String {
        let Lun {
            read_only,
            cache,
            bounces,
            shared,
            timeout,
            pauses,
            protection,
            in_memory,
            len,
            ..
        } = self.lun;
        let source = if in_memory {
            format!("kind = \"ram\"\nsize = {len}")
        } else {
            format!("path = {:?}\ncache = {cache:?}", self.path)
        };
        let mut lines = format!(
            "[[lun]]\nname = {:?}\n{source}\nread_only = {read_only}\nshared = {shared}\n",
            self.name
        );
        if let Some(timeout) = timeout {
            writeln!(lines, "timeout = {timeout}").expect("memory");
        }
        if let Some(protection) = protection {
            writeln!(lines, "protection = {protection:?}").expect("memory");
        }
        if !bounces {
            lines += "bounce = false\n";
        }
        if pauses {
            lines += "on_error = \"pause\"\n";
        }
        lines
    }

    /// Makes the image longer or shorter.
    pub(super) fn resize(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// Turns all bits of a byte of the image, as a disk may that is failing.
    pub(super) fn damage(&self, offset: u64) -> io::Result<()> {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, offset)?;
        self.file.write_all_at(&[!byte[0]], offset)
    }

    /// Bytes of the image, as the host reads them.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}
