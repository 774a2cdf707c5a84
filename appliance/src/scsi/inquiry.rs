//! Standard INQUIRY data (SPC-4 §6.6).

/// Peripheral qualifier and device type: a connected direct access block device.
pub const DISK: u8 = 0x00;
/// A well-known logical unit.
pub const WELL_KNOWN: u8 = 0x1e;
/// No device here, and there cannot be one.
pub const NOTHING: u8 = 0x7f;

/// T10 VENDOR IDENTIFICATION.
pub const VENDOR: &[u8; 8] = b"VHOSTPCI";
const PRODUCT: &[u8; 16] = b"STORAGE         ";
const REVISION: &[u8; 4] = b"0001";

/// Standard INQUIRY data for a peripheral qualifier and device type.
///
/// What is not there is not claimed: ACA (NORMACA), third-party copy by what is no disk (3PC). The
/// blocks of one that is `protected` have protection information (PROTECT). A unit that is `shared` has several ports, of which each HBA sees one, and
/// asymmetric access to them, implicit and explicit (MULTIP, TPGS 11b).
pub fn standard(peripheral: u8, shared: bool, protected: bool) -> Vec<u8> {
    let mut data = vec![0; 96];
    data[0] = peripheral;
    data[2] = 0x06; // VERSION: SPC-4
    data[3] = 0x12; // HISUP, RESPONSE DATA FORMAT 2
    data[4] = 96 - 5; // ADDITIONAL LENGTH
    if shared {
        (data[5], data[6]) = (0x30, 0x10);
    }
    if protected {
        data[5] |= 0x01;
    }
    if peripheral == DISK {
        data[5] |= 0x08; // 3PC
    }
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    // Version descriptors: SAM-5, SPC-4, SBC-3.
    data[58..64].copy_from_slice(&[0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0]);
    data
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, Shape};
    use super::*;

    #[test]
    fn standard_inquiry_data_describes_a_disk() {
        let bench = Bench::new(Shape::PLAIN);
        let data = bench.data(&[0x12, 0, 0, 0, 255, 0]);
        let mut expected = vec![0x00, 0x00, 0x06, 0x12, 91, 0x08, 0x00, 0x02];
        expected.extend(b"VHOSTPCISTORAGE         0001");
        expected.resize(58, 0);
        expected.extend([0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0]);
        expected.resize(96, 0);
        assert_eq!(data, expected);
    }

    #[test]
    fn other_peripherals_differ_in_what_they_are_and_copy_nothing() {
        let standard = |peripheral| standard(peripheral, false, false);
        assert_eq!(standard(NOTHING)[0], 0x7f);
        let (nothing, disk) = (standard(NOTHING), standard(DISK));
        assert_eq!((nothing[5], disk[5]), (0x00, 0x08), "only a disk copies");
        assert_eq!((&nothing[1..5], &nothing[6..]), (&disk[1..5], &disk[6..]));
        assert_eq!(standard(WELL_KNOWN)[0], 0x1e);
    }

    #[test]
    fn a_disk_with_protection_information_says_so() {
        assert_eq!(standard(DISK, false, true)[5], 0x09, "3PC, PROTECT");
        assert_eq!(standard(DISK, true, true)[5], 0x39, "TPGS 11b");
    }
}
