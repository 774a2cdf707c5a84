//! What only a vhost-user socket has: several memory files, frontends that queue, eventfds that
//! are none.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use spec::virtio_scsi::{RequestHeader, Response, event, response, task_management};
use tests::world::{
    Attach, BLOCK, Buffer, Builder, Command, Failure, FrontendError, Lun, MIB, PATIENCE, Region,
    Shape, Tenant, World, address, eventually, header_bytes, memfd, protocol, read10, request,
    user_address,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Where a memory device is plugged.
const DIMM: u64 = 8 << 30;
/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);

fn world() -> Builder {
    World::over(Attach::Socket).lun(Lun::file(MIB))
}

/// A memory device with a file of its own, of which the backend is told.
fn plug_dimm(tenant: &Tenant) -> (Region, File) {
    let file = memfd(MIB, true).unwrap();
    let region = Region {
        gpa: DIMM,
        len: MIB,
        offset: 0,
    };
    tenant
        .frontend()
        .add_mem_reg(&region, &file, user_address)
        .unwrap();
    (region, file)
}

/// Has the first block of LUN 0 read to `gpa`; whether that ended.
fn read_to(tenant: &mut Tenant, gpa: u64) -> bool {
    let memory = tenant.memory().clone();
    let header = memory.allocate(0, 4096);
    let response = memory.allocate(0, 4096);
    memory.write(header, &header_bytes(0, &read10(0, 1)));
    let chain = [
        Buffer::readable(header, u32::try_from(RequestHeader::LEN).unwrap()),
        Buffer::writable(response, u32::try_from(Response::LEN).unwrap()),
        Buffer::writable(gpa, u32::try_from(BLOCK).unwrap()),
    ];
    let ring = &mut tenant.queues[0].ring;
    ring.add(&chain, None);
    ring.kick();
    ring.take_used(A_WHILE * 20).is_some()
}

#[test]
fn a_memory_device_with_a_file_of_its_own_takes_data_until_it_is_unplugged() {
    let world = world().start();
    let mut tenant = world.tenant_like(Shape {
        wants_errors: true,
        ..Shape::default()
    });
    tenant.initiator().write(0, 0, &[7; BLOCK]).unwrap();
    let (region, file) = plug_dimm(&tenant);

    assert!(read_to(&mut tenant, DIMM + 512));

    let mut block = [0; BLOCK];
    file.read_exact_at(&mut block, 512).unwrap();
    assert_eq!(block, [7; BLOCK]);

    tenant
        .frontend()
        .rem_mem_reg(&region, user_address)
        .unwrap();
    file.write_all_at(&[0; BLOCK], 512).unwrap();
    assert!(!read_to(&mut tenant, DIMM + 512));
    assert_eq!(tenant.errors(2, PATIENCE), 1);
    file.read_exact_at(&mut block, 512).unwrap();
    assert_eq!(
        block, [0; BLOCK],
        "memory that was taken back is written to"
    );
}

#[test]
fn memory_in_one_message_may_be_of_several_files() {
    let world = world().start();
    let mut tenant = world.tenant_like(Shape {
        protocol: protocol::MQ | protocol::REPLY_ACK,
        ..Shape::default()
    });
    tenant.initiator().write(0, 0, &[9; BLOCK]).unwrap();
    let dimm = memfd(MIB, true).unwrap();
    let region = Region {
        gpa: DIMM,
        len: MIB / 2,
        offset: MIB / 2,
    };
    let mut table: Vec<_> = tenant.memory().regions().to_vec();
    table.push(region);
    let files: Vec<_> = table
        .iter()
        .map(|region| {
            let file = if region.gpa == DIMM {
                &dimm
            } else {
                tenant.memory().file()
            };
            (*region, file)
        })
        .collect();
    tenant
        .frontend()
        .set_mem_table(&files, user_address)
        .unwrap();

    assert!(read_to(&mut tenant, DIMM));

    let mut block = [0; BLOCK];
    dimm.read_exact_at(&mut block, MIB / 2).unwrap();
    assert_eq!(block, [9; BLOCK]);
}

