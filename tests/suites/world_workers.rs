//! HBAs with several workers: the suites that hold for one, and what is about several.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

#[path = "world_cluster.rs"]
mod world_cluster;
#[path = "world_coalescing.rs"]
mod world_coalescing;
#[path = "world_control.rs"]
mod world_control;
#[path = "world_copy.rs"]
mod world_copy;
#[path = "world_durability.rs"]
mod world_durability;
#[path = "world_faults.rs"]
mod world_faults;
#[path = "world_hostile.rs"]
mod world_hostile;
#[path = "world_inflight.rs"]
mod world_inflight;
#[path = "world_io.rs"]
mod world_io;
#[path = "world_limits.rs"]
mod world_limits;
#[path = "world_metrics.rs"]
mod world_metrics;
#[path = "world_pages.rs"]
mod world_pages;
#[path = "world_protection.rs"]
mod world_protection;
#[path = "world_session.rs"]
mod world_session;
#[path = "world_target.rs"]
mod world_target;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spec::virtio_scsi::{event, feature, response, task_management as function};
use tests::world::{
    Attach, BLOCK, Command, Failure, Gate, Initiator, Lun, MIB, PATIENCE, Shape, Task, Tenant,
    World, address, eventually, protocol, read10, request,
};

/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);
/// Request queues of a tenant: with two workers each has two, with four one.
const QUEUES: u16 = 4;
/// Answers to task management functions.
const FUNCTION_COMPLETE: Option<u8> = Some(0);
const FUNCTION_SUCCEEDED: Option<u8> = Some(10);

fn shape() -> Shape {
    let shape = Shape::default();
    Shape {
        queues: QUEUES,
        features: shape.features | feature::HOTPLUG | feature::CHANGE,
        ..shape
    }
}

/// A tenant whose LUNs have told what there is to tell.
fn tenant_of(world: &World, hba: usize) -> Tenant {
    let mut tenant = world.tenant_of(hba, shape());
    for lun in tenant.initiator().report_luns().unwrap() {
        tenant.initiator().ready(lun).unwrap();
    }
    tenant
}

/// Both ways to reach an appliance whose HBAs have so many workers.
fn worlds(workers: usize) -> [tests::world::Builder; 2] {
    [Attach::Function, Attach::Socket].map(|attach| World::over(attach).workers(workers))
}

/// Sets a flag when a test is over, whichever way that is.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes and reads back what it has written, in 64 blocks of its own on LUN 0, until told to stop;
/// returns how often.
fn busy(queue: &mut Initiator, place: u32, stop: &AtomicBool) -> u32 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds == 0 {
        let data = [u8::try_from((rounds + 60 * place) % 251).unwrap(); 4 * BLOCK];
        let lba = place * 64 + rounds % 16 * 4;
        queue.write(0, lba, &data).unwrap();
        assert_eq!(queue.read(0, lba, 4).unwrap(), data);
        rounds += 1;
    }
    rounds
}

/// Runs `meanwhile` while every queue of the tenant is [`busy`].
fn under_load(tenant: &mut Tenant, meanwhile: impl FnOnce(&mut Tenant)) {
    let mut queues = std::mem::take(&mut tenant.queues);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = StopOnDrop(&stop);
        for (place, queue) in (0..).zip(&mut queues) {
            let stop = &stop;
            scope.spawn(move || busy(queue, place, stop));
        }
        meanwhile(tenant);
        drop(end);
    });
    tenant.queues = queues;
}

/// Sends a READ(10) of one block of LUN 0 that hangs; tags of the queues differ by `skip`.
fn hanging_read(gate: &Gate, queue: &mut Initiator) -> Task {
    let before = gate.waiting();
    let task = queue.submit(&Command::new(0, &read10(0, 1)).data_in(BLOCK));
    eventually("the read is at the disk", || gate.waiting() > before);
    task
}

/// One hanging read on each queue, each with a tag of its own.
fn hanging_reads(gate: &Gate, tenant: &mut Tenant) -> Vec<Task> {
    gate.open();
    for (place, queue) in tenant.queues.iter_mut().enumerate() {
        // The first has sent some already.
        for _ in 0..5 * place {
            queue.ready(0).unwrap();
        }
    }
    gate.close();
    let queues = tenant.queues.iter_mut();
    queues.map(|queue| hanging_read(gate, queue)).collect()
}

