//! Between the thread of a socket and the worker: one request at a time, and its reply.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use spec::mailbox::Reply;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::calls::Calls;
use crate::front::{Asked, Called, Front, Gone, Request, Side, log_retirement};
use crate::log_limit::LogLimit;
use crate::ring::Violation;

/// The end of the thread that reads the socket.
#[derive(Debug)]
pub(super) struct Link {
    /// There until the link is dropped.
    requests: Option<mpsc::Sender<Request>>,
    bell: EventFd,
    replies: mpsc::Receiver<Reply>,
    /// A request was given up whose reply is still to come.
    late: bool,
    calls: Arc<Calls>,
}

/// The worker's end.
#[derive(Debug)]
pub(crate) struct WorkerEnd {
    requests: mpsc::Receiver<Request>,
    bell: EventFd,
    replies: mpsc::Sender<Reply>,
    side: SocketSide,
    /// Number of the last request.
    taken: u32,
}

/// What every worker of the HBA has to do with the frontend.
#[derive(Debug)]
pub(crate) struct SocketSide {
    calls: Arc<Calls>,
    hba: Arc<str>,
    retirements: Cell<LogLimit>,
}

/// Why a request has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoReply {
    /// Not yet, at least.
    #[error("the HBA did not get there in time; a disk hangs, most likely")]
    Late,
    /// The worker has ended.
    #[error("the HBA is not served any more")]
    Gone,
}

/// Both ends of a link for the HBA `hba`.
///
/// # Errors
/// What eventfd(2) reports.
pub(super) fn link(hba: Arc<str>) -> io::Result<(Link, WorkerEnd)> {
    let (requests, asked) = mpsc::channel();
    let (answers, replies) = mpsc::channel();
    let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let calls = Arc::new(Calls::new());
    let end = WorkerEnd {
        requests: asked,
        bell: bell.try_clone()?,
        replies: answers,
        side: SocketSide {
            calls: Arc::clone(&calls),
            hba,
            retirements: Cell::new(LogLimit::new(Instant::now())),
        },
        taken: 0,
    };
    let link = Link {
        requests: Some(requests),
        bell,
        replies,
        late: false,
        calls,
    };
    Ok((link, end))
}

impl Link {
    /// The tenant's eventfds.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Asks the worker and waits for its reply; for ever where there is no `patience`.
    ///
    /// # Errors
    /// [`NoReply`]. After [`NoReply::Late`] nothing else can be asked before the reply is there,
    /// for which the next call waits first.
    pub fn ask(&mut self, request: Request, patience: Option<Duration>) -> Result<Reply, NoReply> {
        if self.late {
            self.wait(patience)?;
        }
        let requests = self.requests.as_ref().ok_or(NoReply::Gone)?;
        requests.send(request).map_err(|_| NoReply::Gone)?;
        self.bell.write(1).map_err(|_| NoReply::Gone)?;
        self.late = true;
        self.wait(patience)
    }

    fn wait(&mut self, patience: Option<Duration>) -> Result<Reply, NoReply> {
        let reply = match patience {
            None => self.replies.recv().map_err(|_| NoReply::Gone),
            Some(patience) => self.replies.recv_timeout(patience).map_err(|e| match e {
                mpsc::RecvTimeoutError::Timeout => NoReply::Late,
                mpsc::RecvTimeoutError::Disconnected => NoReply::Gone,
            }),
        }?;
        self.late = false;
        Ok(reply)
    }
}

impl Drop for Link {
    /// Has the worker see that nobody is there any more.
    fn drop(&mut self) {
        self.requests = None;
        if let Err(error) = self.bell.write(1) {
            tracing::error!("a worker cannot be told that its socket's thread has ended: {error}");
        }
    }
}

impl WorkerEnd {
    /// Signalled when there is a request.
    pub fn bell(&self) -> io::Result<EventFd> {
        self.bell.try_clone()
    }

    /// What another worker has to do with the frontend.
    pub fn side(&self) -> SocketSide {
        SocketSide {
            calls: Arc::clone(&self.side.calls),
            hba: Arc::clone(&self.side.hba),
            retirements: Cell::new(LogLimit::new(Instant::now())),
        }
    }
}

impl Front for WorkerEnd {
    fn hba(&self) -> &str {
        self.side.hba()
    }

    fn request(&mut self) -> Result<Option<(Asked, Request)>, Gone> {
        match self.requests.try_recv() {
            Ok(request) => {
                tracing::debug!(hba = &*self.side.hba, ?request, "vhost-user");
                self.taken = self.taken.wrapping_add(1);
                let asked = Asked {
                    sequence: self.taken,
                    operation: 0,
                };
                Ok(Some((asked, request)))
            }
            Err(mpsc::TryRecvError::Empty) => Ok(None),
            Err(mpsc::TryRecvError::Disconnected) => Err(Gone::Socket),
        }
    }

    fn reply(&mut self, _: Asked, reply: Reply) -> Result<(), Gone> {
        self.replies.send(reply).map_err(|_| Gone::Socket)
    }

    fn call(&self, ring: u16) -> Called {
        self.side.call(ring)
    }

    fn retired(&self, ring: u16, violation: Violation) {
        self.side.retired(ring, violation);
    }
}

impl Side for SocketSide {
    fn hba(&self) -> &str {
        &self.hba
    }

    fn call(&self, ring: u16) -> Called {
        self.calls.call(ring);
        Called::Signalled
    }

    fn retired(&self, ring: u16, violation: Violation) {
        let mut retirements = self.retirements.get();
        log_retirement(&mut retirements, &self.hba, ring, violation);
        self.retirements.set(retirements);
        self.calls.report(ring);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Option<Duration> = Some(Duration::from_millis(5));

    #[test]
    fn a_reply_that_comes_late_is_not_taken_for_that_of_the_next_request() {
        let (mut link, mut worker) = link("t".into()).unwrap();
        let late = link.ask(Request::StopRing(2), SOON);
        assert_eq!(late, Err(NoReply::Late));
        // Nothing new is asked while the old one is open.
        assert_eq!(link.ask(Request::Reset, SOON), Err(NoReply::Late));
        let (asked, request) = worker.request().unwrap().unwrap();
        assert!(matches!(request, Request::StopRing(2)));
        assert!(worker.request().unwrap().is_none());
        worker.reply(asked, Reply::Base(7)).unwrap();
        let answering = std::thread::spawn(move || {
            loop {
                if let Some((asked, request)) = worker.request().unwrap() {
                    assert!(matches!(request, Request::Disconnect));
                    return worker.reply(asked, Reply::Done).unwrap();
                }
                std::thread::yield_now();
            }
        });
        assert_eq!(link.ask(Request::Disconnect, None), Ok(Reply::Done));
        answering.join().unwrap();
    }

    #[test]
    fn either_end_hears_when_the_other_is_gone() {
        let (mut here, worker) = link("t".into()).unwrap();
        drop(worker);
        assert_eq!(here.ask(Request::Reset, None), Err(NoReply::Gone));
        let (here, mut worker) = link("t".into()).unwrap();
        let bell = worker.bell().unwrap();
        drop(here);
        assert_eq!(bell.read().unwrap(), 1);
        assert!(matches!(worker.request(), Err(Gone::Socket)));
    }
}
