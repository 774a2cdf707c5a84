//! Sides that come late, leave, come back or do not fit: what the tenant's driver sees of it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::thread;
use std::time::{Duration, Instant};

use appliance::device::Device;
use spec::device::{CONNECTION, STATUS, status};
use spec::version::{CURRENT, Version};
use tests::world::{
    BLOCK, Command, FrontendError, Initiator, Lun, MIB, PATIENCE, Region, Shape, Task, Tenant,
    TenantMemory, World, eventually, protocol, read10, readable, request, user_address, write10,
};

/// Long enough to see that something does not happen.
const A_WHILE: Duration = Duration::from_millis(50);

fn block(seed: u8) -> [u8; BLOCK] {
    [seed; BLOCK]
}

fn one_lun() -> tests::world::Builder {
    World::of_suite(env!("CARGO_CRATE_NAME")).lun(Lun::file(MIB))
}

/// Writes and reads back until `until` says stop; returns how many rounds there were.
fn work(initiator: &mut Initiator, until: impl Fn() -> bool) -> u32 {
    let mut rounds = 0;
    while !until() {
        let lba = rounds % 2000;
        let data = block(u8::try_from(rounds % 251).unwrap());
        initiator.write(0, lba, &data).unwrap();
        assert_eq!(initiator.read(0, lba, 1).unwrap(), data);
        rounds += 1;
    }
    rounds
}

// covers: VPCI-RPL-1, VPCI-RPL-6, VPCI-RNG-3
#[test]
fn requests_made_before_the_appliance_comes_are_served_when_it_does() {
    let mut world = one_lun().without_appliance().start();
    let mut tenant = world.tenant();
    let early = tenant
        .initiator()
        .submit(&Command::new(0, &[0x12, 0, 0, 0, 96, 0]).data_in(96));
    assert!(tenant.initiator().wait_for(early, A_WHILE).is_err());

    world.start_appliance();

    let inquiry = tenant.initiator().wait_for(early, PATIENCE).unwrap();
    assert_eq!(inquiry.good().unwrap()[0], 0);
    tenant.initiator().write(0, 0, &block(1)).unwrap();
}

// covers: VPCI-RPL-1, VPCI-RPL-2, VPCI-RNG-2
#[test]
fn a_stopped_appliance_is_a_pause() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 3, &block(3)).unwrap();

    world.stop_appliance();
    let read = Command::new(0, &read10(3, 1)).data_in(BLOCK);
    let waiting = tenant.initiator().submit(&read);
    assert!(tenant.initiator().wait_for(waiting, A_WHILE).is_err());
    world.start_appliance();

    let outcome = tenant.initiator().wait_for(waiting, PATIENCE).unwrap();
    // A new nexus of a new target: power-on unit attention or the data.
    let _ = outcome.good();
    assert_eq!(tenant.initiator().read(0, 3, 1).unwrap(), block(3));
}

// covers: VPCI-RPL-3, VPCI-RNG-7
#[test]
fn an_appliance_killed_with_requests_in_flight_loses_none() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    let queue = tenant.initiator();
    queue.ready(0).unwrap();
    for round in 0..10 {
        let tasks: Vec<_> = (0..30)
            .map(|lba| {
                let data = block(u8::try_from(round).unwrap());
                queue.submit(&Command::new(0, &write10(lba, 1)).data_out(&data))
            })
            .collect();
        world.kill_appliance();
        world.start_appliance();
        for task in tasks {
            let outcome = queue.wait_for(task, PATIENCE).unwrap();
            if outcome.good().is_err() {
                queue.ready(0).unwrap();
            }
        }
    }
    work(queue, {
        let end = Instant::now() + A_WHILE;
        move || Instant::now() > end
    });
}

#[test]
fn verified_io_goes_on_while_the_appliance_is_restarted_again_and_again() {
    verified_io_outlasts_restarts(10);
}

#[test]
#[ignore = "long"]
fn verified_io_goes_on_over_two_hundred_restarts_of_the_appliance() {
    verified_io_outlasts_restarts(200);
}