fn response_of(queue: &mut Initiator, task: Task) -> u8 {
    queue.wait_for(task, PATIENCE).unwrap().response.response
}

/// What the next command to LUN 0 on a queue meets.
fn next_of(queue: &mut Initiator) -> Result<Vec<u8>, Failure> {
    queue.command(&Command::new(0, &[0; 6])).unwrap().good()
}

#[test]
fn all_queues_carry_verified_io_on_two_and_on_four_workers() {
    for workers in [2, 4] {
        for world in worlds(workers) {
            let world = world.lun(Lun::file(MIB)).start();
            let mut tenant = tenant_of(&world, 0);
            under_load(&mut tenant, |_| thread::sleep(A_WHILE));
        }
    }
}

#[test]
fn more_workers_than_queues_and_one_vector_for_all_carry_verified_io() {
    for vectors in [1, 2, 4] {
        let world = World::new().workers(8).vectors(vectors);
        let world = world.lun(Lun::file(MIB)).start();
        let mut tenant = tenant_of(&world, 0);
        under_load(&mut tenant, |_| thread::sleep(A_WHILE));
    }
}

#[test]
fn workers_that_poll_carry_verified_io_and_sleep_again() {
    for world in worlds(2) {
        let world = world.poll("100").lun(Lun::file(MIB)).start();
        let mut tenant = tenant_of(&world, 0);
        under_load(&mut tenant, |_| thread::sleep(A_WHILE));
        thread::sleep(A_WHILE);
        under_load(&mut tenant, |_| thread::sleep(A_WHILE));
    }
}

#[test]
fn an_operator_sees_the_workers_with_their_rings_and_what_they_did_together() {
    for world in worlds(2) {
        let world = world.lun(Lun::file(MIB)).start();
        let control = world.control(None);
        let mut operator = control.operator();
        let mut tenant = tenant_of(&world, 0);
        for queue in &mut tenant.queues {
            queue.read(0, 0, 1).unwrap();
        }

        let hbas = operator.call("hbas", &Value::Null).unwrap();

        let workers = hbas[0]["workers"].as_array().unwrap();
        let rings: Vec<_> = workers.iter().map(|worker| &worker["rings"]).collect();
        assert_eq!(rings, [&json!([0, 1, 3, 5]), &json!([2, 4])]);
        assert_eq!(hbas[0]["rings"], 6);
        assert_eq!(hbas[0]["units"].as_array().unwrap().len(), 1);
        let counters = &hbas[0]["units"][0]["counters"];
        assert_eq!(counters["reads"], u64::from(QUEUES) + 1, "and REPORT LUNS");
        let all = json!({ "lun": "lun0", "most": 100 });
        let traced = operator.call("trace", &all).unwrap();
        let read = |traced: &&Value| traced["command"] == "READ(10) lba 0 +1";
        let reads = traced.as_array().unwrap().iter().filter(read);
        assert_eq!(reads.count(), usize::from(QUEUES));
    }
}

#[test]
fn a_unit_attention_is_told_on_one_queue_only() {
    let world = World::new().workers(4).lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_of(0, shape());

    let power_on = next_of(&mut tenant.queues[0]);

    assert!(matches!(
        power_on,
        Err(Failure::Sense {
            key: 6,
            asc: 0x29,
            ..
        })
    ));
    for queue in &mut tenant.queues {
        assert_eq!(next_of(queue), Ok(Vec::new()));
    }
}

