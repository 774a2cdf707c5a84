//! Disks that fail: what tenants are told, and what they are spared.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::thread;
use std::time::{Duration, Instant};

use appliance::disk::DiskError;
use spec::virtio_scsi::response;
use spec::virtio_scsi::task_management::{ABORT_TASK, LOGICAL_UNIT_RESET};
use tests::world::{
    BLOCK, Command, Failure, Gate, Lun, MIB, PATIENCE, Shape, Task, Tenant, Trouble, World,
    address, eventually, protocol, write10,
};

/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);
const FUNCTION_COMPLETE: Option<u8> = Some(0);
/// SAM-6: status BUSY.
const BUSY: Failure = Failure::Status(8);

const IO: DiskError = DiskError::Io(5);

const fn sense(key: u8, asc: u8, ascq: u8) -> Failure {
    Failure::Sense { key, asc, ascq }
}

/// One HBA with a LUN whose disk can fail, and one whose disk does not; its tenant has met the
/// unit attentions after power on.
fn world(lun: Lun) -> (World, Tenant) {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(lun.gated())
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = world.tenant_of(0, Shape::default());
    for lun in [0, 1] {
        tenant.initiator().ready(lun).unwrap();
    }
    (world, tenant)
}

fn pausing() -> (World, Tenant) {
    world(Lun::file(MIB).pauses())
}

/// A WRITE(10) of one block of LUN 0.
fn write(byte: u8) -> Command {
    Command::new(0, &write10(7, 1)).data_out(&[byte; BLOCK])
}

/// Sends a write that is held until the trouble is over.
fn held_write(tenant: &mut Tenant, gate: &Gate, byte: u8) -> Task {
    let task = tenant.initiator().submit(&write(byte));
    eventually("the write was tried again", || gate.waiting() > 1);
    task
}

fn response_of(tenant: &mut Tenant, task: Task) -> u8 {
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    outcome.response.response
}

// --- Reported ----------------------------------------------------------------------------------

#[test]
fn every_trouble_of_a_disk_has_its_sense_and_no_other_lun_notices() {
    let (world, mut tenant) = world(Lun::file(MIB));
    let gate = world.gate(0);
    let tenant = tenant.initiator();
    tenant.write(0, 7, &[0x11; BLOCK]).unwrap();
    for (trouble, read, write, flush) in [
        // MEDIUM ERROR, UNRECOVERED READ ERROR and WRITE ERROR; HARDWARE ERROR, INTERNAL TARGET
        // FAILURE, as Linux flushes again after a medium error.
        (
            Trouble::Fails(IO),
            Some(sense(3, 0x11, 0)),
            Some(sense(3, 0x0c, 0)),
            Some(sense(4, 0x44, 0)),
        ),
        // DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT.
        (Trouble::Full, None, Some(sense(7, 0x27, 7)), None),
        // NOT READY, MEDIUM NOT PRESENT.
        (
            Trouble::Fails(DiskError::Gone),
            Some(sense(2, 0x3a, 0)),
            Some(sense(2, 0x3a, 0)),
            Some(sense(2, 0x3a, 0)),
        ),
        // BUSY.
        (
            Trouble::Fails(DiskError::Busy),
            Some(Failure::Status(8)),
            Some(Failure::Status(8)),
            Some(Failure::Status(8)),
        ),
    ] {
        gate.trouble(Some(trouble));
        assert_eq!(tenant.read(0, 7, 1).err(), read, "{trouble:?}");
        assert_eq!(
            tenant.write(0, 7, &[0x22; BLOCK]).err(),
            write,
            "{trouble:?}"
        );
        assert_eq!(tenant.flush(0).err(), flush, "{trouble:?}");
        // Each was tried once.
        assert_eq!(gate.waiting(), 3, "{trouble:?}");
        tenant.write(1, 7, &[0x33; BLOCK]).unwrap();
        gate.trouble(None);
        assert_eq!(tenant.read(0, 7, 1).unwrap(), [0x11; BLOCK], "{trouble:?}");
    }
}

#[test]
fn a_disk_that_became_shorter_is_an_error_and_never_zeros() {
    // The appliance looks at its size once a second, and has not yet.
    let (world, mut tenant) = world(Lun::file(MIB));
    let (last, middle) = (2047, 1023);
    tenant.initiator().read(0, last, 1).unwrap();
    world.resize(0, MIB / 2);
    let short = tenant.initiator().read(0, middle, 2).unwrap_err();
    let gone = tenant.initiator().read(0, last, 1).unwrap_err();
    for failure in [short, gone] {
        // HARDWARE ERROR, INTERNAL TARGET FAILURE; or it has looked: LBA OUT OF RANGE.
        let known = [sense(4, 0x44, 0), sense(5, 0x21, 0)];
        assert!(known.contains(&failure), "{failure}");
    }
    tenant.initiator().read(0, middle, 1).unwrap();
}

