//! What is under way when somebody dies: given back once, whoever goes on with it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use spec::device::{STATUS, error, ring_error, status};
use spec::version::{CURRENT, Version};
use spec::virtio_scsi::{response, task_management};
use tests::world::{
    BLOCK, Builder, Command, Failure, Gate, Initiator, Lun, MIB, PATIENCE, Shape, Task, Tenant,
    World, address, eventually, protocol, read10, write10,
};

/// Long enough to see that something does not happen.
const A_WHILE: Duration = Duration::from_millis(50);
const V1_0: Version = Version { major: 1, minor: 0 };
/// Offsets of ring 2's region, and of what is in it (`spec/vhost-pci.md` §9), for rings of 128.
const REGION: u64 = 4096 + 2 * 2112;
const REGION_LEN: usize = 2112;
const VERSION: u64 = 8;
const ENTRIES: u64 = 16;

fn one_lun() -> Builder {
    World::of_suite(env!("CARGO_CRATE_NAME")).lun(Lun::file(MIB).gated())
}

/// A QEMU that does not know in-flight memory.
fn without_inflight() -> Shape {
    let shape = Shape::default();
    Shape {
        protocol: shape.protocol & !protocol::INFLIGHT_SHMFD,
        ..shape
    }
}

fn block(seed: usize) -> [u8; BLOCK] {
    [u8::try_from(seed % 251).unwrap(); BLOCK]
}

fn write(lba: u32, seed: usize) -> Command {
    Command::new(0, &write10(lba, 1)).data_out(&block(seed))
}

fn read(lba: u32) -> Command {
    Command::new(0, &read10(lba, 1)).data_in(BLOCK)
}

/// Sends a command to LBA 0 whose disk operation hangs; that of a write locks the block.
fn submit_held(gate: &Gate, queue: &mut Initiator, command: &Command) -> Task {
    gate.close();
    let task = queue.submit(command);
    eventually("the command is at the disk", || gate.waiting() > 0);
    gate.open();
    task
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX generator; its upper bits are the better ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len)
            .map(|_| u8::try_from(self.below(256)).unwrap())
            .collect()
    }
}

/// Waits for commands; those that met a unit attention are sent again, as a driver does it. The
/// ring itself makes sure that no command comes back that was not sent, or twice.
fn settle(queue: &mut Initiator, tasks: Vec<(Task, Command)>) {
    for (task, command) in tasks {
        let outcome = queue.wait_for(task, PATIENCE).unwrap();
        if let Err(Failure::Sense { key: 6, .. }) = outcome.clone().good() {
            queue.run(&command).unwrap();
        } else {
            outcome.good().unwrap();
        }
    }
}

// covers: VPCI-RNG-7
#[test]
fn a_slow_command_does_not_delay_the_others_on_its_ring() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    let queue = tenant.initiator();
    queue.ready(0).unwrap();
    let gate = world.gate(0);
    let slow = submit_held(&gate, queue, &read(0));
    for lba in 1..300 {
        let data = block(usize::try_from(lba).unwrap());
        queue.write(0, lba, &data).unwrap();
        assert_eq!(queue.read(0, lba, 1).unwrap(), data);
    }
    assert!(queue.wait_for(slow, Duration::ZERO).is_err());
    gate.let_read(&block(9));
    let outcome = queue.wait_for(slow, PATIENCE).unwrap();
    assert_eq!(outcome.good().unwrap(), block(9));
}

// covers: VPCI-RNG-7
#[test]
fn a_frontend_that_knows_no_in_flight_memory_keeps_the_order_and_loses_nothing() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant_like(without_inflight());
    let queue = tenant.initiator();
    queue.ready(0).unwrap();
    let slow = submit_held(&world.gate(0), queue, &write(0, 1));
    let used = queue.ring.used_index();
    let quick = queue.submit(&write(1, 2));
    thread::sleep(A_WHILE);
    assert_eq!(queue.ring.used_index(), used, "the first one comes first");

    world.kill_appliance();
    world.start_appliance();

    settle(queue, vec![(slow, write(0, 1)), (quick, write(1, 2))]);
    assert_eq!(world.image(0, 0, BLOCK), block(1));
    assert_eq!(world.image(0, 512, BLOCK), block(2));
}

