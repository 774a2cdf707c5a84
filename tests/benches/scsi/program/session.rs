//! A vhost-user session with a server, from the connection to running queues.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::error::{Context, Error, Result};
use super::memory::Memory;
use super::ring::Place;
use super::slots::{Kind, SECTOR};

/// Feature bits (virtio 1.3 §6; the vhost-user protocol for the last).
const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_BLK_F_MQ.
const BLK_MQ: u64 = 1 << 12;
/// How long a server may take to answer a message.
const PATIENCE: Duration = Duration::from_secs(10);
/// More queues than any server has.
const MOST_QUEUES: u64 = 256;

/// What a driver would like to use.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    pub kind: Kind,
    pub queues: u16,
    pub indirect: bool,
    pub event_idx: bool,
}

/// A connection whose features are agreed upon.
pub struct Session {
    frontend: Frontend,
    stream: UnixStream,
    kind: Kind,
    enable: bool,
}

/// One queue: where it is, and how each side wakes the other.
pub struct Vring<'a> {
    pub place: Place,
    pub kick: &'a EventFd,
    pub call: &'a EventFd,
}

impl Session {
    /// Connects, and agrees upon features.
    ///
    /// # Errors
    /// Nobody is there, or cannot do what is wished.
    pub fn open(socket: &Path, wishes: Wishes) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(|source| Error::NoServer {
            path: socket.to_owned(),
            source,
        })?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .doing("set the socket's timeout")?;
        let own = stream.try_clone().doing("duplicate the socket")?;
        let mut frontend = Frontend::from_stream(stream, MOST_QUEUES);
        frontend.set_owner().taken("SET_OWNER")?;
        let offered = frontend.get_features().taken("GET_FEATURES")?;
        let lacks = |feature, reason| Error::Lacks {
            feature,
            offered,
            reason,
        };
        if offered & VERSION_1 == 0 {
            return Err(lacks("VERSION_1", "every driver of today needs"));
        }
        if wishes.indirect && offered & INDIRECT == 0 {
            return Err(lacks("INDIRECT_DESC", "only --direct can do without"));
        }
        if wishes.event_idx && offered & EVENT_IDX == 0 {
            return Err(lacks("EVENT_IDX", "only --no-event-idx can do without"));
        }
        let enable = offered & PROTOCOL_FEATURES != 0;
        let mut wanted = VERSION_1 | PROTOCOL_FEATURES;
        wanted |= if wishes.indirect { INDIRECT } else { 0 };
        wanted |= if wishes.event_idx { EVENT_IDX } else { 0 };
        if wishes.kind == Kind::Blk && wishes.queues > 1 {
            wanted |= BLK_MQ;
        }
        if enable {
            agree_on_protocol(&mut frontend, wishes)?;
        }
        frontend
            .set_features(offered & wanted)
            .taken("SET_FEATURES")?;
        Ok(Self {
            frontend,
            stream: own,
            kind: wishes.kind,
            enable,
        })
    }

    /// Gives the server the memory and the queues, and starts them.
    ///
    /// # Errors
    /// The server refuses something.
    pub fn start(&mut self, memory: &Memory, vrings: &[Vring<'_>]) -> Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: memory.len(),
            userspace_addr: memory.user_address(0),
            mmap_offset: 0,
            mmap_handle: memory.file().as_raw_fd(),
        };
        self.frontend
            .set_mem_table(&[region])
            .taken("SET_MEM_TABLE")?;
        for (index, vring) in vrings.iter().enumerate() {
            let place = vring.place;
            let config = VringConfigData {
                queue_max_size: place.size,
                queue_size: place.size,
                flags: 0,
                desc_table_addr: memory.user_address(place.descriptors),
                used_ring_addr: memory.user_address(place.used),
                avail_ring_addr: memory.user_address(place.avail),
                log_addr: None,
            };
            let frontend = &mut self.frontend;
            frontend
                .set_vring_num(index, place.size)
                .taken("SET_VRING_NUM")?;
            frontend.set_vring_base(index, 0).taken("SET_VRING_BASE")?;
            frontend
                .set_vring_addr(index, &config)
                .taken("SET_VRING_ADDR")?;
            frontend
                .set_vring_call(index, vring.call)
                .taken("SET_VRING_CALL")?;
            frontend
                .set_vring_kick(index, vring.kick)
                .taken("SET_VRING_KICK")?;
            if self.enable {
                frontend
                    .set_vring_enable(index, true)
                    .taken("SET_VRING_ENABLE")?;
            }
        }
        // Messages without an answer may still be under way; this one has one.
        self.frontend.get_features().taken("GET_FEATURES")?;
        Ok(())
    }

    /// Bytes of a virtio-blk disk, from its configuration (virtio 1.3 §5.2.4).
    ///
    /// # Errors
    /// The server does not tell.
    pub fn blk_capacity(&mut self) -> Result<u64> {
        assert_eq!(self.kind, Kind::Blk, "virtio-scsi has none");
        let (_, bytes) = self
            .frontend
            .get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
            .taken("GET_CONFIG")?;
        let sectors = bytes.try_into().map_or(0, u64::from_le_bytes);
        Ok(sectors.saturating_mul(SECTOR))
    }

    /// Something that sees when the server hangs up.
    ///
    /// # Errors
    /// The socket cannot be set up for it.
    pub fn watch(&self) -> Result<Watch> {
        let stream = self.stream.try_clone().doing("duplicate the socket")?;
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .doing("set the socket's timeout")?;
        Ok(Watch(stream))
    }

    /// Stops the queues that `start` started, `queues` of them; what is under way is finished.
    ///
    /// # Errors
    /// The server refuses, or is gone.
    pub fn stop(&mut self, queues: usize) -> Result<()> {
        self.stream
            .set_read_timeout(Some(PATIENCE))
            .doing("set the socket's timeout")?;
        for index in 0..queues {
            self.frontend
                .get_vring_base(index)
                .taken("GET_VRING_BASE")?;
        }
        Ok(())
    }
}

/// Sees when the server hangs up.
pub struct Watch(UnixStream);

impl Watch {
    /// Whether it has.
    pub fn hung_up(&self) -> bool {
        match (&self.0).read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => {
                let kinds = [
                    io::ErrorKind::WouldBlock,
                    io::ErrorKind::TimedOut,
                    io::ErrorKind::Interrupted,
                ];
                !kinds.contains(&error.kind())
            }
        }
    }
}

fn agree_on_protocol(frontend: &mut Frontend, wishes: Wishes) -> Result<()> {
    let offered = frontend
        .get_protocol_features()
        .taken("GET_PROTOCOL_FEATURES")?;
    let mut wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
    if wishes.kind == Kind::Blk {
        wanted |= VhostUserProtocolFeatures::CONFIG;
    }
    let agreed = offered & wanted;
    frontend
        .set_protocol_features(agreed)
        .taken("SET_PROTOCOL_FEATURES")?;
    let first = u64::from(wishes.kind.first_queue());
    let queues = if agreed.contains(VhostUserProtocolFeatures::MQ) {
        frontend.get_queue_num().taken("GET_QUEUE_NUM")?
    } else {
        first + 1
    };
    if queues < first + u64::from(wishes.queues) {
        return Err(Error::TooFewQueues {
            offered: queues.saturating_sub(first),
            asked: wishes.queues,
        });
    }
    if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(())
}

/// Names the message that failed.
trait Taken<T> {
    fn taken(self, message: &'static str) -> Result<T>;
}

impl<T> Taken<T> for vhost::Result<T> {
    fn taken(self, message: &'static str) -> Result<T> {
        self.map_err(|source| Error::Setup { message, source })
    }
}
