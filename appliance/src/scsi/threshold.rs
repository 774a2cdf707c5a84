//! The threshold of a thin unit: when its initiators are told that space runs short.
//!
//! Resources are counted in threshold sets (SBC-4, logical block provisioning VPD page: THRESHOLD
//! EXPONENT), so that a count fits 32 bits.

use serde::{Deserialize, Serialize};

use crate::disk::{Geometry, Usage};

/// Bytes of a threshold set of all but the largest units. Half of it on either side of the
/// threshold is the range in which nothing happens.
const SET: u64 = 1 << 20;

/// A threshold on the resources that are still available, as mode page 1Ch/02h has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Whether initiators are told.
    pub enabled: bool,
    /// Threshold sets that are still available when they are.
    pub count: u32,
}

impl Threshold {
    /// What is reached when `percent` of all that a disk can occupy is used.
    pub fn at_percent(percent: u8, usage: Usage, geometry: &Geometry) -> Self {
        let total = u128::from(usage.used) + u128::from(usage.available);
        let left = total * u128::from(100_u8.saturating_sub(percent)) / 100;
        let count = left / u128::from(set_len(geometry));
        Self {
            enabled: true,
            count: u32::try_from(count).unwrap_or(u32::MAX),
        }
    }
}

/// THRESHOLD EXPONENT: blocks of a threshold set as a power of two, never 0.
pub fn exponent(geometry: &Geometry) -> u8 {
    let block = u64::from(geometry.block_size).max(1);
    let usual = (SET / block).checked_ilog2().unwrap_or(1).max(1);
    // The capacity in threshold sets must fit 32 bits.
    let needed = geometry.blocks.checked_ilog2().unwrap_or(0);
    let exponent = usual.max(needed.saturating_sub(31));
    u8::try_from(exponent).unwrap_or(u8::MAX)
}

/// Bytes of a threshold set.
pub fn set_len(geometry: &Geometry) -> u64 {
    u64::from(geometry.block_size) << exponent(geometry)
}

/// Whether a threshold was crossed, told once a crossing.
///
/// SBC-4, armed decreasing threshold: it is armed above the range around it, and reached below.
#[derive(Debug, Default)]
pub struct Watch {
    armed: bool,
    threshold: Threshold,
}

impl Watch {
    /// Whether `threshold` is reached now and was not before.
    pub fn reached(&mut self, threshold: Threshold, usage: Usage, geometry: &Geometry) -> bool {
        if self.threshold != threshold {
            // One that is new may be reached from the start.
            *self = Self {
                armed: threshold.enabled,
                threshold,
            };
        }
        let set = set_len(geometry);
        let center = u128::from(threshold.count) * u128::from(set);
        let half = u128::from(set / 2);
        let available = u128::from(usage.available);
        if available > center + half {
            self.armed = threshold.enabled;
        }
        // At the threshold of nothing at all there is no room below.
        let low = center.saturating_sub(half);
        self.armed && available <= low && std::mem::take(&mut self.armed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const GEOMETRY: Geometry = Geometry {
        block_size: 512,
        blocks: 1 << 21,
        physical_block_size: 512,
        read_only: false,
    };

    fn usage(used: u64, available: u64) -> Usage {
        Usage { used, available }
    }

    #[test]
    fn a_threshold_set_is_a_mebibyte_unless_the_unit_is_larger_than_4_pebibytes() {
        assert_eq!(exponent(&GEOMETRY), 11);
        assert_eq!(
            exponent(&Geometry {
                block_size: 4096,
                ..GEOMETRY
            }),
            8
        );
        let capacity = |blocks| exponent(&Geometry { blocks, ..GEOMETRY });
        assert_eq!(capacity((1 << 43) - 1), 11);
        assert_eq!(capacity(1 << 43), 12);
        assert_eq!(capacity(u64::MAX), 32);
    }

    #[test]
    fn a_percentage_is_of_what_is_used_and_what_is_left() {
        let at = |percent| Threshold::at_percent(percent, usage(30 * MIB, 70 * MIB), &GEOMETRY);
        assert_eq!(
            at(80),
            Threshold {
                enabled: true,
                count: 20
            }
        );
        assert_eq!((at(0).count, at(100).count, at(255).count), (100, 0, 0));
    }

    #[test]
    fn a_threshold_is_told_once_until_there_was_room_again() {
        let threshold = Threshold {
            enabled: true,
            count: 20,
        };
        let mut watch = Watch::default();
        let mut at = |available| watch.reached(threshold, usage(0, available), &GEOMETRY);
        let half = MIB / 2;
        assert!(!at(50 * MIB));
        assert!(!at(20 * MIB), "inside the range");
        assert!(!at(20 * MIB - half + 1));
        assert!(at(20 * MIB - half));
        assert!(!at(20 * MIB - half), "told already");
        assert!(!at(0));
        assert!(!at(20 * MIB + half), "not above the range");
        assert!(!at(0));
        assert!(!at(20 * MIB + half + 1), "armed again");
        assert!(at(0));
    }

    #[test]
    fn a_threshold_that_is_reached_when_it_is_set_is_told() {
        let mut watch = Watch::default();
        let set = |enabled, count| Threshold { enabled, count };
        let short = usage(0, MIB);
        assert!(!watch.reached(set(false, 20), short, &GEOMETRY));
        assert!(watch.reached(set(true, 20), short, &GEOMETRY));
        assert!(!watch.reached(set(true, 20), short, &GEOMETRY));
        assert!(watch.reached(set(true, 10), short, &GEOMETRY));
    }

    #[test]
    fn a_threshold_of_nothing_left_is_told_when_nothing_is_left() {
        let mut watch = Watch::default();
        let threshold = Threshold {
            enabled: true,
            count: 0,
        };
        assert!(!watch.reached(threshold, usage(0, MIB), &GEOMETRY));
        assert!(watch.reached(threshold, usage(0, 0), &GEOMETRY));
    }
}
