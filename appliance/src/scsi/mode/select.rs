//! MODE SELECT: a parameter list is checked as a whole before it changes anything (SPC-4, MODE
//! SELECT(6), MODE SELECT(10); SBC-4, mode parameters).

use std::ops::Range;

use super::pages::{self, Page, SAVEABLE};
use super::settings::{Modes, Settings};
use crate::disk::Geometry;
use crate::scsi::fault::Fault;

/// SPF and PAGE CODE of a page's first byte.
const SUBPAGE_FORMAT: u8 = 0x40;
const PAGE_CODE: u8 = 0x3f;
/// LONGLBA of the long header's byte 4.
const LONG_LBA: u8 = 0x01;

/// What a MODE SELECT asks for, besides its parameter list.
#[derive(Debug, Clone, Copy)]
pub struct Selection {
    /// The 10-byte command, with its longer header.
    pub long: bool,
    /// PF: the pages are as the standard defines them.
    pub page_format: bool,
    /// SP: the values are to be saved.
    pub save: bool,
}

/// Carries out a MODE SELECT with this parameter list. Returns the settings before and after.
///
/// # Errors
/// Points at what is wrong; nothing has changed then.
pub fn select(
    selection: Selection,
    list: &[u8],
    geometry: &Geometry,
    modes: &Modes,
    thresholds: bool,
) -> Result<(Settings, Settings), Fault> {
    if selection.save && modes.saved().is_none() {
        // SPC-4: SP, where nothing can be saved.
        return Err(Fault::InvalidField { byte: 1, bit: 0 });
    }
    if !selection.page_format && !list.is_empty() {
        // Pages of a vendor's own; we have none.
        return Err(Fault::InvalidField { byte: 1, bit: 4 });
    }
    modes.change(selection.save, |settings| {
        apply(settings, selection.long, list, geometry, thresholds)
    })
}

/// The settings that `list` makes of `settings`.
fn apply(
    mut settings: Settings,
    long: bool,
    list: &[u8],
    geometry: &Geometry,
    thresholds: bool,
) -> Result<Settings, Fault> {
    if list.is_empty() {
        // Nothing to change, which is no error.
        return Ok(settings);
    }
    let mut at = header(long, list, geometry)?;
    while at < list.len() {
        let bytes = &list[at..];
        let page = find(bytes, at, &pages::all(&settings, thresholds))?;
        let Some(bytes) = bytes.get(..page.bytes.len()) else {
            return Err(Fault::ParameterListLength);
        };
        check_page(bytes, at, &page)?;
        page.read(bytes, &mut settings);
        at += bytes.len();
    }
    Ok(settings)
}

/// Checks header and block descriptor; returns where the pages start.
fn header(long: bool, list: &[u8], geometry: &Geometry) -> Result<usize, Fault> {
    let len = if long { 8 } else { 4 };
    let header = list.get(..len).ok_or(Fault::ParameterListLength)?;
    // MODE DATA LENGTH is reserved here; initiators leave there what MODE SENSE told. The
    // device-specific parameter has WP, which is ignored, and DPOFUA, which is reserved.
    let (medium_type, long_lba, descriptors, at) = if long {
        let descriptors = usize::from(u16::from_be_bytes([header[6], header[7]]));
        (2, header[4] & LONG_LBA != 0, descriptors, 6)
    } else {
        (1, false, usize::from(header[3]), 3)
    };
    if header[medium_type] != 0 {
        return Err(invalid(medium_type, 7));
    }
    let end = len + descriptors;
    match descriptors {
        0 => return Ok(end),
        8 if !long_lba => {}
        16 if long_lba => {}
        _ => return Err(invalid(at, 7)),
    }
    let descriptor = list.get(len..end).ok_or(Fault::ParameterListLength)?;
    check_descriptor(descriptor, len, geometry)?;
    Ok(end)
}

/// Checks that a block descriptor, which starts at `at`, changes nothing: there is one format.
fn check_descriptor(descriptor: &[u8], at: usize, geometry: &Geometry) -> Result<(), Fault> {
    let number = |range: Range<usize>| {
        let bytes = &descriptor[range];
        bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    // SBC-4: 0 blocks leave the capacity as it is, all ones are as many as there are.
    let (blocks, all_ones, size_at) = if descriptor.len() == 8 {
        (number(0..4), u64::from(u32::MAX), 5)
    } else {
        (number(0..8), u64::MAX, 12)
    };
    if blocks != 0 && blocks != all_ones && blocks != geometry.blocks {
        return Err(invalid(at, 7));
    }
    if number(size_at..descriptor.len()) != u64::from(geometry.block_size) {
        return Err(invalid(at + size_at, 7));
    }
    Ok(())
}

/// The page whose header stands in front of `bytes`, which start at `at`.
fn find(bytes: &[u8], at: usize, known: &[Page]) -> Result<Page, Fault> {
    let code = bytes[0] & PAGE_CODE;
    let subpage = if bytes[0] & SUBPAGE_FORMAT == 0 {
        0
    } else {
        *bytes.get(1).ok_or(Fault::ParameterListLength)?
    };
    let has_subpage = bytes[0] & SUBPAGE_FORMAT != 0;
    let mut with_code = known.iter().filter(|page| page.code == code).peekable();
    if with_code.peek().is_none() {
        return Err(invalid(at, 5));
    }
    with_code
        .find(|page| page.subpage == subpage && has_subpage == (page.subpage != 0))
        .cloned()
        .ok_or(if has_subpage {
            invalid(at + 1, 7)
        } else {
            invalid(at, 6)
        })
}

/// Checks that `bytes`, which start at `at`, differ from `page` only where it can be changed.
fn check_page(bytes: &[u8], at: usize, page: &Page) -> Result<(), Fault> {
    for (index, ((&given, &known), &mask)) in
        bytes.iter().zip(&page.bytes).zip(&page.mask).enumerate()
    {
        // PS is reserved here; initiators may leave it as MODE SENSE told it.
        let ignored = if index == 0 { SAVEABLE } else { 0 };
        let wrong = (given ^ known) & !mask & !ignored;
        if let Some(bit) = wrong.checked_ilog2() {
            // The page length is one field of two bytes in the long format.
            let is_length = index < page.header() && index > 0;
            let first = if is_length && page.subpage != 0 {
                2
            } else {
                index
            };
            let bit = if is_length { 7 } else { bit };
            return Err(invalid(at + first, bit));
        }
    }
    Ok(())
}

fn invalid(byte: usize, bit: u32) -> Fault {
    Fault::InvalidParameter {
        byte: u16::try_from(byte).unwrap_or(u16::MAX),
        bit: u8::try_from(bit).unwrap_or(7),
    }
}
