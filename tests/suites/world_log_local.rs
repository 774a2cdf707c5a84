//! What a tenant's QEMU sees of writes to the tenant's memory while it migrates the tenant.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use spec::virtio_scsi::{response, task_management};
use tests::world::{
    Attach, BLOCK, Command, FrontendError, Lun, MIB, PATIENCE, Shape, Tenant, VringAddress, World,
    address, eventually, memfd, protocol, read10, request, user_address, write10,
};

const PAGE: usize = 4096;
/// Bytes of the tenant's memory, and of its log.
const MEMORY: usize = 32 << 20;
const LOG: usize = MEMORY / PAGE / 8;
/// VHOST_USER_F_PROTOCOL_FEATURES and VHOST_F_LOG_ALL.
const PROTOCOL_FEATURES: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;
/// Long enough to see that something does not happen.
const A_WHILE: Duration = Duration::from_millis(50);

fn migratable() -> Shape {
    let shape = Shape::default();
    Shape {
        protocol: shape.protocol | protocol::LOG_SHMFD,
        ..shape
    }
}

/// A tenant that has met the unit attention after power on, and a gated LUN.
fn world() -> (World, Tenant) {
    world_of(migratable())
}

fn world_of(shape: Shape) -> (World, Tenant) {
    let lun = Lun::file(MIB).gated();
    let world = World::over(Attach::Socket).lun(lun).start();
    let mut tenant = world.tenant_like(shape);
    tenant.initiator().write(0, 0, &[7; BLOCK]).unwrap();
    (world, tenant)
}

/// Has writes logged from now on, in the order in which QEMU asks for it.
fn start_log(tenant: &Tenant, file: &File, offset: u64) {
    let frontend = tenant.frontend();
    frontend.set_log_base(file, offset, LOG as u64).unwrap();
    set_features(tenant, LOG_ALL);
    for (ring, queue) in (0..).zip([&tenant.control, &tenant.events, &tenant.queues[0]]) {
        let ring_at = VringAddress {
            descriptor: user_address(queue.ring.descriptors()),
            used: user_address(queue.ring.used()),
            avail: user_address(queue.ring.avail()),
        };
        let log = Some(queue.ring.used());
        frontend
            .set_vring_address_and_log(ring, ring_at, log)
            .unwrap();
    }
}

fn set_features(tenant: &Tenant, more: u64) {
    let features = tenant.features() | PROTOCOL_FEATURES | more;
    tenant
        .frontend()
        .set(request::SET_FEATURES, features)
        .unwrap();
}

fn log(file: &File, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; LOG];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn is_marked(log: &[u8], page: usize) -> bool {
    log[page / 8] >> (page % 8) & 1 == 1
}

/// The pages in which two states of the memory differ.
fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    let pages = before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate();
    pages
        .filter(|(_, (before, after))| before != after)
        .map(|(page, _)| page)
        .collect()
}

#[test]
fn every_page_that_is_written_to_is_marked_and_not_all_are() {
    let (world, mut tenant) = world();
    let file = memfd(MIB, true).unwrap();
    start_log(&tenant, &file, 4096);
    let gate = world.gate(0);
    gate.close();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    for _ in 0..8 {
        tenant.initiator().submit(&read);
    }
    eventually("the reads are at the disk", || gate.waiting() == 8);
    // Pages that the driver changes no more from here on.
    let before = tenant.memory().read(0, MEMORY);
    gate.let_read(&[9; 8 * BLOCK]);
    eventually("all are back", || {
        let ring = &tenant.queues[0].ring;
        ring.used_index() == ring.avail_index()
    });
    tenant.stop().unwrap();

    let changed = changed(&before, &tenant.memory().read(0, MEMORY));
    let log = log(&file, 4096);
    assert!(changed.len() >= 3, "data, responses and the used ring");
    for page in changed {
        assert!(is_marked(&log, page), "page {page}");
    }
    let marked = (0..MEMORY / PAGE).filter(|page| is_marked(&log, *page));
    assert!(marked.count() < 100);
}

#[test]
fn what_was_read_is_marked_where_order_is_kept_though_heads_come_again() {
    let shape = migratable();
    let (_world, mut tenant) = world_of(Shape {
        protocol: shape.protocol & !protocol::INFLIGHT_SHMFD,
        ..shape
    });
    let file = memfd(MIB, true).unwrap();
    start_log(&tenant, &file, 0);
    // Each head serves long reads and short ones in turn.
    for round in 0..300 {
        let blocks = if round % 2 == 0 { 64 } else { 1 };
        let read = Command::new(0, &read10(0, blocks)).data_in(usize::from(blocks) * BLOCK);
        file.write_all_at(&[0; LOG], 0).unwrap();
        let task = tenant.initiator().submit(&read);
        let room = tenant.initiator().room_of(task);
        let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
        outcome.good().unwrap();
        let log = log(&file, 0);
        for (address, len) in room {
            let first = usize::try_from(address).unwrap();
            for page in first / PAGE..=(first + len - 1) / PAGE {
                assert!(is_marked(&log, page), "page {page} in round {round}");
            }
        }
    }
}

