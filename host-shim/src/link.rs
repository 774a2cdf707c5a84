//! The protocol between supervisor and relay: JSON in packets, descriptors beside it.
//!
//! Packets (`SOCK_SEQPACKET`) keep a message and its descriptors together. The supervisor
//! believes nothing that comes from the relay, which faces the tenant: every packet is bounded,
//! and what it says is checked where it is used.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::session::{Region, RingAddresses};

/// Most bytes of one packet; 32 regions of four 20-digit numbers take a tenth of it.
const MAX_PACKET: usize = 64 * 1024;
/// Most descriptors of one packet: SET_MEM_TABLE carries up to 32.
pub(crate) const MAX_FDS: usize = 32;

/// What a relay is told before anything else: how to answer the tenant by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Feature bits of the device.
    pub features: u64,
    /// Request queues, control and event not counted.
    pub request_queues: u16,
    /// Whether in-flight memory is offered.
    pub inflight: bool,
}

/// What a relay says, numbered from 1 on: a supervisor that goes on for another knows what that
/// one has heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Its number.
    pub number: u64,
    /// What.
    pub message: FromRelay,
}

/// From the supervisor to the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRelay {
    /// To a relay in a process of its own, before anything else: it ends when nobody has the
    /// other end of the pipe that comes along.
    Lifeline,
    /// The first message after that.
    Offer(Offer),
    /// Answer [`FromRelay::Alive`] with this number.
    Ping(u32),
    /// The answer to a call.
    Answer {
        /// Of the call.
        id: u64,
        /// `None`: refused; drop the tenant's connection. A number where the call asks for one,
        /// else 0.
        value: Option<u64>,
    },
}

/// From the relay to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRelay {
    /// The answer to a ping.
    Alive(u32),
    /// The tenant's QEMU connected; its connection comes along.
    Connected,
    /// The tenant's connection ended.
    Disconnected(Ending),
    /// The tenant asks for something; its descriptors come along. Answered by
    /// [`ToRelay::Answer`].
    Call {
        /// Chosen by the relay.
        id: u64,
        /// What.
        call: WireCall,
    },
}

/// How a tenant's connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The tenant's QEMU closed it.
    Closed,
    /// The supervisor refused a call.
    Refused,
    /// What came was not vhost-user as we know it.
    Protocol(String),
}

/// A vhost-user message that the supervisor decides on. Where it carries descriptors, they come
/// in the same packet and in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WireCall {
    /// SET_FEATURES.
    SetFeatures(u64),
    /// SET_MEM_TABLE; one descriptor a region.
    SetMemory(Vec<Region>),
    /// ADD_MEM_REG; one descriptor.
    AddRegion(Region),
    /// REM_MEM_REG.
    RemoveRegion(Region),
    /// SET_VRING_NUM: ring, entries.
    SetSize(u32, u32),
    /// SET_VRING_ADDR.
    SetAddresses(u32, RingAddresses),
    /// SET_VRING_BASE: ring, avail index.
    SetBase(u32, u32),
    /// GET_VRING_BASE; answered by the avail index.
    GetBase(u32),
    /// SET_VRING_KICK; a descriptor or none.
    SetKick(u32),
    /// SET_VRING_CALL; a descriptor or none.
    SetCall(u32),
    /// SET_VRING_ERR; a descriptor or none.
    SetErr(u32),
    /// SET_VRING_ENABLE.
    SetEnabled(u32, bool),
    /// GET_INFLIGHT_FD: rings, entries; answered by the bytes of their regions and, beside it, the
    /// file.
    GetInflight(u16, u16),
    /// SET_INFLIGHT_FD; one descriptor.
    SetInflight {
        /// Offset of the first region in the file.
        offset: u64,
        /// Bytes of all regions.
        len: u64,
        /// How many regions there are.
        rings: u16,
        /// Most entries of a ring.
        entries: u16,
    },
    /// RESET_DEVICE.
    ResetDevice,
}

/// Why the link cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side is gone.
    #[error("the other side closed the link")]
    Closed,
    /// The other side does not read what it is sent.
    #[error("the other side does not read the link")]
    Full,
    /// What came is not a message.
    #[error("not a message: {0}")]
    Malformed(String),
    /// The system refused.
    #[error("link: {0}")]
    Io(#[from] io::Error),
}

/// One end of the link.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