#[test]
fn a_function_on_a_unit_ends_its_tasks_on_every_queue_and_is_told_once() {
    for (code, ended, told) in [
        (function::ABORT_TASK_SET, response::ABORTED, None),
        (function::CLEAR_TASK_SET, response::ABORTED, None),
        (function::LOGICAL_UNIT_RESET, response::RESET, Some(0x29)),
        (function::I_T_NEXUS_RESET, response::RESET, Some(0x29)),
    ] {
        for world in worlds(2) {
            let world = world.lun(Lun::file(MIB).gated()).start();
            let mut tenant = tenant_of(&world, 0);
            let gate = world.gate(0);
            let tasks = hanging_reads(&gate, &mut tenant);
            let rooms = tenant.queues.iter().zip(&tasks);
            let rooms: Vec<_> = rooms.map(|(q, task)| q.room_of(*task)).collect();

            let answer = tenant.task_management(code, address(0), 0);

            assert_eq!(answer, FUNCTION_COMPLETE, "function {code}");
            for (queue, task) in tenant.queues.iter_mut().zip(&tasks) {
                // The command was back before the answer was.
                let outcome = queue.wait_for(*task, Duration::ZERO).unwrap();
                assert_eq!(outcome.response.response, ended, "function {code}");
            }
            for _ in &tasks {
                gate.let_read(&[0x11; BLOCK]);
            }
            gate.open();
            thread::sleep(A_WHILE);
            for (at, len) in rooms.into_iter().flatten() {
                let written = tenant.memory().read(at, len).contains(&0x11);
                assert!(!written, "nothing is written there after the answer");
            }
            let first = next_of(&mut tenant.queues[3]);
            match told {
                Some(asc) => assert!(
                    matches!(first, Err(Failure::Sense { key: 6, asc: found, .. }) if found == asc),
                    "function {code}: {first:?}"
                ),
                None => assert_eq!(first, Ok(Vec::new()), "function {code}"),
            }
            for queue in &mut tenant.queues {
                assert_eq!(next_of(queue), Ok(Vec::new()), "function {code}");
            }
        }
    }
}

#[test]
fn an_abort_ends_its_task_on_whichever_queue_and_a_query_finds_it_there() {
    for place in 0..usize::from(QUEUES) {
        let world = World::new().workers(2).lun(Lun::file(MIB).gated()).start();
        let mut tenant = tenant_of(&world, 0);
        let gate = world.gate(0);
        let tasks = hanging_reads(&gate, &mut tenant);
        let tag = tasks[place].tag();
        let query = |tenant: &mut Tenant, tag| {
            tenant.task_management(function::QUERY_TASK, address(0), tag)
        };
        assert_eq!(query(&mut tenant, tag), FUNCTION_SUCCEEDED);
        assert_eq!(query(&mut tenant, 99), FUNCTION_COMPLETE);

        let answer = tenant.task_management(function::ABORT_TASK, address(0), tag);

        assert_eq!(answer, FUNCTION_COMPLETE);
        assert_eq!(query(&mut tenant, tag), FUNCTION_COMPLETE);
        let aborted = response_of(&mut tenant.queues[place], tasks[place]);
        assert_eq!(aborted, response::ABORTED);
        let set = tenant.task_management(function::QUERY_TASK_SET, address(0), 0);
        assert_eq!(set, FUNCTION_SUCCEEDED);
        gate.open();
        for _ in 0..4 {
            gate.let_read(&[0x22; BLOCK]);
        }
        for other in (0..tasks.len()).filter(|other| *other != place) {
            let code = response_of(&mut tenant.queues[other], tasks[other]);
            assert_eq!(code, response::OK);
        }
    }
}

#[test]
fn a_function_finds_what_was_sent_before_it_on_every_queue() {
    let world = World::new().workers(2).lun(Lun::file(MIB).gated()).start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    for _ in 0..20 {
        gate.close();
        let tasks: Vec<_> = tenant
            .queues
            .iter_mut()
            .map(|queue| queue.submit(&Command::new(0, &read10(0, 1)).data_in(BLOCK)))
            .collect();
        let answer = tenant.task_management(function::ABORT_TASK_SET, address(0), 0);
        assert_eq!(answer, FUNCTION_COMPLETE);
        for (queue, task) in tenant.queues.iter_mut().zip(tasks) {
            let outcome = queue.wait_for(task, Duration::ZERO).unwrap();
            assert_eq!(outcome.response.response, response::ABORTED);
        }
        gate.open();
    }
}

