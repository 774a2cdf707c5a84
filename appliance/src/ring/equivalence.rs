//! Whatever a driver writes, our ring does to the byte what the reference on virtio-queue does.

use proptest::prelude::*;
use spec::session::MemoryEntry;

use super::reference::{self, Buffer, Reference, Regions};
use super::*;
use crate::memory::testing::shared_memory;

const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Indirect tables and data.
const BUFFERS: u64 = 0x4000;
/// Bytes of the mapping; no address from here on is in a table.
const END: u64 = 0x8000;

/// One ring of a driver, twice: under our implementation and under the reference.
struct Twins {
    setup: RingSetup,
    ours: Ring,
    memory: TenantMemory,
    reference: Reference,
    regions: Regions,
    /// The driver's own avail index.
    avail: u16,
}

/// Memory tables that all have the ring's parts at the same guest addresses.
#[derive(Debug, Clone, Copy)]
enum Map {
    /// All in one.
    Whole,
    /// Buffers page by page, backwards, with a hole at 0x6000.
    Scattered,
    /// As [`Self::Scattered`], with the used ring in two entries that adjoin in the mapping too.
    Adjoining,
    /// Without the used ring.
    Lacking,
}

impl Map {
    fn entries(self) -> Vec<MemoryEntry> {
        let entry = |guest_address, len, bar_offset| MemoryEntry {
            guest_address,
            len,
            bar_offset,
        };
        match self {
            Self::Whole => vec![entry(0, END, 0)],
            Self::Scattered => vec![
                entry(0, 0x4000, 0),
                entry(0x4000, 0x1000, 0x7000),
                entry(0x5000, 0x1000, 0x6000),
                entry(0x7000, 0x1000, 0x4000),
            ],
            Self::Adjoining => vec![
                entry(0, 0x3010, 0),
                entry(0x3010, 0xff0, 0x3010),
                entry(0x4000, 0x1000, 0x5000),
                entry(0x5000, 0x3000, 0x4000),
            ],
            Self::Lacking => vec![entry(0, 0x3000, 0), entry(0x4000, 0x4000, 0x4000)],
        }
    }
}

/// What happens to the ring.
#[derive(Debug, Clone)]
enum Step {
    /// The driver writes a descriptor: to the ring's table, or to where indirect ones are.
    Descriptor(bool, u64, (u64, u32, u16, u16)),
    /// The driver offers a chain, if there is room.
    Offer(u16),
    /// The driver offers a chain, if there is room, that is one descriptor with a table of three.
    OfferTable(u16, [(u64, u32, u16, u16); 3]),
    /// The driver wants no interrupts, or wants them.
    Flags(u16),
    /// The driver wants an interrupt this far from the used index.
    UsedEvent(i16),
    /// The driver sets its avail index this far from where it should be.
    AvailIndex(i16),
    /// The driver rewrites a head.
    Head(u16, u16),
    Waiting(usize),
    Pop(usize),
    Push(Vec<(u16, u32)>),
    WantsCall,
    EnableKicks,
    DisableKicks,
    Swap(Map),
}

