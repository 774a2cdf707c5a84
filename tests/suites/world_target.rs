//! What a SCSI target is beside reads and writes: task management, events, deadlines, logical
//! units that come and go.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use spec::virtio_scsi::task_management::{
    ABORT_TASK, ABORT_TASK_SET, CLEAR_ACA, CLEAR_TASK_SET, I_T_NEXUS_RESET, LOGICAL_UNIT_RESET,
    QUERY_TASK, QUERY_TASK_SET,
};
use spec::virtio_scsi::{Event, event, feature, response};
use tests::world::{
    BLOCK, Builder, Command, EVENT_IDX, Failure, Gate, INDIRECT_DESC, Initiator, Lun, MIB,
    PATIENCE, POISON, Shape, Task, Tenant, VERSION_1, World, address, address_at, eventually,
    protocol, read10, write10,
};

/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);
const FUNCTION_COMPLETE: Option<u8> = Some(0);
const FUNCTION_SUCCEEDED: Option<u8> = Some(10);
const FUNCTION_REJECTED: Option<u8> = Some(11);

/// ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED.
const NO_UNIT: Failure = sense(5, 0x25, 0);
/// UNIT ATTENTION, BUS DEVICE RESET FUNCTION OCCURRED.
const DEVICE_RESET: Failure = sense(6, 0x29, 3);
/// UNIT ATTENTION, I_T NEXUS LOSS OCCURRED.
const NEXUS_LOSS: Failure = sense(6, 0x29, 7);
/// UNIT ATTENTION, CAPACITY DATA HAS CHANGED.
const CAPACITY_CHANGED: Failure = sense(6, 0x2a, 9);
/// UNIT ATTENTION, COMMANDS CLEARED BY ANOTHER INITIATOR.
const COMMANDS_CLEARED: Failure = sense(6, 0x2f, 0);
/// UNIT ATTENTION, REPORTED LUNS DATA HAS CHANGED.
const REPORTED_LUNS_CHANGED: Failure = sense(6, 0x3f, 0x0e);
/// ABORTED COMMAND, LOGICAL UNIT COMMUNICATION TIME-OUT.
const COMMAND_TIMEOUT: Failure = sense(0xb, 0x08, 1);

const fn sense(key: u8, asc: u8, ascq: u8) -> Failure {
    Failure::Sense { key, asc, ascq }
}

/// A world as the suite's name says; `world_workers` has this suite as well.
fn world() -> Builder {
    World::of_suite(env!("CARGO_CRATE_NAME"))
}

/// A driver that wants to hear of everything, as Linux's does.
fn shape() -> Shape {
    Shape {
        features: VERSION_1 | INDIRECT_DESC | EVENT_IDX | feature::HOTPLUG | feature::CHANGE,
        ..Shape::default()
    }
}

/// A tenant of HBA `hba` that has met the unit attentions after power on.
fn tenant_of(world: &World, hba: usize) -> Tenant {
    tenant_like(world, hba, shape())
}

fn tenant_like(world: &World, hba: usize, shape: Shape) -> Tenant {
    let mut tenant = world.tenant_of(hba, shape);
    let luns = tenant.initiator().report_luns().unwrap();
    for lun in luns {
        tenant.initiator().ready(lun).unwrap();
    }
    tenant
}

fn gated() -> Lun {
    Lun::file(MIB).gated()
}

/// Sends a READ(10) of one block that hangs.
fn hanging_read(gate: &Gate, initiator: &mut Initiator, lun: u16) -> Task {
    let before = gate.waiting();
    let task = initiator.submit(&Command::new(lun, &read10(0, 1)).data_in(BLOCK));
    eventually("the read is at the disk", || gate.waiting() > before);
    task
}

/// The response of a command that was sent.
fn response_of(initiator: &mut Initiator, task: Task) -> u8 {
    let outcome = initiator.wait_for(task, PATIENCE).unwrap();
    outcome.response.response
}

/// What the next command to a LUN meets.
fn next_of(initiator: &mut Initiator, lun: u16) -> Result<Vec<u8>, Failure> {
    let ready = Command::new(lun, &[0; 6]);
    initiator.command(&ready).unwrap().good()
}

/// Whether nobody wrote to the data-in buffers of a command.
fn untouched(tenant: &Tenant, room: &[(u64, usize)]) -> bool {
    room.iter()
        .all(|&(gpa, len)| tenant.memory().read(gpa, len) == vec![POISON; len])
}

fn removed(lun: [u8; 8]) -> Option<Event> {
    Some(Event {
        event: event::TRANSPORT_RESET,
        lun,
        reason: event::REMOVED,
    })
}

fn rescan(lun: [u8; 8]) -> Option<Event> {
    Some(Event {
        event: event::TRANSPORT_RESET,
        lun,
        reason: event::RESCAN,
    })
}

// --- Task management -------------------------------------------------------------------------

#[test]
fn an_aborted_read_is_answered_at_once_and_its_buffer_is_never_written_again() {
    let world = world().lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    gate.close();
    let task = hanging_read(&gate, tenant.initiator(), 0);
    let room = tenant.initiator().room_of(task);
    assert_eq!(room.len(), 1);

    let answer = tenant.task_management(ABORT_TASK, address(0), task.tag());

    assert_eq!(answer, FUNCTION_COMPLETE);
    // The command was back before the answer was.
    let outcome = tenant.initiator().wait_for(task, A_WHILE).unwrap();
    assert_eq!(outcome.response.response, response::ABORTED);
    gate.let_read(&[0x11; BLOCK]);
    thread::sleep(A_WHILE);
    assert!(untouched(&tenant, &room));
    gate.open();
    tenant.initiator().read(0, 0, 1).unwrap();
}

