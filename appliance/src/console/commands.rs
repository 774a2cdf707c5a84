//! The commands: what each is called, needs and does.

mod adding;
mod arguments;
mod snapshot;
mod table;

pub(super) use self::table::COMMANDS;
use super::help;
use super::session::{Session, Trouble};

/// What the first argument of a command names, so that it can be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    Nothing,
    Tenant,
    Lun,
    Either,
    /// A command, for help.
    Command,
}

/// One command.
pub(super) struct Command {
    /// The words that it begins with.
    pub words: &'static [&'static str],
    /// What follows these.
    pub usage: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// What there is to be known about it.
    pub more: &'static str,
    pub names: Names,
    /// Keys that may be given, for completion.
    pub keys: &'static [&'static str],
    run: fn(&mut Session, &[String]) -> Result<(), Trouble>,
}

/// Does the command in `words`.
///
/// # Errors
/// [`Trouble`].
pub(super) fn run(session: &mut Session, words: &[String]) -> Result<(), Trouble> {
    let command = find(words).ok_or_else(|| help::unknown(words))?;
    (command.run)(session, &words[command.words.len()..])
}

/// The command that `words` begin with.
pub(super) fn find(words: &[String]) -> Option<&'static Command> {
    let begins = |command: &&Command| {
        let given = words.iter().map(String::as_str);
        command.words.len() <= words.len() && given.zip(command.words).all(|(a, b)| a == *b)
    };
    COMMANDS.iter().find(begins)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::arguments::{rates, split_keys};
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_command_is_found_by_all_of_its_words() {
        let found = |text: &str| find(&words(text)).map(|command| command.words);
        assert_eq!(found("lun add x"), Some(&["lun", "add"][..]));
        assert_eq!(found("lun"), None);
        assert_eq!(found("status now"), Some(&["status"][..]));
        assert_eq!(found("nothing"), None);
    }

    #[test]
    fn values_have_the_types_that_the_configuration_has() {
        let given = words("a path=/x read_only=true timeout=7 size=1G cache=write-back serial=12");
        let (plain, keys) = split_keys(&given).unwrap();
        assert_eq!(plain, ["a"]);
        let expected = json!({
            "path": "/x", "read_only": true, "timeout": 7, "size": 1 << 30,
            "cache": "write-back", "serial": "12",
        });
        assert_eq!(Value::Object(keys), expected);
        assert!(split_keys(&words("a=1 a=2")).is_err());
        assert!(split_keys(&words("size=big")).is_err());
    }

    #[test]
    fn the_parts_of_a_limit_are_taken_by_the_names_of_console_and_configuration() {
        let taken = |text: &str| {
            let (_, mut keys) = split_keys(&words(text)).unwrap();
            let rates = rates("lun add", &mut keys);
            rates.map(|rates| (Value::Object(rates), Value::Object(keys)))
        };
        let expected = json!({ "iops": 500, "bytes_per_second": 10 << 20, "burst": 100 });
        for bytes in ["bytes_per_second=10M", "bw=10M"] {
            let all = taken(&format!("path=/x iops=500 {bytes} burst=100")).unwrap();
            assert_eq!(all, (expected.clone(), json!({ "path": "/x" })));
        }
        let none = taken("iops=none bytes_per_second=none").unwrap();
        assert_eq!(none.0, json!({ "iops": 0, "bytes_per_second": 0 }));
        assert!(taken("iops=many").is_err());
        assert!(taken("bw=1 bytes_per_second=1").is_err());
    }

    #[test]
    fn every_line_of_help_fits_eighty_columns() {
        use super::super::style::Style;
        let mut texts = vec![help::help(&[], Style::PLAIN).unwrap()];
        for command in COMMANDS {
            let words: Vec<_> = command
                .words
                .iter()
                .map(|word| (*word).to_owned())
                .collect();
            texts.push(help::help(&words, Style::PLAIN).unwrap());
        }
        for line in texts.iter().flat_map(|text| text.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