impl Twins {
    fn new(setup: RingSetup, features: u64, used_index: u16, map: Map) -> Self {
        let len = usize::try_from(END).unwrap();
        let memory = TenantMemory::new(shared_memory(len), map.entries()).unwrap();
        let other = shared_memory(len);
        let regions = reference::regions(&other, &map.entries());
        for mapping in [memory.mapping(), &other] {
            mapping.write(0x3002, &used_index.to_le_bytes());
            mapping.write(0x2002, &setup.base.unwrap_or(used_index).to_le_bytes());
        }
        Self {
            setup,
            ours: Ring::new(&setup, features, &memory).unwrap(),
            reference: Reference::new(&setup, features, &regions).unwrap(),
            memory,
            regions,
            avail: setup.base.unwrap_or(used_index),
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        use vm_memory::{Bytes, GuestAddress};
        self.regions
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
        let at = self
            .memory
            .run(&mut Hint::default(), address, bytes.len() as u64)
            .unwrap();
        self.memory.mapping().write(at, bytes);
    }

    fn write_head(&self, index: u16, head: u16) {
        let place = u64::from(index % self.setup.size);
        // Mostly one that the table has.
        let head = if head < 64 {
            head % self.setup.size
        } else {
            head
        };
        self.write(AVAIL + 4 + 2 * place, &head.to_le_bytes());
    }

    /// The bytes of a range of guest addresses, ours and the reference's.
    fn bytes(&self, address: u64, len: u64) -> [Vec<u8>; 2] {
        use vm_memory::{Bytes, GuestAddress};
        let mut ours = vec![0; usize::try_from(len).unwrap()];
        let mut theirs = ours.clone();
        self.memory
            .read(&mut Hint::default(), address, &mut ours)
            .unwrap();
        self.regions
            .read_slice(&mut theirs, GuestAddress(address))
            .unwrap();
        [ours, theirs]
    }

    /// Does a step to both and compares what comes of it. Returns whether there is still a ring.
    /// (One that broke the rules would be retired; here it goes on, both must stay the same.)
    fn step(&mut self, step: &Step) -> Result<bool, TestCaseError> {
        match step {
            Step::Descriptor(indirect, index, (address, len, flags, next)) => {
                let table = if *indirect { BUFFERS } else { DESCRIPTORS };
                let index = index
                    % if *indirect {
                        64
                    } else {
                        u64::from(self.setup.size)
                    };
                let size = if *indirect { 8 } else { self.setup.size };
                let next = if *next < 64 { next % size } else { *next };
                let mut bytes = address.to_le_bytes().to_vec();
                bytes.extend(len.to_le_bytes());
                bytes.extend(flags.to_le_bytes());
                bytes.extend(next.to_le_bytes());
                self.write(table + 16 * index, &bytes);
            }
            Step::Offer(head) => {
                let open = self.avail.wrapping_sub(self.ours.next_avail());
                if open > self.setup.size {
                    self.avail = self.ours.next_avail();
                }
                if open != self.setup.size {
                    self.write_head(self.avail, *head);
                    self.avail = self.avail.wrapping_add(1);
                }
                self.write(AVAIL + 2, &self.avail.to_le_bytes());
            }
            Step::OfferTable(head, table) => {
                let head = head % self.setup.size;
                let whole = (BUFFERS, 48, 4, 0);
                self.step(&Step::Descriptor(false, head.into(), whole))?;
                for (index, descriptor) in (0..).zip(table) {
                    self.step(&Step::Descriptor(true, index, *descriptor))?;
                }
                self.step(&Step::Offer(head))?;
            }
            Step::Flags(flags) => self.write(AVAIL, &flags.to_le_bytes()),
            Step::UsedEvent(from) => {
                let event = self.ours.next_used.wrapping_add_signed(*from);
                let at = AVAIL + 4 + 2 * u64::from(self.setup.size);
                self.write(at, &event.to_le_bytes());
            }
            Step::AvailIndex(from) => {
                let index = self.avail.wrapping_add_signed(*from);
                self.write(AVAIL + 2, &index.to_le_bytes());
            }
            Step::Head(place, head) => self.write_head(*place, *head),
            Step::Waiting(in_flight) => prop_assert_eq!(
                self.ours.waiting(&self.memory, *in_flight),
                self.reference.waiting(&self.regions, *in_flight)
            ),
            Step::Pop(limit) => self.pop(*limit)?,
            Step::Push(used) => {
                for (head, written) in used {
                    let head = head % self.setup.size;
                    self.ours.put(head, *written).unwrap();
                    prop_assert!(self.reference.push(&self.regions, head, *written));
                }
                self.ours.publish(&self.memory).unwrap();
            }
            Step::WantsCall => prop_assert_eq!(
                self.ours.wants_call(&self.memory),
                Ok(self.reference.wants_call(&self.regions))
            ),
            Step::EnableKicks => prop_assert_eq!(
                self.ours.enable_kicks(&self.memory),
                Ok(self.reference.enable_kicks(&self.regions))
            ),
            Step::DisableKicks => {
                self.ours.disable_kicks(&self.memory).unwrap();
                self.reference.disable_kicks(&self.regions);
            }
            Step::Swap(map) => return self.swap(*map),
        }
        Ok(true)
    }

    fn pop(&mut self, limit: usize) -> Result<(), TestCaseError> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let popped = self.ours.pop(&self.memory, limit, &mut ours);
        let expected = self.reference.pop(&self.regions, limit, &mut theirs);
        prop_assert_eq!(popped, expected);
        prop_assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            prop_assert_eq!(ours.head, theirs.head);
            self.same_bytes(&ours.readable, &theirs.readable)?;
            self.same_bytes(&ours.writable, &theirs.writable)?;
        }
        Ok(())
    }

    /// Checks that a buffer is, byte for byte, what its descriptors say.
    fn same_bytes(
        &self,
        segments: &crate::memory::Segments,
        buffers: &[Buffer],
    ) -> Result<(), TestCaseError> {
        let start = self.memory.mapping().as_ptr().addr();
        let vectors = segments.iovecs(0, segments.len());
        let ours = vectors.flat_map(|vector| {
            let offset = vector.iov_base.addr() - start;
            offset..offset + vector.iov_len
        });
        let byte = |address| self.memory.run(&mut Hint::default(), address, 1).unwrap();
        let expected = buffers
            .iter()
            .flat_map(|(address, len)| *address..*address + u64::from(*len));
        prop_assert!(ours.eq(expected.map(byte)), "{segments:?} for {buffers:x?}");
        Ok(())
    }

    fn swap(&mut self, map: Map) -> Result<bool, TestCaseError> {
        let before = self.memory.mapping();
        let len = before.len();
        let (ours, theirs) = (shared_memory(len), shared_memory(len));
        let mut bytes = vec![0; 0x4000];
        before.read(0, &mut bytes);
        // The parts go along, as the driver's memory is the same; buffers may be elsewhere.
        ours.write(0, &bytes);
        theirs.write(0, &bytes);
        self.memory = TenantMemory::new(ours, map.entries()).unwrap();
        self.regions = reference::regions(&theirs, &map.entries());
        let stale = self.ours.pop(&self.memory, 1, &mut Vec::new());
        prop_assert_eq!(stale, Err(Violation::Configuration));
        let checked = self.ours.check(&self.memory);
        prop_assert_eq!(checked, self.reference.check(&self.regions));
        Ok(checked.is_ok())
    }
}

