//! Rings that break the rules: retired, reported once, and everybody else goes on.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::io::Write;
use std::time::Duration;

use spec::device::{error, ring_error, status};
use tests::world::{
    Attach, BLOCK, Buffer, Builder, Command, Failure, Lun, MIB, PATIENCE, Region, Shape, Tenant,
    World, descriptor_bytes, flag, header_bytes, read10, request,
};

/// The ring that is broken: the first request queue.
const RING: u16 = 2;
/// Where no memory is: between the two regions.
const HOLE: u64 = 64 * MIB;
/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);

/// A world in which the tenant reaches the appliance as the suite's name says;
/// `world_hostile_local` is this suite as well.
fn world() -> Builder {
    World::of_suite(env!("CARGO_CRATE_NAME"))
}

fn two_queues() -> Shape {
    Shape {
        queues: 2,
        memory: vec![(0, 8 * MIB), (4 << 30, 8 * MIB)],
        wants_errors: true,
        ..Shape::default()
    }
}

/// Breaks the first request queue by `breach`; it must be retired for `reason`, the second and
/// another tenant must not notice, and a reset must mend it.
fn retired(reason: u32, breach: impl FnOnce(&mut Tenant)) {
    let world = world()
        .lun(Lun::file(MIB))
        .another_hba()
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = world.tenant_like(two_queues());
    let mut neighbour = world.tenant_of(1, Shape::default());
    tenant.queues[0].write(0, 0, &[0x11; BLOCK]).unwrap();
    tenant.queues[1].read(0, 0, 1).unwrap();
    neighbour.initiator().read(0, 0, 1).unwrap();
    let used = tenant.queues[0].ring.used_index();

    breach(&mut tenant);
    tenant.queues[0].ring.kick();

    assert_reported(&world, &tenant, RING, reason);
    let status = || world.function().read(spec::device::STATUS);
    if world.attach() == Attach::Function {
        assert_ne!(status() & status::NEEDS_RESET, 0);
        assert_eq!(world.function().read(spec::device::ERROR), error::RING);
    }

    // Nothing more is fetched, however often it is kicked, and nothing is reported again.
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let task = tenant.queues[0].submit(&read);
    tenant.queues[0].ring.kick();
    assert_eq!(
        tenant.queues[0].wait_for(task, A_WHILE).err(),
        Some(Failure::Timeout)
    );
    assert_eq!(tenant.queues[0].ring.used_index(), used);
    assert_not_reported_again(&world, &tenant, RING);

    // The others go on.
    assert_eq!(tenant.queues[1].read(0, 0, 1).unwrap(), [0x11; BLOCK]);
    neighbour.initiator().write(0, 0, &[0x22; BLOCK]).unwrap();

    // A reset mends it.
    tenant.reset().unwrap();
    tenant.start().unwrap();
    assert_eq!(tenant.queues[0].read(0, 0, 1).unwrap(), [0x11; BLOCK]);
    assert_not_reported_again(&world, &tenant, RING);
    if world.attach() == Attach::Function {
        assert_eq!(status() & status::NEEDS_RESET, 0);
    }
}

/// The tenant's side was told that `ring` was retired for `reason`, once: by the function's
/// register, or by the ring's error eventfd, which has no reason.
fn assert_reported(world: &World, tenant: &Tenant, ring: u16, reason: u32) {
    match world.attach() {
        Attach::Function => {
            assert_eq!(world.function().wait_ring_errors(1), [(ring, reason)]);
        }
        Attach::Socket => assert_eq!(tenant.errors(ring, PATIENCE), 1),
    }
}

/// `ring` was not reported since [`assert_reported`].
fn assert_not_reported_again(world: &World, tenant: &Tenant, ring: u16) {
    match world.attach() {
        Attach::Function => assert_eq!(world.function().wait_ring_errors(1).len(), 1),
        Attach::Socket => assert_eq!(tenant.errors(ring, Duration::ZERO), 0),
    }
}

/// A ring with the good chain header → response, of which `change` makes a bad one.
fn with_chain(tenant: &mut Tenant, change: impl FnOnce(&mut Vec<Buffer>)) {
    let mut chain = good_chain(tenant);
    change(&mut chain);
    tenant.queues[0].ring.add(&chain, None);
}

fn good_chain(tenant: &Tenant) -> Vec<Buffer> {
    let memory = tenant.memory();
    let header = memory.allocate(0, 51);
    memory.write(header, &header_bytes(0, &[0; 6]));
    let response = memory.allocate(0, 108);
    vec![
        Buffer::readable(header, 51),
        Buffer::writable(response, 108),
    ]
}

