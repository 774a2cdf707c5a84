//! That the units answer at all.

use spec::scsi::opcode;
use tests::world::Command;

use crate::error::{Result, expect};
use crate::hba::Hba;
use crate::slow_unit::{LUN, OTHER_LUN};

/// Bytes of standard INQUIRY data that are asked for (SPC-4: 36 is the least).
const INQUIRY_LEN: u8 = 36;

/// Standard INQUIRY data of the slow unit.
pub fn inquiry(hba: &mut Hba) -> Result<Vec<u8>> {
    let cdb = [opcode::INQUIRY, 0, 0, 0, INQUIRY_LEN, 0];
    let command = Command::new(LUN, &cdb).data_in(INQUIRY_LEN.into());
    hba.run("INQUIRY", &command)
}

/// TEST UNIT READY.
pub fn test_unit_ready(lun: u16) -> Command {
    Command::new(lun, &[opcode::TEST_UNIT_READY, 0, 0, 0, 0, 0])
}

pub fn inquiry_and_test_unit_ready(hba: &mut Hba) -> Result<()> {
    let data = inquiry(hba)?;
    expect("the peripheral device type in the INQUIRY data", data[0], 0)?;
    for lun in [LUN, OTHER_LUN] {
        hba.run("TEST UNIT READY", &test_unit_ready(lun))?;
    }
    Ok(())
}
