//! Calls that are held back for a while, so that one tells of more.

use std::time::{Duration, Instant};

use tests::world::{
    Attach, BLOCK, Builder, Command, Gate, Initiator, Lun, MIB, PATIENCE, Shape, Tenant, VERSION_1,
    World, eventually, read10,
};

/// Long enough that a call before its end is no accident.
const DELAY: Duration = Duration::from_secs(1);

/// LUN 0, whose commands can be held up, and LUN 1.
fn worlds(requests: u32) -> [Builder; 2] {
    [Attach::Function, Attach::Socket].map(|attach| {
        World::over(attach)
            .workers_of_suite(env!("CARGO_CRATE_NAME"))
            .lun(Lun::file(MIB).gated())
            .lun(Lun::file(MIB))
            .coalesce(DELAY, requests)
    })
}

fn read(lun: u16) -> Command {
    Command::new(lun, &read10(0, 1)).data_in(BLOCK)
}

/// A tenant with nothing more to be told, whose driver waits for the next call, and with one command
/// that its disk holds up.
fn with_one_in_flight(world: &World, tenant: &mut Tenant) {
    let queue = tenant.initiator();
    queue.ready(0).expect("a unit that is ready");
    queue.ready(1).expect("a unit that is ready");
    hold_one(&world.gate(0), queue);
    queue.ring.drain_calls();
    queue.ring.want_call();
}

fn hold_one(gate: &Gate, queue: &mut Initiator) {
    gate.close();
    let _held = queue.submit(&read(0));
    eventually("the command is at the disk", || gate.waiting() > 0);
    gate.open();
}

/// Sends a command to LUN 1, and waits until its end is to be seen in the used ring.
fn see_one(queue: &mut Initiator) {
    let used = queue.ring.used_index();
    let _quick = queue.submit(&read(1));
    let next = used.wrapping_add(1);
    eventually("it is back", || queue.ring.used_index() == next);
}

#[test]
fn a_call_is_held_back_for_its_time_while_another_command_is_in_flight() {
    for features in [Shape::default().features, VERSION_1] {
        for world in worlds(1024) {
            let world = world.start();
            let mut tenant = world.tenant_like(Shape {
                features,
                ..Shape::default()
            });
            with_one_in_flight(&world, &mut tenant);
            let begin = Instant::now();
            see_one(tenant.initiator());
            eventually("the call comes", || tenant.queues[0].ring.drain_calls() > 0);
            assert!(begin.elapsed() >= DELAY);
        }
    }
}

#[test]
fn the_last_command_in_flight_is_called_for_at_once() {
    for world in worlds(1024) {
        let world = world.start();
        let mut tenant = world.tenant();
        with_one_in_flight(&world, &mut tenant);
        let begin = Instant::now();
        see_one(tenant.initiator());
        world.gate(0).let_read(&[0; BLOCK]);
        eventually("the call comes", || tenant.queues[0].ring.drain_calls() > 0);
        assert!(begin.elapsed() < DELAY);
        // One after the other, none is held back.
        let begin = Instant::now();
        for _ in 0..2 {
            tenant.initiator().ready(1).unwrap();
        }
        assert!(begin.elapsed() < DELAY);
    }
}

#[test]
fn a_call_is_held_back_for_no_more_than_so_many_commands() {
    for world in worlds(3) {
        let world = world.start();
        let mut tenant = world.tenant();
        with_one_in_flight(&world, &mut tenant);
        let begin = Instant::now();
        for _ in 0..2 {
            see_one(tenant.initiator());
        }
        let early = tenant.queues[0].ring.drain_calls();
        assert!(early == 0 || begin.elapsed() >= DELAY);
        see_one(tenant.initiator());
        eventually("the call comes", || {
            early > 0 || tenant.queues[0].ring.drain_calls() > 0
        });
        assert!(begin.elapsed() < DELAY);
    }
}

#[test]
fn no_call_is_lost_whatever_is_in_flight() {
    for world in worlds(4) {
        let world = world.start();
        let mut tenant = world.tenant();
        let queue = tenant.initiator();
        queue.ready(0).unwrap();
        for round in 0..200_u32 {
            let tasks: Vec<_> = (0..=round % 9)
                .map(|n| queue.submit(&read(u16::from(n % 2 == 0))))
                .collect();
            // Each is waited for by its call.
            for task in tasks {
                queue.wait_for(task, PATIENCE).unwrap();
            }
        }
    }
}

#[test]
fn holding_back_ends_while_a_call_is_held_back() {
    for world in worlds(1024) {
        let mut world = world.start();
        let mut tenant = world.tenant();
        with_one_in_flight(&world, &mut tenant);
        let begin = Instant::now();
        see_one(tenant.initiator());
        world.set_coalesce(0, Duration::ZERO, 32).unwrap();
        eventually("the call comes", || tenant.queues[0].ring.drain_calls() > 0);
        assert!(begin.elapsed() < DELAY);
    }
}
