//! A shim that posts anything, with any session memory, registers and interrupts.
//!
//! The appliance answers each request that is one, once; it touches no byte of BAR2 that no table
//! named; it lets the function go when it is told to, with every mapping.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use appliance::memory::Mapping;
use appliance::{Appliance, Config};
use arbitrary::Arbitrary;
use spec::device::{MAGIC, MAGIC_VALUE, MAILBOX_REQUEST};
use spec::inflight;
use spec::mailbox::{Header, Request, RingSetup};
use spec::session::{self, MemoryEntry};

use super::patience::PATIENCE;
use super::scripted::{Scripted, State, good_registers, mapping, memory_file};

/// The HBA of the appliance's configuration.
const UUID: [u8; 16] = [7; 16];
/// Bytes of the tenant's memory, and of BAR2.
const TENANT_LEN: u64 = 256 << 10;
/// What is where no memory is.
const CANARY: u8 = 0xa5;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Registers that are not as they should be from the start.
    registers: Vec<(u8, u32)>,
    vectors: u8,
    #[arbitrary(with = super::counted)]
    content: Vec<u8>,
    #[arbitrary(with = super::until_empty)]
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Post(Asked),
    /// A request slot, and the register.
    Slot {
        sequence: u32,
        operation: u16,
        len: u16,
        register: Option<u32>,
        #[arbitrary(with = super::counted)]
        payload: Vec<u8>,
    },
    Table {
        entries: Vec<(u16, u16, u16)>,
        generation: Option<u8>,
        count: Option<u32>,
        odd: bool,
    },
    Register(u8, u32),
    Scribble {
        at: u32,
        #[arbitrary(with = super::counted)]
        bytes: Vec<u8>,
    },
    Inflight {
        at: u32,
        #[arbitrary(with = super::counted)]
        bytes: Vec<u8>,
    },
    Tenant {
        at: u16,
        #[arbitrary(with = super::counted)]
        bytes: Vec<u8>,
    },
    Offer {
        ring: u8,
        #[arbitrary(with = super::counted)]
        heads: Vec<u8>,
    },
    Fire(u8),
    Fail(bool),
}

#[derive(Debug, Arbitrary)]
enum Asked {
    Features(u64),
    Memory,
    Start {
        ring: u8,
        size: u8,
        place: u8,
        base: Option<u16>,
        /// Its region of in-flight memory, if it is tracked.
        region: Option<u8>,
    },
    Stop(u8),
    Reset,
    Disconnect,
}

/// The appliance, the same for all runs.
fn appliance() -> &'static Appliance {
    static APPLIANCE: OnceLock<Appliance> = OnceLock::new();
    let make = || {
        let image = tempfile::NamedTempFile::new().expect("an image");
        image.as_file().set_len(1 << 20).expect("a longer image");
        let uuid = uuid::Uuid::from_bytes(UUID);
        let text = format!(
            "name = \"fuzz\"\n[[lun]]\nname = \"root\"\npath = {:?}\ncache = \"write-back\"\n\
             [[hba]]\nname = \"hba\"\nuuid = \"{uuid}\"\nluns = {{ \"0\" = \"root\" }}\n",
            image.path()
        );
        let config = Config::parse(&text, "fuzz.toml".as_ref()).expect("a good configuration");
        // It keeps the image open, which needs no name any more.
        Appliance::new(config).expect("an appliance")
    };
    APPLIANCE.get_or_init(make)
}

/// The shim's side of the function.
struct Shim {
    function: Arc<Scripted>,
    session: Mapping,
    inflight: Mapping,
    tenant: Mapping,
    sequence: u32,
    generation: u32,
    /// Bytes that some table named.
    allowed: Vec<bool>,
    /// A table was scribbled over, so that nobody knows what it names.
    is_lost: bool,
}

