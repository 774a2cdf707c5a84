//! The tenant's SCSI driver on one request queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use spec::virtio_scsi::{CDB_LEN, RequestHeader, Response, response};

use super::ring::{Buffer, DriverRing, Used};
use super::tenant_memory::TenantMemory;
pub use crate::versions::BLOCK;

/// How long a command may take; World has no slow disks unless a test makes one.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often a command is repeated after a unit attention. Linux does not count these for reads
/// and writes, it only limits their time; more of them than a test restarts things is an error.
const RETRIES: usize = 20;
/// Largest piece of a data buffer, as Linux's bio vectors rarely exceed it.
const PIECE: usize = 32 << 10;
/// What fresh buffers are filled with, so that a byte nobody wrote is seen.
pub const POISON: u8 = 0xee;

/// LUN `lun` of target 0 in SAM's flat form (virtio 1.3 §5.6.6.1).
pub fn address(lun: u16) -> [u8; 8] {
    address_at(0, lun)
}

/// LUN `lun` of target `target` in SAM's flat form.
pub fn address_at(target: u8, lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    [1, target, 0x40 | high, low, 0, 0, 0, 0]
}

/// A command to be sent.
#[derive(Debug, Clone)]
pub struct Command {
    /// The LUN field of the header.
    pub lun: [u8; 8],
    /// The CDB, zero-padded to [`CDB_LEN`] bytes.
    pub cdb: Vec<u8>,
    /// Bytes for the device.
    pub data_out: Vec<u8>,
    /// Room for bytes of the device.
    pub data_in: usize,
    /// Bytes of protection information with which data-out and data-in begin, as the header says
    /// if T10_PI is negotiated.
    pub tags: [u32; 2],
    /// Largest piece of a data buffer.
    pub piece: usize,
}

impl Command {
    /// A command without data.
    pub fn new(lun: u16, cdb: &[u8]) -> Self {
        Self {
            lun: address(lun),
            cdb: cdb.to_vec(),
            data_out: Vec::new(),
            data_in: 0,
            tags: [0; 2],
            piece: PIECE,
        }
    }

    /// For what this LUN field addresses.
    pub fn at(mut self, lun: [u8; 8]) -> Self {
        self.lun = lun;
        self
    }

    /// With room for `len` bytes of the device.
    pub fn data_in(mut self, len: usize) -> Self {
        self.data_in = len;
        self
    }

    /// With `bytes` for the device.
    pub fn data_out(mut self, bytes: &[u8]) -> Self {
        self.data_out = bytes.to_vec();
        self
    }

    /// With buffers that begin with so many bytes of protection information.
    pub fn tags(mut self, out: u32, back: u32) -> Self {
        self.tags = [out, back];
        self
    }

    /// With data buffers in pieces of at most `len` bytes.
    pub fn pieces(mut self, len: usize) -> Self {
        self.piece = len;
        self
    }
}

/// A request header for LUN `lun` with tag 0.
pub fn header_bytes(lun: u16, cdb: &[u8]) -> [u8; RequestHeader::LEN] {
    let mut header = RequestHeader {
        lun: address(lun),
        tag: 0,
        task_attribute: 0,
        cdb: [0; CDB_LEN],
    };
    header.cdb[..cdb.len()].copy_from_slice(cdb);
    header.to_bytes()
}

/// READ(10) (SBC-4 §5.11).
pub fn read10(lba: u32, blocks: u16) -> [u8; 10] {
    rw10(0x28, lba, blocks)
}

/// WRITE(10) (SBC-4 §5.40).
pub fn write10(lba: u32, blocks: u16) -> [u8; 10] {
    rw10(0x2a, lba, blocks)
}

/// READ(16) (SBC-4 §5.13).
pub fn read16(lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x88;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn rw10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The response header.
    pub response: Response,
    /// The whole room for data-in, [`POISON`] where the device wrote nothing.
    pub data: Vec<u8>,
    /// Bytes written, as the used element says.
    pub used_len: u32,
}

/// A command that did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The device never answered.
    #[error("no completion in time")]
    Timeout,
    /// virtio-scsi says that the command was not delivered.
    #[error("virtio-scsi response {0}")]
    Response(u8),
    /// CHECK CONDITION.
    #[error("sense {key:#x}/{asc:#x}/{ascq:#x}")]
    Sense {
        /// Sense key.
        key: u8,
        /// Additional sense code.
        asc: u8,
        /// Additional sense code qualifier.
        ascq: u8,
    },
    /// Any other SAM status.
    #[error("SCSI status {0:#x}")]
    Status(u8),
}

