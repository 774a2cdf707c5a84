//! Asymmetric access: REPORT and SET TARGET PORT GROUPS, and what each state lets in. Bytes typed
//! from SPC-4.

use std::sync::Arc;

use crate::scsi::testing::{Bench, READY, Shape, initiator, told, unit};
use crate::scsi::{Access, LogicalUnit, Path, Port, Step};

const STANDBY: (u8, [u8; 2]) = (2, [0x04, 0x0b]);
const UNAVAILABLE: (u8, [u8; 2]) = (2, [0x04, 0x0c]);
const CHANGED: (u8, [u8; 2]) = (2, [0x2a, 0x06]);

fn paths(states: [Access; 2]) -> [Path; 2] {
    [1, 2].map(|number: u8| Path {
        port: Port {
            initiator: initiator(number),
            target: 0,
        },
        access: states[usize::from(number) - 1],
    })
}

/// A unit that HBAs 1 and 2 reach like that, and the two.
fn two(states: [Access; 2]) -> (Arc<LogicalUnit>, [Bench; 2]) {
    let unit = unit(Shape::PLAIN).shared();
    unit.set_paths(&paths(states));
    let unit = Arc::new(unit);
    let benches = [1, 2].map(|number| Bench::fresh_hba(number, [(0, Arc::clone(&unit))]));
    for bench in &benches {
        // Takes the unit attention whatever the state is.
        let told = bench.data(&[0x03, 0, 0, 0, 18, 0]);
        assert_eq!(told[12..14], [0x29, 0]);
    }
    (unit, benches)
}

const OPTIMIZED: [Access; 2] = [Access::ActiveOptimized; 2];

fn report(bench: &Bench, format: u8) -> Vec<u8> {
    bench.data(&[0xa3, format << 5 | 0x0a, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0])
}

/// States and status codes of both groups.
fn states(bench: &Bench) -> [(u8, u8); 2] {
    let data = report(bench, 0);
    [(data[4], data[9]), (data[16], data[21])]
}

/// SET TARGET PORT GROUPS with these descriptors.
fn set(bench: &Bench, descriptors: &[[u8; 4]]) -> (u8, [u8; 2]) {
    let mut list = vec![0; 4];
    list.extend(descriptors.concat());
    let len = u8::try_from(list.len()).unwrap();
    told(&bench.answer(&[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, len, 0, 0], &list))
}

#[test]
fn groups_are_reported_with_both_headers() {
    let (_, [one, two]) = two([Access::ActiveOptimized, Access::Standby]);
    #[rustfmt::skip]
    let groups = [
        0x00, 0x0f, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1,
        0x02, 0x0f, 0, 2, 0, 0, 0, 1, 0, 0, 1, 1,
    ];
    for bench in [&one, &two] {
        let mut short = vec![0, 0, 0, 24];
        short.extend(groups);
        assert_eq!(report(bench, 0), short);
        let mut long = vec![0, 0, 0, 28, 0x10, 0, 0, 0];
        long.extend(groups);
        assert_eq!(report(bench, 1), long);
    }
    let unknown = one.sense(&[0xa3, 0x4a, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]);
    assert_eq!(unknown[12..], [0x24, 0, 0, 0xcf, 0, 1]);
    let cut = one.data(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0]);
    assert_eq!(cut, [0, 0, 0, 24, 0]);
}

#[test]
fn ways_to_a_unit_that_lost_writes_are_told_and_changed() {
    let (unit, [one, two]) = two([Access::ActiveOptimized, Access::Standby]);
    assert!(unit.lose_writes());
    assert_eq!(set(&one, &[[0, 0, 0, 2]]), (0, [0, 0]));
    assert_eq!(two.ready(), CHANGED);
    assert_eq!(states(&two).map(|(state, _)| state), [0, 0]);
    // LOGICAL UNIT FAILURE.
    let read = one.answer(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]);
    assert_eq!(told(&read), (2, [0x3e, 0x01]));
}

