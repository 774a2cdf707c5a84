//! BAR2, in which the tenant's memory file is, mapped as far as the tenant's memory table needs it.
//!
//! The shim publishes the table in session memory; together with this mapping it makes a
//! [`TenantMemory`], which rings and tasks use.

use std::io;
use std::sync::{Arc, OnceLock};

use spec::device::BAR_TENANT;
use spec::mailbox::RingSetup;

use crate::memory::window::{self, Class, Findings};
use crate::memory::{Hint, Mapping, TableError, TableReadError, TenantMemory, mapped_len};
use crate::shim::Shim;

/// Granularity of mappings in bytes.
const PAGE: u64 = 4096;

/// The mapping of BAR2, as long as the longest table needed it.
#[derive(Debug, Default)]
pub(crate) struct TenantBar {
    mapping: Option<Arc<Mapping>>,
    /// What the last table made of it.
    memory: Option<Arc<TenantMemory>>,
    /// How fast the CPU reads it, once that is known.
    window: Arc<OnceLock<Findings>>,
    /// A probe has failed, and is not tried again.
    unknown: bool,
}

/// Why a memory table is not taken up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// The table could not be read.
    #[error(transparent)]
    Read(#[from] TableReadError),
    /// The table makes no sense.
    #[error(transparent)]
    Table(#[from] TableError),
    /// BAR2 is shorter than the table says, or cannot be mapped.
    #[error("BAR2 cannot be mapped: {0}")]
    Map(#[from] io::Error),
}

impl Refused {
    /// What the shim is told.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Read(_) => libc::EAGAIN,
            Self::Table(_) => libc::EINVAL,
            Self::Map(error) => error.raw_os_error().unwrap_or(libc::ENXIO),
        }
    }
}

impl TenantBar {
    /// No mapping yet; what is found out about it is left in `window`.
    pub fn new(window: Arc<OnceLock<Findings>>) -> Self {
        Self {
            window,
            ..Self::default()
        }
    }

    /// The memory of the table of `generation`; `None` if that is empty.
    ///
    /// # Errors
    /// [`Refused`]; the mapping in use stays then.
    pub fn memory(
        &mut self,
        generation: u32,
        shim: &Shim,
    ) -> Result<Option<Arc<TenantMemory>>, Refused> {
        let table = shim.memory_table(generation)?;
        let len = mapped_len(&table)?;
        if len == 0 {
            self.memory = None;
            return Ok(None);
        }
        let mapping = self.mapping_of(len, shim)?;
        self.memory = Some(Arc::new(TenantMemory::new(mapping, table)?));
        Ok(self.memory.clone())
    }

    /// Finds out how fast the CPU reads the mapping, once in the life of an attachment, and says so
    /// in the log of `hba`: by the descriptors of a ring that starts, which its driver has written
    /// already, so that no page of the tenant comes into being by being read.
    pub fn probe(&mut self, setup: &RingSetup, hba: &str) {
        if self.unknown || self.window.get().is_some() {
            return;
        }
        let Some(memory) = &self.memory else { return };
        let len = window::SPAN as u64;
        let Some(offset) = memory.run(&mut Hint::default(), setup.descriptor_table, len) else {
            return;
        };
        match window::probe(memory.mapping(), offset) {
            Ok(findings) => self.classify(findings, hba),
            Err(error) => {
                self.unknown = true;
                tracing::warn!(
                    hba,
                    "how the tenant's memory is mapped cannot be found out: {error}"
                );
            }
        }
    }

    fn classify(&self, findings: Findings, hba: &str) {
        let class = findings.class();
        let meaning = class.meaning();
        if class == Class::Uncached {
            tracing::warn!(hba, "the tenant's memory is mapped {meaning} ({findings})");
        } else {
            tracing::info!(hba, "the tenant's memory is mapped {meaning} ({findings})");
        }
        // Nobody else sets it.
        let _ = self.window.set(findings);
        if let Some(mapping) = &self.mapping {
            self.mark(mapping);
        }
    }

    /// What the mapping is to the CPU, if that is known.
    pub fn class(&self) -> Option<Class> {
        self.window.get().map(Findings::class)
    }

    /// Tells a mapping what is known about all of BAR2.
    fn mark(&self, mapping: &Mapping) {
        if self.class() == Some(Class::Uncached) {
            mapping.set_uncached();
        }
    }

    /// The mapping of the first `len` bytes of BAR2 or more; the one in use, if it is that long.
    fn mapping_of(&mut self, len: u64, shim: &Shim) -> io::Result<Arc<Mapping>> {
        if let Some(mapping) = &self.mapping
            && mapping.len() as u64 >= len
        {
            return Ok(Arc::clone(mapping));
        }
        let device = shim.device();
        let bar_len = device.bar_len(BAR_TENANT)?;
        if len > bar_len {
            return Err(io::Error::other(format!(
                "the table needs {len} bytes of BAR2, which has {bar_len}"
            )));
        }
        let pages = len.checked_next_multiple_of(PAGE).unwrap_or(len);
        let mapping = Arc::new(device.map(BAR_TENANT, pages)?);
        self.mark(&mapping);
        self.mapping = Some(Arc::clone(&mapping));
        Ok(mapping)
    }

    /// Lets the mapping go.
    pub fn let_go(&mut self) {
        self.mapping = None;
        self.memory = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::shared_memory;
    use crate::memory::window::Speed;

    fn findings(window: f64) -> Findings {
        let speed = Speed { window, own: 10e9 };
        Findings {
            read: speed,
            copy: speed,
        }
    }

    #[test]
    fn a_mapping_found_uncached_and_those_after_it_are_accessed_as_such() {
        let bar = TenantBar {
            mapping: Some(shared_memory(4096)),
            ..TenantBar::default()
        };
        bar.classify(findings(0.1e9), "tenant1");
        assert!(bar.mapping.as_ref().unwrap().is_uncached());
        let longer = shared_memory(8192);
        bar.mark(&longer);
        assert!(longer.is_uncached());
    }

    #[test]
    fn a_mapping_as_fast_as_our_own_memory_is_accessed_as_that() {
        let bar = TenantBar {
            mapping: Some(shared_memory(4096)),
            ..TenantBar::default()
        };
        bar.classify(findings(9e9), "tenant1");
        assert!(!bar.mapping.as_ref().unwrap().is_uncached());
        assert_eq!(bar.window.get(), Some(&findings(9e9)));
    }
}