pub(super) fn run(bytes: &[u8]) {
    let Some(input) = super::parse::<Input>(bytes) else {
        return;
    };
    let [session, inflight, tenant] = [session::LEN, inflight::LEN, TENANT_LEN].map(memory_file);
    let mut shim = Shim {
        session: mapping(&session),
        tenant: mapping(&tenant),
        inflight: mapping(&inflight),
        function: Scripted::new(session, inflight, tenant),
        sequence: 0,
        generation: 0,
        allowed: vec![false; usize::try_from(TENANT_LEN).expect("it is small")],
        is_lost: false,
    };
    shim.tenant.write(0, &vec![CANARY; shim.tenant.len()]);
    shim.power_on(&input);
    if let Ok(attachment) = appliance().attach(shim.function.clone()) {
        for step in input.steps.into_iter().take(60) {
            shim.step(step, &input.content);
        }
        let begun = Instant::now();
        // The end of a worker whose function failed is an error, and none of ours.
        let _ = attachment.detach();
        assert!(begun.elapsed() < PATIENCE, "the function is not let go");
    }
    assert_eq!(
        Arc::strong_count(&shim.function.mapped),
        1,
        "a mapping stays behind"
    );
    assert_eq!(Arc::strong_count(&shim.function), 1, "the function is held");
    shim.check();
}

impl Shim {
    fn power_on(&self, input: &Input) {
        let mut state = self.function.state();
        state.granted = usize::from(input.vectors % 33);
        state.registers.extend(good_registers(UUID));
        for &(register, value) in input.registers.iter().take(4) {
            state.registers.insert(u64::from(register % 24) * 4, value);
        }
    }

    fn step(&mut self, step: Step, content: &[u8]) {
        match step {
            Step::Post(asked) => self.post(&asked),
            Step::Slot {
                sequence,
                operation,
                len,
                register,
                payload,
            } => {
                let header = Header {
                    sequence,
                    operation: operation.into(),
                    len: len.into(),
                    status: 0,
                };
                self.write_session(session::MAILBOX_REQUEST, &header.to_bytes());
                let payload = &payload[..payload.len().min(4080)];
                self.write_session(session::MAILBOX_REQUEST + 16, payload);
                self.function
                    .set(MAILBOX_REQUEST, register.unwrap_or(sequence));
                self.function.fire(0);
            }
            Step::Table {
                entries,
                generation,
                count,
                odd,
            } => self.publish(&entries, generation, count, odd, content),
            Step::Register(register, value) => {
                self.function.set(u64::from(register % 24) * 4, value)
            }
            Step::Scribble { at, bytes } => {
                let at = u64::from(at) % session::LEN;
                let end = at + bytes.len() as u64;
                let table_end = session::memory_entry(session::MEMORY_SLOTS);
                self.is_lost |= at < table_end && session::MEMORY_TABLE < end;
                self.write_session(at, &bytes);
            }
            Step::Inflight { at, bytes } => {
                let at = usize::try_from(u64::from(at) % inflight::LEN).expect("1 MiB");
                let len = bytes.len().min(self.inflight.len() - at);
                self.inflight.write(at, &bytes[..len]);
            }
            Step::Tenant { at, bytes } => self.write_tenant(at.into(), &bytes),
            Step::Offer { ring, heads } => self.offer(ring, &heads),
            Step::Fire(vector) => self.function.fire(vector.into()),
            Step::Fail(fails) => self.function.state().fails = fails,
        }
    }

