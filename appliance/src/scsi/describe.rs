//! Commands and how they ended, in words for people.

use spec::scsi::{opcode, status};
use spec::virtio_scsi::response;

/// Operation codes and what the standards call them (SPC-4 annex, operation codes). Commands that
/// this target does not know are here, too: tenants send them.
const NAMES: [(u8, &str); 58] = [
    (0x00, "TEST UNIT READY"),
    (0x03, "REQUEST SENSE"),
    (0x04, "FORMAT UNIT"),
    (0x08, "READ(6)"),
    (0x0a, "WRITE(6)"),
    (0x12, "INQUIRY"),
    (0x15, "MODE SELECT(6)"),
    (0x16, "RESERVE(6)"),
    (0x17, "RELEASE(6)"),
    (0x1a, "MODE SENSE(6)"),
    (0x1b, "START STOP UNIT"),
    (0x1c, "RECEIVE DIAGNOSTIC RESULTS"),
    (0x1d, "SEND DIAGNOSTIC"),
    (0x1e, "PREVENT ALLOW MEDIUM REMOVAL"),
    (0x25, "READ CAPACITY(10)"),
    (0x28, "READ(10)"),
    (0x2a, "WRITE(10)"),
    (0x2e, "WRITE AND VERIFY(10)"),
    (0x2f, "VERIFY(10)"),
    (0x34, "PRE-FETCH(10)"),
    (0x35, "SYNCHRONIZE CACHE(10)"),
    (0x37, "READ DEFECT DATA(10)"),
    (0x3b, "WRITE BUFFER"),
    (0x3c, "READ BUFFER"),
    (0x41, "WRITE SAME(10)"),
    (0x42, "UNMAP"),
    (0x48, "SANITIZE"),
    (0x4c, "LOG SELECT"),
    (0x4d, "LOG SENSE"),
    (0x55, "MODE SELECT(10)"),
    (0x56, "RESERVE(10)"),
    (0x57, "RELEASE(10)"),
    (0x5a, "MODE SENSE(10)"),
    (0x5e, "PERSISTENT RESERVE IN"),
    (0x5f, "PERSISTENT RESERVE OUT"),
    (0x7f, "variable length CDB"),
    (0x83, "EXTENDED COPY"),
    (0x84, "RECEIVE COPY RESULTS"),
    (0x85, "ATA PASS-THROUGH(16)"),
    (0x88, "READ(16)"),
    (0x89, "COMPARE AND WRITE"),
    (0x8a, "WRITE(16)"),
    (0x8b, "ORWRITE(16)"),
    (0x8e, "WRITE AND VERIFY(16)"),
    (0x8f, "VERIFY(16)"),
    (0x90, "PRE-FETCH(16)"),
    (0x91, "SYNCHRONIZE CACHE(16)"),
    (0x93, "WRITE SAME(16)"),
    (0x9c, "WRITE ATOMIC(16)"),
    (0x9e, "SERVICE ACTION IN(16)"),
    (0xa0, "REPORT LUNS"),
    (0xa1, "ATA PASS-THROUGH(12)"),
    (0xa3, "MAINTENANCE IN"),
    (0xa4, "MAINTENANCE OUT"),
    (0xa8, "READ(12)"),
    (0xaa, "WRITE(12)"),
    (0xae, "WRITE AND VERIFY(12)"),
    (0xaf, "VERIFY(12)"),
];

/// What the command in a CDB is, with its blocks where it has some.
pub(crate) fn command(cdb: &[u8; 32]) -> String {
    let code = cdb[0];
    let name = NAMES.iter().find(|(known, _)| *known == code);
    let Some((_, name)) = name else {
        return format!("operation code {code:#04x}");
    };
    match extent(cdb) {
        Some((lba, blocks)) => format!("{name} lba {lba} +{blocks}"),
        None => (*name).to_owned(),
    }
}

