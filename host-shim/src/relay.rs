//! The relay: speaks vhost-user with the tenant's QEMU, and tells the supervisor what it says.
//!
//! One thread and blocking calls. It keeps nothing that matters: when it dies, the supervisor
//! starts another, and the tenant's QEMU reconnects. It outlives a supervisor that dies: what it
//! says waits in the link, which the keeper holds, for the next one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, poll};
use spec::inflight::REGIONS;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};

use crate::link::{Ending, FromRelay, Link, LinkError, Offer, Said, ToRelay, WireCall};
use crate::session::{PROTOCOL_FEATURES, Region, RingAddresses};

/// Why a relay ended.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The link to the supervisor; [`LinkError::Closed`] is the ordinary end.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The socket for the tenant.
    #[error("tenant socket: {0}")]
    Socket(#[from] io::Error),
    /// The first message was not the offer.
    #[error("the supervisor did not begin with its offer")]
    NoOffer,
}

/// Serves tenants on `listener`, one after the other, until the supervisor closes `link`, the
/// other end of a [`Link::pair`].
///
/// # Errors
/// [`RelayError`]; the link closed is no error.
pub fn serve(link: OwnedFd, listener: &UnixListener) -> std::result::Result<(), RelayError> {
    let link = Arc::new(Voice::new(Link::new(link)));
    match serve_tenants(&link, listener) {
        Err(RelayError::Link(LinkError::Closed)) => Ok(()),
        other => other,
    }
}