#[test]
fn wrong_data_is_noticed_by_whoever_has_it_verified() {
    let (world, mut tenant) = world(Lun::file(MIB));
    let tenant = tenant.initiator();
    tenant.write(0, 7, &[0x11; BLOCK]).unwrap();
    // MISCOMPARE, MISCOMPARE DURING VERIFY OPERATION.
    let miscompare = Err(sense(0xe, 0x1d, 0));
    // WRITE AND VERIFY(10), and VERIFY(10) with BYTCHK 01b, of one block.
    let write_verify = [0x2e, 0, 0, 0, 0, 7, 0, 0, 1, 0];
    let verify = [0x2f, 0x02, 0, 0, 0, 7, 0, 0, 1, 0];
    let mut both = || {
        [&write_verify, &verify]
            .map(|cdb| tenant.run(&Command::new(0, cdb).data_out(&[0x11; BLOCK])))
    };
    assert_eq!(both(), [Ok(vec![]), Ok(vec![])]);
    world.gate(0).trouble(Some(Trouble::Forgets));
    assert_eq!(both(), [miscompare.clone(), miscompare]);
}

// --- Paused ------------------------------------------------------------------------------------

#[test]
fn writes_to_a_full_disk_wait_for_room() {
    let (world, mut tenant) = pausing();
    let gate = world.gate(0);
    gate.trouble(Some(Trouble::Full));
    let tasks: Vec<_> = (1..5)
        .map(|byte| held_write(&mut tenant, &gate, byte))
        .collect();
    let waiting = tenant.initiator().wait_for(tasks[0], A_WHILE);
    assert_eq!(waiting.err(), Some(Failure::Timeout));
    assert_eq!(world.image(0, 7 * 512, BLOCK), [0; BLOCK]);

    gate.trouble(None);
    for task in tasks {
        let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
        outcome.good().unwrap();
    }
    let read = tenant.initiator().read(0, 7, 1).unwrap();
    assert!((1..5).any(|byte| read == [byte; BLOCK]));
}

#[test]
fn commands_to_a_disk_that_is_gone_or_fails_wait_for_it_to_come_back() {
    for error in [DiskError::Gone, IO] {
        let (world, mut tenant) = pausing();
        let gate = world.gate(0);
        gate.trouble(Some(Trouble::Fails(error)));
        let task = held_write(&mut tenant, &gate, 0x11);
        gate.trouble(None);
        assert_eq!(response_of(&mut tenant, task), response::OK, "{error}");
        assert_eq!(tenant.initiator().read(0, 7, 1).unwrap(), [0x11; BLOCK]);
    }
}

#[test]
fn a_failed_flush_and_a_compare_and_write_are_reported_though_the_unit_pauses() {
    let (world, mut tenant) = pausing();
    world.gate(0).trouble(Some(Trouble::Fails(IO)));
    let tenant = tenant.initiator();
    assert_eq!(tenant.flush(0), Err(sense(4, 0x44, 0)));
    // COMPARE AND WRITE of block 7.
    let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0];
    let command = Command::new(0, &cdb).data_out(&[0; 2 * BLOCK]);
    assert_eq!(tenant.run(&command), Err(sense(3, 0x0c, 0)));
}

#[test]
fn a_held_command_is_not_given_up_however_long_it_takes() {
    let (world, mut tenant) = world(Lun::file(MIB).pauses().timeout(1));
    let gate = world.gate(0);
    gate.trouble(Some(Trouble::Full));
    let task = held_write(&mut tenant, &gate, 0x11);
    let long = tenant.initiator().wait_for(task, Duration::from_secs(3));
    assert_eq!(long.err(), Some(Failure::Timeout));
    // The trials become fewer: at 100 ms, then after 200, 400, 800 and 1600 ms.
    assert!(gate.waiting() <= 7, "{} trials", gate.waiting());
    gate.trouble(None);
    assert_eq!(response_of(&mut tenant, task), response::OK);
}

