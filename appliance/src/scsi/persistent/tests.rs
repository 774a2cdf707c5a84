//! Persistent reservations as initiators see them: CDBs, lists and answers typed from SPC-4.

use std::sync::Arc;

use crate::disk::{Op, Reply};
use crate::scsi::testing::{Bench, READY, Scratch, Shape, initiator, told, unit};
use crate::scsi::{
    Access, Address, Answer, Attention, LogicalUnit, Path, Port, Registrant, Scope, Step,
};

const CONFLICT: (u8, [u8; 2]) = (0x18, [0, 0]);
const GOOD: (u8, [u8; 2]) = (0, [0, 0]);
const BAD_LIST: (u8, [u8; 2]) = (2, [0x26, 0]);

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;
const REGISTER_AND_MOVE: u8 = 7;

/// The port of target 0 of an HBA.
fn port(number: u8) -> Port {
    Port {
        initiator: initiator(number),
        target: 0,
    }
}

/// A unit that HBAs 1, 2 and 3 reach.
fn shared() -> Arc<LogicalUnit> {
    let unit = unit(Shape::PLAIN).shared();
    unit.set_paths(&[1, 2, 3].map(|number| Path {
        port: port(number),
        access: Access::ActiveOptimized,
    }));
    Arc::new(unit)
}

/// Three HBAs that see it.
fn three() -> [Bench; 3] {
    let unit = shared();
    [1, 2, 3].map(|number| Bench::hba(number, &unit))
}

/// PERSISTENT RESERVE OUT with a list of this length.
fn cdb(action: u8, kind: u8, len: u8) -> [u8; 10] {
    [0x5f, action, kind, 0, 0, 0, 0, 0, len, 0]
}

/// The basic list: reservation key, service action reservation key, flags.
fn list(key: u8, second: u8, flags: u8) -> Vec<u8> {
    let mut list = vec![0, 0, 0, 0, 0, 0, 0, key, 0, 0, 0, 0, 0, 0, 0, second];
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

fn answer(bench: &Bench, action: u8, kind: u8, list: &[u8]) -> Answer {
    bench.answer(&cdb(action, kind, u8::try_from(list.len()).unwrap()), list)
}

fn out(bench: &Bench, action: u8, kind: u8, key: u8, second: u8) -> (u8, [u8; 2]) {
    told(&answer(bench, action, kind, &list(key, second, 0)))
}

/// Registers each with its number as its key.
fn register(benches: &[Bench]) {
    for (number, bench) in (1..).zip(benches) {
        assert_eq!(out(bench, REGISTER, 0, 0, number), GOOD);
    }
}

fn read(bench: &Bench, action: u8) -> Vec<u8> {
    bench.data(&[0x5e, action, 0, 0, 0, 0, 0, 0x10, 0, 0])
}

/// A unit that keeps nothing yet.
fn plain() -> LogicalUnit {
    unit(Shape::PLAIN)
}

/// PRGENERATION.
fn generation(bench: &Bench) -> u8 {
    let data = read(bench, 0);
    assert_eq!(data[..3], [0; 3]);
    data[3]
}

/// The SRP TransportID of an HBA, whose UUID is its number 16 times.
fn transport_id(number: u8) -> Vec<u8> {
    let mut id = vec![0x04, 0, 0, 0, 0, 0, 0, 0];
    id.extend([number; 16]);
    id
}

// --- PERSISTENT RESERVE IN ---------------------------------------------------------------------

#[test]
fn keys_and_reservation_are_read_as_they_are() {
    let [one, two, _] = three();
    assert_eq!(read(&one, 0), [0; 8]);
    assert_eq!(read(&one, 1), [0; 8]);
    assert_eq!(out(&one, REGISTER, 0, 0, 0xa1), GOOD);
    assert_eq!(out(&two, REGISTER, 0, 0, 0xa2), GOOD);
    assert_eq!(
        read(&two, 0),
        [
            0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0xa2
        ]
    );
    assert_eq!(out(&one, RESERVE, 5, 0xa1, 0), GOOD);
    assert_eq!(
        read(&two, 1),
        [
            0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0xa1, 0, 0, 0, 0, 0, 5, 0, 0
        ]
    );
    assert_eq!(out(&one, RELEASE, 5, 0xa1, 0), GOOD);
    assert_eq!(two.ready(), (2, [0x2a, 0x04]));
    assert_eq!(out(&two, RESERVE, 8, 0xa2, 0), GOOD);
    // All registrants hold it, so that no key is told.
    assert_eq!(
        read(&one, 1),
        [
            0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0
        ]
    );
    assert_eq!(one.data(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 9, 0]).len(), 9);
    assert_eq!(
        told(&one.answer(&[0x5e, 4, 0, 0, 0, 0, 0, 0, 8, 0], &[])),
        (2, [0x24, 0])
    );
}

#[test]
fn full_status_names_every_registrant() {
    let [one, two, _] = three();
    assert_eq!(out(&one, REGISTER, 0, 0, 0xa1), GOOD);
    let all_ports = answer(&two, REGISTER, 0, &list(0, 0xa2, 0x04));
    assert_eq!(told(&all_ports), GOOD);
    assert_eq!(out(&one, RESERVE, 3, 0xa1, 0), GOOD);
    let mut expected = vec![0, 0, 0, 2, 0, 0, 0, 96];
    expected.extend([
        0, 0, 0, 0, 0, 0, 0, 0xa1, 0, 0, 0, 0, 0x01, 0x03, 0, 0, 0, 0,
    ]);
    expected.extend([0x00, 0x01, 0, 0, 0, 24]);
    expected.extend(transport_id(1));
    expected.extend([
        0, 0, 0, 0, 0, 0, 0, 0xa2, 0, 0, 0, 0, 0x02, 0x00, 0, 0, 0, 0,
    ]);
    expected.extend([0x00, 0x00, 0, 0, 0, 24]);
    expected.extend(transport_id(2));
    assert_eq!(read(&two, 3), expected);
}

