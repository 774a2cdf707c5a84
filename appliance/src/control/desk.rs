//! Where requests are carried out, whoever brought them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::book::{Book, BookError};
use super::change::Changes;
use super::logs::Logs;
use super::methods::METHODS;
use super::protocol::{Failure, MAX_REPLY, Reply, Request, code};
use crate::appliance::Appliance;
use crate::metrics::Page;
use crate::roster::{Applied, Roster};

/// What requests are about: one appliance with its configuration and its log.
pub struct Desk {
    pub(crate) book: Arc<Book>,
    pub(super) logs: Logs,
    pub(super) changes: Changes,
    pub(crate) page: Page,
    started: Instant,
    /// Names of the LUNs whose disks are being asked how full they are.
    looked_at: LookedAt,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Desk")
    }
}

impl From<BookError> for Failure {
    fn from(error: BookError) -> Self {
        let code = match error {
            BookError::Write { .. } => code::SYSTEM,
            BookError::Config(_)
            | BookError::Apply(_)
            | BookError::Metrics(_)
            | BookError::NoFile
            | BookError::Place { .. } => code::REFUSED,
        };
        Self::new(code, error.to_string())
    }
}

impl Desk {
    /// For the appliance of `book`, which writes its log to `logs`.
    pub fn new(book: Arc<Book>, logs: Logs) -> Self {
        Self {
            book,
            logs,
            changes: Changes::default(),
            page: Page::default(),
            started: Instant::now(),
            looked_at: LookedAt::default(),
        }
    }

    /// The appliance.
    pub fn appliance(&self) -> &Arc<Appliance> {
        self.book.appliance()
    }

    pub(crate) fn roster(&self) -> &Arc<Roster> {
        self.appliance().roster()
    }

    /// How long it has been there.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// For how long a change has been under way, if one is.
    pub(crate) fn changing(&self) -> Option<Duration> {
        self.changes.under_way()
    }

    /// The disks that are being looked at.
    pub(super) fn looks(&self) -> LookedAt {
        self.looked_at.clone()
    }

    /// Puts what `edit` makes of the configuration's text into force.
    ///
    /// # Errors
    /// [`Failure`]; nothing is different then, or it took too long.
    pub(super) fn change(
        &self,
        edit: impl FnOnce(&str) -> Result<String, Failure> + Send + 'static,
    ) -> Result<Applied, Failure> {
        let book = Arc::clone(&self.book);
        self.changes.run(move || book.change(edit))
    }

    /// Reads the configuration file again and puts what is in it into force.
    ///
    /// # Errors
    /// [`Failure`]; nothing is different then, or it took too long.
    pub fn reload(&self) -> Result<Applied, Failure> {
        let book = Arc::clone(&self.book);
        self.changes
            .run(move || book.reload().map_err(Failure::from))
    }

    /// The line of the reply to the line of a request, without its end; `None` if it wants none.
    pub fn answer(&self, line: &[u8]) -> Option<String> {
        let request = match parse(line) {
            Ok(request) => request,
            Err((id, failure)) => return Some(reply(id, Err(failure))),
        };
        tracing::debug!(method = request.method, "asked");
        let result = self.carry_out(&request.method, &request.params);
        request.id.map(|id| reply(id, result))
    }

    fn carry_out(&self, method: &str, params: &Value) -> Result<Value, Failure> {
        let known = METHODS.iter().find(|known| known.name == method);
        let method = known.ok_or_else(|| {
            let names: Vec<_> = METHODS.iter().map(|known| known.name).collect();
            Failure::new(
                code::METHOD,
                format!(
                    "there is no method {method:?}; there are {}",
                    names.join(", ")
                ),
            )
        })?;
        (method.run)(self, params)
    }
}

/// The LUNs whose disks are being looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct LookedAt(Arc<Mutex<BTreeSet<String>>>);

impl LookedAt {
    /// A place among them, unless that of `lun` is being looked at already.
    pub fn begin(&self, lun: &str) -> Option<Looks> {
        lock(&self.0).insert(lun.to_owned()).then(|| Looks {
            lun: lun.to_owned(),
            at: self.clone(),
        })
    }
}

/// The disk of one LUN that is being looked at, until this is dropped.
pub(super) struct Looks {
    lun: String,
    at: LookedAt,
}

impl Drop for Looks {
    fn drop(&mut self) {
        lock(&self.at.0).remove(&self.lun);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The request in a line.
fn parse(line: &[u8]) -> Result<Request, (Value, Failure)> {
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        let message = format!("this is no JSON: {error}; send one object a line");
        (Value::Null, Failure::new(code::PARSE, message))
    })?;
    if value.is_array() {
        let message = "batches are not served; send one object a line";
        return Err((Value::Null, Failure::new(code::REQUEST, message)));
    }
    let id = value.get("id").cloned().unwrap_or_default();
    let id = match id {
        Value::String(_) | Value::Number(_) => id,
        _ => Value::Null,
    };
    let request: Request = serde_json::from_value(value).map_err(|error| {
        let message = format!("this is no request: {error}");
        (id.clone(), Failure::new(code::REQUEST, message))
    })?;
    if request.jsonrpc != "2.0" {
        let message = format!("jsonrpc is {:?}, and has to be \"2.0\"", request.jsonrpc);
        return Err((id, Failure::new(code::REQUEST, message)));
    }
    Ok(request)
}

/// The line of a reply.
pub(super) fn reply(id: Value, outcome: Result<Value, Failure>) -> String {
    let line = |outcome| {
        let (result, error) = match outcome {
            Ok(result) => (Some(result), None),
            Err(failure) => (None, Some(failure)),
        };
        let reply = Reply {
            jsonrpc: "2.0".into(),
            id: id.clone(),
            result,
            error,
        };
        serde_json::to_string(&reply).expect("names are strings, values are JSON")
    };
    let whole = line(outcome);
    if whole.len() <= MAX_REPLY {
        return whole;
    }
    let message = format!("the reply is longer than {MAX_REPLY} bytes; ask for one thing by name");
    line(Err(Failure::new(code::SYSTEM, message)))
}
