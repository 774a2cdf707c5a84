//! MODE SENSE: what the initiator may know of the unit's settings (SPC-4 §6.11, §7.5; SBC-3 §6.5).

mod pages;
mod saved;
mod select;
mod settings;

use spec::scsi::page;

pub use select::{Selection, select};
pub use settings::{Modes, Settings};

use super::command::ModePages;
use super::fault::Fault;
use crate::disk::Geometry;

/// WP of the device-specific parameter.
const WRITE_PROTECTED: u8 = 0x80;
/// DPOFUA of the device-specific parameter.
const DPO_FUA: u8 = 0x10;

/// PC of the CDB: the values in effect.
const CURRENT: u8 = 0;
/// PC of the CDB: only what can be changed, as a mask.
const CHANGEABLE: u8 = 1;
/// PC of the CDB: what there is without a change.
const DEFAULT: u8 = 2;

/// The mode parameters that are asked for, of a unit that has `thresholds` or not.
pub fn sense(
    wanted: &ModePages,
    geometry: &Geometry,
    modes: &Modes,
    thresholds: bool,
) -> Result<Vec<u8>, Fault> {
    let ModePages {
        long,
        long_lba,
        no_block_descriptor,
        control,
        page,
        subpage,
        ..
    } = *wanted;
    let current = modes.told();
    let saved = modes.saved();
    let settings = match control {
        CURRENT | CHANGEABLE => current,
        DEFAULT => modes.defaults(),
        _ => saved.ok_or(Fault::SavingNotSupported)?,
    };
    let mut pages = pages::all(&settings, thresholds);
    pages.retain(|known| {
        (page == page::MODE_ALL || page == known.code)
            && (subpage == page::MODE_ALL_SUBPAGES || subpage == known.subpage)
    });
    if pages.is_empty() {
        check_absent(control, page, subpage, thresholds)?;
    }
    if page == page::MODE_ALL && !matches!(subpage, 0 | page::MODE_ALL_SUBPAGES) {
        return Err(Fault::InvalidField { byte: 3, bit: 7 });
    }
    let mut body = match (no_block_descriptor, long_lba) {
        (true, _) => Vec::new(),
        (false, false) => short_descriptor(geometry),
        (false, true) => long_descriptor(geometry),
    };
    // Both lengths are of our own making: at most 16 bytes, and less than 200.
    let descriptor_len = u8::try_from(body.len()).unwrap_or(0);
    for page in &pages {
        let header = page.header();
        body.extend(&page.bytes[..header]);
        body.extend(match control {
            CHANGEABLE => &page.mask[header..],
            _ => &page.bytes[header..],
        });
        if saved.is_some() {
            let first = body.len() - page.bytes.len();
            body[first] |= pages::SAVEABLE;
        }
    }
    let body_len = u8::try_from(body.len()).unwrap_or(0);
    let is_protected = geometry.read_only || current.write_protect;
    let parameter = DPO_FUA | if is_protected { WRITE_PROTECTED } else { 0 };
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

/// What is wrong with asking for a page that there is not.
fn check_absent(control: u8, page: u8, subpage: u8, thresholds: bool) -> Result<(), Fault> {
    // SPC-4, MODE SENSE(6): page 0 of the current values is header and block descriptor alone.
    if (control, page, subpage) == (CURRENT, 0, 0) {
        return Ok(());
    }
    let known = pages::all(&Settings::default(), thresholds);
    let is_known = page == page::MODE_ALL || known.iter().any(|known| known.code == page);
    Err(if is_known {
        Fault::InvalidField { byte: 3, bit: 7 }
    } else {
        Fault::InvalidField { byte: 2, bit: 5 }
    })
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

#[cfg(test)]
mod tests;