    /// Posts a request as the shim does, and waits for its reply.
    fn post(&mut self, asked: &Asked) {
        let request = match *asked {
            Asked::Features(features) => Request::SetFeatures { features },
            Asked::Memory => Request::SetMemory {
                generation: self.generation,
            },
            Asked::Start {
                ring,
                size,
                place,
                base,
                region,
            } => {
                let at = u64::from(place) << 8;
                Request::StartRing(RingSetup {
                    ring: ring.into(),
                    size: 1 << (size % 9),
                    base,
                    inflight: region.map(|region| u32::from(region) << 8),
                    descriptor_table: at,
                    avail_ring: at + 0x1000,
                    used_ring: at + 0x1400,
                })
            }
            Asked::Stop(ring) => Request::StopRing { ring: ring.into() },
            Asked::Reset => Request::Reset,
            Asked::Disconnect => Request::Disconnect,
        };
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let payload = request.payload();
        let header = Header {
            sequence: self.sequence,
            operation: request.operation(),
            len: u32::try_from(payload.len()).expect("a short payload"),
            status: 0,
        };
        let before = self.function.state().replies.len();
        let is_new = {
            let state = self.function.state();
            state.registers.get(&MAILBOX_REQUEST) != Some(&self.sequence)
        };
        self.write_session(session::MAILBOX_REQUEST, &header.to_bytes());
        self.write_session(session::MAILBOX_REQUEST + 16, &payload);
        self.function.set(MAILBOX_REQUEST, self.sequence);
        self.function.fire(0);
        let begun = Instant::now();
        // Of one whose function has gone, or that was dropped, nothing is to be expected.
        let is_heard = |state: &State| {
            !state.fails
                && !state.vectors.is_empty()
                && state.registers.get(&MAGIC) == Some(&MAGIC_VALUE)
        };
        if !is_new || !is_heard(&self.function.state()) || self.is_over() {
            return;
        }
        while self.function.state().replies.len() == before {
            if self.is_over() || !is_heard(&self.function.state()) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "no reply to {request:?}");
            thread::sleep(Duration::from_micros(50));
        }
        let mut slot = [0; 16];
        self.session.read(0x2000, &mut slot);
        let reply = Header::from_bytes(&slot).expect("16 bytes");
        let answered = self.function.state().replies[before..].to_vec();
        // A slot that the fuzzer made before may have been answered in between.
        if answered == [self.sequence] {
            assert_eq!(reply.sequence, header.sequence);
            assert_eq!(reply.operation, header.operation);
        }
    }

    /// Whether the worker has ended by itself: it holds no mapping any more.
    fn is_over(&self) -> bool {
        Arc::strong_count(&self.function.mapped) == 1
    }

    fn publish(
        &mut self,
        entries: &[(u16, u16, u16)],
        generation: Option<u8>,
        count: Option<u32>,
        odd: bool,
        content: &[u8],
    ) {
        let entries: Vec<_> = entries.iter().take(session::MEMORY_SLOTS).collect();
        for (n, &&(at, len, offset)) in entries.iter().enumerate() {
            let entry = MemoryEntry {
                guest_address: u64::from(at) << 8,
                len: u64::from(len) << 4,
                bar_offset: u64::from(offset) << 8,
            };
            self.write_session(session::memory_entry(n), &entry.to_bytes());
            // What an earlier or a later table says may be taken up with this one's entries, so
            // all of them are memory from now on; and filled with what a driver could have put.
            let start = usize::try_from(entry.bar_offset).expect("checked");
            let end = (start + usize::try_from(entry.len).expect("checked")).min(self.tenant.len());
            for at in start..end {
                if !self.allowed[at] {
                    self.allowed[at] = true;
                    let byte = content.get(at % content.len().max(1)).copied();
                    self.tenant.write(at, &[byte.unwrap_or(0)]);
                }
            }
        }
        let named = u32::try_from(entries.len()).expect("at most 512");
        self.generation = generation.map_or(self.generation.wrapping_add(1), u32::from);
        self.write_session(session::MEMORY_COUNT, &count.unwrap_or(named).to_le_bytes());
        self.write_session(session::MEMORY_GENERATION, &self.generation.to_le_bytes());
        self.write_session(session::MEMORY_SEQUENCE, &u32::from(odd).to_le_bytes());
    }

    /// Makes descriptors available on a ring that stands where [`Asked::Start`] puts it.
    fn offer(&self, place: u8, heads: &[u8]) {
        let avail = (usize::from(place) << 8) + 0x1000;
        for (n, head) in heads.iter().take(64).enumerate() {
            self.write_tenant(avail + 4 + 2 * n, &u16::from(*head).to_le_bytes());
        }
        let index = u16::try_from(heads.len()).unwrap_or(u16::MAX);
        self.write_tenant(avail + 2, &index.to_le_bytes());
        self.function.fire(1);
    }

    fn write_session(&self, at: u64, bytes: &[u8]) {
        let at = at % session::LEN;
        let left = usize::try_from(session::LEN - at).expect("128 KiB");
        let bytes = &bytes[..bytes.len().min(left)];
        if let Some(slice) = self.session.slice(at, bytes.len()) {
            slice.copy_from(bytes);
        }
    }

    fn write_tenant(&self, at: usize, bytes: &[u8]) {
        for (at, byte) in (at..self.tenant.len()).zip(bytes) {
            if self.allowed[at] {
                self.tenant.write(at, &[*byte]);
            }
        }
    }

    fn check(&self) {
        if self.is_lost {
            return;
        }
        let mut after = vec![0; self.tenant.len()];
        self.tenant.read(0, &mut after);
        for (at, (byte, is_memory)) in after.iter().zip(&self.allowed).enumerate() {
            assert!(
                *is_memory || *byte == CANARY,
                "byte {at:#x} of BAR2 was written"
            );
        }
    }
}
