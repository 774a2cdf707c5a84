//! In-flight memory as an appliance that died left it, or as nobody did, under a new appliance.
//!
//! The fuzzer plays the dead one: some requests of a ring were given back, some fetched, others not
//! yet, and its last stores may be missing. Then each request that was not given back comes back
//! once, and what must not be done twice is not done again. Where anything at all was written over
//! that, the appliance stays within the ring, the region and the tenant's memory, does nothing more
//! often than it was asked for, and stops.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use appliance::memory::Mapping;
use appliance::{Appliance, Config};
use arbitrary::Arbitrary;
use spec::device::MAILBOX_REQUEST;
use spec::inflight::{self, Entry, Regions, VERSION_1};
use spec::mailbox::{Header, Request, RingSetup};
use spec::session::{self, MemoryEntry};

use super::patience::PATIENCE;
use super::scripted::{Scripted, good_registers, mapping, memory_file};

/// The HBA of the appliance's configuration.
const UUID: [u8; 16] = [9; 16];
/// Bytes of BAR2, and of the tenant's memory, which is their first half.
const BAR2_LEN: u64 = 256 << 10;
const TENANT_LEN: u64 = 128 << 10;
/// What is in memory that nobody may write.
const CANARY: u8 = 0xa5;
/// Entries of the tracked ring, and of the other one.
const SIZE: u16 = 64;
/// The tracked ring.
const RING: u16 = 2;
/// A ring of one request at a time, which is not tracked: it asks how things stand.
const ASKING: u16 = 3;
/// Where the parts of a ring are, from its start: descriptors, avail ring, used ring.
const AVAIL: usize = 0x400;
const USED: usize = 0x600;
/// Where the rings are, and the buffers of a request of each.
const RINGS: [usize; 2] = [0, 0x1000];
const BUFFERS: usize = 0x4000;
const ASKING_BUFFERS: usize = 0x2000;
/// Bytes of the buffers of one request, and where each of them is.
const STRIDE: usize = 0x1000;
const DATA_OUT: usize = 0x100;
const RESPONSE: usize = 0x600;
const DATA_IN: usize = 0x700;
/// Descriptors of a request.
const CHAIN: u16 = 3;
/// Most requests.
const REQUESTS: usize = 16;
const BLOCK: usize = 512;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Nothing is written over in-flight memory.
    is_honest: bool,
    /// The used index at which the history begins.
    start: u16,
    /// The number of the first request that was fetched.
    counter: u32,
    kinds: [u8; REQUESTS],
    requests: u8,
    /// How many of them were fetched, and which of these were given back, in this order.
    fetched: u8,
    given_back: [u8; REQUESTS],
    returned: u8,
    /// How many of the last stores are missing.
    missing: u8,
    /// What is written over in-flight memory, before the ring starts or after that.
    #[arbitrary(with = super::until_empty)]
    scribbles: Vec<Scribble>,
}

#[derive(Debug, Arbitrary)]
struct Scribble {
    at: u16,
    #[arbitrary(with = super::counted)]
    bytes: Vec<u8>,
    late: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Read,
    Ready,
    CompareAndWrite,
    Register,
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte % 5 {
            0 => Self::Write,
            1 => Self::Read,
            2 => Self::Ready,
            3 => Self::CompareAndWrite,
            _ => Self::Register,
        }
    }

    /// Whether it must not be done twice.
    fn is_once(self) -> bool {
        matches!(self, Self::CompareAndWrite | Self::Register)
    }
}

/// What the dead appliance did for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    GivenBack,
    Fetched,
    New,
}

/// What a history comes to.
struct History {
    start: u16,
    kinds: Vec<Kind>,
    fates: Vec<Fate>,
    /// The driver's used index.
    used: u16,
}

impl History {
    fn requests(&self) -> u16 {
        u16::try_from(self.kinds.len()).expect("at most 16")
    }

    fn count(&self, is: impl Fn(Kind, Fate) -> bool) -> u32 {
        let requests = self.kinds.iter().zip(&self.fates);
        let count = requests.filter(|(kind, fate)| is(**kind, **fate)).count();
        u32::try_from(count).expect("at most 16")
    }
}

