//! The answer to each vfio-user command.

use crate::device::{NoSuchVector, OutsideRegion, REGIONS, Region, VhostPci};

use crate::kept::KeptFd;

use super::wire::{Header, MAX_DATA, REGION_ACCESS_LEN, bytes, command, join, split, words};

/// The protocol version spoken: QEMU takes 0.0 only.
const MAJOR: u16 = 0;
const MINOR: u16 = 0;
/// What the server says about itself, NUL-terminated. A reply must not be longer than its
/// request, and QEMU's is.
const CAPABILITIES: &[u8] =
    b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":16384}}\0";
const _: () = assert!(
    MAX_DATA == 16384 && super::wire::MAX_FDS == 16,
    "as CAPABILITIES says"
);

/// VFIO_DEVICE_FLAGS_RESET and VFIO_DEVICE_FLAGS_PCI.
const DEVICE_FLAGS: u32 = 1 << 0 | 1 << 1;
/// Bytes of a struct vfio_device_info as far as vfio-user has it.
const DEVICE_INFO_LEN: u32 = 16;
/// Bytes of a struct vfio_irq_info.
const IRQ_INFO_LEN: u32 = 16;

/// VFIO_REGION_INFO_FLAG_*.
const REGION_READ_WRITE: u32 = 1 << 0 | 1 << 1;
const REGION_MMAP: u32 = 1 << 2;
const REGION_CAPS: u32 = 1 << 3;
/// Bytes of a struct vfio_region_info.
const REGION_INFO_LEN: u32 = 32;
/// Bytes of VFIO_REGION_INFO_CAP_SPARSE_MMAP with one area.
const SPARSE_LEN: u32 = 32;
const SPARSE_ID_AND_VERSION: u32 = 1 | 1 << 16;

/// Interrupt indices of a PCI function in VFIO's numbering: INTx, MSI, MSI-X, error, request.
const IRQS: u32 = 5;
const IRQ_MSI: u32 = 1;
/// VFIO_IRQ_INFO_EVENTFD; not NORESIZE, so that vectors are set one by one without a gap.
const IRQ_EVENTFD: u32 = 1 << 0;
/// VFIO_IRQ_SET_DATA_NONE, _DATA_EVENTFD and _ACTION_TRIGGER.
const SET_DATA_NONE: u32 = 1 << 0;
const SET_DATA_EVENTFD: u32 = 1 << 2;
const SET_TRIGGER: u32 = 1 << 5;

/// A message to send.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    pub(super) fd: Option<KeptFd>,
}

impl Outgoing {
    /// The answer to any command of a client that is turned away.
    pub(super) fn refusal(header: Header) -> Self {
        Self {
            bytes: header.error_reply(libc::EBUSY.unsigned_abs()),
            fd: None,
        }
    }
}

/// A command that is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("it is not known here")]
    UnknownCommand,
    #[error("it came before VERSION")]
    BeforeVersion,
    #[error("VERSION came twice")]
    SecondVersion,
    #[error("major version {0} is not spoken here, only 0")]
    MajorVersion(u16),
    #[error("its payload is too short or too long")]
    Length,
    #[error("it carries more file descriptors than the server said it takes")]
    TooManyFds,
    #[error("there is no region {0}")]
    NoRegion(u32),
    #[error("it reaches outside its region")]
    OutsideRegion,
    #[error("there is no such interrupt, or no way to set it so")]
    Interrupt,
}

impl Refused {
    fn errno(self) -> u32 {
        let errno = match self {
            Self::UnknownCommand => libc::EOPNOTSUPP,
            Self::MajorVersion(_) => libc::EPROTONOSUPPORT,
            _ => libc::EINVAL,
        };
        errno.unsigned_abs()
    }
}

impl From<NoSuchVector> for Refused {
    fn from(_: NoSuchVector) -> Self {
        Self::Interrupt
    }
}

impl From<OutsideRegion> for Refused {
    fn from(_: OutsideRegion) -> Self {
        Self::OutsideRegion
    }
}

/// What the server remembers of its client from one command to the next.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// Whether versions were exchanged.
    greeted: bool,
}

