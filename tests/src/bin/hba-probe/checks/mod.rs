//! The checks, in order. Each begins and ends with nothing in flight.

mod aborts;
mod commands;
mod device_reset;
mod queries;
mod resets;

use crate::error::Result;
use crate::hba::Hba;
use crate::slow_unit;

/// A check: its name, and how it is made.
pub type Check = (&'static str, fn(&mut Hba) -> Result<()>);

/// Makes one of them, when the units have nothing left to do or to tell.
///
/// # Errors
/// What is wrong.
pub fn make(hba: &mut Hba, (_, check): &Check) -> Result<()> {
    hba.wait_for_all()?;
    slow_unit::catch_up(hba)?;
    commands::inquiry_and_test_unit_ready(hba)?;
    check(hba)
}

/// All of them.
pub const ALL: &[Check] = &[
    (
        "inquiry_and_test_unit_ready",
        commands::inquiry_and_test_unit_ready,
    ),
    ("query_task_set_of_an_idle_unit", queries::idle_unit),
    ("functions_for_a_missing_lun", queries::missing_lun),
    ("functions_for_a_missing_target", queries::missing_target),
    ("queries_of_a_held_read", queries::held_read),
    ("clear_aca_leaves_a_held_read", queries::clear_aca),
    ("abort_task_of_a_read", aborts::read),
    ("abort_task_of_a_write", aborts::write),
    (
        "abort_task_of_a_read_does_not_wait_for_the_disk",
        aborts::prompt_for_a_read,
    ),
    (
        "abort_task_of_a_write_waits_for_the_disk",
        aborts::late_for_a_write,
    ),
    ("abort_task_set", aborts::abort_task_set),
    ("clear_task_set", aborts::clear_task_set),
    ("logical_unit_reset", resets::logical_unit),
    ("i_t_nexus_reset", resets::nexus),
    (
        "device_reset_as_soon_as_commands_are_sent",
        device_reset::at_once,
    ),
    ("device_reset_while_the_disk_works", device_reset::amid),
];