#[test]
fn an_aborted_write_is_answered_at_once_though_its_disk_hangs() {
    let world = world().lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    gate.close();
    let write = Command::new(0, &write10(0, 1)).data_out(&[0x11; BLOCK]);
    let task = tenant.initiator().submit(&write);
    eventually("the write is at the disk", || gate.waiting() > 0);

    let answer = tenant.task_management(ABORT_TASK, address(0), task.tag());

    assert_eq!(answer, FUNCTION_COMPLETE);
    assert_eq!(response_of(tenant.initiator(), task), response::ABORTED);
    gate.let_write();
}

/// Sends a write to block 0 that hangs, and has another one there that the kernel does not let go
/// of until what is returned is dropped, as if it had been given up.
fn writes_that_hang(gate: &Gate, initiator: &mut Initiator) -> (Task, impl Sized + use<>) {
    gate.close();
    let write = Command::new(0, &write10(0, 1)).data_out(&[0x11; BLOCK]);
    let task = initiator.submit(&write);
    eventually("the write is at the disk", || gate.waiting() > 0);
    gate.open();
    (task, gate.leave_write())
}

#[test]
fn a_function_is_answered_when_nothing_of_what_it_ended_can_land_any_more() {
    for (function, ended) in [
        (ABORT_TASK, response::ABORTED),
        (ABORT_TASK_SET, response::ABORTED),
        (CLEAR_TASK_SET, response::ABORTED),
        (LOGICAL_UNIT_RESET, response::RESET),
        (I_T_NEXUS_RESET, response::RESET),
    ] {
        let world = world().lun(gated()).start();
        let mut tenant = tenant_of(&world, 0);
        let (task, left) = writes_that_hang(&world.gate(0), tenant.initiator());

        let at = tenant.send_function(function, address(0), task.tag());

        // The command is back at once, but one like it may land as long as the kernel is at it.
        assert_eq!(response_of(tenant.initiator(), task), ended);
        assert_eq!(tenant.function_answer(at, A_WHILE), None, "{function}");
        drop(left);
        let answer = tenant.function_answer(at, PATIENCE);
        assert_eq!(answer, FUNCTION_COMPLETE, "{function}");
        let _ = next_of(tenant.initiator(), 0);
        tenant.initiator().write(0, 0, &[0x22; BLOCK]).unwrap();
    }
}

#[test]
fn a_function_on_a_disk_that_never_lets_go_fails_in_time_and_others_write_then() {
    for function in [ABORT_TASK, LOGICAL_UNIT_RESET] {
        let world = world().lun(gated().timeout(1)).start();
        let mut tenant = tenant_of(&world, 0);
        let (task, left) = writes_that_hang(&world.gate(0), tenant.initiator());

        let answer = tenant.task_management(function, address(0), task.tag());

        assert_eq!(answer, Some(response::TARGET_FAILURE));
        assert_ne!(response_of(tenant.initiator(), task), response::OK);
        let _ = next_of(tenant.initiator(), 0);
        tenant.initiator().write(0, 8, &[0x22; BLOCK]).unwrap();
        // Repeated, it is carried out.
        drop(left);
        let answer = tenant.task_management(function, address(0), task.tag());
        assert_eq!(answer, FUNCTION_COMPLETE);
    }
}

#[test]
fn an_aborted_read_does_not_wait_for_a_write_that_hangs() {
    let world = world().lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    let left = gate.leave_write();
    gate.close();
    let task = hanging_read(&gate, tenant.initiator(), 0);

    let at = tenant.send_function(ABORT_TASK, address(0), task.tag());

    assert_eq!(tenant.function_answer(at, A_WHILE * 20), FUNCTION_COMPLETE);
    drop(left);
}

#[test]
fn what_a_driver_left_at_a_disk_has_landed_before_the_next_one_begins() {
    let world = world().lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    gate.close();
    let write = Command::new(0, &write10(0, 1)).data_out(&[0x11; BLOCK]);
    let _task = tenant.initiator().submit(&write);
    eventually("the write is at the disk", || gate.waiting() > 0);
    gate.open();
    let (began, has_begun) = mpsc::channel();
    let left = thread::spawn(move || {
        let left = gate.leave_write();
        began.send(()).unwrap();
        thread::sleep(A_WHILE * 10);
        let over = Instant::now();
        drop(left);
        over
    });
    has_begun.recv().unwrap();

    tenant.disconnect();
    let _next = tenant_of(&world, 0);

    let begun = Instant::now();
    assert!(begun > left.join().unwrap());
}

