//! The QMP socket of the storage VM's QEMU: the commands that a shim uses, one client at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use super::storage::StorageVm;

/// A QMP server on a thread of its own, until it is dropped.
pub(super) struct Qmp {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Qmp {
    /// Serves `storage` at `path`.
    pub(super) fn serve(path: PathBuf, storage: Arc<StorageVm>) -> Self {
        let listener = UnixListener::bind(&path).expect("a QMP socket");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("storage-qmp".into())
            .spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    // A client that leaves in the middle of a command is its own affair.
                    let _ = serve_client(&stream, &storage);
                }
            })
            .expect("a thread");
        Self {
            path,
            stop,
            thread: Some(thread),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _ = UnixStream::connect(&self.path);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn serve_client(mut stream: &UnixStream, storage: &StorageVm) -> std::io::Result<()> {
    let greeting = json!({ "QMP": { "version": {}, "capabilities": [] } });
    writeln!(stream, "{greeting}")?;
    for line in BufReader::new(stream).lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let mut answer = match execute(&command, storage) {
            Ok(result) => json!({ "return": result }),
            Err(reason) => json!({ "error": { "class": "GenericError", "desc": reason } }),
        };
        if let Some(id) = command.get("id") {
            answer["id"] = id.clone();
        }
        writeln!(stream, "{answer}")?;
    }
    Ok(())
}

fn execute(command: &Value, storage: &StorageVm) -> Result<Value, String> {
    let arguments = &command["arguments"];
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or("not a string");
    match command["execute"].as_str().unwrap_or_default() {
        "qmp_capabilities" => Ok(json!({})),
        "query-pci" => {
            let ports: Vec<_> = storage
                .ports()
                .into_iter()
                .map(|(port, device)| {
                    let devices: Vec<_> = device
                        .map(|id| json!({ "qdev_id": id }))
                        .into_iter()
                        .collect();
                    json!({ "qdev_id": port, "pci_bridge": { "devices": devices } })
                })
                .collect();
            Ok(json!([{ "bus": 0, "devices": ports }]))
        }
        "device_add" => {
            if arguments["driver"] != "vfio-user-pci" {
                return Err(format!("no driver {}", arguments["driver"]));
            }
            let socket = text(&arguments["socket"]["path"])?;
            storage
                .plug(
                    &text(&arguments["id"])?,
                    &text(&arguments["bus"])?,
                    Path::new(&socket),
                )
                .map(|()| json!({}))
                .map_err(|error| error.to_string())
        }
        "device_del" => storage.unplug(&text(&arguments["id"])?).map(|()| json!({})),
        other => Err(format!("The command {other} has not been found")),
    }
}
