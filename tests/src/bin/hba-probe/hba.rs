//! The driver of a virtio-scsi HBA (virtio 1.3 §5.6), polled.

use std::{
    collections::HashMap,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use spec::ring::VERSION_1;
use spec::virtio_scsi::{
    CDB_LEN, CONTROL_QUEUE, EVENT_QUEUE, FIRST_REQUEST_QUEUE, RequestHeader, Response,
};
use tests::world::{Buffer, Command, Failure, Outcome, POISON};

use crate::dma::{Dma, Span};
use crate::error::{Error, Result};
use crate::ring::{Ring, SIZE};
use crate::transport::{Doorbell, Transport};

/// How long anything may take: the slow disk has up to about a hundred operations to do before.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the rings are looked at. Not without a pause, for the machine's other processors are
/// needed by those who answer.
const PAUSE: Duration = Duration::from_millis(1);
/// How often a command is repeated after a unit attention.
const RETRIES: usize = 8;

/// A request queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// For many commands.
    First,
    /// For those that must not wait behind them in their ring.
    Second,
}

impl Queue {
    fn ring(self) -> u16 {
        match self {
            Self::First => FIRST_REQUEST_QUEUE,
            Self::Second => FIRST_REQUEST_QUEUE + 1,
        }
    }
}

/// A command that was sent.
#[derive(Debug, Clone)]
pub struct Task {
    /// The driver's name for it.
    pub tag: u64,
    header: Span,
    response: Span,
    data: Span,
    data_in: bool,
}

impl Task {
    /// Every buffer of it.
    pub fn buffers(&self) -> [Span; 3] {
        [self.header, self.response, self.data]
    }
}

/// An HBA.
pub struct Hba {
    // First, since its drop ends the device's use of the memory.
    transport: Transport,
    memory: Rc<Dma>,
    /// By number; none while the device is reset.
    rings: Vec<(Ring, Doorbell)>,
    /// Tags of the chains in flight, by ring and head.
    in_flight: HashMap<(usize, u16), u64>,
    /// Bytes written for each tag that is back.
    back: HashMap<u64, u32>,
    last_tag: u64,
}

impl Hba {
    /// The HBA behind `transport`, ready for commands.
    ///
    /// # Errors
    /// It cannot be set up.
    pub fn new(transport: Transport) -> Result<Self> {
        let mut hba = Self {
            transport,
            memory: Rc::new(Dma::new()?),
            rings: Vec::new(),
            in_flight: HashMap::new(),
            back: HashMap::new(),
            last_tag: 0,
        };
        hba.start()?;
        Ok(hba)
    }

    /// The memory that it uses.
    pub fn memory(&self) -> Rc<Dma> {
        Rc::clone(&self.memory)
    }

    /// Resets the device; gives the memory that it had. Nothing can be sent until [`Self::renew`].
    ///
    /// # Errors
    /// The reset does not end.
    pub fn reset(&mut self) -> Result<Rc<Dma>> {
        self.transport.reset()?;
        self.rings.clear();
        self.in_flight.clear();
        self.back.clear();
        Ok(self.memory())
    }

    /// Sets the device up after a reset, with other memory.
    ///
    /// # Errors
    /// It cannot be set up.
    pub fn renew(&mut self) -> Result<()> {
        self.memory = Rc::new(Dma::new()?);
        self.start()
    }

    fn start(&mut self) -> Result<()> {
        self.transport.negotiate(VERSION_1)?;
        for number in [
            CONTROL_QUEUE,
            EVENT_QUEUE,
            Queue::First.ring(),
            Queue::Second.ring(),
        ] {
            let ring = Ring::new(&self.memory);
            let doorbell = self.transport.enable_ring(number, SIZE, ring.addresses())?;
            self.rings.push((ring, doorbell));
        }
        self.transport.driver_ok();
        Ok(())
    }

    /// Sends a command.
    ///
    /// # Panics
    /// If the queue is full, or the command is longer than a CDB.
    pub fn send(&mut self, queue: Queue, command: &Command) -> Task {
        let tag = self.next_tag();
        let mut header = RequestHeader {
            lun: command.lun,
            tag,
            task_attribute: 0,
            cdb: [0; CDB_LEN],
        };
        header.cdb[..command.cdb.len()].copy_from_slice(&command.cdb);
        let data_in = command.data_in > 0;
        let task = Task {
            tag,
            header: self.memory.take(RequestHeader::LEN),
            response: self.memory.take(Response::LEN),
            data: self
                .memory
                .take(command.data_in.max(command.data_out.len())),
            data_in,
        };
        self.memory.write(task.header, &header.to_bytes());
        self.memory.fill(task.response, POISON);
        let mut chain = vec![self.readable(task.header)];
        if !command.data_out.is_empty() {
            self.memory.write(task.data, &command.data_out);
            chain.push(self.readable(task.data));
        }
        chain.push(self.writable(task.response));
        if data_in {
            self.memory.fill(task.data, POISON);
            chain.push(self.writable(task.data));
        }
        self.add(queue.ring(), &chain, tag);
        task
    }

