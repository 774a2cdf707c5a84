//! A transfer is begun as any other command is, only sooner.

use std::sync::Arc;

use proptest::prelude::*;
use spec::virtio_scsi::RequestHeader;

use super::*;
use crate::disk::{DiskError, NullDisk, Reply};
use crate::memory::Segments;
use crate::memory::testing::shared_memory;
use crate::scsi::testing::{Bench, Shape, field, initiator, unit};
use crate::scsi::{Access, Answer, Attention, Buffers, Path, Port, Step, Tags};

/// What may stand in the way of a command of HBA 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    Lost,
    Stopped,
    Erased,
    Reserved,
    WriteExclusive,
    ExclusiveAccess,
    Attention,
    Standby,
    WriteProtected,
    ReadOnly,
    /// It is none.
    NoCache,
}

impl Obstacle {
    const ALL: [Self; 11] = [
        Self::Lost,
        Self::Stopped,
        Self::Erased,
        Self::Reserved,
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::Attention,
        Self::Standby,
        Self::WriteProtected,
        Self::ReadOnly,
        Self::NoCache,
    ];
}

/// HBA 1, HBA 2, and a unit that both see.
struct Scene {
    unit: Arc<LogicalUnit>,
    one: Bench,
    two: Bench,
    /// Keeps what was begun under way.
    begun: Option<Step>,
}

impl Scene {
    fn with(obstacles: &[Obstacle]) -> Self {
        let mut shape = Shape::PLAIN;
        shape.geometry.read_only = obstacles.contains(&Obstacle::ReadOnly);
        let scene = Self::of(unit(shape));
        obstacles
            .iter()
            .fold(scene, |scene, obstacle| scene.put(*obstacle))
    }

    fn of(unit: LogicalUnit) -> Self {
        let unit = Arc::new(unit.shared());
        Self {
            one: Bench::hba(1, &unit),
            two: Bench::hba(2, &unit),
            unit,
            begun: None,
        }
    }

