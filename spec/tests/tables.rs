//! Holds the tables of `vhost-pci.md` to the constants of the crate.

use spec::mailbox::{HEADER_LEN, MAX_PAYLOAD, Reply, Request, RingSetup};
use spec::{device, inflight, session, version};

const TEXT: &str = include_str!("../vhost-pci.md");
const DEVICE: &str = include_str!("../src/device.rs");

/// The rows of the table with this header, each cut into cells without their backquotes.
fn table(header: &str) -> Vec<Vec<String>> {
    let mut lines = TEXT.lines().skip_while(|line| *line != header);
    assert!(lines.next().is_some(), "no table with the header {header}");
    lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            line.replace("\\|", "/")
                .trim_matches('|')
                .split('|')
                .map(|cell| cell.replace('`', "").trim().to_owned())
                .collect()
        })
        .collect()
}

/// The number in a cell: decimal, or hexadecimal after `0x`.
fn number(cell: &str) -> u64 {
    match cell.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => cell.parse(),
    }
    .unwrap_or_else(|_| panic!("`{cell}` is not a number"))
}

/// The names and numbers in two columns of the table with this header.
fn pairs(header: &str, name: usize, value: usize) -> Vec<(String, u64)> {
    table(header)
        .into_iter()
        .map(|row| (row[name].clone(), number(&row[value])))
        .collect()
}

/// Constants of a module, each with its name.
macro_rules! constants {
    ($module:path: $($name:ident),* $(,)?) => {{
        use $module as module;
        vec![$((stringify!($name).to_owned(), u64::try_from(module::$name).unwrap())),*]
    }};
}

/// The names of the constants of this type between two lines of `device.rs`, each with the first
/// word of the comment above it.
fn declared(from: &str, to: &str, kind: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = DEVICE
        .lines()
        .skip_while(|line| *line != from)
        .take_while(|line| *line != to)
        .map(str::trim)
        .collect();
    lines
        .windows(2)
        .filter_map(|pair| {
            let comment = pair[0].strip_prefix("/// ")?;
            let (name, rest) = pair[1].strip_prefix("pub const ")?.split_once(':')?;
            let word = comment.split([':', ',']).next()?;
            rest.trim_start()
                .starts_with(kind)
                .then(|| (name.to_owned(), word.to_owned()))
        })
        .collect()
}

fn names(pairs: &[(String, u64)]) -> Vec<&str> {
    pairs.iter().map(|(name, _)| name.as_str()).collect()
}

const REGISTERS: &str = "| Offset | Register | Bytes | Access | Reset value | Meaning |";

#[test]
fn the_register_table_has_the_offsets_of_the_crate() {
    let expected = constants!(spec::device: MAGIC, VERSION, DRIVER_VERSION, STATUS, ERROR, DEVICE_TYPE,
        RINGS, VECTORS, HBA_UUID, TENANT_UUID, CONNECTION, MEMORY_GENERATION, MAILBOX_REQUEST,
        MAILBOX_REPLY, RING_ERROR, RESET, DOORBELLS);
    assert_eq!(pairs(REGISTERS, 1, 0), expected);
}

#[test]
fn the_register_table_has_every_register_with_its_access() {
    let written: Vec<(String, String)> = table(REGISTERS)
        .into_iter()
        .map(|row| (row[1].clone(), row[3].clone()))
        .collect();
    let registers = declared(
        "/// RO: [`MAGIC_VALUE`].",
        "/// Value of [`MAGIC`]: \"VPCI\".",
        "u64",
    );
    assert_eq!(written, registers);
}

#[test]
fn registers_follow_each_other_without_overlap() {
    let rows = table(REGISTERS);
    for pair in rows.windows(2) {
        let end = number(&pair[0][0]) + number(&pair[0][2]);
        assert!(
            end <= number(&pair[1][0]),
            "{} reaches {}",
            pair[0][1],
            pair[1][1]
        );
    }
    let doorbells = u64::try_from(device::MAX_RINGS * 4).unwrap();
    assert_eq!(rows.last().map(|row| number(&row[2])), Some(doorbells));
}

#[test]
fn fixed_register_values_are_those_of_the_crate() {
    let reset = |name: &str| {
        let row = table(REGISTERS)
            .into_iter()
            .find(|row| row[1] == name)
            .unwrap();
        number(&row[4])
    };
    assert_eq!(reset("MAGIC"), device::MAGIC_VALUE.into());
    assert_eq!(reset("VERSION"), version::CURRENT.to_register().into());
    assert_eq!(reset("DEVICE_TYPE"), device::DEVICE_TYPE_SCSI.into());
    let title = TEXT.lines().next().unwrap();
    assert_eq!(
        title,
        format!("# vhost-pci for storage, version {}", version::CURRENT)
    );
}

