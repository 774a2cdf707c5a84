//! Shell commands in a guest, through its virtio-serial port `vhost-pci.agent`.
//!
//! `tests/guest/agent` is the guest's half; the protocol is described there.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::base64;
use super::error::{Error, FileContext, Result};

/// The name of the port.
pub const PORT: &str = "vhost-pci.agent";
/// What the guest's half says on the console when it is ready.
pub const GREETING: &str = "agent: serving";

/// How a command in a guest ended, and what it printed on either output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it printed.
    pub text: String,
}

/// The host's end of the port.
#[derive(Debug)]
pub struct Agent {
    machine: String,
    stream: UnixStream,
    replies: Arc<Replies>,
    last_id: u64,
}

#[derive(Debug, Default)]
struct Replies {
    arrived: Mutex<HashMap<u64, Output>>,
    news: Condvar,
}

impl Agent {
    /// Connects to the port's socket, for the guest `machine`.
    pub fn connect(machine: &str, socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).file("connect to", socket)?;
        let lines = BufReader::new(stream.try_clone().file("open", socket)?);
        let replies = Arc::new(Replies::default());
        let reader = Arc::clone(&replies);
        // Ends with the connection, that is, with QEMU.
        thread::spawn(move || {
            for line in lines.split(b'\n').map_while(std::io::Result::ok) {
                // A guest that was reset may leave half a line; its command is lost anyway.
                if let Some((id, output)) = parse(&String::from_utf8_lossy(&line)) {
                    reader.lock().insert(id, output);
                    reader.news.notify_all();
                }
            }
        });
        Ok(Self {
            machine: machine.to_owned(),
            stream,
            replies,
            last_id: 0,
        })
    }

    /// Starts `command` in the guest; if the guest is not up yet, as soon as it is.
    pub fn start(&mut self, command: &str) -> Result<Job> {
        self.last_id += 1;
        // The empty line ends whatever a reset has cut off.
        let request = format!(
            "\n{} {}\n",
            self.last_id,
            base64::encode(command.as_bytes())
        );
        self.stream
            .write_all(request.as_bytes())
            .file("write to", &self.machine)?;
        Ok(Job {
            machine: self.machine.clone(),
            command: command.to_owned(),
            id: self.last_id,
            replies: Arc::clone(&self.replies),
        })
    }
}

/// A command under way in a guest.
#[derive(Debug)]
#[must_use = "a command that nobody waits for fails unseen"]
pub struct Job {
    machine: String,
    command: String,
    id: u64,
    replies: Arc<Replies>,
}

impl Job {
    /// Waits for its end, however it ends.
    pub fn output(self, timeout: Duration) -> Result<Output> {
        let waiting = |arrived: &mut HashMap<u64, Output>| !arrived.contains_key(&self.id);
        let (mut arrived, _) = self
            .replies
            .news
            .wait_timeout_while(self.replies.lock(), timeout, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        arrived.remove(&self.id).ok_or_else(|| Error::TooLate {
            awaited: format!("the end of `{}` in {}", self.command, self.machine),
            after: timeout,
            context: String::new(),
        })
    }

    /// Waits for it to succeed, and gives what it printed.
    pub fn succeed(self, timeout: Duration) -> Result<String> {
        let (machine, command) = (self.machine.clone(), self.command.clone());
        match self.output(timeout)? {
            Output { status: 0, text } => Ok(text),
            Output { status, text } => Err(Error::InGuest {
                machine,
                command,
                status,
                output: text,
            }),
        }
    }

    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.replies.lock().contains_key(&self.id)
    }
}

impl Replies {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Output>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reply: "ID STATUS OUTPUT".
fn parse(line: &str) -> Option<(u64, Output)> {
    let mut words = line.trim_end().splitn(3, ' ');
    let (id, status) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let text = base64::decode(words.next().unwrap_or_default())?;
    Some((
        id,
        Output {
            status,
            text: String::from_utf8_lossy(&text).into_owned(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_without_output_is_understood() {
        let output = Output {
            status: 3,
            text: String::new(),
        };
        assert_eq!(parse("7 3 "), Some((7, output)));
    }

    #[test]
    fn half_a_reply_is_not() {
        assert_eq!(parse("7"), None);
        assert_eq!(parse("7 0 aGV"), None);
    }
}