#[test]
fn a_device_reset_forgets_the_functions_that_wait_and_lets_others_write() {
    let world = world()
        .lun(gated().shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let (mut tenant, mut other) = (tenant_of(&world, 0), tenant_of(&world, 1));
    let (task, left) = writes_that_hang(&world.gate(0), tenant.initiator());
    let at = tenant.send_function(LOGICAL_UNIT_RESET, address(0), task.tag());
    assert_eq!(tenant.function_answer(at, A_WHILE), None);

    tenant.disconnect();

    let _ = next_of(other.initiator(), 0);
    other.initiator().write(0, 8, &[0x22; BLOCK]).unwrap();
    drop(left);
}

#[test]
fn a_function_finds_every_command_that_was_sent_before_it() {
    let mut world = world().lun(gated()).start();
    let shape = Shape {
        queues: 4,
        ..shape()
    };
    let mut tenant = tenant_like(&world, 0, shape);
    let gate = world.gate(0);
    world.stop_appliance();
    // More than are fetched from a ring at a time.
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let mut tasks = Vec::new();
    for queue in &mut tenant.queues {
        tasks.push((0..100).map(|_| queue.submit(&read)).collect::<Vec<_>>());
    }
    let reset = tenant.send_function(LOGICAL_UNIT_RESET, address(0), 0);
    gate.close();

    world.start_appliance();

    assert_eq!(tenant.function_answer(reset, PATIENCE), FUNCTION_COMPLETE);
    for (queue, tasks) in tenant.queues.iter_mut().zip(tasks) {
        // They were back before.
        assert_eq!(queue.ring.used_index(), queue.ring.avail_index());
        for task in tasks {
            let end = queue.wait_for(task, PATIENCE).unwrap().good().unwrap_err();
            let attention = matches!(end, Failure::Sense { key: 6, .. });
            assert!(
                attention || end == Failure::Response(response::RESET),
                "{end}"
            );
        }
    }
}

#[test]
fn commands_for_which_there_is_no_room_before_a_function_are_busy_and_it_gets_through() {
    let mut world = world().lun(gated()).start();
    // Each has half of the queues if there are two.
    let workers = world.workers();
    let shape = Shape {
        queues: 8,
        ring_size: if workers == 1 { 256 } else { 512 },
        memory: vec![(0, 64 * MIB)],
        ..shape()
    };
    let mut tenant = tenant_like(&world, 0, shape);
    let gate = world.gate(0);
    world.stop_appliance();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let mut tasks = Vec::new();
    // 1200 for each worker, where 1024 are the most that it has under way.
    for queue in &mut tenant.queues {
        tasks.push(
            (0..150 * workers)
                .map(|_| queue.submit(&read))
                .collect::<Vec<_>>(),
        );
    }
    let query = tenant.send_function(QUERY_TASK, address(0), tasks[5][60].tag());
    gate.close();

    world.start_appliance();

    assert_eq!(tenant.function_answer(query, PATIENCE), FUNCTION_SUCCEEDED);
    let reset = tenant.task_management(LOGICAL_UNIT_RESET, address(0), 0);
    assert_eq!(reset, FUNCTION_COMPLETE);
    let mut busy = 0;
    for (queue, tasks) in tenant.queues.iter_mut().zip(tasks) {
        for task in tasks {
            match queue.wait_for(task, PATIENCE).unwrap().good().unwrap_err() {
                Failure::Status(0x08) => busy += 1,
                Failure::Sense { key: 6, .. } | Failure::Response(response::RESET) => {}
                other => panic!("{other}"),
            }
        }
    }
    // One met the unit attention after power on.
    assert_eq!(busy, workers * (1200 - 1024) - 1);
}

#[test]
fn an_abort_ends_its_task_and_no_other() {
    let world = world().lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    gate.close();
    let first = hanging_read(&gate, tenant.initiator(), 0);
    let second = hanging_read(&gate, tenant.initiator(), 0);

    let nothing = tenant.task_management(ABORT_TASK, address(0), 12345);
    let answer = tenant.task_management(ABORT_TASK, address(0), first.tag());

    assert_eq!((nothing, answer), (FUNCTION_COMPLETE, FUNCTION_COMPLETE));
    assert_eq!(response_of(tenant.initiator(), first), response::ABORTED);
    gate.let_read(&[0x22; BLOCK]);
    let outcome = tenant.initiator().wait_for(second, PATIENCE).unwrap();
    assert_eq!(outcome.good().unwrap(), [0x22; BLOCK]);
}

#[test]
fn functions_on_a_task_set_end_all_of_it_and_resets_are_told() {
    for (function, ended, next) in [
        (ABORT_TASK_SET, response::ABORTED, Ok(Vec::new())),
        (CLEAR_TASK_SET, response::ABORTED, Ok(Vec::new())),
        (LOGICAL_UNIT_RESET, response::RESET, Err(DEVICE_RESET)),
        (I_T_NEXUS_RESET, response::RESET, Err(NEXUS_LOSS)),
    ] {
        let world = world().lun(gated()).lun(Lun::file(MIB)).start();
        let mut tenant = tenant_of(&world, 0);
        let gate = world.gate(0);
        gate.close();
        let tasks: Vec<_> = (0..5)
            .map(|_| hanging_read(&gate, tenant.initiator(), 0))
            .collect();

        let answer = tenant.task_management(function, address(0), 0);

        assert_eq!(answer, FUNCTION_COMPLETE, "function {function}");
        for task in tasks {
            assert_eq!(response_of(tenant.initiator(), task), ended);
        }
        assert_eq!(next_of(tenant.initiator(), 0), next, "function {function}");
        assert_eq!(next_of(tenant.initiator(), 0), Ok(Vec::new()));
        // Of the other units only those that share the nexus hear of it.
        let other = if function == I_T_NEXUS_RESET {
            Err(NEXUS_LOSS)
        } else {
            Ok(Vec::new())
        };
        assert_eq!(next_of(tenant.initiator(), 1), other, "function {function}");
    }
}

#[test]
fn a_reset_of_a_unit_without_commands_leaves_those_of_others_alone() {
    let world = world().lun(gated()).lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    gate.close();
    let task = hanging_read(&gate, tenant.initiator(), 0);

    let answer = tenant.task_management(LOGICAL_UNIT_RESET, address(1), 0);

    assert_eq!(answer, FUNCTION_COMPLETE);
    gate.let_read(&[0x33; BLOCK]);
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    assert_eq!(outcome.good().unwrap(), [0x33; BLOCK]);
}

#[test]
fn queries_tell_whether_a_task_is_there() {
    let world = world().lun(gated()).lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    let query = |tenant: &mut Tenant, lun, tag| {
        [
            tenant.task_management(QUERY_TASK, address(lun), tag),
            tenant.task_management(QUERY_TASK_SET, address(lun), 0),
        ]
    };
    assert_eq!(query(&mut tenant, 0, 1), [FUNCTION_COMPLETE; 2]);
    gate.close();
    let task = hanging_read(&gate, tenant.initiator(), 0);

    assert_eq!(query(&mut tenant, 0, task.tag()), [FUNCTION_SUCCEEDED; 2]);
    assert_eq!(
        query(&mut tenant, 0, task.tag() + 1),
        [FUNCTION_COMPLETE, FUNCTION_SUCCEEDED]
    );
    assert_eq!(query(&mut tenant, 1, task.tag()), [FUNCTION_COMPLETE; 2]);

    gate.let_read(&[0; BLOCK]);
    assert_eq!(response_of(tenant.initiator(), task), response::OK);
    assert_eq!(query(&mut tenant, 0, task.tag()), [FUNCTION_COMPLETE; 2]);
}

#[test]
fn functions_that_there_are_not_and_units_that_there_are_not_are_told_apart() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);
    assert_eq!(
        tenant.task_management(CLEAR_ACA, address(0), 0),
        FUNCTION_COMPLETE
    );
    for function in [8, u32::MAX] {
        let answer = tenant.task_management(function, address(0), 0);
        assert_eq!(answer, FUNCTION_REJECTED);
    }
    for function in [ABORT_TASK, ABORT_TASK_SET, LOGICAL_UNIT_RESET, QUERY_TASK] {
        let no_unit = tenant.task_management(function, address(7), 0);
        let no_target = tenant.task_management(function, address_at(9, 0), 0);
        assert_eq!(no_unit, Some(response::INCORRECT_LUN));
        assert_eq!(no_target, Some(response::BAD_TARGET));
    }
}

