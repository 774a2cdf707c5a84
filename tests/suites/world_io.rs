//! Reads, writes and everything around them, from the tenant's driver to the disk and back.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::thread;
use std::time::Duration;

use spec::virtio_scsi::response;
use tests::world::{
    BLOCK, Builder, Command, EVENT_IDX, Failure, INDIRECT_DESC, Initiator, Lun, MIB, POISON, Shape,
    VERSION_1, World, address, protocol, read10, read16, write10,
};

/// ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE (SPC-5 annex F).
const LBA_OUT_OF_RANGE: Failure = sense(5, 0x21, 0);
/// ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED.
const LUN_NOT_SUPPORTED: Failure = sense(5, 0x25, 0);
/// DATA PROTECT, WRITE PROTECTED.
const WRITE_PROTECTED: Failure = sense(7, 0x27, 0);

/// A world in which the tenant reaches the appliance as the suite's name says; `world_io_local` is
/// this suite as well.
fn world() -> Builder {
    World::of_suite(env!("CARGO_CRATE_NAME"))
}

const fn sense(key: u8, asc: u8, ascq: u8) -> Failure {
    Failure::Sense { key, asc, ascq }
}

/// Bytes that are different for each block and `seed`.
fn pattern(lba: u32, blocks: usize, seed: u32) -> Vec<u8> {
    (0..blocks * BLOCK / 8)
        .flat_map(|i| {
            let word = u64::from(lba) << 32 | u64::from(seed) << 20 | i as u64;
            word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
        })
        .collect()
}

/// A reproducible sequence of numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(end)).unwrap()
    }
}

/// Random writes of 1 to 32 blocks over `range`, each read back at once, all read back at the end.
fn churn(initiator: &mut Initiator, lun: u16, range: std::ops::Range<u32>, seed: u32) {
    let mut numbers = Numbers(u64::from(seed) + 1);
    let blocks = range.end - range.start;
    let mut image = vec![0; blocks as usize * BLOCK];
    for round in 0..60 {
        let at = numbers.below(blocks - 32);
        let len = 1 + numbers.below(32) as usize;
        let data = pattern(at, len, seed * 1000 + round);
        initiator.write(lun, range.start + at, &data).unwrap();
        let here = at as usize * BLOCK;
        image[here..here + data.len()].copy_from_slice(&data);
        let count = u16::try_from(len).unwrap();
        assert_eq!(initiator.read(lun, range.start + at, count).unwrap(), data);
    }
    for at in (0..blocks).step_by(64) {
        let here = at as usize * BLOCK;
        assert!(
            initiator.read(lun, range.start + at, 64).unwrap() == image[here..here + 64 * BLOCK]
        );
    }
}

#[test]
fn a_written_block_is_read_back_and_is_in_the_file() {
    let world = world().lun(Lun::file(16 * MIB)).start();
    let mut tenant = world.tenant();
    let data = pattern(7, 8, 1);

    tenant.initiator().write(0, 7, &data).unwrap();

    assert_eq!(tenant.initiator().read(0, 7, 8).unwrap(), data);
    assert_eq!(tenant.initiator().read(0, 6, 1).unwrap(), [0; BLOCK]);
    tenant.initiator().flush(0).unwrap();
    assert_eq!(world.image(0, 7 * BLOCK as u64, 8 * BLOCK), data);
}

#[test]
fn capacity_inquiry_and_report_luns_describe_the_luns() {
    let world = world()
        .lun(Lun::file(16 * MIB))
        .lun(Lun::file(3 * MIB))
        .start();
    let mut tenant = world.tenant();
    let initiator = tenant.initiator();

    assert_eq!(initiator.report_luns().unwrap(), [0, 1]);
    assert_eq!(initiator.capacity(0).unwrap(), (32768, 512));
    assert_eq!(initiator.capacity(1).unwrap(), (6144, 512));
    let inquiry = initiator.inquiry(0).unwrap();
    assert_eq!(inquiry[0], 0, "a connected direct-access block device");
    assert!(inquiry[2] >= 5, "SPC-3 or later");
    initiator.ready(1).unwrap();
}

