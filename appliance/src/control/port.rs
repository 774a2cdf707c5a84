//! The virtio-serial port by which the host controls the appliance of a storage VM.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::PORT_NAME;
use super::client;
use super::desk::Desk;

/// Where the kernel lists virtio-serial ports.
const SYS_PORTS: &str = "/sys/class/virtio-ports";
/// How often it is looked at whether somebody has come.
const LOOK: Duration = Duration::from_millis(500);

/// The device of the port of that name.
fn device(ports: &Path, name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir(ports).ok()?.flatten();
    let named = |port: &Path| fs::read_to_string(port.join("name")).ok();
    let mut ports = ports.map(|port| port.path());
    let port = ports.find(|port| named(port).is_some_and(|found| found.trim() == name))?;
    Some(Path::new("/dev").join(port.file_name()?))
}

/// Serves whoever connects to the host's end of the port [`PORT_NAME`], if this VM has it or is
/// given it later, for as long as the program runs.
///
/// Who may connect there is for the host to say: it can do anything to this VM.
///
/// # Errors
/// What starting a thread reports.
pub fn serve_port(desk: Arc<Desk>) -> io::Result<()> {
    thread::Builder::new()
        .name("control-port".into())
        .spawn(move || {
            let mut problem = None;
            loop {
                if let Some(device) = device(Path::new(SYS_PORTS), PORT_NAME) {
                    let open = OpenOptions::new().read(true).write(true).open(&device);
                    let served = open.and_then(|port| serve_host(&desk, port));
                    let text = served.err().map(|error| error.to_string());
                    if text != problem
                        && let Some(error) = &text
                    {
                        tracing::warn!(port = %device.display(), "control: {error}");
                    }
                    problem = text;
                }
                thread::sleep(LOOK);
            }
        })?;
    Ok(())
}

/// Serves one client of the host after the other: the port reads as ended while there is none. It
/// stays open, since what the next one has sent already would be lost with closing it.
fn serve_host(desk: &Desk, mut port: File) -> io::Result<Infallible> {
    loop {
        match client::serve(desk, &mut port, || false) {
            // It left before it had its answer.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => thread::sleep(LOOK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let ports = std::env::temp_dir().join(format!("ports-{}", uuid::Uuid::new_v4()));
        for (port, name) in [
            ("vport1p1", "com.example\n"),
            ("vport1p2", "org.vhost-pci.control\n"),
        ] {
            fs::create_dir_all(ports.join(port)).unwrap();
            fs::write(ports.join(port).join("name"), name).unwrap();
        }
        assert_eq!(
            device(&ports, PORT_NAME),
            Some(PathBuf::from("/dev/vport1p2"))
        );
        assert_eq!(device(&ports, "org.other"), None);
        fs::remove_dir_all(ports).unwrap();
    }
}
