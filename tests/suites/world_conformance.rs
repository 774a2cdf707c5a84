//! What iscsi-test-cu cannot ask for through a tenant's kernel: buffers of another length than the
//! CDB says, several initiators, aborts of commands under way.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::collections::VecDeque;
use std::time::Duration;

use spec::virtio_scsi::response;
use spec::virtio_scsi::task_management::{ABORT_TASK, I_T_NEXUS_RESET, LOGICAL_UNIT_RESET};
use tests::world::{
    BLOCK, Command, Failure, Initiator, Lun, MIB, Outcome, PATIENCE, POISON, Shape, Tenant, World,
    address, eventually, read10, write10,
};

const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
/// RESERVATION CONFLICT (SAM-5, status codes).
const CONFLICT: Failure = Failure::Status(0x18);

/// READ, WRITE, WRITE AND VERIFY (10), (12) and (16), with the byte where the number of blocks ends.
const READS: [(u8, usize, usize); 3] = [(0x28, 10, 8), (0xa8, 12, 9), (0x88, 16, 13)];
const WRITES: [(u8, usize, usize); 6] = [
    (0x2a, 10, 8),
    (0xaa, 12, 9),
    (0x8a, 16, 13),
    (0x2e, 10, 8),
    (0xae, 12, 9),
    (0x8e, 16, 13),
];

/// MISCOMPARE, MISCOMPARE DURING VERIFY OPERATION.
const MISCOMPARE: Failure = Failure::Sense {
    key: 0xe,
    asc: 0x1d,
    ascq: 0,
};
/// UNIT ATTENTION, BUS DEVICE RESET FUNCTION OCCURRED.
const DEVICE_RESET: Failure = Failure::Sense {
    key: 6,
    asc: 0x29,
    ascq: 3,
};

/// COMPARE AND WRITE of one block.
fn compare_and_write(lba: u8, halves: &[u8]) -> Command {
    let mut cdb = [0; 16];
    (cdb[0], cdb[9], cdb[13]) = (0x89, lba, 1);
    Command::new(0, &cdb).data_out(halves)
}

/// A CDB about the first blocks.
fn first(blocks: u8, (code, len, at): (u8, usize, usize)) -> Vec<u8> {
    let mut cdb = vec![0; len];
    (cdb[0], cdb[at]) = (code, blocks);
    cdb
}

fn one_lun() -> (World, Tenant) {
    let world = World::new().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    (world, tenant)
}

