//! A network between two machines: a virtio-net device in each, joined by a stream of frames.

use std::path::PathBuf;

use super::scenario::Scenario;

/// Bytes of an IP packet, as on networks for storage: a page and its headers fit one frame.
pub const MTU: u16 = 9000;

/// The network.
#[derive(Debug, Clone)]
pub struct Link {
    socket: PathBuf,
}

/// Which of the two machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one that listens.
    First,
    /// The one that connects, again and again until it has.
    Second,
}

impl Link {
    /// The network `name`; one machine is its first end, another the second.
    pub fn new(scenario: &Scenario, name: &str) -> Self {
        Self {
            socket: scenario.socket(&format!("{name}.link")),
        }
    }

    /// QEMU's arguments for the machine at `end`.
    pub(super) fn arguments(&self, end: End) -> [String; 4] {
        // Locally administered addresses.
        let (how, address) = match end {
            End::First => ("server=on", "52:54:00:00:00:01"),
            End::Second => ("server=off,reconnect-ms=200", "52:54:00:00:00:02"),
        };
        let path = self.socket.display();
        [
            "-netdev".to_owned(),
            format!("stream,id=link,addr.type=unix,addr.path={path},{how}"),
            "-device".to_owned(),
            // Nobody boots from it.
            format!("virtio-net-pci,netdev=link,mac={address},host_mtu={MTU},romfile="),
        ]
    }
}
