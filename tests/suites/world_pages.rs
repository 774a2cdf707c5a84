//! What takes long, or outlives the appliance: FORMAT UNIT and SANITIZE, identifying information,
//! statistics.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::time::Duration;

use spec::virtio_scsi::response;
use spec::virtio_scsi::task_management::{ABORT_TASK, LOGICAL_UNIT_RESET};
use tests::world::{
    BLOCK, Command, Failure, Lun, MIB, PATIENCE, Shape, Tenant, World, address, eventually, read10,
    write10,
};

/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);

/// LOGICAL UNIT NOT READY, FORMAT IN PROGRESS.
const FORMATTING: Failure = sense(2, 0x04, 0x04);
/// LOGICAL UNIT NOT READY, SANITIZE IN PROGRESS.
const SANITIZING: Failure = sense(2, 0x04, 0x1b);
/// SANITIZE COMMAND FAILED.
const SANITIZE_FAILED: Failure = sense(3, 0x31, 0x03);
/// ABORTED COMMAND, LOGICAL UNIT COMMUNICATION FAILURE.
const INTERRUPTED: Failure = sense(0xb, 0x08, 0);
/// UNIT ATTENTION, POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
const POWER_ON: Failure = sense(6, 0x29, 0);
/// UNIT ATTENTION, BUS DEVICE RESET FUNCTION OCCURRED.
const DEVICE_RESET: Failure = sense(6, 0x29, 3);
/// UNIT ATTENTION, COMMANDS CLEARED BY ANOTHER INITIATOR.
const COMMANDS_CLEARED: Failure = sense(6, 0x2f, 0);

/// SANITIZE, BLOCK ERASE; with IMMED.
const ERASE: [u8; 10] = [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
const ERASE_NOW: [u8; 10] = [0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0];
/// SANITIZE, EXIT FAILURE MODE.
const EXIT: [u8; 10] = [0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0];

const SIZE: usize = 1 << 20;

const fn sense(key: u8, asc: u8, ascq: u8) -> Failure {
    Failure::Sense { key, asc, ascq }
}

fn send(tenant: &mut Tenant, command: &Command) -> Result<(), Failure> {
    let outcome = tenant.initiator().command(command).unwrap();
    outcome.good().map(drop)
}

fn cdb(tenant: &mut Tenant, cdb: &[u8]) -> Result<(), Failure> {
    send(tenant, &Command::new(0, cdb))
}

/// What TEST UNIT READY meets.
fn ready(tenant: &mut Tenant) -> Result<(), Failure> {
    cdb(tenant, &[0; 6])
}

/// A tenant of HBA `hba` that has met the unit attention after power on.
fn tenant_of(world: &World, hba: usize) -> Tenant {
    let mut tenant = world.tenant_of(hba, Shape::default());
    assert_eq!(ready(&mut tenant), Err(POWER_ON));
    tenant
}

/// A LUN that is full of ones, and its tenant.
fn full(lun: Lun) -> (World, Tenant) {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .keeping_state()
        .lun(lun)
        .start();
    let mut tenant = tenant_of(&world, 0);
    fill(&mut tenant);
    (world, tenant)
}

/// WRITE SAME(16) of ones to all blocks.
fn fill(tenant: &mut Tenant) {
    let ones = Command::new(0, &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    send(tenant, &ones.data_out(&[0xff; BLOCK])).unwrap();
}

fn is_all(world: &World, byte: u8) -> bool {
    let image = world.image(0, 0, SIZE);
    image.iter().all(|found| *found == byte)
}

fn becomes_ready(tenant: &mut Tenant) {
    eventually("the unit is ready", || ready(tenant) == Ok(()));
}

// --- SANITIZE ----------------------------------------------------------------------------------

#[test]
fn an_overwrite_leaves_the_pattern_in_every_block() {
    let (world, mut tenant) = full(Lun::file(MIB));
    let overwrite = [0x48, 0x01, 0, 0, 0, 0, 0, 0, 8, 0];
    let list = [0x01, 0, 0, 4, 0xde, 0xad, 0xbe, 0xef];

    send(&mut tenant, &Command::new(0, &overwrite).data_out(&list)).unwrap();

    let image = world.image(0, 0, SIZE);
    assert!(image.chunks(4).all(|four| four == [0xde, 0xad, 0xbe, 0xef]));
}

/// GET LBA STATUS with room for 15 descriptors: LBA, blocks and provisioning status of each.
fn lba_status(tenant: &mut Tenant) -> Vec<(u64, u32, u8)> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x12, 248);
    let data = tenant.initiator().run(&Command::new(0, &cdb).data_in(248));
    let data = data.unwrap();
    let len = 4 + u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
    let descriptors = data[8..len].chunks(16).map(|one| {
        (
            u64::from_be_bytes(one[..8].try_into().unwrap()),
            u32::from_be_bytes(one[8..12].try_into().unwrap()),
            one[12],
        )
    });
    descriptors.collect()
}

