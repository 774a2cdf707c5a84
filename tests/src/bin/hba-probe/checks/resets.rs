//! Functions that reset units.

use spec::virtio_scsi::{response, task_management as function};
use tests::world::Failure;

use super::aborts::{end_all, expect_ended};
use super::commands::test_unit_ready;
use crate::error::{Error, Result};
use crate::hba::Hba;
use crate::slow_unit::{LUN, OTHER_LUN};

pub fn logical_unit(hba: &mut Hba) -> Result<()> {
    let ended = end_all(hba, function::LOGICAL_UNIT_RESET, response::RESET)?;
    expect_attention(hba, LUN)?;
    expect_ready(hba, OTHER_LUN)?;
    expect_ended(hba, &ended)
}

pub fn nexus(hba: &mut Hba) -> Result<()> {
    let ended = end_all(hba, function::I_T_NEXUS_RESET, response::RESET)?;
    expect_attention(hba, LUN)?;
    expect_attention(hba, OTHER_LUN)?;
    expect_ended(hba, &ended)
}

/// Fails unless a unit reports one unit attention about a reset or a loss of nexus (SPC-4, ASC
/// 29h), and then is ready.
fn expect_attention(hba: &mut Hba, lun: u16) -> Result<()> {
    match hba.once(&test_unit_ready(lun))? {
        Err(Failure::Sense {
            key: 6, asc: 0x29, ..
        }) => expect_ready(hba, lun),
        other => Err(Error::Wrong(format!(
            "LUN {lun} reported {other:?} after its reset, not a unit attention with ASC 29h"
        ))),
    }
}

/// Fails unless a unit is ready, without a unit attention.
fn expect_ready(hba: &mut Hba, lun: u16) -> Result<()> {
    hba.once(&test_unit_ready(lun))?.map_err(|failure| {
        Error::Wrong(format!(
            "LUN {lun} is not ready without more ado: {failure}"
        ))
    })?;
    Ok(())
}