/// Two tenants that see the same LUN 0.
fn two_initiators() -> (World, Tenant, Tenant) {
    let world = World::new()
        .lun(Lun::file(MIB).shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let mut tenants = [0, 1].map(|hba| world.tenant_of(hba, Shape::default()));
    for tenant in &mut tenants {
        tenant.initiator().ready(0).unwrap();
    }
    let [one, other] = tenants;
    (world, one, other)
}

fn send(initiator: &mut Initiator, command: &Command) -> Outcome {
    initiator.command(command).unwrap()
}

// --- Residuals -------------------------------------------------------------------------------

#[test]
fn a_read_of_less_than_its_buffer_says_how_much_is_left() {
    let (_world, mut tenant) = one_lun();
    tenant.initiator().write(0, 0, &[0x5a; 2 * BLOCK]).unwrap();
    for kind in READS {
        for room in [10_000, 2 * BLOCK, BLOCK] {
            let read = Command::new(0, &first(1, kind)).data_in(room);
            let outcome = send(tenant.initiator(), &read);
            assert_eq!(outcome.response.residual as usize, room - BLOCK);
            assert_eq!(outcome.used_len as usize, 108 + BLOCK);
            let data = outcome.good().unwrap();
            assert_eq!(data[..BLOCK], [0x5a; BLOCK]);
            assert!(data[BLOCK..].iter().all(|&byte| byte == POISON));
        }
    }
}

#[test]
fn a_read_of_more_than_its_buffer_is_an_overrun_that_moves_nothing() {
    let (_world, mut tenant) = one_lun();
    for kind in READS {
        for (blocks, room) in [(1, 0), (1, 200), (2, BLOCK)] {
            let read = Command::new(0, &first(blocks, kind)).data_in(room);
            let outcome = send(tenant.initiator(), &read);
            assert_eq!(outcome.response.response, response::OVERRUN);
            assert_eq!(outcome.response.residual as usize, room);
            assert!(outcome.data.iter().all(|&byte| byte == POISON));
        }
    }
}

#[test]
fn a_write_of_less_than_its_buffer_writes_that_and_says_how_much_is_left() {
    let (world, mut tenant) = one_lun();
    for kind in WRITES {
        tenant.initiator().write(0, 0, &[b'a'; 20 * BLOCK]).unwrap();
        for len in [10_000, 2 * BLOCK, BLOCK] {
            let write = Command::new(0, &first(1, kind)).data_out(&vec![b'b'; len]);
            let outcome = send(tenant.initiator(), &write);
            assert_eq!(outcome.response.residual as usize, len - BLOCK);
            outcome.good().unwrap();
            assert_eq!(world.image(0, 0, BLOCK), [b'b'; BLOCK]);
            assert_eq!(world.image(0, BLOCK as u64, 19 * BLOCK), [b'a'; 19 * BLOCK]);
        }
    }
}

#[test]
fn a_write_of_more_than_its_buffer_is_an_overrun_that_writes_nothing() {
    let (world, mut tenant) = one_lun();
    tenant.initiator().write(0, 0, &[b'a'; 2 * BLOCK]).unwrap();
    for kind in WRITES {
        for (blocks, len) in [(1, 0), (1, 200), (2, BLOCK)] {
            let write = Command::new(0, &first(blocks, kind)).data_out(&vec![b'b'; len]);
            let outcome = send(tenant.initiator(), &write);
            assert_eq!(outcome.response.response, response::OVERRUN);
            assert_eq!(outcome.response.residual as usize, len);
            assert_eq!(world.image(0, 0, 2 * BLOCK), [b'a'; 2 * BLOCK]);
        }
    }
}

#[test]
fn mode_sense_leaves_a_residual_only_where_it_has_less_to_say() {
    let (_world, mut tenant) = one_lun();
    for room in [4, 255] {
        let sense = Command::new(0, &[0x1a, 0, 0x3f, 0, room, 0]).data_in(usize::from(room));
        let outcome = send(tenant.initiator(), &sense);
        let moved = outcome.used_len as usize - 108;
        let residual = outcome.response.residual as usize;
        assert_eq!(moved + residual, usize::from(room));
        let data = outcome.good().unwrap();
        // MODE DATA LENGTH does not count itself, nor the cut.
        assert_eq!(moved, usize::from(room).min(usize::from(data[0]) + 1));
    }
}

#[test]
fn compare_and_write_takes_both_halves_from_its_buffer_or_nothing() {
    let (world, mut tenant) = one_lun();
    let mut cdb = [0; 16];
    cdb[0] = 0x89;
    let halves = [[0; 2 * BLOCK], [0xa6; 2 * BLOCK]].concat();

    cdb[13] = 3;
    let outcome = send(tenant.initiator(), &Command::new(0, &cdb).data_out(&halves));
    assert_eq!(outcome.response.response, response::OVERRUN);
    assert_eq!(world.image(0, 0, 3 * BLOCK), [0; 3 * BLOCK]);

    // Of four blocks the first two are compared and written: zeros over zeros.
    cdb[13] = 1;
    let outcome = send(tenant.initiator(), &Command::new(0, &cdb).data_out(&halves));
    assert_eq!(outcome.response.residual as usize, 2 * BLOCK);
    outcome.good().unwrap();
    assert_eq!(world.image(0, 0, 3 * BLOCK), [0; 3 * BLOCK]);

    cdb[13] = 2;
    let outcome = send(tenant.initiator(), &Command::new(0, &cdb).data_out(&halves));
    outcome.good().unwrap();
    assert_eq!(world.image(0, 0, 2 * BLOCK), [0xa6; 2 * BLOCK]);
}

#[test]
fn a_miscompare_says_which_byte_it_is_at() {
    let (world, mut tenant) = one_lun();
    tenant.initiator().write(0, 0, &[b'B'; BLOCK]).unwrap();
    for at in 0..BLOCK {
        let mut halves = [[b'B'; BLOCK], [b'C'; BLOCK]].concat();
        halves[at] = b'Z';
        let outcome = send(tenant.initiator(), &compare_and_write(0, &halves));
        let sense = outcome.response.sense;
        // Fixed format with VALID (SPC-5 §4.4.3): INFORMATION is the offset (SBC-4, COMPARE AND
        // WRITE).
        assert_eq!(sense[0], 0xf0);
        assert_eq!(sense[3..7], u32::try_from(at).unwrap().to_be_bytes());
        assert_eq!(outcome.good(), Err(MISCOMPARE), "byte {at}");
    }
    assert_eq!(world.image(0, 0, BLOCK), [b'B'; BLOCK]);
}

// --- Reservations ----------------------------------------------------------------------------

fn reserve(tenant: &mut Tenant) -> Result<Vec<u8>, Failure> {
    tenant.initiator().run(&Command::new(0, &RESERVE))
}

fn release(tenant: &mut Tenant) -> Result<Vec<u8>, Failure> {
    tenant.initiator().run(&Command::new(0, &RELEASE))
}

#[test]
fn a_reservation_keeps_the_other_initiator_away_until_its_holder_releases_it() {
    let (_world, mut one, mut other) = two_initiators();
    reserve(&mut one).unwrap();
    assert_eq!(reserve(&mut other), Err(CONFLICT));
    assert_eq!(other.initiator().ready(0), Err(CONFLICT));
    assert_eq!(other.initiator().read(0, 0, 1), Err(CONFLICT));
    // A release by another releases nothing, and is no error.
    release(&mut other).unwrap();
    assert_eq!(reserve(&mut other), Err(CONFLICT));
    one.initiator().read(0, 0, 1).unwrap();
    reserve(&mut one).unwrap();

    release(&mut one).unwrap();

    reserve(&mut other).unwrap();
    release(&mut other).unwrap();
}

#[test]
fn a_reservation_ends_with_a_unit_reset_by_whomever() {
    let (_world, mut one, mut other) = two_initiators();
    reserve(&mut one).unwrap();
    assert_eq!(
        other.task_management(LOGICAL_UNIT_RESET, address(0), 0),
        Some(response::OK)
    );
    reserve(&mut other).unwrap();
}

#[test]
fn a_reservation_ends_with_the_nexus_of_its_holder() {
    let (_world, mut one, mut other) = two_initiators();
    reserve(&mut one).unwrap();
    other
        .task_management(I_T_NEXUS_RESET, address(0), 0)
        .unwrap();
    assert_eq!(reserve(&mut other), Err(CONFLICT), "not its holder's");
    one.task_management(I_T_NEXUS_RESET, address(0), 0).unwrap();
    reserve(&mut other).unwrap();
}

#[test]
fn a_reservation_ends_when_the_hba_of_its_holder_is_reset() {
    let (_world, mut one, mut other) = two_initiators();
    reserve(&mut one).unwrap();
    assert_eq!(reserve(&mut other), Err(CONFLICT));
    one.reset().unwrap();
    // RESET_DEVICE is not answered.
    eventually("the reservation is gone", || reserve(&mut other).is_ok());
}

#[test]
fn a_reservation_ends_when_its_holder_leaves() {
    let (_world, mut one, mut other) = two_initiators();
    reserve(&mut one).unwrap();
    assert_eq!(reserve(&mut other), Err(CONFLICT));
    one.disconnect();
    eventually("the reservation is gone", || reserve(&mut other).is_ok());
}

// --- Two paths -------------------------------------------------------------------------------

#[test]
fn a_unit_reset_on_either_path_is_told_once_on_both() {
    let (_world, one, other) = two_initiators();
    let mut paths = [one, other];
    for reset_on in [0, 1] {
        let answer = paths[reset_on].task_management(LOGICAL_UNIT_RESET, address(0), 0);
        assert_eq!(answer, Some(response::OK));
        for path in &mut paths {
            let ready = Command::new(0, &[0; 6]);
            let told = send(path.initiator(), &ready).good();
            assert_eq!(told, Err(DEVICE_RESET), "reset on path {reset_on}");
            assert_eq!(send(path.initiator(), &ready).good(), Ok(Vec::new()));
        }
    }
}

#[test]
fn of_many_compare_and_writes_on_two_paths_each_happens_or_miscompares() {
    let (world, mut one, mut other) = two_initiators();
    // One makes 1 of 0, and the other 0 of 1.
    let zero_to_one = compare_and_write(0, &[[0; BLOCK], [1; BLOCK]].concat());
    let one_to_zero = compare_and_write(0, &[[1; BLOCK], [0; BLOCK]].concat());
    let mut counts = [0, 0];
    for _ in 0..20 {
        let tasks: Vec<_> = (0..40)
            .map(|_| {
                (
                    one.initiator().submit(&zero_to_one),
                    other.initiator().submit(&one_to_zero),
                )
            })
            .collect();
        for (first, second) in tasks {
            let ends = [
                one.initiator().wait_for(first, PATIENCE).unwrap(),
                other.initiator().wait_for(second, PATIENCE).unwrap(),
            ];
            for (count, end) in counts.iter_mut().zip(ends) {
                match end.good() {
                    Ok(_) => *count += 1,
                    Err(failure) => assert_eq!(failure, MISCOMPARE),
                }
            }
        }
        // Every success but the last was undone by one of the other.
        let [ones, zeros] = counts;
        assert!(ones > 0 && (ones == zeros || ones == zeros + 1));
        let last = u8::from(ones != zeros);
        assert_eq!(world.image(0, 0, BLOCK), [last; BLOCK]);
    }
}

// --- Many commands at once -------------------------------------------------------------------

#[test]
fn an_abort_of_a_write_under_way_ends_it_one_way_or_the_other() {
    let (world, mut tenant) = one_lun();
    for round in 0..100_u8 {
        let data = [round; 8 * BLOCK];
        let before = world.image(0, 0, 8 * BLOCK);
        let write = Command::new(0, &write10(0, 8)).data_out(&data);
        let task = tenant.initiator().submit(&write);
        let answer = tenant.task_management(ABORT_TASK, address(0), task.tag());
        assert_eq!(answer, Some(response::OK));
        // Whatever became of it, it is over by now.
        let outcome = tenant
            .initiator()
            .wait_for(task, Duration::from_millis(500))
            .unwrap();
        let image = world.image(0, 0, 8 * BLOCK);
        match outcome.response.response {
            response::OK => assert_eq!(image, data),
            response::ABORTED => assert!(
                image
                    .iter()
                    .zip(&before)
                    .all(|(now, before)| now == before || *now == round)
            ),
            other => panic!("response {other}"),
        }
    }
}

#[test]
fn a_unit_reset_ends_all_of_many_writes() {
    let (_world, mut tenant) = one_lun();
    let mut ended = Vec::new();
    for _ in 0..20 {
        let tasks: Vec<_> = (0..8_u32)
            .map(|n| {
                let write = Command::new(0, &write10(n * 8, 8)).data_out(&[1; 8 * BLOCK]);
                tenant.initiator().submit(&write)
            })
            .collect();
        let answer = tenant.task_management(LOGICAL_UNIT_RESET, address(0), 0);
        assert_eq!(answer, Some(response::OK));
        for task in tasks {
            let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
            ended.push(outcome.response.response);
        }
        tenant.initiator().ready(0).unwrap();
    }
    let known = |code: &u8| [response::OK, response::RESET].contains(code);
    assert!(ended.iter().all(known), "{ended:?}");
}

/// Commands of the last test, and how many of them are under way at a time: more than rings have
/// room for without indirect tables.
const MANY: u32 = 1000;
const AT_ONCE: usize = 100;

/// Sends a thousand commands, as many as possible at a time; the data of each.
fn send_many(initiator: &mut Initiator, command: impl Fn(u32) -> Command) -> Vec<Vec<u8>> {
    let mut under_way = VecDeque::new();
    let mut data = Vec::new();
    let mut end = |initiator: &mut Initiator, task| {
        data.push(initiator.wait_for(task, PATIENCE).unwrap().good().unwrap());
    };
    for n in 0..MANY {
        if under_way.len() == AT_ONCE
            && let Some(first) = under_way.pop_front()
        {
            end(initiator, first);
        }
        under_way.push_back(initiator.submit(&command(n)));
    }
    for task in under_way {
        end(initiator, task);
    }
    data
}

#[test]
fn a_thousand_writes_and_then_reads_at_once_are_all_answered() {
    let world = World::new().lun(Lun::file(4 * MIB)).start();
    let mut tenant = world.tenant();
    let initiator = tenant.initiator();
    initiator.ready(0).unwrap();
    initiator.indirect = true;
    let bytes = |n: u32| [n.to_le_bytes(); 2 * BLOCK].concat();
    send_many(initiator, |n| {
        Command::new(0, &write10(n * 8, 8)).data_out(&bytes(n))
    });
    let read = send_many(initiator, |n| {
        Command::new(0, &read10(n * 8, 8)).data_in(8 * BLOCK)
    });
    for (n, data) in (0..).zip(read) {
        assert!(data == bytes(n), "the eight blocks from {} on", n * 8);
    }
}