impl Outcome {
    /// The data, unless the command failed.
    ///
    /// # Errors
    /// Why it failed.
    pub fn good(self) -> Result<Vec<u8>, Failure> {
        let Response {
            response: code,
            status,
            sense,
            ..
        } = self.response;
        match (code, status) {
            (response::OK, 0) => Ok(self.data),
            (response::OK, 2) => {
                // SPC-5 §4.4: fixed format 70h, descriptor format 72h.
                let (key, asc, ascq) = if sense[0] & 0x7f >= 0x72 {
                    (sense[1], sense[2], sense[3])
                } else {
                    (sense[2], sense[12], sense[13])
                };
                Err(Failure::Sense {
                    key: key & 0xf,
                    asc,
                    ascq,
                })
            }
            (response::OK, status) => Err(Failure::Status(status)),
            (code, _) => Err(Failure::Response(code)),
        }
    }
}

/// A command in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Task(u64);

impl Task {
    /// Its tag.
    pub fn tag(self) -> u64 {
        self.0
    }
}

/// Where the parts of a command in flight are.
struct Pending {
    task: Task,
    /// With its length.
    header: (u64, u64),
    response: u64,
    data: Vec<Buffer>,
    data_in: usize,
}

/// The tenant's driver on one request queue.
pub struct Initiator {
    /// The ring, for what an honest driver would not do.
    pub ring: DriverRing,
    memory: Arc<TenantMemory>,
    pending: HashMap<u16, Pending>,
    done: HashMap<Task, Outcome>,
    next_tag: u64,
    /// Whether requests use indirect tables.
    pub indirect: bool,
    /// Whether headers have lengths of protection information.
    pub tagged: bool,
    /// The regions of tenant memory that data buffers are taken from, in turn.
    pub data_regions: Vec<usize>,
}

impl Initiator {
    /// A driver on `ring`.
    pub fn new(memory: &Arc<TenantMemory>, ring: DriverRing) -> Self {
        Self {
            ring,
            memory: memory.clone(),
            pending: HashMap::new(),
            done: HashMap::new(),
            next_tag: 1,
            indirect: false,
            tagged: false,
            data_regions: vec![0],
        }
    }

    /// Forgets what is in flight, as a driver does after a device reset.
    pub fn reset(&mut self) {
        self.ring.reset();
        self.pending.clear();
        self.done.clear();
    }

    /// The tenant's RAM.
    pub fn memory(&self) -> &Arc<TenantMemory> {
        &self.memory
    }

    /// Makes a command available without telling the device.
    pub fn add(&mut self, command: &Command) -> Task {
        let tag = self.next_tag;
        self.next_tag += 1;
        let mut cdb = [0; CDB_LEN];
        cdb[..command.cdb.len()].copy_from_slice(&command.cdb);
        let header = RequestHeader {
            lun: command.lun,
            tag,
            task_attribute: 0,
            cdb,
        };
        let header = if self.tagged {
            header.to_tagged_bytes(command.tags).to_vec()
        } else {
            header.to_bytes().to_vec()
        };
        let header_len = header.len();
        let header_at = self.memory.allocate(0, header_len as u64);
        self.memory.write(header_at, &header);
        let response_at = self.memory.allocate(0, Response::LEN as u64);
        self.memory.write(response_at, &[POISON; Response::LEN]);

        let mut data = Vec::new();
        for bytes in command.data_out.chunks(command.piece) {
            let gpa = self.data_buffer(data.len(), bytes.len());
            self.memory.write(gpa, bytes);
            data.push(Buffer::readable(gpa, len32(bytes.len())));
        }
        for at in (0..command.data_in).step_by(command.piece) {
            let len = command.piece.min(command.data_in - at);
            let gpa = self.data_buffer(data.len(), len);
            self.memory.write(gpa, &vec![POISON; len]);
            data.push(Buffer::writable(gpa, len32(len)));
        }
        let mut chain = vec![Buffer::readable(header_at, len32(header_len))];
        chain.extend(data.iter().filter(|buffer| !buffer.writable));
        chain.push(Buffer::writable(response_at, len32(Response::LEN)));
        chain.extend(data.iter().filter(|buffer| buffer.writable));
        let head = self.ring.add(&chain, self.indirect.then_some(0));
        let task = Task(tag);
        let pending = Pending {
            task,
            header: (header_at, header_len as u64),
            response: response_at,
            data,
            data_in: command.data_in,
        };
        assert!(self.pending.insert(head, pending).is_none());
        task
    }