/// Some of a ring's commands hang at their disk (reads of one unit and a write to another), the
/// others end; then `interrupt` happens, and each comes back once.
fn interrupted(seed: u64, mut interrupt: impl FnMut(&mut World, &mut Tenant)) {
    let mut random = Random(seed);
    let mut world = one_lun().lun(Lun::file(MIB).gated()).start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &block(99)).unwrap();
    tenant.initiator().ready(1).unwrap();
    for round in 0..6 {
        let queue = tenant.initiator();
        let mut reads = Vec::new();
        let mut written = None;
        let turn = random.below(30);
        for lba in 1..30 {
            let data = block(round * 31 + usize::try_from(lba).unwrap());
            // Chains of 3 descriptors: 30 of them do not fill the ring.
            if turn == u64::from(lba) {
                let command = Command::new(1, &write10(0, 1)).data_out(&data);
                let task = submit_held(&world.gate(1), queue, &command);
                written = Some((task, command, data));
            }
            if random.below(3) == 0 {
                reads.push(submit_held(&world.gate(0), queue, &read(0)));
            } else {
                queue.write(0, lba, &data).unwrap();
            }
        }
        let in_flight = queue
            .ring
            .avail_index()
            .wrapping_sub(queue.ring.used_index());
        let held = reads.len() + written.iter().len();
        assert_eq!(usize::from(in_flight), held);

        interrupt(&mut world, &mut tenant);

        let queue = tenant.initiator();
        for task in reads {
            let outcome = queue.wait_for(task, PATIENCE).unwrap();
            match outcome.good() {
                Ok(data) => assert_eq!(data, block(99)),
                Err(Failure::Sense { key: 6, .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if let Some((task, command, data)) = written {
            settle(queue, vec![(task, command)]);
            assert_eq!(world.image(1, 0, BLOCK), data);
        }
        assert_eq!(
            queue.ring.used_index(),
            queue.ring.avail_index(),
            "as many came back as were sent"
        );
    }
}

// covers: VPCI-INF-6, VPCI-INF-7
#[test]
fn commands_held_in_the_middle_of_a_ring_survive_the_appliance_and_come_back_once() {
    for seed in 0..4 {
        interrupted(seed, |world, _| {
            world.kill_appliance();
            world.start_appliance();
        });
    }
}

#[test]
fn commands_held_in_the_middle_of_a_ring_survive_a_stopped_appliance() {
    interrupted(9, |world, _| {
        world.stop_appliance();
        world.start_appliance();
    });
}

// covers: VPCI-INF-5
#[test]
fn commands_held_in_the_middle_of_a_ring_survive_a_lost_connection() {
    interrupted(5, |_, tenant| {
        tenant.disconnect();
        tenant.reconnect().unwrap();
    });
}

// covers: VPCI-INF-4
#[test]
fn commands_held_in_the_middle_of_a_ring_survive_the_shim() {
    interrupted(7, |world, tenant| {
        tenant.disconnect();
        world.restart_shim(0, CURRENT);
        tenant.reconnect().unwrap();
    });
}

#[test]
fn commands_held_in_the_middle_of_a_ring_survive_everybody_at_once() {
    interrupted(11, |world, tenant| {
        world.kill_appliance();
        tenant.disconnect();
        world.restart_shim(0, CURRENT);
        world.start_appliance();
        tenant.reconnect().unwrap();
    });
}

#[test]
fn an_appliance_killed_at_any_moment_gives_each_command_back_once() {
    kill_at_any_moment(30);
}

#[test]
#[ignore = "long"]
fn an_appliance_killed_at_any_moment_a_thousand_times_gives_each_command_back_once() {
    kill_at_any_moment(1000);
}

fn kill_at_any_moment(times: usize) {
    let mut random = Random(3);
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    let queue = tenant.initiator();
    queue.ready(0).unwrap();
    for round in 0..times {
        let tasks = (0..30)
            .map(|lba| (queue.submit(&write(lba, round)), write(lba, round)))
            .collect();
        thread::sleep(Duration::from_micros(random.below(1500)));
        world.kill_appliance();
        world.start_appliance();
        settle(queue, tasks);
        assert_eq!(queue.ring.used_index(), queue.ring.avail_index());
    }
}

/// Ring 2's region as the tenant's QEMU has it.
fn region(tenant: &Tenant) -> Vec<u8> {
    let file = &tenant.inflight.as_ref().unwrap().file;
    let mut bytes = vec![0; REGION_LEN];
    file.read_exact_at(&mut bytes, REGION).unwrap();
    bytes
}

fn scribble(tenant: &Tenant, offset: u64, bytes: &[u8]) {
    let file = &tenant.inflight.as_ref().unwrap().file;
    file.write_all_at(bytes, REGION + offset).unwrap();
}

#[test]
fn what_hangs_is_marked_and_nothing_else() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    let gate = world.gate(0);
    let slow = submit_held(&gate, tenant.initiator(), &read(0));
    tenant.initiator().read(0, 1, 1).unwrap();

    eventually("the last mark is cleared", || {
        let marks = region(&tenant)[16..]
            .chunks_exact(16)
            .filter(|entry| entry[0] != 0)
            .count();
        marks == 1
    });

    gate.let_read(&block(0));
    tenant.initiator().wait_for(slow, PATIENCE).unwrap();
    eventually("no mark is left", || {
        region(&tenant)[16..]
            .chunks_exact(16)
            .all(|entry| entry[0] == 0)
    });
}

// covers: VPCI-INF-8, VPCI-SEC-4
#[test]
fn random_bytes_in_in_flight_memory_break_one_hba_at_most() {
    let mut random = Random(1);
    let mut world = one_lun().another_hba().lun(Lun::file(MIB)).start();
    let mut neighbour = world.tenant_of(1, Shape::default());
    let mut tenant = world.tenant();
    for round in 0..20 {
        for lba in 0..20 {
            tenant.initiator().write(0, lba, &block(round)).unwrap();
        }
        world.kill_appliance();
        let bytes = random.bytes(REGION_LEN);
        scribble(&tenant, 0, &bytes);
        if round % 2 == 0 {
            scribble(&tenant, VERSION, &[1, 0, 128, 0]);
        }
        let before = tenant.initiator().ring.used_index();
        world.start_appliance();

        neighbour.initiator().write(0, 0, &block(round)).unwrap();
        thread::sleep(Duration::from_millis(10));
        let given_back = tenant.initiator().ring.used_index().wrapping_sub(before);
        assert!(given_back <= 128, "no head more than once");
        tenant.reset().unwrap();
        tenant.start().unwrap();
        neighbour.initiator().read(0, 0, 1).unwrap();
    }
    tenant.initiator().read(0, 0, 1).unwrap();
}

// covers: VPCI-INF-8
#[test]
fn what_is_written_there_while_a_ring_runs_changes_nothing() {
    let mut random = Random(2);
    let world = one_lun().start();
    let mut tenant = world.tenant();
    for lba in 0..200 {
        let bytes = random.bytes(REGION_LEN);
        scribble(&tenant, 0, &bytes);
        let data = block(usize::try_from(lba).unwrap());
        tenant.initiator().write(0, lba, &data).unwrap();
        assert_eq!(tenant.initiator().read(0, lba, 1).unwrap(), data);
    }
}

// covers: VPCI-INF-8, VPCI-RNG-4
#[test]
fn a_chain_that_is_in_flight_already_retires_its_ring() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    let gate = world.gate(0);
    submit_held(&gate, tenant.initiator(), &read(0));
    let head = newest_head(&tenant);
    tenant.initiator().ring.publish(head);
    tenant.initiator().ring.kick();
    let errors = world.function().wait_ring_errors(1);
    assert_eq!(errors, [(2, ring_error::IN_FLIGHT)]);
    gate.let_read(&block(0));
    tenant.reset().unwrap();
    tenant.start().unwrap();
    tenant.initiator().read(0, 0, 1).unwrap();
}

/// Head of the chain that was made available last on the first request queue.
fn newest_head(tenant: &Tenant) -> u16 {
    let ring = &tenant.queues[0].ring;
    let slot = ring.avail_index().wrapping_sub(1) % ring.size();
    let at = ring.avail() + 4 + 2 * u64::from(slot);
    tenant.memory().load(at)
}

// covers: VPCI-INF-10
#[test]
fn a_compare_and_write_that_may_have_been_done_is_not_done_again() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &block(1)).unwrap();
    // COMPARE AND WRITE, one block at LBA 7: what is there, and what is to be.
    let mut cdb = [0; 16];
    (cdb[0], cdb[9], cdb[13]) = (0x89, 7, 1);
    let data = [block(1), block(2)].concat();
    let command = Command::new(0, &cdb).data_out(&data);
    world.kill_appliance();
    let task = tenant.initiator().submit(&command);
    let plain = tenant.initiator().submit(&write(8, 3));
    // As the dead one would have left it, had it fetched the first.
    let first = newest_but_one(&tenant);
    scribble(&tenant, ENTRIES + 16 * u64::from(first), &[1]);
    world.start_appliance();

    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    let aborted = Failure::Sense {
        key: 0xb,
        asc: 0x08,
        ascq: 0,
    };
    assert_eq!(outcome.good(), Err(aborted));
    assert_eq!(world.image(0, 7 * 512, BLOCK), block(1));
    // What was not fetched is new, and the initiator may try again.
    settle(tenant.initiator(), vec![(plain, write(8, 3))]);
    tenant.initiator().run(&command).unwrap();
    assert_eq!(world.image(0, 7 * 512, BLOCK), block(2));
}