#[test]
fn a_reset_ends_what_was_sent_before_it_on_every_queue_and_is_told_to_what_comes_after() {
    for code in [function::LOGICAL_UNIT_RESET, function::I_T_NEXUS_RESET] {
        for world in worlds(2) {
            let world = world.lun(Lun::file(MIB).gated()).start();
            let mut tenant = tenant_of(&world, 0);
            let gate = world.gate(0);
            gate.close();
            let tasks: Vec<_> = tenant
                .queues
                .iter_mut()
                // Without a kick: each worker finds it when it is told of the function.
                .map(|queue| queue.add(&Command::new(0, &read10(0, 1)).data_in(BLOCK)))
                .collect();

            let answer = tenant.task_management(code, address(0), 0);

            assert_eq!(answer, FUNCTION_COMPLETE, "function {code}");
            for (queue, task) in tenant.queues.iter_mut().zip(tasks) {
                let outcome = queue.wait_for(task, Duration::ZERO).unwrap();
                assert_eq!(outcome.response.response, response::RESET);
            }
            gate.open();
            let first = next_of(&mut tenant.queues[0]);
            assert!(
                matches!(
                    first,
                    Err(Failure::Sense {
                        key: 6,
                        asc: 0x29,
                        ..
                    })
                ),
                "function {code}: {first:?}"
            );
            for queue in &mut tenant.queues {
                assert_eq!(next_of(queue), Ok(Vec::new()), "function {code}");
            }
        }
    }
}

#[test]
fn a_task_set_that_another_initiator_clears_is_told_once_whichever_queues_had_commands() {
    let world = World::new()
        .workers(2)
        .lun(Lun::file(MIB).gated().shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let mut mine = tenant_of(&world, 0);
    let mut other = tenant_of(&world, 1);
    let gate = world.gate(0);
    let tasks = hanging_reads(&gate, &mut other);

    let answer = mine.task_management(function::CLEAR_TASK_SET, address(0), 0);

    assert_eq!(answer, FUNCTION_COMPLETE);
    for (queue, task) in other.queues.iter_mut().zip(tasks) {
        assert_eq!(response_of(queue, task), response::ABORTED);
    }
    gate.open();
    let told = next_of(&mut other.queues[1]);
    let cleared = Failure::Sense {
        key: 6,
        asc: 0x2f,
        ascq: 0,
    };
    assert_eq!(told, Err(cleared));
    for queue in &mut other.queues {
        assert_eq!(next_of(queue), Ok(Vec::new()));
    }
    assert_eq!(next_of(&mut mine.queues[0]), Ok(Vec::new()));
}

// covers: VPCI-MEM-7
#[test]
fn memory_comes_and_goes_under_load_on_every_queue() {
    for workers in [2, 4] {
        for attach in [Attach::Function, Attach::Socket] {
            let world = World::over(attach).workers(workers);
            let world = world.lun(Lun::file(MIB)).start();
            let mut tenant = world.tenant_not_started(Shape {
                memory: vec![(0, 16 * MIB), (4 << 30, 4 * MIB)],
                protocol: shape().protocol | protocol::CONFIGURE_MEM_SLOTS,
                ..shape()
            });
            let all = tenant.memory().regions().to_vec();
            tenant.connect().unwrap();
            tenant.start().unwrap();
            tenant.initiator().ready(0).unwrap();
            under_load(&mut tenant, |tenant| {
                for _ in 0..10 {
                    tenant.send_memory(all[..1].to_vec()).unwrap();
                    tenant.send_memory(all.clone()).unwrap();
                }
            });
        }
    }
}

#[test]
fn memory_that_is_taken_away_is_not_written_to_afterwards_whichever_worker_used_it() {
    let world = World::new().workers(2).lun(Lun::file(MIB).gated()).start();
    let mut tenant = world.tenant_not_started(Shape {
        memory: vec![(0, 16 * MIB), (4 << 30, 4 * MIB)],
        ..shape()
    });
    let all = tenant.memory().regions().to_vec();
    tenant.connect().unwrap();
    tenant.start().unwrap();
    tenant.initiator().ready(0).unwrap();
    let gate = world.gate(0);
    gate.close();
    for queue in &mut tenant.queues {
        queue.data_regions = vec![1];
    }
    let tasks: Vec<_> = tenant
        .queues
        .iter_mut()
        .map(|queue| hanging_read(&gate, queue))
        .collect();
    let answered = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Each of them is waited for.
            for left in (0..QUEUES).rev() {
                assert!(!answered.load(Ordering::SeqCst), "{left} are still at work");
                thread::sleep(A_WHILE);
                gate.let_read(&[0x44; BLOCK]);
            }
        });
        let mut frontend = std::mem::take(&mut tenant.queues);
        tenant.send_memory(all[..1].to_vec()).unwrap();
        answered.store(true, Ordering::SeqCst);
        std::mem::swap(&mut tenant.queues, &mut frontend);
    });
    for (queue, task) in tenant.queues.iter_mut().zip(tasks) {
        assert_eq!(queue.wait_for(task, PATIENCE).unwrap().data, [0x44; BLOCK]);
    }
    gate.open();
}

