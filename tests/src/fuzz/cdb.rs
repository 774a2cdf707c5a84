//! Commands and parameter lists of two HBAs that share a unit, on a disk in memory.
//!
//! Whatever they ask: answers fit their buffers, operations stay inside disk and buffers, and a
//! disk that failed is never GOOD.

use std::cell::OnceCell;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use appliance::disk::{
    Abilities, Atomic, Disk, DiskError, Extent, Geometry, Op, OpenFile, Reply, Thin, Usage,
};
use appliance::memory::{Mapping, Segments};
use appliance::scsi::{
    Address, Answer, Attention, Buffers, Host, Initiator, LogicalUnit, Scope, Step,
};
use arbitrary::Arbitrary;
use uuid::Uuid;

/// Bytes of the disk.
const DISK_LEN: usize = 256 << 10;
/// Most bytes of a command's data-out.
const MAX_DATA_OUT: usize = 128 << 10;
/// SAM's statuses.
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;

#[derive(Debug, Arbitrary)]
struct Input {
    shape: Shape,
    #[arbitrary(with = super::until_empty)]
    events: Vec<Event>,
}

/// What the disk is like.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Shape {
    large_blocks: bool,
    read_only: bool,
    thin: bool,
    mapped: bool,
    atomic: bool,
    usage: bool,
}

#[derive(Debug, Arbitrary)]
enum Event {
    Command(Command),
    Reset {
        hba: bool,
        scope: u8,
        attention: u8,
    },
    PowerOn {
        hba: bool,
    },
    /// The unit is looked at, when the disk is so full.
    Look {
        used: u32,
    },
    Resize {
        blocks: u16,
    },
    /// One HBA sees the unit no more, and again.
    Replace {
        hba: bool,
    },
    /// A third-party copy that is right but for the changes.
    Copy(Copy),
}

