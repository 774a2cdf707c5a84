use std::sync::Arc;

use crate::scsi::testing::{Bench, READY, Shape, ShapedDisk, field, told, unit};
use crate::scsi::{Address, Attention, Host, LogicalUnit, Place, Scope, Step};

const REPORT_LUNS: [u8; 12] = [0xa0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0];
const LUNS_CHANGED: (u8, [u8; 2]) = (2, [0x3f, 0x0e]);

fn named(name: &str) -> Arc<LogicalUnit> {
    Arc::new(LogicalUnit::new(name, ShapedDisk::new(Shape::PLAIN)).unwrap())
}

/// An HBA whose target 0 has LUNs 0 and 1, and was told of both.
fn pair() -> Bench {
    let bench = Bench::fresh([(0, named("a")), (1, named("b"))]);
    for lun in [0, 1] {
        assert_eq!(bench.ready_at(lun), (2, [0x29, 0x00]));
        assert_eq!(bench.ready_at(lun), READY);
    }
    bench
}

fn add(bench: &mut Bench, target: u8, lun: u16) {
    let address = Address { target, lun };
    bench.host.add(address, named("c")).unwrap();
}

#[test]
fn a_lun_that_comes_is_told_by_its_neighbours() {
    let mut bench = pair();
    add(&mut bench, 0, 2);
    assert_eq!(
        bench.sense(&[0]),
        [
            0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x3f, 0x0e, 0, 0, 0, 0
        ]
    );
    assert_eq!(bench.ready_at(2), (2, [0x29, 0x00]));
    assert_eq!(bench.ready_at(2), READY);
}

#[test]
fn a_change_of_luns_is_told_once_a_nexus() {
    let mut bench = pair();
    add(&mut bench, 0, 2);
    assert_eq!(bench.ready_at(1), LUNS_CHANGED);
    // VPD page 86h: LUICLR.
    assert_eq!(bench.ready_at(0), READY);
}

#[test]
fn a_lun_that_goes_is_told_by_its_neighbours_until_the_luns_are_reported() {
    let mut bench = pair();
    bench.host.remove(Address { target: 0, lun: 7 });
    assert_eq!(bench.ready_at(0), READY, "there was none");
    bench.host.remove(Address { target: 0, lun: 1 });
    let list = bench.data(&REPORT_LUNS);
    assert_eq!(list[..4], [0, 0, 0, 8]);
    assert_eq!(bench.ready_at(0), READY);
    // Well-known logical units are no list of those that come and go.
    add(&mut bench, 0, 2);
    let well_known = bench.data(&[0xa0, 0, 1, 0, 0, 0, 0, 0, 255, 0, 0, 0]);
    assert_eq!(well_known[..4], [0, 0, 0, 8]);
    assert_eq!(bench.ready_at(0), LUNS_CHANGED);
}

#[test]
fn luns_of_another_target_tell_nothing() {
    let mut bench = pair();
    add(&mut bench, 1, 0);
    bench.host.remove(Address { target: 1, lun: 0 });
    assert_eq!(bench.ready_at(0), READY);
    assert_eq!(bench.ready_at(1), READY);
}

#[test]
fn a_unit_reset_is_told_to_everyone_who_sees_the_unit() {
    let shared = Arc::new(unit(Shape::PLAIN));
    let (one, other) = (Bench::of(&shared), Bench::of(&shared));
    let neighbour = Bench::of(&named("b"));
    one.host.reset(
        Scope::Unit(Address { target: 0, lun: 0 }),
        Attention::LogicalUnitReset,
    );
    for bench in [one, other] {
        assert_eq!(bench.ready(), (2, [0x29, 0x03]));
        assert_eq!(bench.ready(), READY);
    }
    assert_eq!(neighbour.ready(), READY);
}

#[test]
fn a_nexus_loss_is_told_to_its_initiator_alone() {
    let shared = Arc::new(unit(Shape::PLAIN));
    let (one, other) = (Bench::of(&shared), Bench::of(&shared));
    one.host.reset(Scope::Target(1), Attention::NexusLoss);
    assert_eq!(one.ready(), READY, "another target");
    one.host.reset(Scope::Target(0), Attention::NexusLoss);
    assert_eq!(one.ready(), (2, [0x29, 0x07]));
    assert_eq!(other.ready(), READY);
}

#[test]
fn power_on_is_all_that_is_told_after_it() {
    let bench = pair();
    bench.host.reset(Scope::Host, Attention::LogicalUnitReset);
    bench.host.power_on();
    for lun in [0, 1] {
        assert_eq!(bench.ready_at(lun), (2, [0x29, 0x00]));
        assert_eq!(bench.ready_at(lun), READY);
    }
}