#[test]
fn capabilities_are_what_there_is() {
    let [one, ..] = three();
    assert_eq!(read(&one, 2), [0, 8, 0x1c, 0xb0, 0xea, 0x01, 0, 0]);
    let scratch = Scratch::new();
    let kept = unit(Shape::PLAIN).with_reservations(scratch.path().join("r"));
    let one = Bench::of(&Arc::new(kept.unwrap()));
    assert_eq!(read(&one, 2), [0, 8, 0x1d, 0xb0, 0xea, 0x01, 0, 0]);
    assert_eq!(told(&answer(&one, REGISTER, 0, &list(0, 1, 1))), GOOD);
    assert_eq!(read(&one, 2), [0, 8, 0x1d, 0xb1, 0xea, 0x01, 0, 0]);
}

// --- Registering -------------------------------------------------------------------------------

#[test]
fn a_key_is_changed_by_whoever_knows_it_or_ignores_it() {
    let [one, ..] = three();
    assert_eq!(out(&one, REGISTER, 0, 7, 1), CONFLICT, "it has none");
    assert_eq!(out(&one, REGISTER, 0, 0, 0), GOOD);
    assert_eq!(generation(&one), 0, "nothing was done");
    assert_eq!(out(&one, REGISTER, 0, 0, 1), GOOD);
    assert_eq!(out(&one, REGISTER, 0, 0, 2), CONFLICT);
    assert_eq!(out(&one, REGISTER, 0, 1, 2), GOOD);
    assert_eq!(out(&one, REGISTER_AND_IGNORE, 0, 9, 3), GOOD);
    assert_eq!(generation(&one), 3);
    assert_eq!(read(&one, 0)[15], 3);
    assert_eq!(out(&one, REGISTER, 0, 3, 0), GOOD);
    assert_eq!(read(&one, 0), [0, 0, 0, 4, 0, 0, 0, 0]);
}

#[test]
fn only_what_changes_registrations_is_counted() {
    let [one, two, other] = three();
    assert_eq!(out(&one, REGISTER, 0, 0, 1), GOOD);
    assert_eq!(out(&two, REGISTER_AND_IGNORE, 0, 0, 2), GOOD);
    assert_eq!(out(&other, REGISTER, 0, 0, 3), GOOD);
    assert_eq!(out(&one, RESERVE, 1, 1, 0), GOOD);
    assert_eq!(out(&one, RELEASE, 1, 1, 0), GOOD);
    assert_eq!(out(&one, RESERVE, 1, 9, 0), CONFLICT);
    assert_eq!(generation(&one), 3);
    assert_eq!(out(&one, PREEMPT, 1, 1, 2), GOOD);
    assert_eq!(generation(&one), 4);
    assert_eq!(out(&one, CLEAR, 0, 1, 0), GOOD);
    assert_eq!(generation(&one), 5);
    one.host.reset(Scope::Host, Attention::LogicalUnitReset);
    assert_eq!(one.ready(), (2, [0x29, 0x03]));
    assert_eq!(generation(&one), 5);
}

#[test]
fn who_is_not_registered_can_do_nothing_but_register() {
    let [one, two, _] = three();
    assert_eq!(out(&one, REGISTER, 0, 0, 1), GOOD);
    for action in [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT] {
        assert_eq!(out(&two, action, 1, 0, 1), CONFLICT, "action {action}");
        assert_eq!(out(&one, action, 1, 2, 1), CONFLICT, "action {action}");
    }
    assert_eq!(generation(&one), 1);
}

#[test]
fn others_are_registered_by_their_transport_ids() {
    let [one, two, three] = three();
    let mut others = list(0, 5, 0x08);
    others.extend([0, 0, 0, 48]);
    others.extend(transport_id(2));
    others.extend(transport_id(3));
    assert_eq!(told(&answer(&one, REGISTER, 0, &others)), GOOD);
    assert_eq!(generation(&one), 1);
    assert_eq!(read(&one, 0).len(), 8 + 3 * 8);
    for bench in [&one, &two, &three] {
        assert_eq!(out(bench, RESERVE, 7, 5, 0), GOOD);
    }
    others[7] = 5;
    assert_eq!(told(&answer(&one, REGISTER, 0, &others)), BAD_LIST);
}

