//! The operator's console: the client of the control socket.
//!
//! It knows [`crate::control::protocol`] and nothing else of the appliance. A command is a row of
//! `commands::COMMANDS`; `show` makes tables of what comes back.

mod client;
mod commands;
mod complete;
mod follow;
mod help;
mod interrupt;
mod prompt;
mod session;
mod shell;
mod show;
mod style;
mod table;
mod top;
mod units;
mod words;

use std::path::Path;
use std::process::ExitCode;

use self::client::{CallError, Client};
use self::session::{Session, Trouble};
use self::style::Style;

/// Exit status of a command that was refused or failed.
const FAILED: u8 = 1;
/// Exit status of a command that there is not, or that lacks something.
const USAGE: u8 = 2;
/// Exit status when there is no appliance that answers.
const UNREACHABLE: u8 = 3;

/// What a console is started with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Results as JSON.
    pub json: bool,
    /// The command `shell` may be said.
    pub allow_shell: bool,
}

/// Does the command in `words`, or asks for commands if there is none, with the appliance behind
/// the socket at `control`.
pub fn run(control: &Path, options: Options, words: &[String]) -> ExitCode {
    let style = Style::of_stdout();
    if matches!(words.first().map(String::as_str), Some("help")) {
        return match help::help(&words[1..], style) {
            Ok(text) => {
                session::print(&text);
                ExitCode::SUCCESS
            }
            Err(trouble) => report(&trouble),
        };
    }
    let client = match Client::connect(control) {
        Ok(client) => client,
        Err(error) => return report(&Trouble::Call(error)),
    };
    let mut session = Session::new(client, options, style);
    if words.is_empty() {
        return match prompt::run(&mut session) {
            Ok(()) => ExitCode::SUCCESS,
            Err(trouble) => report(&trouble),
        };
    }
    match commands::run(&mut session, words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => report(&trouble),
    }
}

fn report(trouble: &Trouble) -> ExitCode {
    eprintln!("appliance: {trouble}");
    ExitCode::from(match trouble {
        Trouble::Usage(_) => USAGE,
        Trouble::Call(CallError::Failed(_)) | Trouble::Io(_) => FAILED,
        Trouble::Call(_) => UNREACHABLE,
    })
}