#[test]
fn abort_and_reset_end_a_held_command_at_once() {
    for (function, ended) in [
        (ABORT_TASK, response::ABORTED),
        (LOGICAL_UNIT_RESET, response::RESET),
    ] {
        let (world, mut tenant) = pausing();
        let gate = world.gate(0);
        gate.trouble(Some(Trouble::Full));
        let task = held_write(&mut tenant, &gate, 0x11);
        let since = Instant::now();
        let answer = tenant.task_management(function, address(0), task.tag());
        assert_eq!(answer, FUNCTION_COMPLETE);
        assert_eq!(response_of(&mut tenant, task), ended);
        assert!(since.elapsed() < PATIENCE);
        let trials = gate.waiting();
        thread::sleep(4 * A_WHILE);
        assert_eq!(gate.waiting(), trials, "it was tried after its end");
        gate.trouble(None);
        assert_eq!(world.image(0, 7 * 512, BLOCK), [0; BLOCK]);
    }
}

/// A tenant whose requests go back in the order in which they came.
fn in_order() -> Shape {
    let shape = Shape::default();
    Shape {
        protocol: shape.protocol & !protocol::INFLIGHT_SHMFD,
        ..shape
    }
}

fn failure_of(tenant: &mut Tenant, task: Task) -> Option<Failure> {
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    outcome.good().err()
}

#[test]
fn where_requests_go_back_in_order_a_failing_lun_is_busy_and_another_goes_on() {
    let lun = Lun::file(MIB).pauses().gated();
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(lun)
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = world.tenant_of(0, in_order());
    let tenant = tenant.initiator();
    tenant.ready(0).unwrap();
    tenant.ready(1).unwrap();
    world.gate(0).trouble(Some(Trouble::Full));
    let to_full = tenant.submit(&write(0x11));
    tenant.write(1, 7, &[0x22; BLOCK]).unwrap();
    let outcome = tenant.wait_for(to_full, PATIENCE).unwrap();
    assert_eq!(outcome.good().err(), Some(BUSY));
    world.gate(0).trouble(None);
    tenant.write(0, 7, &[0x33; BLOCK]).unwrap();
}

#[test]
fn where_requests_go_back_in_order_the_only_lun_pauses_until_another_comes() {
    let mut world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB).pauses().gated())
        .start();
    let mut tenant = world.tenant_of(0, in_order());
    tenant.initiator().ready(0).unwrap();
    let gate = world.gate(0);
    gate.trouble(Some(Trouble::Full));
    let task = held_write(&mut tenant, &gate, 0x11);
    world.add_lun(0, 0, 1, Lun::file(MIB)).unwrap();
    assert_eq!(failure_of(&mut tenant, task), Some(BUSY));
    tenant.initiator().ready(1).unwrap();
}

#[test]
fn no_more_commands_are_held_than_leave_room_for_other_luns() {
    let lun = Lun::file(MIB).pauses().gated();
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(lun)
        .lun(Lun::file(MIB))
        .start();
    let shape = Shape {
        ring_size: 1024,
        queues: 2,
        ..Shape::default()
    };
    let mut tenant = world.tenant_of(0, shape);
    tenant.initiator().ready(0).unwrap();
    tenant.initiator().ready(1).unwrap();
    let gate = world.gate(0);
    gate.trouble(Some(Trouble::Fails(IO)));
    let mut held: Vec<_> = (0..600)
        .map(|_| tenant.initiator().submit(&write(0x11)))
        .collect();
    for task in held.split_off(512) {
        assert_eq!(failure_of(&mut tenant, task), Some(BUSY));
    }
    tenant.queues[1].write(1, 7, &[0x22; BLOCK]).unwrap();
    // One that is tried and fails again has its place.
    let trials = gate.waiting();
    eventually("more are tried", || gate.waiting() >= trials + 2);
    gate.trouble(None);
    for task in held {
        assert_eq!(failure_of(&mut tenant, task), None);
    }
}

#[test]
fn a_held_command_to_a_lun_that_is_taken_away_is_answered() {
    let (mut world, mut tenant) = pausing();
    let gate = world.gate(0);
    gate.trouble(Some(Trouble::Full));
    let task = held_write(&mut tenant, &gate, 0x11);
    world.remove_lun(0, 0, 0).unwrap();
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    // ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED.
    assert_eq!(outcome.good().unwrap_err(), sense(5, 0x25, 0));
}

#[test]
fn a_tenant_with_held_commands_can_stop_and_be_reset() {
    let (world, mut tenant) = pausing();
    let gate = world.gate(0);
    gate.trouble(Some(Trouble::Full));
    held_write(&mut tenant, &gate, 0x11);
    let since = Instant::now();
    tenant.reset().unwrap();
    assert!(since.elapsed() < PATIENCE);
    tenant.start().unwrap();
    gate.trouble(None);
    tenant.initiator().write(0, 7, &[0x22; BLOCK]).unwrap();
}
