//! LOG SENSE and LOG SELECT.

use std::time::Duration;

use super::*;
use crate::disk::Reply;
use crate::scsi::testing::{self, Bench};

/// LOG SENSE of cumulative values with room for 4096 bytes.
fn log_sense(page: u8, subpage: u8) -> [u8; 10] {
    [0x4d, 0, 0x40 | page, subpage, 0, 0, 0, 0x10, 0, 0]
}

fn thin() -> Bench {
    Bench::new(testing::Shape::THIN)
}

fn plain() -> Bench {
    Bench::new(testing::Shape::PLAIN)
}

#[test]
fn pages_and_subpages_are_listed_and_are_all_there() {
    assert_eq!(
        thin().data(&log_sense(0, 0)),
        [0, 0, 0, 6, 0x00, 0x0c, 0x0d, 0x15, 0x19, 0x2f]
    );
    assert_eq!(
        plain().data(&log_sense(0, 0)),
        [0, 0, 0, 5, 0x00, 0x0d, 0x15, 0x19, 0x2f]
    );
    let all = thin().data(&log_sense(0, 0xff));
    assert_eq!(all[..4], [0x40, 0xff, 0, 18]);
    assert_eq!(
        all[4..],
        [
            0x00, 0x00, 0x00, 0xff, 0x0c, 0x00, 0x0d, 0x00, 0x15, 0x00, 0x19, 0x00, 0x19, 0x20,
            0x19, 0xff, 0x2f, 0x00
        ]
    );
    let bench = thin();
    for pair in all[4..].chunks(2) {
        let page = bench.data(&log_sense(pair[0], pair[1]));
        let len = usize::from(u16::from_be_bytes([page[2], page[3]]));
        let has_subpage = if pair[1] == 0 { 0 } else { 0x40 };
        assert_eq!(page[0] & 0x7f, pair[0] | has_subpage);
        assert_eq!((page[1], len), (pair[1], page.len() - 4));
    }
    assert_eq!(
        bench.data(&log_sense(0x19, 0xff)),
        [0x59, 0xff, 0, 6, 0x19, 0x00, 0x19, 0x20, 0x19, 0xff]
    );
}

#[test]
fn what_is_not_listed_is_pointed_at() {
    let target = target(GEOMETRY);
    let wrong = |cdb: &[u8]| refused(&target, cdb, &[]);
    assert_eq!(wrong(&log_sense(0x0c, 0)), invalid_field(2, 5), "not thin");
    assert_eq!(wrong(&log_sense(0x19, 1)), invalid_field(3, 7));
    assert_eq!(wrong(&log_sense(0x2f, 0xff)), invalid_field(3, 7));
    let mut beyond = log_sense(0x0d, 0);
    beyond[6] = 2;
    assert_eq!(wrong(&beyond), invalid_field(5, 7));
    let thresholds = [0x4d, 0, 0x19, 0, 0, 0, 0, 0, 64, 0];
    assert_eq!(wrong(&thresholds), invalid_field(2, 7));
    let saving = [0x4d, 1, 0x59, 0, 0, 0, 0, 0, 64, 0];
    assert_eq!(wrong(&saving), invalid_field(1, 0));
}

#[test]
fn provisioning_is_told_in_threshold_sets_of_a_mebibyte() {
    assert_eq!(
        thin().data(&log_sense(0x0c, 0)),
        [
            0x8c, 0, 0, 24, // 70 MiB are available, maybe to others
            0, 1, 3, 8, 0, 0, 0, 70, 2, 0, 0, 0, // 30 MiB are used by this unit
            0, 2, 3, 8, 0, 0, 0, 30, 1, 0, 0, 0,
        ]
    );
    let mut used = log_sense(0x0c, 0);
    used[6] = 2;
    assert_eq!(thin().data(&used)[..8], [0x8c, 0, 0, 12, 0, 2, 3, 8]);
}

