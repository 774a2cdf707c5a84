//! Sleeping until the server calls.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Waits for one eventfd. Reading it would be enough, but some servers make it non-blocking.
pub struct Sleep {
    call: Arc<EventFd>,
    epoll: Epoll,
}

impl Sleep {
    /// # Errors
    /// What epoll_create(2) or epoll_ctl(2) report.
    pub fn new(call: Arc<EventFd>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, call.as_raw_fd(), event)?;
        Ok(Self { call, epoll })
    }

    /// Sleeps until a call came, and takes it.
    ///
    /// # Errors
    /// What epoll_wait(2) or read(2) report, but for what only says to try again.
    pub fn until_call(&self) -> io::Result<()> {
        loop {
            match self.epoll.wait(-1, &mut [EpollEvent::default()]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        match self.call.read() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}
