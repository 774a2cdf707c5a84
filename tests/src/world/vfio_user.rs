//! A vfio-user client: the messages of the storage VM's QEMU, one function each.

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::readiness::readable;

/// Message codes of the vfio-user protocol.
mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
}

/// The region of PCI config space.
pub const CONFIG_REGION: u32 = 7;
/// The interrupt index of MSI.
pub const MSI: u32 = 1;
/// The interrupt index of errors.
pub const ERR: u32 = 3;

/// Region flags.
pub mod region_flag {
    /// The region may be mapped.
    pub const MMAP: u32 = 1 << 2;
    /// Capabilities follow.
    pub const CAPS: u32 = 1 << 3;
}

const HEADER_LEN: usize = 16;
const FLAG_REPLY: u32 = 1;
const FLAG_ERROR: u32 = 1 << 5;
/// QEMU's limit for one message (`x-msg-timeout`).
const PATIENCE: Duration = Duration::from_secs(5);
/// What QEMU proposes (seen with 11.1).
const PROPOSAL: &str = r#"{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,"migration":{"max_bitmap_size":268435456,"pgsize":4096},"write_multiple":true}}"#;

/// One region of the device.
#[derive(Debug)]
pub struct RegionInfo {
    /// See `region_flag`.
    pub flags: u32,
    /// Length in bytes.
    pub len: u64,
    /// Offset of its first byte in the file that came along.
    pub offset: u64,
    /// What to map.
    pub fd: Option<OwnedFd>,
    /// Mappable areas (offset, length): those of the sparse capability, or all of it.
    pub areas: Vec<(u64, u64)>,
}

/// The device as GET_INFO describes it.
#[derive(Debug, Clone, Copy)]
pub struct DeviceInfo {
    /// PCI (2), RESET (1).
    pub flags: u32,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt indices.
    pub irqs: u32,
}

/// One vfio-user connection; every call waits for its reply, as QEMU does under its big lock.
pub struct VfioUser {
    stream: UnixStream,
    next_id: u16,
    max_fds: usize,
}

impl VfioUser {
    /// Connects: VERSION with QEMU's proposal.
    ///
    /// # Errors
    /// The server refused, or answered what QEMU would not accept.
    pub fn connect(stream: UnixStream) -> io::Result<Self> {
        let mut client = Self {
            stream,
            next_id: 0,
            max_fds: 8,
        };
        let mut payload = vec![0; 4];
        payload.extend(PROPOSAL.as_bytes());
        payload.push(0);
        let (reply, _) = client.call(command::VERSION, &payload, &[])?;
        if reply.get(..4) != Some(&[0; 4]) {
            return Err(wrong(format!("VERSION {:?}, not 0.0", reply.get(..4))));
        }
        if let [json @ .., 0] = &reply[4..] {
            let answer: serde_json::Value = serde_json::from_slice(json)?;
            let fds = &answer["capabilities"]["max_msg_fds"];
            if let Some(fds) = fds.as_u64() {
                if !(1..=16).contains(&fds) {
                    return Err(wrong(format!("max_msg_fds {fds}")));
                }
                client.max_fds = usize::try_from(fds).map_err(wrong)?;
            }
        } else if reply.len() > 4 {
            return Err(wrong("VERSION without a NUL at its end"));
        }
        Ok(client)
    }

