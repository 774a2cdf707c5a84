//! What is shown as it comes: the log, and the commands to a LUN.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use super::interrupt;
use super::session::{Session, Trouble, print};
use super::show;
use crate::control::protocol::{LogPage, Traced};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Shows the log as it is written, until Ctrl-C.
///
/// # Errors
/// [`Trouble`].
pub(super) fn log(session: &mut Session) -> Result<(), Trouble> {
    interrupt::take();
    let mut params = json!({ "most": 10 });
    loop {
        let page: LogPage = session.client.call("log.read", &params)?;
        if session.json {
            for line in &page.lines {
                print(&format!("{}\n", json!(line)));
            }
        } else {
            print(&show::log(&page, session.style));
        }
        let more = page.lines.len() > 10;
        params = json!({ "after": page.next, "most": 500 });
        if !interrupt::rest(if more { Duration::ZERO } else { LOOK }) {
            return Ok(());
        }
    }
}

/// Shows the commands to a LUN as they end, until Ctrl-C.
///
/// # Errors
/// [`Trouble`].
pub(super) fn trace(session: &mut Session, lun: &str) -> Result<(), Trouble> {
    interrupt::take();
    let params = json!({ "lun": lun, "most": 10_000 });
    // The number of the next command of each worker of an HBA.
    let mut next: HashMap<(String, usize), u64> = HashMap::new();
    let mut first = true;
    loop {
        let all: Vec<Traced> = session.client.call("trace", &params)?;
        let mut missed = 0;
        let mut new = Vec::new();
        for traced in all {
            let number = traced.command.number;
            let due = next
                .entry((traced.hba.clone(), traced.command.worker))
                .or_insert(number);
            // Numbers begin again when the HBA does.
            if number >= *due || number + 128 < *due {
                missed += number.saturating_sub(*due);
                *due = number + 1;
                new.push(traced);
            }
        }
        if first {
            let skip = new.len().saturating_sub(10);
            new.drain(..skip);
        }
        if session.json {
            for traced in &new {
                print(&format!("{}\n", json!(traced)));
            }
        } else {
            if missed > 0 {
                print(&format!("({missed} more, too fast to be kept)\n"));
            }
            print(&show::trace_lines(&new, session.style, first));
        }
        first = false;
        if !interrupt::rest(LOOK) {
            return Ok(());
        }
    }
}
