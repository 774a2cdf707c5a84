//! Nothing stays behind. The only test of its program: it counts what the process has.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs;
use std::thread;
use std::time::Duration;

use tests::world::{BLOCK, Lun, MIB, Shape, World};

fn threads_and_fds() -> (usize, usize) {
    let count = |directory| fs::read_dir(directory).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

fn one_life() {
    let mut world = World::new()
        .lun(Lun::file(MIB))
        .another_hba()
        .lun(Lun::file(MIB))
        .start();
    let mut first = world.tenant_of(0, Shape::default());
    let mut second = world.tenant_of(1, Shape::default());
    first.initiator().write(0, 0, &[1; BLOCK]).unwrap();
    second.initiator().write(0, 0, &[2; BLOCK]).unwrap();
    world.kill_appliance();
    world.start_appliance();
    first.reset().unwrap();
    first.start().unwrap();
    first.initiator().read(0, 0, 1).unwrap();
    second.disconnect();
}

/// What is there once the kernel's workers of rings that are gone (io-wq) have ended, too, which they
/// do a moment later: the same for as long as that takes.
fn settled() -> (usize, usize) {
    let mut last = threads_and_fds();
    let mut same = 0;
    while same < 20 {
        thread::sleep(Duration::from_millis(20));
        let now = threads_and_fds();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

#[test]
fn a_world_leaves_no_thread_and_no_fd_behind() {
    // The first one may leave what a process makes once (a log's dispatcher).
    one_life();
    let before = settled();
    for _ in 0..5 {
        one_life();
    }
    assert_eq!(settled(), before);
}
