//! Vital product data: what INQUIRY tells of a unit for good (SPC-4 §7.8; SBC-4, VPD parameters).

use spec::scsi::page;
use spec::virtio_scsi::SENSE_LEN;

use super::fault::Fault;
use super::identity::Identity;
use super::inquiry::{DISK, VENDOR};
use super::limits::{
    self, MAX_COMPARE_AND_WRITE, MAX_TRANSFER, MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS,
};
use super::port::Port;
use super::{copy, protection, threshold};
use crate::disk::{Abilities, Geometry, Protection};

/// The pages there are, ascending.
const PAGES: [u8; 12] = [
    page::VPD_SUPPORTED,
    page::VPD_SERIAL_NUMBER,
    page::VPD_IDENTIFICATION,
    page::VPD_NETWORK_ADDRESSES,
    page::VPD_EXTENDED_INQUIRY,
    page::VPD_MODE_PAGE_POLICY,
    page::VPD_PORTS,
    page::VPD_THIRD_PARTY_COPY,
    page::VPD_BLOCK_LIMITS,
    page::VPD_BLOCK_CHARACTERISTICS,
    page::VPD_PROVISIONING,
    page::VPD_REFERRALS,
];

/// What the pages tell of.
#[derive(Debug)]
pub struct Unit<'a> {
    pub identity: &'a Identity,
    pub geometry: Geometry,
    pub abilities: Abilities,
    /// Whether there is a threshold on what is under a thin disk.
    pub thresholds: bool,
    /// Whether it can be sanitized.
    pub sanitizes: bool,
    /// What the protection information of its blocks means, if they have any.
    pub protection: Option<Protection>,
    /// The port by which it is asked.
    pub port: Port,
    /// The others, if it is shared.
    pub shared: Option<Vec<Port>>,
}

/// A page of vital product data.
///
/// # Errors
/// [`Fault::InvalidField`] for a page that there is not.
pub fn page(code: u8, unit: &Unit<'_>) -> Result<Vec<u8>, Fault> {
    let content = match code {
        page::VPD_SUPPORTED => PAGES.to_vec(),
        _ if !PAGES.contains(&code) => return Err(Fault::InvalidField { byte: 2, bit: 7 }),
        page::VPD_SERIAL_NUMBER => unit.identity.name().as_bytes().to_vec(),
        page::VPD_IDENTIFICATION => identification(unit),
        // There is no network on which one could manage it.
        page::VPD_NETWORK_ADDRESSES => Vec::new(),
        page::VPD_EXTENDED_INQUIRY => extended(unit),
        // Every mode page and subpage (3Fh, FFh) is shared (00b) among initiators.
        page::VPD_MODE_PAGE_POLICY => vec![0x3f, 0xff, 0x00, 0x00],
        page::VPD_PORTS => ports(unit),
        page::VPD_THIRD_PARTY_COPY => copy::vital(unit.geometry.block_size),
        page::VPD_BLOCK_LIMITS => block_limits(unit),
        page::VPD_BLOCK_CHARACTERISTICS => characteristics(unit.sanitizes),
        page::VPD_PROVISIONING => provisioning(unit),
        // No user data segments, as there are no referrals (R_SUP 0).
        page::VPD_REFERRALS => vec![0; 12],
        _ => return Err(Fault::InvalidField { byte: 2, bit: 7 }),
    };
    let mut data = vec![DISK, code];
    let len = u16::try_from(content.len()).unwrap_or(u16::MAX);
    data.extend(len.to_be_bytes());
    data.extend(content);
    Ok(data)
}

