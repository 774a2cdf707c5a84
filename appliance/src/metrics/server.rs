//! Where metrics are served, by HTTP.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::place::{BindError, Place};
use super::request;
use crate::clients::{Clients, Service};
use crate::config::Listen;
use crate::control::Desk;

/// Metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The place cannot be listened on.
    #[error("no metrics: {0}")]
    Bind(#[from] BindError),
    /// A thread cannot be started.
    #[error("no metrics: a thread cannot be started: {0}")]
    Thread(io::Error),
}

/// Metrics that are served; dropping it takes no more clients. Those that are there end by
/// themselves, in a bounded time.
#[derive(Debug)]
pub struct Server {
    _clients: Clients,
    listen: Option<Listen>,
}

impl Server {
    /// Serves the metrics of the appliance that `desk` is about at `listen`, to whoever comes
    /// there.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn start(listen: &Listen, desk: Arc<Desk>) -> Result<Self, MetricsError> {
        let place = Place::bind(listen)?;
        let listen = place.listen();
        let clients = Clients::of(place, Metrics { desk });
        Ok(Self {
            _clients: clients.map_err(MetricsError::Thread)?,
            listen,
        })
    }

    /// Where that is, with the port that was free where none was said.
    pub fn listen(&self) -> Option<&Listen> {
        self.listen.as_ref()
    }
}

struct Metrics {
    desk: Arc<Desk>,
}

impl Service for Metrics {
    type Listener = Place;
    type Client = File;
    const NAME: &'static str = "metrics";
    const MOST: usize = 32;

    fn accept(place: &Place) -> io::Result<File> {
        place.accept()
    }

    fn serve(&self, client: File, _: &AtomicBool) -> io::Result<()> {
        request::serve(client, &self.desk)
    }
}
