//! What was acknowledged, and what is left of it when the storage VM crashes.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::thread;
use std::time::Duration;

use appliance::disk::DiskError;
use tests::world::{
    BLOCK, Command, Crash, Failure, Initiator, Loss, Lun, MIB, PATIENCE, Shape, Task, Tenant,
    Trouble, World, WriteLog, eventually, write10,
};

/// HARDWARE ERROR, LOGICAL UNIT FAILURE.
const LOST: Failure = Failure::Sense {
    key: 4,
    asc: 0x3e,
    ascq: 1,
};

fn write_back() -> World {
    World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB).write_back())
        .start()
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
    // A worker that is not the first hears of it a little later.
    eventually("the LUN is there", || tenant.initiator().ready(0).is_ok());
    assert_eq!(three(tenant.initiator()), [None; 3]);
    world.crash_storage_vm();
    world.start_appliance();
    assert_eq!(three(tenant.initiator()), [None; 3]);
}

#[test]
fn a_lost_write_back_lun_may_be_taken_out_and_added_while_its_tenant_is_shut_down() {
    let mut world = write_back();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
    let shut_down = |world: &World, tenant: Tenant| {
        drop(tenant);
        eventually("the function is gone", || !world.is_plugged(0));
    };
    shut_down(&world, tenant);
    world.crash_storage_vm();
    world.start_appliance();
    // A tenant that is started again does not make it known.
    let mut tenant = world.tenant();
    assert_eq!(three(tenant.initiator()), [Some(LOST); 3]);
    shut_down(&world, tenant);
    // Nobody is there who could clear the mark.
    world.remove_lun(0, 0, 0).unwrap();
    eventually("the disk is free", || world.show_lun(0, 0, 0, 0).is_ok());
    let mut tenant = world.tenant();
    assert_eq!(three(tenant.initiator()), [None; 3]);
    // What is written from now on is at stake as before.
    world.crash_storage_vm();
    world.start_appliance();
    assert_eq!(three(tenant.initiator()), [None; 3]);
    tenant.initiator().write(0, 7, &[0x22; BLOCK]).unwrap();
    world.crash_storage_vm();
    world.start_appliance();
    assert_eq!(three(tenant.initiator()), [Some(LOST); 3]);
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

// covers: VPCI-MRK-2
#[test]
fn a_write_back_lun_goes_on_in_the_next_boot_when_its_appliance_was_stopped_in_order() {
    let mut world = write_back();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
    world.stop_appliance();
    world.reboot_storage_vm();
    world.start_appliance();
    assert_eq!(tenant.initiator().read(0, 7, 1).unwrap(), [0x11; BLOCK]);
    assert_eq!(three(tenant.initiator()), [None; 3]);
    // What is written from now on is at stake as before.
    tenant.initiator().write(0, 7, &[0x22; BLOCK]).unwrap();
    world.crash_storage_vm();
    world.start_appliance();
    assert_eq!(three(tenant.initiator()), [Some(LOST); 3]);
}

// covers: VPCI-MRK-2
#[test]
fn what_was_acknowledged_is_on_stable_storage_when_the_appliance_was_stopped_in_order() {
    let mut world = World::new()
        .lun(Lun::file(MIB).gated().write_back())
        .start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
    world.stop_appliance();
    world.reboot_storage_vm();
    let nothing_else = || false;
    let gate = world.gate(0);
    gate.forgetful().crash(Crash::Host, false, nothing_else);
    world.start_appliance();
    assert_eq!(tenant.initiator().read(0, 7, 1).unwrap(), [0x11; BLOCK]);
}

// covers: VPCI-MRK-2, VPCI-MRK-3
#[test]
fn a_write_back_lun_fails_after_a_stop_in_order_that_could_not_flush_it() {
    let mut world = World::new()
        .lun(Lun::file(MIB).gated().write_back())
        .start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
    let full = Trouble::Fails(DiskError::NoSpace);
    world.gate(0).trouble(Some(full));
    world.stop_appliance();
    world.gate(0).trouble(None);
    world.reboot_storage_vm();
    world.start_appliance();
    assert_eq!(three(tenant.initiator()), [Some(LOST); 3]);
}

#[test]
fn a_direct_lun_goes_on_after_a_crash_without_a_flush() {
    let mut world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 7, &[0x11; BLOCK]).unwrap();
    world.crash_storage_vm();
    world.start_appliance();
    assert_eq!(tenant.initiator().read(0, 7, 1).unwrap(), [0x11; BLOCK]);
    assert_eq!(three(tenant.initiator()), [None; 3]);
}

