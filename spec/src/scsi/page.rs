//! Page codes of vital product data and mode parameters (SPC-4 §7.8, §7.5; SBC-3 §6).

/// VPD: supported pages.
pub const VPD_SUPPORTED: u8 = 0x00;
/// VPD: unit serial number.
pub const VPD_SERIAL_NUMBER: u8 = 0x80;
/// VPD: device identification.
pub const VPD_IDENTIFICATION: u8 = 0x83;
/// VPD: management network addresses.
pub const VPD_NETWORK_ADDRESSES: u8 = 0x85;
/// VPD: extended INQUIRY data.
pub const VPD_EXTENDED_INQUIRY: u8 = 0x86;
/// VPD: mode page policy.
pub const VPD_MODE_PAGE_POLICY: u8 = 0x87;
/// VPD: SCSI ports.
pub const VPD_PORTS: u8 = 0x88;
/// VPD: third-party copy.
pub const VPD_THIRD_PARTY_COPY: u8 = 0x8f;
/// VPD: block limits.
pub const VPD_BLOCK_LIMITS: u8 = 0xb0;
/// VPD: block device characteristics.
pub const VPD_BLOCK_CHARACTERISTICS: u8 = 0xb1;
/// VPD: logical block provisioning.
pub const VPD_PROVISIONING: u8 = 0xb2;
/// VPD: referrals.
pub const VPD_REFERRALS: u8 = 0xb3;

/// Mode page: read-write error recovery.
pub const MODE_ERROR_RECOVERY: u8 = 0x01;
/// Mode page: caching.
pub const MODE_CACHING: u8 = 0x08;
/// Mode page: control.
pub const MODE_CONTROL: u8 = 0x0a;
/// Mode page: power condition.
pub const MODE_POWER_CONDITION: u8 = 0x1a;
/// Mode page: informational exceptions control.
pub const MODE_INFORMATIONAL_EXCEPTIONS: u8 = 0x1c;
/// Mode page: all of them.
pub const MODE_ALL: u8 = 0x3f;
/// Mode subpage of [`MODE_CONTROL`]: control extension.
pub const MODE_CONTROL_EXTENSION: u8 = 0x01;
/// Mode subpage of [`MODE_INFORMATIONAL_EXCEPTIONS`]: logical block provisioning.
pub const MODE_PROVISIONING: u8 = 0x02;
/// Mode subpage of [`MODE_INFORMATIONAL_EXCEPTIONS`]: background control.
pub const MODE_BACKGROUND_CONTROL: u8 = 0x01;
/// Mode subpage: all of them.
pub const MODE_ALL_SUBPAGES: u8 = 0xff;

/// Log page: supported pages, and with [`LOG_ALL_SUBPAGES`] those with their subpages.
pub const LOG_SUPPORTED: u8 = 0x00;
/// Log page: logical block provisioning.
pub const LOG_PROVISIONING: u8 = 0x0c;
/// Log page: temperature.
pub const LOG_TEMPERATURE: u8 = 0x0d;
/// Log page: background scan.
pub const LOG_BACKGROUND_SCAN: u8 = 0x15;
/// Log page: general statistics and performance.
pub const LOG_STATISTICS: u8 = 0x19;
/// Log page: informational exceptions.
pub const LOG_INFORMATIONAL_EXCEPTIONS: u8 = 0x2f;
/// Log subpage of [`LOG_STATISTICS`]: cache memory statistics.
pub const LOG_CACHE_STATISTICS: u8 = 0x20;
/// Log subpage: all of them.
pub const LOG_ALL_SUBPAGES: u8 = 0xff;