/// The image of the only LUN, and the appliance, the same for all runs.
fn appliance() -> &'static (File, Appliance) {
    static APPLIANCE: OnceLock<(File, Appliance)> = OnceLock::new();
    let make = || {
        let image = tempfile::NamedTempFile::new_in("/dev/shm").expect("an image");
        image.as_file().set_len(1 << 20).expect("a longer image");
        let uuid = uuid::Uuid::from_bytes(UUID);
        let text = format!(
            "name = \"fuzz\"\n[[lun]]\nname = \"root\"\npath = {:?}\ncache = \"write-back\"\n\
             [[hba]]\nname = \"hba\"\nuuid = \"{uuid}\"\nluns = {{ \"0\" = \"root\" }}\n",
            image.path()
        );
        let config = Config::parse(&text, "fuzz.toml".as_ref()).expect("a good configuration");
        let appliance = Appliance::new(config).expect("an appliance");
        (image.into_file(), appliance)
    };
    APPLIANCE.get_or_init(make)
}

/// What the tenant and its shim have.
struct Stage {
    function: Arc<Scripted>,
    session: Mapping,
    inflight: Mapping,
    tenant: Mapping,
    sequence: u32,
    /// Requests of the ring that asks, so far.
    asked: u16,
}

pub(super) fn run(bytes: &[u8]) {
    let Some(mut input) = super::parse::<Input>(bytes) else {
        return;
    };
    if input.is_honest {
        input.scribbles.clear();
    }
    let (image, appliance) = appliance();
    image.write_all_at(&[0; 64 * BLOCK], 0).expect("an image");
    let [session, inflight, tenant] = [session::LEN, inflight::LEN, BAR2_LEN].map(memory_file);
    let mut stage = Stage {
        session: mapping(&session),
        inflight: mapping(&inflight),
        tenant: mapping(&tenant),
        function: Scripted::new(session, inflight, tenant),
        sequence: 0,
        asked: 0,
    };
    stage.tenant.write(0, &vec![CANARY; stage.tenant.len()]);
    stage.inflight.write(0, &vec![CANARY; stage.inflight.len()]);
    let history = stage.leave_history(&input);
    for scribble in input.scribbles.iter().filter(|scribble| !scribble.late) {
        stage.scribble(scribble);
    }
    {
        let mut state = stage.function.state();
        state.granted = 2;
        state.registers.extend(good_registers(UUID));
    }
    let attachment = appliance.attach(stage.function.clone());
    let attachment = attachment.expect("a good function");
    stage.set_up();
    let before = stage.generation();
    let started = stage.start(RING, Some(region()));
    stage.function.fire(1);
    let is_honest = input.scribbles.is_empty();
    if is_honest {
        assert_eq!(started, 0, "a good region is refused");
        stage.check_answers(&history);
        check_image(image, &history);
    } else {
        for scribble in input.scribbles.iter().filter(|scribble| scribble.late) {
            stage.scribble(scribble);
        }
        stage.settle(&history);
    }
    let end = stage.post(&Request::StopRing { ring: RING });
    if is_honest {
        let next = history.start.wrapping_add(history.requests());
        assert_eq!(end, (0, u32::from(next)));
    }
    let more = stage.used().wrapping_sub(history.used);
    assert!(more <= history.requests() + SIZE, "{more} came back");
    let stopped = stage.snapshot();
    let done = stage.generation().wrapping_sub(before);
    if is_honest {
        let asked = history.count(|kind, fate| kind == Kind::Register && fate == Fate::New);
        assert_eq!(done, asked, "registrations");
    } else {
        // A mark that was taken away makes a request a new one, and that is the tenant's own affair.
        let asked = history.count(|kind, _| kind == Kind::Register);
        assert!(done <= asked, "{done} registrations of {asked}");
    }
    let begun = Instant::now();
    attachment.detach().expect("the function works");
    assert!(begun.elapsed() < PATIENCE, "the function is not let go");
    assert_eq!(
        Arc::strong_count(&stage.function.mapped),
        1,
        "a mapping stays"
    );
    stage.check_memory(&input, &stopped);
}

