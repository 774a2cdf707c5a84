//! Page codes of vital product data and mode parameters (SPC-4 §7.8, §7.5; SBC-3 §6).

/// VPD: supported pages.
pub const VPD_SUPPORTED: u8 = 0x00;
/// VPD: unit serial number.
pub const VPD_SERIAL_NUMBER: u8 = 0x80;
/// VPD: device identification.
pub const VPD_IDENTIFICATION: u8 = 0x83;
/// VPD: block limits.
pub const VPD_BLOCK_LIMITS: u8 = 0xb0;
/// VPD: block device characteristics.
pub const VPD_BLOCK_CHARACTERISTICS: u8 = 0xb1;
/// VPD: logical block provisioning.
pub const VPD_PROVISIONING: u8 = 0xb2;

/// Mode page: caching.
pub const MODE_CACHING: u8 = 0x08;
/// Mode page: control.
pub const MODE_CONTROL: u8 = 0x0a;
/// Mode page: all of them.
pub const MODE_ALL: u8 = 0x3f;
/// Mode subpage: all of them.
pub const MODE_ALL_SUBPAGES: u8 = 0xff;