impl Link {
    /// Two connected ends, both closed on exec.
    ///
    /// # Errors
    /// What `socketpair` gave.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?)
    }

    /// The end at `socket`, one of [`Self::pair`].
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends `message` and `fds`; never waits.
    ///
    /// # Errors
    /// [`LinkError::Full`] if the other side has stopped reading, [`LinkError::Closed`] if it is
    /// gone.
    pub fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let packet =
            serde_json::to_vec(message).map_err(|error| LinkError::Malformed(error.to_string()))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(LinkError::Malformed(format!("{} descriptors", fds.len())));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(&packet)], &mut control, flags)
        });
        match sent {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::AGAIN) => Err(LinkError::Full),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(LinkError::Closed),
            Err(error) => Err(LinkError::Io(error.into())),
        }
    }

    /// The next message and its descriptors, if one is there; never waits.
    ///
    /// # Errors
    /// [`LinkError`]; the link is of no use after one.
    pub fn receive<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, LinkError> {
        self.receive_with(RecvFlags::DONTWAIT)
    }

    /// The next message and its descriptors; waits for it.
    ///
    /// # Errors
    /// [`LinkError`]; the link is of no use after one.
    pub fn wait<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), LinkError> {
        self.receive_with(RecvFlags::empty())?
            .ok_or_else(|| LinkError::Io(io::ErrorKind::WouldBlock.into()))
    }

    /// Closes the link for both sides, whoever has duplicates of an end.
    pub fn close(self) {
        // Fails if the other side has closed it.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// As [`Self::receive`], but the message stays there until [`Self::skip`].
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn peek<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, LinkError> {
        self.receive_with(RecvFlags::DONTWAIT | RecvFlags::PEEK)
    }

    /// Lets the message go that [`Self::peek`] has seen.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn skip(&self) -> Result<(), LinkError> {
        let flags = RecvFlags::DONTWAIT;
        let received =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut [0; 1], flags));
        match received {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(rustix::io::Errno::CONNRESET) => Err(LinkError::Closed),
            Err(error) => Err(LinkError::Io(error.into())),
        }
    }

    fn receive_with<M: DeserializeOwned>(
        &self,
        flags: RecvFlags,
    ) -> Result<Option<(M, Vec<OwnedFd>)>, LinkError> {
        let mut packet = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut packet)],
                &mut control,
                flags | RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::CONNRESET) => return Err(LinkError::Closed),
            Err(error) => return Err(LinkError::Io(error.into())),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(LinkError::Closed);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(LinkError::Malformed("a packet too long".into()));
        }
        let message = serde_json::from_slice(&packet[..received.bytes])
            .map_err(|error| LinkError::Malformed(error.to_string()))?;
        Ok(Some((message, fds)))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use vmm_sys_util::tempfile::TempFile;

    fn pair() -> (Link, Link) {
        let (one, other) = Link::pair().unwrap();
        (Link::new(one), Link::new(other))
    }

    fn region(index: u64) -> Region {
        Region {
            guest_address: u64::MAX - index,
            len: u64::MAX,
            user_address: u64::MAX,
            offset: u64::MAX,
        }
    }

    #[test]
    fn the_largest_message_of_all_arrives_with_its_descriptors() {
        let (relay, supervisor) = pair();
        let mut file = TempFile::new().unwrap().into_file();
        file.write_all(b"tenant").unwrap();
        let fds = [file.as_fd(); 32];
        let call = FromRelay::Call {
            id: 1,
            call: WireCall::SetMemory((0..32).map(region).collect()),
        };

        relay.send(&call, &fds).unwrap();

        let (received, fds): (FromRelay, _) = supervisor.receive().unwrap().unwrap();
        assert_eq!(received, call);
        assert_eq!(fds.len(), 32);
        let mut text = String::new();
        let mut same = std::fs::File::from(fds.into_iter().last().unwrap());
        same.rewind().unwrap();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "tenant");
    }

    #[test]
    fn nothing_there_is_not_an_error_and_never_waits() {
        let (_relay, supervisor) = pair();
        assert!(supervisor.receive::<FromRelay>().unwrap().is_none());
    }

    #[test]
    fn a_closed_link_says_so_on_both_ways() {
        let (relay, supervisor) = pair();
        drop(relay);
        assert!(matches!(
            supervisor.receive::<FromRelay>(),
            Err(LinkError::Closed)
        ));
        assert!(matches!(
            supervisor.send(&ToRelay::Ping(1), &[]),
            Err(LinkError::Closed)
        ));
    }

    #[test]
    fn a_relay_that_does_not_read_is_noticed_instead_of_waited_for() {
        let (_relay, supervisor) = pair();
        let full = (0..1_000_000).find_map(|n| supervisor.send(&ToRelay::Ping(n), &[]).err());
        assert!(matches!(full, Some(LinkError::Full)));
    }

    #[test]
    fn garbage_is_an_error() {
        let (relay, supervisor) = pair();
        rustix::net::send(&relay, b"\x00\xff{", SendFlags::empty()).unwrap();
        assert!(matches!(
            supervisor.receive::<FromRelay>(),
            Err(LinkError::Malformed(_))
        ));
        rustix::net::send(&relay, &vec![b' '; MAX_PACKET + 1], SendFlags::empty()).unwrap();
        assert!(matches!(
            supervisor.receive::<FromRelay>(),
            Err(LinkError::Malformed(_))
        ));
    }
}