#[test]
fn a_list_of_transport_ids_is_all_right_or_refused_whole() {
    let [one, ..] = three();
    let with = |id: &[u8]| {
        let mut others = list(0, 5, 0x08);
        others.extend([0, 0, 0, u8::try_from(id.len()).unwrap()]);
        others.extend(id);
        told(&answer(&one, REGISTER, 0, &others))
    };
    assert_eq!(with(&transport_id(9)), BAD_LIST, "it does not see the unit");
    let mut sas = transport_id(2);
    sas[0] = 0x06;
    assert_eq!(with(&sas), BAD_LIST);
    assert_eq!(with(&[4; 23]), (2, [0x1a, 0]));
    let mut short = list(0, 5, 0x08);
    assert_eq!(told(&answer(&one, REGISTER, 0, &short)), (2, [0x1a, 0]));
    short.extend([0, 0, 0, 1]);
    assert_eq!(told(&answer(&one, REGISTER, 0, &short)), (2, [0x1a, 0]));
    assert_eq!(told(&answer(&one, REGISTER, 0, &[0; 23])), (2, [0x1a, 0]));
    assert_eq!(told(&answer(&one, REGISTER, 0, &[0; 25])), (2, [0x1a, 0]));
    assert_eq!(
        told(&answer(&one, REGISTER_AND_IGNORE, 0, &list(0, 5, 8))),
        BAD_LIST
    );
    assert_eq!(read(&one, 0), [0; 8]);
}

#[test]
fn without_a_place_to_keep_it_nothing_is_promised_to_persist() {
    let [one, ..] = three();
    let refused = answer(&one, REGISTER, 0, &list(0, 1, 0x01));
    assert_eq!(refused.sense[15..], [0x88, 0, 20], "APTPL: byte 20, bit 0");
    assert_eq!(told(&refused), BAD_LIST);
    assert_eq!(read(&one, 0), [0; 8]);
}

