//! READ DEFECT DATA: the disk underneath mends its defects by itself, so the lists are empty.

use super::command::Defects;
use super::fault::Fault;

/// REQ_PLIST and REQ_GLIST, which stand in the data as PLISTV and GLISTV.
const LISTS: u8 = 0x18;
/// DEFECT LIST FORMAT, of which 110b is the vendor's and 111b reserved.
const FORMAT: u8 = 0x07;
const LAST_FORMAT: u8 = 0x05;

/// READ DEFECT DATA(10) or (12) data, before it is cut at the allocation length.
pub fn data(wanted: &Defects) -> Result<Vec<u8>, Fault> {
    if wanted.wanted & FORMAT > LAST_FORMAT {
        let byte = if wanted.long { 1 } else { 2 };
        return Err(Fault::InvalidField { byte, bit: 2 });
    }
    // An empty list is one of any format. All lengths, and the generation code, are 0.
    let mut data = vec![0; if wanted.long { 8 } else { 4 }];
    data[1] = wanted.wanted & (LISTS | FORMAT);
    Ok(data)
}
