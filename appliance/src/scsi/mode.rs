//! MODE SENSE: what the initiator may know of the unit's settings (SPC-4 §6.11, §7.5; SBC-3 §6.5).

use spec::scsi::page;

use super::command::ModePages;
use super::fault::Fault;
use crate::disk::Geometry;

/// WP of the device-specific parameter.
const WRITE_PROTECTED: u8 = 0x80;
/// DPOFUA of the device-specific parameter.
const DPO_FUA: u8 = 0x10;

/// PC of the CDB: only what can be changed, as a mask.
const CHANGEABLE: u8 = 1;
/// PC of the CDB: what was saved.
const SAVED: u8 = 3;

/// The mode parameters that are asked for.
pub fn sense(wanted: &ModePages, geometry: &Geometry) -> Result<Vec<u8>, Fault> {
    let ModePages {
        long,
        long_lba,
        no_block_descriptor,
        control,
        page,
        subpage,
        ..
    } = *wanted;
    if control == SAVED {
        return Err(Fault::SavingNotSupported);
    }
    let mut pages = match page {
        page::MODE_CACHING => vec![caching()],
        page::MODE_CONTROL => vec![self::control()],
        page::MODE_ALL => vec![caching(), self::control()],
        _ => return Err(Fault::InvalidField { byte: 2, bit: 5 }),
    };
    // There are no subpages: "all of them" is the page itself.
    if !matches!(subpage, 0 | page::MODE_ALL_SUBPAGES) {
        return Err(Fault::InvalidField { byte: 3, bit: 7 });
    }
    if control == CHANGEABLE {
        pages.iter_mut().for_each(|page| page[2..].fill(0));
    }
    let descriptor = match (no_block_descriptor, long_lba) {
        (true, _) => Vec::new(),
        (false, false) => short_descriptor(geometry),
        (false, true) => long_descriptor(geometry),
    };
    let parameter = DPO_FUA
        | if geometry.read_only {
            WRITE_PROTECTED
        } else {
            0
        };
    let body = [descriptor.as_slice(), &pages.concat()].concat();
    // Both lengths are of our own making: at most 16 + 32 bytes.
    let descriptor_len = u8::try_from(descriptor.len()).unwrap_or(0);
    let body_len = u8::try_from(body.len()).unwrap_or(0);
    // MODE DATA LENGTH does not count itself.
    let mut data = if long {
        let long_descriptor = u8::from(long_lba && !no_block_descriptor);
        vec![
            0,
            body_len + 6,
            0,
            parameter,
            long_descriptor,
            0,
            0,
            descriptor_len,
        ]
    } else {
        vec![body_len + 3, 0, parameter, descriptor_len]
    };
    data.extend(body);
    Ok(data)
}

/// Caching: WCE, since a disk has a volatile cache below it whatever our own mode is.
fn caching() -> Vec<u8> {
    let mut page = vec![0; 20];
    page[..3].copy_from_slice(&[page::MODE_CACHING, 18, 0x04]);
    page
}

/// Control: GLTSD (no log parameters are saved), unrestricted reordering, fixed-format sense.
fn control() -> Vec<u8> {
    let mut page = vec![0; 12];
    page[..4].copy_from_slice(&[page::MODE_CONTROL, 10, 0x02, 0x10]);
    page
}

/// Short LBA mode parameter block descriptor.
fn short_descriptor(geometry: &Geometry) -> Vec<u8> {
    let blocks = u32::try_from(geometry.blocks).unwrap_or(u32::MAX);
    let mut descriptor = blocks.to_be_bytes().to_vec();
    // The block length has three bytes; its first byte is zero and takes the reserved one's place.
    descriptor.extend(geometry.block_size.to_be_bytes());
    descriptor
}

/// Long LBA mode parameter block descriptor.
fn long_descriptor(geometry: &Geometry) -> Vec<u8> {
    let mut descriptor = geometry.blocks.to_be_bytes().to_vec();
    descriptor.extend([0; 4]);
    descriptor.extend(geometry.block_size.to_be_bytes());
    descriptor
}
