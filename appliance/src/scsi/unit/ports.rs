//! The ports by which a unit is reached, with the states that they are in.

use std::sync::{MutexGuard, PoisonError, Weak};

use super::{LogicalUnit, Outcome};
use crate::scsi::Buffers;
use crate::scsi::access::{Access, Groups, Path};
use crate::scsi::attention::Attention;
use crate::scsi::fault::Fault;
use crate::scsi::nexus::Nexus;
use crate::scsi::port::Port;

/// Most bytes of a SET TARGET PORT GROUPS list: a descriptor for every group that there can be.
const MAX_LIST: usize = 4 + 256 * 4;

impl LogicalUnit {
    /// The HBAs by which it is reached from now on, and how well each is to reach it. A unit that
    /// is not shared is reached as well as can be, however that may be.
    pub fn set_paths(&self, paths: &[Path]) {
        let mut paths = paths.to_vec();
        if !self.supports.ports {
            for path in &mut paths {
                path.access = Access::default();
            }
        }
        let mut groups = self.groups();
        let has_changed = groups.configure(&paths);
        self.take_up(&groups, has_changed, None);
    }

    /// SET TARGET PORT GROUPS.
    pub(super) fn set_port_groups(
        &self,
        nexus: &Nexus,
        len: usize,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        if len > MAX_LIST {
            return Err(Fault::ParameterListLength);
        }
        // Read once: the tenant may change it while we look.
        let mut list = vec![0; len];
        if buffers.data_out.read_at(0, &mut list) < len {
            return Ok(Outcome::Overrun);
        }
        let mut groups = self.groups();
        let has_changed = groups.set(&list)?;
        self.take_up(&groups, has_changed, Some(nexus));
        Ok(Outcome::Done { moved: len })
    }

    /// Gives every nexus the state of its port, and tells everyone, but for who has changed it.
    fn take_up(&self, groups: &Groups, has_changed: bool, by: Option<&Nexus>) {
        for nexus in self.nexuses().iter().filter_map(Weak::upgrade) {
            nexus.set_access(groups.state(nexus.port()));
            if has_changed && by.is_none_or(|by| by.id() != nexus.id()) {
                nexus.establish(Attention::AccessChanged);
            }
        }
    }

    /// The ports by which it is reached, that of `nexus` among them.
    pub(super) fn ports(&self, nexus: &Nexus) -> Vec<Port> {
        let mut ports: Vec<_> = self.groups().ports().collect();
        if !ports.contains(&nexus.port()) {
            ports.push(nexus.port());
        }
        ports
    }

    pub(super) fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
