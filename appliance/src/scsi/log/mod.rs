//! LOG SENSE and LOG SELECT: what a unit has counted and noticed (SPC-4 and SBC-4, log parameters).

mod pages;

use spec::scsi::page;

pub use pages::Facts;
use pages::{Page, Parameter};

use super::fault::Fault;
use super::upkeep::LogPage;

/// DS and SPF of a page's first byte.
const DISABLE_SAVE: u8 = 0x80;
const SUBPAGE_FORMAT: u8 = 0x40;
/// PC: cumulative values.
const CUMULATIVE: u8 = 1;

/// The page that is asked for, from the parameter on that is asked for.
///
/// # Errors
/// [`Fault::InvalidField`] for a page, a parameter or values that there are not.
pub fn sense(wanted: &LogPage, facts: &Facts) -> Result<Vec<u8>, Fault> {
    let known = pages::known(facts.provisioning.is_some());
    let is_here = known
        .iter()
        .any(|&(code, subpage)| (code, subpage) == (wanted.page, wanted.subpage));
    if !is_here {
        return Err(absent(&known, wanted.page));
    }
    let content = match (wanted.page, wanted.subpage) {
        (page::LOG_SUPPORTED, 0) => {
            let codes = known.iter().filter(|(_, subpage)| *subpage == 0);
            Content::List(codes.map(|(code, _)| *code).collect())
        }
        (code, page::LOG_ALL_SUBPAGES) => {
            let is_listed = |page: u8| code == page::LOG_SUPPORTED || code == page;
            let pairs = known.iter().filter(|(page, _)| is_listed(*page));
            Content::List(pairs.flat_map(|&(page, subpage)| [page, subpage]).collect())
        }
        (code, subpage) => Content::Parameters(pages::parameters(code, subpage, facts)),
    };
    let (mut first, body) = match content {
        Content::List(list) => {
            if wanted.pointer != 0 {
                return Err(Fault::InvalidField { byte: 5, bit: 7 });
            }
            (0, list)
        }
        Content::Parameters(page) => {
            // There are no thresholds, and no defaults but zero.
            if page.counts && wanted.control != CUMULATIVE {
                return Err(Fault::InvalidField { byte: 2, bit: 7 });
            }
            (DISABLE_SAVE, parameters(&page, wanted.pointer)?)
        }
    };
    first |= wanted.page;
    if wanted.subpage != 0 {
        first |= SUBPAGE_FORMAT;
    }
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut data = vec![first, wanted.subpage];
    data.extend(len.to_be_bytes());
    data.extend(body);
    Ok(data)
}

enum Content {
    List(Vec<u8>),
    Parameters(Page),
}

/// The parameters of a page from `pointer` on.
fn parameters(page: &Page, pointer: u16) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    let wanted = page.parameters.iter();
    for Parameter { code, value } in wanted.filter(|parameter| parameter.code >= pointer) {
        body.extend(code.to_be_bytes());
        // FORMAT AND LINKING: a list in binary, which nothing but LOG SELECT resets.
        body.extend([0x03, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
        body.extend(value);
    }
    if body.is_empty() {
        return Err(Fault::InvalidField { byte: 5, bit: 7 });
    }
    Ok(body)
}

/// What is wrong with asking for a page that there is not.
fn absent(known: &[(u8, u8)], page: u8) -> Fault {
    if known.iter().any(|(code, _)| *code == page) {
        Fault::InvalidField { byte: 3, bit: 7 }
    } else {
        Fault::InvalidField { byte: 2, bit: 5 }
    }
}

/// Checks a LOG SELECT; whether it resets the counters.
///
/// # Errors
/// [`Fault::InvalidField`] for a parameter list, since no parameter can be set, or a page that there
/// is not.
pub fn select(
    reset: bool,
    (page, subpage): (u8, u8),
    len: usize,
    provisioning: bool,
) -> Result<bool, Fault> {
    if len > 0 {
        return Err(Fault::InvalidField { byte: 7, bit: 7 });
    }
    let known = pages::known(provisioning);
    if !known.contains(&(page, subpage)) {
        return Err(absent(&known, page));
    }
    // SPC-4: page 0 stands for all pages, and so does it with all subpages.
    let counts = matches!(
        (page, subpage),
        (page::LOG_SUPPORTED | page::LOG_STATISTICS, _)
    );
    Ok(reset && counts)
}