fn newest_but_one(tenant: &Tenant) -> u16 {
    let ring = &tenant.queues[0].ring;
    let slot = ring.avail_index().wrapping_sub(2) % ring.size();
    let at = ring.avail() + 4 + 2 * u64::from(slot);
    tenant.memory().load(at)
}

// covers: VPCI-INF-11
#[test]
fn a_lun_reset_finds_the_commands_that_are_taken_up_again() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    let gate = world.gate(0);
    // The first one is what meets the unit attention afterwards.
    let tasks: Vec<_> = (0..5)
        .map(|_| submit_held(&gate, tenant.initiator(), &read(0)))
        .collect();
    world.kill_appliance();
    let reset = tenant.send_function(task_management::LOGICAL_UNIT_RESET, address(0), 0);
    gate.close();
    world.start_appliance();

    let answer = tenant.function_answer(reset, PATIENCE);
    assert_eq!(answer, Some(response::OK));
    // All are back when it is answered, by themselves or by the reset.
    let used = tenant.initiator().ring.used_index();
    assert_eq!(used, tenant.initiator().ring.avail_index());
    gate.open();
    for task in tasks {
        let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
        let end = outcome.good().unwrap_err();
        let attention = matches!(end, Failure::Sense { key: 6, .. });
        assert!(
            attention || end == Failure::Response(response::RESET),
            "{end}"
        );
    }
}