#[test]
fn a_list_that_is_not_all_there_is_an_overrun() {
    let [one, ..] = three();
    assert!(matches!(
        one.start(&cdb(REGISTER, 0, 24), &[0; 23], 0),
        Step::Overrun
    ));
    let huge = [0x5f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    assert_eq!(told(&one.answer(&huge, &[0; 24])), (2, [0x1a, 0]));
}

// --- Reserving ---------------------------------------------------------------------------------

#[test]
fn a_reservation_is_made_once_and_released_by_its_holder_as_what_it_is() {
    for kind in [1, 3, 5, 6] {
        let benches = three();
        register(&benches);
        let [one, two, _] = benches;
        assert_eq!(out(&one, RESERVE, kind, 1, 0), GOOD);
        assert_eq!(out(&one, RESERVE, kind, 1, 0), GOOD, "again");
        assert_eq!(
            out(&one, RESERVE, if kind == 1 { 3 } else { 1 }, 1, 0),
            CONFLICT
        );
        assert_eq!(out(&two, RESERVE, kind, 2, 0), CONFLICT);
        assert_eq!(out(&two, RELEASE, kind, 2, 0), GOOD, "not its");
        assert_eq!(out(&one, RELEASE, kind + 1, 1, 0), (2, [0x26, 0x04]));
        assert_eq!(read(&two, 1)[21], kind);
        assert_eq!(out(&one, RELEASE, kind, 1, 0), GOOD);
        assert_eq!(out(&one, RELEASE, kind, 1, 0), GOOD, "nothing to release");
        let told_two = if kind > 3 { (2, [0x2a, 0x04]) } else { READY };
        assert_eq!(two.ready(), told_two);
        assert_eq!(one.ready(), READY);
    }
}

#[test]
fn every_registrant_holds_a_reservation_for_all() {
    for kind in [7, 8] {
        let benches = three();
        register(&benches[..2]);
        let [one, two, stranger] = benches;
        assert_eq!(out(&one, RESERVE, kind, 1, 0), GOOD);
        assert_eq!(out(&two, RESERVE, kind, 2, 0), GOOD);
        assert_eq!(out(&one, REGISTER, 0, 1, 0), GOOD);
        assert_eq!(two.ready(), READY, "the reservation is still there");
        assert_eq!(read(&two, 1)[21], kind);
        assert_eq!(out(&stranger, REGISTER, 0, 0, 3), GOOD);
        assert_eq!(out(&two, RELEASE, kind, 2, 0), GOOD);
        assert_eq!(stranger.ready(), (2, [0x2a, 0x04]));
        assert_eq!(out(&two, RESERVE, kind, 2, 0), GOOD);
        assert_eq!(out(&two, REGISTER, 0, 2, 0), GOOD);
        assert_eq!(out(&stranger, REGISTER, 0, 3, 0), GOOD);
        assert_eq!(read(&one, 1)[4..], [0; 4], "with the last it is gone");
    }
}

#[test]
fn scopes_and_types_that_there_are_not_are_invalid_fields() {
    let [one, ..] = three();
    assert_eq!(out(&one, REGISTER, 0, 0, 1), GOOD);
    for kind in [0, 2, 4, 9, 15] {
        let refused = answer(&one, RESERVE, kind, &list(1, 0, 0));
        assert_eq!(refused.sense[12..], [0x24, 0, 0, 0xcb, 0, 2]);
    }
    let element = answer(&one, RESERVE, 0x21, &list(1, 0, 0));
    assert_eq!(element.sense[12..], [0x24, 0, 0, 0xcf, 0, 2]);
}

#[test]
fn a_holder_that_leaves_frees_the_unit_and_registrants_are_told() {
    for (kind, attention) in [
        (1, READY),
        (3, READY),
        (5, (2, [0x2a, 4])),
        (6, (2, [0x2a, 4])),
    ] {
        let benches = three();
        register(&benches[..2]);
        let [one, two, stranger] = benches;
        assert_eq!(out(&one, RESERVE, kind, 1, 0), GOOD);
        assert_eq!(out(&one, REGISTER_AND_IGNORE, 0, 0, 0), GOOD);
        assert_eq!(two.ready(), attention, "type {kind}");
        assert_eq!(stranger.ready(), READY);
        assert_eq!(read(&two, 1)[4..], [0; 4]);
    }
}

#[test]
fn clearing_takes_everything_and_tells_the_others() {
    let benches = three();
    register(&benches[..2]);
    let [one, two, stranger] = benches;
    assert_eq!(out(&one, RESERVE, 3, 1, 0), GOOD);
    assert_eq!(out(&two, CLEAR, 0, 2, 0), GOOD);
    assert_eq!(one.ready(), (2, [0x2a, 0x03]));
    assert_eq!((two.ready(), stranger.ready()), (READY, READY));
    assert_eq!(read(&two, 0), [0, 0, 0, 3, 0, 0, 0, 0]);
}

// --- Preempting --------------------------------------------------------------------------------

#[test]
fn preempting_the_holder_moves_the_reservation() {
    let benches = three();
    register(&benches);
    let [one, two, three] = benches;
    assert_eq!(out(&one, RESERVE, 1, 1, 0), GOOD);
    assert_eq!(out(&two, PREEMPT, 6, 2, 1), GOOD);
    assert_eq!(one.ready(), (2, [0x2a, 0x05]));
    assert_eq!(three.ready(), (2, [0x2a, 0x04]), "the type is another");
    assert_eq!(two.ready(), READY);
    let held = read(&two, 1);
    assert_eq!((held[15], held[21]), (2, 6));
    assert_eq!(read(&two, 0).len(), 8 + 16);
    assert_eq!(out(&one, RESERVE, 6, 1, 0), CONFLICT);
}

#[test]
fn preempting_another_only_takes_its_registration() {
    let benches = three();
    register(&benches);
    let [one, two, three] = benches;
    assert_eq!(out(&one, RESERVE, 1, 1, 0), GOOD);
    assert_eq!(out(&one, PREEMPT, 1, 1, 9), CONFLICT, "nobody has that key");
    assert_eq!(out(&one, PREEMPT, 1, 1, 0), BAD_LIST);
    assert_eq!(out(&two, PREEMPT, 1, 2, 3), GOOD);
    assert_eq!(three.ready(), (2, [0x2a, 0x05]));
    assert_eq!(one.ready(), READY);
    let held = read(&two, 1);
    assert_eq!((held[15], held[21]), (1, 1));
}

#[test]
fn a_reservation_for_all_is_preempted_by_a_key_of_zero() {
    let benches = three();
    register(&benches);
    let [one, two, three] = benches;
    assert_eq!(out(&one, RESERVE, 7, 1, 0), GOOD);
    assert_eq!(out(&two, PREEMPT, 0, 2, 0), (2, [0x24, 0]), "no such type");
    assert_eq!(out(&two, PREEMPT, 3, 2, 0), GOOD);
    for preempted in [&one, &three] {
        assert_eq!(preempted.ready(), (2, [0x2a, 0x05]));
    }
    let held = read(&two, 1);
    assert_eq!((held[15], held[21]), (2, 3));
    assert_eq!(read(&two, 0).len(), 8 + 8);
}

#[test]
fn preempt_and_abort_names_those_whose_commands_are_to_end() {
    let benches = three();
    register(&benches);
    let [one, two, three] = benches;
    assert_eq!(out(&one, RESERVE, 1, 1, 0), GOOD);
    match two.start(&cdb(PREEMPT_AND_ABORT, 1, 24), &list(2, 1, 0), 0) {
        Step::Preempt { preempted, pending } => {
            let answer = pending.finish(Ok(Reply::Done));
            let initiator = initiator(1).uuid;
            let target = Some(0);
            assert_eq!(preempted, Some(vec![Registrant { initiator, target }]));
            assert_eq!((answer.status, answer.residual), (0, 0));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(one.ready(), (2, [0x2a, 0x05]));
    assert_eq!(three.ready(), READY, "the type is the same");
}

#[test]
fn a_reservation_is_moved_with_its_destination() {
    let benches = three();
    register(&benches[..1]);
    let [one, two, _] = benches;
    // Key 1; key 2 for HBA 2, which is port 257; and UNREG or not.
    let to = |relative: [u8; 2], flags: u8, new: u8| {
        let mut list = list(1, new, 0);
        list[17..20].copy_from_slice(&[flags, relative[0], relative[1]]);
        list[20..].copy_from_slice(&[0, 0, 0, 24]);
        list.extend(transport_id(2));
        told(&answer(&one, REGISTER_AND_MOVE, 0, &list))
    };
    assert_eq!(to([1, 1], 0, 2), (2, [0x24, 0]), "nothing to move");
    assert_eq!(out(&one, RESERVE, 7, 1, 0), GOOD);
    assert_eq!(to([1, 1], 0, 2), CONFLICT);
    assert_eq!(out(&one, RELEASE, 7, 1, 0), GOOD);
    assert_eq!(out(&one, RESERVE, 3, 1, 0), GOOD);
    assert_eq!(to([0, 9], 0, 2), BAD_LIST, "not its port");
    assert_eq!(to([1, 1], 0, 0), BAD_LIST, "no key");
    assert_eq!(to([1, 1], 0x02, 2), GOOD);
    let held = read(&two, 1);
    assert_eq!((held[3], held[15], held[21]), (2, 2, 3));
    assert_eq!(read(&two, 0).len(), 8 + 8, "UNREG");
    assert_eq!(out(&two, RELEASE, 3, 2, 0), GOOD);
}

// --- What a reservation keeps away -------------------------------------------------------------

/// SPC-4 and SBC-3, commands that are allowed in the presence of various reservations: whether
/// Write Exclusive, and Exclusive Access, lets in those whom it does not let in altogether.
const ALLOWED: &[(&[u8], bool, bool)] = &[
    (&[0x00], true, true),
    (&[0x03, 0, 0, 0, 18, 0], true, true),
    (&[0x04, 0x10, 0, 0, 0, 0], false, false),
    (&[0x07, 0, 0, 0, 0, 0], false, false),
    (&[0x08, 0, 0, 0, 1, 0], true, false),
    (&[0x0a, 0, 0, 0, 1, 0], false, false),
    (&[0x12, 0, 0, 0, 36, 0], true, true),
    (&[0x15, 0x10, 0, 0, 0, 0], false, false),
    (&[0x1a, 0, 0x3f, 0, 255, 0], true, false),
    (&[0x1b, 0, 0, 0, 0, 0], false, false),
    (&[0x1b, 0, 0, 0, 1, 0], true, true),
    (&[0x1c, 1, 0, 0, 8, 0], true, false),
    (&[0x1d, 0, 0, 0, 0, 0], false, false),
    (&[0x1e, 0, 0, 0, 0, 0], true, true),
    (&[0x1e, 0, 0, 0, 1, 0], false, false),
    (&[0x25], true, true),
    (&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], true, false),
    (&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], false, false),
    (&[0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0], false, false),
    (&[0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0], true, false),
    (&[0x34], true, false),
    (&[0x35], false, false),
    (&[0x37, 0, 0, 0, 0, 0, 0, 0, 4, 0], true, false),
    (&[0x3b, 0x0a, 0, 0, 0, 0, 0, 0, 4, 0], false, false),
    (&[0x3c, 0x0b, 0, 0, 0, 0, 0, 0, 4, 0], true, false),
    (&[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], false, false),
    (&[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], false, false),
    (&[0x48, 0x01, 0, 0, 0, 0, 0, 0, 5, 0], false, false),
    (&[0x48, 0x02], false, false),
    (&[0x48, 0x1f], false, false),
    (&[0x4c, 0, 0x40], false, false),
    (&[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 64, 0], true, true),
    (&[0x55, 0x10], false, false),
    (&[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255, 0], true, false),
    (&[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0], true, true),
    (&[0x5e, 1, 0, 0, 0, 0, 0, 0, 8, 0], true, true),
    (&[0x5e, 2, 0, 0, 0, 0, 0, 0, 8, 0], true, true),
    (&[0x5e, 3, 0, 0, 0, 0, 0, 0, 8, 0], true, true),
    (&variable(0x09), true, false),
    (&variable(0x0a), true, false),
    (&variable(0x0b), false, false),
    (&variable(0x0c), false, false),
    (&variable(0x0d), false, false),
    (&[0x83, 0x00], false, false),
    (&[0x83, 0x01], false, false),
    (&[0x83, 0x10], true, false),
    (&[0x83, 0x11], false, false),
    (&[0x83, 0x1c], false, false),
    (&[0x84, 0x00], true, true),
    (&[0x84, 0x01], true, true),
    (&[0x84, 0x03], true, true),
    (&[0x84, 0x04], true, true),
    (&[0x84, 0x05], true, true),
    (&[0x84, 0x06], true, true),
    (&[0x84, 0x07], true, true),
    (&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], true, false),
    (&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], false, false),
    (&[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], false, false),
    (&[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], false, false),
    (&[0x8e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], false, false),
    (&[0x8f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], true, false),
    (&[0x90], true, false),
    (&[0x91], false, false),
    (&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], false, false),
    (&[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8], false, false),
    (
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32],
        true,
        true,
    ),
    (
        &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24],
        true,
        false,
    ),
    (&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16], true, true),
    (&[0xa3, 0x05, 0, 0, 0, 0, 0, 0, 0, 16], true, true),
    (&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 16], true, true),
    (&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 16], true, false),
    (&[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 16], true, false),
    (&[0xa3, 0x0f, 0, 0, 0, 0, 0, 0, 0, 12], true, true),
    (&[0xa4, 0x06], false, false),
    (&[0xa4, 0x0a], false, false),
    (&[0xa4, 0x0f], false, false),
    (&[0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 1], true, false),
    (&[0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 1], false, false),
    (&[0xae, 0, 0, 0, 0, 0, 0, 0, 0, 1], false, false),
    (&[0xaf, 0, 0, 0, 0, 0, 0, 0, 0, 1], true, false),
    (&[0xb7, 0, 0, 0, 0, 0, 0, 0, 0, 8], true, false),
];