/// A tenant writes and reads back all the while; the appliance ends, every other time by force,
/// and is started again.
fn verified_io_outlasts_restarts(restarts: u64) {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    let done = std::sync::atomic::AtomicBool::new(false);
    let rounds = std::sync::atomic::AtomicU64::new(0);
    let order = std::sync::atomic::Ordering::Relaxed;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            work(tenant.initiator(), || {
                rounds.fetch_add(1, order);
                done.load(order)
            })
        });
        for round in 0..restarts {
            thread::sleep(Duration::from_millis(5));
            if round % 2 == 0 {
                world.kill_appliance();
            } else {
                world.stop_appliance();
            }
            thread::sleep(Duration::from_millis(round % 10));
            world.start_appliance();
            // Each answers first that it is new. On a slow machine few of them answer more than
            // that, and a command is not to be repeated for ever.
            if round % 8 == 7 {
                let before = rounds.load(order);
                while rounds.load(order) == before && !worker.is_finished() {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        thread::sleep(Duration::from_millis(20));
        done.store(true, order);
        assert!(worker.join().unwrap() > 0);
    });
}

// covers: VPCI-RST-4
#[test]
fn a_guest_reset_starts_over() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    for round in 0..5 {
        reset_between_write_and_read(&mut tenant, round);
    }
}

#[test]
#[ignore = "long"]
fn a_thousand_guest_resets_and_reconnects_lose_nothing() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    for round in 0..1000 {
        let seed = u8::try_from(round % 251).unwrap();
        reset_between_write_and_read(&mut tenant, seed);
        reconnect_between_write_and_read(&mut tenant, seed.wrapping_add(1));
    }
    assert_eq!(world.plugs(0), 1, "the device was kept");
}

/// What is written before the guest resets its HBA is read after it.
fn reset_between_write_and_read(tenant: &mut Tenant, seed: u8) {
    tenant.initiator().write(0, 0, &block(seed)).unwrap();
    tenant.reset().unwrap();
    tenant.start().unwrap();
    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(seed));
}

/// What is written before the tenant's QEMU loses its connection is read after it.
fn reconnect_between_write_and_read(tenant: &mut Tenant, seed: u8) {
    tenant.initiator().write(0, 0, &block(seed)).unwrap();
    tenant.disconnect();
    tenant.reconnect().unwrap();
    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(seed));
}

#[test]
fn firmware_with_one_queue_hands_over_to_a_driver_with_all() {
    let world = one_lun().start();
    let mut tenant = world.tenant_not_started(Shape {
        queues: 4,
        ..Shape::default()
    });
    tenant.connect().unwrap();
    tenant.start_rings([2]).unwrap();
    tenant.queues[0].write(0, 0, &block(9)).unwrap();

    tenant.reset().unwrap();
    tenant.start().unwrap();

    for queue in &mut tenant.queues {
        assert_eq!(queue.read(0, 0, 1).unwrap(), block(9));
    }
}

// covers: VPCI-RPL-4, VPCI-RNG-1
#[test]
fn stop_and_cont_go_on_where_the_ring_was() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    for round in 0..5 {
        tenant.initiator().write(0, 0, &block(round)).unwrap();
        tenant.stop().unwrap();
        let used = tenant.initiator().ring.used_index();
        assert_eq!(tenant.base(2), u32::from(used));
        assert_eq!(tenant.base(1), 0, "event buffers not used are not taken");
        tenant.start().unwrap();
        assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(round));
    }
}

// covers: VPCI-MBX-10
#[test]
fn everything_in_flight_is_done_before_a_stop_is_answered() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    let tasks: Vec<_> = (0..40)
        .map(|lba| {
            let read = Command::new(0, &read10(lba, 8)).data_in(8 * BLOCK);
            tenant.initiator().submit(&read)
        })
        .collect();

    tenant.stop().unwrap();

    let used = tenant.initiator().ring.used_index();
    assert_eq!(tenant.base(2), u32::from(used), "fetched means finished");
    tenant.start().unwrap();
    for task in tasks {
        let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
        outcome.good().unwrap();
    }
}

#[test]
fn a_stopped_ring_is_left_alone() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    tenant.stop().unwrap();

    let task = tenant.initiator().submit(&Command::new(0, &[0; 6]));
    tenant.initiator().ring.kick();
    assert!(tenant.initiator().wait_for(task, A_WHILE).is_err());

    tenant.start().unwrap();
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    outcome.good().unwrap();
}

