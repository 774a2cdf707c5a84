//! How fast the CPU reads through a mapping: as its own memory, or past its caches.
//!
//! VFIO maps a BAR uncached. Whether the hypervisor makes the tenant's memory in it write-back all
//! the same (KVM on Intel does) or honours that (KVM on AMD) is nowhere to be read: it shows in the
//! time that reads take, beside those of memory of our own.

use std::fmt;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::Mapping;

/// Bytes that are read at a time: few enough to be there in a few ten microseconds past the caches.
pub const SPAN: usize = 1024;

/// Reads are repeated until they have taken this long, so that a coarse clock can tell it …
const ENOUGH: Duration = Duration::from_micros(10);
/// … or this often.
const MOST_REPEATS: u32 = 1024;
/// The shortest of so many counts: whatever interrupts makes them longer.
const TRIES: u32 = 3;
/// After this long there are no more tries.
const BUDGET: Duration = Duration::from_micros(300);

/// So many times as slow as memory of our own is no write-back mapping any more …
const BETWEEN: f64 = 4.0;
/// … and so many times an uncached one: there each access takes the way to memory.
const UNCACHED: f64 = 20.0;

/// Memory that can be read in both ways that we read memory of others.
pub trait Readable {
    /// As rings and headers are read, in few wide accesses.
    fn read(&mut self);
    /// As data is copied.
    fn copy(&mut self);
}

/// What a mapping is to the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// As memory of our own.
    WriteBack,
    /// Slower than that, but cached.
    Between,
    /// Each access goes to memory by itself.
    Uncached,
}

impl Class {
    /// What that means for whoever runs the appliance.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::WriteBack => "write-back: the CPU reaches it as fast as memory of this VM",
            Self::Between => {
                "slower than memory of this VM, though not uncached: is the tenant on another NUMA \
                 node, or the machine busy? Requests take longer than they could"
            }
            Self::Uncached => {
                "UNCACHED: each access of the CPU goes past its caches. Requests are carried out \
                 rightly but slowly, the more so the more bytes they have, and speed figures from \
                 elsewhere say nothing about this HBA. KVM on AMD does so; on Intel it does where \
                 the storage VM has a passed-through device without coherent DMA, or where its \
                 VMM disables KVM_X86_QUIRK_IGNORE_GUEST_PAT. LUNs with cache = \"write-back\" \
                 suffer most, since the kernel copies for them; others are copied in few wide \
                 accesses"
            }
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteBack => "write-back",
            Self::Between => "in between",
            Self::Uncached => "uncached",
        })
    }
}

/// Bytes in a second, through the mapping and in memory of our own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Through the mapping.
    pub window: f64,
    /// In memory of our own.
    pub own: f64,
}

/// What a probe has found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Findings {
    /// Of reads as those of rings and headers.
    pub read: Speed,
    /// Of copies as those of data.
    pub copy: Speed,
}

impl Findings {
    /// What the mapping is.
    pub fn class(&self) -> Class {
        let slower = |speed: &Speed| speed.own / speed.window;
        let slower = slower(&self.read).max(slower(&self.copy));
        if slower < BETWEEN {
            Class::WriteBack
        } else if slower < UNCACHED {
            Class::Between
        } else {
            Class::Uncached
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read, copy } = self;
        let mega = |bytes: f64| bytes / 1e6;
        write!(
            f,
            "read at {:.0} MB/s and copied at {:.0} MB/s, where memory of this VM is read at \
             {:.0} and copied at {:.0}",
            mega(read.window),
            mega(copy.window),
            mega(read.own),
            mega(copy.own)
        )
    }
}

