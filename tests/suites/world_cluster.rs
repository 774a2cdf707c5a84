//! LUNs that HBAs share as clusters do: persistent reservations, fencing, ways of different worth.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use spec::virtio_scsi::response;
use spec::virtio_scsi::task_management::{ABORT_TASK, LOGICAL_UNIT_RESET};
use tests::world::{
    BLOCK, Builder, Command, Failure, Initiator, Lun, MIB, PATIENCE, Shape, Task, Tenant, World,
    address, eventually, read10, write10,
};

/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);

const CONFLICT: Failure = Failure::Status(0x18);
/// UNIT ATTENTION, POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
const POWER_ON: Failure = attention(0x29, 0);
/// UNIT ATTENTION, COMMANDS CLEARED BY ANOTHER INITIATOR.
const COMMANDS_CLEARED: Failure = attention(0x2f, 0);
/// UNIT ATTENTION, REGISTRATIONS PREEMPTED.
const REGISTRATIONS_PREEMPTED: Failure = attention(0x2a, 5);
/// UNIT ATTENTION, RESERVATIONS PREEMPTED.
const RESERVATIONS_PREEMPTED: Failure = attention(0x2a, 3);
/// UNIT ATTENTION, ASYMMETRIC ACCESS STATE CHANGED.
const ACCESS_CHANGED: Failure = attention(0x2a, 6);
/// NOT READY, LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE.
const STANDBY: Failure = Failure::Sense {
    key: 2,
    asc: 0x04,
    ascq: 0x0b,
};

/// ABORTED COMMAND, LOGICAL UNIT COMMUNICATION TIME-OUT.
const COMMAND_TIMEOUT: Failure = Failure::Sense {
    key: 0xb,
    asc: 0x08,
    ascq: 1,
};

/// Service actions of PERSISTENT RESERVE OUT.
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;

/// Write Exclusive, Registrants Only.
const WRITE_EXCLUSIVE_REGISTRANTS: u8 = 5;
/// APTPL of a parameter list.
const APTPL: u8 = 1;

const fn attention(asc: u8, ascq: u8) -> Failure {
    Failure::Sense { key: 6, asc, ascq }
}

/// A world as the suite's name says; `world_workers` has this suite as well.
fn world() -> Builder {
    World::of_suite(env!("CARGO_CRATE_NAME"))
}

/// PERSISTENT RESERVE OUT with both keys and the flags of its list.
fn out(action: u8, kind: u8, keys: [u8; 2], flags: u8) -> Command {
    let mut list = [0; 24];
    (list[7], list[15], list[20]) = (keys[0], keys[1], flags);
    Command::new(0, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]).data_out(&list)
}

fn send(tenant: &mut Tenant, command: &Command) -> Result<(), Failure> {
    let outcome = tenant.initiator().command(command).unwrap();
    outcome.good().map(drop)
}

/// What TEST UNIT READY meets.
fn ready(tenant: &mut Tenant) -> Result<(), Failure> {
    send(tenant, &Command::new(0, &[0; 6]))
}

/// What a WRITE(10) of one block meets.
fn write(tenant: &mut Tenant, lba: u32, byte: u8) -> Result<(), Failure> {
    send(
        tenant,
        &Command::new(0, &write10(lba, 1)).data_out(&[byte; BLOCK]),
    )
}

/// The last byte of every registered key.
fn keys(tenant: &mut Tenant) -> Vec<u8> {
    let read = Command::new(0, &[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0]).data_in(256);
    let data = tenant.initiator().run(&read).unwrap();
    let len = usize::from(data[7]);
    data[8..8 + len].chunks(8).map(|key| key[7]).collect()
}

/// A tenant of HBA `hba` that has met the unit attention after power on.
fn tenant_of(world: &World, hba: usize) -> Tenant {
    let mut tenant = world.tenant_of(hba, Shape::default());
    assert_eq!(ready(&mut tenant), Err(POWER_ON));
    tenant
}