// covers: VPCI-RPL-5
#[test]
fn the_base_of_a_ring_that_never_ran_is_known_without_an_appliance() {
    let world = one_lun().without_appliance().start();
    let mut tenant = world.tenant_not_started(Shape::default());
    tenant.connect().unwrap();
    let frontend = tenant.frontend();
    frontend
        .set_vring(request::SET_VRING_BASE, 2, 4711)
        .unwrap();

    frontend.ask_vring_base(2).unwrap();

    assert_eq!(frontend.vring_base(2).unwrap(), 4711);
}

// covers: VPCI-RPL-4
#[test]
fn a_stop_waits_for_an_appliance_that_knows_the_base() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &block(1)).unwrap();
    world.kill_appliance();

    tenant.frontend().ask_vring_base(2).unwrap();
    assert!(!tenant.frontend().answers_within(A_WHILE).unwrap());
    world.start_appliance();

    let used = tenant.initiator().ring.used_index();
    assert_eq!(tenant.frontend().vring_base(2).unwrap(), u32::from(used));
}

// covers: VPCI-RPL-4
#[test]
fn a_stop_that_nobody_answers_ends_the_connection_and_never_lies() {
    let mut world = one_lun().drain_timeout(Duration::from_millis(200)).start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &block(1)).unwrap();
    world.kill_appliance();

    let asked = Instant::now();
    tenant.frontend().ask_vring_base(2).unwrap();
    let answer = tenant.frontend().vring_base(2);

    assert!(
        matches!(answer, Err(FrontendError::Closed)),
        "{answer:?} is no truth"
    );
    assert!(asked.elapsed() >= Duration::from_millis(190));
    // The HBA is not lost for good.
    world.start_appliance();
    tenant.reconnect().unwrap();
    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(1));
}

// covers: VPCI-STS-5
#[test]
fn a_tenant_that_reconnects_goes_on_with_its_rings() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    for round in 0..5 {
        tenant.initiator().write(0, 0, &block(round)).unwrap();
        tenant.disconnect();
        let function = world.function();
        eventually("the shim sees that the tenant is gone", || {
            function.read(STATUS) & status::FRONTEND_UP == 0
        });
        let before = function.read(CONNECTION);
        tenant.reconnect().unwrap();
        assert_eq!(function.read(CONNECTION), before + 1);
        assert_ne!(function.read(STATUS) & status::FRONTEND_UP, 0);
        assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(round));
        assert_eq!(world.plugs(0), 1, "the device was kept");
    }
}

// covers: VPCI-PLG-3, VPCI-PLG-1, VPCI-PLG-6
#[test]
fn a_tenant_that_stays_away_is_unplugged_and_may_come_back() {
    let world = one_lun().grace(Duration::from_millis(20)).start();
    let mut tenant = world.tenant_not_started(Shape::default());
    tenant.connect().unwrap();
    thread::sleep(A_WHILE);
    assert!(!world.is_plugged(0), "no ring runs yet");
    tenant.start().unwrap();
    tenant.initiator().write(0, 0, &block(7)).unwrap();

    for plugs in 2..5 {
        tenant.disconnect();
        eventually("the device is unplugged", || !world.is_plugged(0));
        tenant.reconnect().unwrap();
        assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(7));
        assert_eq!(world.plugs(0), plugs);
    }
}

// covers: VPCI-PLG-5
#[test]
fn a_function_that_the_storage_vm_keeps_is_served_and_not_counted_as_gone() {
    let world = one_lun().grace(Duration::from_millis(10)).start();
    let mut first = world.tenant();
    first.initiator().write(0, 0, &block(5)).unwrap();
    world.slow_unplug(true);
    first.disconnect();
    drop(first);
    thread::sleep(2 * A_WHILE);

    let function = world.function();
    assert_eq!(
        function.read(spec::device::MAGIC),
        spec::device::MAGIC_VALUE
    );
    // Another tenant has to wait for the function that is to show its RAM.
    let mut second = world.tenant();
    let early = tenant_ready(&mut second);
    assert!(second.initiator().wait_for(early, A_WHILE).is_err());
    assert_eq!(world.plugs(0), 1);

    world.slow_unplug(false);
    second.initiator().wait_for(early, PATIENCE).unwrap();
    assert_eq!(world.plugs(0), 2);
}