#[test]
fn memory_that_its_owner_can_shorten_is_refused_and_the_next_tenant_served() {
    let world = world().start();
    let mut tenant = world.tenant_not_started(Shape {
        sealed: false,
        ..Shape::default()
    });
    tenant.connect().unwrap();
    let refused = tenant.start().unwrap_err();
    assert!(
        matches!(refused, FrontendError::Refused { request: code, .. } if code == request::ADD_MEM_REG),
        "{refused}"
    );
    drop(tenant);
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

#[test]
fn a_frontend_that_comes_back_goes_on_with_its_rings_and_meets_a_unit_attention() {
    let world = world().start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 3, &[1; BLOCK]).unwrap();
    for round in 0..5 {
        tenant.reconnect().unwrap();
        let read = Command::new(0, &read10(3, 1)).data_in(BLOCK);
        let first = tenant.initiator().command(&read).unwrap().good();
        let power_on = Failure::Sense {
            key: 6,
            asc: 0x29,
            ascq: 0,
        };
        assert_eq!(first, Err(power_on), "round {round}");
        assert_eq!(tenant.initiator().read(0, 3, 1).unwrap(), [1; BLOCK]);
    }
}

#[test]
fn a_frontend_that_stops_its_rings_goes_on_where_they_stood() {
    let world = world().start();
    let mut tenant = world.tenant();
    for round in 1..=5u8 {
        tenant.initiator().write(0, 3, &[round; BLOCK]).unwrap();
        tenant.stop().unwrap();
        let next = u32::from(tenant.queues[0].ring.avail_index());
        assert_eq!(tenant.base(2), next);
        tenant.start().unwrap();
        assert_eq!(tenant.initiator().read(0, 3, 1).unwrap(), [round; BLOCK]);
    }
    tenant.reset().unwrap();
    tenant.start().unwrap();
    assert_eq!(tenant.initiator().read(0, 3, 1).unwrap(), [5; BLOCK]);
}

#[test]
fn a_second_frontend_is_served_when_the_first_is_gone() {
    let world = world().start();
    let mut first = world.tenant();
    first.initiator().write(0, 0, &[4; BLOCK]).unwrap();
    let second = std::thread::scope(|scope| {
        let second = scope.spawn(|| world.tenant());
        std::thread::sleep(A_WHILE);
        assert!(!second.is_finished());
        assert_eq!(first.initiator().read(0, 0, 1).unwrap(), [4; BLOCK]);
        first.disconnect();
        second.join()
    });
    let mut second = second.unwrap();
    assert_eq!(second.initiator().read(0, 0, 1).unwrap(), [4; BLOCK]);
}

#[test]
fn a_command_that_hangs_keeps_its_frontend_waiting_no_longer_than_was_said() {
    let world = World::over(Attach::Socket)
        .drain_timeout(Duration::from_millis(200))
        .lun(Lun::file(MIB).gated().write_back())
        .start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    world.gate(0).close();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    tenant.initiator().submit(&read);
    eventually("the read hangs", || world.gate(0).waiting() == 1);

    tenant.frontend().ask_vring_base(2).unwrap();
    assert!(matches!(
        tenant.frontend().vring_base(2),
        Err(FrontendError::Closed)
    ));

    world.gate(0).open();
    world.gate(0).let_read(&[0; BLOCK]);
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

#[test]
fn an_eventfd_that_is_none_is_refused_and_the_next_tenant_served() {
    let world = world().start();
    for message in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        let tenant = world.tenant();
        let zeros = File::open("/dev/zero").unwrap();
        let refused =
            tenant
                .frontend()
                .acknowledged(message, &2u64.to_le_bytes(), &[zeros.as_raw_fd()]);
        assert!(
            matches!(refused, Err(FrontendError::Refused { request: code, .. }) if code == message)
        );
    }
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

#[test]
fn half_a_message_keeps_nobody_from_ending_the_service() {
    let mut world = world().start();
    let tenant = world.tenant();
    tenant.frontend().stream().write_all(&[1, 0, 0]).unwrap();
    std::thread::sleep(A_WHILE);

    world.stop_appliance();

    assert!(tenant.frontend().answers_within(PATIENCE).unwrap());
    world.start_appliance();
    drop(tenant);
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

#[test]
fn a_tenant_outlives_its_appliance() {
    let mut world = world().start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &[6; BLOCK]).unwrap();
    world.stop_appliance();
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    tenant.initiator().ready(0).unwrap_err();
    world.start_appliance();

    tenant.reconnect().unwrap();

    // The command that came while nobody was there, and the one after the unit attention.
    tenant.initiator().command(&read).unwrap();
    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), [6; BLOCK]);
}