/// Probes the [`SPAN`] bytes at `offset` of `mapping`, which only reads them. It takes a few hundred
/// microseconds at most where an access takes less than one.
///
/// # Errors
/// `InvalidInput` if they are not all in the mapping; why there is no memory to compare with.
pub fn probe(mapping: &Mapping, offset: usize) -> io::Result<Findings> {
    let len = u64::try_from(SPAN).unwrap_or(u64::MAX);
    let file = File::from(memfd_create("own", MemfdFlags::CLOEXEC)?);
    file.set_len(len)?;
    let own = Mapping::new(file.as_fd(), 0, SPAN, None)?;
    // A page that nobody has written is the same as every other such page.
    own.write(0, &[0x5a; SPAN]);
    let start = std::time::Instant::now();
    let mut window = Place::new(mapping, offset)?;
    let mut own = Place::new(&own, 0)?;
    Ok(compare(&mut window, &mut own, &mut || start.elapsed()))
}

/// Compares `window` with `own` by the time that `clock` says has passed.
fn compare(
    window: &mut impl Readable,
    own: &mut impl Readable,
    clock: &mut impl FnMut() -> Duration,
) -> Findings {
    let end = clock().saturating_add(BUDGET);
    Findings {
        read: Speed {
            window: speed(|| window.read(), end, clock),
            own: speed(|| own.read(), end, clock),
        },
        copy: Speed {
            window: speed(|| window.copy(), end, clock),
            own: speed(|| own.copy(), end, clock),
        },
    }
}

/// Bytes in a second, where `pass` moves [`SPAN`] of them.
fn speed(mut pass: impl FnMut(), end: Duration, clock: &mut impl FnMut() -> Duration) -> f64 {
    // The first finds page tables, and code, not in their caches.
    pass();
    let mut shortest = f64::MAX;
    for _ in 0..TRIES {
        let start = clock();
        let mut repeats = 0;
        let mut taken = Duration::ZERO;
        while taken < ENOUGH && repeats < MOST_REPEATS {
            for _ in 0..repeats.max(1) {
                pass();
            }
            repeats += repeats.max(1);
            taken = clock().saturating_sub(start);
        }
        shortest = shortest.min(taken.as_secs_f64() / f64::from(repeats));
        if clock() >= end {
            break;
        }
    }
    // A clock that has not moved counts as one that has by a nanosecond.
    SPAN as f64 / shortest.max(1e-9)
}

/// [`SPAN`] bytes of a mapping.
struct Place<'a> {
    mapping: &'a Mapping,
    offset: usize,
    to: [u8; SPAN],
}