/// A buffer address: mostly in memory, often near an edge.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0x4400..END - 0x80,
        2 => (0x4u64..9).prop_map(|page| page * 0x1000 - 8),
        1 => Just(BUFFERS + 8),
        1 => Just(u64::MAX - 8),
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let data_len =
        prop_oneof![20 => 1..64u32, 1 => Just(0), 1 => Just(u32::MAX), 1 => any::<u32>()];
    let flags =
        prop_oneof![4 => Just(0u16), 4 => Just(2), 4 => Just(1), 3 => Just(3), 1 => 0..16u16];
    let next = prop_oneof![20 => 0..64u16, 1 => any::<u16>()];
    let data = (address(), data_len, flags, next);
    let table_len =
        prop_oneof![8 => (1..40u32).prop_map(|n| 16 * n), 1 => 0..64u32, 1 => any::<u32>()];
    let table_flags = prop_oneof![6 => Just(4u16), 1 => Just(6), 1 => 4..8u16];
    let table_address = prop_oneof![4 => Just(BUFFERS), 1 => Just(BUFFERS + 8), 1 => address()];
    let table = (table_address, table_len, table_flags, 0..16u16);
    prop_oneof![3 => data, 1 => table]
}

/// A table of three, mostly one after the other and the last to be written to.
fn table() -> impl Strategy<Value = [(u64, u32, u16, u16); 3]> {
    let right = [
        (Just(1u16), Just(1u16)).boxed(),
        (prop_oneof![Just(1u16), Just(3)], Just(2u16)).boxed(),
        (Just(2u16), any::<u16>()).boxed(),
    ];
    right.map(|right| {
        let links = prop_oneof![20 => right, 1 => (0..8u16, 0..4u16)];
        (descriptor(), links)
            .prop_map(|((address, len, ..), (flags, next))| (address, len, flags, next))
    })
}

