//! Plugs the function into the storage VM, and unplugs it, one QMP command after the other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kept::Kept;
use crate::lock_file::LockFile;
use crate::ports::{Port, Ports};
use crate::qmp::{Exchange, PciDevices, QmpError};

/// Pause between two looks whether the device is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(150);
/// When `device_del` is said again: a guest that was booting did not hear it.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// First and longest pause after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// What became of the device.
#[derive(Debug)]
pub enum Outcome {
    /// It is in the storage VM, behind this root port.
    Plugged(String),
    /// It is not in the storage VM, and its root port is free.
    Unplugged,
    /// Something went wrong; it will be tried again.
    Failed(String),
}

/// The device as the storage VM's QEMU knows it.
#[derive(Debug)]
pub struct QmpPlug {
    qmp: PathBuf,
    ports: Ports,
    /// The socket that QEMU is to connect to.
    vfio_user: PathBuf,
    /// The device's id in QEMU.
    id: String,
    /// Says so to other shims, from the first plug on.
    claim: Option<LockFile>,
    wanted: bool,
    /// QEMU has the device's connection open.
    connected: bool,
    state: State,
    pause: Duration,
    kept: Kept,
}

/// Where a next supervisor goes on; locks by the names of their descriptors.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlugRecord {
    wanted: bool,
    connected: bool,
    claim: Option<u64>,
    stage: Stage,
    port: Option<(String, u64)>,
}

/// What is known of the device, whatever command is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    Out,
    Adding,
    In,
    Leaving,
}

#[derive(Debug)]
enum State {
    /// Not in the storage VM.
    Out,
    /// query-pci before device_add: is an older device of ours there, which ports are free?
    Looking(Exchange),
    /// device_add.
    Adding(Exchange, Port),
    /// query-pci after a handover in the middle of device_add.
    Resuming(Exchange, Port),
    /// In the storage VM.
    In(Port),
    /// device_del.
    Deleting(Exchange, Option<Port>),
    /// query-pci until the device is gone; when `device_del` was last said.
    Confirming(Exchange, Option<Port>, Instant),
    /// Waiting before the next look.
    Pausing(Instant, Option<Port>, Instant),
    /// Waiting after a failure; whether the device may be in the storage VM.
    Failed {
        until: Instant,
        port: Option<Port>,
        maybe_in: bool,
    },
}

impl QmpPlug {
    /// Plugs the device of the HBA `name`, which QEMU is to reach at `vfio_user`, through the
    /// QMP socket `qmp` into one of `ports`.
    pub fn new(name: &str, qmp: &Path, ports: Ports, vfio_user: &Path) -> Self {
        Self {
            qmp: qmp.to_owned(),
            ports,
            vfio_user: std::path::absolute(vfio_user).unwrap_or_else(|_| vfio_user.to_owned()),
            id: format!("vhost-pci-{name}"),
            claim: None,
            wanted: false,
            connected: false,
            state: State::Out,
            pause: BACKOFF.0,
            kept: Kept::alone(),
        }
    }

    /// Has its locks kept in `kept`.
    pub(crate) fn keep(&mut self, kept: Kept) {
        self.kept = kept;
    }

    /// What a next supervisor goes on from.
    pub(crate) fn record(&mut self) -> PlugRecord {
        let (stage, port) = match &mut self.state {
            State::Out
            | State::Looking(_)
            | State::Failed {
                maybe_in: false, ..
            } => (Stage::Out, None),
            State::Adding(_, port) | State::Resuming(_, port) => (Stage::Adding, Some(port)),
            State::In(port) => (Stage::In, Some(port)),
            State::Deleting(_, port)
            | State::Confirming(_, port, _)
            | State::Pausing(_, port, _)
            | State::Failed { port, .. } => (Stage::Leaving, port.as_mut()),
        };
        PlugRecord {
            wanted: self.wanted,
            connected: self.connected,
            claim: self.claim.as_ref().map(|claim| claim.held().name()),
            stage,
            port: port.map(|port| (port.name().to_owned(), port.lock().held().name())),
        }
    }

