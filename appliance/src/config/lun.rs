//! A LUN in the configuration: its disk, and how it is used.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::limit::{RawLimit, check_limit};
use super::{Located, at, check_name, in_range};
use crate::disk::{Cache, Protection};
use crate::limit::Limit;

/// Seconds that a command may be given at most: a day.
const MAX_TIMEOUT: u64 = 86_400;
/// Bytes of a logical block that may be asked for.
const BLOCK_SIZES: [u32; 2] = [512, 4096];

/// One LUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LunConfig {
    /// Its name, from which its serial number comes.
    pub name: String,
    /// Where its blocks are.
    pub source: Source,
    /// Whether tenants may only read it.
    pub read_only: bool,
    /// How it is cached.
    pub cache: Cache,
    /// Whether a direct disk moves data through memory of the appliance, in place of the tenant's.
    pub bounce: bool,
    /// Whether several HBAs may see it.
    pub shared: bool,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Bytes of the LUN, if it shall be smaller than its disk.
    pub size: Option<u64>,
    /// Whether blocks may be given back.
    pub provisioning: Provisioning,
    /// What the protection information of its blocks means, if they have any.
    pub protection: Option<Protection>,
    /// How long a command may take, if it is not the default.
    pub timeout: Option<Duration>,
    /// What becomes of commands that its disk fails.
    pub on_error: OnError,
    /// Percent used at which its tenants are told that space runs out.
    pub threshold: Option<u8>,
    /// What all who see it may do together.
    pub limit: Limit,
}

/// Whether the blocks of a LUN may be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provisioning {
    /// Where its disk can do that.
    #[default]
    Auto,
    /// Never: the tenant is not told that they could be.
    Thick,
}

/// What becomes of commands that a full, lost or failing disk cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The tenant is told.
    #[default]
    Report,
    /// They wait until the disk can.
    Pause,
}

/// Where the blocks of a LUN are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On the disk with this serial number.
    Serial(String),
    /// On this block device or in this file.
    Path(PathBuf),
    /// Nowhere: a disk of so many bytes that loses what is written, for measuring.
    Null(u64),
    /// In so many bytes of memory, lost with the appliance, for measuring.
    Ram(u64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLun {
    pub(super) name: Spanned<String>,
    serial: Option<Spanned<String>>,
    path: Option<Spanned<PathBuf>>,
    kind: Option<Spanned<Kind>>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    cache: RawCache,
    bounce: Option<Spanned<bool>>,
    #[serde(default)]
    shared: bool,
    block_size: Option<Spanned<u32>>,
    size: Option<u64>,
    #[serde(default)]
    provisioning: Provisioning,
    protection: Option<Spanned<Protection>>,
    timeout: Option<Spanned<u64>>,
    #[serde(default)]
    on_error: OnError,
    threshold: Option<Spanned<u64>>,
    limit: Option<Spanned<RawLimit>>,
}

/// What a LUN is on; a file unless it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// A file or a block device.
    File,
    Null,
    Ram,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawCache {
    #[default]
    Direct,
    WriteBack,
}

pub(super) fn check_lun(raw: RawLun) -> Result<LunConfig, Located> {
    check_name("LUN", &raw.name)?;
    let name = raw.name.get_ref().clone();
    let source = match raw.kind.map_or(Kind::File, Spanned::into_inner) {
        Kind::File => file_source(raw.serial, raw.path, &raw.name)?,
        kind => {
            if let Some(protection) = &raw.protection {
                let message = format!(
                    "LUN {name:?} has a kind without a file, which keeps no tags; remove protection"
                );
                return Err(at(protection, message));
            }
            let given = raw.serial.map(|serial| serial.span());
            let given = given.or(raw.path.map(|path| path.span()));
            if given.is_some() {
                let message =
                    format!("LUN {name:?} has a kind without a file; remove its serial or path");
                return Err((given, message));
            }
            let size = raw.size.ok_or_else(|| {
                let message = format!("LUN {name:?} has a kind without a file; add size = bytes");
                at(&raw.name, message)
            })?;
            if kind == Kind::Ram {
                Source::Ram(size)
            } else {
                Source::Null(size)
            }
        }
    };
    let block_size = match raw.block_size {
        None => BLOCK_SIZES[0],
        Some(size) if BLOCK_SIZES.contains(size.get_ref()) => size.into_inner(),
        Some(size) => {
            let message = format!(
                "block_size {} of LUN {name:?} must be {} or {}",
                size.get_ref(),
                BLOCK_SIZES[0],
                BLOCK_SIZES[1]
            );
            return Err(at(&size, message));
        }
    };
    let owner = format!("LUN {name:?}");
    let bounce = match raw.bounce {
        Some(bounce) if !*bounce.get_ref() => {
            check_in_place(&name, &source, raw.cache, raw.protection.is_some())
                .map_err(|message| at(&bounce, message))?;
            false
        }
        _ => true,
    };
    let timeout = in_range(raw.timeout, 1..=MAX_TIMEOUT, "timeout", &owner)?;
    let threshold = in_range(raw.threshold, 1..=100, "threshold", &owner)?;
    let limit = check_limit(raw.limit, &owner)?;
    Ok(LunConfig {
        name,
        source,
        read_only: raw.read_only,
        cache: match raw.cache {
            RawCache::Direct => Cache::Direct,
            RawCache::WriteBack => Cache::WriteBack,
        },
        bounce,
        shared: raw.shared,
        block_size,
        size: raw.size,
        provisioning: raw.provisioning,
        protection: raw.protection.map(Spanned::into_inner),
        timeout: timeout.map(Duration::from_secs),
        on_error: raw.on_error,
        threshold: threshold.and_then(|percent| u8::try_from(percent).ok()),
        limit,
    })
}

/// Whether `bounce = false` means something for a LUN.
fn check_in_place(
    name: &str,
    source: &Source,
    cache: RawCache,
    is_protected: bool,
) -> Result<(), String> {
    let reason = if matches!(source, Source::Null(_) | Source::Ram(_)) {
        "has a kind without a file"
    } else if matches!(cache, RawCache::WriteBack) {
        "goes through the page cache"
    } else if is_protected {
        "has protection information, which is checked on the way"
    } else {
        return Ok(());
    };
    Err(format!("LUN {name:?} {reason}; remove bounce = false"))
}

/// Where a LUN with a file has its blocks.
fn file_source(
    serial: Option<Spanned<String>>,
    path: Option<Spanned<PathBuf>>,
    name: &Spanned<String>,
) -> Result<Source, Located> {
    let lun = name.get_ref();
    match (serial, path) {
        (Some(serial), None) => Ok(Source::Serial(serial.into_inner())),
        (None, Some(path)) => Ok(Source::Path(path.into_inner())),
        (Some(serial), Some(_)) => {
            let message = format!("LUN {lun:?} has both a serial and a path; remove one");
            Err(at(&serial, message))
        }
        (None, None) => {
            let message =
                format!("LUN {lun:?} has no disk; add serial = \"…\" or path = \"/dev/…\"");
            Err(at(name, message))
        }
    }
}