/// A 32-byte CDB of one block.
const fn variable(action: u8) -> [u8; 32] {
    let mut cdb = [0; 32];
    (cdb[0], cdb[7], cdb[9], cdb[31]) = (0x7f, 0x18, action, 1);
    cdb
}

/// Whether a command is let in, whatever else comes of it.
fn is_let_in(bench: &Bench, cdb: &[u8]) -> bool {
    match bench.start(cdb, &[0; 8192], 8192) {
        Step::Answer(answer) => answer.status != 0x18,
        Step::Disk { pending, .. } => {
            let _ = pending.expired();
            true
        }
        // It is not begun.
        Step::Preempt { .. } => true,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_command_is_let_in_or_not_as_the_table_says() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.path().join(name);
    for kind in [1, 3, 5, 6, 7, 8] {
        let unit = unit(Shape::THIN).shared();
        let unit = unit.with_upkeep(at("information"), at("erasing")).unwrap();
        let unit = Arc::new(unit);
        let [holder, registrant, stranger] = [1, 2, 3].map(|number| Bench::hba(number, &unit));
        assert_eq!(out(&holder, REGISTER, 0, 0, 1), GOOD);
        assert_eq!(out(&registrant, REGISTER, 0, 0, 2), GOOD);
        assert_eq!(out(&holder, RESERVE, kind, 1, 0), GOOD);
        for &(cdb, by_write_exclusive, by_exclusive_access) in ALLOWED {
            let restricted = match kind {
                1 | 5 | 7 => by_write_exclusive,
                _ => by_exclusive_access,
            };
            assert!(
                is_let_in(&holder, cdb),
                "type {kind}, {cdb:x?} of its holder"
            );
            assert_eq!(
                is_let_in(&stranger, cdb),
                restricted,
                "type {kind}, {cdb:x?}"
            );
            assert_eq!(
                is_let_in(&registrant, cdb),
                kind > 3 || restricted,
                "type {kind}, {cdb:x?} of a registrant"
            );
            // Some of them stop the unit.
            let _ = holder.start(&[0x1b, 0, 0, 0, 1, 0], &[], 0);
        }
    }
}

#[test]
fn the_table_has_every_command_that_there_is() {
    use crate::scsi::table::TABLE;
    let own_rules = [0x16, 0x17, 0x56, 0x57, 0x5f];
    for row in TABLE.iter().filter(|row| !own_rules.contains(&row.code)) {
        let is_listed = ALLOWED.iter().any(|(cdb, ..)| {
            let action = match cdb[0] {
                0x7f => cdb[9],
                _ => cdb.get(1).map_or(0, |byte| byte & 0x1f),
            };
            let is_action = row
                .service_action
                .is_none_or(|wanted| wanted == u16::from(action));
            cdb[0] == row.code && is_action
        });
        assert!(is_listed, "{:#x} {:?}", row.code, row.service_action);
    }
}

#[test]
fn a_conflict_is_before_a_unit_attention_and_stays_after_resets() {
    let unit = shared();
    let one = Bench::hba(1, &unit);
    assert_eq!(out(&one, REGISTER, 0, 0, 1), GOOD);
    assert_eq!(out(&one, RESERVE, 3, 1, 0), GOOD);
    let other = Bench::fresh_hba(2, [(0, Arc::clone(&unit))]);
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(told(&other.answer(&write, &[0; 512])), CONFLICT);
    assert_eq!(other.ready(), (2, [0x29, 0]));
    other.host.reset(Scope::Host, Attention::LogicalUnitReset);
    one.host.reset(Scope::Host, Attention::NexusLoss);
    one.host.power_on();
    assert_eq!(told(&other.answer(&write, &[0; 512])), CONFLICT);
    drop(one);
    assert_eq!(told(&other.answer(&write, &[0; 512])), CONFLICT);
    drop(other);
    // Who comes again is who it was.
    let one = Bench::hba(1, &unit);
    assert!(matches!(
        one.start(&write, &[0; 512], 0),
        Step::Disk {
            op: Op::Write { .. },
            ..
        }
    ));
}

// --- RESERVE and RELEASE -----------------------------------------------------------------------

#[test]
fn reserve_and_persistent_reservations_exclude_each_other() {
    let [one, two, three] = three();
    for reserve in [
        [0x16, 0, 0, 0, 0, 0].as_slice(),
        &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(one.data(reserve), [0_u8; 0]);
        for bench in [&one, &two] {
            assert_eq!(out(bench, REGISTER, 0, 0, 1), CONFLICT);
            assert_eq!(
                told(&bench.answer(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[])),
                CONFLICT
            );
        }
        assert_eq!(one.data(&[0x17, 0, 0, 0, 0, 0]), [0_u8; 0]);
        assert_eq!(out(&one, REGISTER, 0, 0, 1), GOOD);
        for bench in [&one, &two] {
            assert_eq!(
                told(&bench.answer(reserve, &[])),
                CONFLICT,
                "one is registered"
            );
            assert_eq!(told(&bench.answer(&[0x17, 0, 0, 0, 0, 0], &[])), CONFLICT);
        }
        assert_eq!(out(&two, REGISTER, 0, 0, 2), GOOD);
        for kind in [1, 3, 5, 6, 7, 8] {
            assert_eq!(out(&one, RESERVE, kind, 1, 0), GOOD);
            let let_in = if kind > 3 { GOOD } else { CONFLICT };
            for cdb in [reserve, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
                assert_eq!(told(&one.answer(cdb, &[])), GOOD, "type {kind}");
                assert_eq!(told(&two.answer(cdb, &[])), let_in, "type {kind}");
                assert_eq!(told(&three.answer(cdb, &[])), CONFLICT, "type {kind}");
            }
            assert_eq!(out(&one, RELEASE, kind, 1, 0), GOOD);
            let _ = two.ready();
        }
        assert_eq!(out(&one, CLEAR, 0, 1, 0), GOOD);
        let _ = two.ready();
    }
}

// --- Power ------------------------------------------------------------------------------------

/// The unit as an appliance finds it that has just started.
fn started(scratch: &Scratch) -> LogicalUnit {
    let path = scratch.path().join("root.reservations");
    let unit = unit(Shape::PLAIN).with_reservations(path).unwrap();
    unit.set_paths(&[1, 2].map(|number| Path {
        port: port(number),
        access: Access::ActiveOptimized,
    }));
    unit
}

#[test]
fn what_is_to_persist_does_and_nothing_else() {
    let scratch = Scratch::new();
    for aptpl in [0, 1, 0] {
        let unit = Arc::new(started(&scratch));
        let (one, two) = (Bench::hba(1, &unit), Bench::hba(2, &unit));
        let registered = answer(&one, REGISTER_AND_IGNORE, 0, &list(0, 1, aptpl));
        assert_eq!(told(&registered), GOOD);
        let registered = answer(&two, REGISTER_AND_IGNORE, 0, &list(0, 2, aptpl | 0x04));
        assert_eq!(told(&registered), GOOD);
        assert_eq!(out(&one, RESERVE, 3, 1, 0), GOOD);
        let full = read(&one, 3);
        drop((one, two, unit));

        let unit = Arc::new(started(&scratch));
        let two = Bench::hba(2, &unit);
        if aptpl == 1 {
            assert_eq!(generation(&two), 0, "it starts anew");
            assert_eq!(read(&two, 3)[4..], full[4..]);
            let read = two.answer(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]);
            assert_eq!(told(&read), CONFLICT);
            assert_eq!(out(&two, PREEMPT, 3, 2, 1), GOOD);
            drop((two, unit));
            let unit = Arc::new(started(&scratch));
            let again = Bench::hba(2, &unit);
            assert_eq!(self::read(&again, 1)[15], 2, "a later change persists, too");
            assert_eq!(out(&again, CLEAR, 0, 2, 0), GOOD);
        } else {
            assert_eq!(read(&two, 0), [0; 8], "nobody asked for it");
        }
    }
}