#[derive(Debug, Arbitrary)]
struct Copy {
    hba: bool,
    second: bool,
    what: What,
    /// Blocks from, blocks to, how many; and whether it is the second unit on either side.
    ranges: Vec<(u8, u8, u8, bool, bool)>,
    /// Bytes of the parameter list that are others.
    changes: Vec<(u16, u8)>,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum What {
    Extended {
        newer: bool,
    },
    Populate,
    /// The token that was made last, or that stands for zeros.
    Write {
        offset: u8,
        zeros: bool,
    },
}

#[derive(Debug, Arbitrary)]
struct Command {
    hba: bool,
    place: Place,
    attribute: u8,
    cdb: Cdb,
    #[arbitrary(with = super::counted)]
    data_out: Vec<u8>,
    /// The data-out is repeated up to so many bytes, in units of 256.
    repeated: u16,
    data_in: u16,
    ending: Ending,
}

#[derive(Debug, Arbitrary)]
enum Place {
    Unit,
    Second,
    ReportLuns,
    Missing(u8),
    Wild([u8; 8]),
}

#[derive(Debug, Arbitrary)]
enum Cdb {
    /// A command that the unit says it supports, with some of its bytes changed.
    Known {
        row: u8,
        lba: u16,
        blocks: u8,
        changes: Vec<(u8, u8)>,
    },
    Wild([u8; 32]),
}

/// How the disk ends an operation.
#[derive(Debug, Arbitrary)]
enum Ending {
    Carried,
    Failed(u8),
    Expired,
    Gone,
    /// Not what was asked.
    Confused,
}

/// A disk in memory, which [`carry_out`] works on.
#[derive(Debug)]
struct RamDisk {
    shape: Shape,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    /// Blocks there are, and blocks that were there when the disk was looked at.
    blocks: u64,
    seen: u64,
    used: u64,
}

impl RamDisk {
    fn new(shape: Shape) -> Self {
        let blocks = DISK_LEN as u64 / u64::from(block_size(shape));
        Self {
            shape,
            state: Mutex::new(State {
                bytes: vec![0; DISK_LEN],
                blocks,
                seen: blocks,
                used: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn block_size(shape: Shape) -> u32 {
    if shape.large_blocks { 4096 } else { 512 }
}

impl Disk for RamDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: block_size(self.shape),
            blocks: self.state().seen,
            physical_block_size: 4096,
            read_only: self.shape.read_only,
        }
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            thin: self.shape.thin.then_some(Thin {
                granularity: 16 << 10,
                mapped: self.shape.mapped,
            }),
            atomic: self.shape.atomic.then_some(Atomic {
                min: 4096,
                max: 16 << 10,
            }),
            optimal: None,
        }
    }

    fn usage(&self) -> Option<Usage> {
        let used = self.state().used;
        self.shape.usage.then_some(Usage {
            used,
            available: u64::from(u32::MAX) - used,
        })
    }

    fn refresh(&self) -> std::io::Result<bool> {
        let mut state = self.state();
        let before = state.seen;
        state.seen = state.blocks;
        Ok(before != state.seen)
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Err(DiskError::Gone)
    }
}

/// The memory that data-out is in.
fn memory() -> Arc<Mapping> {
    thread_local! {
        static MEMORY: OnceCell<Arc<Mapping>> = const { OnceCell::new() };
    }
    MEMORY.with(|memory| {
        let make = || {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(MAX_DATA_OUT as u64).expect("a longer file");
            Arc::new(Mapping::new(file.as_fd(), 0, MAX_DATA_OUT, None).expect("a mapping"))
        };
        Arc::clone(memory.get_or_init(make))
    })
}

fn segments(bytes: &[u8]) -> Segments {
    let mut segments = Segments::new(memory());
    segments.push(0, bytes.len()).expect("the memory is longer");
    segments.write_at(0, bytes);
    segments
}

pub(super) fn run(bytes: &[u8]) {
    let Some(input) = super::parse::<Input>(bytes) else {
        return;
    };
    let disk = Arc::new(RamDisk::new(input.shape));
    let unit = |name, disk: &Arc<RamDisk>| {
        let unit = LogicalUnit::new(name, disk.clone()).expect("a good name");
        Arc::new(unit.with_threshold(80))
    };
    let shared = unit("shared", &disk);
    let second = unit("second", &Arc::new(RamDisk::new(input.shape)));
    let mut hosts = [(1, true), (2, false)].map(|(number, has_second)| {
        let initiator = Initiator {
            uuid: Uuid::from_bytes([number; 16]),
            number,
        };
        let units = [(at(0), shared.clone()), (at(1), second.clone())];
        let units = units.into_iter().take(1 + usize::from(has_second));
        Host::new(initiator, units).expect("good LUNs")
    });
    let known = known_commands(&hosts[0]);
    for event in input.events.into_iter().take(64) {
        match event {
            Event::Command(command) => {
                let host = &hosts[usize::from(command.hba)];
                send(host, &disk, &known, command);
            }
            Event::Reset {
                hba,
                scope,
                attention,
            } => {
                let scope =
                    [Scope::Unit(at(0)), Scope::Target(0), Scope::Host][usize::from(scope) % 3];
                let attentions = [
                    Attention::PowerOn,
                    Attention::LogicalUnitReset,
                    Attention::NexusLoss,
                    Attention::CommandsCleared,
                ];
                let attention = attentions[usize::from(attention) % attentions.len()];
                hosts[usize::from(hba)].reset(scope, attention);
            }
            Event::PowerOn { hba } => hosts[usize::from(hba)].power_on(),
            Event::Look { used } => {
                disk.state().used = used.into();
                for attention in shared.look() {
                    shared.tell(attention);
                }
            }
            Event::Resize { blocks } => {
                let most = DISK_LEN as u64 / u64::from(block_size(input.shape));
                disk.state().blocks = (u64::from(blocks) + 1).min(most);
            }
            Event::Copy(copy) => {
                let host = &hosts[usize::from(copy.hba)];
                send_copy(host, &disk, copy);
            }
            Event::Replace { hba } => {
                let host = &mut hosts[usize::from(hba)];
                host.remove(at(0));
                host.add(at(0), shared.clone()).expect("a good LUN");
            }
        }
    }
}

fn at(lun: u16) -> Address {
    Address { target: 0, lun }
}

/// Operation codes and service actions that a unit supports, as REPORT SUPPORTED OPERATION CODES
/// lists them (SPC-5, all_commands parameter data).
fn known_commands(host: &Host) -> Vec<(u8, Option<u16>)> {
    let mut cdb = [0; 32];
    (cdb[0], cdb[1], cdb[8]) = (0xa3, 0x0c, 0x20);
    let list = |cdb| {
        let none = segments(&[]);
        let buffers = Buffers {
            data_out: &none,
            data_in: 0x2000,
            tags: appliance::scsi::Tags::default(),
        };
        match host.start(at(0).field(), 0, cdb, buffers) {
            Step::Answer(answer) => answer,
            other => panic!("REPORT SUPPORTED OPERATION CODES became {other:?}"),
        }
    };
    // The first command to a new unit ends with a unit attention.
    let mut answer = list(&cdb);
    for _ in 0..8 {
        if answer.status == GOOD {
            break;
        }
        answer = list(&cdb);
    }
    assert_eq!(answer.status, GOOD, "{answer:?}");
    let rows = answer.data[4..].chunks_exact(8).map(|row| {
        let action = u16::from_be_bytes([row[2], row[3]]);
        (row[0], (row[5] & 1 != 0).then_some(action))
    });
    rows.collect()
}

/// The bytes of a CDB that is right but for the changes: operation code and service action, and
/// the fields for a place and a number of blocks where commands of its group have them.
fn cdb_of(known: &[(u8, Option<u16>)], cdb: Cdb) -> [u8; 32] {
    let (row, lba, blocks, changes) = match cdb {
        Cdb::Wild(bytes) => return bytes,
        Cdb::Known {
            row,
            lba,
            blocks,
            changes,
        } => (row, lba, blocks, changes),
    };
    let (code, action) = known[usize::from(row) % known.len()];
    let mut bytes = [0; 32];
    bytes[0] = code;
    let lba = lba.to_be_bytes();
    match code >> 5 {
        0 => {
            bytes[2..4].copy_from_slice(&lba);
            bytes[4] = blocks;
        }
        1 | 2 => {
            bytes[4..6].copy_from_slice(&lba);
            bytes[8] = blocks;
        }
        3 => {
            bytes[7] = 0x18;
            bytes[18..20].copy_from_slice(&lba);
            bytes[31] = blocks;
        }
        5 => {
            bytes[4..6].copy_from_slice(&lba);
            bytes[9] = blocks;
        }
        _ => {
            bytes[8..10].copy_from_slice(&lba);
            bytes[13] = blocks;
        }
    }
    if let Some(action) = action {
        let [high, low] = action.to_be_bytes();
        if code == 0x7f {
            (bytes[8], bytes[9]) = (high, low);
        } else {
            bytes[1] = low;
        }
    }
    for (place, value) in changes {
        bytes[usize::from(place) % 32] = value;
    }
    bytes
}

fn send(host: &Host, disk: &RamDisk, known: &[(u8, Option<u16>)], command: Command) {
    let lun = match command.place {
        Place::Unit => at(0).field(),
        Place::Second => at(1).field(),
        Place::ReportLuns => [1, 0, 0xc1, 0x01, 0, 0, 0, 0],
        Place::Missing(lun) => at(2 + u16::from(lun)).field(),
        Place::Wild(bytes) => bytes,
    };
    let cdb = cdb_of(known, command.cdb);
    let mut data_out = command.data_out;
    let wanted = (usize::from(command.repeated) * 256).min(MAX_DATA_OUT);
    if !data_out.is_empty() && wanted > data_out.len() {
        data_out = data_out.into_iter().cycle().take(wanted).collect();
    }
    data_out.truncate(MAX_DATA_OUT);
    let data_in = usize::from(command.data_in);
    let segments = segments(&data_out);
    let buffers = Buffers {
        data_out: &segments,
        data_in,
        tags: appliance::scsi::Tags::default(),
    };
    let step = host.start(lun, command.attribute, &cdb, buffers);
    go_on((lun, step), disk, (&data_out, data_in), command.ending);
}

/// The NAA identifier of the unit at this LUN; zeros if it is not there.
fn naa(host: &Host, lun: u16) -> Vec<u8> {
    let mut cdb = [0; 32];
    (cdb[0], cdb[1], cdb[2], cdb[4]) = (0x12, 1, 0x83, 0xff);
    asked(host, lun, &cdb)
        .get(8..16)
        .map_or(vec![0; 8], <[u8]>::to_vec)
}

/// The data of a command that reads; empty if it fails.
fn asked(host: &Host, lun: u16, cdb: &[u8; 32]) -> Vec<u8> {
    let none = segments(&[]);
    let buffers = Buffers {
        data_out: &none,
        data_in: 1024,
        tags: appliance::scsi::Tags::default(),
    };
    match host.start(at(lun).field(), 0, cdb, buffers) {
        Step::Answer(answer) => answer.data,
        other => panic!("{cdb:?} became {other:?}"),
    }
}

/// Service action and parameter list of a third-party copy.
fn copy_list(host: &Host, copy: &Copy, block: u32) -> (u8, Vec<u8>) {
    let ranges = copy.ranges.iter().take(80);
    let descriptors = |list: &mut Vec<u8>| {
        let at = list.len();
        for &(from, _, blocks, ..) in copy.ranges.iter().take(80) {
            list.extend(u64::from(from).to_be_bytes());
            list.extend(u32::from(blocks).to_be_bytes());
            list.extend([0; 4]);
        }
        let len = u16::try_from(list.len() - at).expect("a short list");
        list[at - 2..at].copy_from_slice(&len.to_be_bytes());
        let len = u16::try_from(list.len() - 2).expect("a short list");
        list[..2].copy_from_slice(&len.to_be_bytes());
    };
    match copy.what {
        What::Extended { newer } => {
            let mut cscds = Vec::new();
            for lun in [0, 1] {
                cscds.extend([0xe4, 0, 0, 0, 1, 3, 0, 8]);
                cscds.extend(naa(host, lun));
                cscds.extend([0; 12]);
                cscds.extend(block.to_be_bytes());
            }
            let mut segments = Vec::new();
            for &(from, to, blocks, source, destination) in ranges {
                segments.extend([0x02, 0, 0, 0x18, 0, source.into(), 0, destination.into()]);
                segments.extend([0, 0, 0, blocks]);
                segments.extend(u64::from(from).to_be_bytes());
                segments.extend(u64::from(to).to_be_bytes());
            }
            let [high, low] = u16::try_from(segments.len())
                .expect("a short list")
                .to_be_bytes();
            let mut list = vec![0; if newer { 48 } else { 16 }];
            if newer {
                (list[0], list[3], list[16], list[23]) = (1, 0x20, 0xff, 3);
                (list[43], list[44], list[45]) = (64, high, low);
            } else {
                (list[0], list[3], list[10], list[11]) = (3, 64, high, low);
            }
            list.extend(cscds);
            list.extend(segments);
            (newer.into(), list)
        }
        What::Populate => {
            let mut list = vec![0; 16];
            descriptors(&mut list);
            (0x10, list)
        }
        What::Write { offset, zeros } => {
            let mut list = vec![0; 536];
            list[15] = offset;
            if zeros {
                list[16..24].copy_from_slice(&[0xff, 0xff, 0, 1, 0, 0, 1, 0xf8]);
            } else {
                let mut cdb = [0; 32];
                (cdb[0], cdb[1], cdb[5], cdb[12]) = (0x84, 0x07, 3, 4);
                let data = asked(host, 0, &cdb);
                if let Some(token) = data.get(38..38 + 512) {
                    list[16..528].copy_from_slice(token);
                }
            }
            descriptors(&mut list);
            (0x11, list)
        }
    }
}

fn send_copy(host: &Host, disk: &RamDisk, copy: Copy) {
    let (action, mut list) = copy_list(host, &copy, block_size(disk.shape));
    for &(place, value) in &copy.changes {
        let place = usize::from(place) % list.len();
        list[place] = value;
    }
    let mut cdb = [0; 32];
    (cdb[0], cdb[1]) = (0x83, action);
    if action >= 0x10 {
        cdb[9] = 3;
    }
    let len = u32::try_from(list.len()).expect("a short list");
    cdb[10..14].copy_from_slice(&len.to_be_bytes());
    let segments = segments(&list);
    let buffers = Buffers {
        data_out: &segments,
        data_in: 0,
        tags: appliance::scsi::Tags::default(),
    };
    let lun = at(copy.second.into()).field();
    let step = host.start(lun, 0, &cdb, buffers);
    go_on((lun, step), disk, (&list, 0), copy.ending);
}

/// Looks at what became of a command, and ends it as `ending` says.
fn go_on(
    (lun, step): ([u8; 8], Step),
    disk: &RamDisk,
    (data_out, data_in): (&[u8], usize),
    ending: Ending,
) {
    let total = data_out.len() + data_in;
    match step {
        Step::Answer(answer) => check(&answer, data_in, total),
        Step::Preempt { pending, .. } => {
            check(&pending.finish(Ok(Reply::Done)), data_in, total);
        }
        Step::Disk {
            disk: of,
            mut op,
            mut pending,
            patience,
        } => {
            assert!(!patience.is_zero(), "a command without time");
            let of = of.unwrap_or_else(|| Arc::clone(pending.unit().disk()));
            let block = of.geometry().block_size;
            let needs = op.data_out(block).expect("a buffer could have it");
            assert!(needs <= data_out.len(), "{op:?} reads past data-out");
            assert!(op.data_in() <= data_in, "{op:?} writes past data-in");
            fits(&*of, &op);
            let answer = match ending {
                Ending::Carried => {
                    let mut result = carry_out(&mut disk.state().bytes, &op, data_out, block);
                    let mut operations = 1;
                    while let Some((of, then)) = pending.go_on(&result) {
                        fits(&*of, &then);
                        op = then;
                        result = carry_out(&mut disk.state().bytes, &op, &[], block);
                        operations += 1;
                        assert!(operations < 200, "a copy without end");
                    }
                    let failed = result.is_err();
                    let answer = pending.finish(result);
                    assert!(
                        !(failed && answer.status == GOOD),
                        "{op:?} failed and is GOOD"
                    );
                    answer
                }
                Ending::Failed(error) => not_good(&op, pending.finish(Err(error_of(error)))),
                Ending::Expired => not_good(&op, pending.expired()),
                Ending::Gone => not_good(&op, pending.gone()),
                Ending::Confused => {
                    let wrong = match op {
                        Op::Allocation { .. } => Reply::Done,
                        _ => Reply::Allocation(Vec::new()),
                    };
                    not_good(&op, pending.finish(Ok(wrong)))
                }
            };
            check(&answer, data_in, total);
        }
        Step::NoTarget => {
            let known = lun[..2] == [1, 0] || lun == [0xc1, 0x01, 0, 0, 0, 0, 0, 0];
            assert!(!known, "the target of {lun:?} is there");
        }
        Step::Overrun => {}
    }
}

/// Checks that an operation stays inside its disk, and may be done to it.
fn fits(disk: &dyn Disk, op: &Op) {
    let inside = |disk: &dyn Disk, offset: u64, count: u64| {
        let geometry = disk.geometry();
        let block = u64::from(geometry.block_size);
        let len = geometry.blocks * block;
        let end = offset.checked_add(count).expect("no disk is that long");
        assert!(end <= len, "{op:?} leaves the disk of {len} bytes");
        let aligned = offset.is_multiple_of(block) && count.is_multiple_of(block);
        assert!(aligned, "{op:?} is not of whole blocks");
    };
    let writes = op.changes_blocks();
    assert!(!(writes && disk.geometry().read_only), "{op:?} writes");
    for (offset, count) in touched(op) {
        inside(disk, offset, count);
    }
    if let Op::Copy {
        source, from, len, ..
    } = op
    {
        inside(&*source.0, *from, *len);
    }
}

fn not_good(op: &Op, answer: Answer) -> Answer {
    assert_ne!(answer.status, GOOD, "{op:?} was not done and is GOOD");
    answer
}

fn check(answer: &Answer, data_in: usize, total: usize) {
    assert!(answer.data.len() <= data_in, "more data than room");
    let left = usize::try_from(answer.residual).expect("64 bits");
    assert!(
        left <= total - answer.data.len(),
        "residual {left} of {total}"
    );
    assert_eq!(answer.sense.is_empty(), answer.status != CHECK_CONDITION);
    // SPC-5, sense data: at most 252 bytes, and virtio-scsi has room for 96.
    assert!(answer.sense.len() <= 96, "sense does not fit");
}

fn error_of(number: u8) -> DiskError {
    let errors = [
        DiskError::Io(libc::EIO),
        DiskError::NoSpace,
        DiskError::Busy,
        DiskError::Gone,
        DiskError::Truncated,
        DiskError::ReadOnly,
        DiskError::OutOfRange,
        DiskError::TenantMemory,
        DiskError::Miscompare { at: u64::MAX },
        DiskError::Miscompare { at: 7 },
        DiskError::Unsupported,
        DiskError::WritesLost,
        DiskError::Cancelled,
    ];
    errors[usize::from(number) % errors.len()]
}

/// Where on the disk an operation works: offsets and lengths.
fn touched(op: &Op) -> Vec<(u64, u64)> {
    match *op {
        Op::Read { offset, len }
        | Op::Write { offset, len, .. }
        | Op::WriteVerify { offset, len }
        | Op::CompareAndWrite { offset, len, .. }
        | Op::Or { offset, len, .. } => vec![(offset, len as u64)],
        Op::WriteSame { offset, len, .. }
        | Op::Compare { offset, len, .. }
        | Op::Check { offset, len }
        | Op::Zero { offset, len, .. }
        | Op::Mend { offset, len }
        | Op::Prefetch { offset, len }
        | Op::Copy { offset, len, .. } => vec![(offset, len)],
        Op::Unmap { ref ranges, .. } => ranges.to_vec(),
        Op::Watch(ref watch) => watch.ranges().to_vec(),
        Op::Allocation { offset, .. } => vec![(offset, 0)],
        Op::Protected(ref what) => touched(&what.op),
        Op::Flush | Op::Barrier => vec![],
    }
}

/// Does to `disk` what `op` says.
fn carry_out(disk: &mut [u8], op: &Op, data: &[u8], block: u32) -> Result<Reply, DiskError> {
    let block = block as usize;
    let range = |offset: u64, len: u64| {
        let start = usize::try_from(offset).expect("checked");
        start..start + usize::try_from(len).expect("checked")
    };
    match *op {
        Op::Read { .. }
        | Op::Check { .. }
        | Op::Mend { .. }
        | Op::Prefetch { .. }
        | Op::Flush
        | Op::Barrier
        | Op::Watch(_) => {}
        // Whichever disk it is of: what they hold is the same to all checks.
        Op::Copy {
            from, offset, len, ..
        } => disk.copy_within(range(from, len), range(offset, len).start),
        Op::Write { offset, len, .. } | Op::WriteVerify { offset, len } => {
            disk[range(offset, len as u64)].copy_from_slice(&data[..len]);
        }
        Op::WriteSame { offset, len, .. } => {
            for place in disk[range(offset, len)].chunks_exact_mut(block) {
                place.copy_from_slice(&data[..block]);
            }
        }
        Op::Compare { offset, len, same } => {
            let there = &disk[range(offset, len)];
            let wanted = if same {
                &data[..block]
            } else {
                &data[..there.len()]
            };
            equal(there, wanted.iter().cycle())?;
        }
        Op::CompareAndWrite { offset, len, .. } => {
            let there = &mut disk[range(offset, len as u64)];
            equal(there, data[..len].iter())?;
            there.copy_from_slice(&data[len..2 * len]);
        }
        Op::Or { offset, len, .. } => {
            for (there, byte) in disk[range(offset, len as u64)].iter_mut().zip(data) {
                *there |= byte;
            }
        }
        Op::Zero { offset, len, .. } => disk[range(offset, len)].fill(0),
        Op::Unmap { ref ranges, .. } => {
            for &(offset, len) in ranges.iter() {
                disk[range(offset, len)].fill(0);
            }
        }
        // This disk has none.
        Op::Protected(_) => return Err(DiskError::Unsupported),
        Op::Allocation { limit, .. } => {
            assert!(limit > 0, "room for one extent");
            let extents = (0..limit.min(3)).map(|n| Extent {
                len: block as u64 * (n as u64 + 1),
                allocated: n % 2 == 0,
            });
            return Ok(Reply::Allocation(extents.collect()));
        }
    }
    Ok(Reply::Done)
}

fn equal<'a>(there: &[u8], wanted: impl Iterator<Item = &'a u8>) -> Result<(), DiskError> {
    match there.iter().zip(wanted).position(|(a, b)| a != b) {
        Some(at) => Err(DiskError::Miscompare { at: at as u64 }),
        None => Ok(()),
    }
}
