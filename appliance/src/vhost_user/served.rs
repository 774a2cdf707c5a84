//! An HBA in service at a socket: its worker together with the thread that reads the socket.

use super::server::Server;
use crate::attachment::{Attachment, Ended};

/// An HBA that is served to the frontends of a socket. Dropping it ends that, as [`Self::detach`]
/// does; the socket stays.
#[derive(Debug)]
#[must_use = "dropping it ends the service"]
pub struct Served {
    // In this order: the thread may wait for the worker, and a worker ends without its thread.
    attachment: Option<Attachment>,
    _server: Server,
}

impl Served {
    pub(crate) fn new(attachment: Attachment, server: Server) -> Self {
        Self {
            attachment: Some(attachment),
            _server: server,
        }
    }

    /// Whether it has ended by itself.
    pub fn is_over(&self) -> bool {
        self.attachment.as_ref().is_none_or(Attachment::is_over)
    }

    /// Drops the frontend's connection, if there is one, and cancels what is under way for it.
    ///
    /// # Errors
    /// What ended the service before, if something did.
    pub fn detach(mut self) -> Result<Ended, String> {
        let attachment = self.attachment.take();
        attachment.map_or(Ok(Ended::Stopped), Attachment::detach)
    }
}
