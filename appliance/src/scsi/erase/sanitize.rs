//! SANITIZE: what its CDB and its parameter list ask for (SBC-4, SANITIZE).

use super::job::{Fill, Job, Kind, Pattern};
use crate::scsi::fault::Fault;

/// Bytes before the pattern.
const HEADER: usize = 4;
/// INVERT and OVERWRITE COUNT of byte 0; TEST, between them, is not understood.
const INVERT: u8 = 0x80;
const TEST: u8 = 0x60;
const COUNT: u8 = 0x1f;

/// How blocks are sanitized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Overwrite,
    BlockErase,
}

/// What its CDB says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sanitize {
    pub method: Method,
    /// IMMED.
    pub immediate: bool,
    /// AUSE: if it fails, EXIT FAILURE MODE may end that.
    pub unrestricted: bool,
    /// PARAMETER LIST LENGTH in bytes.
    pub len: usize,
}

impl Sanitize {
    /// Checks PARAMETER LIST LENGTH.
    ///
    /// # Errors
    /// [`Fault::InvalidField`].
    pub fn check_len(&self, block_size: u32) -> Result<(), Fault> {
        let block = usize::try_from(block_size).unwrap_or(usize::MAX);
        let fits = match self.method {
            Method::Overwrite => (HEADER + 1..=HEADER.saturating_add(block)).contains(&self.len),
            Method::BlockErase => self.len == 0,
        };
        if fits {
            Ok(())
        } else {
            Err(Fault::InvalidField { byte: 7, bit: 7 })
        }
    }
}

/// What SANITIZE asks for. `list` is as long as its CDB says, which was checked.
///
/// # Errors
/// [`Fault::InvalidParameter`].
pub fn sanitize(command: Sanitize, list: &[u8]) -> Result<Job, Fault> {
    let kind = if command.unrestricted {
        Kind::SanitizeUnrestricted
    } else {
        Kind::Sanitize
    };
    let fill = match command.method {
        Method::BlockErase => Fill::Zeros,
        Method::Overwrite => overwrite(list)?,
    };
    Ok(Job { kind, fill })
}

fn overwrite(list: &[u8]) -> Result<Fill, Fault> {
    let Some((&[flags, reserved, high, low], rest)) = list.split_first_chunk::<HEADER>() else {
        return Err(Fault::ParameterListLength);
    };
    if flags & TEST != 0 {
        return Err(Fault::InvalidParameter { byte: 0, bit: 6 });
    }
    let passes = flags & COUNT;
    if passes == 0 {
        return Err(Fault::InvalidParameter { byte: 0, bit: 4 });
    }
    if reserved != 0 {
        return Err(Fault::InvalidParameter { byte: 1, bit: 7 });
    }
    // INITIALIZATION PATTERN LENGTH: not 0, and no more than there is; that is at most a block.
    let len = usize::from(u16::from_be_bytes([high, low]));
    let pattern = rest.get(..len).and_then(Pattern::new);
    let pattern = pattern.ok_or(Fault::InvalidParameter { byte: 2, bit: 7 })?;
    Ok(Fill::Pattern {
        pattern,
        passes,
        invert: flags & INVERT != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid(list: &[u8]) -> (u16, u8) {
        match overwrite(list) {
            Err(Fault::InvalidParameter { byte, bit }) => (byte, bit),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_overwrite_has_passes_and_a_pattern() {
        let fill = overwrite(&[0x83, 0, 0, 2, 0x12, 0x34]).unwrap();
        let expected = Fill::Pattern {
            pattern: Pattern::new(&[0x12, 0x34]).unwrap(),
            passes: 3,
            invert: true,
        };
        assert_eq!(fill, expected);
        assert_eq!(invalid(&[0x00, 0, 0, 1, 7]), (0, 4));
        assert_eq!(invalid(&[0x21, 0, 0, 1, 7]), (0, 6));
        assert_eq!(invalid(&[0x01, 0, 0, 0, 7]), (2, 7));
        assert_eq!(invalid(&[0x01, 0, 0, 2, 7]), (2, 7));
    }

    #[test]
    fn the_list_of_an_overwrite_is_a_header_and_at_most_a_block() {
        let fits = |method, len| {
            let command = Sanitize {
                method,
                immediate: false,
                unrestricted: false,
                len,
            };
            command.check_len(512).is_ok()
        };
        assert!(fits(Method::Overwrite, 5) && fits(Method::Overwrite, 516));
        assert!(!fits(Method::Overwrite, 4) && !fits(Method::Overwrite, 517));
        assert!(fits(Method::BlockErase, 0) && !fits(Method::BlockErase, 1));
    }
}
