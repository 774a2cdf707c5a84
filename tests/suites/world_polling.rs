//! Workers that look for requests without being kicked, for a while or always.

use std::time::Duration;

use tests::world::{
    Attach, BLOCK, Builder, Command, Failure, Initiator, Lun, MIB, PATIENCE, Shape, Tenant,
    VERSION_1, World, eventually, read10,
};

/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(100);
/// The used ring's flag that asks for no kicks (virtio 1.3 §2.7.8).
const NO_NOTIFY: u16 = 1;

fn worlds(poll: &str) -> [Builder; 2] {
    [Attach::Function, Attach::Socket]
        .map(|attach| World::over(attach).lun(Lun::file(MIB)).poll(poll))
}

/// A tenant without EVENT_IDX, so that the used ring's flags say whether kicks are asked for.
fn tenant_with_flags(world: &World) -> Tenant {
    world.tenant_like(Shape {
        features: VERSION_1,
        ..Shape::default()
    })
}

fn asks_for_kicks(tenant: &Tenant) -> bool {
    let flags: u16 = tenant.memory().load(tenant.queues[0].ring.used());
    flags & NO_NOTIFY == 0
}

/// Reads a block without a kick.
fn read_unkicked(initiator: &mut Initiator, patience: Duration) -> Result<Vec<u8>, Failure> {
    let task = initiator.add(&Command::new(0, &read10(0, 1)).data_in(BLOCK));
    initiator.wait_for(task, patience)?.good()
}

#[test]
fn a_worker_that_always_polls_needs_no_kicks_and_asks_for_none() {
    for world in worlds("\"always\"") {
        let world = world.start();
        let mut tenant = tenant_with_flags(&world);
        tenant.initiator().write(0, 0, &[5; BLOCK]).unwrap();
        for _ in 0..50 {
            let block = read_unkicked(tenant.initiator(), PATIENCE).unwrap();
            assert_eq!(block, [5; BLOCK]);
        }
        assert!(!asks_for_kicks(&tenant));
    }
}

#[test]
fn a_worker_that_polled_for_its_time_asks_for_kicks_and_sleeps() {
    for world in worlds("200000") {
        let world = world.start();
        let mut tenant = tenant_with_flags(&world);
        tenant.initiator().write(0, 0, &[5; BLOCK]).unwrap();
        assert!(!asks_for_kicks(&tenant));
        let block = read_unkicked(tenant.initiator(), PATIENCE).unwrap();
        assert_eq!(block, [5; BLOCK]);

        eventually("it asks for kicks", || asks_for_kicks(&tenant));

        // Nobody looks.
        let unseen = read_unkicked(tenant.initiator(), A_WHILE);
        assert_eq!(unseen, Err(Failure::Timeout));
        tenant.queues[0].ring.kick();
        assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), [5; BLOCK]);
    }
}

#[test]
fn no_request_is_lost_between_polling_and_sleeping() {
    for world in worlds("30") {
        let world = world.start();
        let mut tenant = world.tenant();
        tenant.initiator().ready(0).unwrap();
        for round in 0..400u64 {
            tenant.initiator().read(0, 0, 1).unwrap();
            // Around the moment at which it goes to sleep.
            let pause = Duration::from_micros(round % 60);
            let until = std::time::Instant::now() + pause;
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
        }
    }
}

#[test]
fn polling_is_changed_while_the_tenant_works_and_ends_with_its_rings() {
    for world in worlds("0") {
        let mut world = world.start();
        let mut tenant = tenant_with_flags(&world);
        tenant.initiator().write(0, 0, &[5; BLOCK]).unwrap();
        assert!(asks_for_kicks(&tenant));
        world.set_poll(0, "\"always\"").unwrap();
        tenant.initiator().read(0, 0, 1).unwrap();
        read_unkicked(tenant.initiator(), PATIENCE).unwrap();
        world.set_poll(0, "0").unwrap();
        eventually("it asks for kicks", || asks_for_kicks(&tenant));
        tenant.stop().unwrap();
        tenant.start().unwrap();
        assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), [5; BLOCK]);
    }
}
