//! Any content of a ring's memory, any descriptors, any memory table.
//!
//! The appliance's ring must read and write only what the table says is memory: everything else
//! is filled with a pattern that has to be there afterwards.

use std::cell::OnceCell;
use std::os::fd::AsFd;
use std::sync::Arc;

use appliance::memory::{Mapping, TenantMemory};
use appliance::ring::{Chain, Ring};
use arbitrary::Arbitrary;
use spec::mailbox::RingSetup;
use spec::ring::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use spec::session::MemoryEntry;

/// Bytes of the tenant's memory.
const LEN: usize = 64 << 10;
/// What is where no memory is.
const CANARY: u8 = 0xa5;

#[derive(Debug, Arbitrary)]
struct Input {
    table: Vec<Range>,
    setup: Setup,
    event_idx: bool,
    indirect: bool,
    /// What memory is full of.
    #[arbitrary(with = super::counted)]
    content: Vec<u8>,
    #[arbitrary(with = super::until_empty)]
    steps: Vec<Step>,
}

/// A range of memory, in units of 256 bytes so that ranges meet now and then.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Range {
    at: u8,
    len: u8,
    offset: u8,
    wild: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Setup {
    size: u8,
    odd_size: bool,
    base: Option<u16>,
    /// In units of 16 bytes.
    descriptors: u16,
    avail: u16,
    used: u16,
    wild: Option<u64>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Pop {
        limit: u8,
    },
    Put {
        chain: u8,
        written: u32,
    },
    /// A head that is nobody's.
    PutWild {
        head: u16,
    },
    Publish,
    WantsCall,
    EnableKicks,
    DisableKicks,
    /// The device answers into a chain.
    Answer {
        chain: u8,
        at: u8,
        len: u8,
    },
    Write {
        at: u16,
        #[arbitrary(with = super::counted)]
        bytes: Vec<u8>,
    },
    /// A descriptor of the ring, or of a table at `at`.
    Describe {
        table: Option<u16>,
        index: u8,
        address: u16,
        far: bool,
        len: u16,
        flags: u8,
        next: u8,
    },
    /// These heads are made available.
    Offer {
        #[arbitrary(with = super::counted)]
        heads: Vec<u8>,
        ahead: u8,
    },
    Table(Vec<Range>),
}

fn mapping() -> Arc<Mapping> {
    thread_local! {
        static MAPPING: OnceCell<Arc<Mapping>> = const { OnceCell::new() };
    }
    MAPPING.with(|mapping| {
        let make = || {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(LEN as u64).expect("a longer file");
            Arc::new(Mapping::new(file.as_fd(), 0, LEN, None).expect("a mapping"))
        };
        Arc::clone(mapping.get_or_init(make))
    })
}

fn entry(range: &Range) -> MemoryEntry {
    let (guest_address, len) = range
        .wild
        .unwrap_or((u64::from(range.at) * 256, u64::from(range.len) * 256));
    MemoryEntry {
        guest_address,
        len,
        bar_offset: u64::from(range.offset) * 256,
    }
}

/// The bytes of the file that some table of the run called memory.
struct Allowed(Vec<bool>);

impl Allowed {
    fn add(&mut self, entries: &[MemoryEntry]) {
        for entry in entries {
            let start = usize::try_from(entry.bar_offset).expect("checked");
            let len = usize::try_from(entry.len).expect("checked");
            self.0[start..start + len].fill(true);
        }
    }
}

