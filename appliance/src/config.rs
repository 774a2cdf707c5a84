//! The configuration: which LUNs there are, and which HBA sees which.

mod hba;
mod limit;
mod listen;
mod lun;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

pub use self::hba::{Coalesce, HbaConfig, Poll, Workers};
use self::hba::{RawHba, check_hba};
pub use self::limit::GroupConfig;
use self::limit::{RawGroup, check_group};
pub use self::listen::Listen;
pub use self::lun::{LunConfig, OnError, Provisioning, Source};
use self::lun::{RawLun, check_lun};
pub use crate::limit::Limit;

/// Most bytes of a configuration: ten thousand LUNs.
const MAX_TEXT: u64 = 2 << 20;
/// Most HBAs: each is a target port group.
const MAX_HBAS: usize = 255;

/// A configuration that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the appliance, for people.
    pub name: String,
    /// The LUNs; their names differ.
    pub luns: Vec<LunConfig>,
    /// The HBAs; their names and UUIDs differ.
    pub hbas: Vec<HbaConfig>,
    /// The limits that HBAs share; their names differ.
    pub groups: Vec<GroupConfig>,
    /// Directory where saved mode pages and persistent reservations are kept; without it nothing is.
    pub state: Option<PathBuf>,
    /// Where metrics are served, if they are.
    pub metrics: Option<Listen>,
}

/// What is wrong with a configuration, where, and how to mend it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {message}", file.display(), line.map(|n| format!(":{n}")).unwrap_or_default())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, where one is to blame.
    pub line: Option<usize>,
    /// What is wrong and how to mend it.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: Spanned<String>,
    #[serde(default)]
    lun: Vec<RawLun>,
    #[serde(default)]
    hba: Vec<RawHba>,
    #[serde(default)]
    limit_group: Vec<RawGroup>,
    state: Option<Spanned<PathBuf>>,
    metrics: Option<RawMetrics>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Spanned<String>,
}

/// A message about a place in the text (bytes), before the file is known.
type Located = (Option<Range<usize>>, String);

fn at<T>(place: &Spanned<T>, message: String) -> Located {
    (Some(place.span()), message)
}

impl Config {
    /// The configuration in `file`.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, line and mend.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::read_with_text(file).map(|(config, _)| config)
    }

    /// The configuration in `file`, with its text.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_with_text(file: &Path) -> Result<(Self, String), ConfigError> {
        let text = read_text(file).map_err(|error| ConfigError {
            file: file.into(),
            line: None,
            message: format!("cannot be read: {error}; give its path with --config"),
        })?;
        Ok((Self::parse(&text, file)?, text))
    }

    /// The configuration in `text`, which stands in `file`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        if text.len() as u64 > MAX_TEXT {
            return Err(ConfigError {
                file: file.into(),
                line: None,
                message: format!("it has more than {MAX_TEXT} bytes, the most"),
            });
        }
        let located = match toml::from_str::<RawConfig>(text) {
            Ok(raw) => match check(raw) {
                Ok(config) => return Ok(config),
                Err(located) => located,
            },
            Err(error) => (error.span(), error.message().replace('\n', " ")),
        };
        let (span, message) = located;
        Err(ConfigError {
            file: file.into(),
            line: span.map(|span| line(text, span.start)),
            message,
        })
    }
}

/// The text in `file`, which must be one that ends: of a device or a FIFO nobody knows when.
///
/// # Errors
/// What the kernel reports, or that it is no regular file, too long or no text.
pub(crate) fn read_text(file: &Path) -> io::Result<String> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    // Does not wait for a FIFO's writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(invalid("it is no regular file".into()));
    }
    let mut text = String::new();
    opened.take(MAX_TEXT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(invalid(format!(
            "it has more than {MAX_TEXT} bytes, the most"
        )));
    }
    Ok(text)
}

/// The line, counted from 1, of the byte at `offset`.
fn line(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|byte| **byte == b'\n').count()
}