#[test]
fn control_responses_and_writes_are_marked_too() {
    let (_world, mut tenant) = world();
    let file = memfd(MIB, true).unwrap();
    start_log(&tenant, &file, 0);
    let at = tenant.send_function(task_management::QUERY_TASK, address(0), 12345);
    assert_eq!(tenant.function_answer(at, PATIENCE), Some(response::OK));
    tenant.initiator().write(0, 1, &[8; BLOCK]).unwrap();
    tenant.stop().unwrap();
    let log = log(&file, 0);
    for address in [
        at + 64,
        tenant.control.ring.used(),
        tenant.queues[0].ring.used(),
    ] {
        let page = usize::try_from(address).unwrap() / PAGE;
        assert!(is_marked(&log, page), "page {page}");
    }
}

#[test]
fn what_a_reset_ends_is_marked_as_it_may_have_been_written_to() {
    let (world, mut tenant) = world();
    let file = memfd(MIB, true).unwrap();
    start_log(&tenant, &file, 0);
    let gate = world.gate(0);
    gate.close();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let task = tenant.initiator().submit(&read);
    eventually("the read is at the disk", || gate.waiting() == 1);
    let (data, _) = tenant.initiator().room_of(task)[0];
    let page = usize::try_from(data).unwrap() / PAGE;
    assert!(!is_marked(&log(&file, 0), page));

    tenant.frontend().tell(request::RESET_DEVICE).unwrap();
    // Answered after it.
    tenant.frontend().get(request::GET_FEATURES).unwrap();

    assert!(is_marked(&log(&file, 0), page));
}

#[test]
fn what_the_end_of_a_connection_ends_is_marked_too() {
    let (world, mut tenant) = world();
    let file = memfd(MIB, true).unwrap();
    start_log(&tenant, &file, 0);
    let gate = world.gate(0);
    gate.close();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let task = tenant.initiator().submit(&read);
    eventually("the read is at the disk", || gate.waiting() == 1);
    let (data, _) = tenant.initiator().room_of(task)[0];
    let page = usize::try_from(data).unwrap() / PAGE;
    assert!(!is_marked(&log(&file, 0), page));

    drop(tenant);

    eventually("it is marked", || is_marked(&log(&file, 0), page));
}

#[test]
fn what_was_under_way_when_the_log_starts_is_over_before_it_does() {
    let (world, mut tenant) = world();
    let file = memfd(MIB, true).unwrap();
    let gate = world.gate(0);
    gate.close();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let task = tenant.initiator().submit(&read);
    eventually("the read is at the disk", || gate.waiting() == 1);
    gate.open();
    let reader = thread::spawn(move || {
        thread::sleep(A_WHILE);
        gate.let_read(&[9; BLOCK]);
    });

    start_log(&tenant, &file, 0);

    let ring = &tenant.queues[0].ring;
    assert_eq!(ring.used_index(), ring.avail_index());
    reader.join().unwrap();
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    assert_eq!(outcome.good().unwrap(), [9; BLOCK]);
    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), [7; BLOCK]);
}

#[test]
fn nothing_is_marked_any_more_when_the_log_has_ended_or_moved() {
    let (_world, mut tenant) = world();
    let file = memfd(MIB, true).unwrap();
    start_log(&tenant, &file, 0);
    tenant.initiator().read(0, 0, 1).unwrap();
    assert_ne!(log(&file, 0), [0; LOG]);

    let other = memfd(MIB, true).unwrap();
    let frontend = tenant.frontend();
    frontend.set_log_base(&other, 0, LOG as u64).unwrap();
    file.write_all_at(&[0; LOG], 0).unwrap();
    tenant.initiator().read(0, 0, 1).unwrap();
    assert_eq!(log(&file, 0), [0; LOG]);
    let used = usize::try_from(tenant.queues[0].ring.used()).unwrap() / PAGE;
    assert!(is_marked(&log(&other, 0), used));

    set_features(&tenant, 0);
    other.write_all_at(&[0; LOG], 0).unwrap();
    let write = Command::new(0, &write10(2, 1)).data_out(&[6; BLOCK]);
    tenant.initiator().run(&write).unwrap();
    assert_eq!(log(&other, 0), [0; LOG]);
}

#[test]
fn a_log_that_its_owner_can_shorten_is_refused_and_the_next_tenant_served() {
    let (world, tenant) = world();
    let file = memfd(MIB, false).unwrap();
    let refused = tenant.frontend().set_log_base(&file, 0, LOG as u64);
    assert!(matches!(refused, Err(FrontendError::Closed)));
    drop(tenant);
    world.tenant().initiator().read(0, 0, 1).unwrap();
}