/// Where the region of the ring is in BAR1.
fn region() -> u32 {
    let regions = Regions::new(4, SIZE).expect("there is room");
    regions.offset(RING, SIZE).expect("a ring of these")
}

/// The head of the chain of a request.
fn head(request: usize) -> u16 {
    u16::try_from(request).expect("at most 16") * CHAIN
}

/// Where the first bytes of a request's block are in the image.
fn place(request: usize) -> u64 {
    (request * BLOCK) as u64
}

/// The block that a request writes.
fn block(request: usize) -> [u8; BLOCK] {
    [u8::try_from(request + 1).expect("at most 16"); BLOCK]
}

impl Stage {
    /// Writes ring and region as the dead appliance left them.
    fn leave_history(&self, input: &Input) -> History {
        let count = usize::from(input.requests) % (REQUESTS + 1);
        let kinds: Vec<_> = input
            .kinds
            .iter()
            .take(count)
            .map(|kind| Kind::of(*kind))
            .collect();
        let fetched = usize::from(input.fetched) % (count + 1);
        // Each of the fetched ones once, in the order that the bytes say.
        let mut order: Vec<_> = (0..fetched).collect();
        order.sort_by_key(|request| input.given_back[*request]);
        order.truncate(usize::from(input.returned) % (fetched + 1));
        let mut fates = vec![Fate::New; count];
        fates[..fetched].fill(Fate::Fetched);
        for request in &order {
            fates[*request] = Fate::GivenBack;
        }
        for (request, kind) in kinds.iter().enumerate() {
            self.offer(request, *kind);
        }
        let returned = u16::try_from(order.len()).expect("at most 16");
        // In the order of stores: last batch head (after the entry's next), used index, mark,
        // the region's used index.
        let missing = if order.is_empty() {
            0
        } else {
            input.missing % 5
        };
        let before = input
            .start
            .wrapping_add(returned)
            .wrapping_sub(u16::from(missing > 0));
        let used = input
            .start
            .wrapping_add(returned)
            .wrapping_sub(u16::from(missing > 2));
        let mut last = 0_u16;
        let base = usize::try_from(region()).expect("1 MiB");
        let len = usize::try_from(inflight::region_len(SIZE)).expect("1 MiB");
        self.inflight.write(base, &vec![0; len]);
        for (at, request) in order.iter().enumerate() {
            let is_last = at + 1 == order.len();
            if is_last && missing == 4 {
                break;
            }
            self.write_entry(head(*request), Entry::NEXT, &last.to_le_bytes());
            last = head(*request);
        }
        for (request, fate) in fates.iter().enumerate().take(fetched) {
            let counter = (u64::from(input.counter) + request as u64).to_le_bytes();
            self.write_entry(head(request), Entry::COUNTER, &counter);
            let is_torn = missing > 1 && order.last() == Some(&request);
            if *fate == Fate::Fetched || is_torn {
                self.write_entry(head(request), Entry::MARK, &[1]);
            }
        }
        if missing > 2
            && let Some(torn) = order.last()
        {
            fates[*torn] = Fate::Fetched;
        }
        let mut header = [0; 16];
        header[8..10].copy_from_slice(&VERSION_1.to_le_bytes());
        header[10..12].copy_from_slice(&SIZE.to_le_bytes());
        header[12..14].copy_from_slice(&last.to_le_bytes());
        header[14..16].copy_from_slice(&before.to_le_bytes());
        self.inflight.write(base, &header);
        let avail = input
            .start
            .wrapping_add(u16::try_from(count).expect("at most 16"));
        for request in 0..count {
            let at = usize::from(input.start.wrapping_add(request_number(request)) % SIZE);
            self.tenant
                .write(RINGS[0] + AVAIL + 4 + 2 * at, &head(request).to_le_bytes());
        }
        self.tenant.write(RINGS[0] + AVAIL, &[0, 0]);
        self.tenant
            .write(RINGS[0] + AVAIL + 2, &avail.to_le_bytes());
        self.tenant.write(RINGS[0] + USED, &[0, 0]);
        self.tenant.write(RINGS[0] + USED + 2, &used.to_le_bytes());
        for part in [AVAIL, AVAIL + 2, USED, USED + 2] {
            self.tenant.write(RINGS[1] + part, &[0, 0]);
        }
        History {
            start: input.start,
            kinds,
            fates,
            used,
        }
    }

