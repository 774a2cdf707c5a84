//! The mode pages there are: their values, and which of their bits can be changed.

use spec::scsi::page;

use super::settings::Settings;

/// SPF of a page's first byte: it has a subpage code and a length of two bytes.
const SUBPAGE_FORMAT: u8 = 0x40;
/// PS of a page's first byte: it can be saved.
pub const SAVEABLE: u8 = 0x80;

/// WCE of the caching page's byte 2.
const WCE: u8 = 0x04;
/// D_SENSE of the control page's byte 2.
const D_SENSE: u8 = 0x04;
/// SWP of the control page's byte 4.
const SWP: u8 = 0x08;
/// Where the threshold descriptor starts in the logical block provisioning page.
const DESCRIPTOR: usize = 16;
/// ENABLED of a threshold descriptor's byte 0.
const ENABLED: u8 = 0x80;
/// Where a threshold descriptor has its count.
const COUNT: std::ops::Range<usize> = DESCRIPTOR + 4..DESCRIPTOR + 8;

/// A mode page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub code: u8,
    /// 0 for one without a subpage code.
    pub subpage: u8,
    /// All of it, from the page code on.
    pub bytes: Vec<u8>,
    /// The bits of it that can be changed.
    pub mask: Vec<u8>,
}

/// All pages with `settings`, ascending; that of thin provisioning only where there are
/// `thresholds`.
pub fn all(settings: &Settings, thresholds: bool) -> Vec<Page> {
    let mut pages = vec![
        error_recovery(thresholds),
        caching(settings),
        control(settings),
        control_extension(),
        power_condition(),
        informational_exceptions(),
        background_control(),
    ];
    if thresholds {
        pages.push(provisioning(settings));
    }
    pages
}

impl Page {
    /// A page of so many bytes without a subpage code.
    fn short(code: u8, len: u8) -> Self {
        let mut bytes = vec![0; len.into()];
        bytes[0] = code;
        bytes[1] = len - 2;
        Self {
            code,
            subpage: 0,
            mask: vec![0; bytes.len()],
            bytes,
        }
    }

    /// A page of so many bytes with a subpage code.
    fn long(code: u8, subpage: u8, len: u16) -> Self {
        let mut bytes = vec![0; len.into()];
        bytes[0] = SUBPAGE_FORMAT | code;
        bytes[1] = subpage;
        bytes[2..4].copy_from_slice(&(len - 4).to_be_bytes());
        Self {
            code,
            subpage,
            mask: vec![0; bytes.len()],
            bytes,
        }
    }

    /// Makes a bit changeable and gives it its value.
    fn bit(&mut self, byte: usize, bit: u8, value: bool) {
        self.mask[byte] |= bit;
        if value {
            self.bytes[byte] |= bit;
        }
    }

    /// Bytes before the parameters.
    pub fn header(&self) -> usize {
        if self.subpage == 0 { 2 } else { 4 }
    }

    /// Puts into `settings` what `bytes`, which have this page's length, say of them.
    pub fn read(&self, bytes: &[u8], settings: &mut Settings) {
        match (self.code, self.subpage) {
            (page::MODE_CACHING, 0) => settings.write_cache = bytes[2] & WCE != 0,
            (page::MODE_CONTROL, 0) => {
                settings.descriptor_sense = bytes[2] & D_SENSE != 0;
                settings.write_protect = bytes[4] & SWP != 0;
            }
            (page::MODE_INFORMATIONAL_EXCEPTIONS, page::MODE_PROVISIONING) => {
                let mut count = [0; 4];
                count.copy_from_slice(&bytes[COUNT]);
                settings.threshold.enabled = bytes[DESCRIPTOR] & ENABLED != 0;
                settings.threshold.count = u32::from_be_bytes(count);
            }
            _ => {}
        }
    }
}

/// Read-write error recovery: what there is of it is below the disk, and not ours to steer.
/// Thresholds are told where there are any (LBPERE).
fn error_recovery(thresholds: bool) -> Page {
    let mut page = Page::short(page::MODE_ERROR_RECOVERY, 12);
    page.bytes[7] = if thresholds { 0x80 } else { 0 };
    page
}

/// Caching: reads may come from the cache (RCD 0) and be ahead of the initiator (DRA 0).
fn caching(settings: &Settings) -> Page {
    let mut page = Page::short(page::MODE_CACHING, 20);
    page.bit(2, WCE, settings.write_cache);
    page
}