/// Two HBAs that see the same LUN 0, and their tenants, registered with keys 1 and 2.
fn two_registered(lun: Lun, flags: u8) -> (World, Tenant, Tenant) {
    let world = world()
        .keeping_state()
        .lun(lun.shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let (mut one, mut other) = (tenant_of(&world, 0), tenant_of(&world, 1));
    send(&mut one, &out(REGISTER, 0, [0, 1], flags)).unwrap();
    send(&mut other, &out(REGISTER, 0, [0, 2], flags)).unwrap();
    (world, one, other)
}

fn hold(tenant: &mut Tenant, key: u8) {
    let reserve = out(RESERVE, WRITE_EXCLUSIVE_REGISTRANTS, [key, 0], 0);
    send(tenant, &reserve).unwrap();
}

fn preempt(action: u8) -> Command {
    out(action, WRITE_EXCLUSIVE_REGISTRANTS, [1, 2], 0)
}

/// The virtio-scsi response of a command that was sent.
fn response_of(initiator: &mut Initiator, task: Task) -> u8 {
    let outcome = initiator.wait_for(task, PATIENCE).unwrap();
    outcome.response.response
}

// --- Persistent reservations -----------------------------------------------------------------

#[test]
fn a_reservation_keeps_another_tenant_from_writing_and_lets_it_read() {
    let (_world, mut one, mut other) = two_registered(Lun::file(MIB), 0);
    hold(&mut one, 1);
    write(&mut other, 0, 0x11).unwrap();
    send(&mut other, &out(REGISTER, 0, [2, 0], 0)).unwrap();

    assert_eq!(write(&mut other, 0, 0x22), Err(CONFLICT));

    assert_eq!(other.initiator().read(0, 0, 1).unwrap(), [0x11; BLOCK]);
    send(&mut one, &out(CLEAR, 0, [1, 0], 0)).unwrap();
    assert_eq!(write(&mut other, 0, 0x33), Ok(()));
}

#[test]
fn two_hbas_of_one_tenant_are_two_registrants() {
    let (_world, mut one, mut other) = two_registered(Lun::file(MIB), 0);
    assert_eq!(keys(&mut one), [1, 2]);
    // Exclusive Access, for the one HBA alone.
    send(&mut one, &out(RESERVE, 3, [1, 0], 0)).unwrap();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    assert_eq!(send(&mut other, &read), Err(CONFLICT));
    assert_eq!(send(&mut other, &out(RESERVE, 3, [2, 0], 0)), Err(CONFLICT));
    send(&mut one, &out(CLEAR, 0, [1, 0], 0)).unwrap();
    assert_eq!(ready(&mut other), Err(RESERVATIONS_PREEMPTED));
    assert_eq!(send(&mut other, &read), Ok(()));
}

#[test]
fn resets_and_a_tenant_that_restarts_leave_a_reservation_alone() {
    let (world, mut one, mut other) = two_registered(Lun::file(MIB), 0);
    hold(&mut one, 1);
    send(&mut other, &out(REGISTER, 0, [2, 0], 0)).unwrap();
    assert_eq!(
        other.task_management(LOGICAL_UNIT_RESET, address(0), 0),
        Some(response::OK)
    );
    one.disconnect();
    eventually("the holder's function is gone", || !world.is_plugged(0));

    assert_eq!(write(&mut other, 0, 0x22), Err(CONFLICT));

    let mut one = tenant_of(&world, 0);
    assert_eq!(write(&mut one, 0, 0x33), Ok(()));
    assert_eq!(keys(&mut one), [1]);
}

#[test]
fn reservations_survive_an_appliance_that_is_stopped_or_killed_if_they_are_to() {
    for aptpl in [0, APTPL] {
        let (mut world, mut one, mut other) = two_registered(Lun::file(MIB), aptpl);
        hold(&mut one, 1);
        send(&mut one, &preempt(PREEMPT)).unwrap();
        for end in [World::stop_appliance, World::kill_appliance] {
            end(&mut world);
            world.start_appliance();

            if aptpl == APTPL {
                // Before anything else, the unit attention after power on too.
                assert_eq!(write(&mut other, 0, 0x22), Err(CONFLICT));
                assert_eq!(write(&mut one, 0, 0x33), Err(POWER_ON));
                assert_eq!(write(&mut one, 0, 0x33), Ok(()));
                assert_eq!(keys(&mut one), [1]);
            } else {
                assert_eq!(write(&mut other, 0, 0x22), Err(POWER_ON));
                assert_eq!(write(&mut other, 0, 0x22), Ok(()));
                assert!(keys(&mut other).is_empty());
            }
        }
    }
}

// --- Fencing ---------------------------------------------------------------------------------

#[test]
fn preempt_and_abort_ends_the_commands_of_the_preempted_before_it_is_answered() {
    let (world, mut one, mut other) = two_registered(Lun::file(MIB).gated(), 0);
    hold(&mut one, 1);
    let gate = world.gate(0);
    gate.close();
    let hangs = Command::new(0, &write10(0, 1)).data_out(&[0x22; BLOCK]);
    let theirs = other.initiator().submit(&hangs);
    eventually("the write is at the disk", || gate.waiting() > 0);
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let before = gate.waiting();
    let mine = one.initiator().submit(&read);
    eventually("the read is at the disk", || gate.waiting() > before);

    let fence = one.initiator().submit(&preempt(PREEMPT_AND_ABORT));

    // It was back before the answer, which stands behind a read that goes on.
    assert_eq!(response_of(other.initiator(), theirs), response::ABORTED);
    gate.let_read(&[0x11; BLOCK]);
    let outcome = one.initiator().wait_for(fence, PATIENCE).unwrap();
    outcome.good().unwrap();
    let read = one.initiator().wait_for(mine, PATIENCE).unwrap();
    assert_eq!(read.good().unwrap(), [0x11; BLOCK]);
    gate.open();
    assert_eq!(write(&mut other, 0, 0x22), Err(CONFLICT));
    assert_eq!(ready(&mut other), Err(COMMANDS_CLEARED));
    assert_eq!(ready(&mut other), Err(REGISTRATIONS_PREEMPTED));
    assert_eq!(ready(&mut other), Ok(()));
    assert_eq!(world.image(0, 0, BLOCK), [0; BLOCK]);
}

#[test]
fn a_fence_is_answered_when_what_the_kernel_was_still_at_can_land_no_more() {
    let (world, mut one, mut other) = two_registered(Lun::file(MIB).gated(), 0);
    hold(&mut one, 1);
    let gate = world.gate(0);
    gate.close();
    let hangs = Command::new(0, &write10(0, 1)).data_out(&[0x22; BLOCK]);
    let theirs = other.initiator().submit(&hangs);
    eventually("the write is at the disk", || gate.waiting() > 0);
    gate.open();
    let left = gate.leave_write();

    let fence = one.initiator().submit(&preempt(PREEMPT_AND_ABORT));

    // It is given up, but may land as long as the kernel is at such a one.
    assert_eq!(response_of(other.initiator(), theirs), response::ABORTED);
    assert!(one.initiator().wait_for(fence, A_WHILE).is_err());
    drop(left);
    let outcome = one.initiator().wait_for(fence, PATIENCE).unwrap();
    outcome.good().unwrap();
    assert_eq!(world.image(0, 0, 16 * BLOCK), [0; 16 * BLOCK]);
    assert_eq!(write(&mut other, 0, 0x22), Err(CONFLICT));
    assert_eq!(write(&mut one, 0, 0x33), Ok(()));
}

#[test]
fn a_fence_on_a_disk_that_hangs_is_never_good_and_keeps_nobody_away_afterwards() {
    let (world, mut one, mut other) = two_registered(Lun::file(MIB).gated().timeout(1), 0);
    hold(&mut one, 1);
    let left = world.gate(0).leave_write();

    let fence = one.initiator().submit(&preempt(PREEMPT_AND_ABORT));

    let outcome = one.initiator().wait_for(fence, PATIENCE).unwrap();
    assert_eq!(outcome.good(), Err(COMMAND_TIMEOUT));
    // What was preempted is, and other writes go on.
    assert_eq!(write(&mut other, 8, 0x22), Err(CONFLICT));
    assert_eq!(write(&mut one, 8, 0x33), Ok(()));
    // But whoever looks for the key still finds it, and can fence again.
    assert_eq!(keys(&mut one), [1, 2]);
    let fence = one.initiator().submit(&preempt(PREEMPT_AND_ABORT));
    let outcome = one.initiator().wait_for(fence, PATIENCE).unwrap();
    assert_eq!(outcome.good(), Err(COMMAND_TIMEOUT));
    assert_eq!(keys(&mut one), [1, 2]);
    drop(left);
    send(&mut one, &preempt(PREEMPT_AND_ABORT)).unwrap();
    assert_eq!(keys(&mut one), [1]);
    // Now there is nobody left to be fenced.
    assert_eq!(
        send(&mut one, &preempt(PREEMPT_AND_ABORT)).err(),
        Some(CONFLICT)
    );
    assert_eq!(write(&mut other, 8, 0x22), Err(CONFLICT));
}

#[test]
fn a_fence_that_waits_for_the_disk_can_be_aborted_and_lets_others_write_then() {
    let (world, mut one, mut other) = two_registered(Lun::file(MIB).gated(), 0);
    let left = world.gate(0).leave_write();
    let fence = one.initiator().submit(&preempt(PREEMPT_AND_ABORT));
    assert!(one.initiator().wait_for(fence, A_WHILE).is_err());

    let answer = one.task_management(ABORT_TASK, address(0), fence.tag());

    assert_eq!(answer, Some(response::OK));
    assert_eq!(response_of(one.initiator(), fence), response::ABORTED);
    assert_eq!(write(&mut one, 8, 0x33), Ok(()));
    assert_eq!(ready(&mut other), Err(REGISTRATIONS_PREEMPTED));
    drop(left);
}

#[test]
fn preempt_without_abort_leaves_commands_under_way_alone() {
    let (world, mut one, mut other) = two_registered(Lun::file(MIB).gated(), 0);
    let gate = world.gate(0);
    gate.close();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let theirs = other.initiator().submit(&read);
    eventually("the read is at the disk", || gate.waiting() > 0);

    send(&mut one, &preempt(PREEMPT)).unwrap();

    gate.let_read(&[0x11; BLOCK]);
    let outcome = other.initiator().wait_for(theirs, PATIENCE).unwrap();
    assert_eq!(outcome.good().unwrap(), [0x11; BLOCK]);
    assert_eq!(ready(&mut other), Err(REGISTRATIONS_PREEMPTED));
}

#[test]
fn not_a_byte_of_a_fenced_tenant_lands_after_the_answer() {
    const BLOCKS: u32 = 64;
    for round in 0..20_u8 {
        let (world, mut one, mut other) = two_registered(Lun::file(MIB), 0);
        hold(&mut one, 1);
        let fenced = AtomicBool::new(false);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let initiator = other.initiator();
                let mut written = 0_u32;
                loop {
                    let was_fenced = fenced.load(Ordering::Acquire);
                    // Many at a time, of all lengths that a page cache would have.
                    let tasks: Vec<_> = (0..16)
                        .map(|index| {
                            let lba = (written + index) * 4 % BLOCKS;
                            let data = vec![0x80 | round; 4 * BLOCK];
                            let write = Command::new(0, &write10(lba, 4)).data_out(&data);
                            initiator.submit(&write)
                        })
                        .collect();
                    written += 16;
                    for task in tasks {
                        let outcome = initiator.wait_for(task, PATIENCE).unwrap();
                        assert!(!was_fenced || outcome.good() == Err(CONFLICT));
                    }
                    if was_fenced {
                        return written;
                    }
                }
            });
            thread::sleep(Duration::from_millis(u64::from(round)));

            send(&mut one, &preempt(PREEMPT_AND_ABORT)).unwrap();

            // What there is now is what there will be.
            let blocks = vec![0x11; BLOCKS as usize * BLOCK];
            one.initiator().write(0, 0, &blocks).unwrap();
            fenced.store(true, Ordering::Release);
            assert!(writer.join().unwrap() > 0);
            assert_eq!(world.image(0, 0, blocks.len()), blocks, "round {round}");
        });
    }
}