#[test]
fn a_task_behind_a_hanging_one_is_back_when_that_is_aborted() {
    let world = world().lun(gated()).lun(Lun::file(MIB)).start();
    // Without in-flight memory, so that there is a behind.
    let mut shape = shape();
    shape.protocol &= !protocol::INFLIGHT_SHMFD;
    let mut tenant = tenant_like(&world, 0, shape);
    let gate = world.gate(0);
    gate.close();
    let hangs = hanging_read(&gate, tenant.initiator(), 0);
    let read = Command::new(1, &read10(0, 1)).data_in(BLOCK);
    let behind = tenant.initiator().submit(&read);
    assert_eq!(
        tenant.initiator().wait_for(behind, A_WHILE).err(),
        Some(Failure::Timeout)
    );

    let answer = tenant.task_management(ABORT_TASK, address(0), hangs.tag());

    assert_eq!(answer, FUNCTION_COMPLETE);
    let outcome = tenant.initiator().wait_for(behind, PATIENCE).unwrap();
    assert_eq!(outcome.good().unwrap(), [0; BLOCK]);
}

#[test]
fn a_device_reset_in_the_middle_of_reads_leaves_memory_alone_from_then_on() {
    let world = world().lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    gate.close();
    let mut room = Vec::new();
    for _ in 0..4 {
        let task = hanging_read(&gate, tenant.initiator(), 0);
        room.extend(tenant.initiator().room_of(task));
    }
    let reader = thread::spawn({
        let gate = gate.clone();
        move || {
            // Once the reset is under way, or the ring would have to wait for the disk.
            thread::sleep(A_WHILE);
            gate.let_read(&[0x44; 4 * BLOCK]);
        }
    });

    // The ring stops when the reads are over; what they read is the tenant's.
    tenant.reset().unwrap();
    reader.join().unwrap();
    for &(gpa, len) in &room {
        tenant.memory().write(gpa, &vec![POISON; len]);
    }

    gate.let_read(&[0x55; 4 * BLOCK]);
    thread::sleep(A_WHILE);
    assert!(untouched(&tenant, &room));
    gate.open();
    tenant.start().unwrap();
    tenant.initiator().read(0, 0, 1).unwrap();
}

// --- Two initiators --------------------------------------------------------------------------

