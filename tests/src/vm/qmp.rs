//! A small blocking QMP client.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::error::{Error, FileContext, Result};

/// How long QEMU may take for a command.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What is read of a line that has not ended yet.
    partial: String,
}

impl Qmp {
    /// Connects to the monitor at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).file("connect to", path)?;
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .file("configure", path)?;
        let stream = BufReader::new(stream);
        let mut qmp = Self {
            stream,
            partial: String::new(),
        };
        qmp.message("QMP greeting", Instant::now() + TIMEOUT)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs `command`, and gives what it returns.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers write json!() in place"
    )]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").map_err(|error| failed(command, &error))?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let mut reply = self.message(command, deadline)?;
            if let Some(error) = reply.get("error") {
                let reason = error["desc"].as_str().unwrap_or_default();
                return Err(failed(command, &reason));
            }
            // Anything else is an event.
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// The next line from QEMU.
    fn message(&mut self, awaited: &str, deadline: Instant) -> Result<Value> {
        loop {
            match self.stream.read_line(&mut self.partial) {
                Ok(0) => return Err(failed(awaited, &"QEMU closed the connection")),
                Ok(_) => {
                    let line = std::mem::take(&mut self.partial);
                    return serde_json::from_str(&line).map_err(|error| failed(awaited, &error));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Err(failed(awaited, &"no answer in time"));
                    }
                }
                Err(error) => return Err(failed(awaited, &error)),
            }
        }
    }
}

fn failed(command: &str, reason: &dyn ToString) -> Error {
    Error::Qmp {
        command: command.to_owned(),
        reason: reason.to_string(),
    }
}
