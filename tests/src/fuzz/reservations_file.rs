//! Any content of the file in which a unit's persistent reservations are kept.
//!
//! It is refused, or says by its own text who is registered; what was saved and then damaged in one
//! place is refused, or says what it said before.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use appliance::disk::{Disk, DiskError, Geometry, Op, OpenFile, Reply};
use appliance::memory::{Mapping, Segments};
use appliance::scsi::{Address, Answer, Buffers, Host, Initiator, LogicalUnit, StateError, Step};
use arbitrary::{Arbitrary, Unstructured};
use uuid::Uuid;

/// Where the only unit is.
const AT: Address = Address { target: 0, lun: 0 };
/// What the unit is called, in the file too.
const NAME: &str = "root";
/// Most bytes of data-in: 1024 registrations of 48 bytes, less a few.
const DATA_IN: u16 = 0xff00;
/// Service actions of PERSISTENT RESERVE IN (SPC-4).
const READ_KEYS: u8 = 0;
const READ_RESERVATION: u8 = 1;
const READ_FULL_STATUS: u8 = 3;
/// Service actions of PERSISTENT RESERVE OUT.
const RESERVE: u8 = 1;
const REGISTER_AND_IGNORE: u8 = 6;
/// Types of reservations.
const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

/// What was saved, and what became of it.
#[derive(Debug, Arbitrary)]
struct Damaged {
    damage: Damage,
    #[arbitrary(with = super::until_empty)]
    made: Vec<Made>,
}

#[derive(Debug, Arbitrary)]
enum Made {
    Registered { hba: u8, key: u64, all_ports: bool },
    Reserved { hba: u8, kind: u8 },
}

/// One thing that befell the file.
#[derive(Debug, Arbitrary)]
enum Damage {
    CutOff {
        len: u16,
    },
    Bits {
        at: u16,
        bits: [u8; 4],
    },
    /// A sector was never written.
    Hole {
        sector: u8,
    },
    /// It is that of another unit.
    OtherUnit,
}

#[derive(Debug)]
struct Nothing;

impl Disk for Nothing {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 512,
            blocks: 0x1000,
            physical_block_size: 512,
            read_only: false,
        }
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Err(DiskError::Gone)
    }
}

/// The unit with what the file says.
fn unit(name: &str, path: &Path) -> Result<Arc<LogicalUnit>, StateError> {
    let unit = LogicalUnit::new(name, Arc::new(Nothing)).expect("a good name");
    unit.with_reservations(path).map(Arc::new)
}

/// The HBA `number` as one that sees the unit.
fn host(unit: &Arc<LogicalUnit>, number: u8) -> Host {
    let initiator = Initiator {
        uuid: Uuid::from_bytes([number; 16]),
        number: number + 1,
    };
    Host::new(initiator, [(AT, unit.clone())]).expect("a good LUN")
}

pub(super) fn run(bytes: &[u8]) {
    // In memory, since saving waits until it is on the disk.
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let path = directory.path().join("state");
    match bytes.split_first() {
        Some((0, rest)) => {
            let Ok(input) = Damaged::arbitrary_take_rest(Unstructured::new(rest)) else {
                return;
            };
            damaged(&path, input);
        }
        _ => anything(&path, bytes),
    }
}

/// The file has these bytes.
fn anything(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file");
    let unit = match unit(NAME, path) {
        Ok(unit) => unit,
        Err(error) => return assert_loud(&error, path),
    };
    let text = str::from_utf8(bytes).expect("a file of text");
    let said: toml::Table = text.parse().expect("a file of TOML");
    assert_eq!(said["unit"].as_str(), Some(NAME));
    let none = Vec::new();
    let registrations = match said.get("registration") {
        Some(list) => list.as_array().expect("a list"),
        None => &none,
    };
    let keys: Vec<_> = registrations
        .iter()
        .map(|known| known["key"].as_str().expect("a key"))
        .map(|key| u64::from_str_radix(key, 16).expect("a key"))
        .collect();
    assert!(!keys.contains(&0), "no key is 0");
    let reader = host(&unit, 0xee);
    let data = read(&reader, READ_KEYS);
    let (listed, _) = data[8..].as_chunks::<8>();
    let listed: Vec<_> = listed.iter().map(|key| u64::from_be_bytes(*key)).collect();
    assert_eq!(listed, keys);
    let data = read(&reader, READ_RESERVATION);
    let kind = data.get(21).map(|kind| i64::from(*kind));
    assert_eq!(kind, said.get("type").and_then(toml::Value::as_integer));
    if kind.is_some() {
        assert!(!keys.is_empty(), "somebody holds it");
    }
    // What is saved over it is read again.
    if register(&reader, 0xabcd, false).status == 0 {
        let before = read(&reader, READ_FULL_STATUS);
        assert_eq!(before[4..], full_status(path));
    }
}