#[test]
fn single_rings_stop_and_start_while_the_others_go_on() {
    for world in worlds(2) {
        let world = world.lun(Lun::file(MIB)).start();
        let mut tenant = tenant_of(&world, 0);
        let mut stopped = tenant.queues.remove(0);
        // The load takes the others from the tenant, so it is given back its first at the end.
        let (ring, stop) = (2, AtomicBool::new(false));
        let mut others = std::mem::take(&mut tenant.queues);
        thread::scope(|scope| {
            let end = StopOnDrop(&stop);
            for (place, queue) in (1..).zip(&mut others) {
                let stop = &stop;
                scope.spawn(move || busy(queue, place, stop));
            }
            for round in 0..20 {
                let data = [round; BLOCK];
                stopped.write(0, 0, &data).unwrap();
                let frontend = tenant.frontend();
                frontend.ask_vring_base(ring).unwrap();
                let base = frontend.vring_base(ring).unwrap();
                assert_eq!(base, u32::from(stopped.ring.avail_index()), "all were done");
                tenant.set_base(ring, base);
                tenant.queues.push(stopped);
                tenant.configure_ring(ring).unwrap();
                let frontend = tenant.frontend();
                let on = request::SET_VRING_ENABLE;
                frontend.set_vring(on, ring, 1).unwrap();
                stopped = tenant.queues.remove(0);
                let call = stopped.ring.call_fd();
                let calls = request::SET_VRING_CALL;
                tenant
                    .frontend()
                    .set_vring_fd(calls, ring, Some(call))
                    .unwrap();
                assert_eq!(stopped.read(0, 0, 1).unwrap(), data);
            }
            drop(end);
        });
    }
}

// covers: VPCI-INF-6, VPCI-INF-7
#[test]
fn an_appliance_killed_under_load_on_every_queue_loses_and_repeats_nothing() {
    for workers in [2, 4] {
        let mut world = World::new().workers(workers);
        world = world.lun(Lun::file(MIB));
        let mut world = world.start();
        let mut tenant = tenant_of(&world, 0);
        under_load_that_is_told(&mut tenant, || {
            for _ in 0..6 {
                thread::sleep(Duration::from_millis(20));
                world.kill_appliance();
                world.start_appliance();
            }
        });
    }
}

/// As [`under_load`], of commands that are repeated where a unit attention says so.
fn under_load_that_is_told(tenant: &mut Tenant, meanwhile: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = StopOnDrop(&stop);
        for (place, queue) in (0..).zip(&mut tenant.queues) {
            let stop = &stop;
            scope.spawn(move || {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    let data = [u8::try_from(rounds % 251).unwrap(); 4 * BLOCK];
                    let lba = place * 64 + rounds % 16 * 4;
                    again(|| queue.write(0, lba, &data)).unwrap();
                    assert_eq!(again(|| queue.read(0, lba, 4)).unwrap(), data);
                    rounds += 1;
                }
            });
        }
        meanwhile();
        drop(end);
    });
}

/// Repeats what a unit attention kept from being done.
fn again<T>(mut what: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match what() {
            Err(Failure::Sense { key: 6, .. }) => {}
            done => return done,
        }
    }
}

#[test]
fn luns_come_and_go_under_load_and_every_queue_finds_them_so() {
    for attach in [Attach::Function, Attach::Socket] {
        let world = World::over(attach).workers(2);
        let mut world = world.lun(Lun::file(MIB)).start();
        let mut tenant = tenant_of(&world, 0);
        // At a socket, a driver that did not reset the device may have missed some.
        while tenant.take_event(A_WHILE).is_some() {}
        let mut spare = tenant.queues.split_off(2);
        under_load(&mut tenant, |tenant| {
            for lun in 1..8 {
                world.add_lun(0, 0, lun, Lun::file(MIB)).unwrap();
                let come = tenant.next_event().unwrap();
                assert_eq!(come.reason, event::RESCAN);
                for queue in &mut spare {
                    again(|| queue.read(lun, 0, 1)).unwrap();
                }
                world.remove_lun(0, 0, lun).unwrap();
                let gone = tenant.next_event().unwrap();
                assert_eq!(gone.reason, event::REMOVED);
                for queue in &mut spare {
                    let gone = again(|| queue.read(lun, 0, 1));
                    assert!(matches!(gone, Err(Failure::Sense { asc: 0x25, .. })));
                    assert_eq!(queue.report_luns().unwrap(), [0]);
                }
            }
        });
    }
}