fn head() -> impl Strategy<Value = u16> {
    prop_oneof![30 => 0..64u16, 1 => any::<u16>()]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 0..64u64, descriptor()).prop_map(|(i, n, d)| Step::Descriptor(i, n, d)),
        12 => head().prop_map(Step::Offer),
        6 => (any::<u16>(), table()).prop_map(|(head, table)| Step::OfferTable(head, table)),
        1 => (0..16u16, head()).prop_map(|(place, head)| Step::Head(place, head)),
        1 => (-20..20i16).prop_map(Step::AvailIndex),
        2 => (0..4u16).prop_map(Step::Flags),
        3 => prop_oneof![4 => -4..4i16, 1 => any::<i16>()].prop_map(Step::UsedEvent),
        1 => (0..20usize).prop_map(Step::Waiting),
        4 => prop_oneof![0..4usize, Just(64), Just(usize::MAX)].prop_map(Step::Pop),
        4 => prop::collection::vec((any::<u16>(), any::<u32>()), 0..20).prop_map(Step::Push),
        4 => Just(Step::WantsCall),
        2 => Just(Step::EnableKicks),
        2 => Just(Step::DisableKicks),
        1 => prop_oneof![
            4 => Just(Map::Whole),
            4 => Just(Map::Scattered),
            4 => Just(Map::Adjoining),
            1 => Just(Map::Lacking),
        ].prop_map(Step::Swap),
    ]
}

/// A table of chains that are right: each descriptor leads to the next, up to every fourth.
fn good_descriptors(size: u16) -> Vec<Step> {
    (0..size)
        .map(|index| {
            let last = index % 4 == 3 || index + 1 == size;
            let flags = u16::from(!last) | if index % 4 >= 2 { 2 } else { 0 };
            let address = 0x4400 + 0x100 * u64::from(index);
            let descriptor = (address, 0x50, flags, index + 1);
            Step::Descriptor(false, u64::from(index), descriptor)
        })
        .collect()
}

fn index() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0u16), 65530..=u16::MAX, any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn a_ring_is_served_as_virtio_queue_serves_it(
        log_size in 0..5u32,
        features in (any::<bool>(), any::<bool>()),
        used_index in index(),
        base in prop::option::of(index()),
        steps in prop::collection::vec(step(), 0..100),
    ) {
        let size = 1u16 << log_size;
        let features = if features.0 { EVENT_IDX } else { 0 }
            | if features.1 { INDIRECT_DESC } else { 0 };
        let setup = RingSetup {
            ring: 2,
            size,
            base,
            inflight: None,
            descriptor_table: DESCRIPTORS,
            avail_ring: AVAIL,
            used_ring: USED,
        };
        let mut map = Map::Whole;
        let mut twins = Twins::new(setup, features, used_index, map);
        for step in good_descriptors(size).iter().chain(&steps) {
            if let Step::Swap(next) = step {
                map = *next;
            }
            let goes_on = twins.step(step)?;
            prop_assert_eq!(twins.ours.next_avail(), twins.reference.next_avail());
            if !goes_on {
                break;
            }
            let [ours, theirs] = twins.bytes(USED, 6 + 8 * u64::from(size));
            prop_assert_eq!(ours, theirs, "the used ring");
        }
        for entry in map.entries() {
            let [ours, theirs] = twins.bytes(entry.guest_address, entry.len);
            prop_assert!(ours == theirs, "something was written elsewhere");
        }
    }
}
