//! Clients of a listening socket: a thread takes them, a bounded number at a time, and each has one.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How often it is looked at whether to end; less than a second.
pub(crate) const LOOK: Duration = Duration::from_millis(200);

/// What is done for clients.
pub(crate) trait Service: Send + Sync + 'static {
    /// Where clients come. It is the thread's alone, and gone when [`Clients`] is.
    type Listener: AsFd + Send;
    /// A connection.
    type Client: Send;
    /// What the thread that takes clients is called; those of clients have `-client` behind it.
    const NAME: &'static str;
    /// Most clients at a time; more are sent away.
    const MOST: usize;

    /// The next client.
    ///
    /// # Errors
    /// What accept(2) reports; `WouldBlock` if there is none.
    fn accept(listener: &Self::Listener) -> io::Result<Self::Client>;

    /// Whether a client is served at all; says so where it is not.
    fn admits(&self, client: &Self::Client) -> bool {
        let _ = client;
        true
    }

    /// Serves a client to its end, or until `stop`.
    ///
    /// # Errors
    /// What reading or writing reports.
    fn serve(&self, client: Self::Client, stop: &AtomicBool) -> io::Result<()>;
}

/// A service that is given; dropping it takes no more clients, and tells those that there are.
#[derive(Debug)]
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    /// Takes clients of `listener` from now on.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn of<S>(listener: S::Listener, service: S) -> io::Result<Self>
    where
        S: Service<Listener: 'static>,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let door = Door {
            listener,
            service: Arc::new(service),
            stop: Arc::clone(&stop),
            clients: Arc::default(),
        };
        let thread = thread::Builder::new()
            .name(S::NAME.into())
            .spawn(move || door.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where clients come in.
struct Door<S: Service> {
    listener: S::Listener,
    service: Arc<S>,
    stop: Arc<AtomicBool>,
    clients: Arc<AtomicUsize>,
}

impl<S: Service> Door<S> {
    fn run(self) {
        let name = S::NAME;
        let look = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.subsec_nanos().into(),
        };
        while !self.stop.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(&self.listener, PollFlags::IN)];
            match poll(&mut ready, Some(&look)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!("{name}: waiting for clients: {error}"),
            }
            match S::accept(&self.listener) {
                Ok(client) => self.take(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // As when there are too many open files: not over and over.
                    tracing::warn!("{name}: a client cannot be taken: {error}");
                    thread::sleep(LOOK);
                }
            }
        }
    }

    fn take(&self, client: S::Client) {
        let (name, most) = (S::NAME, S::MOST);
        if !self.service.admits(&client) {
            return;
        }
        if self.clients.fetch_add(1, Ordering::Relaxed) >= most {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("{name}: there are {most} clients; one more was sent away");
            return;
        }
        let place = Place(Arc::clone(&self.clients));
        let (service, stop) = (Arc::clone(&self.service), Arc::clone(&self.stop));
        let started = thread::Builder::new()
            .name(format!("{name}-client"))
            .spawn(move || {
                let _place = place;
                if let Err(error) = service.serve(client, &stop) {
                    tracing::debug!("{name}: a client is gone: {error}");
                }
            });
        if let Err(error) = started {
            tracing::warn!("{name}: a client cannot be served: {error}");
        }
    }
}

/// A client's place, given back on drop.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