#[test]
fn a_change_that_cannot_be_kept_is_not_made() {
    let scratch = Scratch::new();
    let unit = Arc::new(started(&scratch));
    let one = Bench::of(&unit);
    let register = |key, new| told(&answer(&one, REGISTER, 0, &list(key, new, 1)));
    assert_eq!(register(0, 1), GOOD);
    // Where the new file is to be there is a folder.
    std::fs::create_dir(scratch.path().join("root.reservations.new")).unwrap();
    assert_eq!(register(1, 2), (2, [0x44, 0]));
    assert_eq!(out(&one, RESERVE, 1, 1, 0), (2, [0x44, 0]));
    assert_eq!(read(&one, 1), [0, 0, 0, 1, 0, 0, 0, 0]);
    std::fs::remove_dir(scratch.path().join("root.reservations.new")).unwrap();
    assert_eq!(out(&one, RESERVE, 1, 1, 0), GOOD);
}

#[test]
fn a_file_that_may_be_another_is_written_again_though_nothing_is_different() {
    let scratch = Scratch::new();
    let unit = Arc::new(started(&scratch));
    let one = Bench::of(&unit);
    let register = |key, new| told(&answer(&one, REGISTER, 0, &list(key, new, 1)));
    assert_eq!(register(0, 1), GOOD);
    let path = scratch.path().join("root.reservations");
    let right = std::fs::read(&path).unwrap();
    let new = scratch.path().join("root.reservations.new");
    std::fs::create_dir(&new).unwrap();
    assert_eq!(register(1, 2), (2, [0x44, 0]));
    std::fs::remove_dir(&new).unwrap();
    // As when what failed was the sync of the folder.
    std::fs::write(&path, "what was refused").unwrap();

    assert_eq!(register(1, 1), GOOD);

    assert_eq!(std::fs::read(&path).unwrap(), right);
}

