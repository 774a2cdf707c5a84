//! One QMP command to the storage VM's QEMU, without waiting anywhere.
//!
//! QMP serves one client at a time and is power over the whole storage VM, so a connection
//! lives for one command, under a lock that all shims of that storage VM take.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use serde_json::{Value, json};

use crate::listener::lock_path;
use crate::lock_file::LockFile;

/// How long the lock, the socket and the greeting are waited for.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a command may take: `device_add` talks with this very shim meanwhile.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// Pause between attempts to get the lock or the socket.
const RETRY: Duration = Duration::from_millis(50);
/// Most bytes of one line; `query-pci` of a machine with hundreds of devices is far below.
const MAX_LINE: usize = 4 << 20;

/// Why a command could not be done.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is no such socket.
    #[error(
        "QMP socket {path} cannot be reached ({error}); is the storage VM up, started with -qmp \
         unix:{path},server=on,wait=off, and may this user write the socket?"
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The lock beside the socket cannot be taken.
    #[error(
        "lock file of QMP socket {path} cannot be used ({error}); may this user write its \
         directory?"
    )]
    Lock {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Other shims keep it busy.
    #[error("QMP socket {0} is locked by another host-shim for too long; is one of them stopped?")]
    Locked(PathBuf),
    /// No greeting came.
    #[error(
        "QMP socket {0} does not answer: another client holds it; give host-shim a QMP socket of \
         its own (a second -qmp option)"
    )]
    Held(PathBuf),
    /// No reply came.
    #[error("QMP socket {path} did not answer {command} in time; is the storage VM's QEMU hung?")]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
    },
    /// The connection broke, or what came was not QMP.
    #[error("QMP socket {path}: {reason}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// QEMU refused the command.
    #[error("{command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
}

/// Where an exchange is.
#[derive(Debug)]
enum Stage {
    /// Waiting for the lock, or for room in the socket's queue.
    Connecting,
    /// Connected, no greeting yet.
    Greeting,
    /// qmp_capabilities sent.
    Capabilities,
    /// The command sent.
    Command,
}

/// One command under way. Call [`Exchange::ready`] after every event on [`Exchange::stream`],
/// watched for reading and writing, and at every [`Exchange::deadline`].
#[derive(Debug)]
pub struct Exchange {
    path: PathBuf,
    command: Value,
    stage: Stage,
    /// Closed before the lock is let go: whoever takes it next finds QEMU free.
    stream: Option<UnixStream>,
    lock: Option<LockFile>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// When to give up.
    until: Instant,
    retry: Instant,
}

impl Exchange {
    /// Prepares `execute` with `arguments` on the QMP socket at `path`; the first
    /// [`Self::ready`] starts it.
    pub fn new(now: Instant, path: &Path, execute: &str, arguments: &Value) -> Self {
        let command = if arguments.is_null() {
            json!({ "execute": execute })
        } else {
            json!({ "execute": execute, "arguments": arguments })
        };
        Self {
            path: path.to_owned(),
            command,
            stage: Stage::Connecting,
            lock: None,
            stream: None,
            input: Vec::new(),
            output: Vec::new(),
            until: now + CONNECT_PATIENCE,
            retry: now,
        }
    }

    /// The connection, once there is one.
    pub fn stream(&mut self) -> Option<&mut UnixStream> {
        self.stream.as_mut()
    }

    /// When [`Self::ready`] is due although nothing happened.
    pub fn deadline(&self) -> Instant {
        match self.stage {
            Stage::Connecting => self.retry.min(self.until),
            _ => self.until,
        }
    }

    /// Goes on as far as it can; the command's result once it is there.
    ///
    /// # Errors
    /// [`QmpError`]; the exchange is over then.
    pub fn ready(&mut self, now: Instant) -> Result<Option<Value>, QmpError> {
        if self.stream.is_none() && !self.connect(now)? {
            return Ok(None);
        }
        self.write()?;
        if let Some(result) = self.read(now)? {
            return Ok(Some(result));
        }
        if now >= self.until {
            return Err(match self.stage {
                Stage::Greeting | Stage::Connecting => QmpError::Held(self.path.clone()),
                Stage::Capabilities | Stage::Command => QmpError::Silent {
                    path: self.path.clone(),
                    command: self.name(),
                },
            });
        }
        Ok(None)
    }

    fn name(&self) -> String {
        self.command["execute"]
            .as_str()
            .unwrap_or("command")
            .to_owned()
    }

