//! Each process of a shim is killed and stopped, at random moments: nobody on either socket
//! notices more than a pause.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, as which clippy does not know them"
)]

mod program;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use spec::device::{DOORBELLS, DRIVER_VERSION, STATUS, status};
use spec::session as layout;
use vfio_user::Client;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use program::peers::{Tenant, appliance, tenant, tenant_memory};
use program::{Place, Shim, eventually, kill};

/// How long storage QEMU waits for an answer.
const QEMU_PATIENCE: Duration = Duration::from_secs(5);
/// Ring 2, the first for requests.
const RING: u16 = 2;

/// A shim of which any process may be killed; all of them end with it.
struct Group {
    place: Place,
    shim: Shim,
}

impl Group {
    fn start() -> Self {
        let place = Place::new();
        let shim = Shim::start(&place);
        Self { place, shim }
    }

    /// The process of this shim that was started with the argument `role`, if it runs.
    fn process(&self, role: &str) -> Option<u32> {
        // All have the socket among their arguments but the relay, which has the name.
        let ours = [
            self.place.path("vhost").display().to_string(),
            self.place.name(),
        ];
        let is_it = |pid: u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut arguments = line.split('\0');
            arguments.nth(1) == Some(role)
                && arguments.any(|argument| ours.iter().any(|our| our == argument))
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(|pid| is_it(*pid))
    }

    /// As [`Self::process`], once it runs and is another than `before`.
    fn next(&self, role: &str, before: u32) -> u32 {
        eventually(|| self.process(role).filter(|pid| *pid != before))
    }

    fn keeper(&self) -> Option<u32> {
        self.process("keep").or_else(|| self.process("run"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The keeper first, and not dead: its supervisor would start another.
        if let Some(keeper) = self.keeper() {
            kill(keeper, Signal::STOP);
            if let Some(supervisor) = self.process("supervise") {
                kill(supervisor, Signal::KILL);
            }
            kill(keeper, Signal::KILL);
        }
    }
}

/// A storage VM that accesses registers all the time, and checks each answer.
struct Busy {
    answers: Receiver<u32>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Client>,
}

impl Busy {
    fn start(mut client: Client) -> Self {
        let (told, answers) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut value = 0u32;
            while !asked.load(Ordering::Relaxed) {
                value += 1;
                write(&mut client, DRIVER_VERSION, value);
                // An answer too many, or too few, and these do not fit together any more.
                assert_eq!(read(&mut client, DRIVER_VERSION), value);
                assert_eq!(read(&mut client, STATUS), ATTACHED);
                told.send(value).unwrap();
            }
            client
        });
        Self {
            answers,
            stop,
            thread,
        }
    }

    /// How long the storage VM waits for the next answers, all that there were until now left
    /// aside.
    fn pause(&self) -> Duration {
        let start = Instant::now();
        while self.answers.try_recv().is_ok() {}
        for _ in 0..3 {
            self.answers.recv_timeout(QEMU_PATIENCE).unwrap();
        }
        start.elapsed()
    }

