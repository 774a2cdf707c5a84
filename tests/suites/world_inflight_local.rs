//! What is under way at a vhost-user socket when the appliance dies: given back once by the next.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::env;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use appliance::disk::{Abilities, Cache, Disk, DiskError, Geometry, Op, OpenFile};
use appliance::sockets::Sockets;
use appliance::vhost_user::{Options, Socket};
use appliance::{Appliance, Config, open_disk};
use spec::virtio_scsi::{response, task_management};
use tests::world::{
    Attach, BLOCK, Builder, Command, Failure, FrontendError, Gate, Inflight, Initiator, Lun, MIB,
    PATIENCE, Shape, Task, Tenant, World, address, eventually, memfd, read10, request, write10,
};

/// Ring 2's region, for rings of 128 (`spec/vhost-pci.md` §9).
const REGION: u64 = 4096 + 2 * 2112;
const REGION_LEN: usize = 2112;

fn one_lun() -> Builder {
    World::over(Attach::Socket).lun(Lun::file(MIB).gated())
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

/// Sends a command whose disk operation hangs.
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

/// Waits for writes; those that met a unit attention are sent again, as a driver does it.
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

/// Waits for reads, which get `data` or meet a unit attention.
fn settle_reads(queue: &mut Initiator, tasks: Vec<Task>, data: &[u8]) {
    for task in tasks {
        match queue.wait_for(task, PATIENCE).unwrap().good() {
            Ok(read) => assert_eq!(read, data),
            Err(Failure::Sense { key: 6, .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_slow_command_does_not_delay_the_others_on_its_ring() {
    let world = one_lun().start();
    let mut tenant = world.tenant();
    let queue = tenant.initiator();
    queue.ready(0).unwrap();
    let gate = world.gate(0);
    let slow = submit_held(&gate, queue, &read(0));
    for lba in 1..200 {
        let data = block(usize::try_from(lba).unwrap());
        queue.write(0, lba, &data).unwrap();
        assert_eq!(queue.read(0, lba, 1).unwrap(), data);
    }
    assert!(queue.wait_for(slow, Duration::ZERO).is_err());
    gate.let_read(&block(9));
    let outcome = queue.wait_for(slow, PATIENCE).unwrap();
    assert_eq!(outcome.good().unwrap(), block(9));
}

/// Some of a ring's commands hang at their disk, the others end; then `interrupt` happens, and each
/// comes back once.
fn interrupted(seed: u64, mut interrupt: impl FnMut(&mut World, &mut Tenant)) {
    let mut random = Random(seed);
    let mut world = one_lun().lun(Lun::file(MIB).gated()).start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &block(99)).unwrap();
    tenant.initiator().ready(1).unwrap();
    for round in 0..4 {
        let queue = tenant.initiator();
        let mut reads = Vec::new();
        for lba in 1..30 {
            if random.below(3) == 0 {
                reads.push(submit_held(&world.gate(0), queue, &read(0)));
            } else {
                queue.write(0, lba, &block(round)).unwrap();
            }
        }
        let data = block(round + 100);
        let command = Command::new(1, &write10(0, 1)).data_out(&data);
        let written = submit_held(&world.gate(1), queue, &command);

        interrupt(&mut world, &mut tenant);

        let queue = tenant.initiator();
        settle_reads(queue, reads, &block(99));
        settle(queue, vec![(written, command)]);
        assert_eq!(world.image(1, 0, BLOCK), data);
        assert_eq!(
            queue.ring.used_index(),
            queue.ring.avail_index(),
            "as many came back as were sent"
        );
    }
}

#[test]
fn commands_held_in_the_middle_of_a_ring_survive_the_appliance_and_come_back_once() {
    for seed in 0..3 {
        interrupted(seed, |world, tenant| {
            world.stop_appliance();
            world.start_appliance();
            tenant.reconnect().unwrap();
        });
    }
}

#[test]
fn commands_held_in_the_middle_of_a_ring_survive_a_lost_connection() {
    interrupted(5, |_, tenant| {
        tenant.disconnect();
        tenant.reconnect().unwrap();
    });
}

#[test]
fn a_lun_reset_finds_the_commands_that_are_taken_up_again() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    let gate = world.gate(0);
    let tasks: Vec<_> = (0..5)
        .map(|_| submit_held(&gate, tenant.initiator(), &read(0)))
        .collect();
    world.stop_appliance();
    let reset = tenant.send_function(task_management::LOGICAL_UNIT_RESET, address(0), 0);
    gate.close();
    world.start_appliance();
    // QEMU enables the control ring first.
    tenant.reconnect().unwrap();

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

// --- What a tenant's QEMU that was taken over does with the memory -------------------------------

fn scribble(tenant: &Tenant, bytes: &[u8]) {
    let file = &tenant.inflight.as_ref().unwrap().file;
    file.write_all_at(bytes, REGION).unwrap();
}

#[test]
fn random_bytes_in_in_flight_memory_break_one_hba_at_most() {
    let mut random = Random(1);
    let world = one_lun().another_hba().lun(Lun::file(MIB)).start();
    let mut neighbour = world.tenant_of(1, Shape::default());
    let mut tenant = world.tenant();
    for round in 0..20 {
        for lba in 0..20 {
            tenant.initiator().write(0, lba, &block(round)).unwrap();
        }
        tenant.disconnect();
        let mut bytes = random.bytes(REGION_LEN);
        if round % 2 == 0 {
            // Version 1, and as many entries as the ring has.
            bytes[8..12].copy_from_slice(&[1, 0, 128, 0]);
        }
        scribble(&tenant, &bytes);
        let before = tenant.initiator().ring.used_index();
        tenant.reconnect().unwrap();

        neighbour.initiator().write(0, 0, &block(round)).unwrap();
        thread::sleep(Duration::from_millis(10));
        let given_back = tenant.initiator().ring.used_index().wrapping_sub(before);
        assert!(given_back <= 128, "no head more than once");
        tenant.reset().unwrap();
        tenant.start().unwrap();
        neighbour.initiator().read(0, 0, 1).unwrap();
        tenant.initiator().ready(0).unwrap();
    }
}

#[test]
fn what_is_written_there_while_a_ring_runs_changes_nothing() {
    let mut random = Random(2);
    let world = one_lun().start();
    let mut tenant = world.tenant();
    for lba in 0..100 {
        let bytes = random.bytes(REGION_LEN);
        scribble(&tenant, &bytes);
        let data = block(usize::try_from(lba).unwrap());
        tenant.initiator().write(0, lba, &data).unwrap();
        assert_eq!(tenant.initiator().read(0, lba, 1).unwrap(), data);
    }
}

#[test]
fn memory_that_could_be_shortened_is_refused_and_the_next_tenant_served() {
    let world = one_lun().start();
    let tenant = world.tenant();
    let given = tenant.inflight.as_ref().unwrap();
    assert!(given.file.set_len(0).is_err(), "it cannot be shortened");
    let own = Inflight {
        file: memfd(MIB, false).unwrap(),
        ..*given
    };
    let refused = tenant.frontend().set_inflight(&own);
    assert!(
        matches!(refused, Err(FrontendError::Refused { request: code, .. }) if code == request::SET_INFLIGHT_FD)
    );
    drop(tenant);
    world.tenant().initiator().read(0, 0, 1).unwrap();
}

#[test]
fn other_memory_while_rings_run_takes_their_records_over() {
    let mut world = one_lun().start();
    let mut tenant = world.tenant();
    tenant.initiator().write(0, 0, &block(1)).unwrap();
    let other = tenant.frontend().get_inflight(3, 128).unwrap();
    tenant
        .frontend()
        .set_inflight(other.as_ref().unwrap())
        .unwrap();
    tenant.inflight = other;
    let slow = submit_held(&world.gate(0), tenant.initiator(), &read(0));
    tenant.initiator().write(0, 1, &block(2)).unwrap();
    world.stop_appliance();
    world.start_appliance();
    tenant.reconnect().unwrap();
    settle_reads(tenant.initiator(), vec![slow], &block(1));
    assert_eq!(
        tenant.initiator().ring.used_index(),
        tenant.initiator().ring.avail_index()
    );
}

// --- An appliance of its own process, which SIGKILL ends ------------------------------------------

/// Where the child of this program finds its folder, and whether its disk hangs.
const FOLDER: &str = "WORLD_INFLIGHT_LOCAL_FOLDER";
const HANGS: &str = "WORLD_INFLIGHT_LOCAL_HANGS";

/// A disk whose first block cannot be read.
#[derive(Debug)]
struct Hanging {
    disk: Arc<dyn Disk>,
    /// A pipe to which nobody writes.
    nothing: Arc<OpenFile>,
}

impl Disk for Hanging {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn abilities(&self) -> Abilities {
        self.disk.abilities()
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        match op {
            Op::Read { offset: 0, .. } => Ok(&self.nothing),
            _ => self.disk.file_for(op),
        }
    }
}

#[test]
#[ignore = "the process that the next test kills"]
fn child() {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let config = format!(
        "name = \"a\"\n[[lun]]\nname = \"disk\"\npath = {:?}\n\
         [[hba]]\nname = \"hba\"\nuuid = \"00000000-0000-4000-8000-000000000001\"\n\
         luns = {{ \"0\" = \"disk\" }}\n",
        folder.join("disk")
    );
    let config = Config::parse(&config, Path::new("child.toml")).unwrap();
    let hangs = env::var_os(HANGS).is_some();
    let fifo = folder.join("fifo");
    let appliance = Appliance::with_disks(config, move |lun| {
        let disk = open_disk(lun)?;
        if !hangs {
            return Ok(disk);
        }
        let pipe = File::options().read(true).write(true).open(&fifo).unwrap();
        let nothing = Arc::new(OpenFile::new(pipe, Cache::Direct));
        Ok(Arc::new(Hanging { disk, nothing }) as Arc<dyn Disk>)
    });
    let appliance = appliance.unwrap();
    assert!(appliance.problems().is_empty());
    let mut sockets = Sockets::new(&appliance, Options::default());
    let socket = Socket::bind(&folder.join("socket")).unwrap();
    sockets.add(socket, "hba").unwrap();
    sockets.run(&AtomicBool::new(false));
}

/// The child.
struct Killable(Child);

impl Killable {
    fn start(folder: &Path, hangs: bool) -> Self {
        let mut program = Program::new(env::current_exe().unwrap());
        program.args(["--ignored", "--exact", "child"]);
        program.env(FOLDER, folder).stdout(Stdio::null());
        if hangs {
            program.env(HANGS, "1");
        }
        Self(program.spawn().unwrap())
    }

    /// Ends it by SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_appliance_that_sigkill_ends_in_the_middle_of_io_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let disk = File::create(folder.join("disk")).unwrap();
    disk.set_len(MIB).unwrap();
    disk.write_all_at(&block(99), 0).unwrap();
    let fifo = Program::new("mkfifo").arg(folder.join("fifo")).status();
    assert!(fifo.unwrap().success());
    let mut random = Random(4);
    let mut child = Killable::start(folder, true);
    let mut tenant = Tenant::new(&folder.join("socket"), Shape::default());
    tenant.connect().unwrap();
    tenant.start().unwrap();
    for round in 0..8 {
        let queue = tenant.initiator();
        queue.ready(0).unwrap();
        let mut reads = Vec::new();
        for lba in 1..20 {
            if random.below(3) == 0 {
                reads.push(queue.submit(&read(0)));
            } else {
                queue.write(0, lba, &block(round)).unwrap();
            }
        }
        let writes = (20..36).map(|lba| (queue.submit(&write(lba, round)), write(lba, round)));
        let writes = writes.collect();
        thread::sleep(Duration::from_micros(random.below(1500)));
        child.kill();
        child = Killable::start(folder, false);

        tenant.reconnect().unwrap();

        let queue = tenant.initiator();
        settle_reads(queue, reads, &block(99));
        settle(queue, writes);
        for lba in 20..36 {
            assert_eq!(queue.read(0, lba, 1).unwrap(), block(round), "LBA {lba}");
        }
        assert_eq!(
            queue.ring.used_index(),
            queue.ring.avail_index(),
            "as many came back as were sent"
        );
        child.kill();
        child = Killable::start(folder, true);
        tenant.reconnect().unwrap();
    }
}