#[test]
fn a_fence_can_be_aborted_itself_and_has_happened_all_the_same() {
    let (world, mut one, mut other) = two_registered(Lun::file(MIB).gated(), 0);
    let gate = world.gate(0);
    gate.close();
    // What stands before the fence on its ring holds its answer back.
    let before = gate.waiting();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let mine = one.initiator().submit(&read);
    eventually("the read is at the disk", || gate.waiting() > before);
    let fence = one.initiator().submit(&preempt(PREEMPT_AND_ABORT));
    thread::sleep(A_WHILE);
    let at = one.send_function(ABORT_TASK, address(0), fence.tag());
    gate.let_read(&[0; BLOCK]);

    assert_eq!(one.function_answer(at, PATIENCE), Some(response::OK));
    assert_eq!(response_of(one.initiator(), mine), response::OK);
    let _ = one.initiator().wait_for(fence, PATIENCE).unwrap();
    assert_eq!(ready(&mut other), Err(REGISTRATIONS_PREEMPTED));
}

// --- Asymmetric access -----------------------------------------------------------------------

/// Two HBAs that see the same LUN 0, and their tenants.
fn two() -> (World, Tenant, Tenant) {
    let world = world()
        .lun(Lun::file(MIB).shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let (one, other) = (tenant_of(&world, 0), tenant_of(&world, 1));
    (world, one, other)
}

/// The state of each group, as REPORT TARGET PORT GROUPS has it.
fn states(tenant: &mut Tenant) -> Vec<u8> {
    let mut cdb = [0; 12];
    (cdb[0], cdb[1], cdb[9]) = (0xa3, 0x0a, 128);
    let report = Command::new(0, &cdb).data_in(128);
    let data = tenant.initiator().run(&report).unwrap();
    let len = usize::from(data[3]);
    data[4..4 + len]
        .chunks(12)
        .map(|group| group[0] & 0x0f)
        .collect()
}

/// SET TARGET PORT GROUPS of one group.
fn set(state: u8, group: u8) -> Command {
    let mut cdb = [0; 12];
    (cdb[0], cdb[1], cdb[9]) = (0xa4, 0x0a, 8);
    Command::new(0, &cdb).data_out(&[0, 0, 0, 0, state, 0, 0, group])
}

#[test]
fn the_configuration_changes_how_good_a_way_is_while_it_runs() {
    let (mut world, mut one, mut other) = two();
    assert_eq!(states(&mut one), [0, 0]);

    world.set_access(1, "standby").unwrap();

    for tenant in [&mut one, &mut other] {
        assert_eq!(ready(tenant), Err(ACCESS_CHANGED));
    }
    assert_eq!(write(&mut other, 0, 1), Err(STANDBY));
    assert_eq!(write(&mut one, 0, 1), Ok(()));
    assert_eq!(states(&mut other), [0, 2]);
    // An appliance that starts finds it so.
    world.kill_appliance();
    world.start_appliance();
    assert_eq!(ready(&mut other), Err(POWER_ON));
    assert_eq!(ready(&mut other), Err(STANDBY));
    world.set_access(1, "active-non-optimized").unwrap();
    assert_eq!(ready(&mut other), Err(ACCESS_CHANGED));
    assert_eq!(write(&mut other, 0, 2), Ok(()));
    let error = world.set_access(1, "best").unwrap_err();
    assert!(error.contains("unknown variant `best`"), "{error}");
}

#[test]
fn an_initiator_switches_ways_and_io_goes_on_by_the_other() {
    let (_world, mut one, mut other) = two();
    for round in 0..10_u8 {
        let (from, to) = if round % 2 == 0 {
            (&mut one, &mut other)
        } else {
            (&mut other, &mut one)
        };
        let (down, up) = (1 + round % 2, 2 - round % 2);
        let _ = ready(to);
        let _ = ready(from);
        write(from, 0, round).unwrap();
        send(to, &set(0, up)).unwrap();
        let _ = ready(from);
        send(to, &set(2, down)).unwrap();
        assert_eq!(write(from, 0, 0xff), Err(ACCESS_CHANGED));
        assert_eq!(write(from, 0, 0xff), Err(STANDBY));
        assert_eq!(to.initiator().read(0, 0, 1).unwrap(), [round; BLOCK]);
        // A way that is on standby can make itself active again.
        send(from, &set(0, down)).unwrap();
    }
}
