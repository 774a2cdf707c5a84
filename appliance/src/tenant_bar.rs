//! BAR2, in which the tenant's memory file is, mapped as far as the tenant's memory table needs it.
//!
//! The shim publishes the table in session memory; together with this mapping it makes a
//! [`TenantMemory`], which rings and tasks use.

use std::io;
use std::sync::Arc;

use spec::device::BAR_TENANT;

use crate::memory::{Mapping, TableError, TableReadError, TenantMemory, mapped_len};
use crate::shim::Shim;

/// Granularity of mappings in bytes.
const PAGE: u64 = 4096;

/// The mapping of BAR2, as long as the longest table needed it.
#[derive(Debug, Default)]
pub(crate) struct TenantBar {
    mapping: Option<Arc<Mapping>>,
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
            return Ok(None);
        }
        let mapping = self.mapping_of(len, shim)?;
        Ok(Some(Arc::new(TenantMemory::new(mapping, table)?)))
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
        self.mapping = Some(Arc::clone(&mapping));
        Ok(mapping)
    }

    /// Lets the mapping go.
    pub fn let_go(&mut self) {
        self.mapping = None;
    }
}
