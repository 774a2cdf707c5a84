use std::sync::Arc;

use crate::disk::{Op, Usage};
use crate::scsi::fault::SenseFormat;
use crate::scsi::testing::{Bench, READY, Shape, ShapedDisk, answered, operated, told, unit};
use crate::scsi::{Address, Attention, LogicalUnit, Scope, Step};

const STOP: [u8; 6] = [0x1b, 0, 0, 0, 0, 0];
const START: [u8; 6] = [0x1b, 0, 0, 0, 1, 0];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const RESERVE_6: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE_6: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
const LUN_0: Scope = Scope::Unit(Address { target: 0, lun: 0 });

/// Two HBAs that see the same unit.
fn two() -> (Bench, Bench) {
    let shared = Arc::new(unit(Shape::PLAIN));
    (Bench::of(&shared), Bench::of(&shared))
}

fn status(bench: &Bench, cdb: &[u8]) -> u8 {
    bench.answer(cdb, &[]).status
}

// --- START STOP UNIT ---------------------------------------------------------------------------

#[test]
fn a_stopped_unit_is_not_ready_until_it_is_started() {
    let bench = Bench::new(Shape::PLAIN);
    assert_eq!(operated(bench.start(&STOP, &[], 0)).0, Op::Flush);
    let not_ready = [
        0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x04, 0x02, 0, 0, 0, 0,
    ];
    assert_eq!(bench.sense(&[0]), not_ready);
    assert_eq!(bench.sense(&READ), not_ready);
    let write = bench.answer(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 512]);
    assert_eq!(write.sense, not_ready);
    // It can be asked what is wrong, and what it is.
    assert_eq!(bench.data(&[0x03, 0, 0, 0, 18, 0]), not_ready);
    assert_eq!(bench.data(&[0x12, 0, 0, 0, 36, 0]).len(), 36);
    assert_eq!(bench.data(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]).len(), 8);
    assert_eq!(bench.data(&START), [0_u8; 0]);
    assert_eq!(bench.ready(), READY);
    assert!(matches!(bench.start(&READ, &[], 512), Step::Disk { .. }));
}

#[test]
fn a_unit_that_is_stopped_without_a_flush_stops_at_once() {
    let bench = Bench::new(Shape::PLAIN);
    assert_eq!(bench.data(&[0x1b, 0, 0, 0, 0x04, 0]), [0_u8; 0]);
    assert_eq!(bench.ready(), (2, [0x04, 0x02]));
}

#[test]
fn a_unit_is_started_by_a_reset_of_itself_or_of_any_hba() {
    let (one, other) = two();
    let stop = [0x1b, 0, 0, 0, 0x04, 0];
    assert_eq!(one.data(&stop), [0_u8; 0]);
    one.host.reset(LUN_0, Attention::LogicalUnitReset);
    assert_eq!(one.ready(), (2, [0x29, 0x03]));
    assert_eq!(one.ready(), READY);
    assert_eq!(other.ready(), (2, [0x29, 0x03]));
    assert_eq!(one.data(&stop), [0_u8; 0]);
    assert_eq!(other.ready(), (2, [0x04, 0x02]));
    other.host.power_on();
    assert_eq!(other.ready(), (2, [0x29, 0x00]));
    assert_eq!(other.ready(), READY);
    assert_eq!(one.ready(), READY);
}

// --- RESERVE, RELEASE --------------------------------------------------------------------------