impl Server {
    /// Of a client that has exchanged versions, or not, with a server that is gone.
    pub(super) fn resumed(greeted: bool) -> Self {
        Self { greeted }
    }
}

/// A complete message; its payload is `None` if it was too long to be kept.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    pub(super) header: Header,
    pub(super) payload: Option<&'a [u8]>,
    pub(super) fds: Vec<KeptFd>,
    pub(super) too_many_fds: bool,
}

impl Server {
    /// Carries a message out at once; returns the reply if it wants one, and why it was refused
    /// if it was.
    pub(super) fn serve(
        &mut self,
        message: Incoming<'_>,
        device: &mut VhostPci,
    ) -> (Option<Outgoing>, Option<Refused>) {
        let header = message.header;
        if !header.is_command() {
            // A reply; but we ask nothing.
            return (None, None);
        }
        let (reply, refused) = match self.carry_out(message, device) {
            Ok((payload, fd)) => {
                let bytes = header.reply(&payload);
                (Outgoing { bytes, fd }, None)
            }
            Err(refused) => {
                let bytes = header.error_reply(refused.errno());
                (Outgoing { bytes, fd: None }, Some(refused))
            }
        };
        (header.wants_reply().then_some(reply), refused)
    }

    fn carry_out(&mut self, message: Incoming<'_>, device: &mut VhostPci) -> Answer {
        let payload = message.payload.ok_or(Refused::Length)?;
        if message.too_many_fds {
            return Err(Refused::TooManyFds);
        }
        match (message.header.command, self.greeted) {
            (command::VERSION, false) => {
                let reply = version(payload)?;
                self.greeted = true;
                device.client_arrived();
                Ok((reply, None))
            }
            (command::VERSION, true) => Err(Refused::SecondVersion),
            (_, false) => Err(Refused::BeforeVersion),
            // The function does no DMA, so it need not know the storage VM's memory; a
            // descriptor of it is closed with the message.
            (command::DMA_MAP, _) => done(),
            (command::DMA_UNMAP, _) => Ok((payload.get(..24).unwrap_or_default().to_vec(), None)),
            (command::DEVICE_GET_INFO, _) => {
                let regions = u32::try_from(REGIONS).unwrap_or(u32::MAX);
                let info = [DEVICE_INFO_LEN, DEVICE_FLAGS, regions, IRQS];
                Ok((bytes(&info), None))
            }
            (command::DEVICE_GET_REGION_INFO, _) => region_info(payload, device),
            (command::DEVICE_GET_IRQ_INFO, _) => irq_info(payload, device),
            (command::DEVICE_SET_IRQS, _) => set_irqs(payload, message.fds, device),
            (command::REGION_READ, _) => region_read(payload, device),
            (command::REGION_WRITE, _) => region_write(payload, device),
            (command::DEVICE_RESET, _) => {
                device.reset();
                done()
            }
            _ => Err(Refused::UnknownCommand),
        }
    }
}

/// Payload and descriptor of a reply.
type Answer = Result<(Vec<u8>, Option<KeptFd>), Refused>;

fn done() -> Answer {
    Ok((Vec::new(), None))
}

fn version(payload: &[u8]) -> Result<Vec<u8>, Refused> {
    let [a, b, ..] = words::<1>(payload).ok_or(Refused::Length)?[0].to_le_bytes();
    let major = u16::from_le_bytes([a, b]);
    if major != MAJOR {
        return Err(Refused::MajorVersion(major));
    }
    // The client's capabilities do not matter here: a reply carries at most one descriptor, and
    // never more data than was asked for.
    let mut reply = Vec::with_capacity(4 + CAPABILITIES.len());
    reply.extend(MAJOR.to_le_bytes());
    reply.extend(MINOR.to_le_bytes());
    if 4 + CAPABILITIES.len() <= payload.len() {
        reply.extend(CAPABILITIES);
    }
    Ok(reply)
}