#[test]
fn what_a_block_erase_has_erased_is_deallocated_where_the_disk_tells() {
    let (world, mut tenant) = full(Lun::file(MIB));
    assert_eq!(lba_status(&mut tenant), [(0, 2048, 0)], "mapped");
    cdb(&mut tenant, &ERASE).unwrap();
    assert_eq!(lba_status(&mut tenant), [(0, 2048, 1)], "deallocated");
    assert!(is_all(&world, 0));

    // Tags are beside their data, and tell nothing of that: mapped, or not known.
    let (_world, mut tenant) = full(Lun::file(MIB).protected("type1"));
    let blocks = lba_status(&mut tenant)[0].1;
    cdb(&mut tenant, &ERASE).unwrap();
    assert_eq!(lba_status(&mut tenant), [(0, blocks, 0)]);
}

#[test]
fn what_was_on_its_way_when_a_unit_is_sanitized_never_lands_afterwards() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .keeping_state()
        .lun(Lun::file(MIB).gated().shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let (mut one, mut other) = (tenant_of(&world, 0), tenant_of(&world, 1));
    let gate = world.gate(0);
    gate.close();
    let hangs = Command::new(0, &write10(0, 1)).data_out(&[0x22; BLOCK]);
    let mine = one.initiator().submit(&hangs);
    let theirs = other.initiator().submit(&hangs);
    eventually("both writes are at the disk", || gate.waiting() == 2);
    gate.open();
    let left = gate.leave_write();

    let erase = one.initiator().submit(&Command::new(0, &ERASE));

    for (tenant, task) in [(&mut one, mine), (&mut other, theirs)] {
        let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
        assert_eq!(outcome.response.response, response::ABORTED);
    }
    // They are given up, but may land as long as the kernel is at such a one.
    assert_eq!(ready(&mut other), Err(COMMANDS_CLEARED));
    assert_eq!(ready(&mut other), Err(SANITIZING));
    assert!(one.initiator().wait_for(erase, A_WHILE).is_err());
    drop(left);
    let outcome = one.initiator().wait_for(erase, PATIENCE).unwrap();
    outcome.good().unwrap();
    assert!(is_all(&world, 0));
    assert_eq!(ready(&mut other), Ok(()));
}

#[test]
fn a_sanitize_goes_on_whatever_is_aborted_and_reset() {
    let (world, mut tenant) = full(Lun::file(MIB).gated());
    let left = world.gate(0).leave_write();
    let erase = tenant.initiator().submit(&Command::new(0, &ERASE));
    assert!(tenant.initiator().wait_for(erase, A_WHILE).is_err());
    assert_eq!(ready(&mut tenant), Err(SANITIZING));

    let aborted = tenant.task_management(ABORT_TASK, address(0), erase.tag());
    let reset = tenant.send_function(LOGICAL_UNIT_RESET, address(0), 0);

    assert_eq!(aborted, Some(response::OK));
    eventually("the reset is told", || {
        ready(&mut tenant) == Err(DEVICE_RESET)
    });
    assert_eq!(ready(&mut tenant), Err(SANITIZING));
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    assert_eq!(send(&mut tenant, &read), Err(SANITIZING));
    drop(left);
    assert_eq!(tenant.function_answer(reset, PATIENCE), Some(response::OK));
    becomes_ready(&mut tenant);
    assert!(is_all(&world, 0));
}