fn serve_tenants(
    link: &Arc<Voice>,
    listener: &UnixListener,
) -> std::result::Result<(), RelayError> {
    let (ToRelay::Offer(offer), _) = link.link.wait()? else {
        return Err(RelayError::NoOffer);
    };
    // Whoever connected may be gone by the time of the accept.
    listener.set_nonblocking(true)?;
    loop {
        if !readable(link, listener.as_fd())? {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => serve_tenant(link, offer, stream)?,
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The link, and how much was said through it. A call's id is its number, so that an answer that
/// comes twice is never that to another call.
struct Voice {
    link: Link,
    said: AtomicU64,
}

impl Voice {
    fn new(link: Link) -> Self {
        let said = AtomicU64::new(0);
        Self { link, said }
    }

    /// The number of what is said next.
    fn next(&self) -> u64 {
        self.said.load(Ordering::Relaxed) + 1
    }

    fn say(
        &self,
        message: FromRelay,
        fds: &[BorrowedFd<'_>],
    ) -> std::result::Result<(), LinkError> {
        let number = self.said.fetch_add(1, Ordering::Relaxed) + 1;
        self.link.send(&Said { number, message }, fds)
    }

    fn alive(&self, ping: u32) -> std::result::Result<(), LinkError> {
        self.say(FromRelay::Alive(ping), &[])
    }
}

/// Has this process end, whatever it waits for, when supervisor and keeper are both gone: takes
/// the lifeline, which comes first on `link`.
///
/// # Errors
/// [`RelayError`] if there is none.
pub fn hold_lifeline(link: &OwnedFd) -> std::result::Result<OwnedFd, RelayError> {
    let link = Link::new(link.try_clone()?);
    let (ToRelay::Lifeline, fds) = link.wait()? else {
        return Err(RelayError::NoOffer);
    };
    let lifeline = fds.into_iter().next().ok_or(RelayError::NoOffer)?;
    crate::device::signal_on_hangup(lifeline.as_fd())?;
    Ok(lifeline)
}

/// Errors of `accept` that are about one connection.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

/// Serves one tenant until its connection ends.
fn serve_tenant(
    link: &Arc<Voice>,
    offer: Offer,
    stream: UnixStream,
) -> std::result::Result<(), RelayError> {
    stream.set_nonblocking(false)?;
    link.say(FromRelay::Connected, &[stream.as_fd()])?;
    let handler = Arc::new(Mutex::new(Handler {
        link: Arc::clone(link),
        offer,
        refused: false,
        failed: None,
    }));
    let watched = stream.try_clone()?;
    let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
    let ending = loop {
        if !readable(link, watched.as_fd())? {
            continue;
        }
        let Err(error) = requests.handle_request() else {
            continue;
        };
        let mut handler = handler
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(failed) = handler.failed.take() {
            return Err(failed.into());
        }
        break match error {
            _ if handler.refused => Ending::Refused,
            Error::Disconnected | Error::SocketBroken(_) => Ending::Closed,
            error => Ending::Protocol(error.to_string()),
        };
    };
    // The supervisor has a duplicate, so closing ours would not end the connection.
    let _ = watched.shutdown(std::net::Shutdown::Both);
    link.say(FromRelay::Disconnected(ending), &[])?;
    Ok(())
}

/// Waits until `socket` is readable (`true`) or a message of the supervisor was served.
fn readable(link: &Voice, socket: BorrowedFd<'_>) -> std::result::Result<bool, RelayError> {
    let mut fds = [
        PollFd::from_borrowed_fd(link.link.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(socket, PollFlags::IN),
    ];
    rustix::io::retry_on_intr(|| poll(&mut fds, None)).map_err(io::Error::from)?;
    let [from_link, from_socket] = fds.map(|fd| !fd.revents().is_empty());
    if from_link {
        while let Some((message, _)) = link.link.receive()? {
            match message {
                ToRelay::Ping(number) => link.alive(number)?,
                // The answer to a call of a connection that is gone, or said once more.
                ToRelay::Answer { .. } | ToRelay::Offer(_) | ToRelay::Lifeline => {}
            }
        }
    }
    Ok(from_socket)
}

/// Turns the messages of one connection into calls.
struct Handler {
    link: Arc<Voice>,
    offer: Offer,
    /// The supervisor refused a call.
    refused: bool,
    /// The link broke during a call.
    failed: Option<LinkError>,
}

impl Handler {
    /// Asks the supervisor and waits for its answer, which has a deadline over there.
    fn ask(&mut self, call: WireCall, fds: &[BorrowedFd<'_>]) -> Result<(u64, Vec<OwnedFd>)> {
        match self.try_ask(call, fds) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                self.refused = true;
                Err(Error::BackendInternalError)
            }
            Err(error) => {
                self.failed = Some(error);
                Err(Error::BackendInternalError)
            }
        }
    }

    fn try_ask(
        &self,
        call: WireCall,
        fds: &[BorrowedFd<'_>],
    ) -> std::result::Result<Option<(u64, Vec<OwnedFd>)>, LinkError> {
        let asked = self.link.next();
        let call = FromRelay::Call { id: asked, call };
        self.link.say(call, fds)?;
        loop {
            let (message, fds) = self.link.link.wait()?;
            match message {
                ToRelay::Answer { id, value } if id == asked => {
                    return Ok(value.map(|value| (value, fds)));
                }
                ToRelay::Ping(number) => self.link.alive(number)?,
                ToRelay::Answer { .. } | ToRelay::Offer(_) | ToRelay::Lifeline => {}
            }
        }
    }

    fn tell(&mut self, call: WireCall, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.ask(call, fds).map(|_| ())
    }

    fn tell_with_eventfd(&mut self, call: WireCall, file: Option<File>) -> Result<()> {
        match file {
            Some(file) => self.tell(call, &[file.as_fd()]),
            None => self.tell(call, &[]),
        }
    }
}

/// Not offered, so nobody who keeps to the protocol asks for it.
const NOT_OFFERED: Error = Error::InvalidOperation("not offered by this backend");

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.tell(WireCall::ResetDevice, &[])
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offer.features | PROTOCOL_FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.tell(WireCall::SetFeatures(features), &[])
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = regions
            .iter()
            .map(|region| Region {
                guest_address: region.guest_phys_addr,
                len: region.memory_size,
                user_address: region.user_addr,
                offset: region.mmap_offset,
            })
            .collect();
        let fds: Vec<_> = files.iter().map(File::as_fd).collect();
        self.tell(WireCall::SetMemory(regions), &fds)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, ring: u32, num: u32) -> Result<()> {
        self.tell(WireCall::SetSize(ring, num), &[])
    }

    fn set_vring_addr(
        &mut self,
        ring: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor_table: u64,
        used_ring: u64,
        avail_ring: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = RingAddresses {
            descriptor_table,
            avail_ring,
            used_ring,
        };
        self.tell(WireCall::SetAddresses(ring, addresses), &[])
    }

    fn set_vring_base(&mut self, ring: u32, base: u32) -> Result<()> {
        self.tell(WireCall::SetBase(ring, base), &[])
    }

    fn get_vring_base(&mut self, ring: u32) -> Result<VhostUserVringState> {
        let (base, _) = self.ask(WireCall::GetBase(ring), &[])?;
        let base = u32::try_from(base).map_err(|_| Error::BackendInternalError)?;
        Ok(VhostUserVringState::new(ring, base))
    }

    fn set_vring_kick(&mut self, ring: u8, file: Option<File>) -> Result<()> {
        self.tell_with_eventfd(WireCall::SetKick(ring.into()), file)
    }

    fn set_vring_call(&mut self, ring: u8, file: Option<File>) -> Result<()> {
        self.tell_with_eventfd(WireCall::SetCall(ring.into()), file)
    }

    fn set_vring_err(&mut self, ring: u8, file: Option<File>) -> Result<()> {
        self.tell_with_eventfd(WireCall::SetErr(ring.into()), file)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        if self.offer.inflight {
            features |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        }
        Ok(features)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.offer.request_queues.into())
    }

    fn set_vring_enable(&mut self, ring: u32, enable: bool) -> Result<()> {
        self.tell(WireCall::SetEnabled(ring, enable), &[])
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(spec::session::MEMORY_SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.tell(WireCall::AddRegion(single(region)), &[file.as_fd()])?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.tell(WireCall::RemoveRegion(single(region)), &[])
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(NOT_OFFERED)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (rings, entries) = (wanted.num_queues, wanted.queue_size);
        let (len, fds) = self.ask(WireCall::GetInflight(rings, entries), &[])?;
        let file = fds.into_iter().next().ok_or(Error::BackendInternalError)?;
        let given = VhostUserInflight::new(len, REGIONS, rings, entries);
        Ok((given, file.into()))
    }

    fn set_inflight_fd(&mut self, set: &VhostUserInflight, file: File) -> Result<()> {
        let call = WireCall::SetInflight {
            offset: set.mmap_offset,
            len: set.mmap_size,
            rings: set.num_queues,
            entries: set.queue_size,
        };
        self.tell(call, &[file.as_fd()])
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}

fn single(region: &VhostUserSingleMemoryRegion) -> Region {
    Region {
        guest_address: region.guest_phys_addr,
        len: region.memory_size,
        user_address: region.user_addr,
        offset: region.mmap_offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::ring::VERSION_1;
    use std::thread;
    use vhost::VhostBackend;
    use vhost::vhost_user::{Frontend, VhostUserFrontend};
    use vmm_sys_util::tempdir::TempDir;

    const OFFER: Offer = Offer {
        features: VERSION_1,
        request_queues: 2,
        inflight: true,
    };

    /// A relay on a thread, the supervisor's end of its link, and the path for tenants.
    fn relay() -> (Link, TempDir, thread::JoinHandle<()>) {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.as_path().join("hba.sock")).unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        let thread = thread::spawn(move || serve(theirs, &listener).unwrap());
        let link = Link::new(ours);
        link.send(&ToRelay::Offer(OFFER), &[]).unwrap();
        (link, dir, thread)
    }

    fn tenant(dir: &TempDir) -> Frontend {
        Frontend::from_stream(
            UnixStream::connect(dir.as_path().join("hba.sock")).unwrap(),
            4,
        )
    }

    fn next(link: &Link) -> FromRelay {
        link.wait::<Said>().unwrap().0.message
    }

    #[test]
    fn the_handshake_is_answered_without_the_supervisor() {
        let (link, dir, thread) = relay();
        let mut qemu = tenant(&dir);
        assert_eq!(qemu.get_features().unwrap(), VERSION_1 | PROTOCOL_FEATURES);
        let offered = qemu.get_protocol_features().unwrap();
        assert!(offered.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS));
        assert!(offered.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
        qemu.set_protocol_features(offered).unwrap();
        assert_eq!(qemu.get_queue_num().unwrap(), 2);
        assert_eq!(qemu.get_max_mem_slots().unwrap(), 512);

        assert_eq!(next(&link), FromRelay::Connected);
        drop(qemu);
        assert_eq!(next(&link), FromRelay::Disconnected(Ending::Closed));
        drop(link);
        thread.join().unwrap();
    }

    #[test]
    fn get_vring_base_returns_what_the_supervisor_answers_and_pings_go_on_meanwhile() {
        let (link, dir, _thread) = relay();
        let qemu = tenant(&dir);
        assert_eq!(next(&link), FromRelay::Connected);
        let asking = thread::spawn(move || qemu.get_vring_base(1).unwrap());
        assert_eq!(
            next(&link),
            FromRelay::Call {
                id: 2,
                call: WireCall::GetBase(1)
            }
        );
        link.send(&ToRelay::Ping(7), &[]).unwrap();
        assert_eq!(next(&link), FromRelay::Alive(7));
        link.send(
            &ToRelay::Answer {
                id: 2,
                value: Some(4711),
            },
            &[],
        )
        .unwrap();
        assert_eq!(asking.join().unwrap(), 4711);
    }

    #[test]
    fn a_refused_call_ends_the_connection_and_the_next_tenant_is_served() {
        let (link, dir, _thread) = relay();
        let qemu = tenant(&dir);
        assert_eq!(next(&link), FromRelay::Connected);
        let asking = thread::spawn(move || qemu.get_vring_base(0));
        assert!(matches!(next(&link), FromRelay::Call { id: 2, .. }));
        link.send(&ToRelay::Answer { id: 2, value: None }, &[])
            .unwrap();
        assert!(asking.join().unwrap().is_err());
        assert_eq!(next(&link), FromRelay::Disconnected(Ending::Refused));

        let _again = tenant(&dir);
        assert_eq!(next(&link), FromRelay::Connected);
    }

    #[test]
    fn a_peer_that_does_not_speak_vhost_user_is_dropped() {
        let (link, dir, _thread) = relay();
        let mut stream = UnixStream::connect(dir.as_path().join("hba.sock")).unwrap();
        io::Write::write_all(&mut stream, &[0xff; 64]).unwrap();
        assert_eq!(next(&link), FromRelay::Connected);
        assert!(matches!(
            next(&link),
            FromRelay::Disconnected(Ending::Protocol(_))
        ));
    }
}