impl<'a> Place<'a> {
    fn new(mapping: &'a Mapping, offset: usize) -> io::Result<Self> {
        let inside = mapping.has(offset, SPAN);
        inside
            .then_some(Self {
                mapping,
                offset,
                to: [0; SPAN],
            })
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Readable for Place<'_> {
    fn read(&mut self) {
        self.mapping.read(self.offset, black_box(&mut self.to));
    }

    fn copy(&mut self) {
        if let Some(slice) = self.mapping.slice(self.offset as u64, SPAN) {
            slice.copy_to(black_box(&mut self.to[..]));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::super::testing::private_memory;
    use super::*;

    /// A clock that only what reads memory moves.
    type Clock = Rc<Cell<Duration>>;

    /// Memory of which each pass takes so long.
    struct Slow {
        clock: Clock,
        read: Duration,
        copy: Duration,
        passes: u32,
    }

    impl Readable for Slow {
        fn read(&mut self) {
            self.passes += 1;
            self.clock.set(self.clock.get() + self.read);
        }

        fn copy(&mut self) {
            self.passes += 1;
            self.clock.set(self.clock.get() + self.copy);
        }
    }

    const OWN_NS: u64 = 40;

    /// What is found where own memory takes [`OWN_NS`] for a pass and the window so long, by a
    /// clock that says multiples of `tick`; and how long that took.
    fn found(read_ns: u64, copy_ns: u64, tick_ns: u64) -> (Findings, Duration) {
        let clock = Clock::default();
        let memory = |read, copy| Slow {
            clock: Rc::clone(&clock),
            read: Duration::from_nanos(read),
            copy: Duration::from_nanos(copy),
            passes: 0,
        };
        let mut window = memory(read_ns, copy_ns);
        let mut own = memory(OWN_NS, OWN_NS);
        let findings = compare(&mut window, &mut own, &mut || {
            let now = u64::try_from(clock.get().as_nanos()).unwrap();
            Duration::from_nanos(now - now % tick_ns)
        });
        (findings, clock.get())
    }

    #[test]
    fn memory_as_fast_as_our_own_is_write_back() {
        assert_eq!(found(OWN_NS, OWN_NS, 1).0.class(), Class::WriteBack);
        assert_eq!(found(3 * OWN_NS, 3 * OWN_NS, 1).0.class(), Class::WriteBack);
    }

    #[test]
    fn memory_of_100_ns_for_each_16_bytes_is_uncached() {
        let (findings, _) = found(64 * 100, 64 * 100, 1);
        assert_eq!(findings.class(), Class::Uncached);
        // 1024 bytes in 6.4 us and in 40 ns.
        assert_eq!(findings.read.window.round(), 160e6);
        assert_eq!(findings.read.own.round(), 25_600e6);
        assert_eq!(
            findings.to_string(),
            "read at 160 MB/s and copied at 160 MB/s, where memory of this VM is read at 25600 \
             and copied at 25600"
        );
    }

    #[test]
    fn the_slower_of_both_ways_counts() {
        assert_eq!(found(OWN_NS, 30 * OWN_NS, 1).0.class(), Class::Uncached);
        assert_eq!(found(30 * OWN_NS, OWN_NS, 1).0.class(), Class::Uncached);
    }

    #[test]
    fn memory_ten_times_as_slow_is_in_between() {
        assert_eq!(found(10 * OWN_NS, 10 * OWN_NS, 1).0.class(), Class::Between);
    }

    #[test]
    fn a_clock_of_some_microseconds_tells_the_classes_apart() {
        for tick in [1000, 4000] {
            assert_eq!(found(OWN_NS, OWN_NS, tick).0.class(), Class::WriteBack);
            assert_eq!(found(6400, 6400, tick).0.class(), Class::Uncached);
        }
    }

    #[test]
    fn a_probe_takes_a_few_hundred_microseconds_whatever_the_memory_is() {
        for pass in [1, OWN_NS, 10 * OWN_NS, 64 * 100, 64 * 500] {
            let (_, taken) = found(pass, pass, 1);
            assert!(taken < Duration::from_micros(500), "{pass}: {taken:?}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_ends_and_calls_nothing_slow() {
        let clock = Clock::default();
        let memory = || Slow {
            clock: Rc::clone(&clock),
            read: Duration::ZERO,
            copy: Duration::ZERO,
            passes: 0,
        };
        let (mut window, mut own) = (memory(), memory());
        let findings = compare(&mut window, &mut own, &mut || Duration::ZERO);
        assert_eq!(findings.class(), Class::WriteBack);
        // One to warm up and three times all repeats, read and copied.
        assert_eq!(window.passes, 2 * (1 + 3 * MOST_REPEATS));
    }

    #[test]
    fn the_slowest_memory_is_given_up_after_a_pass_of_each_kind() {
        // 5 us for each 16 bytes: two passes as reads, two as copies.
        let pass = 64 * 5000;
        let (findings, taken) = found(pass, pass, 1);
        assert_eq!(findings.class(), Class::Uncached);
        assert!(taken < Duration::from_nanos(4 * pass + 50_000), "{taken:?}");
    }

    #[test]
    fn a_probe_changes_nothing_and_stays_inside_its_mapping() {
        let mapping = private_memory(4096);
        let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
        mapping.write(0, &bytes);
        probe(&mapping, 4096 - SPAN).unwrap();
        let mut after = vec![0; 4096];
        mapping.read(0, &mut after);
        assert_eq!(after, bytes);
        let error = probe(&mapping, 4096 - SPAN + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