#[test]
fn commands_of_every_queue_to_a_lun_that_is_removed_are_answered() {
    let mut world = World::new()
        .workers(2)
        .lun(Lun::file(MIB).gated())
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = tenant_of(&world, 0);
    let gate = world.gate(0);
    let tasks = hanging_reads(&gate, &mut tenant);

    world.remove_lun(0, 0, 0).unwrap();

    for (queue, task) in tenant.queues.iter_mut().zip(tasks) {
        let outcome = queue.wait_for(task, PATIENCE).unwrap();
        assert!(matches!(
            outcome.good(),
            Err(Failure::Sense { asc: 0x25, .. })
        ));
    }
    assert_eq!(tenant.next_event().unwrap().reason, event::REMOVED);
    gate.open();
}

#[test]
fn a_device_reset_leaves_nothing_of_any_queue_behind() {
    for world in worlds(2) {
        let world = world.lun(Lun::file(MIB).gated()).start();
        let mut tenant = tenant_of(&world, 0);
        let gate = world.gate(0);
        let tasks = hanging_reads(&gate, &mut tenant);
        let rooms = tenant.queues.iter().zip(tasks);
        let rooms: Vec<_> = rooms.flat_map(|(q, task)| q.room_of(task)).collect();
        tenant.frontend().tell(request::RESET_DEVICE).unwrap();
        // Whatever is asked next is answered after the reset is over.
        tenant.frontend().get(request::GET_FEATURES).unwrap();
        tenant.forget_rings();
        tenant.start().unwrap();
        for &(at, len) in &rooms {
            tenant.memory().write(at, &vec![0; len]);
        }

        for _ in &rooms {
            gate.let_read(&[0x55; BLOCK]);
        }
        gate.open();
        thread::sleep(A_WHILE);

        for (at, len) in rooms {
            assert!(!tenant.memory().read(at, len).contains(&0x55));
        }
        let power_on = next_of(&mut tenant.queues[0]);
        assert!(matches!(
            power_on,
            Err(Failure::Sense {
                key: 6,
                asc: 0x29,
                ..
            })
        ));
        for queue in &mut tenant.queues {
            assert_eq!(next_of(queue), Ok(Vec::new()));
            queue.read(0, 0, 1).unwrap();
        }
    }
}

#[test]
fn a_ring_that_breaks_the_rules_leaves_the_workers_of_the_others_alone() {
    for broken in [0, 1] {
        for world in worlds(2) {
            let world = world.lun(Lun::file(MIB)).start();
            let mut tenant = world.tenant_of(
                0,
                Shape {
                    wants_errors: true,
                    ..shape()
                },
            );
            tenant.initiator().ready(0).unwrap();
            let mut bad = tenant.queues.remove(broken);
            under_load(&mut tenant, |_| {
                // More requests than the ring has entries.
                let index = bad.ring.avail_index();
                bad.ring.write_avail_index(index.wrapping_add(0x4000));
                bad.ring.kick();
                thread::sleep(A_WHILE);
            });
            let ring = u16::try_from(2 + broken).unwrap();
            match world.attach() {
                Attach::Function => assert_eq!(world.function().wait_ring_errors(1).len(), 1),
                Attach::Socket => assert_eq!(tenant.errors(ring, PATIENCE), 1),
            }
            // A reset mends it.
            tenant.queues.insert(broken, bad);
            tenant.reset().unwrap();
            tenant.start().unwrap();
            tenant.initiator().ready(0).unwrap();
            for queue in &mut tenant.queues {
                queue.read(0, 0, 1).unwrap();
            }
        }
    }
}