/// Control: one task set for all I_T nexuses (TST 000b), so CLEAR TASK SET ends the commands of
/// all; no log parameters are saved (GLTSD); unrestricted reordering; other commands go on after
/// an error (QERR 00b), and those that another initiator ends have no status (TAS 0).
fn control(settings: &Settings) -> Page {
    let mut page = Page::short(page::MODE_CONTROL, 12);
    page.bytes[2] = 0x02;
    page.bytes[3] = 0x10;
    page.bit(2, D_SENSE, settings.descriptor_sense);
    page.bit(4, SWP, settings.write_protect);
    page
}

/// Control extension: the clock is set by SET TIMESTAMP alone (TCMOS 0), no priorities, no limit on sense data.
fn control_extension() -> Page {
    Page::long(page::MODE_CONTROL, page::MODE_CONTROL_EXTENSION, 32)
}

/// Power condition: there is no timer, and no condition but those of START STOP UNIT.
fn power_condition() -> Page {
    Page::short(page::MODE_POWER_CONDITION, 40)
}

/// Informational exceptions control: none are predicted (DEXCPT).
fn informational_exceptions() -> Page {
    let mut page = Page::short(page::MODE_INFORMATIONAL_EXCEPTIONS, 12);
    page.bytes[2] = 0x08;
    page
}

/// Background control: nothing is scanned in the background (EN_BMS 0, EN_PS 0).
fn background_control() -> Page {
    Page::long(
        page::MODE_INFORMATIONAL_EXCEPTIONS,
        page::MODE_BACKGROUND_CONTROL,
        16,
    )
}

/// Logical block provisioning: one soft threshold, armed decreasing, on the available LBA mapping
/// resources (01h), told to every I_T nexus (SITUA 0).
fn provisioning(settings: &Settings) -> Page {
    let mut page = Page::long(
        page::MODE_INFORMATIONAL_EXCEPTIONS,
        page::MODE_PROVISIONING,
        24,
    );
    page.bit(DESCRIPTOR, ENABLED, settings.threshold.enabled);
    page.bytes[DESCRIPTOR + 1] = 0x01;
    page.bytes[COUNT].copy_from_slice(&settings.threshold.count.to_be_bytes());
    page.mask[COUNT].fill(0xff);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::threshold::Threshold;

    const SET: Settings = Settings {
        write_cache: true,
        descriptor_sense: true,
        write_protect: true,
        threshold: Threshold {
            enabled: true,
            count: 0x0102_0304,
        },
    };

    const CLEAR: Settings = Settings {
        write_cache: false,
        descriptor_sense: false,
        write_protect: false,
        threshold: Threshold {
            enabled: false,
            count: 0,
        },
    };

    #[test]
    fn every_setting_is_read_from_the_page_that_tells_it() {
        for (from, to) in [(SET, CLEAR), (CLEAR, SET)] {
            let mut settings = from;
            for page in all(&to, true) {
                page.read(&page.bytes, &mut settings);
            }
            assert_eq!(settings, to);
        }
    }

    #[test]
    fn what_differs_between_two_settings_is_what_the_mask_says() {
        for (set, clear) in all(&SET, true).into_iter().zip(all(&CLEAR, true)) {
            for (at, mask) in set.mask.iter().enumerate() {
                assert_eq!((set.bytes[at] ^ clear.bytes[at]) & !mask, 0, "{set:?}");
            }
        }
    }

    #[test]
    fn pages_are_in_order_and_tell_their_lengths() {
        let pages = all(&SET, true);
        assert!(pages.is_sorted_by_key(|page| (page.code, page.subpage)));
        let lengths: Vec<_> = pages
            .iter()
            .map(|page| (page.code, page.subpage, page.bytes.len()))
            .collect();
        assert_eq!(
            lengths,
            [
                (0x01, 0, 12),
                (0x08, 0, 20),
                (0x0a, 0, 12),
                (0x0a, 1, 32),
                (0x1a, 0, 40),
                (0x1c, 0, 12),
                (0x1c, 1, 16),
                (0x1c, 2, 24)
            ]
        );
        assert!(pages.iter().all(|page| page.mask.len() == page.bytes.len()));
        assert_eq!(all(&SET, false).len(), 7);
    }
}