#[test]
fn an_hba_that_leaves_the_configuration_drops_its_frontend_and_comes_back() {
    let mut world = World::over(Attach::Socket)
        .lun(Lun::file(MIB))
        .another_hba()
        .lun(Lun::file(MIB))
        .start();
    let tenant = world.tenant();
    let mut other = world.tenant_of(1, Shape::default());
    world.hide_hba(0, true).unwrap();
    assert!(tenant.frontend().answers_within(PATIENCE).unwrap());
    drop(tenant);
    other.initiator().read(0, 0, 1).unwrap();
    world.hide_hba(0, false).unwrap();
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

/// A tenant whose driver wants to hear of LUNs that come and go.
fn tenant_that_listens(world: &World) -> Tenant {
    world.tenant_like(Shape {
        features: Shape::default().features | spec::virtio_scsi::feature::HOTPLUG,
        ..Shape::default()
    })
}

#[test]
fn a_lun_that_comes_is_told_as_an_event() {
    let mut world = world().start();
    let mut tenant = tenant_that_listens(&world);
    // A driver that has reset the device has missed nothing.
    tenant.reset().unwrap();
    tenant.start().unwrap();
    world.add_lun(0, 0, 1, Lun::file(MIB)).unwrap();
    let told = tenant.next_event().unwrap();
    assert_eq!(
        (told.event, told.reason),
        (event::TRANSPORT_RESET, event::RESCAN)
    );
    tenant.initiator().read(1, 0, 1).unwrap();
}

#[test]
fn a_driver_that_comes_from_another_appliance_is_told_that_it_may_have_missed_events() {
    let mut world = world().start();
    let mut tenant = tenant_that_listens(&world);
    tenant.reset().unwrap();
    tenant.start().unwrap();
    world.stop_appliance();
    world.start_appliance();

    tenant.reconnect().unwrap();

    let told = tenant.next_event().unwrap();
    assert_eq!(told.event, event::NO_EVENT | event::MISSED);
}

#[test]
fn a_call_eventfd_is_exchanged_while_the_ring_runs() {
    let world = world().start();
    let mut tenant = world.tenant();
    for round in 0..20u8 {
        tenant.initiator().write(0, 0, &[round; BLOCK]).unwrap();
        tenant.swap_call(2).unwrap();
        assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), [round; BLOCK]);
    }
}

/// Has the file description of an eventfd block, as whoever shares it can at any time.
fn make_blocking(eventfd: &EventFd) {
    let (here, there) = UnixStream::pair().unwrap();
    here.send_with_fds(&[&[0u8][..]], &[eventfd.as_raw_fd()])
        .unwrap();
    let (_, file) = there.recv_with_fd(&mut [0]).unwrap();
    // FIONBIO is the same for every kind of file.
    let same = UnixStream::from(OwnedFd::from(file.unwrap()));
    same.set_nonblocking(false).unwrap();
}

#[test]
fn call_and_error_eventfds_that_block_and_are_full_stop_nobody() {
    let mut world = World::over(Attach::Socket)
        .lun(Lun::file(MIB).shared())
        .another_hba()
        .shared_lun(0)
        .start();
    let mut tenant = world.tenant();
    let mut neighbour = world.tenant_of(1, Shape::default());
    tenant.initiator().ready(0).unwrap();
    for message in [request::SET_VRING_CALL, request::SET_VRING_ERR] {
        let full = EventFd::new(0).unwrap();
        full.write(u64::MAX - 1).unwrap();
        tenant
            .frontend()
            .set_vring_fd(message, 2, Some(&full))
            .unwrap();
        make_blocking(&full);
    }

    for lba in 0..50 {
        let task = tenant
            .initiator()
            .submit(&Command::new(0, &read10(lba, 1)).data_in(BLOCK));
        tenant
            .initiator()
            .poll_for(task, PATIENCE)
            .unwrap()
            .good()
            .unwrap();
    }
    // An avail index that runs away: the ring is retired, and that reported.
    let memory = tenant.memory().clone();
    let ring = &mut tenant.queues[0].ring;
    let runaway = ring.avail_index().wrapping_add(1000);
    memory.write(ring.avail() + 2, &runaway.to_le_bytes());
    ring.kick();
    // A reset of the shared unit waits for the worker of the tenant.
    let reset = task_management::LOGICAL_UNIT_RESET;
    assert_eq!(
        neighbour.task_management(reset, address(0), 0),
        Some(response::OK)
    );
    world.stop_appliance();
}