fn region_info(payload: &[u8], device: &VhostPci) -> Answer {
    // argsz, flags, index, cap_offset, size, offset
    let [room, _, index, ..] = words::<8>(payload).ok_or(Refused::Length)?;
    if room < REGION_INFO_LEN {
        return Err(Refused::Length);
    }
    let Region { len, mapped } = usize::try_from(index)
        .ok()
        .and_then(|index| device.region(index))
        .ok_or(Refused::NoRegion(index))?;
    let [len_low, len_high] = split(len);
    let Some((fd, mapped_len)) = mapped else {
        let flags = if len == 0 { 0 } else { REGION_READ_WRITE };
        let info = [REGION_INFO_LEN, flags, index, 0, len_low, len_high, 0, 0];
        return Ok((bytes(&info), None));
    };
    let flags = REGION_READ_WRITE | REGION_MMAP | REGION_CAPS;
    let full = REGION_INFO_LEN + SPARSE_LEN;
    let cap_offset = REGION_INFO_LEN;
    let mut info = bytes(&[full, flags, index, cap_offset, len_low, len_high, 0, 0]);
    if room >= full {
        // One area: the file, from the beginning of the region.
        let [mapped_low, mapped_high] = split(mapped_len);
        let areas = 1;
        info.extend(bytes(&[SPARSE_ID_AND_VERSION, 0, areas, 0]));
        info.extend(bytes(&[0, 0, mapped_low, mapped_high]));
    }
    Ok((info, Some(fd)))
}

fn irq_info(payload: &[u8], device: &VhostPci) -> Answer {
    // argsz, flags, index, count
    let [_, _, index, _] = words(payload).ok_or(Refused::Length)?;
    let (flags, count) = match index {
        IRQ_MSI => (IRQ_EVENTFD, device.offered_vectors()),
        _ if index < IRQS => (0, 0),
        _ => return Err(Refused::Interrupt),
    };
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Ok((bytes(&[IRQ_INFO_LEN, flags, index, count]), None))
}

fn set_irqs(payload: &[u8], fds: Vec<KeptFd>, device: &mut VhostPci) -> Answer {
    const DISABLE: u32 = SET_DATA_NONE | SET_TRIGGER;
    const ASSIGN: u32 = SET_DATA_EVENTFD | SET_TRIGGER;
    // argsz, flags, index, start, count
    let [_, flags, index, start, count] = words(payload).ok_or(Refused::Length)?;
    match (index, flags, count) {
        (IRQ_MSI, DISABLE, 0) => device.release_vectors(),
        (IRQ_MSI, ASSIGN, _) => {
            let start = usize::try_from(start).map_err(|_| Refused::Interrupt)?;
            let count = usize::try_from(count).map_err(|_| Refused::Interrupt)?;
            device.assign_vectors(start, count, fds)?;
        }
        // Disabling what does not exist.
        (_, DISABLE, 0) if index < IRQS => {}
        _ => return Err(Refused::Interrupt),
    }
    done()
}

/// Offset, region and byte count of a REGION_READ or REGION_WRITE.
fn region_access(payload: &[u8]) -> Result<(u64, u32, usize), Refused> {
    let [low, high, region, count] = words(payload).ok_or(Refused::Length)?;
    let count = usize::try_from(count).map_err(|_| Refused::Length)?;
    if count > MAX_DATA {
        return Err(Refused::Length);
    }
    Ok((join(low, high), region, count))
}

fn region_read(payload: &[u8], device: &VhostPci) -> Answer {
    let (offset, region, count) = region_access(payload)?;
    let index = usize::try_from(region).map_err(|_| Refused::NoRegion(region))?;
    let mut reply = payload[..REGION_ACCESS_LEN].to_vec();
    reply.resize(REGION_ACCESS_LEN + count, 0);
    device.region_read(index, offset, &mut reply[REGION_ACCESS_LEN..])?;
    Ok((reply, None))
}

fn region_write(payload: &[u8], device: &mut VhostPci) -> Answer {
    let (offset, region, count) = region_access(payload)?;
    let index = usize::try_from(region).map_err(|_| Refused::NoRegion(region))?;
    let data = payload.get(REGION_ACCESS_LEN..).unwrap_or_default();
    if data.len() != count {
        return Err(Refused::Length);
    }
    device.region_write(index, offset, data)?;
    Ok((payload[..REGION_ACCESS_LEN].to_vec(), None))
}