    fn connect(&mut self, now: Instant) -> Result<bool, QmpError> {
        if now < self.retry {
            return Ok(false);
        }
        self.retry = now + RETRY;
        if self.lock.is_none() {
            self.lock = LockFile::try_take(&lock_path(&self.path)).map_err(|error| {
                // Without its directory there is no socket either.
                if error.kind() == io::ErrorKind::NotFound {
                    self.unreachable(error)
                } else {
                    QmpError::Lock {
                        path: self.path.clone(),
                        error,
                    }
                }
            })?;
        }
        if self.lock.is_none() {
            return if now >= self.until {
                Err(QmpError::Locked(self.path.clone()))
            } else {
                Ok(false)
            };
        }
        match UnixStream::connect(&self.path) {
            Ok(stream) => {
                self.stream = Some(stream);
                self.stage = Stage::Greeting;
                Ok(true)
            }
            // The socket's queue is full: QEMU accepts nobody while a client is connected.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if now >= self.until {
                    Err(QmpError::Held(self.path.clone()))
                } else {
                    Ok(false)
                }
            }
            Err(error) => Err(self.unreachable(error)),
        }
    }

    fn unreachable(&self, error: io::Error) -> QmpError {
        QmpError::Unreachable {
            path: self.path.clone(),
            error,
        }
    }

    fn broken(&self, reason: impl ToString) -> QmpError {
        QmpError::Broken {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }

    fn send(&mut self, command: &Value) -> Result<(), QmpError> {
        self.output.extend(command.to_string().into_bytes());
        self.output.push(b'\n');
        self.write()
    }

    fn write(&mut self) -> Result<(), QmpError> {
        while let (Some(stream), false) = (self.stream.as_mut(), self.output.is_empty()) {
            match stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
        Ok(())
    }

    fn read(&mut self, now: Instant) -> Result<Option<Value>, QmpError> {
        let mut chunk = [0; 4096];
        while let Some(stream) = self.stream.as_mut() {
            match stream.read(&mut chunk) {
                Ok(0) => return Err(self.broken("QEMU closed the connection")),
                Ok(read) => self.input.extend(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error)),
            }
            if self.input.len() > MAX_LINE {
                return Err(self.broken("a line too long"));
            }
            while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                let message = serde_json::from_slice(&line)
                    .map_err(|error| self.broken(format!("not QMP: {error}")))?;
                if let Some(result) = self.message(now, &message)? {
                    return Ok(Some(result));
                }
            }
        }
        Ok(None)
    }

    fn message(&mut self, now: Instant, message: &Value) -> Result<Option<Value>, QmpError> {
        if let Some(error) = message.get("error") {
            return Err(QmpError::Refused {
                command: self.name(),
                reason: error["desc"].as_str().unwrap_or("no reason").to_owned(),
            });
        }
        let returned = message.get("return");
        match (&self.stage, returned) {
            (Stage::Greeting, None) if message.get("QMP").is_some() => {
                self.stage = Stage::Capabilities;
                self.until = now + COMMAND_PATIENCE;
                self.send(&json!({ "execute": "qmp_capabilities" }))?;
            }
            (Stage::Capabilities, Some(_)) => {
                self.stage = Stage::Command;
                let command = self.command.clone();
                self.send(&command)?;
            }
            (Stage::Command, Some(result)) => return Ok(Some(result.clone())),
            // Events.
            _ => {}
        }
        Ok(None)
    }
}

/// What `query-pci` says about the devices that have an id.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PciDevices {
    /// Their ids.
    ids: Vec<String>,
    /// Ids of bridges with a device behind them.
    occupied: Vec<String>,
}

impl PciDevices {
    /// Reads the result of `query-pci`.
    pub fn parse(result: &Value) -> Self {
        let mut devices = Self::default();
        for bus in result.as_array().into_iter().flatten() {
            devices.read_bus(bus);
        }
        devices
    }

    /// Whether there is a device with this id.
    pub fn has(&self, id: &str) -> bool {
        self.ids.iter().any(|known| known == id)
    }

    /// Whether a device sits behind the bridge with this id.
    pub fn is_occupied(&self, bridge: &str) -> bool {
        self.occupied.iter().any(|known| known == bridge)
    }