#[test]
fn a_file_of_version_1_is_understood_for_ever() {
    let scratch = Scratch::new();
    let path = scratch.path().join("root.reservations");
    let text = "version = 1\nunit = \"root\"\n\ntype = 5\n\n[[registration]]\n\
                hba = \"01010101-0101-0101-0101-010101010101\"\ntarget = 0\n\
                key = \"ffffffffffffff01\"\nholder = true\n\n[[registration]]\n\
                hba = \"02020202-0202-0202-0202-020202020202\"\nkey = \"0000000000000002\"\n\
                holder = false\n";
    std::fs::write(&path, text).unwrap();
    let unit = Arc::new(started(&scratch));
    let two = Bench::hba(2, &unit);
    let full = read(&two, 3);
    assert_eq!(
        full[8..22],
        [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 1, 5
        ]
    );
    assert_eq!(full[56..70], [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0]);
    // Written again, it is the same, and sealed.
    assert_eq!(told(&answer(&two, REGISTER, 0, &list(2, 3, 1))), GOOD);
    assert_eq!(told(&answer(&two, REGISTER, 0, &list(3, 2, 1))), GOOD);
    let sealed = std::fs::read_to_string(path).unwrap();
    let (seal, rest) = sealed.split_once('\n').unwrap();
    assert_eq!(rest, text);
    assert!(seal.starts_with("checksum = "), "{seal}");
}

#[test]
fn a_file_that_is_cut_off_or_changed_anywhere_yields_no_other_reservations() {
    let scratch = Scratch::new();
    let unit = Arc::new(started(&scratch));
    let (one, two) = (Bench::of(&unit), Bench::hba(2, &unit));
    assert_eq!(told(&answer(&one, REGISTER, 0, &list(0, 1, 1))), GOOD);
    assert_eq!(told(&answer(&two, REGISTER, 0, &list(0, 2, 1))), GOOD);
    let path = scratch.path().join("root.reservations");
    let good = std::fs::read(&path).unwrap();
    let reread = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        let unit = plain().with_reservations(&path);
        unit.map(|unit| read(&Bench::hba(2, &Arc::new(unit)), 3))
    };
    let said = reread(&good).unwrap();
    for len in 0..good.len() {
        assert!(reread(&good[..len]).is_err(), "{len} bytes");
    }
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            // What makes a comment of the checksum changes nothing else.
            if let Ok(other) = reread(&bad) {
                assert_eq!(other, said, "bit {bit} of byte {at}");
            }
        }
    }
}

