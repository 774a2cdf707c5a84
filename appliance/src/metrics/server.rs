//! The thread that takes clients of the metrics, a bounded number at a time.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::place::{BindError, Place};
use super::request;
use crate::config::Listen;
use crate::control::Desk;

/// Most clients at a time; more are sent away.
const MAX_CLIENTS: usize = 32;
/// How often it is looked at whether to end.
const LOOK: Duration = Duration::from_millis(200);

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
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
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
        let stop = Arc::new(AtomicBool::new(false));
        let accepts = Accepts {
            place,
            desk,
            stop: Arc::clone(&stop),
            clients: Arc::default(),
        };
        let thread = thread::Builder::new()
            .name("metrics".into())
            .spawn(move || accepts.run())
            .map_err(MetricsError::Thread)?;
        Ok(Self {
            stop,
            thread: Some(thread),
            listen,
        })
    }

    /// Where that is, with the port that was free where none was said.
    pub fn listen(&self) -> Option<&Listen> {
        self.listen.as_ref()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Accepts {
    place: Place,
    desk: Arc<Desk>,
    stop: Arc<AtomicBool>,
    clients: Arc<AtomicUsize>,
}

impl Accepts {
    fn run(self) {
        let look = Timespec::try_from(LOOK).unwrap_or_default();
        while !self.stop.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(&self.place, PollFlags::IN)];
            match poll(&mut ready, Some(&look)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!("waiting for clients of the metrics: {error}"),
            }
            match self.place.accept() {
                Ok(client) => self.take(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // As when there are too many open files: not over and over.
                    tracing::warn!("a client of the metrics cannot be taken: {error}");
                    thread::sleep(LOOK);
                }
            }
        }
    }

    fn take(&self, client: File) {
        if self.clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            tracing::debug!("there are {MAX_CLIENTS} clients of the metrics; one was sent away");
            return;
        }
        let seat = Seat(Arc::clone(&self.clients));
        let desk = Arc::clone(&self.desk);
        let started = thread::Builder::new()
            .name("metrics-client".into())
            .spawn(move || {
                let _seat = seat;
                if let Err(error) = request::serve(client, &desk) {
                    tracing::debug!("a client of the metrics is gone: {error}");
                }
            });
        if let Err(error) = started {
            tracing::warn!("a client of the metrics cannot be served: {error}");
        }
    }
}

/// A client's seat, given back on drop.
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