/// The first descriptor is `(gpa, len, flags, next)`, and available.
fn with_descriptor(tenant: &mut Tenant, gpa: u64, len: u32, flags: u16, next: u16) {
    let ring = &mut tenant.queues[0].ring;
    ring.write_descriptor(0, gpa, len, flags, next);
    ring.publish(0);
}

/// An indirect table with these descriptors.
fn table(tenant: &Tenant, descriptors: &[(u64, u32, u16, u16)]) -> u64 {
    let gpa = tenant.memory().allocate(0, 4096);
    for (i, &(address, len, flags, next)) in (0u64..).zip(descriptors) {
        tenant
            .memory()
            .write(gpa + 16 * i, &descriptor_bytes(address, len, flags, next));
    }
    gpa
}

// covers: VPCI-RNG-4, VPCI-STS-7
#[test]
fn an_avail_index_too_far_ahead_retires_the_ring() {
    retired(ring_error::AVAIL_INDEX, |tenant| {
        let ring = &tenant.queues[0].ring;
        ring.write_avail_index(ring.avail_index().wrapping_add(ring.size() + 1));
    });
}

// covers: VPCI-RNG-4
#[test]
fn a_head_outside_the_table_retires_the_ring() {
    retired(ring_error::DESCRIPTOR_INDEX, |tenant| {
        let size = tenant.queues[0].ring.size();
        tenant.queues[0].ring.publish(size);
    });
}

#[test]
fn the_largest_head_retires_the_ring() {
    retired(ring_error::DESCRIPTOR_INDEX, |tenant| {
        tenant.queues[0].ring.publish(u16::MAX);
    });
}

#[test]
fn a_next_index_outside_the_table_retires_the_ring() {
    retired(ring_error::DESCRIPTOR_INDEX, |tenant| {
        let header = good_chain(tenant)[0].gpa;
        with_descriptor(tenant, header, 51, flag::NEXT, 128);
    });
}

// covers: VPCI-RNG-4
#[test]
fn a_loop_retires_the_ring() {
    retired(ring_error::CHAIN_LENGTH, |tenant| {
        let header = good_chain(tenant)[0].gpa;
        tenant.queues[0]
            .ring
            .write_descriptor(1, header, 51, flag::NEXT, 0);
        with_descriptor(tenant, header, 51, flag::NEXT, 1);
    });
}

#[test]
fn a_descriptor_that_follows_itself_retires_the_ring() {
    retired(ring_error::CHAIN_LENGTH, |tenant| {
        let response = good_chain(tenant)[1].gpa;
        with_descriptor(tenant, response, 108, flag::NEXT | flag::WRITE, 0);
    });
}

#[test]
fn a_loop_in_an_indirect_table_retires_the_ring() {
    retired(ring_error::CHAIN_LENGTH, |tenant| {
        let header = good_chain(tenant)[0].gpa;
        let table = table(
            tenant,
            &[(header, 51, flag::NEXT, 1), (header, 51, flag::NEXT, 0)],
        );
        with_descriptor(tenant, table, 32, flag::INDIRECT, 0);
    });
}

// covers: VPCI-RNG-4
#[test]
fn a_zero_length_buffer_retires_the_ring() {
    retired(ring_error::ZERO_LENGTH, |tenant| {
        with_chain(tenant, |chain| {
            let gpa = chain[0].gpa;
            chain.insert(1, Buffer::readable(gpa, 0));
        });
    });
}

// covers: VPCI-RNG-4
#[test]
fn a_readable_buffer_after_a_writable_one_retires_the_ring() {
    retired(ring_error::ORDER, |tenant| {
        with_chain(tenant, |chain| {
            let gpa = chain[0].gpa;
            chain.push(Buffer::readable(gpa, 512));
        });
    });
}

#[test]
fn a_response_that_may_only_be_read_retires_the_ring() {
    retired(ring_error::TOO_SHORT, |tenant| {
        with_chain(tenant, |chain| chain[1].writable = false);
    });
}

#[test]
fn a_header_that_may_only_be_written_retires_the_ring() {
    retired(ring_error::TOO_SHORT, |tenant| {
        with_chain(tenant, |chain| chain[0].writable = true);
    });
}

#[test]
fn a_short_header_retires_the_ring() {
    retired(ring_error::TOO_SHORT, |tenant| {
        with_chain(tenant, |chain| chain[0].len = 50);
    });
}

#[test]
fn a_short_response_retires_the_ring() {
    retired(ring_error::TOO_SHORT, |tenant| {
        with_chain(tenant, |chain| chain[1].len = 107);
    });
}

// covers: VPCI-RNG-4, VPCI-MEM-6
#[test]
fn a_buffer_where_no_memory_is_retires_the_ring() {
    retired(ring_error::UNMAPPED, |tenant| {
        with_chain(tenant, |chain| chain.push(Buffer::writable(HOLE, 512)));
    });
}

