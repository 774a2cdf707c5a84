//! Which versions of the shim and the appliance work together.

use std::fmt;

/// A protocol version, as the VERSION and DRIVER_VERSION registers hold it: major in the upper
/// 16 bits, minor in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes when old and new cannot work together.
    pub major: u16,
    /// Counts additions.
    pub minor: u16,
}

/// The version that this crate describes.
pub const CURRENT: Version = Version { major: 1, minor: 1 };

impl Version {
    /// The version in a register value.
    pub const fn from_register(value: u32) -> Self {
        let [a, b, c, d] = value.to_le_bytes();
        Self {
            major: u16::from_le_bytes([c, d]),
            minor: u16::from_le_bytes([a, b]),
        }
    }

    /// The register value of this version.
    pub const fn to_register(self) -> u32 {
        let [a, b] = self.minor.to_le_bytes();
        let [c, d] = self.major.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Whether a side of this version knows in-flight memory.
    pub const fn has_inflight(self) -> bool {
        self.minor >= 1
    }

    /// Whether two sides with these versions work together: the same major version, minor
    /// versions at most one apart.
    pub const fn works_with(self, other: Self) -> bool {
        self.major == other.major && self.minor.abs_diff(other.minor) <= 1
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_survives_its_register() {
        let version = Version {
            major: 3,
            minor: 0x1234,
        };
        assert_eq!(version.to_register(), 0x0003_1234);
        assert_eq!(Version::from_register(0x0003_1234), version);
    }

    #[test]
    fn one_minor_version_apart_works_in_either_direction() {
        let v = |major, minor| Version { major, minor };
        assert!(v(1, 4).works_with(v(1, 5)));
        assert!(v(1, 5).works_with(v(1, 4)));
        assert!(!v(1, 3).works_with(v(1, 5)));
        assert!(!v(1, 5).works_with(v(1, 3)));
        assert!(!v(2, 4).works_with(v(1, 4)));
    }
}