#[test]
fn a_reserved_unit_is_in_conflict_with_all_others() {
    let (one, other) = two();
    assert_eq!(one.data(&RESERVE_6), [0_u8; 0]);
    assert_eq!(one.data(&RESERVE_6), [0_u8; 0], "again by its holder");
    for cdb in [
        RESERVE_6.as_slice(),
        &[0x00],
        &READ,
        &[0x1a, 0, 0x3f, 0, 255, 0],
        &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &STOP,
    ] {
        let answer = other.answer(cdb, &[]);
        assert_eq!((answer.status, answer.sense), (0x18, vec![]), "{cdb:x?}");
    }
    for cdb in [
        [0x12, 0, 0, 0, 36, 0].as_slice(),
        &[0xa0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0],
        &[0x03, 0, 0, 0, 18, 0],
        &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &START,
        &RELEASE_6,
    ] {
        assert_eq!(status(&other, cdb), 0, "{cdb:x?}");
    }
    assert_eq!(one.ready(), READY, "the other released nothing");
    assert_eq!(other.ready(), (0x18, [0, 0]));
    assert_eq!(one.data(&[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]), [0_u8; 0]);
    assert_eq!(other.ready(), READY);
    assert_eq!(other.data(&RESERVE_6), [0_u8; 0]);
    assert_eq!(one.ready(), (0x18, [0, 0]));
}

#[test]
fn a_conflict_comes_before_a_unit_attention_and_leaves_it() {
    let shared = Arc::new(unit(Shape::PLAIN));
    let one = Bench::of(&shared);
    assert_eq!(one.data(&RESERVE_6), [0_u8; 0]);
    let other = Bench::fresh([(0, shared)]);
    assert_eq!(other.ready(), (0x18, [0, 0]));
    assert_eq!(one.data(&RELEASE_6), [0_u8; 0]);
    assert_eq!(other.ready(), (2, [0x29, 0x00]));
}

#[test]
fn a_reservation_ends_with_whatever_ends_its_nexus() {
    let ends: [fn(Bench); 5] = [
        |holder| holder.host.reset(LUN_0, Attention::LogicalUnitReset),
        |holder| holder.host.reset(Scope::Target(0), Attention::NexusLoss),
        |holder| holder.host.power_on(),
        |mut holder| holder.host.remove(Address { target: 0, lun: 0 }),
        drop,
    ];
    for (index, end) in ends.into_iter().enumerate() {
        let (holder, other) = two();
        assert_eq!(holder.data(&RESERVE_6), [0_u8; 0]);
        assert_eq!(status(&other, &RESERVE_6), 0x18);
        end(holder);
        // The first of them tells the other too.
        let _ = other.ready();
        assert_eq!(status(&other, &RESERVE_6), 0, "end {index}");
    }
}

#[test]
fn a_reservation_outlives_what_happens_to_others() {
    let (holder, other) = two();
    assert_eq!(holder.data(&RESERVE_6), [0_u8; 0]);
    other.host.power_on();
    other.host.reset(Scope::Host, Attention::NexusLoss);
    assert_eq!(status(&other, &READ), 0x18);
    drop(other);
    assert_eq!(holder.ready(), READY);
}

#[test]
fn a_reset_by_another_ends_a_reservation() {
    let (holder, other) = two();
    assert_eq!(holder.data(&RESERVE_6), [0_u8; 0]);
    other.host.reset(LUN_0, Attention::LogicalUnitReset);
    assert_eq!(holder.ready(), (2, [0x29, 0x03]));
    assert_eq!(other.ready(), (2, [0x29, 0x03]));
    assert_eq!(other.data(&RESERVE_6), [0_u8; 0]);
}

// --- Mode parameters of those who come and go --------------------------------------------------