/// What is saved in good order is damaged then.
fn damaged(path: &Path, input: Damaged) {
    {
        let unit = unit(NAME, path).expect("no file is no reservation");
        let hosts = [0, 1, 2, 3].map(|number| host(&unit, number));
        for made in input.made.into_iter().take(8) {
            let _ = match made {
                Made::Registered {
                    hba,
                    key,
                    all_ports,
                } => register(&hosts[usize::from(hba % 4)], key, all_ports),
                Made::Reserved { hba, kind } => {
                    let host = &hosts[usize::from(hba % 4)];
                    let key = own_key(&read(host, READ_FULL_STATUS), hba % 4);
                    let list = list(key, 0, 0);
                    let kind = TYPES[usize::from(kind) % TYPES.len()];
                    command(host, &[0x5f, RESERVE, kind, 0, 0, 0, 0, 0, 24, 0], &list)
                }
            };
        }
    }
    let Ok(mut content) = std::fs::read(path) else {
        return;
    };
    let before = full_status(path);
    let end = content.len();
    match input.damage {
        Damage::CutOff { len } => content.truncate(usize::from(len) % (end + 1)),
        Damage::Bits { at, bits } => {
            let at = usize::from(at) % end;
            for (byte, bits) in content[at..].iter_mut().zip(bits) {
                *byte ^= bits;
            }
        }
        Damage::Hole { sector } => {
            let at = usize::from(sector) * 512;
            content
                .iter_mut()
                .skip(at)
                .take(512)
                .for_each(|byte| *byte = 0);
        }
        Damage::OtherUnit => {
            let error = unit("other", path).expect_err("another unit's file");
            return assert_loud(&error, path);
        }
    }
    std::fs::write(path, content).expect("a file");
    match unit(NAME, path) {
        Ok(unit) => assert_eq!(read(&host(&unit, 0xee), READ_FULL_STATUS)[4..], before),
        Err(error) => assert_loud(&error, path),
    }
}

/// The operator hears which file it is, and what comes of it.
fn assert_loud(error: &StateError, path: &Path) {
    let said = error.to_string();
    assert!(said.contains(&path.display().to_string()), "{said}");
    assert!(
        said.contains("the LUN is not served without them"),
        "{said}"
    );
}

/// All but PRGENERATION of the full status that the file yields.
fn full_status(path: &Path) -> Vec<u8> {
    let unit = unit(NAME, path).expect("a good file");
    read(&host(&unit, 0xee), READ_FULL_STATUS)[4..].to_vec()
}

/// The key of an HBA in full status data, 0 if it is not registered: descriptors of 48 bytes, a
/// TransportID at their end.
fn own_key(data: &[u8], number: u8) -> u64 {
    let (descriptors, _) = data[8..].as_chunks::<48>();
    let own = descriptors.iter().find(|known| known[32..] == [number; 16]);
    let key = own.and_then(|known| known.first_chunk::<8>());
    key.map_or(0, |key| u64::from_be_bytes(*key))
}

/// PERSISTENT RESERVE IN.
fn read(host: &Host, action: u8) -> Vec<u8> {
    let [high, low] = DATA_IN.to_be_bytes();
    let cdb = [0x5e, action, 0, 0, 0, 0, 0, high, low, 0];
    let mut answer = command(host, &cdb, &[]);
    if answer.status == 2 {
        // The unit attention of a new unit.
        answer = command(host, &cdb, &[]);
    }
    assert_eq!(answer.status, 0, "{answer:?}");
    answer.data
}

/// REGISTER AND IGNORE EXISTING KEY with APTPL; a new unit's attention may come in its place.
fn register(host: &Host, key: u64, all_ports: bool) -> Answer {
    let flags = 0x01 | if all_ports { 0x04 } else { 0 };
    let cdb = [0x5f, REGISTER_AND_IGNORE, 0, 0, 0, 0, 0, 0, 24, 0];
    let list = list(0, key, flags);
    let first = command(host, &cdb, &list);
    match first.status {
        2 => command(host, &cdb, &list),
        _ => first,
    }
}

/// The basic parameter list: reservation key, service action reservation key, flags.
fn list(key: u64, second: u64, flags: u8) -> Vec<u8> {
    let mut list = key.to_be_bytes().to_vec();
    list.extend(second.to_be_bytes());
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

fn command(host: &Host, cdb: &[u8], data_out: &[u8]) -> Answer {
    let mut padded = [0; 32];
    padded[..cdb.len()].copy_from_slice(cdb);
    let file = tempfile::tempfile_in("/dev/shm").expect("a file");
    file.set_len(4096).expect("a longer file");
    let mapping = Mapping::new(file.as_fd(), 0, 4096, None).expect("a mapping");
    let mut segments = Segments::new(Arc::new(mapping));
    segments.push(0, data_out.len()).expect("a short list");
    segments.write_at(0, data_out);
    let buffers = Buffers {
        data_out: &segments,
        data_in: DATA_IN.into(),
        tags: appliance::scsi::Tags::default(),
    };
    match host.start(AT.field(), 0, &padded, buffers) {
        Step::Answer(answer) => answer,
        Step::Disk { pending, .. } => pending.finish(Ok(Reply::Done)),
        other => panic!("{other:?}"),
    }
}
