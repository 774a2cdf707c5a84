//! Commands on a machine that does much else: fuzzers run beside everything.

use std::time::Duration;

use crate::world::{BLOCK, Command, Failure, Initiator, Task, read10, write10};

/// How long an answer may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long in all, where everything of the lowest priority is starved.
pub(super) const STARVED: Duration = Duration::from_secs(150);
/// How often a command is repeated after a unit attention.
const RETRIES: usize = 20;

/// Reads the first block of LUN 0.
pub(super) fn read_first(queue: &mut Initiator) -> Vec<u8> {
    let command = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    run(queue, &command).expect("a disk that reads")
}

/// Writes the first block of LUN 0.
pub(super) fn write_first(queue: &mut Initiator, data: &[u8; BLOCK]) {
    let command = Command::new(0, &write10(0, 1)).data_out(data);
    run(queue, &command).expect("a disk that writes");
}

/// Sends a command and waits for it; again while a unit attention comes in its place.
fn run(queue: &mut Initiator, command: &Command) -> Result<Vec<u8>, Failure> {
    repeat(|| {
        let task = queue.submit(command);
        match queue.wait_for(task, STARVED) {
            Ok(outcome) => outcome.good(),
            Err(_) => panic!("no answer; {}", lost(queue, task)),
        }
    })
}

/// Repeats `command` while a unit attention comes in its place.
pub(super) fn repeat(
    mut command: impl FnMut() -> Result<Vec<u8>, Failure>,
) -> Result<Vec<u8>, Failure> {
    let mut result = Err(Failure::Timeout);
    for _ in 0..RETRIES {
        result = command();
        if !matches!(result, Err(Failure::Sense { key: 6, .. })) {
            break;
        }
    }
    result
}

/// What there is to say of an answer that never came: whether it was a kick that was lost.
pub(super) fn lost(queue: &mut Initiator, task: Task) -> String {
    queue.ring.kick();
    let kicked = queue.wait_for(task, PATIENCE).is_ok();
    let (used, avail) = (queue.ring.used_index(), queue.ring.avail_index());
    format!("by one more kick: {kicked}; used index {used}, avail index {avail}")
}
