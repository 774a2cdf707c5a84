//! What a session tells of itself to those who look.

use super::Session;

/// A session at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Virtio features that the tenant's driver has accepted, if it has.
    pub features: Option<u64>,
    /// Regions of the tenant's memory, and their bytes.
    pub memory: (usize, u64),
    /// Rings that the appliance runs.
    pub rings: Vec<u16>,
    /// Calls of the tenant's QEMU that wait for an answer.
    pub waiting: usize,
}

impl Session {
    /// What is to be told.
    pub fn summary(&self) -> Summary {
        let entries = self.memory.entries();
        let bytes = entries
            .iter()
            .fold(0_u64, |sum, entry| sum.saturating_add(entry.len));
        Summary {
            features: self.features,
            memory: (entries.len(), bytes),
            rings: self
                .ring_indices()
                .filter(|&ring| self.runs(ring))
                .collect(),
            waiting: self.waiting.len(),
        }
    }
}