#[test]
fn provisioning_is_told_as_it_was_when_the_disk_was_looked_at_last() {
    let disk = testing::ShapedDisk::new(testing::Shape::THIN);
    let unit =
        Arc::new(LogicalUnit::new("root", Arc::<testing::ShapedDisk>::clone(&disk)).unwrap());
    let bench = Bench::of(&unit);
    let available = || bench.data(&log_sense(0x0c, 0))[11];
    disk.change(|shape| {
        shape.usage = Some(crate::disk::Usage {
            used: 90 << 20,
            available: 10 << 20,
        });
    });
    assert_eq!(available(), 70);
    let _ = unit.look();
    assert_eq!(available(), 10);
}

#[test]
fn what_a_unit_without_sensors_and_scans_has_to_say() {
    let bench = plain();
    assert_eq!(
        bench.data(&log_sense(0x0d, 0)),
        [0x8d, 0, 0, 12, 0, 0, 3, 2, 0, 0xff, 0, 1, 3, 2, 0, 0xff]
    );
    assert_eq!(
        bench.data(&log_sense(0x2f, 0)),
        [0xaf, 0, 0, 8, 0, 0, 3, 4, 0, 0, 0xff, 0]
    );
    let mut scan = vec![0x95, 0, 0, 16, 0, 0, 3, 12];
    scan.resize(20, 0);
    assert_eq!(bench.data(&log_sense(0x15, 0)), scan);
}

/// Ends a command well that took so long.
fn end(step: Step, time: Duration) {
    match step {
        Step::Disk { pending, .. } => {
            pending.took(time);
            assert_eq!(pending.finish(Ok(Reply::Done)).status, 0);
        }
        other => panic!("{other:?}"),
    }
}

/// A parameter of 8 bytes.
fn number(page: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(page[at..at + 8].try_into().unwrap())
}

#[test]
fn commands_of_all_initiators_are_counted() {
    let unit = Arc::new(testing::unit(testing::Shape::PLAIN));
    let (one, other) = (Bench::hba(1, &unit), Bench::hba(2, &unit));
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 3, 0];
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    end(one.start(&read, &[], 1536), Duration::from_millis(2));
    end(other.start(&read, &[], 1536), Duration::from_micros(7));
    end(other.start(&write, &[0; 1024], 0), Duration::from_micros(9));
    end(one.start(&[0x35], &[], 0), Duration::from_secs(1));
    drop(other);
    let page = one.data(&log_sense(0x19, 0));
    assert_eq!(page[..8], [0x99, 0, 0, 80, 0, 1, 3, 64]);
    let counters: Vec<_> = (0..8).map(|at| number(&page, 8 + 8 * at)).collect();
    assert_eq!(counters, [2, 1, 2, 6, 2007, 9, 0, 0]);
    // Microseconds.
    assert_eq!(page[72..], [0, 3, 3, 8, 0, 0, 0, 6, 0, 0, 0, 1]);
    let cache = one.data(&log_sense(0x19, 0x20));
    assert_eq!(cache[..8], [0xd9, 0x20, 0, 72, 0, 1, 3, 8]);
    let counters: Vec<_> = (0..4).map(|at| number(&cache, 8 + 12 * at)).collect();
    assert_eq!(counters, [0, 0, 0, 1]);
}

#[test]
fn log_select_sets_the_counters_to_zero_and_the_others_are_told() {
    let unit = Arc::new(testing::unit(testing::Shape::PLAIN));
    let (one, other) = (Bench::hba(1, &unit), Bench::hba(2, &unit));
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    end(one.start(&read, &[], 512), Duration::ZERO);
    // Nothing that counts.
    let _ = one.data(&[0x4c, 0x02, 0x4d]);
    let reads = || number(&one.data(&log_sense(0x19, 0)), 8);
    assert_eq!((reads(), other.ready()), (1, testing::READY));
    let _ = one.data(&[0x4c, 0x02, 0x40]);
    assert_eq!((reads(), other.ready()), (0, (2, [0x2a, 0x02])));
    assert_eq!(one.ready(), testing::READY);
    let sense = one.sense(&[0x4c, 0x02, 0x40, 0, 0, 0, 0, 0, 8, 0]);
    assert_eq!(sense, invalid_field(7, 7));
}