#[test]
fn a_sanitize_outlives_the_appliance() {
    let (mut world, mut tenant) = full(Lun::file(MIB).gated());
    let left = world.gate(0).leave_write();
    cdb(&mut tenant, &ERASE_NOW).unwrap();

    world.kill_appliance();
    world.start_appliance();

    assert_eq!(ready(&mut tenant), Err(POWER_ON));
    assert_eq!(ready(&mut tenant), Err(SANITIZING));
    drop(left);
    becomes_ready(&mut tenant);
    assert!(is_all(&world, 0));
    // It is done once.
    fill(&mut tenant);
    world.kill_appliance();
    world.start_appliance();
    assert_eq!(ready(&mut tenant), Err(POWER_ON));
    assert_eq!(ready(&mut tenant), Ok(()));
    assert!(is_all(&world, 0xff));
}

#[test]
fn a_sanitize_that_is_waited_for_is_not_begun_twice() {
    let (mut world, mut tenant) = full(Lun::file(MIB).gated());
    let left = world.gate(0).leave_write();
    let erase = tenant.initiator().submit(&Command::new(0, &ERASE));
    assert!(tenant.initiator().wait_for(erase, A_WHILE).is_err());

    world.kill_appliance();
    world.start_appliance();

    let outcome = tenant.initiator().wait_for(erase, PATIENCE).unwrap();
    assert_eq!(outcome.good(), Err(INTERRUPTED));
    drop(left);
    eventually("the unit is ready", || ready(&mut tenant) == Ok(()));
    assert!(is_all(&world, 0));
}

#[test]
fn a_lun_that_is_taken_away_while_it_is_sanitized_is_sanitized_when_it_comes_back() {
    let (mut world, mut tenant) = full(Lun::file(MIB).gated());
    let left = world.gate(0).leave_write();
    cdb(&mut tenant, &ERASE_NOW).unwrap();
    world.remove_lun(0, 0, 0).unwrap();
    eventually("the unit is gone", || {
        matches!(
            ready(&mut tenant),
            Err(Failure::Sense { asc: 0x25, .. } | Failure::Response(3))
        )
    });
    drop(left);

    // Whoever erased it has to let go of its disk.
    eventually("the unit comes back", || world.show_lun(0, 0, 0, 0).is_ok());

    becomes_ready(&mut tenant);
    assert!(is_all(&world, 0));
}

#[test]
fn who_does_not_want_to_wait_longer_hears_that_it_goes_on() {
    let (world, mut tenant) = full(Lun::file(MIB).gated().timeout(1));
    let left = world.gate(0).leave_write();
    assert_eq!(cdb(&mut tenant, &ERASE), Err(SANITIZING));
    assert_eq!(ready(&mut tenant), Err(SANITIZING));
    drop(left);
    becomes_ready(&mut tenant);
    assert!(is_all(&world, 0));
}

#[test]
fn a_disk_that_fails_a_sanitize_leaves_the_unit_failed_until_that_is_ended() {
    use appliance::disk::DiskError;
    use tests::world::Trouble;

    let (mut world, mut tenant) = full(Lun::file(MIB).gated());
    world
        .gate(0)
        .trouble(Some(Trouble::Fails(DiskError::Io(5))));
    // With AUSE.
    let mut erase = ERASE;
    erase[1] |= 0x20;
    assert_eq!(cdb(&mut tenant, &erase), Err(SANITIZE_FAILED));
    world.gate(0).trouble(None);
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    assert_eq!(send(&mut tenant, &read), Err(SANITIZE_FAILED));
    world.kill_appliance();
    world.start_appliance();
    assert_eq!(ready(&mut tenant), Err(POWER_ON));
    assert_eq!(ready(&mut tenant), Err(SANITIZE_FAILED));
    cdb(&mut tenant, &EXIT).unwrap();
    assert_eq!(send(&mut tenant, &read), Ok(()));
    cdb(&mut tenant, &ERASE).unwrap();
    assert!(is_all(&world, 0));
}