    /// Goes on where another supervisor was: a command that it has not seen the end of is asked
    /// about, or said again.
    pub(crate) fn restore(&mut self, now: Instant, record: PlugRecord) {
        let kept = self.kept.clone();
        self.wanted = record.wanted;
        self.connected = record.connected;
        let claim = record.claim.and_then(|name| kept.get(name));
        self.claim = claim.map(|held| self.ports.claimed(&self.id, held));
        let port = record
            .port
            .and_then(|(port, name)| Some(self.ports.taken(port, kept.get(name)?)));
        self.state = match (record.stage, port) {
            (Stage::In, Some(port)) => State::In(port),
            (Stage::Adding, Some(port)) => State::Resuming(self.query(now), port),
            (Stage::Out, _) => State::Out,
            (_, port) => self.delete(now, port),
        };
    }

    /// Says whether the device is to be in the storage VM.
    pub fn want(&mut self, wanted: bool) {
        self.wanted = wanted;
    }

    /// The root port behind which the device is.
    pub fn port(&self) -> Option<&str> {
        match &self.state {
            State::In(port) => Some(port.name()),
            _ => None,
        }
    }

    /// Whether the device is not in the storage VM, nor on its way in or out.
    pub fn is_out(&self) -> bool {
        matches!(
            self.state,
            State::Out
                | State::Looking(_)
                | State::Failed {
                    maybe_in: false,
                    ..
                }
        )
    }

    /// QEMU opened the device's connection.
    pub fn connection_opened(&mut self) {
        self.connected = true;
    }

    /// QEMU closed the device's connection: it was unplugged, or QEMU is gone.
    pub fn connection_closed(&mut self, now: Instant) {
        self.connected = false;
        let state = std::mem::replace(&mut self.state, State::Out);
        self.state = match state {
            State::In(port) => self.delete(now, Some(port)),
            other => other,
        };
    }

    /// The QMP connection in use, to be watched for reading and writing.
    pub fn stream(&mut self) -> Option<&mut UnixStream> {
        match &mut self.state {
            State::Looking(exchange)
            | State::Adding(exchange, _)
            | State::Resuming(exchange, _)
            | State::Deleting(exchange, _)
            | State::Confirming(exchange, _, _) => exchange.stream(),
            State::Out | State::In(_) | State::Pausing(..) | State::Failed { .. } => None,
        }
    }