    /// Has a task management function done (virtio 1.3 §5.6.6.2); gives the response byte. The
    /// last look at the rings is then the one that found the answer.
    ///
    /// # Errors
    /// It is never answered, or not by one byte.
    pub fn manage(&mut self, function: u32, lun: [u8; 8], tag: u64) -> Result<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(function.to_le_bytes());
        bytes.extend(lun);
        bytes.extend(tag.to_le_bytes());
        let request = self.memory.take(bytes.len());
        self.memory.write(request, &bytes);
        let response = self.memory.take(1);
        self.memory.fill(response, POISON);
        let name = self.next_tag();
        let chain = [self.readable(request), self.writable(response)];
        self.add(CONTROL_QUEUE, &chain, name);
        if self.await_tag("the answer to a task management function", name)? != 1 {
            return Err(Error::Device("wrote another answer than a byte"));
        }
        Ok(self.memory.read(response)[0])
    }

    /// How a command ended, if it was back at the last look at the rings.
    pub fn outcome(&self, task: &Task) -> Option<Outcome> {
        let used_len = *self.back.get(&task.tag)?;
        let bytes = self.memory.read(task.response);
        let bytes = <&[u8; Response::LEN]>::try_from(bytes.as_slice());
        Some(Outcome {
            response: Response::from_bytes(bytes.expect("the response's length")),
            data: if task.data_in {
                self.memory.read(task.data)
            } else {
                Vec::new()
            },
            used_len,
        })
    }

    /// Waits until a command is back.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait(&mut self, task: &Task) -> Result<Outcome> {
        self.await_tag("the end of a command", task.tag)?;
        self.outcome(task).ok_or(Error::Missing {
            what: "the end of a command",
            after: PATIENCE,
        })
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// Something does not come back.
    pub fn wait_for_all(&mut self) -> Result<()> {
        self.await_that("the end of all commands", |hba| {
            hba.in_flight.is_empty().then_some(())
        })
    }

    /// Sends a command and waits for it, as often as a unit attention comes in its place; gives
    /// its data.
    ///
    /// # Errors
    /// It fails otherwise.
    pub fn run(&mut self, what: &'static str, command: &Command) -> Result<Vec<u8>> {
        let mut result = self.once(command)?;
        for _ in 0..RETRIES {
            if !matches!(result, Err(Failure::Sense { key: 6, .. })) {
                break;
            }
            result = self.once(command)?;
        }
        result.map_err(|source| Error::Command { what, source })
    }

    /// Sends a command and waits for it; how the target took it.
    ///
    /// # Errors
    /// It does not come back.
    pub fn once(&mut self, command: &Command) -> Result<Result<Vec<u8>, Failure>> {
        let task = self.send(Queue::Second, command);
        Ok(self.wait(&task)?.good())
    }

    /// Looks at the rings, and takes what is back. The control queue comes first: what was back
    /// before one of its answers is then seen in the same look.
    pub fn look(&mut self) {
        for (number, (ring, _)) in self.rings.iter_mut().enumerate() {
            while let Some(used) = ring.take_used() {
                if let Some(tag) = self.in_flight.remove(&(number, used.head)) {
                    self.back.insert(tag, used.len);
                }
            }
        }
    }

    fn add(&mut self, number: u16, chain: &[Buffer], tag: u64) {
        let number = usize::from(number);
        let (ring, doorbell) = &mut self.rings[number];
        let head = ring.add(chain);
        self.in_flight.insert((number, head), tag);
        self.transport.ring(*doorbell);
    }

    fn await_tag(&mut self, what: &'static str, tag: u64) -> Result<u32> {
        self.await_that(what, |hba| hba.back.get(&tag).copied())
    }

    fn await_that<T>(
        &mut self,
        what: &'static str,
        mut condition: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.look();
            if let Some(value) = condition(self) {
                return Ok(value);
            }
            if Instant::now() > deadline {
                let after = PATIENCE;
                return Err(Error::Missing { what, after });
            }
            thread::sleep(PAUSE);
        }
    }

    fn next_tag(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    fn readable(&self, span: Span) -> Buffer {
        Buffer::readable(self.memory.address(span), len32(span))
    }

    fn writable(&self, span: Span) -> Buffer {
        Buffer::writable(self.memory.address(span), len32(span))
    }
}

fn len32(span: Span) -> u32 {
    u32::try_from(span.len).expect("a piece of a huge page")
}
