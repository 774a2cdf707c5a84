//! The console that asks for commands: line editing, history, completion.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{ColorMode, CompletionType, Config, Editor};
use serde_json::Value;

use super::commands;
use super::complete::{Completes, Known};
use super::session::{Session, Trouble, print};
use super::style::Kind;
use super::words;
use crate::control::protocol::{Lun, Tenant};

/// Lines of history that are kept.
const HISTORY: usize = 1000;

/// Where the history is kept, for a user who has a home.
fn history_file() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".vhost-pci-console-history"))
}

/// Asks for commands and does them until there are no more.
///
/// # Errors
/// [`Trouble`] of the terminal.
pub(super) fn run(session: &mut Session) -> Result<(), Trouble> {
    let trouble = |error: ReadlineError| Trouble::Io(error.to_string());
    let config = Config::builder()
        .max_history_size(HISTORY)
        .map_err(trouble)?
        .history_ignore_space(true)
        .completion_type(CompletionType::List)
        .auto_add_history(true)
        .color_mode(if session.style.has_colour() {
            ColorMode::Enabled
        } else {
            ColorMode::Disabled
        })
        .build();
    let mut editor: Editor<Completes, FileHistory> =
        Editor::with_config(config).map_err(trouble)?;
    let known = Rc::new(RefCell::new(Known::default()));
    editor.set_helper(Some(Completes(Rc::clone(&known))));
    let history = history_file();
    if let Some(history) = &history {
        // The first time there is none.
        let _ = editor.load_history(history);
    }
    let hello = session.client.hello();
    let prompt = format!("{}> ", hello.name);
    print(&format!(
        "Console of appliance {}, version {}. help says what there is, Ctrl-D leaves.\n",
        hello.name, hello.version
    ));
    loop {
        learn(session, &mut known.borrow_mut());
        match editor.readline(&prompt) {
            Ok(line) => {
                if !line_done(session, &line) {
                    break;
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(trouble(error)),
        }
        if let Some(history) = &history {
            // Somebody whose home is read-only has none next time.
            let _ = editor.save_history(history);
        }
    }
    Ok(())
}

/// Does what a line says; whether to ask for another.
fn line_done(session: &mut Session, line: &str) -> bool {
    let words = match words::split(line) {
        Ok(words) => words,
        Err(error) => {
            say(session, &error);
            return true;
        }
    };
    match words.first().map(String::as_str) {
        None => return true,
        Some("exit" | "quit") => return false,
        Some(_) => {}
    }
    match commands::run(session, &words) {
        Ok(()) => {}
        Err(Trouble::Call(error)) if error.is_gone() => {
            // It may have been started again meanwhile; what was said is not repeated.
            match session.client.reconnect() {
                Ok(()) => say(session, &format!("{error}. Connected again; say it again")),
                Err(_) => say(session, &error.to_string()),
            }
        }
        Err(trouble) => say(session, &trouble.to_string()),
    }
    true
}

fn say(session: &Session, text: &str) {
    print(&format!("{}\n", session.style.paint(Kind::Bad, text)));
}

/// Learns the names that there are. Without them there is nothing to complete, and no more.
fn learn(session: &mut Session, known: &mut Known) {
    if let Ok(tenants) = session.client.call::<Vec<Tenant>>("hbas", &Value::Null) {
        known.tenants = tenants.into_iter().map(|tenant| tenant.name).collect();
    }
    if let Ok(luns) = session.client.call::<Vec<Lun>>("luns", &Value::Null) {
        known.luns = luns.into_iter().map(|lun| lun.name).collect();
    }
}