    /// When [`Self::step`] is due although nothing happened.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Looking(exchange)
            | State::Adding(exchange, _)
            | State::Resuming(exchange, _)
            | State::Deleting(exchange, _)
            | State::Confirming(exchange, _, _) => Some(exchange.deadline()),
            State::Pausing(until, ..) | State::Failed { until, .. } => Some(*until),
            State::Out | State::In(_) => None,
        }
    }

    /// Goes on as far as it can without waiting. To be called until it returns `None`.
    pub fn step(&mut self, now: Instant) -> Option<Outcome> {
        loop {
            let state = std::mem::replace(&mut self.state, State::Out);
            match self.next(now, state) {
                Next::Rest(state) => {
                    self.state = state;
                    return None;
                }
                Next::Go(state) => self.state = state,
                Next::Tell(state, outcome) => {
                    self.state = state;
                    return Some(outcome);
                }
            }
        }
    }

    fn next(&mut self, now: Instant, state: State) -> Next {
        match state {
            State::Out if self.wanted => Next::Go(State::Looking(self.query(now))),
            State::In(port) if !self.wanted => Next::Go(self.delete(now, Some(port))),
            State::Out | State::In(_) => Next::Rest(state),
            State::Looking(_) if !self.wanted => Next::Go(State::Out),
            State::Looking(mut exchange) => match exchange.ready(now) {
                Ok(None) => Next::Rest(State::Looking(exchange)),
                Ok(Some(result)) => self.add(now, &PciDevices::parse(&result)),
                Err(error) => self.failed(now, &error, None, false),
            },
            State::Adding(mut exchange, port) => match exchange.ready(now) {
                Ok(None) => Next::Rest(State::Adding(exchange, port)),
                Ok(Some(_)) => {
                    self.pause = BACKOFF.0;
                    let name = port.name().to_owned();
                    Next::Tell(State::In(port), Outcome::Plugged(name))
                }
                // QEMU says what is wrong: the device is not there.
                Err(error @ QmpError::Refused { .. }) => self.failed(now, &error, None, false),
                Err(error) => self.failed(now, &error, Some(port), true),
            },
            State::Resuming(mut exchange, port) => match exchange.ready(now) {
                Ok(None) => Next::Rest(State::Resuming(exchange, port)),
                Ok(Some(result)) if PciDevices::parse(&result).has(&self.id) => {
                    self.pause = BACKOFF.0;
                    let name = port.name().to_owned();
                    Next::Tell(State::In(port), Outcome::Plugged(name))
                }
                // It was never said, or failed.
                Ok(Some(_)) => Next::Go(State::Out),
                Err(error) => self.failed(now, &error, Some(port), true),
            },
            State::Deleting(mut exchange, port) => match exchange.ready(now) {
                Ok(None) => Next::Rest(State::Deleting(exchange, port)),
                // Refused: there is no such device any more, or it is being unplugged already.
                Ok(Some(_)) | Err(QmpError::Refused { .. }) => {
                    Next::Go(State::Confirming(self.query(now), port, now))
                }
                Err(error) => self.undeleted(now, &error, port),
            },
            State::Confirming(mut exchange, port, asked) => match exchange.ready(now) {
                Ok(None) => Next::Rest(State::Confirming(exchange, port, asked)),
                Ok(Some(result)) if PciDevices::parse(&result).has(&self.id) => {
                    Next::Go(State::Pausing(now + LOOK_AGAIN, port, asked))
                }
                Ok(Some(_)) => self.gone(port),
                Err(error) => self.undeleted(now, &error, port),
            },
            State::Pausing(until, port, asked) if now < until => {
                Next::Rest(State::Pausing(until, port, asked))
            }
            State::Pausing(_, port, asked) if now >= asked + ASK_AGAIN => Next::Tell(
                self.delete(now, port),
                Outcome::Failed(format!(
                    "the storage VM has not let device {} go yet: is its appliance, or its \
                     kernel, hung? device_del is sent again",
                    self.id
                )),
            ),
            State::Pausing(_, port, asked) => {
                Next::Go(State::Confirming(self.query(now), port, asked))
            }
            State::Failed {
                until,
                port,
                maybe_in,
            } if now < until && (maybe_in || self.wanted) => Next::Rest(State::Failed {
                until,
                port,
                maybe_in,
            }),
            State::Failed {
                port,
                maybe_in: true,
                ..
            } => Next::Go(self.delete(now, port)),
            State::Failed { .. } => Next::Go(State::Out),
        }
    }

    fn query(&self, now: Instant) -> Exchange {
        Exchange::new(now, &self.qmp, "query-pci", &Value::Null)
    }

    fn delete(&self, now: Instant, port: Option<Port>) -> State {
        let exchange = Exchange::new(now, &self.qmp, "device_del", &json!({ "id": self.id }));
        State::Deleting(exchange, port)
    }

    fn add(&mut self, now: Instant, devices: &PciDevices) -> Next {
        if self.claim.is_none() {
            match self.ports.claim(&self.id) {
                Ok(mut claim) => {
                    if let Err(error) = claim.keep(&self.kept) {
                        return self.failed(now, &error, None, false);
                    }
                    self.claim = Some(claim);
                }
                Err(error) => return self.failed(now, &error, None, false),
            }
        }
        if devices.has(&self.id) {
            // Left behind by a shim of this name that was killed.
            return Next::Go(self.delete(now, None));
        }
        match self.ports.take(devices) {
            Ok(mut port) => {
                if let Err(error) = port.lock().keep(&self.kept) {
                    return self.failed(now, &error, None, false);
                }
                let arguments = json!({
                    "driver": "vfio-user-pci",
                    "id": self.id,
                    "bus": port.name(),
                    "socket": { "type": "unix", "path": self.vfio_user },
                });
                let exchange = Exchange::new(now, &self.qmp, "device_add", &arguments);
                Next::Go(State::Adding(exchange, port))
            }
            Err(error) => self.failed(now, &error, None, false),
        }
    }

    fn gone(&mut self, port: Option<Port>) -> Next {
        drop(port);
        self.pause = BACKOFF.0;
        Next::Tell(State::Out, Outcome::Unplugged)
    }

    /// A storage VM whose QMP socket is dead has no devices, unless it still has ours open.
    fn undeleted(&mut self, now: Instant, error: &QmpError, port: Option<Port>) -> Next {
        if matches!(error, QmpError::Unreachable { .. }) && !self.connected {
            self.gone(port)
        } else {
            self.failed(now, error, port, true)
        }
    }

    fn failed(
        &mut self,
        now: Instant,
        error: &dyn std::error::Error,
        port: Option<Port>,
        maybe_in: bool,
    ) -> Next {
        let until = now + self.pause;
        self.pause = (self.pause * 2).min(BACKOFF.1);
        let state = State::Failed {
            until,
            port,
            maybe_in,
        };
        Next::Tell(state, Outcome::Failed(error.to_string()))
    }
}