/// Two HBAs that see the same gated LUN 0, and its gate, which is closed.
fn two_initiators() -> (World, Tenant, Tenant) {
    let world = world()
        .lun(gated().shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let (one, other) = (tenant_of(&world, 0), tenant_of(&world, 1));
    world.gate(0).close();
    (world, one, other)
}

#[test]
fn a_unit_reset_ends_the_commands_of_every_initiator_and_all_are_told() {
    let (world, mut one, mut other) = two_initiators();
    let gate = world.gate(0);
    let task = hanging_read(&gate, other.initiator(), 0);
    let room = other.initiator().room_of(task);

    let answer = one.task_management(LOGICAL_UNIT_RESET, address(0), 0);

    assert_eq!(answer, FUNCTION_COMPLETE);
    // It was back before the reset was complete.
    let outcome = other.initiator().wait_for(task, A_WHILE).unwrap();
    assert_eq!(outcome.response.response, response::RESET);
    gate.let_read(&[0x66; BLOCK]);
    thread::sleep(A_WHILE);
    assert!(untouched(&other, &room));
    assert_eq!(next_of(other.initiator(), 0), Err(DEVICE_RESET));
    assert_eq!(next_of(one.initiator(), 0), Err(DEVICE_RESET));
}

#[test]
fn a_task_set_is_cleared_for_every_initiator_and_those_who_lost_commands_are_told() {
    let (world, mut one, mut other) = two_initiators();
    let gate = world.gate(0);
    let mine = hanging_read(&gate, one.initiator(), 0);
    let theirs = hanging_read(&gate, other.initiator(), 0);

    let answer = one.task_management(CLEAR_TASK_SET, address(0), 0);

    assert_eq!(answer, FUNCTION_COMPLETE);
    assert_eq!(response_of(one.initiator(), mine), response::ABORTED);
    assert_eq!(response_of(other.initiator(), theirs), response::ABORTED);
    assert_eq!(next_of(other.initiator(), 0), Err(COMMANDS_CLEARED));
    assert_eq!(next_of(one.initiator(), 0), Ok(Vec::new()));

    // Nobody lost anything now.
    let answer = one.task_management(CLEAR_TASK_SET, address(0), 0);
    assert_eq!(answer, FUNCTION_COMPLETE);
    assert_eq!(next_of(other.initiator(), 0), Ok(Vec::new()));
}

#[test]
fn what_is_about_one_nexus_leaves_the_other_alone() {
    for function in [ABORT_TASK_SET, I_T_NEXUS_RESET] {
        let (world, mut one, mut other) = two_initiators();
        let gate = world.gate(0);
        let mine = hanging_read(&gate, one.initiator(), 0);
        let theirs = hanging_read(&gate, other.initiator(), 0);

        let answer = one.task_management(function, address(0), 0);

        assert_eq!(answer, FUNCTION_COMPLETE, "function {function}");
        assert_ne!(response_of(one.initiator(), mine), response::OK);
        gate.let_read(&[0x77; BLOCK]);
        let outcome = other.initiator().wait_for(theirs, PATIENCE).unwrap();
        assert_eq!(outcome.good().unwrap(), [0x77; BLOCK]);
        assert_eq!(next_of(other.initiator(), 0), Ok(Vec::new()));
    }
}

#[test]
fn tags_of_another_initiator_are_not_mine() {
    let (world, mut one, mut other) = two_initiators();
    let gate = world.gate(0);
    let theirs = hanging_read(&gate, other.initiator(), 0);

    assert_eq!(
        one.task_management(QUERY_TASK, address(0), theirs.tag()),
        FUNCTION_COMPLETE
    );
    assert_eq!(
        one.task_management(ABORT_TASK, address(0), theirs.tag()),
        FUNCTION_COMPLETE
    );
    gate.let_read(&[0x88; BLOCK]);
    assert_eq!(response_of(other.initiator(), theirs), response::OK);
}

#[test]
fn a_reset_by_one_initiator_survives_that_the_other_leaves() {
    let (world, mut one, mut other) = two_initiators();
    let gate = world.gate(0);
    let _lost = hanging_read(&gate, other.initiator(), 0);
    let at = one.send_function(LOGICAL_UNIT_RESET, address(0), 0);
    other.disconnect();
    assert_eq!(one.function_answer(at, PATIENCE), FUNCTION_COMPLETE);
    assert_eq!(next_of(one.initiator(), 0), Err(DEVICE_RESET));
}

// --- Deadlines -------------------------------------------------------------------------------

#[test]
fn a_command_that_takes_too_long_is_answered_and_those_behind_it_go_on() {
    let world = world().lun(gated().timeout(1)).lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    gate.close();
    let start = Instant::now();
    let slow = hanging_read(&gate, tenant.initiator(), 0);
    let room = tenant.initiator().room_of(slow);
    let read = Command::new(1, &read10(0, 1)).data_in(BLOCK);
    let behind = tenant.initiator().submit(&read);

    let outcome = tenant.initiator().wait_for(slow, PATIENCE).unwrap();

    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(outcome.response.residual as usize, BLOCK);
    assert_eq!(outcome.good(), Err(COMMAND_TIMEOUT));
    let outcome = tenant.initiator().wait_for(behind, PATIENCE).unwrap();
    assert_eq!(outcome.good().unwrap(), [0; BLOCK]);
    gate.let_read(&[0x99; BLOCK]);
    thread::sleep(A_WHILE);
    assert!(untouched(&tenant, &room));
    gate.open();
    tenant.initiator().read(0, 0, 1).unwrap();
}

// --- Addresses -------------------------------------------------------------------------------

#[test]
fn targets_and_luns_are_reached_at_the_ends_of_their_ranges() {
    let world = world()
        .lun(Lun::file(MIB))
        .lun_at(0, 255, Lun::file(2 * MIB))
        .lun_at(1, 256, Lun::file(3 * MIB))
        .lun_at(255, 16383, Lun::file(4 * MIB))
        .start();
    let mut tenant = world.tenant();
    let initiator = tenant.initiator();
    let mut capacity = [0; 16];
    (capacity[0], capacity[1], capacity[13]) = (0x9e, 0x10, 32);
    let mut last_block = |lun: [u8; 8]| {
        let command = Command::new(0, &capacity).data_in(32).at(lun);
        let data = initiator.run(&command)?;
        Ok(u64::from_be_bytes(data[0..8].try_into().unwrap()))
    };

    // SAM-5: flat space addressing 01b, peripheral device addressing 00b with bus 0.
    assert_eq!(last_block([1, 0, 0x40, 0, 0, 0, 0, 0]), Ok(2047));
    assert_eq!(last_block([1, 0, 0, 0, 0, 0, 0, 0]), Ok(2047));
    assert_eq!(last_block([1, 0, 0x40, 255, 0, 0, 0, 0]), Ok(4095));
    assert_eq!(last_block([1, 0, 0, 255, 0, 0, 0, 0]), Ok(4095));
    assert_eq!(last_block([1, 1, 0x41, 0, 0, 0, 0, 0]), Ok(6143));
    assert_eq!(last_block([1, 255, 0x7f, 0xff, 0, 0, 0, 0]), Ok(8191));
    // Bus 1 of peripheral device addressing is not LUN 256.
    assert_eq!(last_block([1, 1, 1, 0, 0, 0, 0, 0]), Err(NO_UNIT));
    assert_eq!(
        last_block([1, 254, 0, 0, 0, 0, 0, 0]),
        Err(Failure::Response(response::BAD_TARGET))
    );
}

#[test]
fn two_hundred_and_fifty_six_targets_carry_verified_io() {
    let world = (0..=255)
        .fold(world(), |world, target| {
            world.lun_at(target, 0, Lun::file(4096))
        })
        .start();
    let mut tenant = world.tenant();
    for target in 0..=255 {
        let write = Command::new(0, &write10(0, 1)).data_out(&[target; BLOCK]);
        let write = write.at(address_at(target, 0));
        tenant.initiator().run(&write).unwrap();
    }
    for target in 0..=255 {
        let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
        let read = read.at(address_at(target, 0));
        assert_eq!(tenant.initiator().run(&read).unwrap(), [target; BLOCK]);
    }
}

#[test]
fn a_command_with_data_both_ways_fails_unless_that_was_negotiated() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);
    let both = Command::new(0, &read10(0, 1))
        .data_in(BLOCK)
        .data_out(&[0; BLOCK]);
    let outcome = tenant.initiator().command(&both).unwrap();
    assert_eq!(outcome.response.response, response::FAILURE);
    assert_eq!(outcome.data, [POISON; BLOCK]);
}

