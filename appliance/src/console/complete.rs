//! What a word of the console may become.

use std::cell::RefCell;
use std::rc::Rc;

use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use super::commands::{COMMANDS, Names, find};

/// Names that the appliance has.
#[derive(Debug, Default, Clone)]
pub(super) struct Known {
    pub tenants: Vec<String>,
    pub luns: Vec<String>,
}

/// Completes commands, names and keys.
pub(super) struct Completes(pub Rc<RefCell<Known>>);

impl Helper for Completes {}
impl Highlighter for Completes {}
impl Hinter for Completes {
    type Hint = String;
}
impl Validator for Completes {}

impl Completer for Completes {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let line = &line[..pos];
        let start = line.rfind(char::is_whitespace).map_or(0, |space| space + 1);
        let before: Vec<_> = line[..start]
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let candidates = candidates(&before, &line[start..], &self.0.borrow());
        let pairs = candidates.into_iter().map(|word| Pair {
            replacement: if word.ends_with('=') {
                word.clone()
            } else {
                format!("{word} ")
            },
            display: word,
        });
        Ok((start, pairs.collect()))
    }
}

/// What `word`, after the words `before`, may become.
fn candidates(before: &[String], word: &str, known: &Known) -> Vec<String> {
    let before = match before {
        [help, rest @ ..] if help == "help" => rest,
        _ => before,
    };
    let mut candidates: Vec<String> = Vec::new();
    if let Some(command) = find(before) {
        let given = &before[command.words.len()..];
        let position = given.iter().filter(|word| !word.contains('=')).count();
        match (command.names, position) {
            (Names::Tenant, 0) => candidates.extend(known.tenants.iter().cloned()),
            (Names::Lun, 0) => candidates.extend(known.luns.iter().cloned()),
            (Names::Either, 0) => {
                let both = known.tenants.iter().chain(&known.luns);
                candidates.extend(both.cloned());
            }
            (Names::Lun, 1) if command.words == ["lun", "move"] => {
                candidates.extend(known.tenants.iter().cloned());
            }
            _ => {}
        }
        if let Some(("to", _)) = word.split_once('=') {
            candidates.extend(known.tenants.iter().map(|name| format!("to={name}")));
        } else if position > 0 || command.names == Names::Nothing {
            candidates.extend(command.keys.iter().map(|key| (*key).to_owned()));
        }
    } else {
        let next = COMMANDS.iter().filter_map(|command| {
            let begins = before.iter().zip(command.words).all(|(a, b)| a == b);
            let next = command.words.get(before.len());
            next.filter(|_| begins).map(|word| (*word).to_owned())
        });
        candidates.extend(next);
    }
    candidates.retain(|candidate| candidate.starts_with(word));
    candidates.sort();
    candidates.dedup();
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Vec<String> {
        let known = Known {
            tenants: vec!["tenant1".into(), "web".into()],
            luns: vec!["root".into(), "data".into()],
        };
        let start = line.rfind(' ').map_or(0, |space| space + 1);
        let before: Vec<_> = line[..start]
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        candidates(&before, &line[start..], &known)
    }

    #[test]
    fn commands_names_and_keys_are_completed_where_they_belong() {
        assert_eq!(of("st"), ["status"]);
        assert_eq!(of("sh"), ["shell", "show"]);
        let luns = [
            "add", "clone", "limit", "move", "remove", "resize", "snapshot",
        ];
        assert_eq!(of("lun "), luns);
        assert_eq!(of("lun snapshot root r"), ["remove", "rollback"]);
        assert_eq!(of("lun move r"), ["root"]);
        assert_eq!(of("lun move root w"), ["web"]);
        assert_eq!(of("explain "), ["data", "root"]);
        assert_eq!(of("drain "), ["tenant1", "web"]);
        assert_eq!(of("show "), ["data", "root", "tenant1", "web"]);
        assert_eq!(of("lun add x ca"), ["cache="]);
        assert_eq!(
            of("lun add x b"),
            ["block_size=", "bounce=", "burst=", "bytes_per_second="]
        );
        assert_eq!(of("lun add x to=t"), ["to=tenant1"]);
        assert_eq!(of("help con"), ["config"]);
        assert_eq!(of("log f"), ["follow"]);
        assert!(of("nothing ").is_empty());
    }
}
