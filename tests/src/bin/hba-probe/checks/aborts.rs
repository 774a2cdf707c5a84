//! Functions that end commands and leave no unit attention.

use spec::virtio_scsi::{response, task_management as function};
use tests::world::Command;

use super::commands::test_unit_ready;
use crate::afterwards::expect_left_alone;
use crate::error::{Error, Result, expect};
use crate::hba::{Hba, Queue, Task};
use crate::slow_unit::{self, BURST, Held, LUN, hold, wait_until_known};

/// How many WRITEs are under way beside the READs.
const WRITES: u16 = 8;
/// The WRITE whose place only these checks use.
const ABORTED: u16 = BURST + 1;

pub fn read(hba: &mut Hba) -> Result<()> {
    let held = hold(hba, &slow_unit::read(BURST))?;
    abort(hba, &held)?;
    expect_left_alone(hba, &[&held.task], "ABORT TASK was answered")?;
    held.expect_earlier(hba)
}

pub fn write(hba: &mut Hba) -> Result<()> {
    let held = hold(hba, &slow_unit::write(ABORTED))?;
    abort(hba, &held)?;
    // This overwrites the data, too; the canary must not come to the disk.
    expect_left_alone(hba, &[&held.task], "ABORT TASK was answered")?;
    slow_unit::expect_old_or_written(hba, ABORTED)?;
    held.expect_earlier(hba)
}

pub fn prompt_for_a_read(hba: &mut Hba) -> Result<()> {
    if is_answered_late(hba, &slow_unit::read(BURST))? {
        let problem = "ABORT TASK was answered only when the disk was done with the command";
        return Err(Error::Wrong(problem.to_owned()));
    }
    Ok(())
}

/// What a write leaves at the disk has landed when the answer comes.
pub fn late_for_a_write(hba: &mut Hba) -> Result<()> {
    if !is_answered_late(hba, &slow_unit::write(ABORTED))? {
        let problem = "ABORT TASK was answered while the disk was not done with the command";
        return Err(Error::Wrong(problem.to_owned()));
    }
    Ok(())
}

/// Whether ABORT TASK is answered after the disk was done with the command. Those before it tell
/// the time: the last of them is back then.
fn is_answered_late(hba: &mut Hba, command: &Command) -> Result<bool> {
    let held = hold(hba, command)?;
    abort(hba, &held)?;
    let last = held.before.last().expect("commands before it");
    let is_late = hba.outcome(last).is_some();
    held.expect_earlier(hba)?;
    Ok(is_late)
}

/// Aborts a held command, which has to be back before the answer.
fn abort(hba: &mut Hba, held: &Held) -> Result<()> {
    let (lun, tag) = (slow_unit::lun(), held.task.tag);
    let answer = hba.manage(function::ABORT_TASK, lun, tag)?;
    let outcome = hba.outcome(&held.task);
    let after = hba.manage(function::QUERY_TASK, lun, tag)?;

    expect("the answer to ABORT TASK", answer, response::OK)?;
    let response = outcome.ok_or_else(not_back)?.response.response;
    expect("the command's response", response, response::ABORTED)?;
    expect("QUERY TASK after ABORT TASK", after, response::OK)
}

pub fn abort_task_set(hba: &mut Hba) -> Result<()> {
    aborts_all(hba, function::ABORT_TASK_SET)
}

pub fn clear_task_set(hba: &mut Hba) -> Result<()> {
    aborts_all(hba, function::CLEAR_TASK_SET)
}

/// No unit attention follows: the only initiator asked for it itself (SAM-5, ABORT TASK SET).
fn aborts_all(hba: &mut Hba, code: u32) -> Result<()> {
    let ended = end_all(hba, code, response::ABORTED)?;
    let ready = hba.once(&test_unit_ready(LUN))?;
    ready.map_err(|source| Error::Command {
        what: "TEST UNIT READY after an abort",
        source,
    })?;
    expect_ended(hba, &ended)
}

/// Has a function end many READs and some WRITEs of the slow unit; those that did not end by
/// themselves have to be back with `code` before its answer.
pub fn end_all(hba: &mut Hba, function: u32, code: u8) -> Result<Vec<Task>> {
    let reads = (0..BURST).map(|n| hba.send(Queue::First, &slow_unit::read(n)));
    let mut tasks: Vec<Task> = reads.collect();
    wait_until_known(hba, tasks.last())?;
    tasks.extend((0..WRITES).map(|n| hba.send(Queue::Second, &slow_unit::write(n))));
    wait_until_known(hba, tasks.last())?;
    let answer = hba.manage(function, slow_unit::lun(), 0)?;
    expect("the answer to the function", answer, response::OK)?;
    let mut ended = 0;
    for task in &tasks {
        let outcome = hba.outcome(task).ok_or_else(not_back)?;
        if outcome.response.response == code {
            ended += 1;
        } else {
            outcome.good().map_err(|source| Error::Command {
                what: "a command that the function should have ended",
                source,
            })?;
        }
    }
    if ended == 0 {
        return Err(Error::TooQuick);
    }
    let left = hba.manage(function::QUERY_TASK_SET, slow_unit::lun(), 0)?;
    expect("QUERY TASK SET afterwards", left, response::OK)?;
    Ok(tasks)
}

/// Fails if anything is read or written for commands of [`end_all`] that are back.
pub fn expect_ended(hba: &mut Hba, tasks: &[Task]) -> Result<()> {
    let tasks: Vec<&Task> = tasks.iter().collect();
    expect_left_alone(hba, &tasks, "the function was answered")?;
    (0..WRITES).try_for_each(|n| slow_unit::expect_old_or_written(hba, n))
}

fn not_back() -> Error {
    let problem = "the function was answered before a command that it ended was back";
    Error::Wrong(problem.to_owned())
}