#[test]
fn each_lun_is_a_disk_of_its_own() {
    let world = world().lun(Lun::file(MIB)).lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    let (first, second) = (pattern(0, 4, 1), pattern(0, 4, 2));

    tenant.initiator().write(0, 0, &first).unwrap();
    tenant.initiator().write(1, 0, &second).unwrap();

    assert_eq!(tenant.initiator().read(0, 0, 4).unwrap(), first);
    assert_eq!(tenant.initiator().read(1, 0, 4).unwrap(), second);
}

#[test]
fn read_past_end_reports_lba_out_of_range() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    let initiator = tenant.initiator();

    assert_eq!(initiator.read(0, 2047, 1).unwrap().len(), BLOCK);
    assert_eq!(initiator.read(0, 2048, 1), Err(LBA_OUT_OF_RANGE));
    assert_eq!(initiator.read(0, 2047, 2), Err(LBA_OUT_OF_RANGE));
    let past_all = Command::new(0, &read16(u64::MAX, 8)).data_in(8 * BLOCK);
    assert_eq!(initiator.run(&past_all), Err(LBA_OUT_OF_RANGE));
}

#[test]
fn a_missing_lun_is_not_there_and_a_missing_target_is_a_bad_target() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    let initiator = tenant.initiator();

    assert_eq!(
        initiator.inquiry(5).unwrap()[0],
        0x7f,
        "qualifier 011b, no device"
    );
    assert_eq!(initiator.read(5, 0, 1), Err(LUN_NOT_SUPPORTED));
    let mut elsewhere = Command::new(0, &[0; 6]);
    elsewhere.lun = [1, 9, 0x40, 0, 0, 0, 0, 0];
    let outcome = initiator.command(&elsewhere).unwrap();
    assert_eq!(outcome.response.response, response::BAD_TARGET);
}

#[test]
fn a_read_only_lun_refuses_writes_and_keeps_its_bytes() {
    let world = world().lun(Lun::file(MIB).read_only()).start();
    let mut tenant = world.tenant();

    let refused = tenant.initiator().write(0, 0, &[0xaa; BLOCK]);

    assert_eq!(refused, Err(WRITE_PROTECTED));
    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), [0; BLOCK]);
}

/// Features of a driver, with a size of its rings.
const RINGS: [(u64, u16); 4] = [
    (VERSION_1, 8),
    (VERSION_1 | EVENT_IDX, 128),
    (VERSION_1 | INDIRECT_DESC, 4),
    (VERSION_1 | INDIRECT_DESC | EVENT_IDX, 1024),
];

#[test]
fn disks_that_are_done_at_once_carry_verified_io_on_every_kind_of_ring() {
    for (features, ring_size) in RINGS {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let world = world()
            .images_in(folder.path())
            .lun(Lun::ram(MIB))
            .lun(Lun::file(MIB).write_back())
            .start();
        let mut tenant = world.tenant_like(Shape {
            features,
            ring_size,
            ..Shape::default()
        });
        for lun in 0..2 {
            churn(tenant.initiator(), lun, 0..2048, 5);
            // One of several pieces, and one that is not all there.
            let data = pattern(9, 8, 6);
            let write = Command::new(lun, &write10(9, 8)).data_out(&data);
            tenant.initiator().run(&write.pieces(700)).unwrap();
            let read = Command::new(lun, &read10(9, 8)).data_in(8 * BLOCK);
            let done = tenant.initiator().run(&read.pieces(700)).unwrap();
            assert!(done == data);
            assert_eq!(tenant.initiator().read(lun, 2047, 2), Err(LBA_OUT_OF_RANGE));
        }
    }
}