/// First block and number of blocks, of a command that has them.
fn extent(cdb: &[u8; 32]) -> Option<(u64, u64)> {
    let number = |range: std::ops::Range<usize>| {
        cdb[range]
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    Some(match cdb[0] {
        opcode::READ_6 | opcode::WRITE_6 => {
            let lba = number(1..4) & 0x1f_ffff;
            // SBC-4, READ(6): zero stands for 256.
            (lba, if cdb[4] == 0 { 256 } else { cdb[4].into() })
        }
        opcode::READ_10
        | opcode::WRITE_10
        | opcode::WRITE_AND_VERIFY_10
        | opcode::VERIFY_10
        | opcode::PRE_FETCH_10
        | opcode::SYNCHRONIZE_CACHE_10
        | opcode::WRITE_SAME_10 => (number(2..6), number(7..9)),
        opcode::READ_12 | opcode::WRITE_12 | opcode::WRITE_AND_VERIFY_12 | opcode::VERIFY_12 => {
            (number(2..6), number(6..10))
        }
        opcode::READ_16
        | opcode::WRITE_16
        | opcode::ORWRITE_16
        | opcode::WRITE_AND_VERIFY_16
        | opcode::VERIFY_16
        | opcode::PRE_FETCH_16
        | opcode::SYNCHRONIZE_CACHE_16
        | opcode::WRITE_SAME_16 => (number(2..10), number(10..14)),
        opcode::COMPARE_AND_WRITE => (number(2..10), cdb[13].into()),
        opcode::WRITE_ATOMIC_16 => (number(2..10), number(12..14)),
        _ => return None,
    })
}

/// How a command ended: the virtio-scsi response, the SAM status, and key, ASC and ASCQ of its
/// sense data.
pub(crate) fn ending(code: u8, status: u8, sense: Option<(u8, u8, u8)>) -> String {
    let name = match code {
        response::OK => return status_name(status, sense),
        response::OVERRUN => "OVERRUN",
        response::ABORTED => "ABORTED",
        response::BAD_TARGET => "BAD TARGET",
        response::RESET => "RESET",
        response::BUSY => "BUSY",
        response::TRANSPORT_FAILURE => "TRANSPORT FAILURE",
        response::TARGET_FAILURE => "TARGET FAILURE",
        response::NEXUS_FAILURE => "NEXUS FAILURE",
        response::FAILURE => "FAILURE",
        other => return format!("virtio-scsi response {other}"),
    };
    name.to_owned()
}

fn status_name(code: u8, sense: Option<(u8, u8, u8)>) -> String {
    if let Some((key, asc, ascq)) = sense {
        return format!("{} {asc:02x}/{ascq:02x}", sense_key(key));
    }
    match code {
        status::GOOD => "GOOD".into(),
        status::CHECK_CONDITION => "CHECK CONDITION".into(),
        status::BUSY => "BUSY".into(),
        status::RESERVATION_CONFLICT => "RESERVATION CONFLICT".into(),
        other => format!("status {other:#04x}"),
    }
}

/// What SPC-4 calls a sense key.
pub(crate) fn sense_key(key: u8) -> &'static str {
    const KEYS: [&str; 16] = [
        "NO SENSE",
        "RECOVERED ERROR",
        "NOT READY",
        "MEDIUM ERROR",
        "HARDWARE ERROR",
        "ILLEGAL REQUEST",
        "UNIT ATTENTION",
        "DATA PROTECT",
        "BLANK CHECK",
        "VENDOR SPECIFIC",
        "COPY ABORTED",
        "ABORTED COMMAND",
        "reserved",
        "VOLUME OVERFLOW",
        "MISCOMPARE",
        "COMPLETED",
    ];
    KEYS[usize::from(key & 0xf)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> String {
        let mut cdb = [0; 32];
        cdb[..bytes.len()].copy_from_slice(bytes);
        command(&cdb)
    }

    #[test]
    fn a_command_is_named_with_its_blocks() {
        assert_eq!(
            of(&[0x28, 0, 0, 0, 1, 2, 0, 0, 8, 0]),
            "READ(10) lba 258 +8"
        );
        assert_eq!(of(&[0x08, 0xe0, 0, 5, 0, 0]), "READ(6) lba 5 +256");
        let write = [0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(of(&write), "WRITE(16) lba 4294967296 +256");
        assert_eq!(of(&[0x12, 1, 0x83]), "INQUIRY");
        assert_eq!(of(&[0xff]), "operation code 0xff");
    }

    #[test]
    fn an_ending_is_told_as_the_standards_call_it() {
        assert_eq!(ending(0, 0, None), "GOOD");
        assert_eq!(ending(0, 2, Some((5, 0x21, 0))), "ILLEGAL REQUEST 21/00");
        assert_eq!(ending(0, 0x18, None), "RESERVATION CONFLICT");
        assert_eq!(ending(4, 0, None), "RESET");
    }
}
