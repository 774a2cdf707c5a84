//! Third-party copies: units copy among themselves what their tenant may read and write.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::thread;
use std::time::Duration;

use serde_json::json;
use spec::virtio_scsi::response;
use spec::virtio_scsi::task_management::{ABORT_TASK, LOGICAL_UNIT_RESET};
use tests::world::{
    BLOCK, Builder, Command, Control, Failure, Initiator, Lun, MIB, Outcome, PATIENCE, Shape, Task,
    Tenant, World, address, eventually, write10,
};

/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);

/// RESERVATION CONFLICT.
const CONFLICT: Failure = Failure::Status(0x18);
/// COPY ABORTED, COPY TARGET DEVICE NOT REACHABLE.
const NOT_REACHABLE: Failure = sense(0xa, 0x0d, 0x02);
/// COPY ABORTED, THIRD PARTY DEVICE FAILURE.
const DEVICE_FAILURE: Failure = sense(0xa, 0x0d, 0x01);
/// ILLEGAL REQUEST, INVALID TOKEN OPERATION, TOKEN UNKNOWN and TOKEN REVOKED.
const TOKEN_UNKNOWN: Failure = sense(5, 0x23, 0x04);
const TOKEN_REVOKED: Failure = sense(5, 0x23, 0x06);
/// ILLEGAL REQUEST, INVALID TOKEN OPERATION, TOKEN EXPIRED.
const TOKEN_EXPIRED: Failure = sense(5, 0x23, 0x07);
/// ABORTED COMMAND, LOGICAL UNIT COMMUNICATION FAILURE and TIME-OUT.
const INTERRUPTED: Failure = sense(0xb, 0x08, 0x00);
const EXPIRED: Failure = sense(0xb, 0x08, 0x01);

const fn sense(key: u8, asc: u8, ascq: u8) -> Failure {
    Failure::Sense { key, asc, ascq }
}

/// A world as the suite's name says; `world_workers` has this suite as well.
fn world() -> Builder {
    World::of_suite(env!("CARGO_CRATE_NAME"))
}

/// Bytes that are different for each block and `seed`.
fn pattern(blocks: usize, seed: u64) -> Vec<u8> {
    (0..blocks * BLOCK / 8)
        .flat_map(|i| {
            let word = seed << 40 | i as u64;
            word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
        })
        .collect()
}

/// Writes blocks from `lba` on, as many at a time as a command can.
fn fill(initiator: &mut Initiator, lun: u16, lba: u32, data: &[u8]) {
    for (n, chunk) in (0..).zip(data.chunks(2048 * BLOCK)) {
        initiator.write(lun, lba + n * 2048, chunk).unwrap();
    }
}

/// The NAA designator of a LUN, as a CSCD descriptor has it.
fn cscd(initiator: &mut Initiator, lun: u16) -> Vec<u8> {
    let inquiry = Command::new(lun, &[0x12, 1, 0x83, 0, 64, 0]).data_in(64);
    let page = initiator.run(&inquiry).unwrap();
    assert_eq!(page[4..8], [0x01, 0x03, 0, 8]);
    let mut cscd = vec![0xe4, 0, 0, 0];
    cscd.extend(&page[4..16]);
    cscd.resize(28, 0);
    cscd.extend([0, 0, 2, 0]);
    cscd
}

/// A segment in bytes, from the CSCD 0 to the CSCD 1.
fn segment(from: u64, to: u64, len: u32) -> Vec<u8> {
    let mut segment = vec![0x0a, 0, 0, 0x1c, 0, 0, 0, 1];
    segment.extend(len.to_be_bytes());
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend([0; 4]);
    segment
}

/// EXTENDED COPY(LID1) with list identifier 9, sent to a LUN.
fn extended(lun: u16, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Command {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut list = vec![9, 0, 0, u8::try_from(cscds.len()).unwrap(), 0, 0, 0, 0];
    list.extend(u32::try_from(segments.len()).unwrap().to_be_bytes());
    list.extend([0; 4]);
    list.extend(cscds);
    list.extend(segments);
    copy_out(lun, 0x00, 0, &list)
}

/// A THIRD-PARTY COPY OUT command.
fn copy_out(lun: u16, action: u8, id: u32, list: &[u8]) -> Command {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, action);
    cdb[6..10].copy_from_slice(&id.to_be_bytes());
    cdb[10..14].copy_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
    Command::new(lun, &cdb).data_out(list)
}