// --- The checker -----------------------------------------------------------------------------

/// Blocks that are written to.
const BLOCKS: u64 = 256;
/// Commands under way at a time.
const DEPTH: usize = 8;
/// Commands between two crashes.
const STEPS: usize = 24;

/// Random numbers that are the same each time: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A command under way.
struct Sent {
    task: Task,
    queue: usize,
    means: Means,
}

/// What the acknowledgement of a command means.
enum Means {
    Write {
        lba: u64,
        blocks: u64,
        version: u64,
        fua: bool,
    },
    Flush {
        promises: Vec<(u64, u64)>,
    },
}

/// A tenant that writes at random, on any of its queues, and keeps a log of it.
struct Checker {
    random: Random,
    log: WriteLog,
    sent: Vec<Sent>,
    /// WCE; while writes are under way it stays, unless the appliance is started anew.
    wce: bool,
    /// An acknowledgement alone promises.
    direct: bool,
    /// There was a crash, and what was under way may have failed by it.
    crashed: bool,
}

impl Checker {
    fn step(&mut self, queues: &mut [Initiator]) {
        if self.sent.len() == DEPTH {
            let any = usize::try_from(self.random.below(DEPTH as u64)).unwrap();
            self.take(queues, any);
        }
        match self.random.below(16) {
            0 => self.flush(queues, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
            1 => self.switch_cache(queues),
            _ => self.write(queues),
        }
    }

    /// SYNCHRONIZE CACHE, or what implies it.
    fn flush(&mut self, queues: &mut [Initiator], cdb: &[u8], list: &[u8]) {
        let promises = self.log.acknowledged();
        let means = Means::Flush { promises };
        self.send(queues, &Command::new(0, cdb).data_out(list), means);
    }

    /// Sends a command on any queue.
    fn send(&mut self, queues: &mut [Initiator], command: &Command, means: Means) {
        let queue = match queues.len() {
            1 => 0,
            several => usize::try_from(self.random.below(several as u64)).unwrap(),
        };
        let task = queues[queue].submit(command);
        self.sent.push(Sent { task, queue, means });
    }

    /// MODE SELECT(6) of the caching page. Writes that are under way meanwhile may count as cached
    /// or not, so there are none.
    fn switch_cache(&mut self, queues: &mut [Initiator]) {
        self.wait(queues);
        let mut list = [0; 24];
        (list[4], list[5]) = (0x08, 18);
        list[6] = if self.wce { 0 } else { 0x04 };
        let cdb = [0x15, 0x10, 0, 0, 24, 0];
        if self.wce {
            self.flush(queues, &cdb, &list);
            self.wait(queues);
        } else {
            let select = Command::new(0, &cdb).data_out(&list);
            queues[0].run(&select).unwrap();
        }
        self.wce = !self.wce;
    }

    /// Waits for all that is under way.
    fn wait(&mut self, queues: &mut [Initiator]) {
        while !self.sent.is_empty() {
            self.take(queues, 0);
        }
    }

    fn write(&mut self, queues: &mut [Initiator]) {
        let blocks = 1 + self.random.below(16);
        let lba = self.random.below(BLOCKS - blocks);
        let overlaps = self.sent.iter().any(|sent| match sent.means {
            Means::Write {
                lba: at, blocks: n, ..
            } => at < lba + blocks && lba < at + n,
            Means::Flush { .. } => false,
        });
        if overlaps {
            return;
        }
        let fua = self.random.below(4) == 0;
        let (version, bytes) = self.log.send(lba, blocks);
        let mut cdb = write10(u32::try_from(lba).unwrap(), u16::try_from(blocks).unwrap());
        cdb[1] = if fua { 0x08 } else { 0 };
        let means = Means::Write {
            lba,
            blocks,
            version,
            fua,
        };
        self.send(queues, &Command::new(0, &cdb).data_out(&bytes), means);
    }

    /// Waits for a command and takes note of what it promises, unless it failed.
    fn take(&mut self, queues: &mut [Initiator], index: usize) {
        let Sent { task, queue, means } = self.sent.swap_remove(index);
        let outcome = queues[queue].wait_for(task, PATIENCE).unwrap();
        let outcome = outcome.good();
        let good = outcome.is_ok();
        assert!(good || self.crashed, "{outcome:?}");
        match means {
            Means::Write {
                lba,
                blocks,
                version,
                fua,
                ..
            } if good => {
                let promised = fua || !self.wce || self.direct;
                self.log.acknowledge(lba, blocks, version, promised);
            }
            Means::Flush { promises } if good => {
                for (lba, version) in promises {
                    self.log.promise(lba, version);
                }
            }
            Means::Write { .. } | Means::Flush { .. } => {}
        }
    }

    /// Waits for all that is under way, reads everything back and checks it.
    fn check(&mut self, queues: &mut [Initiator]) -> Result<(), Loss> {
        self.wait(queues);
        let initiator = &mut queues[0];
        let read = initiator.read(0, 0, u16::try_from(BLOCKS).unwrap());
        let disk = read.unwrap();
        self.log.check(&disk)?;
        initiator.flush(0).unwrap();
        self.log.begin_anew(&disk);
        self.crashed = false;
        Ok(())
    }
}

/// Writes, crashes and reads back, so many times; `lies` if the disk syncs nothing.
fn crashes(write_back: bool, crash: Crash, times: usize, lies: bool) -> Result<(u64, u64), Loss> {
    let lun = Lun::file(MIB).gated();
    let lun = if write_back { lun.write_back() } else { lun };
    let mut world = World::of_suite(env!("CARGO_CRATE_NAME")).lun(lun).start();
    let shape = Shape {
        // One for each worker.
        queues: u16::try_from(world.workers()).unwrap(),
        ..Shape::default()
    };
    let mut tenant = world.tenant_like(shape);
    tenant.initiator().ready(0).unwrap();
    if lies {
        world.gate(0).forgetful().lie();
    }
    let mut checker = Checker {
        random: Random(0x2545_f491_4f6c_dd1d ^ u64::from(write_back)),
        log: WriteLog::default(),
        sent: Vec::new(),
        wce: true,
        direct: !write_back && crash == Crash::StorageVm,
        crashed: false,
    };
    for _ in 0..times {
        for _ in 0..STEPS {
            checker.step(&mut tenant.queues);
        }
        // In the middle of something, but not always of the same.
        thread::sleep(Duration::from_micros(checker.random.below(300)));
        world.crash_storage_vm();
        let random = &mut checker.random;
        let keeps = || random.below(2) == 0;
        world.gate(0).forgetful().crash(crash, !write_back, keeps);
        world.start_appliance();
        // As after power on.
        (checker.wce, checker.crashed) = (true, true);
        // What was sent before the crash is about a LUN that the operator knows nothing of yet: a
        // flush that another queue still has would succeed on the one that is added again.
        checker.wait(&mut tenant.queues);
        come_back(&mut world, &mut tenant, write_back);
        checker.check(&mut tenant.queues)?;
    }
    Ok(checker.log.counts())
}

/// Has the operator say that the loss of a write-back LUN is known, and the tenant hear of it.
fn come_back(world: &mut World, tenant: &mut Tenant, write_back: bool) {
    if write_back && tenant.initiator().read(0, 0, 1) == Err(LOST) {
        world.remove_lun(0, 0, 0).unwrap();
        eventually("the disk is free", || world.show_lun(0, 0, 0, 0).is_ok());
    }
    eventually("the LUN is there", || tenant.initiator().ready(0).is_ok());
}

/// Crashes of both kinds on LUNs of both kinds, so many in all.
fn all_crashes(times: usize) {
    for write_back in [false, true] {
        for crash in [Crash::StorageVm, Crash::Host] {
            let (acknowledged, promised) = crashes(write_back, crash, times / 4, false)
                .unwrap_or_else(|loss| panic!("{crash:?}, write-back {write_back}: {loss}"));
            // Else nothing was shown.
            assert!(promised > 0 && acknowledged >= promised);
            println!(
                "{crash:?}, write-back {write_back}: {acknowledged} acknowledged, {promised} promised at once"
            );
        }
    }
}

#[test]
fn whatever_was_promised_is_there_after_a_hundred_crashes() {
    all_crashes(100);
}

#[test]
#[ignore = "long"]
fn whatever_was_promised_is_there_after_two_thousand_crashes() {
    all_crashes(2000);
}

#[test]
fn the_checker_finds_a_disk_that_lies() {
    for write_back in [false, true] {
        let found = crashes(write_back, Crash::Host, 20, true);
        assert!(matches!(found, Err(Loss::Old { .. })), "{found:?}");
    }
}
