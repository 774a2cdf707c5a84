//! What only a vhost-pci function has: vectors, a status, and a session that anybody could write.

use appliance::device::Device;
use spec::device::{error, ring_error, status};
use tests::world::{BLOCK, Lun, MIB, Shape, World, eventually, protocol};

/// The first request queue.
const RING: u16 = 2;

fn two_queues() -> Shape {
    Shape {
        queues: 2,
        ..Shape::default()
    }
}

// covers: VPCI-INT-1, VPCI-INT-4
#[test]
fn queues_that_share_vectors_all_work() {
    for granted in [1, 2, 3] {
        let world = World::new()
            .vectors(granted)
            .lun(Lun::file(16 * MIB))
            .start();
        let mut tenant = world.tenant_like(Shape {
            queues: 4,
            ..Shape::default()
        });
        let vectors = world.function().read(spec::device::VECTORS);
        assert_eq!(usize::try_from(vectors), Ok(granted));

        for round in 0..16 {
            for (i, queue) in (0u8..).zip(&mut tenant.queues) {
                let block = [16 * i + round; BLOCK];
                queue.write(0, u32::from(i), &block).unwrap();
                assert_eq!(queue.read(0, u32::from(i), 1).unwrap(), block);
            }
        }
    }
}

// covers: VPCI-STS-7
#[test]
fn a_tenant_that_leaves_and_comes_back_is_not_blamed_for_what_was() {
    let world = World::new().lun(Lun::file(MIB)).start();
    // With in-flight memory, the device would be another for a QEMU that has forgotten its own.
    let mut shape = two_queues();
    shape.protocol &= !protocol::INFLIGHT_SHMFD;
    let mut tenant = world.tenant_like(shape);
    let function = world.function();
    let needs_reset = || function.read(spec::device::STATUS) & status::NEEDS_RESET != 0;
    for times in 1..=3 {
        tenant.queues[1].ring.publish(u16::MAX);
        tenant.queues[1].ring.kick();
        assert_eq!(
            function.wait_ring_errors(times).last(),
            Some(&(RING + 1, ring_error::DESCRIPTOR_INDEX))
        );
        eventually("the ring counts as retired", needs_reset);

        tenant.disconnect();

        eventually("the tenant's fault is forgotten", || !needs_reset());
        assert_eq!(function.read(spec::device::ERROR), error::NONE);
        // The same device, with empty and sound rings.
        tenant.forget_rings();
        tenant.connect().unwrap();
        tenant.start().unwrap();
        tenant.queues[0].read(0, 0, 1).unwrap();
        assert_eq!(world.plugs(0), 1);
    }
}

// covers: VPCI-SEC-4, VPCI-RNG-5, VPCI-BEL-5
#[test]
fn an_appliance_that_writes_anything_anywhere_does_not_hurt_the_shim() {
    let mut world = World::new().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &[8; BLOCK]).unwrap();
    world.stop_appliance();
    let function = world.function();
    let session = function
        .map(spec::device::BAR_SESSION, spec::session::LEN)
        .unwrap();
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2000 {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        let [a, b, c, d, e, f, g, h] = noise.to_le_bytes();
        let at = u64::from(u16::from_le_bytes([a, b])) & !3;
        let offset = if c % 2 == 0 { (at % 0x58) & !3 } else { at };
        let value = u32::from_le_bytes([d, e, f % 3, g % 3]);
        // RESET too; what the shim answers does not matter, that it answers does.
        let _ = function.write32(offset, value);
        function.read32(offset).unwrap();
        let place = u64::from(u32::from_le_bytes([a, b, h % 2, 0]));
        if let Some(slice) = session.slice(place, 1) {
            slice.copy_from(&[g]);
        }
    }
    drop(session);
    world.kill_appliance();
    world.start_appliance();

    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), [8; BLOCK]);
}