fn ranges(list: &mut Vec<u8>, ranges: &[(u64, u32)]) {
    let len = u16::try_from(ranges.len() * 16).unwrap();
    let at = list.len();
    list[at - 2..].copy_from_slice(&len.to_be_bytes());
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let len = u16::try_from(list.len() - 2).unwrap();
    list[..2].copy_from_slice(&len.to_be_bytes());
}

/// POPULATE TOKEN with list identifier 1; expires after so many seconds.
fn populate(lun: u16, blocks: &[(u64, u32)], seconds: u8) -> Command {
    let mut list = vec![0; 16];
    list[7] = seconds;
    ranges(&mut list, blocks);
    copy_out(lun, 0x10, 1, &list)
}

/// RECEIVE ROD TOKEN INFORMATION.
fn information(initiator: &mut Initiator, lun: u16, id: u8) -> Vec<u8> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[5], cdb[12]) = (0x84, 0x07, id, 0x04);
    let data = initiator
        .run(&Command::new(lun, &cdb).data_in(1024))
        .unwrap();
    let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
    data[..4 + len].to_vec()
}

/// The token of blocks of a LUN.
fn token(initiator: &mut Initiator, lun: u16, blocks: &[(u64, u32)], seconds: u8) -> Vec<u8> {
    initiator.run(&populate(lun, blocks, seconds)).unwrap();
    let data = information(initiator, lun, 1);
    assert_eq!(data[4..6], [0x10, 0x01]);
    assert_eq!(data[32..36], 514_u32.to_be_bytes());
    data[38..].to_vec()
}

/// WRITE USING TOKEN with list identifier 2.
fn use_token(lun: u16, token: &[u8], offset: u64, blocks: &[(u64, u32)]) -> Command {
    let mut list = vec![0; 536];
    list[8..16].copy_from_slice(&offset.to_be_bytes());
    list[16..528].copy_from_slice(token);
    ranges(&mut list, blocks);
    copy_out(lun, 0x11, 2, &list)
}

/// Two LUNs of one HBA, and its tenant.
fn two(luns: [Lun; 2]) -> (World, Tenant) {
    let [one, other] = luns;
    let world = world().lun(one).lun(other).start();
    let mut tenant = world.tenant();
    for lun in [0, 1] {
        tenant.initiator().ready(lun).unwrap();
    }
    (world, tenant)
}

fn both(initiator: &mut Initiator) -> [Vec<u8>; 2] {
    [0, 1].map(|lun| cscd(initiator, lun))
}

// --- What is copied ------------------------------------------------------------------------------

#[test]
fn an_extended_copy_copies_byte_by_byte_between_units_and_within_one() {
    for to in [Lun::file(48 * MIB), Lun::file(48 * MIB).write_back()] {
        let (world, mut tenant) = two([Lun::file(48 * MIB), to]);
        let data = pattern(40 * 2048, 1);
        fill(tenant.initiator(), 0, 0, &data);
        let queue = tenant.initiator();
        let cscds = both(queue);
        // More than a part, not at its multiples; and the one within a unit overlaps itself.
        let len = 20 * 1024 * 1024 + 512;
        let apart = [segment(3, 7, u32::try_from(len).unwrap())];
        queue.run(&extended(1, &cscds, &apart)).unwrap();
        assert!(world.image(1, 7 * 512, len) == data[3 * 512..3 * 512 + len]);
        assert_eq!(world.image(1, 0, 7 * 512), [0; 7 * 512]);
        let rest = world.image(1, 7 * 512 + len as u64, 512);
        assert_eq!(rest, [0; 512]);

        let own = [cscds[0].clone(), cscds[0].clone()];
        let behind = [segment(0, 1000, u32::try_from(len).unwrap())];
        queue.run(&extended(0, &own, &behind)).unwrap();
        assert!(world.image(0, 1000 * 512, len) == data[..len]);
        assert!(world.image(0, 0, 1000 * 512) == data[..1000 * 512]);
        let status = Command::new(0, &[0x84, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0]);
        let status = queue.run(&status.data_in(12)).unwrap();
        assert_eq!(status[..8], [0, 0, 0, 8, 1, 0, 1, 0]);
        assert_eq!(status[8..], u32::try_from(len).unwrap().to_be_bytes());
    }
}