/// What follows from a state.
enum Next {
    /// Nothing before the next event.
    Rest(State),
    /// The next state, at once.
    Go(State),
    /// The next state, and something to tell.
    Tell(State, Outcome),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, Mutex};
    use std::thread;
    use vmm_sys_util::tempdir::TempDir;

    /// A storage VM that knows three commands and two root ports.
    #[derive(Default)]
    struct Qemu {
        /// Device id and port.
        devices: Vec<(String, String)>,
        commands: Vec<String>,
        /// How many query-pci still show a deleted device.
        slow_unplug: usize,
        deleting: Vec<String>,
    }

    impl Qemu {
        fn answer(&mut self, command: &Value) -> Value {
            let name = command["execute"].as_str().unwrap();
            let arguments = &command["arguments"];
            let id = arguments["id"].as_str().unwrap_or_default().to_owned();
            if name != "qmp_capabilities" {
                self.commands.push(name.to_owned());
            }
            match name {
                "device_add" => {
                    let bus = arguments["bus"].as_str().unwrap().to_owned();
                    if bus == "rp9" {
                        return json!({ "error": { "desc": "Bus 'rp9' not found" } });
                    }
                    self.devices.push((id, bus));
                }
                "device_del" => self.deleting.push(id),
                "query-pci" => {
                    if self.slow_unplug > 0 {
                        self.slow_unplug -= 1;
                    } else {
                        let deleting = std::mem::take(&mut self.deleting);
                        self.devices.retain(|(id, _)| !deleting.contains(id));
                    }
                    let port = |port: &str| {
                        let behind: Vec<_> = self
                            .devices
                            .iter()
                            .filter(|(_, at)| at == port)
                            .map(|(id, _)| json!({ "qdev_id": id }))
                            .collect();
                        json!({ "qdev_id": port, "pci_bridge": { "devices": behind } })
                    };
                    return json!({ "return": [{ "devices": [port("rp0"), port("rp1")] }] });
                }
                _ => {}
            }
            json!({ "return": {} })
        }
    }

    fn storage_vm(dir: &TempDir) -> Arc<Mutex<Qemu>> {
        let listener = UnixListener::bind(dir.as_path().join("qmp.sock")).unwrap();
        let qemu = Arc::new(Mutex::new(Qemu::default()));
        let served = Arc::clone(&qemu);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.write_all(b"{\"QMP\": {}}\n");
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let Ok(line) = line else { break };
                    let answer = served
                        .lock()
                        .unwrap()
                        .answer(&serde_json::from_str(&line).unwrap());
                    let _ = stream.write_all(format!("{answer}\n").as_bytes());
                }
            }
        });
        qemu
    }

    fn plug(dir: &TempDir, name: &str, ports: &[&str]) -> QmpPlug {
        let qmp = dir.as_path().join("qmp.sock");
        let names = ports.iter().map(ToString::to_string).collect();
        let ports = Ports::new(names, &qmp, None).unwrap();
        QmpPlug::new(name, &qmp, ports, &dir.as_path().join("vfio.sock"))
    }

    fn outcome(plug: &mut QmpPlug) -> Outcome {
        for _ in 0..10_000 {
            if let Some(outcome) = plug.step(Instant::now()) {
                return outcome;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("nothing happens: {plug:?}");
    }

    fn lock(dir: &TempDir, port: &str) -> PathBuf {
        dir.as_path().join(format!("qmp.sock.{port}.lock"))
    }

    #[test]
    fn the_device_goes_in_and_out_and_frees_its_port_when_it_is_really_gone() {
        let dir = TempDir::new().unwrap();
        let qemu = storage_vm(&dir);
        let mut plug = plug(&dir, "a", &["rp0", "rp1"]);
        assert!(plug.step(Instant::now()).is_none());

        plug.want(true);
        assert!(matches!(outcome(&mut plug), Outcome::Plugged(port) if port == "rp0"));
        assert!(lock(&dir, "rp0").exists());
        assert!(!plug.is_out());

        qemu.lock().unwrap().slow_unplug = 2;
        plug.want(false);
        assert!(matches!(outcome(&mut plug), Outcome::Unplugged));
        assert!(plug.is_out());
        assert!(!lock(&dir, "rp0").exists());
        assert_eq!(
            qemu.lock().unwrap().commands,
            [
                "query-pci",
                "device_add",
                "device_del",
                "query-pci",
                "query-pci",
                "query-pci"
            ]
        );
    }

    #[test]
    fn two_devices_get_two_ports() {
        let dir = TempDir::new().unwrap();
        let _qemu = storage_vm(&dir);
        let mut one = plug(&dir, "a", &["rp0", "rp1"]);
        let mut two = plug(&dir, "b", &["rp0", "rp1"]);
        one.want(true);
        two.want(true);
        assert!(matches!(outcome(&mut one), Outcome::Plugged(port) if port == "rp0"));
        assert!(matches!(outcome(&mut two), Outcome::Plugged(port) if port == "rp1"));
    }

    #[test]
    fn a_device_left_behind_by_a_killed_shim_is_replaced() {
        let dir = TempDir::new().unwrap();
        let qemu = storage_vm(&dir);
        qemu.lock()
            .unwrap()
            .devices
            .push(("vhost-pci-a".into(), "rp0".into()));
        let mut plug = plug(&dir, "a", &["rp0"]);
        plug.want(true);
        assert!(matches!(outcome(&mut plug), Outcome::Unplugged));
        assert!(matches!(outcome(&mut plug), Outcome::Plugged(_)));
        assert_eq!(qemu.lock().unwrap().devices.len(), 1);
    }

    #[test]
    fn a_living_shim_of_the_same_name_keeps_its_device() {
        let dir = TempDir::new().unwrap();
        let qemu = storage_vm(&dir);
        let mut one = plug(&dir, "a", &["rp0", "rp1"]);
        one.want(true);
        assert!(matches!(outcome(&mut one), Outcome::Plugged(_)));
        let mut two = plug(&dir, "a", &["rp0", "rp1"]);
        two.want(true);
        assert!(matches!(outcome(&mut two), Outcome::Failed(reason) if reason.contains("--name")));
        assert_eq!(qemu.lock().unwrap().devices.len(), 1);
    }

    #[test]
    fn a_wrong_port_name_is_told_and_tried_again_later() {
        let dir = TempDir::new().unwrap();
        let _qemu = storage_vm(&dir);
        let mut plug = plug(&dir, "a", &["rp9"]);
        plug.want(true);
        let Outcome::Failed(reason) = outcome(&mut plug) else {
            panic!("plugged");
        };
        assert!(reason.contains("rp9"), "{reason}");
        assert!(plug.is_out());
        assert!(plug.deadline().is_some());
    }

    #[test]
    fn no_storage_vm_is_told_and_no_device_left_to_unplug() {
        let dir = TempDir::new().unwrap();
        let mut plug = plug(&dir, "a", &["rp0"]);
        plug.want(true);
        assert!(
            matches!(outcome(&mut plug), Outcome::Failed(reason) if reason.contains("qmp.sock"))
        );
        plug.want(false);
        assert!(plug.step(Instant::now()).is_none());
        assert!(plug.is_out());
    }

    #[test]
    fn a_device_that_qemu_has_open_is_not_out_because_qmp_is_away() {
        let dir = TempDir::new().unwrap();
        let _qemu = storage_vm(&dir);
        let mut plug = plug(&dir, "a", &["rp0"]);
        plug.want(true);
        assert!(matches!(outcome(&mut plug), Outcome::Plugged(_)));
        plug.connection_opened();
        std::fs::remove_file(dir.as_path().join("qmp.sock")).unwrap();

        plug.want(false);
        assert!(matches!(outcome(&mut plug), Outcome::Failed(_)));
        assert!(!plug.is_out());
        assert!(lock(&dir, "rp0").exists());

        plug.connection_closed(Instant::now());
        assert!(matches!(outcome(&mut plug), Outcome::Unplugged));
    }

    #[test]
    fn a_device_whose_qemu_went_away_is_out() {
        let dir = TempDir::new().unwrap();
        let qemu = storage_vm(&dir);
        let mut plug = plug(&dir, "a", &["rp0"]);
        plug.want(true);
        assert!(matches!(outcome(&mut plug), Outcome::Plugged(_)));
        qemu.lock().unwrap().devices.clear();
        plug.connection_closed(Instant::now());
        assert!(matches!(outcome(&mut plug), Outcome::Unplugged));
    }
}
