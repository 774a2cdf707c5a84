//! The thread that waits for frontends of one HBA and serves them, one after the other.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::handler::Handler;
use super::link::{NoReply, WorkerEnd, link};
use super::session::Session;
use super::{Options, Socket};
use crate::log_limit::LogLimit;

/// Pause after a frontend that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the thread is waited for at the end. It may be in a call to the kernel that does not
/// return: to close a file of a file system in user space asks whoever runs that.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked at whether the thread has ended.
const LOOK: Duration = Duration::from_millis(5);

/// A thread that serves frontends, for as long as its worker works.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// How the thread is told to end.
#[derive(Debug)]
struct Stop {
    event: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// The connection that is served now: its reader may be in the middle of a message.
    connection: Option<UnixStream>,
}

/// Starts to serve frontends of the HBA `hba` that connect to `socket`; the other end is for its
/// worker.
///
/// # Errors
/// What the kernel reports.
pub(crate) fn start(
    socket: Arc<Socket>,
    hba: Arc<str>,
    options: Options,
) -> io::Result<(Server, WorkerEnd)> {
    let (link, worker) = link(Arc::clone(&hba))?;
    let stop = Arc::new(Stop {
        event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        state: Mutex::default(),
    });
    let frontends = Frontends {
        socket,
        hba: Arc::clone(&hba),
        stop: Arc::clone(&stop),
        handler: Arc::new(Mutex::new(Handler::new(Session::new(
            Arc::clone(&hba),
            link,
            options,
        )))),
        complaints: LogLimit::new(Instant::now()),
    };
    let thread = std::thread::Builder::new()
        .name(format!("vu-{hba}").chars().take(15).collect())
        .spawn(move || frontends.serve())?;
    let server = Server {
        stop,
        thread: Some(thread),
    };
    Ok((server, worker))
}

impl Drop for Server {
    /// Drops the connection and waits for the thread, which must have no worker to wait for any
    /// more. One that does not end in time is left: it serves nobody, and ends when it can.
    fn drop(&mut self) {
        self.stop.stop();
        let Some(thread) = self.thread.take() else {
            return;
        };
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                tracing::error!(
                    thread = thread.thread().name(),
                    "it hangs in what a frontend gave it, and is left behind; end that frontend"
                );
                return;
            }
            std::thread::sleep(LOOK);
        }
        // What it panicked of is in the log.
        let _ = thread.join();
    }
}

impl Stop {
    fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        if let Some(connection) = &state.connection {
            // One that is broken already is as good.
            let _ = connection.shutdown(Shutdown::Both);
        }
        // It is never written to often enough to be full.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Takes note of the connection; whether it may be served.
    fn begin(&self, connection: UnixStream) -> bool {
        let mut state = self.state();
        state.connection = Some(connection);
        !state.stopped
    }

    fn end(&self) {
        self.state().connection = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread has.
struct Frontends {
    socket: Arc<Socket>,
    hba: Arc<str>,
    stop: Arc<Stop>,
    handler: Arc<Mutex<Handler>>,
    complaints: LogLimit,
}

/// What there is to do.
enum Turn {
    Stop,
    /// A message, or the end of the connection.
    Message,
    /// Somebody connects.
    Frontend,
}

impl Frontends {
    fn serve(mut self) {
        loop {
            match self.wait(None, true) {
                Ok(Turn::Stop) => return,
                Ok(Turn::Message) => {}
                Ok(Turn::Frontend) => {
                    if !self.accept() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(hba = &*self.hba, "poll: {error}; no frontend is served");
                    return;
                }
            }
        }
    }

    /// Serves the frontend that connects now; whether there is still a worker afterwards.
    fn accept(&mut self) -> bool {
        let stream = match self.socket.listener().accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) => {
                self.complain(&format!("accept: {error}"));
                // Out of descriptors, perhaps: not to be tried again at once.
                std::thread::sleep(PAUSE);
                return true;
            }
        };
        tracing::info!(hba = &*self.hba, "a frontend has connected");
        let end = self.serve_connection(stream);
        self.stop.end();
        match end {
            Ok(None) => tracing::info!(hba = &*self.hba, "the frontend is gone"),
            Ok(Some(why)) => self.complain(&format!("the frontend is dropped: {why}")),
            Err(error) => self.complain(&format!("the frontend cannot be served: {error}")),
        }
        let left = self.handler().session().disconnect();
        match left {
            Ok(()) | Err(NoReply::Late) => true,
            Err(NoReply::Gone) => false,
        }
    }

    /// Serves a connection to its end; why it was dropped, if it was.
    fn serve_connection(&mut self, stream: UnixStream) -> io::Result<Option<String>> {
        stream.set_nonblocking(false)?;
        let watched = stream.try_clone()?;
        if !self.stop.begin(stream.try_clone()?) {
            return Ok(None);
        }
        let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&self.handler));
        let mut alone = true;
        loop {
            match self.wait(Some(watched.as_fd()), alone)? {
                Turn::Stop => return Ok(None),
                Turn::Frontend => {
                    alone = false;
                    self.complain("another frontend connects, and waits until this one is gone");
                }
                Turn::Message => {
                    let Err(error) = requests.handle_request() else {
                        continue;
                    };
                    return Ok(match (self.handler().refusal(), error) {
                        (Some(refused), _) => Some(refused.to_string()),
                        (None, Error::Disconnected | Error::SocketBroken(_)) => None,
                        (None, error) => Some(format!("it broke the protocol: {error}")),
                    });
                }
            }
        }
    }

    /// Waits for something to do; for another frontend only where `listen` says so.
    fn wait(&self, connection: Option<BorrowedFd<'_>>, listen: bool) -> io::Result<Turn> {
        let nothing = PollFlags::empty();
        let listener = self.socket.listener().as_fd();
        let stop = self.stop.event.as_fd();
        let mut fds = [
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            // Without a connection, the stop event once more.
            PollFd::from_borrowed_fd(connection.unwrap_or(stop), PollFlags::IN),
            PollFd::from_borrowed_fd(listener, if listen { PollFlags::IN } else { nothing }),
        ];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let [stopped, message, frontend] = fds.map(|fd| !fd.revents().is_empty());
        Ok(match (stopped, message, frontend) {
            (true, ..) => Turn::Stop,
            (_, true, _) => Turn::Message,
            (.., true) => Turn::Frontend,
            _ => Turn::Message,
        })
    }

    fn handler(&self) -> MutexGuard<'_, Handler> {
        self.handler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes to the log what a frontend can cause as often as it likes.
    fn complain(&mut self, what: &str) {
        let (logged, silent) = self.complaints.add(Instant::now());
        if silent > 0 {
            tracing::warn!(
                hba = &*self.hba,
                "{silent} more complaints about frontends before"
            );
        }
        if logged {
            tracing::warn!(hba = &*self.hba, "{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_hangs_is_not_waited_for_without_end() {
        let (let_go, hangs) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = hangs.recv();
        });
        let stop = Stop {
            event: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            state: Mutex::default(),
        };
        let server = Server {
            stop: Arc::new(stop),
            thread: Some(thread),
        };
        // Would never return if it waited: the thread ends after it only.
        drop(server);
        drop(let_go);
    }
}