#[test]
fn a_token_copies_byte_by_byte_what_was_there_when_it_was_made() {
    let (world, mut tenant) = two([Lun::file(32 * MIB), Lun::file(32 * MIB)]);
    let data = pattern(24 * 2048, 2);
    fill(tenant.initiator(), 0, 0, &data);
    let queue = tenant.initiator();
    let token = token(queue, 0, &[(100, 40_000), (5, 10)], 0);
    let write = use_token(1, &token, 1, &[(9, 39_999), (3, 5)]);
    queue.run(&write).unwrap();
    let blocks = |from: usize, len: usize| &data[from * 512..(from + len) * 512];
    assert!(world.image(1, 9 * 512, 39_999 * 512) == blocks(101, 39_999));
    assert!(world.image(1, 3 * 512, 5 * 512) == blocks(5, 5));
    assert_eq!(world.image(1, 0, 3 * 512), [0; 3 * 512]);
    let told = information(queue, 1, 2);
    assert_eq!((told[4], told[5], told[15]), (0x11, 0x01, 0xf1));
    assert_eq!(told[16..24], 40_004_u64.to_be_bytes());

    // Whoever changes a block of it, and be it with what is there, ends it.
    queue.write(0, 4, blocks(4, 1)).unwrap();
    queue.run(&write).unwrap();
    queue.write(0, 14, blocks(14, 1)).unwrap();
    let before = world.image(1, 0, 4096);
    let outcome = queue.command(&use_token(1, &token, 0, &[(0, 8)])).unwrap();
    assert_eq!(outcome.good(), Err(TOKEN_REVOKED));
    assert_eq!(world.image(1, 0, 4096), before);
}

#[test]
fn the_zero_token_writes_zeros_and_no_more() {
    let (world, mut tenant) = two([Lun::file(MIB), Lun::file(MIB)]);
    let queue = tenant.initiator();
    fill(queue, 1, 0, &[0xff; 64 * BLOCK]);
    let mut zero = vec![0; 512];
    zero[..8].copy_from_slice(&[0xff, 0xff, 0x00, 0x01, 0, 0, 0x01, 0xf8]);
    queue.run(&use_token(1, &zero, 0, &[(8, 16)])).unwrap();
    let image = world.image(1, 0, 64 * BLOCK);
    assert!(image[..4096].iter().all(|&byte| byte == 0xff));
    assert!(image[4096..12288].iter().all(|&byte| byte == 0));
    assert!(image[12288..].iter().all(|&byte| byte == 0xff));
}

#[test]
fn a_token_expires_when_it_is_not_used() {
    let (_world, mut tenant) = two([Lun::file(MIB), Lun::file(MIB)]);
    let queue = tenant.initiator();
    let token = token(queue, 0, &[(0, 8)], 1);
    thread::sleep(Duration::from_millis(1100));
    let outcome = queue.command(&use_token(1, &token, 0, &[(0, 8)])).unwrap();
    assert_eq!(outcome.good(), Err(TOKEN_EXPIRED));
}

#[test]
fn what_was_copied_to_a_write_back_unit_is_on_stable_storage() {
    let (mut world, mut tenant) = two([Lun::file(MIB), Lun::file(MIB).write_back()]);
    let queue = tenant.initiator();
    fill(queue, 0, 0, &pattern(64, 3));
    let cscds = both(queue);
    let copy = extended(0, &cscds, &[segment(0, 0, 64 * 512)]);
    queue.run(&copy).unwrap();
    let token = token(queue, 0, &[(0, 8)], 0);
    queue.run(&use_token(1, &token, 0, &[(100, 8)])).unwrap();
    world.crash_storage_vm();
    world.start_appliance();
    // Nothing is missing of it: it does not fail.
    let read = tenant.initiator().read(1, 0, 64).unwrap();
    assert!(read == pattern(64, 3));
}

// --- Whose units ---------------------------------------------------------------------------------