    fn put(mut self, obstacle: Obstacle) -> Self {
        let key = |kept: [u8; 8], new: [u8; 8]| [&kept[..], &new, &[0; 8]].concat();
        let reserve = |kind: u8| {
            let cdb = |action, kind| [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
            self.two.answer(&cdb(0, 0), &key([0; 8], [2; 8]));
            self.two.answer(&cdb(1, kind), &key([2; 8], [0; 8]));
        };
        match obstacle {
            Obstacle::Lost => assert!(self.unit.lose_writes()),
            Obstacle::Stopped => drop(self.two.answer(&[0x1b, 0, 0, 0, 4, 0], &[])),
            Obstacle::Erased => {
                self.begun = Some(self.two.start(&[0x04, 0, 0, 0, 0, 0], &[], 0));
            }
            Obstacle::Reserved => drop(self.two.answer(&[0x16, 0, 0, 0, 0, 0], &[])),
            Obstacle::WriteExclusive => reserve(1),
            Obstacle::ExclusiveAccess => reserve(3),
            Obstacle::Attention => self.unit.tell(Attention::CapacityChanged),
            Obstacle::Standby => {
                let port = Port {
                    initiator: initiator(1),
                    target: 0,
                };
                let access = Access::Standby;
                self.unit.set_paths(&[Path { port, access }]);
            }
            // SWP of the control page, WCE of the caching page.
            Obstacle::WriteProtected => self.set_mode(0x0a, |page| page[4] |= 0x08),
            Obstacle::NoCache => self.set_mode(0x08, |page| page[2] &= !0x04),
            Obstacle::ReadOnly => {}
        }
        if !matches!(obstacle, Obstacle::Attention) {
            // Whatever it was told of that is no obstacle any more.
            while self.one.host.units().count() > 0
                && self.one.answer(&[0x03, 0, 0, 0, 18, 0], &[]).data[2] == 6
            {}
        }
        self
    }

    fn set_mode(&self, page: u8, change: impl Fn(&mut [u8])) {
        let mut list = self.two.data(&[0x1a, 0x08, page, 0, 255, 0]);
        list[..4].fill(0);
        list[4] &= 0x3f;
        change(&mut list[4..]);
        let len = u8::try_from(list.len()).unwrap();
        drop(self.two.start(&[0x15, 0x10, 0, 0, len, 0], &list, 0));
    }
}

/// A command with the lengths of its buffers.
#[derive(Debug, Clone)]
struct Sent {
    attribute: u8,
    cdb: Cdb,
    data_out: usize,
    data_in: usize,
}

/// What was decided, and the answer if its disk ends so.
#[derive(Debug, PartialEq)]
enum Decided {
    Answered(Answer),
    Operated(Op, Answer),
    Overrun,
}

fn decided(step: Step, result: Result<Reply, DiskError>) -> Decided {
    match step {
        Step::Answer(answer) => Decided::Answered(answer),
        Step::Overrun => Decided::Overrun,
        Step::Disk { op, pending, .. } => Decided::Operated(op, pending.finish(result)),
        other => panic!("{other:?}"),
    }
}

fn with_buffers<T>(sent: &Sent, use_them: impl FnOnce(Buffers<'_>) -> T) -> T {
    let mut data_out = Segments::new(shared_memory(sent.data_out.max(1)));
    data_out.push(0, sent.data_out).unwrap();
    use_them(Buffers {
        data_out: &data_out,
        data_in: sent.data_in,
        tags: Tags::default(),
    })
}

fn obstacles() -> impl Strategy<Value = Vec<Obstacle>> {
    prop_oneof![
        1 => Just(Vec::new()),
        3 => prop::sample::select(&Obstacle::ALL[..]).prop_map(|one| vec![one]),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let code = prop::sample::select(vec![0x28_u8, 0x2a, 0x88, 0x8a, 0x08, 0x0a, 0xa8, 0x8f]);
    let flags = prop_oneof![
        8 => Just(0_u8),
        4 => prop::sample::select(vec![0x02, 0x08, 0x10, 0x18, 0x01, 0x20]),
    ];
    let lba = prop_oneof![4 => 0..0x1000_u64, 2 => 0xff0..0x1010_u64, 1 => any::<u64>()];
    let blocks = prop_oneof![8 => 0..20_u32, 1 => 0xfff0..0x1_0010_u32, 1 => any::<u32>()];
    let stray = prop_oneof![8 => Just(None), 1 => any::<(u8, u8)>().prop_map(Some)];
    let other = prop_oneof![8 => Just(None), 1 => (0..9000_usize).prop_map(Some)];
    let attribute = prop_oneof![8 => Just(0), 2 => 0..5_u8];
    (
        code,
        flags,
        lba,
        blocks,
        stray,
        (other.clone(), other),
        attribute,
    )
        .prop_map(
            |(code, flags, lba, blocks, stray, (out, back), attribute)| {
                let mut cdb = [0; 32];
                (cdb[0], cdb[1]) = (code, flags);
                let short = u32::try_from(lba).unwrap_or(u32::MAX).to_be_bytes();
                let count = blocks.to_be_bytes();
                match code >> 5 {
                    0 => (cdb[3], cdb[4]) = (short[3], count[3]),
                    1 => {
                        cdb[2..6].copy_from_slice(&short);
                        cdb[7..9].copy_from_slice(&count[2..]);
                    }
                    5 => {
                        cdb[2..6].copy_from_slice(&short);
                        cdb[6..10].copy_from_slice(&count);
                    }
                    _ => {
                        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
                        cdb[10..14].copy_from_slice(&count);
                    }
                }
                if let Some((at, bits)) = stray {
                    cdb[usize::from(at) % 32] ^= bits;
                }
                let moved = usize::try_from(blocks & 0xffff).unwrap() * 512;
                let writes = matches!(code, 0x0a | 0x2a | 0x8a);
                let exact = if writes { (moved, 0) } else { (0, moved) };
                Sent {
                    attribute,
                    cdb,
                    data_out: out.unwrap_or(exact.0),
                    data_in: back.unwrap_or(exact.1),
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_same_is_decided_as_without_this(obstacles in obstacles(), sent in sent()) {
        // What is decided may change something, so that each has a scene of its own.
        for result in [Ok(Reply::Done), Err(DiskError::Io(5))] {
            let (ours, other) = (Scene::with(&obstacles), Scene::with(&obstacles));
            let Sent { attribute, cdb, .. } = &sent;
            let ours = with_buffers(&sent, |buffers| {
                ours.one.host.start(field(0), *attribute, cdb, buffers)
            });
            let other = with_buffers(&sent, |buffers| {
                other.one.host.start_without_transfer(field(0), *attribute, cdb, buffers)
            });
            prop_assert_eq!(
                decided(ours, result.clone()),
                decided(other, result)
            );
        }
    }
}

/// A READ(10) or WRITE(10) of 8 blocks with just their buffer.
fn usual(writes: bool) -> RequestHeader {
    let mut cdb = [0; 32];
    cdb[..10].copy_from_slice(&[if writes { 0x2a } else { 0x28 }, 0, 0, 0, 0, 9, 0, 0, 8, 0]);
    RequestHeader {
        lun: field(0),
        tag: 7,
        task_attribute: 0,
        cdb,
    }
}

/// Whether a usual command is a transfer that may be done at once.
fn is_ready(bench: &Bench, writes: bool) -> bool {
    let lengths = if writes { (4096, 0) } else { (0, 4096) };
    bench.host.transfer(&usual(writes), lengths).is_some()
}

fn null(read_only: bool) -> LogicalUnit {
    let disk = NullDisk::new(2 << 20, 512, read_only).unwrap();
    LogicalUnit::new("root", Arc::new(disk)).unwrap()
}

#[test]
fn a_usual_command_is_done_at_once_unless_something_is_in_its_way() {
    let free = Scene::of(null(false));
    assert!(is_ready(&free.one, false) && is_ready(&free.one, true));
    for obstacle in Obstacle::ALL {
        let scene = Scene::of(null(obstacle == Obstacle::ReadOnly)).put(obstacle);
        let may_write = obstacle == Obstacle::NoCache;
        let may_read =
            may_write || matches!(obstacle, Obstacle::WriteProtected | Obstacle::ReadOnly);
        assert_eq!(is_ready(&scene.one, true), may_write, "{obstacle:?}");
        // A reservation that leaves reads is left to who knows it.
        assert_eq!(is_ready(&scene.one, false), may_read, "{obstacle:?}");
    }
}

#[test]
fn a_disk_that_does_nothing_at_once_has_no_transfer_to_be_done_so() {
    let scene = Scene::with(&[]);
    assert!(!is_ready(&scene.one, false));
    // It has one beside it that does.
    let quick = Arc::new(null(false));
    let both = Bench::fresh([(0, Arc::clone(&scene.unit)), (1, quick)]);
    while both.ready().0 != 0 || both.ready_at(1).0 != 0 {}
    assert!(!is_ready(&both, false));
    let mut header = usual(false);
    header.lun = field(1);
    assert!(both.host.transfer(&header, (0, 4096)).is_some());
}
