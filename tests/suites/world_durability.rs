//! What was acknowledged, and what is left of it when the storage VM crashes.

use tests::world::{BLOCK, Command, Failure, Initiator, Lun, MIB, World, eventually, write10};

/// HARDWARE ERROR, LOGICAL UNIT FAILURE.
const LOST: Failure = Failure::Sense {
    key: 4,
    asc: 0x3e,
    ascq: 1,
};

fn write_back() -> World {
    World::new().lun(Lun::file(MIB).write_back()).start()
}

/// How reading, writing and flushing end.
fn three(initiator: &mut Initiator) -> [Option<Failure>; 3] {
    [
        initiator.read(0, 7, 1).err(),
        initiator.write(0, 8, &[0x22; BLOCK]).err(),
        initiator.flush(0).err(),
    ]
}

// --- Write-back LUNs after a crash -----------------------------------------------------------

// covers: VPCI-MRK-1, VPCI-MRK-2, VPCI-MRK-3
#[test]
fn a_write_back_lun_fails_after_a_crash_that_it_had_not_flushed_before() {
    let mut world = write_back();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
    for _ in 0..2 {
        world.crash_storage_vm();
        world.start_appliance();
        let all = three(tenant.initiator());
        assert_eq!(all, [Some(LOST); 3]);
        // It says who it is, and how large.
        assert_eq!(tenant.initiator().ready(0), Ok(()));
        assert_eq!(tenant.initiator().inquiry(0).unwrap().len(), 96);
        assert_eq!(tenant.initiator().capacity(0).unwrap(), (2048, 512));
    }
    // The operator says that it is known.
    world.remove_lun(0, 0, 0).unwrap();
    eventually("the disk is free", || world.show_lun(0, 0, 0, 0).is_ok());
    assert_eq!(three(tenant.initiator()), [None; 3]);
    world.crash_storage_vm();
    world.start_appliance();
    assert_eq!(three(tenant.initiator()), [None; 3]);
}

// covers: VPCI-MRK-2
#[test]
fn what_is_on_stable_storage_survives_a_crash_and_the_lun_goes_on() {
    // SYNCHRONIZE CACHE(10); WRITE(10) with FUA, which takes what was written before with it.
    let flush = Command::new(0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut cdb = write10(9, 1);
    cdb[1] = 0x08;
    let fua = Command::new(0, &cdb).data_out(&[0x33; BLOCK]);
    for settles in [flush, fua] {
        let mut world = write_back();
        let mut tenant = world.tenant();
        tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
        tenant.initiator().run(&settles).unwrap();
        world.crash_storage_vm();
        world.start_appliance();
        assert_eq!(tenant.initiator().read(0, 7, 1).unwrap(), [0x11; BLOCK]);
        // And it is at stake again from the next write on.
        tenant.initiator().write(0, 7, &[0x44; BLOCK]).unwrap();
        world.crash_storage_vm();
        world.start_appliance();
        assert_eq!(three(tenant.initiator()), [Some(LOST); 3]);
    }
}

#[test]
fn a_write_back_lun_goes_on_when_only_the_appliance_is_killed() {
    let mut world = write_back();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
    for _ in 0..2 {
        world.kill_appliance();
        world.start_appliance();
        assert_eq!(tenant.initiator().read(0, 7, 1).unwrap(), [0x11; BLOCK]);
    }
    // What the one before it had not flushed, the new one has not either.
    world.crash_storage_vm();
    world.start_appliance();
    assert_eq!(three(tenant.initiator()), [Some(LOST); 3]);
}

#[test]
fn a_direct_lun_goes_on_after_a_crash_without_a_flush() {
    let mut world = World::new().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
    world.crash_storage_vm();
    world.start_appliance();
    assert_eq!(tenant.initiator().read(0, 7, 1).unwrap(), [0x11; BLOCK]);
    assert_eq!(three(tenant.initiator()), [None; 3]);
}
