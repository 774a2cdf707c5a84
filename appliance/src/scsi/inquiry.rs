//! INQUIRY: standard data and vital product data (SPC-4 §6.6, §7.8; SBC-3 §6.6).

use spec::scsi::page;

use super::fault::Fault;
use super::identity::Identity;
use super::limits::MAX_TRANSFER;
use crate::disk::Geometry;

/// Peripheral qualifier and device type: a connected direct access block device.
pub const DISK: u8 = 0x00;
/// A well-known logical unit.
pub const WELL_KNOWN: u8 = 0x1e;
/// No device here, and there cannot be one.
pub const NOTHING: u8 = 0x7f;

const VENDOR: &[u8; 8] = b"VHOSTPCI";
const PRODUCT: &[u8; 16] = b"STORAGE         ";
const REVISION: &[u8; 4] = b"0001";

/// The pages there are, ascending.
const PAGES: [u8; 6] = [
    page::VPD_SUPPORTED,
    page::VPD_SERIAL_NUMBER,
    page::VPD_IDENTIFICATION,
    page::VPD_BLOCK_LIMITS,
    page::VPD_BLOCK_CHARACTERISTICS,
    page::VPD_PROVISIONING,
];

/// Standard INQUIRY data for a peripheral qualifier and device type.
pub fn standard(peripheral: u8) -> Vec<u8> {
    let mut data = vec![0; 96];
    data[0] = peripheral;
    data[2] = 0x06; // VERSION: SPC-4
    data[3] = 0x12; // HISUP, RESPONSE DATA FORMAT 2
    data[4] = 96 - 5; // ADDITIONAL LENGTH
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    // Version descriptors: SAM-5, SPC-4, SBC-3.
    data[58..64].copy_from_slice(&[0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0]);
    data
}

/// A page of vital product data.
pub fn vital(code: u8, identity: &Identity, geometry: &Geometry) -> Result<Vec<u8>, Fault> {
    let content = match code {
        page::VPD_SUPPORTED => PAGES.to_vec(),
        page::VPD_SERIAL_NUMBER => identity.name().as_bytes().to_vec(),
        page::VPD_IDENTIFICATION => identification(identity),
        page::VPD_BLOCK_LIMITS => block_limits(geometry),
        page::VPD_BLOCK_CHARACTERISTICS => {
            let mut content = vec![0; 60];
            content[1] = 1; // MEDIUM ROTATION RATE: does not rotate
            content
        }
        // Fully provisioned, no unmapping (SBC-3 §6.6.4).
        page::VPD_PROVISIONING => vec![0; 4],
        _ => return Err(Fault::InvalidField { byte: 2, bit: 7 }),
    };
    let mut data = vec![DISK, code];
    let len = u16::try_from(content.len()).unwrap_or(u16::MAX);
    data.extend(len.to_be_bytes());
    data.extend(content);
    Ok(data)
}

/// Designators of the logical unit (SPC-4 §7.8.6).
fn identification(identity: &Identity) -> Vec<u8> {
    // Binary; logical unit, NAA; 8 bytes.
    let mut content = vec![0x01, 0x03, 0x00, 8];
    content.extend(identity.naa().to_be_bytes());
    // ASCII; logical unit, T10 vendor ID based.
    let mut vendor_based = VENDOR.to_vec();
    vendor_based.extend(identity.name().as_bytes());
    content.extend([0x02, 0x01, 0x00]);
    content.push(u8::try_from(vendor_based.len()).unwrap_or(u8::MAX));
    content.extend(vendor_based);
    content
}

fn block_limits(geometry: &Geometry) -> Vec<u8> {
    let mut content = vec![0; 60];
    let granularity = geometry.physical_block_size / geometry.block_size;
    let granularity = u16::try_from(granularity).unwrap_or(u16::MAX);
    // OPTIMAL TRANSFER LENGTH GRANULARITY, MAXIMUM TRANSFER LENGTH, both in blocks.
    content[2..4].copy_from_slice(&granularity.to_be_bytes());
    content[4..8].copy_from_slice(&MAX_TRANSFER.to_be_bytes());
    content
}