pub(super) fn run(bytes: &[u8]) {
    let Some(input) = super::parse::<Input>(bytes) else {
        return;
    };
    let mapping = mapping();
    let mut allowed = Allowed(vec![false; LEN]);
    let table = |ranges: &[Range], allowed: &mut Allowed| {
        let entries: Vec<_> = ranges.iter().take(16).map(entry).collect();
        let memory = TenantMemory::new(mapping.clone(), entries.clone()).ok()?;
        allowed.add(&entries);
        Some(memory)
    };
    let Some(mut memory) = table(&input.table, &mut allowed) else {
        return;
    };
    let mut content = vec![0; LEN];
    if !input.content.is_empty() {
        for (place, byte) in content.iter_mut().zip(input.content.iter().cycle()) {
            *place = *byte;
        }
    }
    for (place, is_memory) in content.iter_mut().zip(&allowed.0) {
        if !is_memory {
            *place = CANARY;
        }
    }
    mapping.write(0, &content);

    let setup = setup(input.setup);
    let mut features = VERSION_1;
    features |= if input.event_idx { EVENT_IDX } else { 0 };
    features |= if input.indirect { INDIRECT_DESC } else { 0 };
    let Ok(mut ring) = Ring::new(&setup, features, &memory) else {
        return;
    };
    let mut chains: Vec<Chain> = Vec::new();
    let mut is_retired = false;
    for step in input.steps.into_iter().take(200) {
        match step {
            Step::Pop { limit } if !is_retired => {
                let before = chains.len();
                let popped = ring.fetch(&memory, before, limit.into(), &mut chains);
                is_retired = popped.is_err();
                let new = &chains[before..];
                assert!(new.len() <= usize::from(limit), "more than were asked for");
                assert!(
                    chains.len() <= usize::from(ring.size()),
                    "more than the ring has"
                );
                for chain in new {
                    assert!(chain.head < ring.size(), "a head outside the table");
                }
            }
            Step::Pop { .. } => {}
            Step::Put { chain, written } if !chains.is_empty() => {
                let chain = chains.swap_remove(usize::from(chain) % chains.len());
                ring.put(chain.head, written).expect("it was fetched");
            }
            Step::Put { .. } => {}
            Step::PutWild { head } => {
                assert_eq!(ring.put(head, 0).is_ok(), head < ring.size());
            }
            Step::Publish => drop(ring.publish(&memory)),
            Step::WantsCall => drop(ring.wants_call(&memory)),
            Step::EnableKicks => drop(ring.enable_kicks(&memory)),
            Step::DisableKicks => drop(ring.disable_kicks(&memory)),
            Step::Answer { chain, at, len } if !chains.is_empty() => {
                let at_chain = usize::from(chain) % chains.len();
                let chain = &chains[at_chain];
                let mut read = vec![0; len.into()];
                let left = chain.readable.len().saturating_sub(at.into());
                let done = chain.readable.read_at(at.into(), &mut read);
                assert_eq!(done, left.min(read.len()), "bytes read");
                let left = chain.writable.len().saturating_sub(at.into());
                let done = chain.writable.write_at(at.into(), &vec![0x5a; len.into()]);
                assert_eq!(done, left.min(len.into()), "bytes written");
            }
            Step::Answer { .. } => {}
            Step::Write { at, bytes } => write(&mapping, &allowed, at.into(), &bytes),
            Step::Describe {
                table,
                index,
                address,
                far,
                len,
                flags,
                next,
            } => {
                let address = if far {
                    u64::MAX - u64::from(address)
                } else {
                    address.into()
                };
                let bytes = crate::world::descriptor_bytes(
                    address,
                    len.into(),
                    (flags & 7).into(),
                    next.into(),
                );
                let table = table.map_or(setup.descriptor_table, u64::from);
                let at = table.wrapping_add(16 * u64::from(index));
                guest_write(&mapping, &allowed, &input.table, at, &bytes);
            }
            Step::Offer { heads, ahead } => {
                let from = ring.next_avail();
                for (n, head) in (0_u16..).zip(&heads) {
                    let slot = from.wrapping_add(n) % setup.size;
                    let at = setup.avail_ring + 4 + 2 * u64::from(slot);
                    let head = u16::from(*head).to_le_bytes();
                    guest_write(&mapping, &allowed, &input.table, at, &head);
                }
                let count = u16::try_from(heads.len()).unwrap_or(u16::MAX);
                let index = from.wrapping_add(count).wrapping_add((ahead / 32).into());
                let at = setup.avail_ring + 2;
                guest_write(&mapping, &allowed, &input.table, at, &index.to_le_bytes());
            }
            Step::Table(ranges) => {
                // Before a new table is taken into use, everything in the air has been given
                // back; a ring that is not in it is of no more use.
                if let Some(new) = table(&ranges, &mut allowed) {
                    chains.clear();
                    memory = new;
                    is_retired |= ring.check(&memory).is_err();
                }
            }
        }
    }
    drop(chains);
    let mut after = vec![0; LEN];
    mapping.read(0, &mut after);
    let intact = after.iter().zip(&allowed.0);
    for (at, (byte, is_memory)) in intact.enumerate() {
        assert!(*is_memory || *byte == CANARY, "byte {at:#x} was written");
    }
}

fn setup(setup: Setup) -> RingSetup {
    let unit = |at: u16| u64::from(at) * 16;
    let size = 1_u16 << (setup.size % 9);
    RingSetup {
        ring: 2,
        size: if setup.odd_size {
            u16::from(setup.size)
        } else {
            size
        },
        base: setup.base,
        inflight: None,
        descriptor_table: setup.wild.unwrap_or(unit(setup.descriptors)),
        avail_ring: unit(setup.avail),
        used_ring: unit(setup.used),
    }
}

/// The tenant writes to its own memory only.
fn write(mapping: &Mapping, allowed: &Allowed, at: usize, bytes: &[u8]) {
    for (at, byte) in (at..LEN).zip(bytes) {
        if allowed.0[at] {
            mapping.write(at, &[*byte]);
        }
    }
}

/// The tenant writes at a guest address of the first table.
fn guest_write(mapping: &Mapping, allowed: &Allowed, table: &[Range], at: u64, bytes: &[u8]) {
    let inside = table.iter().map(entry).find(|entry| {
        at.checked_sub(entry.guest_address)
            .is_some_and(|within| within < entry.len)
    });
    let place = inside.map(|entry| entry.bar_offset.wrapping_add(at - entry.guest_address));
    if let Some(place) = place.and_then(|place| usize::try_from(place).ok()) {
        write(mapping, allowed, place.min(LEN), bytes);
    }
}