// --- Logical units that come, go and change --------------------------------------------------

#[test]
fn a_lun_that_is_added_is_told_and_used_without_a_rescan() {
    let mut world = world().lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);

    world.add_lun(0, 0, 300, Lun::file(2 * MIB)).unwrap();

    // In the form of REPORT LUNS.
    assert_eq!(tenant.next_event(), rescan([1, 0, 0x41, 0x2c, 0, 0, 0, 0]));
    assert_eq!(next_of(tenant.initiator(), 0), Err(REPORTED_LUNS_CHANGED));
    assert_eq!(tenant.initiator().report_luns().unwrap(), [0, 300]);
    assert_eq!(tenant.initiator().capacity(300).unwrap(), (4096, 512));
    tenant.initiator().write(300, 0, &[0x12; BLOCK]).unwrap();
    assert_eq!(world.image(1, 0, BLOCK), [0x12; BLOCK]);
}

#[test]
fn a_target_that_is_added_is_told() {
    let mut world = world().lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);

    world.add_lun(0, 7, 0, Lun::file(MIB)).unwrap();

    assert_eq!(tenant.next_event(), rescan([1, 7, 0, 0, 0, 0, 0, 0]));
    let ready = Command::new(0, &[0; 6]).at(address_at(7, 0));
    tenant.initiator().run(&ready).unwrap();
    // The inventory of target 0 is what it was.
    assert_eq!(next_of(tenant.initiator(), 0), Ok(Vec::new()));
}

#[test]
fn a_lun_that_is_removed_answers_what_is_under_way_and_is_closed() {
    let mut world = world().lun(Lun::file(MIB)).lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(1);
    gate.close();
    let task = hanging_read(&gate, tenant.initiator(), 1);
    let room = tenant.initiator().room_of(task);

    world.remove_lun(0, 0, 1).unwrap();

    assert_eq!(tenant.next_event(), removed([1, 0, 0, 1, 0, 0, 0, 0]));
    // The command was back before the event was sent.
    let outcome = tenant.initiator().wait_for(task, A_WHILE).unwrap();
    assert_eq!(outcome.good(), Err(NO_UNIT));
    gate.let_read(&[0x23; BLOCK]);
    thread::sleep(A_WHILE);
    assert!(untouched(&tenant, &room));
    assert_eq!(tenant.initiator().read(1, 0, 1), Err(NO_UNIT));
    assert_eq!(next_of(tenant.initiator(), 0), Err(REPORTED_LUNS_CHANGED));
    assert_eq!(
        tenant.task_management(LOGICAL_UNIT_RESET, address(1), 0),
        Some(response::INCORRECT_LUN)
    );
    // Its disk is free: it can be opened again, alone.
    gate.open();
    eventually("the disk is free", || world.show_lun(0, 0, 1, 1).is_ok());
    assert_eq!(tenant.next_event(), rescan([1, 0, 0, 1, 0, 0, 0, 0]));
    tenant.initiator().read(1, 0, 1).unwrap();
}