    /// Sends a command without waiting.
    pub fn submit(&mut self, command: &Command) -> Task {
        let task = self.add(command);
        self.ring.kick_if_wanted();
        task
    }

    /// Where the device may write data-in of a command in flight: addresses and lengths.
    pub fn room_of(&self, task: Task) -> Vec<(u64, usize)> {
        let of_task = self.pending.values().filter(|pending| pending.task == task);
        of_task
            .flat_map(|pending| &pending.data)
            .filter(|buffer| buffer.writable)
            .map(|buffer| (buffer.gpa, buffer.len as usize))
            .collect()
    }

    /// Waits for a command that was sent.
    ///
    /// # Errors
    /// [`Failure::Timeout`] after `timeout`.
    pub fn wait_for(&mut self, task: Task, timeout: Duration) -> Result<Outcome, Failure> {
        loop {
            if let Some(outcome) = self.done.remove(&task) {
                return Ok(outcome);
            }
            let used = self.ring.take_used(timeout).ok_or(Failure::Timeout)?;
            self.complete(used);
        }
    }

    /// Waits for a command that was sent, looking at memory and never at interrupts.
    ///
    /// # Errors
    /// [`Failure::Timeout`] after `timeout`.
    pub fn poll_for(&mut self, task: Task, timeout: Duration) -> Result<Outcome, Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(outcome) = self.done.remove(&task) {
                return Ok(outcome);
            }
            if let Some(used) = self.ring.poll_used() {
                self.complete(used);
            } else if Instant::now() > deadline {
                return Err(Failure::Timeout);
            } else {
                thread::yield_now();
            }
        }
    }

    /// Sends a command and waits for it.
    ///
    /// # Errors
    /// [`Failure::Timeout`].
    pub fn command(&mut self, command: &Command) -> Result<Outcome, Failure> {
        let task = self.submit(command);
        self.wait_for(task, PATIENCE)
    }

    /// Sends a command and waits for it; again while a unit attention comes in its place, as one
    /// does after each reset (SAM-6 §5.14).
    ///
    /// # Errors
    /// Why it failed.
    pub fn run(&mut self, command: &Command) -> Result<Vec<u8>, Failure> {
        let mut result = self.command(command)?.good();
        for _ in 0..RETRIES {
            if !matches!(result, Err(Failure::Sense { key: 6, .. })) {
                break;
            }
            result = self.command(command)?.good();
        }
        result
    }

    /// READ(10).
    ///
    /// # Errors
    /// Why it failed.
    pub fn read(&mut self, lun: u16, lba: u32, blocks: u16) -> Result<Vec<u8>, Failure> {
        let len = usize::from(blocks) * BLOCK;
        self.run(&Command::new(lun, &read10(lba, blocks)).data_in(len))
    }

    /// READ(10) into a buffer that begins at `gpa`, in regions that adjoin there.
    ///
    /// # Errors
    /// Why it failed.
    pub fn read_to(
        &mut self,
        lun: u16,
        lba: u32,
        blocks: u16,
        gpa: u64,
    ) -> Result<Vec<u8>, Failure> {
        let len = usize::from(blocks) * BLOCK;
        let header = self.memory.allocate(0, RequestHeader::LEN as u64);
        self.memory
            .write(header, &header_bytes(lun, &read10(lba, blocks)));
        let response = self.memory.allocate(0, Response::LEN as u64);
        let chain = [
            Buffer::readable(header, len32(RequestHeader::LEN)),
            Buffer::writable(response, len32(Response::LEN)),
            Buffer::writable(gpa, len32(len)),
        ];
        let head = self.ring.add(&chain, None);
        let task = Task(0);
        let pending = Pending {
            task,
            header: (header, RequestHeader::LEN as u64),
            response,
            data: Vec::new(),
            data_in: 0,
        };
        self.pending.insert(head, pending);
        self.ring.kick_if_wanted();
        self.wait_for(task, PATIENCE)?.good()?;
        let first = self.memory.left_in_region(gpa).min(len);
        let mut data = self.memory.read(gpa, first);
        if first < len {
            data.extend(self.memory.read(gpa + first as u64, len - first));
        }
        Ok(data)
    }

    /// WRITE(10).
    ///
    /// # Errors
    /// Why it failed.
    ///
    /// # Panics
    /// If `data` is not a whole number of blocks that fits a WRITE(10).
    pub fn write(&mut self, lun: u16, lba: u32, data: &[u8]) -> Result<(), Failure> {
        assert_eq!(data.len() % BLOCK, 0);
        let blocks = u16::try_from(data.len() / BLOCK).expect("a WRITE(10)");
        self.run(&Command::new(lun, &write10(lba, blocks)).data_out(data))
            .map(drop)
    }

    /// SYNCHRONIZE CACHE(10) of the whole LUN.
    ///
    /// # Errors
    /// Why it failed.
    pub fn flush(&mut self, lun: u16) -> Result<(), Failure> {
        self.run(&Command::new(lun, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
            .map(drop)
    }

    /// TEST UNIT READY.
    ///
    /// # Errors
    /// Why it is not.
    pub fn ready(&mut self, lun: u16) -> Result<(), Failure> {
        self.run(&Command::new(lun, &[0; 6])).map(drop)
    }

    /// Standard INQUIRY data.
    ///
    /// # Errors
    /// Why it failed.
    pub fn inquiry(&mut self, lun: u16) -> Result<Vec<u8>, Failure> {
        self.run(&Command::new(lun, &[0x12, 0, 0, 0, 96, 0]).data_in(96))
    }

    /// READ CAPACITY(16): number of blocks and bytes of a block.
    ///
    /// # Errors
    /// Why it failed.
    ///
    /// # Panics
    /// If the answer is shorter than the standard says.
    pub fn capacity(&mut self, lun: u16) -> Result<(u64, u32), Failure> {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
        let data = self.run(&Command::new(lun, &cdb).data_in(32))?;
        let last = u64::from_be_bytes(data[0..8].try_into().expect("8 bytes"));
        let block = u32::from_be_bytes(data[8..12].try_into().expect("4 bytes"));
        Ok((last + 1, block))
    }

    /// The LUNs that REPORT LUNS lists, as virtio addresses them.
    ///
    /// # Errors
    /// Why it failed.
    ///
    /// # Panics
    /// If the answer contradicts itself.
    pub fn report_luns(&mut self) -> Result<Vec<u16>, Failure> {
        let mut cdb = [0; 12];
        cdb[0] = 0xa0;
        cdb[6..10].copy_from_slice(&2048u32.to_be_bytes());
        let data = self.run(&Command::new(0, &cdb).data_in(2048))?;
        let len = u32::from_be_bytes(data[0..4].try_into().expect("4 bytes")) as usize;
        Ok(data[8..8 + len]
            .chunks_exact(8)
            .map(|lun| u16::from_be_bytes([lun[0] & 0x3f, lun[1]]))
            .collect())
    }

    fn complete(&mut self, used: Used) {
        let pending = self
            .pending
            .remove(&used.head)
            .expect("the ring only returns chains in flight");
        let (task, outcome) = self.collect(&pending, used.len);
        self.done.insert(task, outcome);
    }

    fn data_buffer(&self, index: usize, len: usize) -> u64 {
        let region = self.data_regions[index % self.data_regions.len()];
        self.memory.allocate(region, len as u64)
    }

    fn collect(&self, pending: &Pending, used_len: u32) -> (Task, Outcome) {
        let response: [u8; Response::LEN] = self
            .memory
            .read(pending.response, Response::LEN)
            .try_into()
            .expect("a response");
        let mut data = Vec::with_capacity(pending.data_in);
        for buffer in pending.data.iter().filter(|buffer| buffer.writable) {
            data.extend(self.memory.read(buffer.gpa, buffer.len as usize));
        }
        for buffer in &pending.data {
            self.memory.free(buffer.gpa, u64::from(buffer.len));
        }
        let (header, len) = pending.header;
        self.memory.free(header, len);
        self.memory.free(pending.response, Response::LEN as u64);
        let outcome = Outcome {
            response: Response::from_bytes(&response),
            data,
            used_len,
        };
        (pending.task, outcome)
    }
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("buffers are small")
}