#[test]
fn a_file_that_was_mended_by_hand_counts_without_its_checksum() {
    let scratch = Scratch::new();
    let unit = Arc::new(started(&scratch));
    let one = Bench::of(&unit);
    assert_eq!(told(&answer(&one, REGISTER, 0, &list(0, 1, 1))), GOOD);
    let path = scratch.path().join("root.reservations");
    let mended = std::fs::read_to_string(&path)
        .unwrap()
        .replace("key = \"0000000000000001\"", "key = \"0000000000000007\"");
    std::fs::write(&path, &mended).unwrap();
    let again = plain().with_reservations(&path);
    let error = again.unwrap_err().to_string();
    assert!(error.contains("is not as it was written"), "{error}");
    assert!(
        error.contains("the LUN is not served without them"),
        "{error}"
    );
    let (_, rest) = mended.split_once('\n').unwrap();
    std::fs::write(&path, rest).unwrap();
    let unit = plain().with_reservations(&path).unwrap();
    let keys = read(&Bench::of(&Arc::new(unit)), 0);
    assert_eq!(keys[8..], [0, 0, 0, 0, 0, 0, 0, 7]);
}

/// A file of registrations of one HBA, each by such a target.
fn of_registrations(targets: &[&str]) -> String {
    let mut text = String::from("version = 1\nunit = \"root\"\n");
    for target in targets {
        text += "[[registration]]\nhba = \"01010101-0101-0101-0101-010101010101\"\n";
        text += target;
        text += "key = \"1\"\nholder = false\n";
    }
    text
}

#[test]
fn a_damaged_file_is_not_taken_for_none() {
    let scratch = Scratch::new();
    let path = scratch.path().join("r");
    for (text, problem) in [
        ("", "makes no sense: it has no version"),
        ("version = 2\nunit = \"root\"\n", "has version 2"),
        ("version = 1\nunit = \"a\"\n", "is about the unit \"a\""),
        (
            "version = 1\nunit = \"root\"\ntype = 2\n",
            "no reservation of type 2",
        ),
        (
            "version = 1\nunit = \"root\"\ntype = 1\n",
            "the reservation has no holder",
        ),
        (
            "version = 1\nunit = \"root\"\ntype = 0\ncolour = 1",
            "unknown field `colour`",
        ),
        (
            &of_registrations(&["target = 0\n", "target = 1\n", "target = 0\n"]),
            "01010101-0101-0101-0101-010101010101 is registered twice by one target",
        ),
        (
            &of_registrations(&["target = 0\n", ""]),
            "is registered twice by one target",
        ),
        (
            &of_registrations(&["", "target = 3\n"]),
            "is registered twice by one target",
        ),
        (
            &of_registrations(&["target = 0\n"; 1025]),
            "there are more than 1024 registrations",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = unit(Shape::PLAIN)
            .with_reservations(&path)
            .unwrap_err()
            .to_string();
        assert!(error.contains(problem), "{error}");
        assert!(error.contains("remove it if nobody is to be kept away"));
    }
}

#[test]
fn registrations_are_of_a_target_or_of_all_of_an_hba() {
    let unit = shared();
    let [at_0, at_1] = [0, 1].map(|target| {
        let address = Address { target, lun: 0 };
        let units = [(address, Arc::clone(&unit))];
        crate::scsi::Host::new(initiator(1), units).unwrap()
    });
    let at_0 = Bench { host: at_0 };
    assert_eq!(at_0.sense(&[0])[12..14], [0x29, 0]);
    assert_eq!(told(&answer(&at_0, REGISTER, 0, &list(0, 1, 0))), GOOD);
    assert_eq!(out(&at_0, RESERVE, 3, 1, 0), GOOD);
    let read_at_1 = |host: &crate::scsi::Host| {
        let mut cdb = [0; 32];
        (cdb[0], cdb[8]) = (0x28, 1);
        let data_out = &crate::memory::Segments::new(crate::memory::testing::shared_memory(512));
        let buffers = crate::scsi::Buffers {
            data_out,
            data_in: 512,
            tags: crate::scsi::Tags::default(),
        };
        match host.start([1, 1, 0x40, 0, 0, 0, 0, 0], 0, &cdb, buffers) {
            Step::Answer(answer) => told(&answer),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read_at_1(&at_1), CONFLICT);
    let two = Bench::hba(2, &unit);
    assert_eq!(out(&two, RESERVE, 3, 0, 0), CONFLICT);
    assert_eq!(told(&answer(&at_0, REGISTER, 0, &list(1, 1, 0x04))), GOOD);
    // It was not told of the unit's power before.
    assert_eq!(read_at_1(&at_1), (2, [0x29, 0]));
    assert_eq!(read(&two, 3)[20..22], [0x03, 0x03], "ALL_TG_PT, R_HOLDER");
    assert_eq!(out(&at_0, RELEASE, 3, 1, 0), GOOD);
    assert_eq!(read(&two, 1)[4..8], [0; 4]);
}
