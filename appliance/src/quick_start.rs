//! A configuration from the command line: one HBA, and its LUNs.

use std::fmt::Write;
use std::path::Path;

use crate::config::{Config, ConfigError, Poll};

/// What the configuration is called in messages.
const FILE: &str = "--lun";
/// UUID of the only HBA, which is the same each time: the tenant meets the same nexus again.
const HBA_UUID: &str = "6f1b9a0e-4c1d-4a53-9a3c-6c756e2d2d31";
/// What is said of the only HBA.
#[derive(Debug, Clone)]
pub struct OnlyHba {
    /// How long its workers look for requests: microseconds, or "always".
    pub poll: String,
    /// How many workers it has.
    pub workers: u64,
    /// The CPU of each, or none.
    pub pin: Vec<u64>,
}

impl Default for OnlyHba {
    /// As an HBA is whose keys are left out.
    fn default() -> Self {
        Self {
            poll: Poll::USUAL.to_string(),
            workers: 1,
            pin: Vec::new(),
        }
    }
}

/// Keys of a LUN whose values are not texts.
const PLAIN: [&str; 7] = [
    "read_only",
    "shared",
    "block_size",
    "size",
    "bounce",
    "timeout",
    "threshold",
];
/// Keys of a LUN's `limit`, which are given as if they were its own.
const LIMIT: [&str; 3] = ["iops", "bytes_per_second", "burst"];

impl Config {
    /// The configuration of one HBA, `hba0`, with these LUNs, numbered from 0. Each is
    /// `PATH[,key=value...]` or only keys, which are those of a `[[lun]]`; its name is `lun0`,
    /// `lun1`, … unless given. The HBA is as `hba` says.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn of_luns(luns: &[String], hba: &OnlyHba) -> Result<Self, ConfigError> {
        let text = Self::text_of_luns(luns, hba);
        Self::parse(&text, Path::new(FILE)).map_err(|error| ConfigError {
            // Lines are of a text that nobody has written.
            line: None,
            ..error
        })
    }

    /// The text of that configuration.
    #[must_use]
    pub fn text_of_luns(luns: &[String], hba: &OnlyHba) -> String {
        let OnlyHba { poll, workers, pin } = hba;
        let mut text = String::from("name = \"appliance\"\n");
        let mut shown = Vec::new();
        for (number, lun) in luns.iter().enumerate() {
            let name = lun_text(&mut text, number, lun);
            shown.push(format!("\"{number}\" = {}", quoted(&name)));
        }
        let shown = shown.join(", ");
        let number = poll.parse::<u64>().ok();
        let poll = number.map_or_else(|| quoted(poll), |micros| micros.to_string());
        text += &format!(
            "[[hba]]\nname = \"hba0\"\nuuid = \"{HBA_UUID}\"\nluns = {{ {shown} }}\n\
             poll = {poll}\nworkers = {workers}\n"
        );
        if !pin.is_empty() {
            text += &format!("pin = {pin:?}\n");
        }
        text
    }
}

/// Appends the `[[lun]]` of an argument; returns its name.
fn lun_text(text: &mut String, number: usize, argument: &str) -> String {
    let mut name = format!("lun{number}");
    *text += "[[lun]]\n";
    for (place, part) in argument.split(',').enumerate() {
        let (key, value) = match part.split_once('=') {
            Some(pair) => pair,
            // The path comes first, and has no key.
            None if place == 0 => ("path", part),
            None => (part, "true"),
        };
        if key == "name" {
            value.clone_into(&mut name);
            continue;
        }
        if LIMIT.contains(&key) {
            let _ = writeln!(text, "limit.{key} = {value}");
            continue;
        }
        let value = if PLAIN.contains(&key) {
            value.to_owned()
        } else {
            quoted(value)
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} = {value}", quoted(key));
    }
    let _ = writeln!(text, "name = {}", quoted(&name));
    name
}

/// The text as a string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Source;
    use crate::disk::Cache;
    use crate::scsi::Address;

    fn of(luns: &[&str]) -> Result<Config, String> {
        let luns: Vec<_> = luns.iter().map(ToString::to_string).collect();
        Config::of_luns(&luns, &OnlyHba::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn luns_are_numbered_in_their_order_and_take_the_keys_of_the_configuration() {
        let config = of(&[
            "/dev/vg/a \"quoted\"",
            "disk.img,name=data,cache=write-back,read_only,block_size=4096,iops=500,burst=9",
        ])
        .unwrap();
        assert_eq!(
            config.luns[0].source,
            Source::Path("/dev/vg/a \"quoted\"".into())
        );
        assert_eq!(config.luns[0].name, "lun0");
        assert_eq!(config.luns[1].cache, Cache::WriteBack);
        assert!(config.luns[1].read_only);
        assert_eq!(config.luns[1].block_size, 4096);
        let limit = config.luns[1].limit;
        assert_eq!((limit.iops, limit.burst.as_millis()), (Some(500), 9));
        let second = Address { target: 0, lun: 1 };
        assert_eq!(config.hbas[0].luns[&second], "data");
        assert_eq!(config.hbas.len(), 1);
    }

    #[test]
    fn a_lun_without_a_path_has_keys_only() {
        let config = of(&["kind=null,size=1048576"]).unwrap();
        assert_eq!(config.luns[0].source, Source::Null(1 << 20));
    }

    #[test]
    fn the_hba_polls_as_it_is_told() {
        let poll = |poll: &str| {
            let hba = OnlyHba {
                poll: poll.into(),
                ..OnlyHba::default()
            };
            Config::of_luns(&["a.img".into()], &hba).map(|config| config.hbas[0].poll)
        };
        assert_eq!(poll("50"), Ok(Poll::For(Duration::from_micros(50))));
        assert_eq!(poll("always"), Ok(Poll::Always));
        assert!(
            poll("now")
                .unwrap_err()
                .to_string()
                .contains("poll \"now\"")
        );
    }

    #[test]
    fn the_hba_has_the_workers_that_it_is_to_have() {
        let workers = |workers, pin: &[u64]| {
            let hba = OnlyHba {
                workers,
                pin: pin.to_vec(),
                ..OnlyHba::default()
            };
            let config = Config::of_luns(&["a.img".into()], &hba);
            config.map(|config| config.hbas[0].workers.clone())
        };
        let two = workers(2, &[3, 1]).unwrap();
        assert_eq!((two.count, &two.pin[..]), (2, &[3, 1][..]));
        assert_eq!(workers(1, &[]).unwrap().count, 1);
        let error = workers(2, &[3]).unwrap_err().to_string();
        assert_eq!(
            error,
            "--lun: pin of HBA \"hba0\" names 1 CPUs, but it has 2 workers; give one CPU for each"
        );
    }

    #[test]
    fn what_is_wrong_with_a_lun_is_named() {
        let error = of(&["a.img,colour=red"]).unwrap_err();
        assert!(
            error.starts_with("--lun: unknown field `colour`"),
            "{error}"
        );
        let error = of(&["a.img,size=\"\nname = 1"]).unwrap_err();
        assert!(error.starts_with("--lun: "), "{error}");
        let error = of(&["a.img,name=x", "b.img,name=x"]).unwrap_err();
        assert!(error.contains("two LUNs are named"), "{error}");
        let error = of(&["cache=direct"]).unwrap_err();
        assert!(error.contains("has no disk"), "{error}");
    }
}