#[test]
fn a_shared_unit_says_that_access_to_it_is_asymmetric_and_by_which_port() {
    let (_, [one, two]) = two(OPTIMIZED);
    let inquiry = one.data(&[0x12, 0, 0, 0, 96, 0]);
    assert_eq!((inquiry[5], inquiry[6]), (0x38, 0x10), "TPGS, MULTIP");
    for (bench, group, relative) in [(&one, 1, [0, 1]), (&two, 2, [1, 1])] {
        let page = bench.data(&[0x12, 1, 0x83, 0, 255, 0]);
        let [high, low] = relative;
        let designators = [
            1, 0x14, 0, 4, 0, 0, high, low, 1, 0x15, 0, 4, 0, 0, 0, group,
        ];
        assert_eq!(page[32..], designators);
        let ports = bench.data(&[0x12, 1, 0x88, 0, 255, 0]);
        assert_eq!(
            ports,
            [
                0, 0x88, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0xf1, 0x94, 0, 4, 0, 0, 0, 1,
                0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0xf1, 0x94, 0, 4, 0, 0, 1, 1
            ]
        );
    }
}

#[test]
fn a_unit_of_one_hba_has_no_port_groups() {
    let alone = unit(Shape::PLAIN);
    alone.set_paths(&paths([Access::Unavailable; 2])[..1]);
    let bench = Bench::of(&Arc::new(alone));
    assert_eq!(bench.ready(), READY);
    let data = bench.data(&[0x12, 0, 0, 0, 96, 0]);
    assert_eq!((data[5], data[6]), (0x08, 0));
    for cdb in [[0xa3, 0x0a], [0xa4, 0x0a]] {
        assert_eq!(told(&bench.answer(&cdb, &[])), (2, [0x20, 0]));
    }
}

#[test]
fn states_are_set_by_an_initiator_and_the_others_are_told() {
    let (_, [one, two]) = two(OPTIMIZED);
    assert_eq!(set(&one, &[[2, 0, 0, 1], [1, 0, 0, 2]]), (0, [0, 0]));
    assert_eq!(two.ready(), CHANGED);
    assert_eq!(two.ready(), READY);
    assert_eq!(one.ready(), STANDBY);
    assert_eq!(states(&one), [(2, 1), (1, 1)]);
    assert_eq!(set(&two, &[[1, 0, 0, 2]]), (0, [0, 0]));
    assert_eq!(one.ready(), STANDBY, "nothing changed");
    // The state that one is in lets it have itself another.
    assert_eq!(set(&one, &[[0, 0, 0, 1]]), (0, [0, 0]));
    assert_eq!(one.ready(), READY);
    assert_eq!(two.ready(), CHANGED);
}