#[test]
fn every_kind_of_ring_carries_verified_io() {
    for (features, size) in RINGS {
        let world = world().lun(Lun::file(MIB)).start();
        let mut tenant = world.tenant_like(Shape {
            features,
            ring_size: size,
            ..Shape::default()
        });
        assert_eq!(tenant.features(), features);
        churn(tenant.initiator(), 0, 0..2048, 1);
    }
}

#[test]
fn every_protocol_of_the_tenants_qemu_carries_verified_io() {
    let least = protocol::MQ;
    for protocol in [
        0,
        least,
        least | protocol::REPLY_ACK,
        least | protocol::CONFIGURE_MEM_SLOTS,
        least | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS | protocol::GPA_ADDRESSES,
    ] {
        let world = world().lun(Lun::file(MIB)).start();
        let mut tenant = world.tenant_like(Shape {
            protocol,
            ..Shape::default()
        });
        churn(tenant.initiator(), 0, 0..256, 2);
    }
}

#[test]
fn write_back_carries_verified_io() {
    let world = world().lun(Lun::file(MIB).write_back()).start();
    let mut tenant = world.tenant();

    churn(tenant.initiator(), 0, 0..2048, 3);
}

#[test]
fn a_disk_without_bounce_buffers_carries_verified_io() {
    let world = world().lun(Lun::file(MIB).in_place()).start();
    let mut tenant = world.tenant();

    churn(tenant.initiator(), 0, 0..2048, 4);
}

#[test]
fn four_queues_work_at_once() {
    let world = world().lun(Lun::file(16 * MIB)).start();
    let mut tenant = world.tenant_like(Shape {
        queues: 4,
        ..Shape::default()
    });

    thread::scope(|scope| {
        for (i, queue) in (0u32..).zip(&mut tenant.queues) {
            scope.spawn(move || churn(queue, 0, i * 4096..i * 4096 + 2048, 10 + i));
        }
    });
}

#[test]
fn buffers_on_both_sides_of_the_hole_carry_verified_io() {
    let world = world().lun(Lun::file(MIB)).start();
    // As 6 GiB of q35 RAM look: below 2 GiB, and from 4 GiB on.
    let mut tenant = world.tenant_like(Shape {
        memory: vec![(0, 8 * MIB), (4 << 30, 8 * MIB)],
        ..Shape::default()
    });
    tenant.initiator().data_regions = vec![1, 0];
    let data = pattern(0, 64, 4);

    let write = Command::new(0, &write10(0, 64)).data_out(&data);
    tenant.initiator().run(&write.pieces(1000)).unwrap();
    let read = Command::new(0, &read10(0, 64)).data_in(data.len());
    assert_eq!(tenant.initiator().run(&read.pieces(3000)).unwrap(), data);
    churn(tenant.initiator(), 0, 256..2048, 4);
}

#[test]
fn a_buffer_may_cross_from_one_region_to_the_next() {
    let world = world().lun(Lun::file(MIB)).start();
    // As QEMU splits RAM around the firmware's shadow: adjacent regions of one file.
    let mut tenant = world.tenant_like(Shape {
        memory: vec![(0, 4 * MIB), (4 * MIB, 4 * MIB)],
        ..Shape::default()
    });
    let data = pattern(0, 16, 5);
    tenant.initiator().write(0, 0, &data).unwrap();

    let got = tenant
        .initiator()
        .read_to(0, 0, 16, 4 * MIB - 4096)
        .unwrap();

    assert_eq!(got, data);
}

#[test]
fn a_large_transfer_in_many_pieces_arrives_whole() {
    let world = world().lun(Lun::file(16 * MIB)).start();
    let mut tenant = world.tenant();
    let data = pattern(100, 4096, 6);

    let write = Command::new(0, &write10(100, 4096)).data_out(&data);
    tenant.initiator().run(&write.pieces(16 << 10)).unwrap();
    let read = Command::new(0, &read10(100, 4096)).data_in(data.len());
    let got = tenant.initiator().run(&read.pieces(20_000)).unwrap();

    assert!(got == data);
    assert!(world.image(0, 100 * BLOCK as u64, data.len()) == data);
}