#[test]
fn other_luns_work_while_one_is_erased() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .keeping_state()
        .lun(Lun::file(MIB).gated())
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = tenant_of(&world, 0);
    assert_eq!(tenant.initiator().ready(1), Ok(()));
    let left = world.gate(0).leave_write();
    cdb(&mut tenant, &ERASE_NOW).unwrap();
    for lba in 0..100 {
        tenant.initiator().write(1, lba, &[7; BLOCK]).unwrap();
    }
    assert_eq!(ready(&mut tenant), Err(SANITIZING));
    drop(left);
    becomes_ready(&mut tenant);
}

// --- FORMAT UNIT -------------------------------------------------------------------------------

#[test]
fn a_unit_is_formatted_in_the_background() {
    let (world, mut tenant) = full(Lun::file(MIB).gated());
    let left = world.gate(0).leave_write();
    let format = Command::new(0, &[0x04, 0x10, 0, 0, 0, 0]).data_out(&[0, 0x02, 0, 0]);
    send(&mut tenant, &format).unwrap();
    assert_eq!(ready(&mut tenant), Err(FORMATTING));
    let sense = Command::new(0, &[0x03, 0, 0, 0, 18, 0]).data_in(18);
    let sense = tenant.initiator().run(&sense).unwrap();
    assert_eq!((sense[2], &sense[12..14]), (2, &[0x04, 0x04][..]));
    assert_eq!(sense[15..], [0x80, 0, 0], "nothing is done yet");
    drop(left);
    becomes_ready(&mut tenant);
    assert!(is_all(&world, 0));
}

#[test]
fn a_unit_is_formatted_without_state_too_but_not_sanitized() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = tenant_of(&world, 0);
    fill(&mut tenant);
    assert_eq!(cdb(&mut tenant, &ERASE), Err(sense(5, 0x20, 0)));
    cdb(&mut tenant, &[0x04, 0, 0, 0, 0, 0]).unwrap();
    assert!(is_all(&world, 0));
}

// --- REASSIGN BLOCKS ---------------------------------------------------------------------------

#[test]
fn blocks_are_reassigned_while_the_unit_goes_on() {
    let (world, mut tenant) = full(Lun::file(MIB));
    let list = [0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 9];
    send(
        &mut tenant,
        &Command::new(0, &[0x07, 0, 0, 0, 0, 0]).data_out(&list),
    )
    .unwrap();
    assert!(is_all(&world, 0xff), "all of them can be read");
}

// --- What outlives the appliance, and what does not --------------------------------------------

#[test]
fn identifying_information_outlives_the_appliance() {
    let (mut world, mut tenant) = full(Lun::file(MIB));
    let set = Command::new(0, &[0xa4, 0x06, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0]);
    send(&mut tenant, &set.data_out(b"mine!")).unwrap();
    world.kill_appliance();
    world.start_appliance();
    assert_eq!(ready(&mut tenant), Err(POWER_ON));
    let report = Command::new(0, &[0xa3, 0x05, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]).data_in(64);
    let data = tenant.initiator().run(&report).unwrap();
    assert_eq!(data[..9], *b"\0\0\0\x05mine!");
}

#[test]
fn statistics_count_what_a_tenant_did() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = tenant_of(&world, 0);
    for lba in 0..5 {
        tenant.initiator().write(0, lba, &[1; 2 * BLOCK]).unwrap();
    }
    tenant.initiator().read(0, 0, 3).unwrap();
    tenant.initiator().flush(0).unwrap();
    let page = |tenant: &mut Tenant, subpage| {
        let sense = [0x4d, 0, 0x59, subpage, 0, 0, 0, 0, 255, 0];
        let sense = Command::new(0, &sense).data_in(255);
        let data = tenant.initiator().run(&sense).unwrap();
        let number = |at: usize| u64::from_be_bytes(data[at..at + 8].try_into().unwrap());
        if subpage == 0 {
            [number(8), number(16), number(24), number(32)]
        } else {
            [number(8), number(20), number(32), number(44)]
        }
    };
    assert_eq!(page(&mut tenant, 0), [1, 5, 10, 3]);
    assert_eq!(page(&mut tenant, 0x20), [0, 0, 0, 1]);
}
