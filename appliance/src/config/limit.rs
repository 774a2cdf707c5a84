//! Limits in the configuration: of LUNs, of HBAs, and of groups of HBAs that share one.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{Located, at, check_name, in_range};
use crate::limit::Limit;

/// Operations or bytes a second that may be asked for.
const RATES: RangeInclusive<u64> = 1..=1_000_000_000_000;
/// Milliseconds of a burst.
const BURSTS: RangeInclusive<u64> = 1..=60_000;
/// What an HBA may weigh.
const WEIGHTS: RangeInclusive<u64> = 1..=1000;
/// What it weighs unless it is said.
const DEFAULT_WEIGHT: u32 = 1;

/// HBAs that share a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// Its name, by which HBAs say that they are in it.
    pub name: String,
    /// What all of them may do together.
    pub limit: Limit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimit {
    iops: Option<Spanned<u64>>,
    bytes_per_second: Option<Spanned<u64>>,
    burst: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGroup {
    pub(super) name: Spanned<String>,
    // A flattened `RawLimit` would lose the lines.
    iops: Option<Spanned<u64>>,
    bytes_per_second: Option<Spanned<u64>>,
    burst: Option<Spanned<u64>>,
}

/// The limit of `owner`, which is at a place if it is given.
pub(super) fn check_limit(raw: Option<Spanned<RawLimit>>, owner: &str) -> Result<Limit, Located> {
    let Some(raw) = raw else {
        return Ok(Limit::default());
    };
    let span = raw.span();
    let limit = checked(raw.into_inner(), owner)?;
    if limit.is_set() {
        Ok(limit)
    } else {
        let message = format!(
            "the limit of {owner} limits nothing; add iops or bytes_per_second, or remove it"
        );
        Err((Some(span), message))
    }
}

pub(super) fn check_group(raw: RawGroup) -> Result<GroupConfig, Located> {
    check_name("limit group", &raw.name)?;
    let name = raw.name.get_ref().clone();
    let limit = RawLimit {
        iops: raw.iops,
        bytes_per_second: raw.bytes_per_second,
        burst: raw.burst,
    };
    let limit = checked(limit, &format!("limit group {name:?}"))?;
    if !limit.is_set() {
        let message = format!("limit group {name:?} limits nothing; add iops or bytes_per_second");
        return Err(at(&raw.name, message));
    }
    Ok(GroupConfig { name, limit })
}

/// What an HBA weighs.
pub(super) fn check_weight(raw: Option<Spanned<u64>>, hba: &str) -> Result<u32, Located> {
    let weight = in_range(raw, WEIGHTS, "weight", &format!("HBA {hba:?}"))?;
    Ok(weight.map_or(DEFAULT_WEIGHT, |weight| {
        u32::try_from(weight).unwrap_or(DEFAULT_WEIGHT)
    }))
}

fn checked(raw: RawLimit, owner: &str) -> Result<Limit, Located> {
    let burst = in_range(raw.burst, BURSTS, "burst", owner)?;
    Ok(Limit {
        iops: in_range(raw.iops, RATES, "iops", owner)?,
        bytes_per_second: in_range(raw.bytes_per_second, RATES, "bytes_per_second", owner)?,
        burst: burst.map_or(Limit::default().burst, Duration::from_millis),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Config;

    const GOOD: &str = r#"name = "a"
[[limit_group]]
name = "gold"
iops = 5000
[[lun]]
name = "x"
kind = "null"
size = 512
limit = { iops = 500, bytes_per_second = 1048576, burst = 100 }
[[hba]]
name = "t"
uuid = "2f0c4fd2-4f6c-4b3c-9d3b-111111111111"
luns = { "0" = "x" }
limit_group = "gold"
weight = 3
[hba.limit]
bytes_per_second = 4096
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("a.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn limits_are_read_with_their_defaults() {
        let config = parse(GOOD).unwrap();
        let lun = Limit {
            iops: Some(500),
            bytes_per_second: Some(1 << 20),
            burst: Duration::from_millis(100),
        };
        assert_eq!(config.luns[0].limit, lun);
        let hba = &config.hbas[0];
        assert_eq!(
            (hba.limit.iops, hba.limit.bytes_per_second),
            (None, Some(4096))
        );
        assert_eq!(hba.limit.burst, Duration::from_millis(50));
        assert_eq!((hba.limit_group.as_deref(), hba.weight), (Some("gold"), 3));
        assert_eq!(config.groups[0].limit.iops, Some(5000));
        let plain = parse("name = \"a\"\n[[lun]]\nname = \"x\"\nkind = \"null\"\nsize = 512\n");
        assert!(!plain.unwrap().luns[0].limit.is_set());
    }

    #[test]
    fn what_limits_nothing_or_too_much_is_refused_with_its_line() {
        for (from, to, expected) in [
            (
                "iops = 5000",
                "",
                "a.toml:3: limit group \"gold\" limits nothing",
            ),
            (
                "iops = 500,",
                "iops = 0,",
                "a.toml:9: iops 0 of LUN \"x\" must be from 1",
            ),
            (
                "burst = 100",
                "burst = 60001",
                "a.toml:9: burst 60001 of LUN \"x\" must",
            ),
            (
                "iops = 500, bytes_per_second = 1048576, burst = 100",
                "burst = 100",
                "a.toml:9: the limit of LUN \"x\" limits nothing",
            ),
            (
                "= \"gold\"\nweight",
                "= \"tin\"\nweight",
                "a.toml:14: HBA \"t\" is in the limit group \"tin\"",
            ),
            (
                "weight = 3",
                "weight = 0",
                "a.toml:15: weight 0 of HBA \"t\" must be",
            ),
            ("= 4096", "= \"4k\"", "a.toml:17: "),
            (
                "[[lun]]",
                "[[limit_group]]\nname = \"gold\"\niops = 1\n[[lun]]",
                "a.toml:6: two limit groups are named \"gold\"",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.starts_with(expected), "{error:?} for {to:?}");
        }
    }
}