// covers: VPCI-RNG-4, VPCI-MEM-6
#[test]
fn a_buffer_that_reaches_into_the_hole_retires_the_ring() {
    retired(ring_error::UNMAPPED, |tenant| {
        with_chain(tenant, |chain| {
            chain.push(Buffer::writable(8 * MIB - 256, 512));
        });
    });
}

#[test]
fn a_buffer_that_wraps_around_the_address_space_retires_the_ring() {
    retired(ring_error::UNMAPPED, |tenant| {
        with_chain(tenant, |chain| {
            chain.push(Buffer::writable(u64::MAX - 255, 512));
        });
    });
}

#[test]
fn a_header_where_no_memory_is_retires_the_ring() {
    retired(ring_error::UNMAPPED, |tenant| {
        with_chain(tenant, |chain| chain[0].gpa = HOLE);
    });
}

#[test]
fn an_indirect_table_where_no_memory_is_retires_the_ring() {
    retired(ring_error::UNMAPPED, |tenant| {
        with_descriptor(tenant, HOLE, 32, flag::INDIRECT, 0);
    });
}

// covers: VPCI-RNG-4
#[test]
fn an_indirect_table_in_an_indirect_table_retires_the_ring() {
    retired(ring_error::INDIRECT, |tenant| {
        let inner = table(tenant, &[(0, 16, 0, 0)]);
        let outer = table(tenant, &[(inner, 16, flag::INDIRECT, 0)]);
        with_descriptor(tenant, outer, 16, flag::INDIRECT, 0);
    });
}

#[test]
fn an_indirect_table_that_contains_itself_retires_the_ring() {
    retired(ring_error::INDIRECT, |tenant| {
        let own = table(tenant, &[]);
        tenant
            .memory()
            .write(own, &descriptor_bytes(own, 16, flag::INDIRECT, 0));
        with_descriptor(tenant, own, 16, flag::INDIRECT, 0);
    });
}

#[test]
fn an_empty_indirect_table_retires_the_ring() {
    retired(ring_error::INDIRECT, |tenant| {
        let table = table(tenant, &[]);
        with_descriptor(tenant, table, 0, flag::INDIRECT, 0);
    });
}

#[test]
fn a_misshapen_indirect_table_retires_the_ring() {
    retired(ring_error::INDIRECT, |tenant| {
        let table = table(tenant, &[]);
        with_descriptor(tenant, table, 24, flag::INDIRECT, 0);
    });
}

#[test]
fn an_indirect_table_with_a_successor_retires_the_ring() {
    retired(ring_error::INDIRECT, |tenant| {
        let table = table(tenant, &[]);
        with_descriptor(tenant, table, 16, flag::INDIRECT | flag::NEXT, 1);
    });
}

#[test]
fn an_indirect_table_without_the_feature_retires_the_ring() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_like(Shape {
        features: tests::world::VERSION_1,
        ..two_queues()
    });
    let chain = good_chain(&tenant);
    tenant.queues[0].ring.add(&chain, Some(0));
    tenant.queues[0].ring.kick();

    assert_reported(&world, &tenant, RING, ring_error::INDIRECT);
    tenant.queues[1].read(0, 0, 1).unwrap();
}

// covers: VPCI-RNG-4
#[test]
fn what_was_in_flight_when_the_ring_was_retired_completes() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_like(two_queues());
    let queue = &mut tenant.queues[0];
    queue.ready(0).unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|i| queue.add(&Command::new(0, &read10(i, 1)).data_in(BLOCK)))
        .collect();
    queue.ring.publish(u16::MAX);
    queue.ring.kick();

    for task in tasks {
        let outcome = queue.wait_for(task, PATIENCE).unwrap();
        assert_eq!(outcome.good().unwrap(), [0; BLOCK]);
    }
    assert_reported(&world, &tenant, RING, ring_error::DESCRIPTOR_INDEX);
}

// covers: VPCI-RNG-6
#[test]
fn a_ring_whose_used_part_is_not_in_memory_is_retired_and_not_the_appliances_fault() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_not_started(two_queues());
    tenant.connect().unwrap();
    // The last four bytes of the first region cannot hold a used ring.
    tenant.queues[0].ring.misplace_used(8 * MIB - 4);
    tenant.start().unwrap();

    assert_reported(&world, &tenant, RING, ring_error::CONFIGURATION);
    assert_eq!(tenant.queues[1].read(0, 0, 1).unwrap(), [0; BLOCK]);
}