fn check(raw: RawConfig) -> Result<Config, Located> {
    let mut luns = Vec::new();
    let mut shared = HashMap::new();
    for raw in raw.lun {
        let place = raw.name.clone();
        let lun = check_lun(raw)?;
        if shared.insert(lun.name.clone(), lun.shared).is_some() {
            return Err(at(
                &place,
                format!("two LUNs are named {:?}; rename one", lun.name),
            ));
        }
        luns.push(lun);
    }
    let mut groups: Vec<GroupConfig> = Vec::new();
    for raw in raw.limit_group {
        let place = raw.name.clone();
        let group = check_group(raw)?;
        if groups.iter().any(|other| other.name == group.name) {
            let message = format!("two limit groups are named {:?}; rename one", group.name);
            return Err(at(&place, message));
        }
        groups.push(group);
    }
    let mut hbas: Vec<HbaConfig> = Vec::new();
    if let Some(beyond) = raw.hba.get(MAX_HBAS) {
        let message = format!(
            "HBA {:?} is beyond {MAX_HBAS}, the most",
            beyond.name.get_ref()
        );
        return Err(at(&beyond.name, message));
    }
    let mut seen_by: HashMap<String, String> = HashMap::new();
    for raw in raw.hba {
        let (name_place, uuid_place) = (raw.name.clone(), raw.uuid.clone());
        let port_place = raw.port.clone();
        let hba = check_hba(raw, &shared, &mut seen_by, &groups)?;
        for other in &hbas {
            if other.name == hba.name {
                let message = format!("two HBAs are named {:?}; rename one", hba.name);
                return Err(at(&name_place, message));
            }
            if let Some(place) = &port_place
                && other.port == hba.port
            {
                let message = format!(
                    "HBAs {:?} and {:?} both have the port {}; each needs its own",
                    other.name,
                    hba.name,
                    place.get_ref()
                );
                return Err(at(place, message));
            }
            if other.uuid == hba.uuid {
                let message = format!(
                    "HBAs {:?} and {:?} both have the UUID {}; each needs its own (make one with: \
                     uuidgen)",
                    other.name, hba.name, hba.uuid
                );
                return Err(at(&uuid_place, message));
            }
        }
        hbas.push(hba);
    }
    check_name("appliance", &raw.name)?;
    if let Some(state) = &raw.state
        && !state.get_ref().is_absolute()
    {
        let message = format!("state {:?} must be an absolute path", state.get_ref());
        return Err(at(state, message));
    }
    let metrics = match raw.metrics {
        Some(RawMetrics { listen }) => {
            let parsed = listen.get_ref().parse::<Listen>();
            Some(parsed.map_err(|error| at(&listen, format!("[metrics] listen: {error}")))?)
        }
        None => None,
    };
    Ok(Config {
        name: raw.name.into_inner(),
        luns,
        hbas,
        groups,
        state: raw.state.map(Spanned::into_inner),
        metrics,
    })
}

/// Checks a number of `owner`, where it is given.
fn in_range(
    number: Option<Spanned<u64>>,
    range: RangeInclusive<u64>,
    key: &str,
    owner: &str,
) -> Result<Option<u64>, Located> {
    match number {
        Some(number) if !range.contains(number.get_ref()) => {
            let message = format!(
                "{key} {} of {owner} must be from {} to {}",
                number.get_ref(),
                range.start(),
                range.end()
            );
            Err(at(&number, message))
        }
        number => Ok(number.map(Spanned::into_inner)),
    }
}