fn tenant_ready(tenant: &mut Tenant) -> Task {
    tenant.initiator().submit(&Command::new(0, &[0; 6]))
}

// covers: VPCI-RPL-8
#[test]
fn features_that_were_not_offered_are_refused() {
    let world = one_lun().start();
    let packed = 1 << 34;
    let mut tenant = world.tenant_not_started(Shape::default());
    tenant.connect().unwrap();
    let features = tenant.features();

    // What QEMU offers by itself.
    let unasked = spec::virtio_scsi::feature::CHANGE | spec::virtio_scsi::feature::T10_PI;
    let accepted = tenant
        .frontend()
        .set(request::SET_FEATURES, features | unasked);
    let refused = tenant
        .frontend()
        .set(request::SET_FEATURES, features | packed);

    accepted.unwrap();
    assert!(
        matches!(
            refused,
            Err(FrontendError::Refused { .. } | FrontendError::Closed)
        ),
        "{refused:?}"
    );
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

// covers: VPCI-RPL-7
#[test]
fn a_memory_update_waits_for_the_appliance_and_ends_the_connection_at_the_deadline() {
    let world = one_lun().drain_timeout(Duration::from_millis(200)).start();
    let mut tenant = world.tenant_not_started(Shape {
        memory: vec![(0, 4 * MIB), (4 << 30, 4 * MIB)],
        ..Shape::default()
    });
    let all = tenant.memory().regions().to_vec();
    tenant.connect().unwrap();
    tenant.start().unwrap();
    tenant.initiator().write(0, 0, &block(1)).unwrap();
    // An appliance that hangs: it is attached, and its vectors reach nobody.
    let function = world.function();
    function.mute().unwrap();

    let asked = Instant::now();
    let answer = tenant.send_memory(all[..1].to_vec());

    assert!(
        matches!(
            answer,
            Err(FrontendError::Refused { .. } | FrontendError::Closed)
        ),
        "{answer:?} although the appliance uses the old table"
    );
    assert!(asked.elapsed() >= Duration::from_millis(190));
    let after = tenant.frontend().get(request::GET_FEATURES);
    assert!(matches!(after, Err(FrontendError::Closed)), "{after:?}");
}

// covers: VPCI-PLG-4, VPCI-BAR-3
#[test]
fn a_tenant_with_new_ram_gets_a_new_device() {
    let world = one_lun().start();
    let mut first = world.tenant();
    first.initiator().write(0, 0, &block(5)).unwrap();
    first.disconnect();
    drop(first);

    let mut second = world.tenant();

    assert_eq!(second.initiator().read(0, 0, 1).unwrap(), block(5));
    assert_eq!(world.plugs(0), 2);
}

// covers: VPCI-PLG-2, VPCI-MEM-7, VPCI-STS-6
#[test]
fn regions_of_the_same_file_come_and_go_while_rings_run() {
    for protocol in [
        protocol::MQ | protocol::REPLY_ACK,
        protocol::MQ | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS,
    ] {
        let world = one_lun().start();
        let mut tenant = world.tenant_not_started(Shape {
            memory: vec![(0, 4 * MIB), (4 << 30, 4 * MIB)],
            protocol,
            ..Shape::default()
        });
        let all = tenant.memory().regions().to_vec();
        tenant.connect().unwrap();
        tenant.start().unwrap();
        for round in 0..5 {
            tenant.send_memory(all[..1].to_vec()).unwrap();
            tenant.initiator().data_regions = vec![0];
            tenant.initiator().write(0, 0, &block(round)).unwrap();
            tenant.send_memory(all.clone()).unwrap();
            tenant.initiator().data_regions = vec![1];
            assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(round));
        }
        assert_eq!(world.plugs(0), 1, "an update, never a replug");
        let function = world.function();
        assert_ne!(function.read(STATUS) & status::MEM_VALID, 0);
        // What was taken away is no longer the tenant's.
        tenant.send_memory(all[..1].to_vec()).unwrap();
        let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
        tenant.initiator().submit(&read);
        function.wait_ring_errors(1);
    }
}

