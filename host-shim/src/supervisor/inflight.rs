//! BAR1: which in-flight memory the tenant's QEMU has, and when the function shows it.

use std::io;
use std::time::Instant;

use spec::inflight::{REGIONS, Regions};

use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::tenant_fd::file_facts;
use crate::device::{InflightError, InflightMemory};
use crate::kept::{Kept, KeptFd};
use crate::session::{self, Event, FileId};

/// In-flight memory as the tenant's QEMU knows it in this connection.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    /// It has the file that the function shows.
    shown: bool,
    /// What the function is to show in its place.
    next: Option<(FileId, InflightMemory)>,
}

/// [`Inflight`] between two supervisors, the file by its name.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InflightRecord {
    shown: bool,
    next: Option<(FileId, u64)>,
}

impl Inflight {
    pub fn record(&self) -> InflightRecord {
        let next = self.next.as_ref();
        InflightRecord {
            shown: self.shown,
            next: next.map(|(id, memory)| (*id, memory.fd().name())),
        }
    }

    pub fn restored(record: &InflightRecord, kept: &Kept) -> Self {
        let next = record
            .next
            .and_then(|(id, name)| Some((id, InflightMemory::kept(kept.get(name)?))));
        Self {
            shown: record.shown,
            next,
        }
    }

    /// The connection is over.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether the function is to show another file.
    pub fn waits(&self) -> bool {
        self.next.is_some()
    }
}

/// In-flight memory that cannot be given or taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadInflight {
    #[error("tenant's QEMU asks for in-flight memory, which was not offered to it")]
    NotOffered,
    #[error(
        "tenant's QEMU gives in-flight memory that is not laid out as it was given; it is at fault"
    )]
    Layout,
    #[error(
        "tenant's QEMU gives other in-flight memory than the function shows, which is plugged for \
         good (--trust-memory-file); restart the storage VM while the tenant runs, or the tenant"
    )]
    Cold,
    #[error(transparent)]
    Memory(#[from] InflightError),
    #[error("in-flight memory: {0}")]
    Io(#[from] io::Error),
}

impl Supervisor {
    /// GET_INFLIGHT_FD: bytes of the regions, 0 if there is no room for them, and the file.
    pub(super) fn give_inflight(
        &mut self,
        rings: u16,
        entries: u16,
    ) -> Result<(u64, KeptFd), BadInflight> {
        let shown = self.device.inflight_memory();
        let shown = shown.ok_or(BadInflight::NotOffered)?;
        let Some(regions) = Regions::new(rings, entries) else {
            return Ok((0, shown.fd().clone()));
        };
        // Another QEMU, which is gone or should be, may have what is shown. Where it cannot be
        // exchanged, that is put up with: only the operator gives a tenant's QEMU that memory.
        let stays = self.window.is_cold() && self.device.is_open();
        if self.inflight.shown || stays {
            shown.clear(regions)?;
            let fd = shown.fd().clone();
            self.inflight = Inflight {
                shown: true,
                next: None,
            };
            return Ok((regions.len(), fd));
        }
        let mut fresh = InflightMemory::new()?;
        fresh.keep(&self.kept)?;
        let fd = fresh.fd().clone();
        let id = file_facts(&fd)?.id;
        self.inflight.next = Some((id, fresh));
        Ok((regions.len(), fd))
    }

    /// SET_INFLIGHT_FD: what the tenant's QEMU was given, by us or by a shim before us. Offset and
    /// length are those of all regions in the file, rings and entries those of GET_INFLIGHT_FD.
    pub(super) fn take_inflight(
        &mut self,
        fd: KeptFd,
        (offset, len): (u64, u64),
        (rings, entries): (u16, u16),
    ) -> Result<session::Inflight, BadInflight> {
        let shown = self.device.inflight_memory();
        let shown = file_facts(shown.ok_or(BadInflight::NotOffered)?.fd())?.id;
        let regions = Regions::new(rings, entries)
            .filter(|regions| offset == REGIONS && regions.len() == len)
            .ok_or(BadInflight::Layout)?;
        let file = file_facts(&fd)?.id;
        if file == shown {
            self.inflight = Inflight {
                shown: true,
                next: None,
            };
        } else if self.inflight.next.as_ref().map(|(id, _)| *id) != Some(file) {
            if self.window.is_cold() && self.device.is_open() {
                return Err(BadInflight::Cold);
            }
            let memory = InflightMemory::adopted(fd)?;
            self.inflight.next = Some((file, memory));
        }
        Ok(session::Inflight { file, regions })
    }

    /// Shows the in-flight memory that the tenant's QEMU has, if it is another and nobody in the
    /// storage VM has mapped the one before; whether it did.
    pub(super) fn show_inflight(&mut self, now: Instant) -> bool {
        if self.device.is_open() {
            return false;
        }
        let Some((id, memory)) = self.inflight.next.take() else {
            return false;
        };
        if let Err(error) = self.device.set_inflight_memory(memory) {
            self.complain(&error.to_string());
            return false;
        }
        self.inflight.shown = true;
        self.session.handle(now, Event::Inflight(id));
        true
    }
}