#[test]
fn parameters_start_afresh_only_when_nobody_relies_on_them() {
    let shared = Arc::new(unit(Shape::PLAIN));
    let one = Bench::of(&shared);
    let d_sense = [0, 0, 0, 0, 0x0a, 10, 0x06, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    let select = [0x15, 0x10, 0, 0, 16, 0];
    assert_eq!(one.answer(&select, &d_sense).status, 0);
    let other = Bench::fresh([(0, Arc::clone(&shared))]);
    other.host.power_on();
    assert_eq!(
        shared.sense_format(),
        SenseFormat::Descriptor,
        "one relies on it"
    );
    drop(other);
    one.host.power_on();
    assert_eq!(shared.sense_format(), SenseFormat::Fixed);
    assert_eq!(one.ready(), (2, [0x29, 0x00]));
    assert_eq!(one.answer(&select, &d_sense).status, 0);
    drop(one);
    let _next = Bench::of(&shared);
    assert_eq!(shared.sense_format(), SenseFormat::Fixed);
}

// --- What is looked at now and then ------------------------------------------------------------

#[test]
fn a_unit_of_another_size_tells_everyone_once() {
    let disk = ShapedDisk::new(Shape::PLAIN);
    let shared = Arc::new(LogicalUnit::new("root", disk.clone()).unwrap());
    let (one, other) = (Bench::of(&shared), Bench::of(&shared));
    assert_eq!(shared.look(), []);
    disk.change(|shape| shape.geometry.blocks = 0x2000);
    assert_eq!(shared.look(), [Attention::CapacityChanged]);
    assert_eq!(shared.look(), []);
    for bench in [one, other] {
        assert_eq!(
            bench.sense(&[0]),
            [
                0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 0x09, 0, 0, 0, 0
            ]
        );
        let capacity = bench.data(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(capacity, [0, 0, 0x1f, 0xff, 0, 0, 2, 0]);
    }
}

#[test]
fn a_thin_unit_tells_once_that_space_runs_short() {
    let disk = ShapedDisk::new(Shape::THIN);
    let thin = LogicalUnit::new("root", disk.clone()).unwrap();
    let shared = Arc::new(thin.with_threshold(80));
    let bench = Bench::of(&shared);
    // Of 100 MiB, 20 are left then.
    let page = bench.data(&[0x1a, 0x08, 0x1c, 0x02, 255, 0]);
    assert_eq!(page[20..28], [0x80, 0x01, 0, 0, 0, 0, 0, 20]);
    let left = |mebibytes: u64| {
        disk.change(|shape| {
            shape.usage = Some(Usage {
                used: (100 - mebibytes) << 20,
                available: mebibytes << 20,
            });
        });
        shared.look()
    };
    assert_eq!(left(21), []);
    assert_eq!(left(19), [Attention::SoftThreshold]);
    assert_eq!(left(18), []);
    assert_eq!(
        bench.sense(&[0]),
        [
            0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x38, 0x07, 0, 0, 0, 0
        ]
    );
    assert_eq!(bench.ready(), READY);
    assert_eq!(left(21), []);
    assert_eq!(left(10), [Attention::SoftThreshold]);
}

#[test]
fn an_initiator_sets_its_own_threshold_or_none() {
    let shared = Arc::new(unit(Shape::THIN));
    let bench = Bench::of(&shared);
    let set = |enabled: u8, count: u8| {
        let mut list = vec![0, 0, 0, 0, 0x5c, 0x02, 0, 0x14];
        list.resize(4 + 24, 0);
        list[20..28].copy_from_slice(&[enabled, 0x01, 0, 0, 0, 0, 0, count]);
        bench.answer(&[0x15, 0x10, 0, 0, 28, 0], &list).status
    };
    assert_eq!(shared.look(), [], "none by itself");
    assert_eq!(set(0x80, 90), 0);
    assert_eq!(shared.look(), [Attention::SoftThreshold], "70 are left");
    assert_eq!(bench.ready(), (2, [0x38, 0x07]));
    assert_eq!(set(0, 90), 0);
    assert_eq!(shared.look(), []);
}

#[test]
fn a_disk_that_is_not_thin_has_no_threshold() {
    let shared = Arc::new(unit(Shape::PLAIN).with_threshold(1));
    let bench = Bench::of(&shared);
    assert_eq!(shared.look(), []);
    let answer = answered(bench.start(&[0x1a, 0x08, 0x1c, 0x02, 255, 0], &[], 255));
    assert_eq!(told(&answer), (2, [0x24, 0x00]));
}