/// Designators (SPC-4 §7.8.6).
///
/// There is no SCSI name string of the unit on purpose: Linux would take it for a better name
/// than the NAA identifier, and units would change theirs.
fn identification(unit: &Unit<'_>) -> Vec<u8> {
    let identity = unit.identity;
    // Binary; logical unit, NAA; 8 bytes.
    let mut content = vec![0x01, 0x03, 0x00, 8];
    content.extend(identity.naa().to_be_bytes());
    // ASCII; logical unit, T10 vendor ID based.
    let mut vendor_based = VENDOR.to_vec();
    vendor_based.extend(identity.name().as_bytes());
    content.extend([0x02, 0x01, 0x00]);
    content.push(u8::try_from(vendor_based.len()).unwrap_or(u8::MAX));
    content.extend(vendor_based);
    // Binary; target port, relative target port identifier.
    content.extend([0x01, 0x14, 0x00, 4, 0, 0]);
    content.extend(unit.port.relative().to_be_bytes());
    if unit.shared.is_some() {
        // Binary; target port, target port group.
        content.extend([0x01, 0x15, 0x00, 4, 0, 0]);
        content.extend(unit.port.group().to_be_bytes());
    }
    content
}

/// Extended INQUIRY data.
fn extended(unit: &Unit<'_>) -> Vec<u8> {
    let mut content = vec![0; 60];
    // SPT, GRD_CHK, APP_CHK, REF_CHK.
    content[0] = unit
        .protection
        .map_or(0, protection::extended_inquiry_flags);
    // SIMPSUP. ORDERED and HEAD OF QUEUE are taken as SIMPLE, so they are not claimed.
    content[1] = 0x01;
    // V_SUP: there may be a volatile cache below.
    content[2] = u8::from(!unit.geometry.read_only);
    // LUICLR: REPORTED LUNS DATA HAS CHANGED is told once a nexus, not once a unit.
    content[3] = 0x01;
    // MAXIMUM SUPPORTED SENSE DATA LENGTH: what a virtio-scsi response has room for.
    content[9] = u8::try_from(SENSE_LEN).unwrap_or(0);
    content
}

/// The ports by which the unit is reached.
fn ports(unit: &Unit<'_>) -> Vec<u8> {
    let own = [unit.port];
    let ports = unit.shared.as_deref().unwrap_or(&own).iter();
    let mut content = Vec::new();
    for [high, low] in ports.map(|port| port.relative().to_be_bytes()) {
        // Relative port; no initiator port.
        content.extend([0, 0, high, low, 0, 0, 0, 0]);
        // Target port descriptors: no transport protocol that has a number (Fh, PIV), binary;
        // target port, relative target port identifier.
        content.extend([0, 0, 0, 8, 0xf1, 0x94, 0x00, 4, 0, 0, high, low]);
    }
    content
}

/// Limits of commands, in blocks.
fn block_limits(unit: &Unit<'_>) -> Vec<u8> {
    let Geometry {
        block_size,
        physical_block_size,
        ..
    } = unit.geometry;
    let blocks = |bytes: u32| (bytes / block_size).max(1);
    let granularity = u16::try_from(blocks(physical_block_size)).unwrap_or(u16::MAX);
    let optimal = unit.abilities.optimal.map_or(0, blocks).min(MAX_TRANSFER);
    let mut content = vec![0, MAX_COMPARE_AND_WRITE];
    content.extend(granularity.to_be_bytes()); // OPTIMAL TRANSFER LENGTH GRANULARITY
    let mut word = |value: u32| content.extend(value.to_be_bytes());
    word(MAX_TRANSFER);
    word(optimal);
    word(0); // MAXIMUM PREFETCH LENGTH: not told
    match unit.unmaps() {
        Some(granularity) => {
            word(MAX_UNMAP_BLOCKS);
            word(MAX_UNMAP_DESCRIPTORS.into());
            word(blocks(granularity));
            word(1 << 31); // UGAVALID: aligned at 0
        }
        None => (0..4).for_each(|_| word(0)),
    }
    word(0); // MAXIMUM WRITE SAME LENGTH has eight bytes
    word(u32::try_from(limits::write_same(&unit.geometry)).unwrap_or(u32::MAX));
    match limits::atomic(&unit.abilities, &unit.geometry) {
        Some(atomic) if !unit.geometry.read_only => {
            word(atomic.max);
            // Alignment, and granularity of the length. No field says that blocks on both sides
            // of a multiple of the maximum cannot be written.
            word(atomic.granularity);
            word(atomic.granularity);
        }
        _ => (0..3).for_each(|_| word(0)),
    }
    // No atomic boundaries.
    word(0);
    word(0);
    content
}

