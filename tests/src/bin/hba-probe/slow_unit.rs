//! The logical unit whose disk is so slow that it holds commands.

use std::{thread, time::Duration};

use spec::virtio_scsi::{response, task_management as function};
use tests::world::{Command, address, read10, write10};

use crate::error::{Error, Result, expect};
use crate::hba::{Hba, Queue, Task};

/// Its LUN. Its disk does a few operations a second, one after the other, and begins all zero.
pub const LUN: u16 = 0;
/// A LUN beside it, whose disk is quick.
pub const OTHER_LUN: u16 = 1;
/// What is written to it.
pub const PATTERN: u8 = 0x5a;
/// How many commands come before one that is to be held.
pub const BURST: u16 = 24;
/// How often the target is asked whether it has seen a command, and the time between.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

const BLOCK: usize = 512;
/// Blocks of every READ and WRITE.
const BLOCKS: u16 = 8;
/// Bytes of every READ and WRITE.
const LEN: usize = BLOCK * BLOCKS as usize;
/// Blocks between two of them: who merges neighbours shall find none.
const STRIDE: u32 = 64;
/// Where READs begin; nothing is ever written there.
const READS: u32 = 1024;
/// Where WRITEs begin.
const WRITES: u32 = READS + STRIDE * 128;

/// The address of it.
pub fn lun() -> [u8; 8] {
    address(LUN)
}

/// READ number `n`; its data are zeros.
pub fn read(n: u16) -> Command {
    Command::new(LUN, &read10(READS + STRIDE * u32::from(n), BLOCKS)).data_in(LEN)
}

/// WRITE number `n`, of [`PATTERN`].
pub fn write(n: u16) -> Command {
    Command::new(LUN, &write10(place_of_write(n), BLOCKS)).data_out(&[PATTERN; LEN])
}

/// Reads what WRITE number `n` may have written.
pub fn read_back(n: u16) -> Command {
    Command::new(LUN, &read10(place_of_write(n), BLOCKS)).data_in(LEN)
}

fn place_of_write(n: u16) -> u32 {
    WRITES + STRIDE * u32::from(n)
}

/// A command that the disk holds.
#[derive(Debug)]
pub struct Held {
    /// The commands that come before it, in a queue of their own.
    pub before: Vec<Task>,
    /// The command; the only one in its queue.
    pub task: Task,
}

/// Sends `command`, a READ or a WRITE, behind [`BURST`] others of its kind: the disk may have a
/// line for each kind. The target knows it then.
///
/// # Errors
/// As [`wait_until_known`].
pub fn hold(hba: &mut Hba, command: &Command) -> Result<Held> {
    let alike = if command.data_in > 0 { read } else { write };
    let before: Vec<Task> = (0..BURST)
        .map(|n| hba.send(Queue::First, &alike(n)))
        .collect();
    wait_until_known(hba, before.last())?;
    let task = hba.send(Queue::Second, command);
    wait_until_known(hba, Some(&task))?;
    Ok(Held { before, task })
}

/// Waits until the target knows a command, if there is one, and so those before it in its queue:
/// it may take a function from the control queue before commands that were sent earlier.
///
/// # Errors
/// The command is back already, or QUERY TASK never knows it.
pub fn wait_until_known(hba: &mut Hba, task: Option<&Task>) -> Result<()> {
    let Some(task) = task else {
        return Ok(());
    };
    for _ in 0..LOOKS {
        let answer = hba.manage(function::QUERY_TASK, lun(), task.tag)?;
        if hba.outcome(task).is_some() {
            return Err(Error::TooQuick);
        }
        if answer == response::FUNCTION_SUCCEEDED {
            return Ok(());
        }
        expect("QUERY TASK of a held command", answer, response::OK)?;
        thread::sleep(BETWEEN_LOOKS);
    }
    let problem = "QUERY TASK never knew a held command";
    Err(Error::Wrong(problem.to_owned()))
}

impl Held {
    /// Fails if the command was back at the last look at the rings.
    ///
    /// # Errors
    /// It is.
    pub fn expect_held(&self, hba: &Hba) -> Result<()> {
        match hba.outcome(&self.task) {
            None => Ok(()),
            Some(_) => Err(Error::TooQuick),
        }
    }

    /// Waits for the commands before it.
    ///
    /// # Errors
    /// One failed.
    pub fn expect_earlier(&self, hba: &mut Hba) -> Result<()> {
        self.before
            .iter()
            .try_for_each(|task| expect_done(hba, task))
    }
}

/// Waits for a command of [`read`], whose data have to be there, or of [`write()`].
///
/// # Errors
/// It failed, or brought something else than zeros.
pub fn expect_done(hba: &mut Hba, task: &Task) -> Result<()> {
    let data = hba.wait(task)?.good().map_err(|source| Error::Command {
        what: "a command that nobody ended",
        source,
    })?;
    if data.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        let problem = "a READ brought other data than the disk's, which are zeros";
        Err(Error::Wrong(problem.to_owned()))
    }
}

/// Fails if WRITE number `n` left anything on the disk but what was there before, or its data.
///
/// # Errors
/// It did.
pub fn expect_old_or_written(hba: &mut Hba, n: u16) -> Result<()> {
    let data = hba.run("reading back a WRITE", &read_back(n))?;
    for block in data.chunks(BLOCK) {
        let first = block[0];
        let uniform = block.iter().all(|byte| *byte == first);
        if !uniform || (first != 0 && first != PATTERN) {
            return Err(Error::Wrong(format!(
                "a WRITE that was ended left {first:#04x} on the disk: its buffer was read later"
            )));
        }
    }
    Ok(())
}

/// Waits until the disk has done all that it was given before, for anybody: reads and writes each
/// wait in turn.
///
/// # Errors
/// It does not work.
pub fn catch_up(hba: &mut Hba) -> Result<()> {
    hba.run("a READ after the others", &read(BURST))?;
    hba.run("a WRITE after the others", &write(BURST))?;
    Ok(())
}
