//! SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS: the one page that tells which there are (SPC-4,
//! diagnostic parameters).

use super::fault::Fault;

/// Supported diagnostic pages.
const SUPPORTED: u8 = 0x00;

/// Checks the page that is sent, which asks for the list of pages.
///
/// # Errors
/// [`Fault::ParameterListLength`], or [`Fault::InvalidParameter`] for any other page.
pub fn check(list: &[u8]) -> Result<(), Fault> {
    let &[code, _, high, low] = list else {
        let is_short = list.len() < 4;
        return Err(match list.first() {
            Some(&code) if code != SUPPORTED => Fault::InvalidParameter { byte: 0, bit: 7 },
            _ if is_short => Fault::ParameterListLength,
            _ => Fault::InvalidParameter { byte: 2, bit: 7 },
        });
    };
    if code != SUPPORTED {
        return Err(Fault::InvalidParameter { byte: 0, bit: 7 });
    }
    if [high, low] != [0, 0] {
        return Err(Fault::InvalidParameter { byte: 2, bit: 7 });
    }
    Ok(())
}

/// A page; without a name, that of the last SEND DIAGNOSTIC, which can be no other.
///
/// # Errors
/// [`Fault::InvalidField`] for a page that there is not.
pub fn page(code: Option<u8>) -> Result<Vec<u8>, Fault> {
    match code {
        None | Some(SUPPORTED) => Ok(vec![SUPPORTED, 0, 0, 1, SUPPORTED]),
        Some(_) => Err(Fault::InvalidField { byte: 2, bit: 7 }),
    }
}