#[test]
fn status_bits_are_those_of_the_crate() {
    let bits: Vec<(String, u64)> = pairs("| Bit | STATUS | Access | Meaning |", 1, 0)
        .into_iter()
        .map(|(name, bit)| (name, 1 << bit))
        .collect();
    let expected = constants!(spec::device::status: BACKEND_UP, FRONTEND_UP, MEM_VALID, REFUSED,
        NEEDS_RESET);
    assert_eq!(bits, expected);
    let declared = declared("pub mod status {", "}", "u32");
    assert_eq!(
        names(&bits),
        declared.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
}

#[test]
fn errors_are_those_of_the_crate() {
    let errors = pairs("| Value | ERROR | Meaning |", 1, 0);
    let expected = constants!(spec::device::error: NONE, VERSION, NO_VECTORS, REQUEST_FAILED, TIMEOUT,
        BAD_REPLY, RING);
    assert_eq!(errors, expected);
    let declared = declared("pub mod error {", "}", "u32");
    assert_eq!(
        names(&errors),
        declared.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
}

#[test]
fn ring_errors_are_those_of_the_crate() {
    let errors = pairs("| Value | Reason in RING_ERROR | Meaning |", 1, 0);
    let expected = constants!(spec::device::ring_error: AVAIL_INDEX, DESCRIPTOR_INDEX, CHAIN_LENGTH,
        UNMAPPED, ORDER, INDIRECT, TOO_SHORT, ZERO_LENGTH, CONFIGURATION, IN_FLIGHT);
    assert_eq!(errors, expected);
    let declared = declared("pub mod ring_error {", "}", "u32");
    assert_eq!(
        names(&errors),
        declared.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
}

#[test]
fn the_session_memory_table_is_that_of_the_crate() {
    let slot = u64::try_from(session::MAILBOX_SLOT_LEN).unwrap();
    let counters = session::CALL_STRIDE * u64::try_from(device::MAX_RINGS).unwrap();
    let entries = u64::try_from(session::MEMORY_SLOTS * session::MemoryEntry::LEN).unwrap();
    let marks = u64::try_from(session::UNIT_MARKS * session::UnitMark::LEN).unwrap();
    let expected = [
        ("MAILBOX_REQUEST", session::MAILBOX_REQUEST, slot),
        ("MAILBOX_REPLY", session::MAILBOX_REPLY, slot),
        ("NEED_WAKEUP", session::NEED_WAKEUP, 4),
        ("CALL_COUNTERS", session::call_counter(0), counters),
        ("MEMORY_SEQUENCE", session::MEMORY_SEQUENCE, 4),
        ("MEMORY_COUNT", session::MEMORY_COUNT, 4),
        ("MEMORY_GENERATION", session::MEMORY_GENERATION, 4),
        ("MEMORY_ENTRIES", session::MEMORY_ENTRIES, entries),
        ("UNIT_MARK_SLOTS", session::UNIT_MARK_SLOTS, marks),
    ];
    let rows = table("| Offset | Field | Bytes | Written by | Meaning |");
    let written: Vec<(&str, u64, u64)> = rows
        .iter()
        .map(|row| (row[1].as_str(), number(&row[0]), number(&row[2])))
        .collect();
    assert_eq!(written, expected);
    assert_eq!(session::LEN, 128 << 10, "§3 says how long BAR4 is");
}

#[test]
fn a_memory_entry_has_its_fields_where_the_table_says() {
    let entry = session::MemoryEntry {
        guest_address: 1,
        len: 2,
        bar_offset: 3,
    };
    let rows = table("| Offset | Bytes | Field of an entry |");
    let bytes = entry.to_bytes();
    let fields: Vec<u64> = rows.iter().map(|row| field(&bytes, row)).collect();
    assert_eq!(fields, [1, 2, 3, 0]);
}

// covers: VPCI-INF-2
#[test]
fn a_region_of_in_flight_memory_has_its_fields_where_the_table_says() {
    let header = [
        ("features", inflight::FEATURES, 8),
        ("version", inflight::VERSION, 2),
        ("entries", inflight::ENTRY_COUNT, 2),
        ("last batch head", inflight::LAST_BATCH_HEAD, 2),
        ("used index", inflight::USED_INDEX, 2),
        ("entries of the ring", inflight::ENTRIES, 16),
    ];
    let entry = [
        ("mark", inflight::Entry::MARK, 1),
        ("reserved", inflight::Entry::MARK + 1, 5),
        ("next", inflight::Entry::NEXT, 2),
        ("counter", inflight::Entry::COUNTER, 8),
    ];
    for (title, expected) in [
        (
            "| Offset | Bytes | Field of a region | Meaning |",
            &header[..],
        ),
        (
            "| Offset | Bytes | Field of an in-flight entry | Meaning |",
            &entry,
        ),
    ] {
        let rows = table(title);
        let fields: Vec<(&str, u64, u64)> = rows
            .iter()
            .map(|row| (row[2].as_str(), number(&row[0]), number(&row[1])))
            .collect();
        assert_eq!(fields, expected);
    }
    assert_eq!(
        (inflight::REGIONS, inflight::ALIGNMENT),
        (4096, 64),
        "§9 says where regions begin"
    );
}

#[test]
fn a_slot_header_has_its_fields_where_the_table_says() {
    let header = spec::mailbox::Header {
        sequence: 1,
        operation: 2,
        len: 3,
        status: 4,
    };
    let rows = table("| Offset | Bytes | Field of the header |");
    let bytes = header.to_bytes();
    let fields: Vec<u64> = rows.iter().map(|row| field(&bytes, row)).collect();
    assert_eq!(fields, [1, 2, 3, 4]);
    assert_eq!(
        (HEADER_LEN, MAX_PAYLOAD),
        (16, 4080),
        "§8 says how long a slot's parts are"
    );
}

const START: RingSetup = RingSetup {
    ring: 1,
    size: 2,
    base: None,
    inflight: Some(6),
    descriptor_table: 3,
    avail_ring: 4,
    used_ring: 5,
};

#[test]
fn a_start_request_has_its_fields_where_the_table_says() {
    let rows = table("| Offset | Bytes | Field of StartRing |");
    let bytes = Request::StartRing(START).payload();
    let fields: Vec<u64> = rows.iter().map(|row| field(&bytes, row)).collect();
    assert_eq!(fields, [1, 2, 0xffff_ffff, 6, 3, 4, 5]);
}

#[test]
fn the_mailbox_table_has_every_request() {
    let done = Reply::Done.payload().len();
    let base = Reply::Base(0).payload().len();
    let expected = [
        ("SetFeatures", Request::SetFeatures { features: 0 }, done),
        ("SetMemory", Request::SetMemory { generation: 1 }, done),
        ("Reset", Request::Reset, done),
        ("StartRing", Request::StartRing(START), done),
        ("StopRing", Request::StopRing { ring: 0 }, base),
        ("Disconnect", Request::Disconnect, done),
    ];
    let rows = table("| Operation | Request | Payload | Reply | Asks the appliance to |");
    assert_eq!(rows.len(), expected.len());
    for (row, (name, request, reply)) in rows.iter().zip(expected) {
        assert_eq!(row[1], name);
        assert_eq!(
            number(&row[0]),
            request.operation().into(),
            "operation of {name}"
        );
        assert_eq!(
            usize::try_from(number(&row[2])),
            Ok(request.payload().len()),
            "{name}"
        );
        assert_eq!(
            usize::try_from(number(&row[3])),
            Ok(reply),
            "reply to {name}"
        );
    }
}

#[test]
fn limits_are_those_of_the_crate() {
    let mut expected = constants!(spec::device: MAX_RINGS, MAX_VECTORS, DEFAULT_VECTORS);
    expected.extend(constants!(spec::session: MEMORY_SLOTS, MAILBOX_SLOT_LEN, CALL_STRIDE));
    assert_eq!(pairs("| Name | Value | Why |", 0, 1), expected);
}

#[test]
fn the_identity_table_is_that_of_the_crate() {
    let class = device::CLASS_CODE.to_be_bytes();
    let rows = table("| Field | Value |");
    assert_eq!(
        rows[0][1],
        format!("{:04x}:{:04x}", device::VENDOR_ID, device::DEVICE_ID)
    );
    assert_eq!(
        rows[1][1],
        format!("{:02x}.{:02x}.{:02x}", class[1], class[2], class[3])
    );
}

#[test]
fn the_bar_table_is_that_of_the_crate() {
    let bars: Vec<String> = table("| BAR | Kind | Size | What |")
        .into_iter()
        .filter(|row| row[1] != "absent")
        .map(|row| row[0].clone())
        .collect();
    let expected = [
        device::BAR_REGISTERS,
        device::BAR_INFLIGHT,
        device::BAR_TENANT,
        device::BAR_SESSION,
    ];
    assert_eq!(bars, expected.map(|bar| bar.to_string()));
    assert_eq!(
        (device::REGISTERS_LEN, inflight::LEN),
        (64 << 10, 1 << 20),
        "the table says how long BAR0 and BAR1 are"
    );
}

/// The little-endian value of the field that this row (offset, bytes, ...) describes.
fn field(bytes: &[u8], row: &[String]) -> u64 {
    let at = usize::try_from(number(&row[0])).expect("an offset");
    let len = usize::try_from(number(&row[1])).expect("a length");
    let mut value = [0; 8];
    value[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(value)
}
