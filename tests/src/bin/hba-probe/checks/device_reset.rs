//! A reset of the virtio device in the middle of I/O.

use std::{thread, time::Duration};

use super::commands::inquiry_and_test_unit_ready;
use crate::afterwards::GRACE;
use crate::dma::CANARY;
use crate::error::{Error, Result};
use crate::hba::{Hba, Queue, Task};
use crate::slow_unit;

/// How many READs, and how many WRITEs, are under way. A shim waits 10 s for the disk at a reset.
const EACH: u16 = 12;
/// How long a reset device must leave the memory alone before it is set up again.
const QUIET: Duration = Duration::from_secs(2);

pub fn at_once(hba: &mut Hba) -> Result<()> {
    let tasks = send_many(hba);
    reset(hba, &tasks)
}

pub fn amid(hba: &mut Hba) -> Result<()> {
    let tasks = send_many(hba);
    hba.wait(&tasks[0])?;
    reset(hba, &tasks)
}

fn send_many(hba: &mut Hba) -> Vec<Task> {
    (0..EACH)
        .flat_map(|n| {
            [
                (Queue::First, slow_unit::read(n)),
                (Queue::Second, slow_unit::write(n)),
            ]
        })
        .map(|(queue, command)| hba.send(queue, &command))
        .collect()
}

/// Resets the device. All memory that it had, rings and buffers, then is the driver's.
fn reset(hba: &mut Hba, tasks: &[Task]) -> Result<()> {
    hba.look();
    let back = tasks.iter().filter(|task| hba.outcome(task).is_some());
    if back.count() == tasks.len() {
        return Err(Error::TooQuick);
    }
    let memory = hba.reset()?;
    memory.fill(memory.all(), CANARY);
    thread::sleep(QUIET);
    let untouched =
        |when| memory.expect_untouched(&[memory.all()], "memory of before the reset", when);
    untouched("the device was reset")?;

    hba.renew()?;
    inquiry_and_test_unit_ready(hba)?;
    slow_unit::catch_up(hba)?;
    (0..EACH).try_for_each(|n| slow_unit::expect_old_or_written(hba, n))?;
    thread::sleep(GRACE);
    untouched("the device was reset and set up again")
}