#[test]
fn a_lun_that_takes_the_place_of_another_is_told_after_that_has_gone() {
    let mut world = world().lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    world.gate(0).close();
    let task = hanging_read(&world.gate(0), tenant.initiator(), 0);

    world.add_lun(0, 0, 0, Lun::file(3 * MIB)).unwrap();

    assert_eq!(tenant.next_event(), removed([1, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(tenant.next_event(), rescan([1, 0, 0, 0, 0, 0, 0, 0]));
    let outcome = tenant.initiator().wait_for(task, A_WHILE).unwrap();
    assert_eq!(outcome.good(), Err(NO_UNIT));
    assert_eq!(tenant.initiator().capacity(0).unwrap(), (6144, 512));
}

/// Tells a thread to stop when it is dropped, so that a failed assertion is not waited upon.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes and reads back on a queue until told to stop, without any error; returns how often.
fn busy(initiator: &mut Initiator, stop: &AtomicBool) -> u32 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let data = [u8::try_from(rounds % 251).unwrap(); 4 * BLOCK];
        let lba = rounds % 64;
        initiator.write(0, lba * 4, &data).unwrap();
        assert_eq!(initiator.read(0, lba * 4, 4).unwrap(), data);
        rounds += 1;
    }
    rounds
}

#[test]
fn luns_come_go_and_change_under_io_on_another_which_does_not_notice() {
    let mut world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_of(
        0,
        Shape {
            queues: 2,
            ..shape()
        },
    );
    tenant.initiator().ready(0).unwrap();
    let mut queue = tenant.queues.pop().unwrap();
    let stop = AtomicBool::new(false);

    let rounds = thread::scope(|scope| {
        let io = scope.spawn(|| busy(&mut queue, &stop));
        let stop = StopOnDrop(&stop);
        for round in 0..8 {
            let lun = 1 + round;
            let field = [1, 0, 0, u8::try_from(lun).unwrap(), 0, 0, 0, 0];
            let index = world.add_lun(0, 0, lun, gated()).unwrap();
            assert_eq!(tenant.next_event(), rescan(field));
            tenant.initiator().read(lun, 0, 1).unwrap();
            if round == 0 {
                world.resize(index, 2 * MIB);
                let event = tenant.next_event().unwrap();
                assert_eq!((event.event, event.lun), (event::PARAM_CHANGE, field));
                assert_eq!(tenant.initiator().capacity(lun).unwrap(), (4096, 512));
            }
            world.remove_lun(0, 0, lun).unwrap();
            assert_eq!(tenant.next_event(), removed(field));
        }
        drop(stop);
        io.join().unwrap()
    });

    assert!(rounds > 0);
    tenant.queues.push(queue);
    assert_eq!(tenant.initiator().report_luns().unwrap(), [0]);
}

#[test]
fn a_lun_that_grows_is_told_and_used() {
    let world = world().lun(gated()).start();
    let mut tenant = tenant_of(&world, 0);
    assert!(tenant.initiator().read(0, 2048, 1).is_err());

    world.resize(0, 2 * MIB);

    assert_eq!(
        tenant.next_event(),
        Some(Event {
            event: event::PARAM_CHANGE,
            lun: [1, 0, 0, 0, 0, 0, 0, 0],
            reason: 0x092a,
        })
    );
    assert_eq!(next_of(tenant.initiator(), 0), Err(CAPACITY_CHANGED));
    assert_eq!(tenant.initiator().capacity(0).unwrap(), (4096, 512));
    tenant.initiator().write(0, 4095, &[0x34; BLOCK]).unwrap();
    assert_eq!(world.image(0, 2 * MIB - 512, BLOCK), [0x34; BLOCK]);
}

#[test]
fn everyone_who_sees_a_lun_hears_that_it_grows() {
    let world = world()
        .lun(gated().shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let mut tenants = [tenant_of(&world, 0), tenant_of(&world, 1)];

    world.resize(0, 2 * MIB);

    for tenant in &mut tenants {
        assert_eq!(tenant.next_event().unwrap().event, event::PARAM_CHANGE);
        assert_eq!(next_of(tenant.initiator(), 0), Err(CAPACITY_CHANGED));
    }
}

#[test]
fn a_driver_that_negotiated_no_events_gets_none_but_meets_the_attentions() {
    let mut world = world().lun(gated()).start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();

    world.add_lun(0, 0, 1, Lun::file(MIB)).unwrap();

    // Without REPORT LUNS, which makes the attention void.
    eventually("the LUN is there", || tenant.initiator().ready(1).is_ok());
    assert_eq!(next_of(tenant.initiator(), 0), Err(REPORTED_LUNS_CHANGED));
    assert_eq!(tenant.take_event(A_WHILE), None);
}

#[test]
fn events_wait_for_buffers_and_those_that_are_too_many_are_missed() {
    let mut world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_not_started(shape());
    tenant.connect().unwrap();
    // Without giving the event queue any buffers.
    tenant.start_rings(0..3).unwrap();
    tenant.initiator().ready(0).unwrap();
    for lun in 1..=66 {
        world.add_lun(0, 0, lun, Lun::file(4096)).unwrap();
    }
    eventually("the LUNs are there", || {
        tenant.initiator().report_luns().unwrap().len() == 67
    });

    for lun in 1..=64 {
        tenant.post_event_buffer(16);
        let event = tenant.take_event(PATIENCE).unwrap();
        let missed = if lun == 1 { event::MISSED } else { 0 };
        assert_eq!(event.event, event::TRANSPORT_RESET | missed);
        assert_eq!(event.lun, [1, 0, 0, lun, 0, 0, 0, 0]);
    }
    tenant.post_event_buffer(16);
    assert_eq!(tenant.take_event(A_WHILE), None);
}

#[test]
fn an_event_buffer_that_is_too_short_comes_back_with_no_event() {
    let mut world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_not_started(shape());
    tenant.connect().unwrap();
    tenant.start_rings(0..3).unwrap();
    tenant.initiator().ready(0).unwrap();
    tenant.post_event_buffer(15);
    tenant.post_event_buffer(16);

    world.add_lun(0, 0, 1, Lun::file(MIB)).unwrap();

    let nothing = tenant.take_event(PATIENCE).unwrap();
    assert_eq!(nothing.event, event::NO_EVENT);
    let event = tenant.take_event(PATIENCE);
    assert_eq!(event, rescan([1, 0, 0, 1, 0, 0, 0, 0]));
}

#[test]
fn a_new_appliance_says_that_events_may_have_been_missed() {
    let mut world = world().lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);

    world.kill_appliance();
    world.start_appliance();

    let event = tenant.next_event().unwrap();
    assert_eq!(event.event, event::NO_EVENT | event::MISSED);
    tenant.initiator().read(0, 0, 1).unwrap();
}

#[test]
fn a_driver_that_was_away_while_luns_came_hears_of_them_or_that_it_missed_events() {
    let mut world = world().lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);
    tenant.disconnect();
    world.add_lun(0, 0, 1, Lun::file(MIB)).unwrap();

    tenant.reconnect().unwrap();

    // The appliance may have told it before it knew that the driver had gone, or have heard of the
    // LUN only when it was back; then it says both.
    let event = tenant.next_event();
    let unflagged = event.map(|event| Event {
        event: event.event & !event::MISSED,
        ..event
    });
    let told = unflagged == rescan([1, 0, 0, 1, 0, 0, 0, 0]);
    let missed = event.is_some_and(|event| event.event == event::NO_EVENT | event::MISSED);
    assert!(told || missed, "{event:?}");
    tenant.initiator().read(1, 0, 1).unwrap();
}