#[test]
fn no_unit_is_reached_that_the_tenant_does_not_see() {
    let world = world()
        .lun(Lun::file(MIB))
        .another_hba()
        .lun(Lun::file(MIB))
        .start();
    let [mut one, mut other] = [0, 1].map(|hba| world.tenant_of(hba, Shape::default()));
    let secret = pattern(16, 4);
    fill(other.initiator(), 0, 0, &secret);
    let hidden = cscd(other.initiator(), 0);
    let own = cscd(one.initiator(), 0);
    one.initiator().ready(0).unwrap();
    for cscds in [[hidden.clone(), own.clone()], [own, hidden]] {
        let outcome = one
            .initiator()
            .command(&extended(0, &cscds, &[segment(0, 0, 512)]));
        assert_eq!(outcome.unwrap().good(), Err(NOT_REACHABLE));
    }
    // Not even by a token that somebody has told it.
    let token = token(other.initiator(), 0, &[(0, 16)], 0);
    let outcome = one
        .initiator()
        .command(&use_token(0, &token, 0, &[(0, 16)]));
    assert_eq!(outcome.unwrap().good(), Err(TOKEN_UNKNOWN));
    assert_eq!(world.image(0, 0, 8192), [0; 8192]);
    assert!(world.image(1, 0, 8192) == secret);
}

#[test]
fn a_unit_that_is_shared_ends_a_token_by_whoever_changes_it() {
    let world = world()
        .lun(Lun::file(MIB).shared())
        .lun(Lun::file(MIB))
        .another_hba()
        .shared_lun(0)
        .start();
    let [mut one, mut other] = [0, 1].map(|hba| world.tenant_of(hba, Shape::default()));
    let token = token(one.initiator(), 0, &[(0, 16)], 0);
    other.initiator().write(0, 15, &[1; BLOCK]).unwrap();
    let write = use_token(1, &token, 0, &[(0, 16)]);
    assert_eq!(one.initiator().run(&write), Err(TOKEN_REVOKED));
}

// --- In the middle of a copy ---------------------------------------------------------------------

/// A gated source, a destination that others share, and a copy that waits for its first block.
struct Held {
    world: World,
    one: Tenant,
    other: Tenant,
    copy: Task,
}

impl Held {
    fn new() -> Self {
        Self::with(Lun::file(MIB).gated())
    }

    fn with(source: Lun) -> Self {
        let world = world()
            .lun(source)
            .lun(Lun::file(MIB).shared())
            .another_hba()
            .shared_lun(1)
            .start();
        let [mut one, mut other] = [0, 1].map(|hba| world.tenant_of(hba, Shape::default()));
        let cscds = both(one.initiator());
        one.initiator().ready(0).unwrap();
        other.initiator().ready(0).unwrap();
        let copy = extended(0, &cscds, &[segment(0, 0, 512), segment(8, 8, 512)]);
        let gate = world.gate(0);
        gate.close();
        let copy = one.initiator().submit(&copy);
        eventually("it reads", || gate.waiting() > 0);
        gate.open();
        Self {
            world,
            one,
            other,
            copy,
        }
    }

    fn outcome(&mut self) -> Outcome {
        let Self { one, copy, .. } = self;
        one.initiator().wait_for(*copy, PATIENCE).unwrap()
    }

    /// What hangs has been read now, and is not written.
    fn nothing_comes_of_it(&self) {
        let before = self.world.image(1, 0, 8192);
        self.world.gate(0).let_read(&[0x77; 512]);
        thread::sleep(A_WHILE);
        assert_eq!(self.world.image(1, 0, 8192), before);
    }
}

#[test]
fn a_copy_goes_on_when_its_disk_does_and_holds_no_other_up() {
    let mut held = Held::new();
    for lba in 100..200 {
        let queue = held.one.initiator();
        queue.write(1, lba, &[0x33; BLOCK]).unwrap();
        assert_eq!(queue.read(1, lba, 1).unwrap(), [0x33; BLOCK]);
    }
    held.world.gate(0).let_read(&[0x77; 512]);
    held.outcome().good().unwrap();
    assert_eq!(held.world.image(1, 0, 512), [0x77; 512]);
    assert_eq!(held.world.image(1, 512, 8 * 512), [0; 8 * 512]);
}