/// A world whose appliance comes after its tenant, and says it is of this version.
fn appliance_of(version: Version, shim: Version) -> (World, Tenant) {
    let mut world = one_lun().shim_version(shim).without_appliance().start();
    let tenant = world.tenant();
    world.function().pretend(version);
    world.start_appliance();
    (world, tenant)
}

// covers: VPCI-VER-3, VPCI-RNG-7
#[test]
fn sides_of_versions_1_0_and_1_1_work_together_in_order_and_lose_nothing() {
    for (appliance, shim) in [(V1_0, CURRENT), (CURRENT, V1_0)] {
        let (mut world, mut tenant) = appliance_of(appliance, shim);
        let queue = tenant.initiator();
        queue.ready(0).unwrap();
        let slow = submit_held(&world.gate(0), queue, &write(0, 1));
        let used = queue.ring.used_index();
        let quick = queue.submit(&write(1, 2));
        thread::sleep(A_WHILE);
        assert_eq!(queue.ring.used_index(), used, "in order");
        // The next appliance is of version 1.1; with a shim of that, it begins a record now.
        world.kill_appliance();
        world.function().pretend(CURRENT);
        world.start_appliance();
        settle(queue, vec![(slow, write(0, 1)), (quick, write(1, 2))]);
        assert_eq!(world.image(0, 0, 2 * BLOCK), [block(1), block(2)].concat());
    }
}

// covers: VPCI-INF-9
#[test]
fn an_appliance_of_version_1_0_does_not_go_on_with_what_it_cannot_know() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    let slow = submit_held(&world.gate(0), tenant.initiator(), &write(0, 1));
    tenant.initiator().write(0, 1, &block(2)).unwrap();
    world.kill_appliance();
    let function = world.function();
    function.pretend(V1_0);
    world.start_appliance();
    eventually("it is refused", || {
        function.read(STATUS) & status::REFUSED != 0
    });
    assert_eq!(function.read(spec::device::ERROR), error::VERSION);

    world.stop_appliance();
    function.pretend(CURRENT);
    world.start_appliance();
    settle(tenant.initiator(), vec![(slow, write(0, 1))]);
    assert_eq!(world.image(0, 0, BLOCK), block(1));
}