#[test]
fn what_cannot_change_while_an_hba_is_there_and_cpus_that_are_not_there_are_named() {
    let world = World::new().workers(2).lun(Lun::file(MIB)).start();
    let refused = world.apply_changed(|text| text.replace("workers = 2", "workers = 3"));
    let error = refused.unwrap_err();
    assert!(
        error.contains("`workers` of HBA \"hba0\" cannot change"),
        "{error}"
    );
    let pinned = |cpus: &str| {
        let pin = format!("workers = 2\npin = {cpus}");
        let refused = world.apply_changed(|text| text.replace("workers = 2", &pin));
        refused.unwrap_err()
    };
    let error = pinned("[0, 4095]");
    assert!(
        error.contains("names CPU 4095, on which this program may not run"),
        "{error}"
    );
    let error = pinned("[0]");
    assert!(
        error.contains("names 1 CPUs, but it has 2 workers"),
        "{error}"
    );
}

/// Has reads of a queue under way until the end of `window`; returns how many ended in it.
fn reads_in(queue: &mut Initiator, window: Range<Instant>) -> u32 {
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let mut under_way: VecDeque<_> = (0..4).map(|_| queue.submit(&read)).collect();
    let mut count = 0;
    while let Some(task) = under_way.pop_front() {
        queue.wait_for(task, PATIENCE).unwrap().good().unwrap();
        let now = Instant::now();
        count += u32::from(window.contains(&now));
        if now < window.end {
            under_way.push_back(queue.submit(&read));
        }
    }
    count
}

#[test]
fn a_limit_of_an_hba_is_one_for_all_of_its_workers() {
    for world in worlds(2) {
        let world = world.lun(Lun::file(MIB)).start();
        let limit = json!({ "name": "hba0", "iops": 200 });
        let control = world.control(None);
        control.operator().call("hba.limit", &limit).unwrap();
        let mut tenant = tenant_of(&world, 0);

        // What was saved up is used up before.
        let start = Instant::now() + Duration::from_millis(300);
        let window = start..start + Duration::from_secs(2);
        let counts: Vec<u32> = thread::scope(|scope| {
            let queues = tenant.queues.iter_mut();
            let loads = queues.map(|queue| {
                let window = window.clone();
                scope.spawn(move || reads_in(queue, window))
            });
            let loads: Vec<_> = loads.collect();
            let counts = loads.into_iter().map(|load| load.join().unwrap());
            counts.collect()
        });

        assert!(counts.iter().sum::<u32>() <= 420, "{counts:?}");
        assert!(counts.iter().all(|count| *count >= 20), "{counts:?}");
    }
}

#[test]
fn what_all_workers_counted_is_one_sum_that_goes_on_when_the_hba_is_attached_again() {
    let world = World::new().workers(2).lun(Lun::file(MIB)).start();
    let metrics = world.control(None).metrics();
    for times in [1.0, 2.0] {
        let mut tenant = tenant_of(&world, 0);
        for queue in &mut tenant.queues {
            queue.read(0, 0, 3).unwrap();
        }

        let scrape = metrics.scrape();
        let of = |name: &str, more: &str| {
            let series = format!("vhost_pci_{name}_total{{tenant=\"hba0\"{more}}}");
            scrape.value(&series)
        };
        assert_eq!(of("attachments", ""), times);
        // And REPORT LUNS.
        let reads = of("reads", ",lun=\"lun0\"");
        assert_eq!(reads, times * f64::from(QUEUES + 1));
        for queue in 3..2 + QUEUES {
            let label = format!(",queue=\"{queue}\"");
            assert_eq!(of("queue_requests", &label), times, "queue {queue}");
        }
        drop(tenant);
        eventually("the function is unplugged", || !world.is_plugged(0));
    }
}

#[test]
fn a_reset_is_counted_once_however_many_workers_there_are() {
    let counted = [1, 4].map(|workers| {
        let world = World::new().workers(workers).lun(Lun::file(MIB)).start();
        let metrics = world.control(None).metrics();
        let mut tenant = tenant_of(&world, 0);
        let resets = || {
            let scrape = metrics.scrape();
            scrape.value("vhost_pci_resets_total{tenant=\"hba0\"}")
        };
        let before = resets();
        tenant.reset().unwrap();
        resets() - before
    });
    assert!(counted[0] >= 1.0, "{counted:?}");
    assert_eq!(counted[0], counted[1]);
}