    /// A burst of DMA_MAPs of (address, length): all sent before the first reply is read, as QEMU
    /// does at realize.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn dma_map(&mut self, ranges: &[(u64, u64)]) -> io::Result<()> {
        let mut ids = Vec::new();
        for (address, len) in ranges {
            let mut payload = words(&[32, 3]);
            for field in [&0, address, len] {
                payload.extend(field.to_le_bytes());
            }
            ids.push(self.send(command::DMA_MAP, &payload, &[])?);
        }
        for id in ids {
            self.receive(id, command::DMA_MAP)?;
        }
        Ok(())
    }

    /// DMA_UNMAP.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn dma_unmap(&mut self, address: u64, len: u64) -> io::Result<()> {
        let mut payload = words(&[24, 0]);
        for field in [address, len] {
            payload.extend(field.to_le_bytes());
        }
        self.call(command::DMA_UNMAP, &payload, &[]).map(|_| ())
    }

    /// DEVICE_GET_INFO.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn info(&mut self) -> io::Result<DeviceInfo> {
        let (reply, _) = self.call(command::GET_INFO, &words(&[16, 0, 0, 0]), &[])?;
        Ok(DeviceInfo {
            flags: word(&reply, 4)?,
            regions: word(&reply, 8)?,
            irqs: word(&reply, 12)?,
        })
    }

    /// DEVICE_GET_REGION_INFO, again with more room if the reply asks for it.
    ///
    /// # Errors
    /// The server refused, is gone, or broke a rule that QEMU holds it to.
    pub fn region(&mut self, index: u32) -> io::Result<RegionInfo> {
        let (mut reply, mut file) = self.region_reply(index, 32)?;
        let argsz = word(&reply, 0)?;
        if argsz < 32 {
            return Err(wrong(format!("region {index}: argsz {argsz}")));
        }
        if argsz > 32 {
            if word(&reply, 4)? & region_flag::MMAP != 0 && file.is_none() {
                return Err(wrong(format!("region {index}: short reply without fd")));
            }
            (reply, file) = self.region_reply(index, argsz)?;
        }
        let flags = word(&reply, 4)?;
        let len = long(&reply, 16)?;
        let mut areas = vec![(0, len)];
        if flags & region_flag::CAPS != 0 {
            areas = sparse_areas(&reply, word(&reply, 12)?)?;
        }
        if index != CONFIG_REGION && len != 0 && !len.is_power_of_two() {
            return Err(wrong(format!("region {index}: {len} bytes crash QEMU")));
        }
        Ok(RegionInfo {
            flags,
            len,
            offset: long(&reply, 24)?,
            fd: file.map(OwnedFd::from),
            areas,
        })
    }

    /// DEVICE_GET_IRQ_INFO: how many interrupts `index` has.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn irq_count(&mut self, index: u32) -> io::Result<u32> {
        let (reply, _) = self.call(command::GET_IRQ_INFO, &words(&[16, 0, index, 0]), &[])?;
        word(&reply, 12)
    }

    /// Gives eventfds to the interrupts of `index` from 0, in as many messages as it takes.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn set_irqs(&mut self, index: u32, fds: &[&EventFd]) -> io::Result<()> {
        const DATA_EVENTFD_TRIGGER: u32 = 1 << 2 | 1 << 5;
        let mut start = 0;
        for chunk in fds.chunks(self.max_fds) {
            let count = u32::try_from(chunk.len()).map_err(wrong)?;
            let raw: Vec<_> = chunk.iter().map(|fd| fd.as_raw_fd()).collect();
            let payload = words(&[20, DATA_EVENTFD_TRIGGER, index, start, count]);
            self.call(command::SET_IRQS, &payload, &raw)?;
            start += count;
        }
        Ok(())
    }

    /// Takes all eventfds of `index` away.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn clear_irqs(&mut self, index: u32) -> io::Result<()> {
        const DATA_NONE_TRIGGER: u32 = 1 << 0 | 1 << 5;
        let payload = words(&[20, DATA_NONE_TRIGGER, index, 0, 0]);
        self.call(command::SET_IRQS, &payload, &[]).map(|_| ())
    }

    /// REGION_READ.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn read(&mut self, region: u32, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        let mut payload = offset.to_le_bytes().to_vec();
        payload.extend(words(&[region, len]));
        let (reply, _) = self.call(command::REGION_READ, &payload, &[])?;
        let data = reply.get(16..).unwrap_or_default();
        if data.len() != len as usize {
            return Err(wrong(format!(
                "{} bytes read in place of {len}",
                data.len()
            )));
        }
        Ok(data.to_vec())
    }

    /// REGION_WRITE.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut payload = offset.to_le_bytes().to_vec();
        payload.extend(words(&[region, u32::try_from(data.len()).map_err(wrong)?]));
        payload.extend(data);
        self.call(command::REGION_WRITE, &payload, &[]).map(|_| ())
    }

    /// DEVICE_RESET.
    ///
    /// # Errors
    /// The server refused, or is gone.
    pub fn reset(&mut self) -> io::Result<()> {
        self.call(command::RESET, &[], &[]).map(|_| ())
    }

    /// Hangs up, whoever else holds this client.
    ///
    /// # Errors
    /// The connection was gone already.
    pub fn close(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Both)
    }

    fn region_reply(&mut self, index: u32, argsz: u32) -> io::Result<(Vec<u8>, Option<File>)> {
        let mut payload = words(&[argsz, 0, index, 0]);
        payload.extend([0; 16]);
        let (reply, file) = self.call(command::GET_REGION_INFO, &payload, &[])?;
        if reply.len() > argsz as usize {
            return Err(wrong(format!("region {index}: reply larger than its room")));
        }
        Ok((reply, file))
    }

    fn call(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: &[RawFd],
    ) -> io::Result<(Vec<u8>, Option<File>)> {
        let id = self.send(command, payload, fds)?;
        self.receive(id, command)
    }

    fn send(&mut self, command: u16, payload: &[u8], fds: &[RawFd]) -> io::Result<u16> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let len = u32::try_from(HEADER_LEN + payload.len()).map_err(wrong)?;
        let mut message = Vec::with_capacity(HEADER_LEN + payload.len());
        message.extend(id.to_le_bytes());
        message.extend(command.to_le_bytes());
        message.extend(words(&[len, 0, 0]));
        message.extend(payload);
        let sent = if fds.is_empty() {
            0
        } else {
            self.stream.send_with_fds(&[&message[..]], fds)?
        };
        (&self.stream).write_all(&message[sent..])?;
        Ok(id)
    }

    fn receive(&mut self, id: u16, command: u16) -> io::Result<(Vec<u8>, Option<File>)> {
        let mut header = [0; HEADER_LEN];
        let file = self.fill(&mut header)?;
        let got = (
            u16::from_le_bytes([header[0], header[1]]),
            u16::from_le_bytes([header[2], header[3]]),
        );
        let (len, flags) = (word(&header, 4)?, word(&header, 8)?);
        if got != (id, command) || flags & 0xf != FLAG_REPLY {
            return Err(wrong(format!(
                "{got:?} with flags {flags:#x} is no reply to {:?}",
                (id, command)
            )));
        }
        let len = (len as usize)
            .checked_sub(HEADER_LEN)
            .ok_or_else(|| wrong("a reply shorter than its header"))?;
        let mut payload = vec![0; len];
        self.fill(&mut payload)?;
        if flags & FLAG_ERROR != 0 {
            let errno = i32::try_from(word(&header, 12)?).map_err(wrong)?;
            if errno == 0 {
                return Err(wrong(
                    "an error reply with errno 0, which QEMU takes for success",
                ));
            }
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok((payload, file))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<Option<File>> {
        let mut done = 0;
        let mut kept = None;
        while done < bytes.len() {
            if !readable(&self.stream, PATIENCE)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let (n, file) = self.stream.recv_with_fd(&mut bytes[done..])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += n;
            kept = file.or(kept);
        }
        Ok(kept)
    }
}

/// The areas of the sparse-mmap capability (VFIO's id 1) in a region reply.
fn sparse_areas(reply: &[u8], mut at: u32) -> io::Result<Vec<(u64, u64)>> {
    while at != 0 {
        let here = at as usize;
        let id = word(reply, here)? & 0xffff;
        if id == 1 {
            return (0..word(reply, here + 8)? as usize)
                .map(|i| {
                    Ok((
                        long(reply, here + 16 + 16 * i)?,
                        long(reply, here + 24 + 16 * i)?,
                    ))
                })
                .collect();
        }
        at = word(reply, here + 4)?;
    }
    Err(wrong("capabilities, but no sparse areas"))
}

fn wrong(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok())
        .map(u32::from_le_bytes)
        .ok_or_else(|| wrong("a reply that is too short"))
}

fn long(bytes: &[u8], at: usize) -> io::Result<u64> {
    Ok(u64::from(word(bytes, at)?) | u64::from(word(bytes, at + 4)?) << 32)
}