/// Names go into log lines and identities: printable, short, without spaces.
fn check_name(what: &str, name: &Spanned<String>) -> Result<(), Located> {
    let text = name.get_ref();
    if (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(at(
            name,
            format!("{what} name {text:?} must be 1 to 64 printable ASCII characters, no spaces"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::disk::{Cache, Protection};
    use crate::scsi::{Access, Address};

    const GOOD: &str = r#"
name = "storage-1"
[[lun]]
name = "root"
serial = "t1root"
[[lun]]
name = "data"
path = "/dev/vdb"
read_only = true
cache = "write-back"
block_size = 4096
[[hba]]
name = "tenant1"
uuid = "2f0c4fd2-4f6c-4b3c-9d3b-111111111111"
luns = { "0" = "root", "1" = "data" }
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("a.toml")).map_err(|error| error.to_string())
    }

    /// The error of [`GOOD`] with `from` replaced by `to`.
    fn error_of(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from));
        parse(&GOOD.replacen(from, to, 1)).unwrap_err()
    }

    #[test]
    fn a_good_configuration_is_read_with_its_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.name, "storage-1");
        assert_eq!(config.luns[0].source, Source::Serial("t1root".into()));
        assert_eq!(config.luns[0].cache, Cache::Direct);
        assert!(config.luns[0].bounce);
        assert_eq!(config.luns[0].block_size, 512);
        assert_eq!(config.luns[1].source, Source::Path("/dev/vdb".into()));
        assert_eq!(config.luns[1].cache, Cache::WriteBack);
        assert!(config.luns[1].read_only && !config.luns[1].shared);
        let second = Address { target: 0, lun: 1 };
        assert_eq!(config.hbas[0].luns[&second], "data");
        assert_eq!(
            (config.luns[0].timeout, config.luns[0].threshold),
            (None, None)
        );
        assert_eq!(config.state, None);
        assert_eq!(config.luns[0].provisioning, Provisioning::Auto);
    }

    #[test]
    fn a_kind_without_a_file_has_a_size_in_the_place_of_a_path() {
        let of = |lun: &str| parse(&GOOD.replacen("serial = \"t1root\"", lun, 1));
        let source = |lun| of(lun).map(|config| config.luns[0].source.clone());
        assert_eq!(
            source("kind = \"null\"\nsize = 4096"),
            Ok(Source::Null(4096))
        );
        assert_eq!(source("kind = \"ram\"\nsize = 4096"), Ok(Source::Ram(4096)));
        let file = source("kind = \"file\"\npath = \"/a\"");
        assert_eq!(file, Ok(Source::Path("/a".into())));
        let error = source("kind = \"null\"").unwrap_err();
        assert!(
            error.starts_with("a.toml:4: LUN \"root\"") && error.contains("add size"),
            "{error}"
        );
        let error = source("kind = \"ram\"\nsize = 4096\npath = \"/a\"").unwrap_err();
        assert!(error.contains("remove its serial or path"), "{error}");
        let error = source("kind = \"tape\"").unwrap_err();
        assert!(error.starts_with("a.toml:5: "), "{error}");
    }

    #[test]
    fn protection_is_type_1_or_3_of_a_lun_with_a_file() {
        let of = |lun: &str| parse(&GOOD.replacen("serial = \"t1root\"", lun, 1));
        let protection = |value| {
            of(&format!("path = \"/a\"\nprotection = {value:?}"))
                .map(|config| config.luns[0].protection)
        };
        assert_eq!(protection("type1"), Ok(Some(Protection::Type1)));
        assert_eq!(protection("type3"), Ok(Some(Protection::Type3)));
        let error = protection("type2").unwrap_err();
        assert!(error.starts_with("a.toml:6: unknown variant"), "{error}");
        let error = of("kind = \"ram\"\nsize = 4096\nprotection = \"type1\"").unwrap_err();
        assert!(
            error.starts_with("a.toml:7: LUN \"root\"") && error.contains("remove protection"),
            "{error}"
        );
    }

    #[test]
    fn metrics_are_served_where_the_configuration_says() {
        let of = |metrics: &str| parse(&format!("{GOOD}[metrics]\n{metrics}\n"));
        let listen = |metrics: &str| of(metrics).map(|config| config.metrics);
        assert_eq!(parse(GOOD).unwrap().metrics, None);
        assert_eq!(
            listen("listen = \"127.0.0.1:9177\""),
            Ok(Some(Listen::Tcp("127.0.0.1:9177".parse().unwrap())))
        );
        assert_eq!(
            listen("listen = \"/run/metrics\""),
            Ok(Some(Listen::Unix("/run/metrics".into())))
        );
        let error = listen("listen = \"localhost\"").unwrap_err();
        assert!(
            error.starts_with("a.toml:17: [metrics] listen: \"localhost\" is no ADDRESS:PORT"),
            "{error}"
        );
        assert!(listen("").unwrap_err().contains("missing field `listen`"));
        assert!(
            listen("listen = \"/a\"\nport = 1")
                .unwrap_err()
                .contains("`port`")
        );
    }

    #[test]
    fn calls_are_held_back_for_microseconds_and_a_number_of_requests() {
        let coalesce = |keys: &str| {
            let text = format!("{GOOD}{keys}\n");
            parse(&text).map(|config| config.hbas[0].coalesce)
        };
        let of = |micros, requests| Coalesce {
            delay: Duration::from_micros(micros),
            requests,
        };
        assert_eq!(coalesce(""), Ok(of(0, 32)));
        assert_eq!(coalesce("coalesce_us = 1000000"), Ok(of(1_000_000, 32)));
        let both = coalesce("coalesce_us = 50\ncoalesce_requests = 1024");
        assert_eq!(both, Ok(of(50, 1024)));
        for (bad, what) in [
            ("coalesce_us = 1000001", "from 0 to 1000000"),
            ("coalesce_us = -1", "from 0 to 1000000"),
            ("coalesce_requests = 0", "from 1 to 1024"),
            ("coalesce_requests = 1025", "from 1 to 1024"),
        ] {
            let error = coalesce(bad).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn workers_are_at_least_one_and_each_may_have_a_cpu() {
        let workers = |more: &str| {
            let text = format!("{GOOD}{more}\n");
            parse(&text).map(|config| config.hbas[0].workers.clone())
        };
        let of = |count, pin: &[usize]| {
            let pin = pin.to_vec();
            Ok(Workers { count, pin })
        };
        assert_eq!(workers(""), of(1, &[]));
        assert_eq!(workers("workers = 16"), of(16, &[]));
        assert_eq!(workers("workers = 2\npin = [3, 0]"), of(2, &[3, 0]));
        assert_eq!(workers("pin = [7]"), of(1, &[7]));
        for bad in ["0", "17"] {
            let error = workers(&format!("workers = {bad}")).unwrap_err();
            let expected = format!(
                "a.toml:16: workers {bad} of HBA \"tenant1\" must be from 1 to 16, and no more than \
                 its driver has request queues"
            );
            assert_eq!(error, expected);
        }
        assert_eq!(
            workers("workers = 2\npin = [3]").unwrap_err(),
            "a.toml:17: pin of HBA \"tenant1\" names 1 CPUs, but it has 2 workers; give one CPU for \
             each"
        );
    }

    #[test]
    fn polling_is_microseconds_or_always() {
        let poll = |value: &str| {
            let text = format!("{GOOD}poll = {value}\n");
            parse(&text).map(|config| config.hbas[0].poll)
        };
        let usual = Poll::For(Duration::from_micros(64));
        assert_eq!(parse(GOOD).unwrap().hbas[0].poll, usual);
        assert_eq!(poll("0"), Ok(Poll::For(Duration::ZERO)));
        assert_eq!(poll("50"), Ok(Poll::For(Duration::from_micros(50))));
        assert_eq!(poll("\"always\""), Ok(Poll::Always));
        for bad in ["-1", "1000001", "\"never\"", "0.5"] {
            let error = poll(bad).unwrap_err();
            assert!(
                error.contains("of HBA \"tenant1\" must be microseconds"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = error_of("read_only = true", "readonly = true");
        assert!(
            error.starts_with("a.toml:9: unknown field `readonly`"),
            "{error}"
        );
        let error = error_of("name = \"storage-1\"", "colour = 1");
        assert!(
            error.starts_with("a.toml:2: unknown field `colour`"),
            "{error}"
        );
    }

    #[test]
    fn names_and_uuids_are_unique() {
        let error = error_of("name = \"data\"", "name = \"root\"");
        assert_eq!(error, "a.toml:7: two LUNs are named \"root\"; rename one");
        let second = "[[hba]]\nname = \"tenant1\"\nuuid = \
                      \"2f0c4fd2-4f6c-4b3c-9d3b-222222222222\"\nluns = {}\n";
        let error = parse(&format!("{GOOD}{second}")).unwrap_err();
        assert_eq!(
            error,
            "a.toml:17: two HBAs are named \"tenant1\"; rename one"
        );
        let second = second.replace("tenant1", "b").replace('2', "1");
        let second = second.replace("1f0c4fd1", "2f0c4fd2");
        let error = parse(&format!("{GOOD}{second}")).unwrap_err();
        assert!(
            error.starts_with("a.toml:18: HBAs \"tenant1\" and \"b\" both have"),
            "{error}"
        );
    }

    #[test]
    fn an_hba_sees_only_luns_that_exist() {
        let error = error_of("\"0\" = \"root\"", "\"0\" = \"boot\"");
        assert_eq!(
            error,
            "a.toml:15: HBA \"tenant1\" names the LUN \"boot\", which does not exist; add a \
             [[lun]] of that name"
        );
    }

    #[test]
    fn a_lun_of_two_hbas_must_be_shared() {
        let second = "[[hba]]\nname = \"b\"\nuuid = \"2f0c4fd2-4f6c-4b3c-9d3b-222222222222\"\n\
                      luns = { \"0\" = \"root\" }\n";
        let error = parse(&format!("{GOOD}{second}")).unwrap_err();
        assert!(
            error.starts_with("a.toml:19: LUN \"root\" is seen by the HBAs"),
            "{error}"
        );
        let shared = GOOD.replace("serial = \"t1root\"", "serial = \"t1root\"\nshared = true");
        assert!(parse(&format!("{shared}{second}")).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line_and_a_mend() {
        for (from, to, expected) in [
            (
                "serial = \"t1root\"\n",
                "",
                "a.toml:4: LUN \"root\" has no disk; add",
            ),
            (
                "\"t1root\"",
                "\"t1root\"\npath = \"/x\"",
                "a.toml:5: LUN \"root\" has both",
            ),
            (
                "block_size = 4096",
                "block_size = 1000",
                "a.toml:11: block_size 1000",
            ),
            (
                "\"1\" = \"data\"",
                "\"16384\" = \"data\"",
                "a.toml:15: \"16384\" is not a LUN",
            ),
            (
                "\"1\" = \"data\"",
                "\"00\" = \"data\"",
                "a.toml:15: HBA \"tenant1\" has two",
            ),
            (
                "\"1\" = \"data\"",
                "\"1\" = \"root\"",
                "a.toml:15: HBA \"tenant1\" has the LUN",
            ),
            ("-9d3b-", "-9d-", "a.toml:14: uuid"),
            ("write-back", "write-through", "a.toml:10: unknown variant"),
            (
                "block_size = 4096",
                "provisioning = \"thin\"",
                "a.toml:11: unknown variant",
            ),
            (
                "block_size = 4096",
                "bounce = false",
                "a.toml:11: LUN \"data\" goes through the page cache; remove bounce",
            ),
            (
                "serial = \"t1root\"",
                "kind = \"ram\"\nsize = 512\nbounce = false",
                "a.toml:7: LUN \"root\" has a kind without a file; remove bounce",
            ),
            (
                "serial = \"t1root\"",
                "serial = \"t1root\"\nprotection = \"type1\"\nbounce = false",
                "a.toml:7: LUN \"root\" has protection information, which",
            ),
            ("storage-1", "storage 1", "a.toml:2: appliance name"),
            ("[[lun]]", "[[lun", "a.toml:3: "),
        ] {
            let error = error_of(from, to);
            assert!(error.starts_with(expected), "{error:?} for {to:?}");
        }
    }

    #[test]
    fn a_lun_is_of_target_0_or_of_the_target_that_is_named() {
        let text = GOOD.replace("\"0\" = \"root\"", "\"255:16383\" = \"root\"");
        let luns = &parse(&text).unwrap().hbas[0].luns;
        let far = Address {
            target: 255,
            lun: 16383,
        };
        assert_eq!(luns[&far], "root");
        assert_eq!(luns[&Address { target: 0, lun: 1 }], "data");
        for bad in [
            "256:0", "0:16384", "1:", ":1", "1:2:3", "+1", "-1", "1: 2", "",
        ] {
            let error = error_of("\"1\" = \"data\"", &format!("{bad:?} = \"data\""));
            let expected = format!("a.toml:15: {bad:?} is not a LUN of HBA");
            assert!(error.starts_with(&expected), "{error}");
        }
        let error = error_of("\"1\" = \"data\"", "\"0:0\" = \"data\"");
        assert!(error.starts_with("a.toml:15: HBA \"tenant1\" has two LUNs 0 of target 0"));
    }

    #[test]
    fn timeout_threshold_and_state_are_read_and_bounded() {
        let keys = "serial = \"t1root\"\ntimeout = 7\nthreshold = 80\non_error = \"pause\"";
        let text = GOOD.replace("serial = \"t1root\"", keys);
        let config = parse(&format!("state = \"/var/lib/a\"\n{text}")).unwrap();
        assert_eq!(config.luns[0].timeout, Some(Duration::from_secs(7)));
        assert_eq!(config.luns[0].threshold, Some(80));
        let on_error = [&config.luns[0], &config.luns[1]].map(|lun| lun.on_error);
        assert_eq!(on_error, [OnError::Pause, OnError::Report]);
        assert_eq!(config.state.as_deref(), Some(Path::new("/var/lib/a")));
        for (key, value) in [("timeout", 0), ("timeout", 86_401), ("threshold", 101)] {
            let keys = format!("serial = \"t1root\"\n{key} = {value}");
            let error = error_of("serial = \"t1root\"", &keys);
            let expected = format!("a.toml:6: {key} {value} of LUN \"root\" must be from 1 to");
            assert!(error.starts_with(&expected), "{error}");
        }
        let error = error_of("name = \"storage-1\"", "name = \"a\"\nstate = \"here\"");
        assert!(
            error.starts_with("a.toml:3: state \"here\" must be"),
            "{error}"
        );
    }

    #[test]
    fn access_and_port_of_an_hba_are_read_and_checked() {
        let luns = "luns = { \"0\" = \"root\", \"1\" = \"data\" }";
        let with = |keys: &str| GOOD.replace(luns, &format!("{luns}\n{keys}"));
        let config = parse(&with("access = \"active-non-optimized\"\nport = 255")).unwrap();
        assert_eq!(config.hbas[0].access, Access::ActiveNonOptimized);
        assert_eq!(config.hbas[0].port, Some(255));
        let config = parse(GOOD).unwrap();
        assert_eq!(config.hbas[0].access, Access::ActiveOptimized);
        assert_eq!(config.hbas[0].port, None);
        for port in [0, 256] {
            let error = parse(&with(&format!("port = {port}"))).unwrap_err();
            assert_eq!(
                error,
                format!("a.toml:16: port {port} of HBA \"tenant1\" must be from 1 to 255")
            );
        }
        let error = parse(&with("access = \"best\"")).unwrap_err();
        assert!(
            error.starts_with("a.toml:16: unknown variant `best`"),
            "{error}"
        );
        let second = "[[hba]]\nname = \"b\"\nuuid = \"2f0c4fd2-4f6c-4b3c-9d3b-222222222222\"\n\
                      luns = {}\nport = 3\n";
        let error = parse(&(with("port = 3") + second)).unwrap_err();
        assert_eq!(
            error,
            "a.toml:21: HBAs \"tenant1\" and \"b\" both have the port 3; each needs its own"
        );
    }

    #[test]
    fn there_are_no_more_hbas_than_port_groups() {
        let hbas = (1..=256).map(|n| {
            format!(
                "[[hba]]\nname = \"h{n}\"\nuuid = \"{}\"\nluns = {{}}\n",
                Uuid::from_u128(n)
            )
        });
        let hbas: Vec<_> = hbas.collect();
        assert!(parse(&format!("name = \"a\"\n{}", hbas[1..].concat())).is_ok());
        let error = parse(&format!("name = \"a\"\n{}", hbas.concat())).unwrap_err();
        assert!(
            error.ends_with("HBA \"h256\" is beyond 255, the most"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::read(Path::new("/does/not/exist.toml")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/does/not/exist.toml: cannot be read")
        );
    }
}
