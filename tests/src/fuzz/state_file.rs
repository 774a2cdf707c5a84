//! Any content of the file in which a unit's mode parameters are saved.
//!
//! The unit works with it; what an initiator saves over it is read again by the next unit.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use appliance::disk::{Disk, DiskError, Geometry, Op, OpenFile, Reply};
use appliance::memory::{Mapping, Segments};
use appliance::scsi::{Address, Answer, Buffers, Host, Initiator, LogicalUnit, Step};
use uuid::Uuid;

/// Where the only unit is.
const AT: Address = Address { target: 0, lun: 0 };
/// MODE SENSE(10) of the current values of all pages, without block descriptors, into 255 bytes.
const MODE_SENSE: [u8; 10] = [0x5a, 0x08, 0x3f, 0, 0, 0, 0, 0, 255, 0];

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

fn host(path: &Path) -> Host {
    let unit = LogicalUnit::new("root", Arc::new(Nothing)).expect("a good name");
    let initiator = Initiator {
        uuid: Uuid::nil(),
        number: 1,
    };
    Host::new(initiator, [(AT, Arc::new(unit.with_state(path)))]).expect("a good LUN")
}

pub(super) fn run(bytes: &[u8]) {
    // In memory, since saving waits until it is on the disk.
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let path = directory.path().join("state.toml");
    std::fs::write(&path, bytes).expect("a file");
    let first = host(&path);
    let saved = caching_page(&sense(&first));
    // MODE SELECT(10) with PF and SP: what is current is saved.
    let mut list = vec![0; 8];
    list.extend(&saved);
    // PS is for MODE SENSE only.
    list[8] &= 0x3f;
    let len = u8::try_from(list.len()).expect("a short list");
    let answer = command(&first, &[0x55, 0x11, 0, 0, 0, 0, 0, 0, len, 0], &list);
    assert_eq!(answer.status, 0, "{answer:?}");
    assert_eq!(
        caching_page(&sense(&host(&path))),
        saved,
        "not what was saved"
    );
}

/// Data of a MODE SENSE after the unit attention of a new unit.
fn sense(host: &Host) -> Vec<u8> {
    let _ = command(host, &[0; 6], &[]);
    let answer = command(host, &MODE_SENSE, &[]);
    assert_eq!(answer.status, 0, "{answer:?}");
    answer.data
}

/// The caching page (SBC-4) in data of MODE SENSE(10).
fn caching_page(data: &[u8]) -> Vec<u8> {
    let mut rest = &data[8..];
    while rest[0] & 0x3f != 0x08 {
        rest = &rest[2 + usize::from(rest[1])..];
    }
    rest[..2 + usize::from(rest[1])].to_vec()
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
        data_in: 255,
        tags: appliance::scsi::Tags::default(),
    };
    match host.start(AT.field(), 0, &padded, buffers) {
        Step::Answer(answer) => answer,
        Step::Disk { pending, .. } => pending.finish(Ok(Reply::Done)),
        other => panic!("{other:?}"),
    }
}