    fn stop(self) -> Client {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// STATUS of an appliance that serves a tenant.
const ATTACHED: u32 = status::BACKEND_UP | status::FRONTEND_UP | status::MEM_VALID;

fn write(client: &mut Client, register: u64, value: u32) {
    client
        .region_write(0, register, &value.to_le_bytes())
        .unwrap();
}

fn read(client: &mut Client, register: u64) -> u32 {
    let mut bytes = [0; 4];
    client.region_read(0, register, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// Numbers that are another each time, for moments.
fn random(state: &mut u64) -> u64 {
    // xorshift64
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A moment in a supervisor's life, of which the first milliseconds are the busiest.
fn a_moment(seed: &mut u64) {
    thread::sleep(Duration::from_micros(random(seed) % 40_000));
}

fn seed() -> u64 {
    let seed = u64::from(process::id()) << 20 | 1;
    println!("seed {seed}");
    seed
}

/// The tenant's side works in both directions, and its connection is the same.
fn assert_serves(tenant: &mut Tenant, vector: &EventFd, client: &mut Client, calls: &mut u32) {
    tenant
        .qemu
        .set_vring_call(usize::from(RING), &tenant.call)
        .unwrap();
    let _ = vector.read();
    tenant.kick.write(1).unwrap();
    eventually(|| vector.read().ok());

    let _ = tenant.call.read();
    let region = client.region(4).unwrap().file_offset.clone().unwrap();
    let session: &File = region.file();
    *calls += 1;
    session
        .write_all_at(&calls.to_le_bytes(), layout::call_counter(RING))
        .unwrap();
    write(client, DOORBELLS + 4 * u64::from(RING), 1);
    eventually(|| tenant.call.read().ok());
}

#[test]
fn a_supervisor_killed_100_times_loses_neither_an_access_nor_a_connection() {
    let group = Group::start();
    let memory = tenant_memory();
    let mut tenant = tenant(&group.place, &memory);
    let (mut client, vector) = appliance(&group.place);
    let relay = group.shim.relay();
    let mut supervisor = group.process("supervise").unwrap();
    let mut calls = 0;
    let mut pauses = Vec::new();
    let mut seed = seed();
    for _ in 0..10 {
        let busy = Busy::start(client);
        for _ in 0..10 {
            a_moment(&mut seed);
            kill(supervisor, Signal::KILL);
            pauses.push(busy.pause());
            supervisor = group.next("supervise", supervisor);
        }
        client = busy.stop();
        assert_serves(&mut tenant, &vector, &mut client, &mut calls);
    }
    pauses.sort_unstable();
    println!("pauses: median {:?}, longest {:?}", pauses[50], pauses[99]);
    // The tenant's QEMU has the relay that it had from the start.
    assert!(PathBuf::from(format!("/proc/{relay}/fd")).exists());
}

#[test]
fn a_stopped_supervisor_is_replaced_before_storage_qemu_gives_up() {
    let group = Group::start();
    let memory = tenant_memory();
    let mut tenant = tenant(&group.place, &memory);
    let (mut client, vector) = appliance(&group.place);
    let mut calls = 0;
    let mut supervisor = group.process("supervise").unwrap();
    for _ in 0..2 {
        let busy = Busy::start(client);
        kill(supervisor, Signal::STOP);
        assert!(busy.pause() < QEMU_PATIENCE);
        supervisor = group.next("supervise", supervisor);
        client = busy.stop();
        assert_serves(&mut tenant, &vector, &mut client, &mut calls);
    }
}

#[test]
fn a_killed_keeper_is_replaced_and_its_successor_goes_on_for_a_killed_supervisor() {
    let group = Group::start();
    let memory = tenant_memory();
    let mut tenant = tenant(&group.place, &memory);
    let (mut client, vector) = appliance(&group.place);
    let mut calls = 0;
    let mut seed = seed();
    for _ in 0..5 {
        let busy = Busy::start(client);
        let keeper = group.keeper().unwrap();
        let supervisor = group.process("supervise").unwrap();
        a_moment(&mut seed);
        kill(keeper, Signal::KILL);
        busy.pause();
        let keeper = group.next("keep", keeper);
        // Until it has taken over what it is to keep.
        let kept = || fs::read_dir(format!("/proc/{keeper}/fd")).ok()?.nth(12);
        eventually(|| kept().map(drop));
        kill(supervisor, Signal::KILL);
        busy.pause();
        group.next("supervise", supervisor);
        client = busy.stop();
        assert_serves(&mut tenant, &vector, &mut client, &mut calls);
    }
}

#[test]
fn killed_and_stopped_relays_cost_the_storage_vm_nothing() {
    let group = Group::start();
    let memory = tenant_memory();
    let first = tenant(&group.place, &memory);
    let (client, _vector) = appliance(&group.place);
    // Without a tenant, STATUS says so: only the answers count here.
    let mut client = client;
    let mut relay = group.process("relay").unwrap();
    drop(first);
    let socket = group.place.path("vhost");
    let connect = || vhost::vhost_user::Frontend::connect(socket.to_str().unwrap(), 1);
    for round in 0..20u32 {
        // Stopped with a tenant, stopped without one, and then killed.
        let _tenant = (round != 1).then(connect);
        let signal = if round < 2 {
            Signal::STOP
        } else {
            Signal::KILL
        };
        kill(relay, signal);
        for value in 0..50 {
            write(&mut client, DRIVER_VERSION, value);
            assert_eq!(read(&mut client, DRIVER_VERSION), value);
        }
        relay = group.next("relay", relay);
    }
}

#[test]
fn a_supervisor_killed_while_the_tenant_asks_answers_it_once() {
    let group = Group::start();
    let memory = tenant_memory();
    let tenant = tenant(&group.place, &memory);
    let (_client, _vector) = appliance(&group.place);
    let mut seed = seed();
    let (told, answers) = mpsc::channel();
    let asking = thread::spawn(move || {
        for size in 0..400u16 {
            // Each is acknowledged, or this fails; an answer too many would be the next one's.
            let entries = 1 << (size % 8);
            tenant.qemu.set_vring_num(5, entries).unwrap();
            assert_eq!(tenant.qemu.get_vring_base(5).unwrap(), u32::from(size));
            let base = size + 1;
            tenant.qemu.set_vring_base(5, base).unwrap();
            told.send(size).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
    });
    let mut supervisor = group.process("supervise").unwrap();
    while !asking.is_finished() {
        a_moment(&mut seed);
        kill(supervisor, Signal::KILL);
        supervisor = group.next("supervise", supervisor);
        while answers.try_recv().is_ok() {}
    }
    asking.join().unwrap();
}

#[test]
fn sigterm_after_kills_still_ends_all_in_order() {
    let mut group = Group::start();
    let supervisor = group.process("supervise").unwrap();
    kill(supervisor, Signal::KILL);
    group.next("supervise", supervisor);
    group.shim.signal(Signal::TERM);
    assert!(group.shim.child.wait().unwrap().success());
    assert_eq!(fs::read_dir(group.place.dir.as_path()).unwrap().count(), 0);
}
