//! Whole histories: a tenant's I/O, resets and faults, an appliance that dies and comes back,
//! configurations that change.
//!
//! Whatever comes when: each request is answered once, with data that the disk could have had;
//! a neighbour's data stays; nothing stays behind in the process.

use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;

use super::patience::{self, PATIENCE, STARVED};
use super::residue::Residue;
use crate::world::{
    BLOCK, Command, EVENT_IDX, Failure, INDIRECT_DESC, Lun, MIB, Outcome, Shape, Task, Tenant,
    VERSION_1, World, address, read10, write10,
};

/// Most events of a history.
const MOST: usize = 40;
/// Blocks of the disk that are used.
const BLOCKS: usize = 24;
/// Most blocks of one command.
const MOST_BLOCKS: usize = 6;
/// What the neighbour has on its disk.
const NEIGHBOUR: [u8; BLOCK] = [0x77; BLOCK];
/// How often a QEMU looks whether its backend has hung up, and the appliance at the bus.
const LOOK: Duration = Duration::from_secs(1);
/// The LUN that comes and goes.
const SECOND: u16 = 1;

#[derive(Debug, Arbitrary)]
struct Input {
    event_idx: bool,
    indirect: bool,
    #[arbitrary(with = super::until_empty)]
    events: Vec<Event>,
}

#[derive(Debug, Arbitrary)]
enum Event {
    Write {
        second: bool,
        block: u8,
        blocks: u8,
        fill: u8,
    },
    Read {
        second: bool,
        block: u8,
        blocks: u8,
    },
    Other {
        second: bool,
        lun: u8,
        which: u8,
    },
    /// Waits for everything in flight, if anybody is there to answer.
    Settle,
    Kill,
    Stop,
    Boot,
    Reset,
    /// QEMU's `stop` and `cont`.
    Pause,
    Leave,
    Return,
    /// QEMU's reconnect: the same rings go on.
    Reconnect,
    Function {
        which: u8,
        lun: u8,
        task: u8,
    },
    ShowSecond(bool),
    HideHba(bool),
    Nonsense,
    Region(bool),
    SwapCall(u8),
    SuppressCalls(bool),
    Break {
        queue: u8,
        how: u8,
    },
    Resize {
        more: bool,
    },
}

/// A command in flight.
struct Pending {
    second: bool,
    task: Task,
    kind: Kind,
}

enum Kind {
    Write {
        blocks: std::ops::Range<usize>,
        fill: u8,
        /// Another write to one of its blocks was in flight with it.
        overlapped: bool,
    },
    Read {
        first: usize,
        /// What each block may read as.
        possible: Vec<Vec<u8>>,
    },
    Other,
}

struct History {
    world: World,
    tenant: Tenant,
    neighbour: Tenant,
    pending: Vec<Pending>,
    /// What each block may hold.
    possible: Vec<Vec<u8>>,
    runs: bool,
    /// The appliance knows the HBA.
    known: bool,
    /// The second LUN is shown.
    shown: bool,
    /// The tenant is connected, with rings that were started.
    started: bool,
    /// A ring was broken: only a reset, or a new connection, mends it.
    broken: bool,
}

pub(super) fn run(bytes: &[u8]) {
    static FIRST: Once = Once::new();
    let Some(input) = super::parse::<Input>(bytes) else {
        return;
    };
    // The first world leaves what a process makes once.
    FIRST.call_once(|| {
        tell(&Input {
            event_idx: true,
            indirect: true,
            events: Vec::new(),
        })
    });
    let before = Residue::now();
    tell(&input);
    before.wait_for_at_most(0);
}

fn tell(input: &Input) {
    let mut features = VERSION_1;
    features |= if input.event_idx { EVENT_IDX } else { 0 };
    features |= if input.indirect { INDIRECT_DESC } else { 0 };
    let mut world = World::new()
        .lun(Lun::file(MIB))
        .another_hba()
        .lun(Lun::file(MIB))
        .drain_timeout(Duration::from_secs(1))
        .start();
    world
        .add_lun(0, 0, SECOND, Lun::file(MIB))
        .expect("a second LUN");
    let tenant = world.tenant_like(Shape {
        memory: vec![(0, 32 * MIB), (4 << 30, MIB)],
        queues: 2,
        ring_size: 64,
        features,
        ..Shape::default()
    });
    let mut neighbour = world.tenant_of(1, Shape::default());
    let command = Command::new(0, &write10(0, 1)).data_out(&NEIGHBOUR);
    run_on(&world, &mut neighbour, 0, &command);
    let mut history = History {
        world,
        tenant,
        neighbour,
        pending: Vec::new(),
        possible: vec![vec![0]; BLOCKS + MOST_BLOCKS],
        runs: true,
        known: true,
        shown: true,
        started: true,
        broken: false,
    };
    for event in input.events.iter().take(MOST) {
        history.happens(event);
        history.look_at_neighbour();
    }
    history.ends_well();
}

