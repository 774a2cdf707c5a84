//! One operator's session: the connection, and how results are shown.

use std::io::{self, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Options;
use super::client::{CallError, Client};
use super::style::Style;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It was said wrongly; the text says how it is said.
    #[error("{0}")]
    Usage(String),
    /// The appliance did not do it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A file or the terminal failed.
    #[error("{0}")]
    Io(String),
}

/// A session.
pub(super) struct Session {
    pub client: Client,
    pub json: bool,
    pub allow_shell: bool,
    pub style: Style,
}

impl Session {
    /// With that connection.
    pub fn new(client: Client, options: Options, style: Style) -> Self {
        Self {
            client,
            json: options.json,
            allow_shell: options.allow_shell,
            style,
        }
    }

    /// Calls a method and shows its result: as JSON, or as `show` makes it.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn show<T: DeserializeOwned + Serialize>(
        &mut self,
        method: &str,
        params: &Value,
        show: impl FnOnce(&T, Style) -> String,
    ) -> Result<(), Trouble> {
        let result: Value = self.client.call(method, params)?;
        if self.json {
            // As it came: with members that this program does not know.
            print(&format!("{result}\n"));
            return Ok(());
        }
        let result: T = serde_json::from_value(result).map_err(CallError::Reply)?;
        print(&show(&result, self.style));
        Ok(())
    }
}

/// Writes to standard output. Whoever has closed it has seen enough.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
