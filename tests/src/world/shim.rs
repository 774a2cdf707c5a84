//! The host shim of one HBA, on a thread of its own.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::{self, JoinHandle};

use host_shim::device::Profile;
use host_shim::plug::QmpPlug;
use host_shim::ports::Ports;
use host_shim::supervisor::{Config, Plug, RelayKind, Stop, Supervisor};
use uuid::Uuid;

use super::ShimOptions;

/// A running shim: the supervisor on one thread, the relay on another.
pub(super) struct Shim {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Shim {
    /// Starts the shim of HBA number `hba`, with its socket for the tenant at `vhost_user`, and the
    /// other one beside it.
    pub(super) fn start(
        hba: usize,
        uuid: Uuid,
        vhost_user: &Path,
        options: ShimOptions,
        qmp: &Path,
        ports: &[String],
    ) -> Self {
        let name = format!("hba{hba}");
        let vfio_user = vhost_user.with_extension("vfio-user");
        let listen = |path: &Path| {
            // What the shim before left behind.
            let _ = std::fs::remove_file(path);
            UnixListener::bind(path).expect("a socket")
        };
        let mut profile = Profile::new(&name, uuid);
        profile.version = options.version;
        let ports = Ports::new(ports.to_vec(), qmp, None).expect("root ports");
        let plug = QmpPlug::new(&name, qmp, ports, &vfio_user);
        let config = Config {
            drain_timeout: options.drain_timeout,
            grace: options.grace,
            doorbell_poll: options.doorbell_poll,
            ..Config::new(
                profile,
                listen(vhost_user),
                listen(&vfio_user),
                RelayKind::Thread,
                Plug::Qmp(Box::new(plug)),
            )
        };
        let supervisor = Supervisor::new(config).expect("a shim");
        let stop = supervisor.stop_handle();
        let thread = thread::Builder::new()
            .name(format!("shim-{name}"))
            .spawn(move || supervisor.run().expect("the shim runs until it is stopped"))
            .expect("a thread");
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