// --- Configurations --------------------------------------------------------------------------

#[test]
fn a_configuration_is_applied_all_of_it_or_nothing() {
    let mut world = world().lun(Lun::file(MIB)).start();
    let mut tenant = tenant_of(&world, 0);
    let missing = "[[lun]]\nname = \"missing\"\npath = \"/does/not/exist\"\n[[hba]]";
    let bad = |from: &str, to: &str| {
        let changed = world.apply_changed(|text| {
            assert!(text.contains(from));
            text.replacen(from, to, 1)
        });
        changed.unwrap_err()
    };

    let error = bad("[[hba]]", missing);
    assert!(
        error.contains("LUN \"missing\"") && error.contains("nothing was"),
        "{error}"
    );
    let error = bad("read_only = false", "read_only = true");
    assert!(error.contains("`read_only` of LUN \"lun0\""), "{error}");
    let error = bad("read_only", "block_size = 4096\nread_only");
    assert!(error.contains("`block_size` of LUN \"lun0\""), "{error}");
    let error = bad("\"world\"", "\"other\"");
    assert!(error.contains("`name` cannot change"), "{error}");
    let error = bad("\"world\"", "1");
    assert!(error.starts_with("world.toml:1: "), "{error}");

    assert_eq!(tenant.take_event(A_WHILE), None);
    assert_eq!(next_of(tenant.initiator(), 0), Ok(Vec::new()));
    world.add_lun(0, 0, 1, Lun::file(MIB)).unwrap();
    assert_eq!(tenant.next_event(), rescan([1, 0, 0, 1, 0, 0, 0, 0]));
}

#[test]
fn an_hba_that_is_removed_is_let_go_and_one_that_is_added_is_attached() {
    let mut world = world()
        .lun(Lun::file(MIB))
        .another_hba()
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = tenant_of(&world, 0);
    let mut other = tenant_of(&world, 1);

    world.hide_hba(0, true).unwrap();

    assert_eq!(tenant.initiator().read(0, 0, 1), Err(Failure::Timeout));
    other.initiator().read(0, 0, 1).unwrap();
    let error = world.attach_error(0).unwrap();
    assert!(error.contains("no [[hba]]"), "{error}");

    world.hide_hba(0, false).unwrap();

    // The read that nobody answered is answered by the HBA's new worker.
    tenant.initiator().read(0, 0, 1).unwrap();
}