// covers: VPCI-PLG-2
#[test]
fn a_second_memory_file_is_refused() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    let second = TenantMemory::new(&[(8 << 30, MIB)], true).unwrap();
    let region = Region {
        gpa: 8 << 30,
        len: MIB,
        offset: 0,
    };

    let answer = tenant
        .frontend()
        .add_mem_reg(&region, second.file(), user_address);

    assert!(
        matches!(
            answer,
            Err(FrontendError::Refused { .. } | FrontendError::Closed)
        ),
        "{answer:?}"
    );
    // Nobody else is harmed, and the tenant can come back as it was.
    tenant.reconnect().unwrap();
    tenant.initiator().read(0, 0, 1).unwrap();
}

// covers: VPCI-SEC-1
#[test]
fn memory_that_could_shrink_is_refused() {
    let world = one_lun().start();
    let mut tenant = world.tenant_not_started(Shape {
        sealed: false,
        ..Shape::default()
    });
    tenant.connect().unwrap();

    let answer = tenant.start();

    assert!(
        matches!(
            answer,
            Err(FrontendError::Refused { .. } | FrontendError::Closed)
        ),
        "{answer:?}"
    );
    assert!(!world.is_plugged(0));
    // The HBA is there for a tenant with proper RAM.
    tenant.disconnect();
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

// covers: VPCI-VER-3
#[test]
fn neighbouring_minor_versions_work_together() {
    let newer = Version {
        minor: CURRENT.minor + 1,
        ..CURRENT
    };
    let world = one_lun().shim_version(newer).start();
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

// covers: VPCI-VER-4, VPCI-STS-3
#[test]
fn versions_too_far_apart_are_refused_by_name() {
    let newer = Version {
        minor: CURRENT.minor + 2,
        ..CURRENT
    };
    let world = one_lun().shim_version(newer).start();
    let mut tenant = world.tenant();
    eventually("the appliance was refused", || {
        world.attach_error(0).is_some()
    });

    let error = world.attach_error(0).unwrap();
    let function = world.function();

    assert!(error.contains(&newer.to_string()), "{error}");
    assert!(error.contains(&CURRENT.to_string()), "{error}");
    assert_ne!(function.read(STATUS) & status::REFUSED, 0);
    assert_eq!(
        function.read(spec::device::ERROR),
        spec::device::error::VERSION
    );
    let task = tenant.initiator().submit(&Command::new(0, &[0; 6]));
    assert!(tenant.initiator().wait_for(task, A_WHILE).is_err());
}

#[test]
fn an_hba_that_the_appliance_does_not_know_is_refused_by_name() {
    let world = one_lun().unknown_hba().start();
    let tenant = world.tenant();
    eventually("the appliance refused the HBA", || {
        world.attach_error(0).is_some()
    });
    let error = world.attach_error(0).unwrap();
    assert!(error.contains(&world.hba_uuid(0).to_string()), "{error}");
    drop(tenant);
}

#[test]
fn two_tenants_share_an_appliance_and_one_that_dies_is_not_noticed() {
    let world = one_lun()
        .another_hba()
        .lun(Lun::file(MIB))
        .grace(Duration::from_millis(10))
        .start();
    let mut quiet = world.tenant_of(0, Shape::default());
    let done = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    thread::scope(|scope| {
        let worker = scope.spawn(|| work(quiet.initiator(), || done.load(order)));
        for round in 0..5 {
            let mut restless = world.tenant_of(1, Shape::default());
            let queue = restless.initiator();
            queue.write(0, 0, &block(round)).unwrap();
            for lba in 0..30 {
                queue.submit(&Command::new(0, &read10(lba, 8)).data_in(8 * BLOCK));
            }
            restless.disconnect();
            drop(restless);
            eventually("the dead one is unplugged", || !world.is_plugged(1));
        }
        done.store(true, order);
        assert!(worker.join().unwrap() > 0);
    });
    assert_eq!(world.plugs(0), 1);
    assert_ne!(world.image(0, 0, BLOCK), world.image(1, 0, BLOCK));
}

// covers: VPCI-RST-1, VPCI-RST-2
#[test]
fn a_function_reset_detaches_the_appliance_and_keeps_the_session() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &block(4)).unwrap();
    world.kill_appliance();
    let function = world.function();

    assert_eq!(function.read(STATUS) & status::BACKEND_UP, 0);
    assert_eq!(function.read(spec::device::VECTORS), 0);
    assert_eq!(function.read(spec::device::DRIVER_VERSION), 0);
    assert_ne!(function.read(STATUS) & status::FRONTEND_UP, 0);
    assert_ne!(function.read(STATUS) & status::MEM_VALID, 0);

    world.start_appliance();
    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(4));
}