#[test]
fn the_control_queue_is_retired_like_any_other() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_like(two_queues());
    tenant.control.ring.publish(u16::MAX);
    tenant.control.ring.kick();

    assert_reported(&world, &tenant, 0, ring_error::DESCRIPTOR_INDEX);
    tenant.queues[0].read(0, 0, 1).unwrap();
}

#[test]
fn garbage_in_header_and_cdb_is_answered_or_refused_but_never_hurts() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_like(two_queues());
    for opcode in 0..=255 {
        let command = Command::new(0, &[opcode; 32])
            .data_in(64)
            .data_out(&[0xff; 64]);
        tenant.queues[0].command(&command).unwrap();
        let mut elsewhere = command;
        elsewhere.lun = [opcode; 8];
        tenant.queues[0].command(&elsewhere).unwrap();
    }
    tenant.queues[1].read(0, 0, 1).unwrap();
    match world.attach() {
        Attach::Function => assert!(world.function().ring_errors().is_empty()),
        Attach::Socket => assert_eq!(tenant.errors(RING, Duration::ZERO), 0),
    }
}

// covers: VPCI-SEC-3
#[test]
fn rings_rewritten_while_they_are_read_hurt_nobody_else() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_like(two_queues());
    let ring = tenant.queues[0].ring.descriptors();
    let memory = tenant.memory().clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut noise = 0x2545_f491_4f6c_dd1d_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                let at = ring + 8 * (noise % 32);
                let word: u64 = memory.load(at);
                memory.store(at, noise);
                memory.store(at, word);
            }
        });
        for _ in 0..300 {
            let queue = &mut tenant.queues[0];
            if queue.ring.room() < 8 {
                break;
            }
            queue.submit(&Command::new(0, &read10(0, 1)).data_in(BLOCK));
            tenant.queues[1].read(0, 0, 1).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    tenant.queues[1].write(0, 0, &[3; BLOCK]).unwrap();
    assert_eq!(tenant.queues[1].read(0, 0, 1).unwrap(), [3; BLOCK]);
}

// covers: VPCI-SEC-4
#[test]
fn a_frontend_that_talks_nonsense_is_dropped_and_the_next_one_served() {
    let world = world().lun(Lun::file(MIB)).start();
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let nonsense: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
        // A header that promises more than comes, or than fits.
        words(&[request::SET_MEM_TABLE, 1, 264]),
        words(&[request::SET_MEM_TABLE, 1, u32::MAX]),
        words(&[request::SET_FEATURES, 1, 8, u32::MAX, u32::MAX]),
        words(&[request::SET_VRING_NUM, 1, 8, 200, 128]),
        words(&[request::SET_VRING_NUM, 1, 8, 2, 3]),
        words(&[request::SET_VRING_BASE, 1, 8, 2, u32::MAX]),
        words(&[request::SET_VRING_ENABLE, 1, 8, 2, 77]),
        words(&[request::GET_VRING_BASE, 1, 8, 4000, 0]),
        words(&[request::SET_VRING_KICK, 1, 8, 2, 0]),
        words(&[request::SET_MEM_TABLE, 1, 8, 1, 0]),
        words(&[request::SET_MEM_TABLE, 1, 8, u32::MAX, 0]),
        words(&[9999, 1, 0]),
    ];
    for bytes in nonsense {
        let mut tenant = world.tenant_not_started(Shape::default());
        tenant.connect().unwrap();
        // The shim may hang up before it has read all.
        let _ = tenant.frontend().stream().write_all(&bytes);
        drop(tenant);
    }
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

#[test]
fn memory_and_rings_that_make_no_sense_are_refused() {
    let world = world().lun(Lun::file(MIB)).start();
    let table = |gpa, len, offset| Region { gpa, len, offset };
    for region in [
        table(0, 0, 0),
        table(0, u64::MAX, 0),
        table(u64::MAX - 4095, 8192, 0),
        table(0, 4096, u64::MAX - 4095),
        // Past the end of the file.
        table(0, 64 * MIB, 0),
        table(0, 4096, 32 * MIB),
    ] {
        let mut tenant = world.tenant_not_started(Shape::default());
        tenant.connect().unwrap();
        tenant.send_memory(vec![region]).unwrap_err();
    }
    if world.attach() == Attach::Function {
        assert!(!world.is_plugged(0));
    }
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

#[test]
fn a_frontend_that_is_killed_in_the_middle_of_anything_leaves_a_working_hba() {
    let world = world().lun(Lun::file(MIB)).start();
    for messages in 0..40 {
        let mut tenant = world.tenant_not_started(two_queues());
        tenant.connect().unwrap();
        tenant.frontend().hang_up_after(messages);
        // Where it ends does not matter.
        let _ = tenant.start();
        let _ = tenant.stop();
        drop(tenant);
    }
    world.tenant().initiator().read(0, 0, 1).unwrap();
}