#[test]
fn an_abort_ends_a_copy_at_once() {
    let mut held = Held::new();
    let at = held
        .one
        .send_function(ABORT_TASK, address(0), held.copy.tag());
    assert_eq!(held.one.function_answer(at, PATIENCE), Some(response::OK));
    assert_eq!(held.outcome().response.response, response::ABORTED);
    held.nothing_comes_of_it();
}

#[test]
fn a_reset_of_either_unit_ends_a_copy() {
    for lun in [0, 1] {
        let mut held = Held::new();
        let at = held.one.send_function(LOGICAL_UNIT_RESET, address(lun), 0);
        assert_eq!(held.one.function_answer(at, PATIENCE), Some(response::OK));
        assert_eq!(held.outcome().response.response, response::RESET);
        held.nothing_comes_of_it();
    }
    // And be it by a neighbour, who sees the destination alone.
    let mut held = Held::new();
    let at = held.other.send_function(LOGICAL_UNIT_RESET, address(0), 0);
    assert_eq!(held.other.function_answer(at, PATIENCE), Some(response::OK));
    assert_eq!(held.outcome().response.response, response::RESET);
    held.nothing_comes_of_it();
}

/// PERSISTENT RESERVE OUT with both keys.
fn out(lun: u16, action: u8, kind: u8, keys: [u8; 2]) -> Command {
    let mut list = [0; 24];
    (list[7], list[15]) = (keys[0], keys[1]);
    Command::new(lun, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]).data_out(&list)
}

#[test]
fn whoever_is_fenced_off_the_destination_copies_no_byte_to_it() {
    // REGISTER, then PREEMPT AND ABORT; Write Exclusive, Registrants Only.
    let mut held = Held::new();
    held.one.initiator().run(&out(1, 0, 0, [0, 1])).unwrap();
    held.other.initiator().run(&out(0, 0, 0, [0, 2])).unwrap();
    held.other.initiator().run(&out(0, 5, 5, [2, 1])).unwrap();
    held.other.initiator().run(&out(0, 1, 5, [2, 0])).unwrap();
    held.other
        .initiator()
        .write(0, 0, &[0x44; 16 * BLOCK])
        .unwrap();
    assert_eq!(held.outcome().response.response, response::ABORTED);
    held.nothing_comes_of_it();
    let cscds = both(held.one.initiator());
    let copy = extended(0, &cscds, &[segment(100, 0, 512)]);
    assert_eq!(held.one.initiator().run(&copy), Err(DEVICE_FAILURE));
    let to_itself = extended(1, &cscds, &[segment(100, 0, 512)]);
    assert_eq!(held.one.initiator().run(&to_itself), Err(CONFLICT));
    assert_eq!(held.world.image(1, 0, 16 * BLOCK), [0x44; 16 * BLOCK]);
}

#[test]
fn a_reservation_of_the_destination_ends_a_copy_after_the_part_under_way() {
    let mut held = Held::new();
    held.other.initiator().run(&out(0, 0, 0, [0, 2])).unwrap();
    held.other.initiator().run(&out(0, 1, 1, [2, 0])).unwrap();
    held.world.gate(0).let_read(&[0x77; 512]);
    assert_eq!(held.outcome().good(), Err(DEVICE_FAILURE));
}

#[test]
fn a_copy_ends_when_one_of_its_units_is_taken_away() {
    for lun in [0, 1] {
        let mut held = Held::new();
        held.world.remove_lun(0, 0, lun).unwrap();
        assert_eq!(held.outcome().good(), Err(NOT_REACHABLE));
        held.nothing_comes_of_it();
    }
}

#[test]
fn a_copy_that_takes_too_long_is_given_up() {
    let mut held = Held::with(Lun::file(MIB).gated().timeout(1));
    assert_eq!(held.outcome().good(), Err(EXPIRED));
    held.nothing_comes_of_it();
}

#[test]
fn a_copy_that_an_appliance_before_may_have_carried_out_is_not_carried_out_again() {
    let mut held = Held::new();
    held.one.initiator().write(1, 8, &[0x55; BLOCK]).unwrap();
    held.world.kill_appliance();
    held.world.start_appliance();
    assert_eq!(held.outcome().good(), Err(INTERRUPTED));
    let write = Command::new(1, &write10(20, 1)).data_out(&[1; BLOCK]);
    held.one.initiator().run(&write).unwrap();
    assert_eq!(held.world.image(1, 8 * 512, BLOCK), [0x55; BLOCK]);
}