#[test]
fn a_wrong_inquiry_leaves_the_unit_attention_too() {
    let bench = Bench::fresh([(0, named("a"))]);
    // A page code without EVPD.
    assert_eq!(bench.sense(&[0x12, 0, 0x80, 0, 36, 0])[12], 0x24);
    assert_eq!(bench.sense(&[0xff])[12..14], [0x29, 0x00]);
    assert_eq!(bench.sense(&[0xff])[12..14], [0x20, 0x00]);
}

#[test]
fn attentions_come_one_at_a_time_through_request_sense_as_well() {
    let bench = Bench::fresh([(0, named("a"))]);
    bench
        .host
        .establish(Scope::Host, Attention::CapacityChanged);
    let ask = |descriptor| bench.data(&[0x03, descriptor, 0, 0, 18, 0]);
    assert_eq!(ask(1), [0x72, 6, 0x29, 0x00, 0, 0, 0, 0]);
    assert_eq!(ask(1), [0x72, 6, 0x2a, 0x09, 0, 0, 0, 0]);
    assert_eq!(ask(1), [0x72, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn an_aca_attribute_without_an_aca_condition_is_an_invalid_message() {
    let bench = pair();
    let with = |attribute| bench.start_at(field(0), attribute, &[0], &[], 0);
    for attribute in [0, 1, 2] {
        assert!(matches!(with(attribute), Step::Answer(answer) if answer.status == 0));
    }
    for attribute in [3, 4, 255] {
        let Step::Answer(answer) = with(attribute) else {
            panic!("no answer")
        };
        assert_eq!(
            answer.sense,
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x49, 0, 0, 0, 0, 0]
        );
    }
    // NACA would establish one.
    assert_eq!(
        bench.sense(&[0, 0, 0, 0, 0, 0x04])[12..],
        [0x24, 0, 0, 0xca, 0, 5]
    );
}

// --- What Windows and ESXi ask for ---------------------------------------------------------------

#[test]
fn the_last_lun_of_the_last_target_is_there() {
    // The Windows driver takes the limits of the configuration space as inclusive or not.
    let address = Address {
        target: 255,
        lun: 16383,
    };
    let bench = Bench {
        host: Host::new(
            crate::scsi::testing::initiator(1),
            [(address, named("far"))],
        )
        .unwrap(),
    };
    assert_eq!(address.field(), [1, 255, 0x7f, 0xff, 0, 0, 0, 0]);
    assert_eq!(bench.host.place(address.field()), Place::Unit(address));
    let lun_0 = [1, 255, 0, 0, 0, 0, 0, 0];
    let Step::Answer(answer) = bench.start_at(lun_0, 0, &REPORT_LUNS, &[], 255) else {
        panic!("no answer")
    };
    assert_eq!(answer.data[..10], [0, 0, 0, 8, 0, 0, 0, 0, 0x7f, 0xff]);
}

#[test]
fn esxi_finds_extended_inquiry_data_and_can_reserve() {
    let bench = Bench::new(Shape::PLAIN);
    let supported = bench.data(&[0x12, 1, 0x00, 0, 255, 0]);
    assert!(supported[4..].contains(&0x86));
    assert_eq!(bench.data(&[0x12, 1, 0x86, 0, 64, 0]).len(), 64);
    assert_eq!(bench.data(&[0x16, 0, 0, 0, 0, 0]), [0_u8; 0]);
    assert_eq!(bench.data(&[0x17, 0, 0, 0, 0, 0]), [0_u8; 0]);
}

#[test]
fn windows_finds_its_way_after_the_resets_that_its_driver_sends() {
    let bench = pair();
    let unit_0 = Scope::Unit(Address { target: 0, lun: 0 });
    for (scope, attention, code) in [
        (unit_0, Attention::LogicalUnitReset, [0x29, 0x03]),
        (Scope::Target(0), Attention::LogicalUnitReset, [0x29, 0x03]),
        (Scope::Host, Attention::PowerOn, [0x29, 0x00]),
    ] {
        bench.host.reset(scope, attention);
        // INQUIRY gets through, the first command after it is told, the next is carried out.
        assert_eq!(bench.data(&[0x12, 0, 0, 0, 36, 0]).len(), 36);
        let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(told(&bench.answer_at(0, &read)), (2, code));
        assert!(matches!(bench.start(&read, &[], 512), Step::Disk { .. }));
    }
}