/// Block device characteristics.
fn characteristics(sanitizes: bool) -> Vec<u8> {
    let mut content = vec![0; 60];
    content[1] = 1; // MEDIUM ROTATION RATE: does not rotate
    // WABEREQ 01b: blocks can be read after SANITIZE has erased them.
    content[3] = if sanitizes { 0x40 } else { 0 };
    // FUAB: FUA and SYNCHRONIZE CACHE reach stable storage; VBULS: blocks that were given back
    // can be verified.
    content[4] = 0x02 | 0x01;
    content
}

/// Logical block provisioning.
fn provisioning(unit: &Unit<'_>) -> Vec<u8> {
    let exponent = if unit.thresholds {
        threshold::exponent(&unit.geometry)
    } else {
        0
    };
    // LBPU, LBPWS, LBPWS10: all of them unmap. LBPRZ: 001b, what is unmapped reads as zeros.
    let unmaps = unit.unmaps().map_or(0, |_| 0x80 | 0x40 | 0x20);
    let (zeros, kind) = match unit.abilities.thin {
        Some(_) => (0x04, 2), // PROVISIONING TYPE: thin
        None => (0, 0),
    };
    vec![exponent, unmaps | zeros, kind, 0]
}

impl Unit<'_> {
    /// Bytes that are given back together, if initiators can give any back.
    fn unmaps(&self) -> Option<u32> {
        let thin = self.abilities.thin.filter(|_| !self.geometry.read_only);
        thin.map(|thin| thin.granularity)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, Shape};
    use crate::disk::Geometry;

    fn vital(shape: Shape, code: u8) -> Vec<u8> {
        Bench::new(shape).data(&[0x12, 1, code, 0x10, 0, 0])
    }

    #[test]
    fn the_supported_pages_are_listed_in_order_and_are_all_there() {
        let list = vital(Shape::PLAIN, 0x00);
        assert_eq!(
            list,
            [
                0, 0, 0, 12, 0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0x8f, 0xb0, 0xb1, 0xb2, 0xb3
            ]
        );
        for &code in &list[4..] {
            let page = vital(Shape::PLAIN, code);
            let len = usize::from(u16::from_be_bytes([page[2], page[3]]));
            assert_eq!((page[0], page[1], len), (0, code, page.len() - 4));
        }
    }

    #[test]
    fn a_page_that_is_not_listed_is_an_invalid_field() {
        let bench = Bench::new(Shape::PLAIN);
        for code in [0x01, 0x81, 0x84, 0xb4, 0xff] {
            let sense = bench.sense(&[0x12, 1, code, 0, 255, 0]);
            assert_eq!(sense[2], 5);
            assert_eq!(sense[12..], [0x24, 0, 0, 0xcf, 0, 2]);
        }
    }

    #[test]
    fn the_identity_of_a_unit_never_changes() {
        let page = vital(Shape::PLAIN, 0x83);
        assert_eq!(page[..4], [0, 0x83, 0, 12 + 4 + 12 + 8]);
        assert_eq!(page[4..8], [0x01, 0x03, 0, 8]);
        // This value is on tenants' disks by name; a change would be another disk to them.
        assert_eq!(page[8..16], 0x3354_fd1f_f0c4_67cf_u64.to_be_bytes());
        assert_eq!(&page[16..32], b"\x02\x01\0\x0cVHOSTPCIroot");
        assert_eq!(page[32..], [0x01, 0x14, 0, 4, 0, 0, 0, 1]);
        assert_eq!(vital(Shape::PLAIN, 0x80), *b"\0\x80\0\x04root");
    }

    #[test]
    fn pages_of_the_target_say_what_there_is_not() {
        assert_eq!(vital(Shape::PLAIN, 0x85), [0, 0x85, 0, 0]);
        let mut extended = vec![0, 0x86, 0, 60, 0, 0x01, 0x01, 0x01];
        extended.resize(64, 0);
        extended[13] = 96;
        assert_eq!(vital(Shape::PLAIN, 0x86), extended);
        assert_eq!(vital(Shape::PLAIN, 0x87), [0, 0x87, 0, 4, 0x3f, 0xff, 0, 0]);
        assert_eq!(
            vital(Shape::PLAIN, 0x88),
            [
                0, 0x88, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0xf1, 0x94, 0, 4, 0, 0, 0, 1
            ]
        );
        let mut referrals = vec![0, 0xb3, 0, 12];
        referrals.resize(16, 0);
        assert_eq!(vital(Shape::PLAIN, 0xb3), referrals);
    }

    #[test]
    fn block_limits_of_a_plain_512e_disk() {
        #[rustfmt::skip]
        let expected = [
            0x00, 0xb0, 0x00, 0x3c,
            0x00, 0xff, // WSNZ 0, COMPARE AND WRITE of 255
            0x00, 0x08, // granularity of eight 512-byte blocks
            0x00, 0x01, 0x00, 0x00, // at most 65536 blocks
            0x00, 0x00, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // no UNMAP
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, // WRITE SAME
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // no WRITE ATOMIC
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        ];
        assert_eq!(vital(Shape::PLAIN, 0xb0), expected);
    }

    #[test]
    fn block_limits_of_a_thin_atomic_512e_disk() {
        #[rustfmt::skip]
        let expected = [
            0x00, 0xb0, 0x00, 0x3c,
            0x00, 0xff, 0x00, 0x08,
            0x00, 0x01, 0x00, 0x00,
            0x00, 0x00, 0x08, 0x00, // optimal: 1 MiB
            0x00, 0x00, 0x00, 0x00,
            0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, // UNMAP
            0x00, 0x00, 0x00, 0x80, 0x80, 0x00, 0x00, 0x00, // of 64 KiB, aligned
            0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x20, // WRITE ATOMIC: 16 KiB, of 4 KiB at least
            0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x08,
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        ];
        assert_eq!(vital(Shape::THIN, 0xb0), expected);
    }

    #[test]
    fn block_limits_of_a_thin_4kn_disk_are_in_its_blocks() {
        let shape = Shape {
            geometry: Geometry {
                block_size: 4096,
                ..Shape::THIN.geometry
            },
            ..Shape::THIN
        };
        let page = vital(shape, 0xb0);
        assert_eq!(page[6..16], [0, 1, 0, 1, 0, 0, 0, 0, 1, 0]);
        assert_eq!(page[28..36], [0, 0, 0, 0x10, 0x80, 0, 0, 0]);
        // WRITE SAME: 512 MiB.
        assert_eq!(page[36..44], [0, 0, 0, 0, 0, 2, 0, 0]);
        assert_eq!(page[44..56], [0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn a_read_only_disk_gives_nothing_back_and_writes_nothing_atomically() {
        let shape = Shape {
            geometry: Geometry {
                read_only: true,
                ..Shape::THIN.geometry
            },
            ..Shape::THIN
        };
        let limits = vital(shape, 0xb0);
        assert_eq!(limits[20..36], [0; 16]);
        assert_eq!(limits[44..56], [0; 12]);
        assert_eq!(vital(shape, 0xb2), [0, 0xb2, 0, 4, 11, 0x04, 2, 0]);
        assert_eq!(vital(shape, 0x86)[6], 0, "no cache to be flushed");
    }

    #[test]
    fn characteristics_are_those_of_a_disk_that_does_not_rotate() {
        let mut expected = vec![0, 0xb1, 0, 60, 0, 1, 0, 0, 0x03];
        expected.resize(64, 0);
        assert_eq!(vital(Shape::PLAIN, 0xb1), expected);
    }

    #[test]
    fn provisioning_is_thin_where_the_disk_is() {
        assert_eq!(vital(Shape::PLAIN, 0xb2), [0, 0xb2, 0, 4, 0, 0, 0, 0]);
        assert_eq!(vital(Shape::THIN, 0xb2), [0, 0xb2, 0, 4, 11, 0xe4, 2, 0]);
        let silent = Shape {
            usage: None,
            ..Shape::THIN
        };
        assert_eq!(vital(silent, 0xb2), [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
    }
}
