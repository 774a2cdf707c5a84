//! The log pages there are: their parameters.

use spec::scsi::page;

use crate::disk::{Geometry, Usage};
use crate::scsi::statistics::Totals;
use crate::scsi::threshold;

/// A temperature that is not known.
const NO_TEMPERATURE: u8 = 0xff;

/// What the pages tell of.
#[derive(Debug)]
pub struct Facts {
    /// How full what is under a thin unit is, and the size of the unit.
    pub provisioning: Option<(Usage, Geometry)>,
    pub totals: Totals,
    /// Milliseconds since power on.
    pub up: u64,
}

/// A page that has parameters.
#[derive(Debug)]
pub struct Page {
    /// Its parameters are counters, so that thresholds and defaults would be other values.
    pub counts: bool,
    /// Ascending.
    pub parameters: Vec<Parameter>,
}

/// A parameter without its header.
#[derive(Debug)]
pub struct Parameter {
    pub code: u16,
    pub value: Vec<u8>,
}

/// Codes and subpage codes of all pages, ascending.
pub fn known(provisioning: bool) -> Vec<(u8, u8)> {
    let mut known = vec![
        (page::LOG_SUPPORTED, 0),
        (page::LOG_SUPPORTED, page::LOG_ALL_SUBPAGES),
    ];
    if provisioning {
        known.push((page::LOG_PROVISIONING, 0));
    }
    known.extend([
        (page::LOG_TEMPERATURE, 0),
        (page::LOG_BACKGROUND_SCAN, 0),
        (page::LOG_STATISTICS, 0),
        (page::LOG_STATISTICS, page::LOG_CACHE_STATISTICS),
        (page::LOG_STATISTICS, page::LOG_ALL_SUBPAGES),
        (page::LOG_INFORMATIONAL_EXCEPTIONS, 0),
    ]);
    known
}

/// The parameters of a page that has some.
pub fn parameters(code: u8, subpage: u8, facts: &Facts) -> Page {
    let (counts, values) = match (code, subpage) {
        (page::LOG_PROVISIONING, _) => (false, provisioning(facts)),
        (page::LOG_TEMPERATURE, _) => (
            false,
            vec![
                (0x0000, vec![0, NO_TEMPERATURE]),
                (0x0001, vec![0, NO_TEMPERATURE]), // REFERENCE TEMPERATURE
            ],
        ),
        (page::LOG_BACKGROUND_SCAN, _) => (false, vec![(0x0000, scan(facts))]),
        (page::LOG_STATISTICS, 0) => (true, statistics(&facts.totals)),
        (page::LOG_STATISTICS, _) => (true, cache(facts)),
        // No ASC, no ASCQ: none are predicted, as the mode page says (DEXCPT).
        (page::LOG_INFORMATIONAL_EXCEPTIONS, _) => {
            (false, vec![(0x0000, vec![0, 0, NO_TEMPERATURE, 0])])
        }
        _ => (false, Vec::new()),
    };
    let parameters = values
        .into_iter()
        .map(|(code, value)| Parameter { code, value })
        .collect();
    Page { counts, parameters }
}

type Values = Vec<(u16, Vec<u8>)>;

/// Logical block provisioning: available and used LBA mapping resources in threshold sets.
fn provisioning(facts: &Facts) -> Values {
    let Some((usage, geometry)) = &facts.provisioning else {
        return Vec::new();
    };
    let set = threshold::set_len(geometry).max(1);
    let count = |bytes: u64, scope: u8| {
        let sets = u32::try_from(bytes / set).unwrap_or(u32::MAX);
        let mut value = sets.to_be_bytes().to_vec();
        value.extend([scope, 0, 0, 0]);
        value
    };
    // SCOPE: what is available may be for others, too; what is used is the unit's.
    vec![
        (0x0001, count(usage.available, 2)),
        (0x0002, count(usage.used, 1)),
    ]
}

/// Background scan status: there are none.
fn scan(facts: &Facts) -> Vec<u8> {
    let minutes = u32::try_from(facts.up / 60_000).unwrap_or(u32::MAX);
    let mut value = minutes.to_be_bytes().to_vec();
    value.resize(12, 0);
    value
}

/// Time interval descriptor: intervals of one microsecond (10 to the power of minus 6 seconds).
fn microsecond() -> Vec<u8> {
    vec![0, 0, 0, 6, 0, 0, 0, 1]
}

/// General access statistics and performance. Nothing is weighted.
fn statistics(totals: &Totals) -> Values {
    let counters = [
        totals.reads,
        totals.writes,
        totals.blocks_written, // NUMBER OF LOGICAL BLOCKS RECEIVED
        totals.blocks_read,    // NUMBER OF LOGICAL BLOCKS TRANSMITTED
        totals.read_time,
        totals.write_time,
        0,
        0,
    ];
    let counters = counters.iter().flat_map(|counter| counter.to_be_bytes());
    vec![(0x0001, counters.collect()), (0x0003, microsecond())]
}

/// Cache memory statistics: there is no cache here but those of the disk underneath, which does not
/// tell what it finds there; how often they were flushed is known.
fn cache(facts: &Facts) -> Values {
    let since_reset = facts.up.saturating_mul(1000);
    let counters = [0, 0, 0, facts.totals.flushes, since_reset];
    let counters = (1..).zip(counters);
    let mut values: Values = counters
        .map(|(code, counter)| (code, counter.to_be_bytes().to_vec()))
        .collect();
    values.push((0x0006, microsecond()));
    values
}