#[test]
fn a_source_that_fails_is_a_device_failure_and_a_full_destination_too() {
    use appliance::disk::DiskError;
    use tests::world::Trouble;
    let (world, mut tenant) = two([Lun::file(MIB).gated(), Lun::file(MIB).gated().pauses()]);
    let queue = tenant.initiator();
    let cscds = both(queue);
    let copy = extended(1, &cscds, &[segment(0, 0, 512)]);
    let token = token(queue, 0, &[(0, 8)], 0);
    let write = use_token(1, &token, 0, &[(0, 8)]);
    world
        .gate(0)
        .trouble(Some(Trouble::Fails(DiskError::Io(5))));
    assert_eq!(queue.run(&copy), Err(DEVICE_FAILURE));
    assert_eq!(queue.run(&write), Err(DEVICE_FAILURE));
    world.gate(0).trouble(None);
    world.gate(1).trouble(Some(Trouble::Full));
    assert_eq!(queue.run(&copy), Err(DEVICE_FAILURE));
    // DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT.
    assert_eq!(queue.run(&write), Err(sense(7, 0x27, 0x07)));
    world.gate(1).trouble(None);
    queue.run(&copy).unwrap();
    queue.run(&write).unwrap();
}

// --- Over a limit --------------------------------------------------------------------------------

/// Limits the second LUN; 0 is no limit.
fn limit(control: &Control, bytes_per_second: u64) {
    let params = json!({ "name": "lun1", "bytes_per_second": bytes_per_second });
    let mut operator = control.operator();
    operator.call("lun.limit", &params).unwrap();
}

/// A tenant whose copy is held for a limit of its destination when its first segment is done, and
/// one who shares that.
struct Limited {
    world: World,
    control: Control,
    one: Tenant,
    other: Tenant,
    copy: Task,
}

impl Limited {
    fn new() -> Self {
        let world = World::new()
            .lun(Lun::file(MIB))
            .lun(Lun::file(MIB).shared())
            .another_hba()
            .shared_lun(1)
            .start();
        let control = world.control(None);
        let [mut one, mut other] = [0, 1].map(|hba| world.tenant_of(hba, Shape::default()));
        let cscds = both(one.initiator());
        for lun in [0, 1] {
            one.initiator().ready(lun).unwrap();
        }
        other.initiator().ready(0).unwrap();
        fill(one.initiator(), 0, 0, &[0x77; 16 * BLOCK]);
        limit(&control, 1);
        // The first is more than the limit has, and owed.
        let copy = extended(1, &cscds, &[segment(0, 0, 512), segment(8, 8, 512)]);
        let copy = one.initiator().submit(&copy);
        eventually("it copies", || world.image(1, 0, BLOCK) == [0x77; BLOCK]);
        Self {
            world,
            control,
            one,
            other,
            copy,
        }
    }

    fn outcome(&mut self) -> Outcome {
        let Self { one, copy, .. } = self;
        one.initiator().wait_for(*copy, PATIENCE).unwrap()
    }
}

#[test]
fn rings_stop_while_a_copy_is_held_for_a_limit_which_is_not_to_be_repeated_unseen() {
    let mut limited = Limited::new();
    limited.one.stop().unwrap();
    // BUSY would have the initiator repeat what may have changed its own source.
    assert_eq!(limited.outcome().good(), Err(INTERRUPTED));
    assert_eq!(limited.world.image(1, 8 * 512, BLOCK), [0; BLOCK]);
}

#[test]
fn whoever_is_fenced_off_while_its_copy_is_held_for_a_limit_copies_no_more() {
    let mut limited = Limited::new();
    let other = limited.other.initiator();
    other.run(&out(0, 0, 0, [0, 2])).unwrap();
    other.run(&out(0, 1, 1, [2, 0])).unwrap();
    limit(&limited.control, 0);
    assert_eq!(limited.outcome().good(), Err(DEVICE_FAILURE));
    assert_eq!(limited.world.image(1, 8 * 512, BLOCK), [0; BLOCK]);
}
