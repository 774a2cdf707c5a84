//! What there is, and how it is said.

use super::commands::{COMMANDS, Command, find};
use super::session::Trouble;
use super::style::{Kind, Style};
use super::table::wrap;

/// Columns before what a command does.
const MARGIN: usize = 16;

/// All commands, or the one in `words`, or those that begin with them.
///
/// # Errors
/// [`Trouble::Usage`] if there is no such.
pub(super) fn help(words: &[String], style: Style) -> Result<String, Trouble> {
    if words.is_empty() {
        return Ok(overview(style));
    }
    if let Some(command) = find(words) {
        return Ok(about(command, style));
    }
    let group = group(words);
    if group.is_empty() {
        return Err(unknown(words));
    }
    Ok(group
        .into_iter()
        .map(|command| line(command, style))
        .collect())
}

fn overview(style: Style) -> String {
    let mut text = String::new();
    for command in COMMANDS {
        text += &line(command, style);
    }
    text.push('\n');
    text += &wrap(
        "help COMMAND says more. Tab completes commands and names, the arrows bring back what was \
         said, Ctrl-C ends what follows something, Ctrl-D leaves. Start with: status. A change is \
         in force at once, and kept with: config save",
        0,
    );
    text
}

/// The commands whose first words are these.
fn group(words: &[String]) -> Vec<&'static Command> {
    let begins = |command: &&Command| {
        words.len() <= command.words.len()
            && words
                .iter()
                .zip(command.words)
                .all(|(given, word)| given == word)
    };
    COMMANDS.iter().filter(begins).collect()
}

fn line(command: &Command, style: Style) -> String {
    let name = format!("{:MARGIN$}", command.words.join(" "));
    format!("{}{}\n", style.paint(Kind::Heading, &name), command.about)
}

fn about(command: &Command, style: Style) -> String {
    let said = format!("{} {}", command.words.join(" "), command.usage);
    let mut text = style.paint(Kind::Heading, wrap(&said, 4).trim_end());
    text.push('\n');
    text += &wrap(&format!("{}.", capitalised(command.about)), 0);
    if !command.more.is_empty() {
        text += &wrap(command.more, 0);
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

/// How a command is said, for one that was said otherwise.
pub(super) fn usage(name: &str) -> Trouble {
    let words: Vec<_> = name.split(' ').map(str::to_owned).collect();
    let usage = find(&words).map_or("", |command| command.usage);
    Trouble::Usage(format!("say: {name} {usage}").trim_end().to_owned())
}

/// For a command that there is not.
pub(super) fn unknown(words: &[String]) -> Trouble {
    let said = words.first().map_or("", String::as_str);
    let group = group(&words[..words.len().min(1)]);
    if !group.is_empty() {
        let names: Vec<_> = group
            .iter()
            .map(|command| command.words.join(" "))
            .collect();
        return Trouble::Usage(format!("say one of: {}", names.join(", ")));
    }
    Trouble::Usage(format!("there is no command {said:?}; help lists them"))
}
