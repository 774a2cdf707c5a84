//! What follows the words of a command.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::console::session::Trouble;
use crate::console::{help, units};

/// Takes nothing.
pub(super) fn none(command: &str, given: &[String]) -> Result<(), Trouble> {
    exactly::<0>(command, given).map(drop)
}

/// Takes so many words.
pub(super) fn exactly<const N: usize>(
    command: &str,
    given: &[String],
) -> Result<[String; N], Trouble> {
    <[String; N]>::try_from(given.to_vec()).map_err(|_| help::usage(command))
}

/// A number.
pub(super) fn number<T: std::str::FromStr>(command: &str, text: &str) -> Result<T, Trouble> {
    text.parse().map_err(|_| help::usage(command))
}

/// A size in bytes.
pub(super) fn size_of(text: &str) -> Result<u64, Trouble> {
    units::parse_bytes(text).ok_or_else(|| {
        Trouble::Usage(format!(
            "{text:?} is no size; write bytes, or as 512M, 10G, 2T"
        ))
    })
}

/// The words without "=", and the keys and values of the others.
pub(super) fn split_keys(given: &[String]) -> Result<(Vec<String>, Map<String, Value>), Trouble> {
    let (mut plain, mut keys) = (Vec::new(), Map::new());
    for word in given {
        let Some((key, value)) = word.split_once('=') else {
            plain.push(word.clone());
            continue;
        };
        let value = match (key, value) {
            ("bw" | "bytes_per_second", "none") => "none".into(),
            ("size" | "bw" | "bytes_per_second", size) => size_of(size)?.into(),
            ("name" | "path" | "serial" | "at" | "from" | "to" | "uuid" | "group", text) => {
                text.into()
            }
            (_, "true") => true.into(),
            (_, "false") => false.into(),
            (_, text) => text
                .parse::<i64>()
                .map_or_else(|_| text.into(), Value::from),
        };
        if keys.insert(key.to_owned(), value).is_some() {
            return Err(Trouble::Usage(format!("{key} is given twice")));
        }
    }
    Ok((plain, keys))
}

/// A value as it was written.
pub(super) fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// What a limit is to be, as the protocol has it, taken out of `keys`.
pub(super) fn limit(
    command: &str,
    name: &str,
    keys: &mut Map<String, Value>,
) -> Result<Value, Trouble> {
    if keys.is_empty() {
        return Err(help::usage(command));
    }
    let mut params = rates(command, keys)?;
    params.insert("name".into(), name.into());
    Ok(params.into())
}

/// The parts of a limit, as the protocol has them, taken out of `keys`; 0 for none.
pub(super) fn rates(
    command: &str,
    keys: &mut Map<String, Value>,
) -> Result<Map<String, Value>, Trouble> {
    let mut rates = Map::new();
    for (key, param) in [
        ("iops", "iops"),
        ("bw", "bytes_per_second"),
        ("bytes_per_second", "bytes_per_second"),
        ("burst", "burst"),
    ] {
        let rate: Value = match keys.remove(key) {
            None => continue,
            Some(Value::Number(number)) => number.into(),
            Some(Value::String(text)) if text == "none" => 0.into(),
            Some(_) => return Err(help::usage(command)),
        };
        if rates.insert(param.into(), rate).is_some() {
            let twice = "bw and bytes_per_second are the same; give one of them";
            return Err(Trouble::Usage(twice.into()));
        }
    }
    Ok(rates)
}

/// Takes no other keys.
pub(super) fn no_more(command: &str, keys: &Map<String, Value>) -> Result<(), Trouble> {
    if keys.is_empty() {
        Ok(())
    } else {
        Err(help::usage(command))
    }
}

/// The configuration in a file of the console's machine; without one, the appliance's own.
pub(super) fn configuration(command: &str, given: &[String]) -> Result<Value, Trouble> {
    match given {
        [] => Ok(Value::Null),
        [path] => {
            let text = fs::read_to_string(Path::new(path)).map_err(|error| {
                Trouble::Io(format!(
                    "{path} cannot be read: {error}; it has to be a file of the console's machine"
                ))
            })?;
            Ok(json!({ "text": text }))
        }
        _ => Err(help::usage(command)),
    }
}