    fn read_bus(&mut self, bus: &Value) {
        for device in bus["devices"].as_array().into_iter().flatten() {
            let id = device["qdev_id"].as_str().unwrap_or_default();
            if !id.is_empty() {
                self.ids.push(id.to_owned());
            }
            let bridge = &device["pci_bridge"];
            if bridge["devices"]
                .as_array()
                .is_some_and(|behind| !behind.is_empty())
            {
                self.occupied.push(id.to_owned());
            }
            self.read_bus(bridge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::{UnixListener, UnixStream as StdStream};
    use std::thread;
    use vmm_sys_util::tempdir::TempDir;

    /// Runs an exchange to its end, as the supervisor's loop would.
    fn finish(mut exchange: Exchange) -> Result<Value, QmpError> {
        loop {
            if let Some(result) = exchange.ready(Instant::now())? {
                return Ok(result);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn exchange(path: &Path, execute: &str) -> Exchange {
        Exchange::new(Instant::now(), path, execute, &json!({ "id": "vpci-a" }))
    }

    /// A QMP server for one client that answers each command with the next of `replies`.
    fn qemu(
        dir: &TempDir,
        replies: &'static [&'static str],
    ) -> (PathBuf, thread::JoinHandle<Vec<String>>) {
        let path = dir.as_path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n")
                .unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            replies
                .iter()
                .map(|reply| {
                    let command = lines.next().unwrap().unwrap();
                    stream.write_all(reply.as_bytes()).unwrap();
                    stream.write_all(b"\r\n").unwrap();
                    command
                })
                .collect()
        });
        (path, thread)
    }

    #[test]
    fn a_command_is_sent_after_the_handshake_and_events_are_skipped() {
        let dir = TempDir::new().unwrap();
        let (path, server) = qemu(
            &dir,
            &[
                "{\"return\": {}}",
                "{\"event\": \"DEVICE_DELETED\", \"data\": {}}\r\n{\"return\": {\"x\": 1}}",
            ],
        );

        let result = finish(exchange(&path, "device_del")).unwrap();

        assert_eq!(result, json!({ "x": 1 }));
        let commands = server.join().unwrap();
        assert_eq!(commands[0], "{\"execute\":\"qmp_capabilities\"}");
        assert_eq!(
            serde_json::from_str::<Value>(&commands[1]).unwrap(),
            json!({ "execute": "device_del", "arguments": { "id": "vpci-a" } })
        );
        assert!(!lock_path(&path).exists());
    }

    #[test]
    fn a_refusal_of_qemu_is_told_in_its_words() {
        let dir = TempDir::new().unwrap();
        let (path, _server) = qemu(
            &dir,
            &[
                "{\"return\": {}}",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Bus 'rp9' not found\"}}",
            ],
        );
        let error = finish(exchange(&path, "device_add")).unwrap_err();
        assert_eq!(error.to_string(), "device_add: Bus 'rp9' not found");
    }

    #[test]
    fn a_missing_socket_is_named() {
        let error = finish(exchange(Path::new("/nonexistent/qmp.sock"), "query-pci")).unwrap_err();
        assert!(matches!(error, QmpError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("/nonexistent/qmp.sock"));
    }

    #[test]
    fn a_socket_held_by_another_client_is_told_apart() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("qmp.sock");
        let _never_accepts = UnixListener::bind(&path).unwrap();
        let start = Instant::now();
        let mut exchange = Exchange::new(start, &path, "query-pci", &Value::Null);
        assert!(exchange.ready(start).unwrap().is_none());
        assert_eq!(exchange.deadline(), start + CONNECT_PATIENCE);
        let error = exchange.ready(start + CONNECT_PATIENCE).unwrap_err();
        assert!(matches!(error, QmpError::Held(_)), "{error}");
    }

    #[test]
    fn two_shims_do_not_talk_at_once() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let now = Instant::now();
        let mut first = exchange(&path, "query-pci");
        let mut second = exchange(&path, "query-pci");
        first.ready(now + RETRY).unwrap();
        second.ready(now + RETRY).unwrap();
        assert!(first.stream().is_some());
        assert!(second.stream().is_none());
        drop(first);
        second.ready(now + RETRY * 3).unwrap();
        assert!(second.stream().is_some());
        drop(listener);
    }

    #[test]
    fn a_connection_that_breaks_is_an_error() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let now = Instant::now();
        let mut exchange = Exchange::new(now, &path, "query-pci", &Value::Null);
        exchange.ready(now).unwrap();
        let (stream, _): (StdStream, _) = listener.accept().unwrap();
        drop(stream);
        assert!(matches!(exchange.ready(now), Err(QmpError::Broken { .. })));
    }

    #[test]
    fn query_pci_tells_devices_and_occupied_ports() {
        let devices = PciDevices::parse(&json!([{
            "bus": 0,
            "devices": [
                { "qdev_id": "", "slot": 0 },
                { "qdev_id": "rp0", "pci_bridge": { "bus": {}, "devices": [
                    { "qdev_id": "vpci-a" }
                ] } },
                { "qdev_id": "rp1", "pci_bridge": { "bus": {}, "devices": [] } },
                { "qdev_id": "rp2", "pci_bridge": { "bus": {} } }
            ]
        }]));
        assert!(devices.has("vpci-a"));
        assert!(devices.has("rp1"));
        assert!(!devices.has("vpci-b"));
        assert!(devices.is_occupied("rp0"));
        assert!(!devices.is_occupied("rp1"));
        assert!(!devices.is_occupied("rp2"));
    }
}