impl History {
    /// Whether somebody answers the tenant.
    fn is_served(&self) -> bool {
        self.runs && self.known && self.started
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Write {
                second,
                block,
                blocks,
                fill,
            } => self.write(second, block, blocks, fill),
            Event::Read {
                second,
                block,
                blocks,
            } => self.read(second, block, blocks),
            Event::Other { second, lun, which } => self.other(second, lun, which),
            Event::Settle => {
                if self.is_served() && !self.broken {
                    self.settle();
                }
            }
            Event::Kill => {
                if self.runs {
                    self.world.kill_appliance();
                    self.runs = false;
                }
            }
            Event::Stop => {
                if self.runs {
                    self.world.stop_appliance();
                    self.runs = false;
                }
            }
            Event::Boot => self.boot(),
            Event::Reset => self.reset(),
            Event::Pause => self.pause(),
            Event::Leave => self.leave(),
            Event::Return => {
                if !self.started {
                    self.come_back();
                }
            }
            Event::Reconnect => self.reconnect(),
            Event::Function { which, lun, task } => self.function(which, lun, task),
            Event::ShowSecond(shown) => self.show_second(shown),
            Event::HideHba(hidden) => self.hide(hidden),
            Event::Nonsense => {
                if self.runs {
                    let changed = self
                        .world
                        .apply_changed(|text| text.replace("name", "mane"));
                    changed.expect_err("nonsense is no configuration");
                }
            }
            Event::Region(there) => self.region(there),
            Event::SwapCall(ring) => {
                if self.started && self.tenant.swap_call(u32::from(ring) % 4).is_err() {
                    self.forget();
                }
            }
            Event::SuppressCalls(suppress) => {
                // Without EVENT_IDX nobody would be called; with it, it means nothing.
                if self.tenant.features() & EVENT_IDX != 0 {
                    self.tenant.queues[0].ring.suppress_calls(suppress);
                }
            }
            Event::Break { queue, how } => self.break_ring(queue, how),
            Event::Resize { more } => self.world.resize(0, if more { 2 * MIB } else { MIB }),
        }
    }

    fn place(block: u8, blocks: u8) -> std::ops::Range<usize> {
        let first = usize::from(block) % BLOCKS;
        first..first + 1 + usize::from(blocks) % MOST_BLOCKS
    }

    fn has_room(&self, second: bool) -> bool {
        let queue = &self.tenant.queues[usize::from(second)];
        self.started && !self.broken && queue.ring.room() >= 8
    }

    fn write(&mut self, second: bool, block: u8, blocks: u8, fill: u8) {
        if !self.has_room(second) {
            return;
        }
        // Never what fresh buffers are filled with.
        let fill = fill & 0x7f;
        let blocks = Self::place(block, blocks);
        let mut is_overlapped = false;
        for pending in &mut self.pending {
            match &mut pending.kind {
                Kind::Write {
                    blocks: others,
                    overlapped,
                    ..
                } => {
                    if others.start < blocks.end && blocks.start < others.end {
                        *overlapped = true;
                        is_overlapped = true;
                    }
                }
                Kind::Read { first, possible } => {
                    for (n, values) in possible.iter_mut().enumerate() {
                        if blocks.contains(&(*first + n)) {
                            values.push(fill);
                        }
                    }
                }
                Kind::Other => {}
            }
        }
        for values in &mut self.possible[blocks.clone()] {
            values.push(fill);
        }
        let data = vec![fill; blocks.len() * BLOCK];
        let cdb = write10(block_number(blocks.start), count(&blocks));
        let command = Command::new(0, &cdb).data_out(&data).pieces(700);
        let task = self.tenant.queues[usize::from(second)].submit(&command);
        let kind = Kind::Write {
            blocks,
            fill,
            overlapped: is_overlapped,
        };
        self.pending.push(Pending { second, task, kind });
    }

    fn read(&mut self, second: bool, block: u8, blocks: u8) {
        if !self.has_room(second) {
            return;
        }
        let blocks = Self::place(block, blocks);
        let cdb = read10(block_number(blocks.start), count(&blocks));
        let command = Command::new(0, &cdb)
            .data_in(blocks.len() * BLOCK)
            .pieces(900);
        let task = self.tenant.queues[usize::from(second)].submit(&command);
        let kind = Kind::Read {
            first: blocks.start,
            possible: self.possible[blocks].to_vec(),
        };
        self.pending.push(Pending { second, task, kind });
    }

    fn other(&mut self, second: bool, lun: u8, which: u8) {
        if !self.has_room(second) {
            return;
        }
        let cdbs: [&[u8]; 7] = [
            &[0; 6],
            &[0x12, 0, 0, 0, 96, 0],
            &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            &[0x1a, 0, 0x3f, 0, 192, 0],
            &[0x03, 0, 0, 0, 96, 0],
        ];
        let cdb = cdbs[usize::from(which) % cdbs.len()];
        let command = Command::new(u16::from(lun) % 4, cdb).data_in(256);
        let task = self.tenant.queues[usize::from(second)].submit(&command);
        let kind = Kind::Other;
        self.pending.push(Pending { second, task, kind });
    }

    /// Waits for all that is in flight.
    fn settle(&mut self) {
        while !self.pending.is_empty() {
            let Pending { second, task, kind } = self.pending.remove(0);
            let outcome = answer(&self.world, &mut self.tenant, usize::from(second), task);
            match (kind, outcome.good()) {
                (
                    Kind::Write {
                        blocks,
                        fill,
                        overlapped: false,
                    },
                    Ok(_),
                ) => self.possible[blocks].fill(vec![fill]),
                (Kind::Read { first, possible }, Ok(data)) => {
                    for (n, (block, values)) in data.chunks(BLOCK).zip(possible).enumerate() {
                        let stray = block.iter().find(|byte| !values.contains(byte));
                        let at = first + n;
                        assert_eq!(stray, None, "block {at} may be {values:?}, and is not");
                    }
                }
                (Kind::Other | Kind::Write { .. }, Ok(_)) => {}
                (_, Err(Failure::Timeout)) => unreachable!("it was answered"),
                // Unit attentions, aborted, no such LUN: what it did is not known.
                (_, Err(_)) => {}
            }
        }
    }

    fn boot(&mut self) {
        if !self.runs {
            self.world.start_appliance();
            self.runs = true;
        }
    }

    /// The driver forgets its requests; what became of the writes is not known.
    fn forget(&mut self) {
        self.tenant.disconnect();
        self.tenant.forget_rings();
        self.pending.clear();
        self.started = false;
        self.broken = false;
    }

    fn leave(&mut self) {
        if self.started {
            self.forget();
        }
    }

    fn come_back(&mut self) {
        self.tenant.connect().expect("the shim is there");
        self.tenant.start().expect("the shim takes the session");
        self.started = true;
    }

    fn reset(&mut self) {
        if !self.started {
            return;
        }
        let answered = self.runs && self.known;
        match self.tenant.reset() {
            Ok(()) => {
                self.pending.clear();
                self.broken = false;
                match self.tenant.start() {
                    Ok(()) => {}
                    Err(error) => panic!("after a reset the shim says {error}"),
                }
            }
            // Nobody can stop the rings: the shim drops the connection in time.
            Err(error) => {
                assert!(
                    !answered || self.was_turned_away(),
                    "a reset failed: {error}"
                );
                self.forget();
            }
        }
    }

    /// Whether the appliance is dropped by the shim, as on a starved machine it did not answer in
    /// time. It hears of it a little later.
    fn was_turned_away(&self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.world.look_at_bus() {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    fn pause(&mut self) {
        if !self.started {
            return;
        }
        let answered = self.runs && self.known;
        match self.tenant.stop() {
            Ok(()) => self.tenant.start().expect("the shim goes on"),
            Err(error) => {
                assert!(
                    !answered || self.was_turned_away(),
                    "a stop failed: {error}"
                );
                self.forget();
            }
        }
    }

    fn reconnect(&mut self) {
        if self.started && !self.broken {
            self.tenant.reconnect().expect("the shim is there");
        }
    }

    fn function(&mut self, which: u8, lun: u8, task: u8) {
        if !self.is_served() || self.broken {
            return;
        }
        let tag = match self
            .pending
            .get(usize::from(task) % (self.pending.len() + 1))
        {
            Some(pending) => pending.task.tag(),
            None => task.into(),
        };
        let lun = address(u16::from(lun) % 3);
        let at = self.tenant.send_function(u32::from(which) % 10, lun, tag);
        let answer = self.tenant.function_answer(at, PATIENCE);
        assert!(answer.is_some(), "function {which} is not answered");
    }

    fn show_second(&mut self, shown: bool) {
        if !self.runs || shown == self.shown {
            return;
        }
        if shown {
            // Its disk is closed some time after nobody sees it any more; until then it is locked.
            // The third image: those of the two HBAs came first.
            let begun = Instant::now();
            while let Err(error) = self.world.show_lun(0, 0, SECOND, 2) {
                assert!(error.contains("locked"), "{error}");
                assert!(begun.elapsed() < PATIENCE, "{error}");
                thread::sleep(Duration::from_millis(1));
            }
        } else {
            let removed = self.world.remove_lun(0, 0, SECOND);
            removed.expect("a good configuration");
        }
        self.shown = shown;
    }

    fn hide(&mut self, hidden: bool) {
        if self.runs && hidden == self.known {
            self.world
                .hide_hba(0, hidden)
                .expect("a good configuration");
            self.known = !hidden;
        }
    }

    fn region(&mut self, there: bool) {
        if !self.started {
            return;
        }
        let mut regions = self.tenant.memory().regions().to_vec();
        if !there {
            regions.truncate(1);
        }
        if let Err(error) = self.tenant.send_memory(regions) {
            panic!("the memory table is refused: {error}");
        }
    }

    fn break_ring(&mut self, queue: u8, how: u8) {
        if !self.is_served() || self.broken {
            return;
        }
        self.settle();
        let ring = match queue % 3 {
            0 => &mut self.tenant.control.ring,
            1 => &mut self.tenant.queues[0].ring,
            _ => &mut self.tenant.queues[1].ring,
        };
        match how % 5 {
            0 => ring.write_avail_index(ring.avail_index().wrapping_add(ring.size() + 1)),
            1 => ring.publish(u16::MAX),
            2 => {
                ring.write_descriptor(0, 0x1000, 51, crate::world::flag::NEXT, 0);
                ring.publish(0);
            }
            3 => {
                ring.write_descriptor(0, 1 << 40, 51, 0, 0);
                ring.publish(0);
            }
            _ => {
                ring.write_descriptor(0, 0x1000, 0, 0, 0);
                ring.publish(0);
            }
        }
        ring.kick();
        self.broken = true;
    }

    fn look_at_neighbour(&mut self) {
        if self.runs {
            let command = Command::new(0, &read10(0, 1)).data_in(BLOCK);
            let data = run_on(&self.world, &mut self.neighbour, 0, &command);
            assert_eq!(data, NEIGHBOUR);
        }
    }

    /// Everything is mended, and everything answered.
    fn ends_well(mut self) {
        self.boot();
        self.hide(false);
        self.show_second(true);
        if self.broken {
            self.reset();
        }
        if !self.started {
            self.come_back();
        }
        self.settle();
        for block in 0..BLOCKS {
            let command = Command::new(0, &read10(block_number(block), 1)).data_in(BLOCK);
            let data = run_on(&self.world, &mut self.tenant, block % 2, &command);
            let values = &self.possible[block];
            let whole = data.iter().all(|byte| *byte == data[0]);
            assert!(
                whole && values.contains(&data[0]),
                "block {block}: {} of {values:?}",
                data[0]
            );
        }
        self.look_at_neighbour();
    }
}

/// Waits for an answer, as a QEMU with `reconnect-ms` and a storage VM that looks at its bus: on a
/// starved machine the shim turns away an appliance that did not answer it in time.
fn answer(world: &World, tenant: &mut Tenant, queue: usize, task: Task) -> Outcome {
    let begun = Instant::now();
    let mut reconnects = 0;
    loop {
        if let Ok(outcome) = tenant.queues[queue].wait_for(task, LOOK) {
            return outcome;
        }
        world.look_at_bus();
        if tenant.was_dropped() {
            reconnects += 1;
            tenant.reconnect().expect("the shim is there");
        }
        assert!(
            begun.elapsed() < STARVED,
            "no answer, after {reconnects} reconnects; {}",
            patience::lost(&mut tenant.queues[queue], task)
        );
    }
}

/// Runs a command on the tenant's queue; again while a unit attention comes in its place.
fn run_on(world: &World, tenant: &mut Tenant, queue: usize, command: &Command) -> Vec<u8> {
    let data = patience::repeat(|| {
        let task = tenant.queues[queue].submit(command);
        answer(world, tenant, queue, task).good()
    });
    data.expect("a disk that works")
}

fn block_number(block: usize) -> u32 {
    u32::try_from(block).expect("a small disk")
}

fn count(blocks: &std::ops::Range<usize>) -> u16 {
    u16::try_from(blocks.len()).expect("a short command")
}