#[test]
fn many_commands_in_flight_all_complete() {
    let world = world().lun(Lun::file(16 * MIB)).start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).ok();
    let queue = tenant.initiator();

    for round in 0..20 {
        let tasks: Vec<_> = (0..100)
            .map(|i| {
                let data = pattern(i * 8, 8, round);
                queue.submit(&Command::new(0, &write10(i * 8, 8)).data_out(&data))
            })
            .collect();
        for task in tasks {
            let outcome = queue.wait_for(task, tests::world::PATIENCE).unwrap();
            outcome.good().unwrap();
        }
    }
    for i in 0..100 {
        assert!(queue.read(0, i * 8, 8).unwrap() == pattern(i * 8, 8, 19));
    }
}

#[test]
fn ring_indexes_wrap() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_not_started(Shape {
        ring_size: 16,
        ..Shape::default()
    });
    tenant.initiator().ring.begin_at(65_500);
    tenant.set_base(2, 65_500);
    tenant.connect().unwrap();
    tenant.start().unwrap();

    churn(tenant.initiator(), 0, 0..256, 7);

    assert!(tenant.initiator().ring.used_index() < 65_500);
}

#[test]
fn data_that_does_not_come_is_the_residual() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    let initiator = tenant.initiator();
    initiator.ready(0).unwrap();

    // Room for more than READ CAPACITY(10)'s 8 bytes.
    let capacity = Command::new(0, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]).data_in(64);
    let outcome = initiator.command(&capacity).unwrap();

    assert_eq!(outcome.response.residual, 56);
    assert_eq!(outcome.used_len, 108 + 8);
    assert_eq!(outcome.data[8..], [POISON; 56]);
    assert_eq!(outcome.good().unwrap()[..8], [0, 0, 7, 0xff, 0, 0, 2, 0]);

    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK + 100);
    let outcome = initiator.command(&read).unwrap();
    assert_eq!(outcome.response.residual, 100);
    assert_eq!(outcome.good().unwrap()[BLOCK..], [POISON; 100]);
}

#[test]
fn a_command_with_too_little_room_is_an_overrun() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    let initiator = tenant.initiator();
    initiator.ready(0).unwrap();

    let read = Command::new(0, &read10(0, 8)).data_in(7 * BLOCK);
    let write = Command::new(0, &write10(0, 8)).data_out(&[1; 7 * BLOCK]);

    for command in [read, write] {
        let outcome = initiator.command(&command).unwrap();
        assert_eq!(outcome.response.response, response::OVERRUN);
    }
    assert_eq!(initiator.read(0, 0, 1).unwrap(), [0; BLOCK]);
}

#[test]
fn task_management_is_answered_on_the_control_queue() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();

    // LOGICAL UNIT RESET, then QUERY TASK of a task that is not there (virtio 1.3 §5.6.6.2).
    assert_eq!(tenant.task_management(5, address(0), 0).unwrap(), 0);
    assert_eq!(tenant.task_management(6, address(0), 77).unwrap(), 0);
    assert_eq!(
        tenant.task_management(5, address(9), 0).unwrap(),
        response::INCORRECT_LUN
    );
    churn(tenant.initiator(), 0, 0..256, 8);
}

// covers: VPCI-BEL-1, VPCI-BEL-3, VPCI-BEL-6
#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let world = world().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant_like(Shape {
        features: VERSION_1,
        ..Shape::default()
    });
    let queue = tenant.initiator();
    queue.ready(0).unwrap();
    queue.ring.suppress_calls(true);
    // One for what was before may still be on its way.
    thread::sleep(Duration::from_millis(50));
    queue.ring.drain_calls();

    for _ in 0..50 {
        let task = queue.submit(&Command::new(0, &[0; 6]));
        queue.poll_for(task, tests::world::PATIENCE).unwrap();
    }
    assert_eq!(queue.ring.drain_calls(), 0, "calls nobody asked for");

    queue.ring.suppress_calls(false);
    queue.ready(0).unwrap();
}