#[test]
fn a_list_of_states_is_set_whole_or_not_at_all() {
    let (_, [one, two]) = two(OPTIMIZED);
    for (descriptors, byte) in [
        ([[2, 0, 0, 1], [0x0e, 0, 0, 2]], 8), // offline
        ([[2, 0, 0, 1], [0x0f, 0, 0, 2]], 8),
        ([[2, 0, 0, 1], [4, 0, 0, 2]], 8),
        ([[2, 0, 0, 1], [2, 0, 0, 3]], 10), // no such group
        ([[2, 0, 0, 1], [3, 0, 0, 1]], 10), // twice
    ] {
        let mut list = vec![0; 4];
        list.extend(descriptors.concat());
        let refused = one.answer(&[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], &list);
        assert_eq!(refused.sense[12..14], [0x26, 0]);
        assert_eq!(refused.sense[17], byte, "{descriptors:?}");
    }
    for len in [1, 3, 5, 6] {
        let short = one.answer(&[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, len, 0, 0], &[0; 16]);
        assert_eq!(told(&short), (2, [0x1a, 0]));
    }
    for len in [0, 4] {
        let nothing = one.answer(&[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, len, 0, 0], &[0; 16]);
        assert_eq!(told(&nothing), (0, [0, 0]));
    }
    assert_eq!((one.ready(), two.ready()), (READY, READY));
    assert_eq!(states(&one), [(0, 0), (0, 0)]);
    let overrun = one.start(&[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], &[0; 7], 0);
    assert!(matches!(overrun, Step::Overrun));
    let huge = [0xa4, 0x0a, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    assert_eq!(told(&one.answer(&huge, &[])), (2, [0x1a, 0]));
}

#[test]
fn another_configuration_changes_what_it_changes_and_everyone_is_told() {
    let (unit, [one, two]) = two(OPTIMIZED);
    unit.set_paths(&paths([Access::ActiveOptimized, Access::Unavailable]));
    assert_eq!((one.ready(), two.ready()), (CHANGED, CHANGED));
    assert_eq!((one.ready(), two.ready()), (READY, UNAVAILABLE));
    assert_eq!(states(&two), [(0, 0), (3, 2)]);
    // What an initiator has set stays while the configuration says nothing new of it.
    assert_eq!(set(&one, &[[2, 0, 0, 1]]), (0, [0, 0]));
    assert_eq!(told(&two.answer(&[0x03, 0, 0, 0, 18, 0], &[])), (0, [0, 0]));
    unit.set_paths(&paths([Access::ActiveOptimized, Access::Unavailable]));
    assert_eq!(one.ready(), STANDBY);
    unit.set_paths(&paths([Access::ActiveNonOptimized, Access::Unavailable]));
    assert_eq!(one.ready(), CHANGED);
    assert_eq!(one.ready(), READY);
    assert_eq!(states(&one), [(1, 2), (3, 2)]);
}

#[test]
fn whoever_comes_finds_the_state_of_its_port() {
    let (unit, [one, two]) = two(OPTIMIZED);
    assert_eq!(set(&one, &[[3, 0, 0, 2]]), (0, [0, 0]));
    drop(two);
    let two = Bench::fresh_hba(2, [(0, unit)]);
    assert_eq!(two.ready(), (2, [0x29, 0]));
    assert_eq!(two.ready(), UNAVAILABLE);
}

#[test]
fn every_command_is_let_in_or_not_as_the_state_says() {
    /// Command, whether it works in the standby state, and in the unavailable one.
    const COMMANDS: &[(&[u8], bool, bool)] = &[
        (&[0x00], false, false),
        (&[0x03, 0, 0, 0, 18, 0], true, true),
        (&[0x04], false, false),
        (&[0x07], false, false),
        (&[0x08, 0, 0, 0, 1, 0], false, false),
        (&[0x12, 0, 0, 0, 36, 0], true, true),
        (&[0x15, 0x10, 0, 0, 0, 0], true, false),
        (&[0x16], false, false),
        (&[0x1a, 0, 0x3f, 0, 255, 0], true, false),
        (&[0x1b, 0, 0, 0, 1, 0], false, false),
        (&[0x1c, 1, 0, 0, 8, 0], true, false),
        (&[0x1d, 0, 0, 0, 0, 0], true, false),
        (&[0x25], true, false),
        (&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], false, false),
        (&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], false, false),
        (&[0x35], false, false),
        (&[0x3b, 0x0a], true, false),
        (&[0x3c, 0x0b, 0, 0, 0, 0, 0, 0, 4, 0], true, false),
        (&[0x4c, 0, 0x40], true, false),
        (&[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 64, 0], true, false),
        (&[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0], true, false),
        (&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], true, false),
        (&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], false, false),
        (
            &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32],
            true,
            false,
        ),
        (
            &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24],
            false,
            false,
        ),
        (&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16], true, true),
        (&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 16], true, true),
        (&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 16], true, false),
        (&[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 16], true, false),
        (&[0xa4, 0x0a], true, true),
    ];
    for (state, sense) in [
        (Access::Standby, STANDBY),
        (Access::Unavailable, UNAVAILABLE),
    ] {
        let (_, [one, _]) = two([state, Access::ActiveOptimized]);
        for &(cdb, standby, unavailable) in COMMANDS {
            let works = if state == Access::Standby {
                standby
            } else {
                unavailable
            };
            let expected = if works { (0, [0, 0]) } else { sense };
            assert_eq!(
                told(&one.answer(cdb, &[0; 1024])),
                expected,
                "{state:?}, {cdb:x?}"
            );
        }
    }
}
