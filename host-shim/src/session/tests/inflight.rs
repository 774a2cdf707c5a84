//! Which rings are tracked, and by whom.

use spec::inflight::Regions;

use super::*;

const SHOWN: FileId = FileId {
    device: 1,
    inode: 20,
};
const FOREIGN: FileId = FileId {
    device: 1,
    inode: 21,
};
/// Region of ring 0 of a 1.1 session: 4 regions of 128 entries, 2112 bytes each.
const FIRST_REGION: u32 = 4096;
const REGION_LEN: u32 = 2112;

fn set_inflight(file: FileId, entries: u16) -> Call {
    Call::SetInflight(Inflight {
        file,
        regions: Regions::new(4, entries).unwrap(),
    })
}

fn tracked(ring: u16, base: Option<u16>) -> RingSetup {
    RingSetup {
        inflight: Some(FIRST_REGION + u32::from(ring) * REGION_LEN),
        ..setup(ring, base)
    }
}

/// With a tenant whose QEMU set this file before it described these rings.
fn started(file: FileId, rings: &[u16]) -> Bench {
    let mut bench = Bench::new();
    bench.event(Event::Inflight(SHOWN));
    bench.event(Event::Connected);
    bench.answered(set_inflight(file, 128));
    bench.linux_start(rings);
    bench.event(Event::Window(Some(FILE.id)));
    bench
}

fn starts(actions: &[Action]) -> Vec<Action> {
    let of_rings =
        |action: &&Action| matches!(action, Action::Post(Step::Request(Request::StartRing(_))));
    actions.iter().filter(of_rings).cloned().collect()
}

fn attach(bench: &mut Bench, tracks: bool) -> Vec<Action> {
    let first = bench.event(Event::Attached { tracks });
    bench.serve(&first)
}

// covers: VPCI-INF-5, VPCI-INF-11
#[test]
fn every_ring_but_the_events_is_tracked_in_its_region_and_control_comes_last() {
    let mut bench = started(SHOWN, &[0, 1, 2, 3]);
    let all = attach(&mut bench, true);
    assert_eq!(
        starts(&all),
        [
            start(setup(1, Some(0))),
            start(tracked(2, Some(0))),
            start(tracked(3, Some(0))),
            start(tracked(0, Some(0))),
        ]
    );
}

// covers: VPCI-INF-11
#[test]
fn control_waits_for_the_rings_that_were_set_up_and_are_enabled_after_it() {
    let mut bench = started(SHOWN, &[0, 2, 3]);
    attach(&mut bench, true);
    // The tenant's QEMU comes back, and enables one ring after the other.
    let gone = bench.event(Event::Disconnected);
    bench.serve(&gone);
    bench.event(Event::Connected);
    bench.answered(set_inflight(SHOWN, 128));
    for call in [
        Call::SetFeatures(NEGOTIATED),
        Call::AddRegion(region(0, 1024 * MIB), FILE),
    ] {
        let actions = bench.call(call);
        bench.serve(&actions);
    }
    bench.describe(&[0, 2, 3], 0);
    let mut started = Vec::new();
    for ring in [0, 2, 3] {
        let actions = bench.call(Call::SetEnabled {
            ring,
            enabled: true,
        });
        for action in starts(&bench.serve(&actions)) {
            if let Action::Post(Step::Request(Request::StartRing(setup))) = action {
                started.push((ring, setup.ring));
            }
        }
    }
    // Each pair: which one was enabled, which one was started then.
    assert_eq!(started, [(2, 2), (3, 3), (3, 0)]);
    // One that is disabled afterwards keeps nobody waiting.
    let off = bench.call(Call::SetEnabled {
        ring: 2,
        enabled: false,
    });
    bench.serve(&off);
    bench.event(Event::Detached);
    let all = attach(&mut bench, true);
    assert_eq!(starts(&all).len(), 2);
}

// covers: VPCI-INF-5
#[test]
fn a_ring_longer_than_its_region_is_not_tracked() {
    let mut bench = Bench::new();
    bench.event(Event::Inflight(SHOWN));
    bench.event(Event::Connected);
    bench.answered(set_inflight(SHOWN, 64));
    bench.linux_start(&[2]);
    bench.event(Event::Window(Some(FILE.id)));
    assert_eq!(
        starts(&attach(&mut bench, true)),
        [start(setup(2, Some(0)))]
    );
}

// covers: VPCI-INF-5, VPCI-VER-3
#[test]
fn an_appliance_that_knows_nothing_of_it_gets_zero() {
    let mut bench = started(SHOWN, &[2]);
    assert_eq!(
        starts(&attach(&mut bench, false)),
        [start(setup(2, Some(0)))]
    );
    // It leaves the ring in order, and any other can go on.
    bench.event(Event::Detached);
    assert_eq!(starts(&attach(&mut bench, false)), [start(setup(2, None))]);
    bench.event(Event::Detached);
    assert_eq!(starts(&attach(&mut bench, true)), [start(tracked(2, None))]);
}

// covers: VPCI-INF-9
#[test]
fn a_ring_that_was_left_tracked_goes_on_tracked_or_not_at_all() {
    let mut bench = started(SHOWN, &[2]);
    attach(&mut bench, true);
    bench.event(Event::Detached);
    assert_eq!(
        bench.event(Event::Attached { tracks: false }),
        [Action::TurnAway(Refusal::Untracked)]
    );
    assert_eq!(Refusal::Untracked.code(), spec::device::error::VERSION);
    assert_eq!(starts(&attach(&mut bench, true)), [start(tracked(2, None))]);
}

// covers: VPCI-INF-9
#[test]
fn a_ring_that_was_stopped_or_reset_can_go_on_untracked() {
    let mut bench = started(SHOWN, &[2]);
    attach(&mut bench, true);
    let stop = bench.call(Call::SetEnabled {
        ring: 2,
        enabled: false,
    });
    bench.serve(&stop);
    bench.event(Event::Detached);
    attach(&mut bench, false);
    let enabled = bench.call(Call::SetEnabled {
        ring: 2,
        enabled: true,
    });
    assert_eq!(starts(&bench.serve(&enabled)), [start(setup(2, Some(77)))]);
}

// covers: VPCI-INF-5
#[test]
fn after_a_reset_or_another_connection_nothing_is_tracked_until_it_is_set_again() {
    let mut bench = started(SHOWN, &[2]);
    attach(&mut bench, true);
    let reset = bench.call(Call::ResetDevice);
    bench.serve(&reset);
    bench.answered(Call::SetFeatures(NEGOTIATED));
    bench.describe(&[2], 0);
    let enabled = bench.call(Call::SetEnabled {
        ring: 2,
        enabled: true,
    });
    assert_eq!(starts(&bench.serve(&enabled)), [start(setup(2, Some(0)))]);
}

// covers: VPCI-INF-4
#[test]
fn no_ring_starts_before_the_function_shows_what_the_tenant_has() {
    let mut bench = started(FOREIGN, &[2]);
    assert_eq!(attach(&mut bench, true), []);
    let shown = bench.event(Event::Inflight(FOREIGN));
    assert_eq!(starts(&bench.serve(&shown)), [start(tracked(2, Some(0)))]);
}
