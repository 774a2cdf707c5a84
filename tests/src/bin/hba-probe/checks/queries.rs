//! Functions that end no command.

use spec::virtio_scsi::{response, task_management as function};
use tests::world::address;

use super::commands::inquiry;
use crate::error::{Error, Result, expect};
use crate::hba::Hba;
use crate::slow_unit::{self, BURST, OTHER_LUN, hold};

/// A tag that no command has.
const NOBODY: u64 = u64::MAX;
/// A LUN that nobody has.
const MISSING_LUN: u16 = 9;
/// Functions that are about a logical unit, each with what it says when it is wrong.
const OF_A_UNIT: [(u32, &str); 6] = [
    (function::ABORT_TASK, "the answer to ABORT TASK"),
    (function::ABORT_TASK_SET, "the answer to ABORT TASK SET"),
    (function::CLEAR_TASK_SET, "the answer to CLEAR TASK SET"),
    (
        function::LOGICAL_UNIT_RESET,
        "the answer to LOGICAL UNIT RESET",
    ),
    (function::QUERY_TASK, "the answer to QUERY TASK"),
    (function::QUERY_TASK_SET, "the answer to QUERY TASK SET"),
];

pub fn idle_unit(hba: &mut Hba) -> Result<()> {
    let answer = hba.manage(function::QUERY_TASK_SET, slow_unit::lun(), 0)?;
    expect("QUERY TASK SET of an idle unit", answer, response::OK)
}

pub fn missing_lun(hba: &mut Hba) -> Result<()> {
    for (code, what) in OF_A_UNIT {
        let answer = hba.manage(code, address(MISSING_LUN), NOBODY)?;
        expect(what, answer, response::INCORRECT_LUN)?;
    }
    Ok(())
}

pub fn missing_target(hba: &mut Hba) -> Result<()> {
    let mut missing = slow_unit::lun();
    missing[1] = 7;
    for (code, what) in OF_A_UNIT {
        let answer = hba.manage(code, missing, NOBODY)?;
        expect(what, answer, response::BAD_TARGET)?;
    }
    let answer = hba.manage(function::I_T_NEXUS_RESET, missing, 0)?;
    expect(
        "the answer to I_T NEXUS RESET",
        answer,
        response::BAD_TARGET,
    )
}

pub fn held_read(hba: &mut Hba) -> Result<()> {
    let held = hold(hba, &slow_unit::read(BURST))?;
    let (lun, tag) = (slow_unit::lun(), held.task.tag);

    let its_own = hba.manage(function::QUERY_TASK, lun, tag)?;
    let another = hba.manage(function::QUERY_TASK, lun, NOBODY)?;
    let elsewhere = hba.manage(function::QUERY_TASK, address(OTHER_LUN), tag)?;
    let set = hba.manage(function::QUERY_TASK_SET, lun, 0)?;
    let other_set = hba.manage(function::QUERY_TASK_SET, address(OTHER_LUN), 0)?;
    held.expect_held(hba)?;

    let there = response::FUNCTION_SUCCEEDED;
    expect("QUERY TASK of a held READ", its_own, there)?;
    expect("QUERY TASK of a tag that nobody has", another, response::OK)?;
    expect("QUERY TASK at another unit", elsewhere, response::OK)?;
    expect("QUERY TASK SET of a unit with a held READ", set, there)?;
    expect("QUERY TASK SET of another unit", other_set, response::OK)?;
    held.expect_earlier(hba)?;
    slow_unit::expect_done(hba, &held.task)
}

/// A unit that says NORMACA has to do CLEAR ACA; others may refuse it (SAM-5, NACA and NORMACA).
/// Without an ACA condition it does nothing either way.
pub fn clear_aca(hba: &mut Hba) -> Result<()> {
    const NORMACA: u8 = 1 << 5;
    let normaca = inquiry(hba)?[3] & NORMACA != 0;
    let held = hold(hba, &slow_unit::read(BURST))?;

    let answer = hba.manage(function::CLEAR_ACA, slow_unit::lun(), 0)?;
    let query = hba.manage(function::QUERY_TASK, slow_unit::lun(), held.task.tag)?;
    held.expect_held(hba)?;

    if normaca || answer != response::FUNCTION_REJECTED {
        expect("the answer to CLEAR ACA", answer, response::OK)?;
    }
    if query != response::FUNCTION_SUCCEEDED {
        let problem = "CLEAR ACA ended a READ";
        return Err(Error::Wrong(problem.to_owned()));
    }
    held.expect_earlier(hba)?;
    slow_unit::expect_done(hba, &held.task)
}
