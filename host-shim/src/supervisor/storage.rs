//! The connection to the storage VM's QEMU.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;

use super::{About, CONNECTION, Supervisor};
use crate::kept::{ToKeeper, name};
use crate::vfio_user::{Connection, Progress};

impl Supervisor {
    /// Takes connections of the storage VM's QEMU: one at a time, and only when there is memory
    /// to show, because QEMU maps it once.
    pub(super) fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => OwnedFd::from(std::os::unix::net::UnixStream::from(stream)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(hba = %self.name, %error, "vfio-user socket");
                    return;
                }
            };
            // The one before may have ended in the same moment.
            self.serve();
            if self.connection.is_some() || self.window.file().is_none() {
                let reason = if self.connection.is_some() {
                    "the storage VM has the function already"
                } else {
                    "no tenant has started its HBA yet; host-shim plugs the function itself then"
                };
                self.complain(&format!("vfio-user connection turned away: {reason}"));
                Connection::turn_away(stream.into());
                continue;
            }
            if let Err(error) = self.connect(stream) {
                tracing::warn!(hba = %self.name, %error, "vfio-user connection");
            }
        }
    }

    pub(super) fn connect(&mut self, stream: OwnedFd) -> io::Result<()> {
        // What was written down last is about the connection before this one.
        self.changed = true;
        self.commit();
        let connection = stream.try_clone()?.into();
        self.kept.keep_as(name::CONNECTION, stream);
        let connection =
            Connection::begin(connection, Arc::clone(&self.journal), self.kept.clone())?;
        self.watch_connection(connection)?;
        self.note(About::StorageVm, "the storage VM opened the function");
        self.window.connection_opened();
        self.attach_by = Some(Instant::now() + self.attach_timeout);
        self.changed = true;
        self.commit();
        self.serve();
        Ok(())
    }

    /// Serves `connection` from now on.
    pub(super) fn watch_connection(&mut self, connection: Connection) -> io::Result<()> {
        self.poll.registry().register(
            &mut SourceFd(&connection.as_raw_fd()),
            CONNECTION,
            Interest::READABLE | Interest::WRITABLE,
        )?;
        self.connection = Some(connection);
        self.kept.tell(&ToKeeper::Watch(true));
        Ok(())
    }

    pub(super) fn serve(&mut self) {
        self.more = false;
        let Some(connection) = &mut self.connection else {
            return;
        };
        let served = connection.ready(&mut self.device);
        self.changed |= connection.take_let_go();
        match served {
            Ok(progress) => self.more = progress == Progress::More,
            Err(closed) => {
                self.note(About::StorageVm, &closed.to_string());
                self.disconnect();
            }
        }
    }

    /// Ends the connection to the storage VM's QEMU.
    pub(super) fn disconnect(&mut self) {
        self.more = false;
        self.attach_by = None;
        self.changed = true;
        self.kept.tell(&ToKeeper::Watch(false));
        if let Some(connection) = self.connection.take() {
            let fd = connection.as_raw_fd();
            if let Err(error) = self.poll.registry().deregister(&mut SourceFd(&fd)) {
                tracing::debug!(%error, "vfio-user connection");
            }
            // What QEMU has asked is still answered, or it waits for 5 s.
            connection.close(&mut self.device);
        }
        self.window.connection_closed(Instant::now());
    }
}
