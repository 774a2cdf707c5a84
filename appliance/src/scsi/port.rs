//! The port by which an HBA reaches a logical unit, which names their I_T nexus.

use uuid::Uuid;

/// An HBA, as targets know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initiator {
    /// Its UUID: the initiator port.
    pub uuid: Uuid,
    /// Its number among those of the appliance, from 1 on: the target port group that is made of
    /// its targets' ports.
    pub number: u8,
}

/// The target port of an HBA by which it reaches a logical unit. No other HBA reaches anything by
/// it, so it names the I_T nexus too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The HBA.
    pub initiator: Initiator,
    /// The target of the HBA whose port it is.
    pub target: u8,
}

impl Port {
    /// RELATIVE TARGET PORT IDENTIFIER: never 0, and never that of another port of the appliance.
    pub fn relative(self) -> u16 {
        // At most 254 * 256 + 255 + 1.
        (u16::from(self.initiator.number.saturating_sub(1)) << 8 | u16::from(self.target))
            .saturating_add(1)
    }

    /// TARGET PORT GROUP.
    pub fn group(self) -> u16 {
        self.initiator.number.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_a_number_of_its_own() {
        let relative = |number, target| {
            let uuid = Uuid::nil();
            let initiator = Initiator { uuid, number };
            Port { initiator, target }.relative()
        };
        assert_eq!(relative(1, 0), 1);
        assert_eq!(relative(1, 255), 256);
        assert_eq!(relative(2, 0), 257);
        assert_eq!(relative(255, 255), 0xff00);
    }
}