/// QEMU swaps the call eventfd when the guest masks its interrupt.
#[test]
fn a_new_call_eventfd_is_used_at_once() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &block(1)).unwrap();
    for _ in 0..20 {
        tenant.swap_call(2).unwrap();
        assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), block(1));
    }
}

// covers: VPCI-BEL-4
#[test]
fn a_completion_without_a_call_eventfd_is_told_when_there_is_one() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    tenant
        .frontend()
        .set_vring_fd(request::SET_VRING_CALL, 2, None)
        .unwrap();
    // The call for the command before may have come after it was found in the ring.
    tenant.initiator().ring.drain_calls();
    let used = tenant.initiator().ring.used_index();
    tenant.initiator().ring.want_call();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let task = tenant.initiator().submit(&read);
    eventually("the request is done", || {
        tenant.initiator().ring.used_index() != used
    });
    assert!(
        !tenants_call(&tenant, A_WHILE),
        "nobody has the eventfd to tell by"
    );

    tenant.swap_call(2).unwrap();

    assert!(tenants_call(&tenant, PATIENCE));
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    outcome.good().unwrap();
}

/// Whether the first request queue's call eventfd is signalled within `timeout`.
fn tenants_call(tenant: &Tenant, timeout: Duration) -> bool {
    readable(tenant.queues[0].ring.call_fd(), timeout).unwrap()
}

/// Ranges (address, length) of a q35 machine's RAM, split as QEMU does.
fn q35(mib: u64) -> Vec<(u64, u64)> {
    if mib <= 2048 {
        return vec![(0, mib * MIB)];
    }
    vec![(0, 2048 * MIB), (4 << 30, (mib - 2048) * MIB)]
}

// covers: VPCI-BAR-2
#[test]
fn tenants_of_768_mib_to_6_gib_work_up_to_their_last_page() {
    for mib in [768, 1024, 3072, 6144] {
        let world = one_lun().start();
        let mut tenant = world.tenant_like(Shape {
            memory: q35(mib),
            ..Shape::default()
        });
        tenant.initiator().write(0, 0, &block(6)).unwrap();
        for (start, len) in q35(mib) {
            let last_page = start + len - 4096;
            let data = tenant.initiator().read_to(0, 0, 1, last_page).unwrap();
            assert_eq!(data, block(6));
        }
        let bar = world.function().bar_len(spec::device::BAR_TENANT).unwrap();
        assert_eq!(bar, (mib * MIB).next_power_of_two());
    }
}

// covers: VPCI-BEL-1, VPCI-BEL-2, VPCI-BEL-3
#[test]
fn the_trapped_doorbell_wakes_the_shim_and_the_mapped_one_serves_while_it_is_awake() {
    // A shim that hardly polls sleeps at some of these.
    let world = one_lun().doorbell_poll(Duration::ZERO).start();
    let mut tenant = world.tenant();
    for lba in 0..20 {
        tenant.initiator().read(0, lba, 1).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert!(world.function().doorbells() > 0, "the shim was asleep");

    // One that polls longer than the disk takes misses most.
    let world = one_lun().doorbell_poll(A_WHILE).start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    let function = world.function();
    let before = (function.doorbells(), tenant.initiator().ring.calls);
    for lba in 0..500 {
        tenant.initiator().read(0, lba, 1).unwrap();
    }
    let trapped = function.doorbells() - before.0;
    let calls = tenant.initiator().ring.calls - before.1;
    assert!(
        trapped < calls,
        "{trapped} trapped doorbells, {calls} calls"
    );
}