    fn write_entry(&self, head: u16, field: u64, bytes: &[u8]) {
        let at = u64::from(region()) + inflight::entry(head) + field;
        self.inflight
            .write(usize::try_from(at).expect("1 MiB"), bytes);
    }

    /// The chain of a request, and its buffers.
    fn offer(&self, request: usize, kind: Kind) {
        let lba = u8::try_from(request).expect("at most 16");
        let cdb: &[u8] = match kind {
            Kind::Write => &[0x2a, 0, 0, 0, 0, lba, 0, 0, 1, 0],
            Kind::Read => &[0x28, 0, 0, 0, 0, 32 + lba, 0, 0, 1, 0],
            Kind::Ready => &[0; 6],
            Kind::CompareAndWrite => &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 1, 0, 0],
            // REGISTER AND IGNORE EXISTING KEY.
            Kind::Register => &[0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0],
        };
        let data_out = match kind {
            Kind::Write => block(request).to_vec(),
            // It is to have zeros, and then a block.
            Kind::CompareAndWrite => [[0; BLOCK], block(request)].concat(),
            Kind::Register => {
                let mut list = vec![0; 24];
                list[15] = lba + 1;
                list
            }
            Kind::Read | Kind::Ready => Vec::new(),
        };
        let data_in = if kind == Kind::Read { BLOCK } else { 0 };
        let buffers = BUFFERS + request * STRIDE;
        self.chain(RINGS[0], head(request), buffers, cdb, &data_out, data_in);
    }

    /// Writes a chain of three descriptors: header, data-out (if any), response, data-in (if any).
    fn chain(
        &self,
        ring: usize,
        head: u16,
        buffers: usize,
        cdb: &[u8],
        data_out: &[u8],
        data_in: usize,
    ) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        // Target 0, LUN 0, flat (virtio 1.3 §5.6.6.1).
        let mut header = [0; 51];
        header[..4].copy_from_slice(&[1, 0, 0x40, 0]);
        header[19..19 + cdb.len()].copy_from_slice(cdb);
        self.tenant.write(buffers, &header);
        self.tenant.write(buffers + DATA_OUT, data_out);
        self.tenant.write(buffers + RESPONSE, &[CANARY; 108]);
        let mut parts = vec![(0, header.len(), 0)];
        if !data_out.is_empty() {
            parts.push((DATA_OUT, data_out.len(), 0));
        }
        parts.push((RESPONSE, 108, WRITE));
        if data_in > 0 {
            parts.push((DATA_IN, data_in, WRITE));
        }
        let last = parts.len() - 1;
        for (n, (at, len, flags)) in parts.into_iter().enumerate() {
            let index = head + request_number(n);
            let mut descriptor = ((buffers + at) as u64).to_le_bytes().to_vec();
            descriptor.extend(u32::try_from(len).expect("a page").to_le_bytes());
            let flags = if n < last { flags | NEXT } else { flags };
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend((index + 1).to_le_bytes());
            self.tenant
                .write(ring + 16 * usize::from(index), &descriptor);
        }
    }

    fn scribble(&self, scribble: &Scribble) {
        let len = usize::try_from(inflight::region_len(SIZE)).expect("1 MiB");
        let base = usize::try_from(region()).expect("1 MiB");
        let at = usize::from(scribble.at) % len;
        let bytes = &scribble.bytes[..scribble.bytes.len().min(len - at)];
        self.inflight.write(base + at, bytes);
    }

    /// Posts a request and waits for its reply; returns the status and the first word of the
    /// payload.
    fn post(&mut self, request: &Request) -> (u32, u32) {
        self.sequence += 1;
        let payload = request.payload();
        let header = Header {
            sequence: self.sequence,
            operation: request.operation(),
            len: u32::try_from(payload.len()).expect("a short payload"),
            status: 0,
        };
        self.write_session(session::MAILBOX_REQUEST, &header.to_bytes());
        self.write_session(session::MAILBOX_REQUEST + 16, &payload);
        self.function.set(MAILBOX_REQUEST, self.sequence);
        self.function.fire(0);
        let begun = Instant::now();
        while self.function.state().replies.last() != Some(&self.sequence) {
            assert!(begun.elapsed() < PATIENCE, "no reply to {request:?}");
            thread::sleep(Duration::from_micros(50));
        }
        let mut slot = [0; 20];
        let at = usize::try_from(session::MAILBOX_REPLY).expect("128 KiB");
        self.session.read(at, &mut slot);
        let (header, word) = slot.split_first_chunk::<16>().expect("20 bytes");
        let reply = Header::from_bytes(header).expect("16 bytes");
        let word = if reply.len >= 4 { word } else { &[0; 4] };
        (
            reply.status,
            u32::from_le_bytes(word.try_into().expect("4 bytes")),
        )
    }

    fn write_session(&self, at: u64, bytes: &[u8]) {
        self.session
            .write(usize::try_from(at).expect("128 KiB"), bytes);
    }

    /// Features, memory, and the ring that asks.
    fn set_up(&mut self) {
        let entry = MemoryEntry {
            guest_address: 0,
            len: TENANT_LEN,
            bar_offset: 0,
        };
        self.write_session(session::memory_entry(0), &entry.to_bytes());
        self.write_session(session::MEMORY_COUNT, &1_u32.to_le_bytes());
        self.write_session(session::MEMORY_GENERATION, &1_u32.to_le_bytes());
        // VIRTIO_F_VERSION_1.
        let features = Request::SetFeatures { features: 1 << 32 };
        assert_eq!(self.post(&features).0, 0);
        assert_eq!(self.post(&Request::SetMemory { generation: 1 }).0, 0);
        assert_eq!(self.start(ASKING, None), 0);
    }

    fn start(&mut self, ring: u16, inflight: Option<u32>) -> u32 {
        let at = RINGS[usize::from(ring - RING)];
        let setup = RingSetup {
            ring,
            size: SIZE,
            base: None,
            inflight,
            descriptor_table: at as u64,
            avail_ring: (at + AVAIL) as u64,
            used_ring: (at + USED) as u64,
        };
        self.post(&Request::StartRing(setup)).0
    }

    /// PRGENERATION: how many registrations were made so far.
    fn generation(&mut self) -> u32 {
        let ring = RINGS[1];
        loop {
            // PERSISTENT RESERVE IN, READ KEYS, 8 bytes.
            let cdb = [0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0];
            self.chain(ring, 0, ASKING_BUFFERS, &cdb, &[], 8);
            let at = usize::from(self.asked % SIZE);
            self.tenant.write(ring + AVAIL + 4 + 2 * at, &[0, 0]);
            self.asked += 1;
            self.tenant
                .write(ring + AVAIL + 2, &self.asked.to_le_bytes());
            self.function.fire(1);
            let begun = Instant::now();
            while self.word(ring + USED + 2) != self.asked {
                assert!(begun.elapsed() < PATIENCE, "no answer to a reading");
                thread::sleep(Duration::from_micros(50));
            }
            let mut data = [0; 4];
            self.tenant.read(ASKING_BUFFERS + DATA_IN, &mut data);
            match self.status(ASKING_BUFFERS) {
                (0, 0, _) => return u32::from_be_bytes(data),
                // What a new appliance has to tell comes first.
                (0, 2, 6) => assert!(self.asked < 20, "attentions without end"),
                other => panic!("{other:?}"),
            }
        }
    }

    fn word(&self, at: usize) -> u16 {
        let mut word = [0; 2];
        self.tenant.read(at, &mut word);
        u16::from_le_bytes(word)
    }

    /// The used index of the tracked ring.
    fn used(&self) -> u16 {
        self.word(RINGS[0] + USED + 2)
    }

    /// Response, SAM status and sense key of a request.
    fn status(&self, buffers: usize) -> (u8, u8, u8) {
        let mut response = [0; 16];
        self.tenant.read(buffers + RESPONSE, &mut response);
        let has_sense = response[..4] != [0; 4];
        let key = if has_sense { response[14] & 0x0f } else { 0 };
        (response[11], response[10], key)
    }

    /// Every request that was not given back comes back once, and is done if it may be.
    fn check_answers(&self, history: &History) {
        let end = history.start.wrapping_add(history.requests());
        let begun = Instant::now();
        while self.used() != end {
            let used = self.used();
            assert!(begun.elapsed() < PATIENCE, "used index {used}, not {end}");
            thread::sleep(Duration::from_micros(50));
        }
        let mut heads: Vec<_> = (0..end.wrapping_sub(history.used))
            .map(|n| usize::from(history.used.wrapping_add(n) % SIZE))
            .map(|at| self.word(RINGS[0] + USED + 4 + 8 * at))
            .collect();
        heads.sort_unstable();
        let requests = history.fates.iter().enumerate();
        let open = requests.filter(|(_, fate)| **fate != Fate::GivenBack);
        let expected: Vec<_> = open.map(|(request, _)| head(request)).collect();
        assert_eq!(heads, expected, "each comes back once");
        for (request, (kind, fate)) in history.kinds.iter().zip(&history.fates).enumerate() {
            let answer = self.status(BUFFERS + request * STRIDE);
            let expected = match fate {
                Fate::GivenBack => (CANARY, CANARY, CANARY & 0x0f),
                Fate::Fetched if kind.is_once() => (0, 2, 0xb),
                Fate::Fetched | Fate::New => (0, 0, 0),
            };
            assert_eq!(answer, expected, "{kind:?} {fate:?}");
        }
    }

    /// Waits until nothing seems to come back any more.
    fn settle(&self, history: &History) {
        let end = history.start.wrapping_add(history.requests());
        for _ in 0..20 {
            if self.used() == end {
                return;
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// What of the tenant's memory a stopped ring does not change: all but the ring that asks.
    fn snapshot(&self) -> [Vec<u8>; 2] {
        let mut parts = [vec![0; RINGS[1]], vec![0; self.tenant.len() - BUFFERS]];
        for (at, part) in [0, BUFFERS].into_iter().zip(&mut parts) {
            self.tenant.read(at, part);
        }
        parts
    }

    fn check_memory(&self, input: &Input, stopped: &[Vec<u8>; 2]) {
        assert!(self.snapshot() == *stopped, "a stopped ring was written to");
        let mut rest = vec![0; self.tenant.len()];
        self.tenant.read(0, &mut rest);
        let outside = usize::try_from(TENANT_LEN).expect("128 KiB");
        assert!(rest[outside..].iter().all(|byte| *byte == CANARY));
        let mut memory = vec![0; self.inflight.len()];
        self.inflight.read(0, &mut memory);
        let base = usize::try_from(region()).expect("1 MiB");
        let len = usize::try_from(inflight::region_len(SIZE)).expect("1 MiB");
        let (before, rest) = memory.split_at(base);
        let (region, after) = rest.split_at(len);
        let mut others = before.iter().chain(after);
        assert!(others.all(|byte| *byte == CANARY), "beside the region");
        if input.scribbles.is_empty() {
            let (header, rest) = region.split_at(16);
            assert_eq!(header[14..], self.used().to_le_bytes());
            let (entries, _) = rest.as_chunks::<{ Entry::LEN }>();
            assert!(entries.iter().all(|entry| entry[0] == 0), "a mark stays");
        }
    }
}

/// What was to be written once is there, and what was not to be written again is not.
fn check_image(image: &File, history: &History) {
    for (request, (kind, fate)) in history.kinds.iter().zip(&history.fates).enumerate() {
        let is_done = match kind {
            Kind::Write => *fate != Fate::GivenBack,
            Kind::CompareAndWrite => *fate == Fate::New,
            _ => false,
        };
        let mut found = [0; BLOCK];
        image
            .read_exact_at(&mut found, place(request))
            .expect("an image");
        let expected = if is_done { block(request) } else { [0; BLOCK] };
        assert!(found == expected, "{kind:?} {fate:?} of request {request}");
    }
}

/// The number of a request or descriptor.
fn request_number(number: usize) -> u16 {
    u16::try_from(number).expect("at most 16")
}
