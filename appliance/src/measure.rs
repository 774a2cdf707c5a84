//! Workers that are turned by hand, so that what a request costs them can be counted.
//!
//! They are there with the feature `measure` alone, for the program `hot-path`.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use spec::mailbox::{Reply, RingSetup};
use spec::virtio_scsi::FIRST_REQUEST_QUEUE;
use uuid::Uuid;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::attachment::Line;
use crate::config::Workers;
use crate::front::{Asked, Called, Front, Gone, Request, Side, Start};
use crate::inbox::{Inbox, Outbox};
use crate::memory::{Mapping, TenantMemory};
use crate::ring::Violation;
use crate::scsi::{Address, Host, Initiator, LogicalUnit};
use crate::spread::Spread;
use crate::worker::{Behind, Vectors, Worker};

/// A worker of an HBA with one unit, target 0 LUN 0, at work on one ring.
pub struct Turned {
    worker: Worker,
    calls: Arc<Calls>,
}

/// The place of a worker, which it takes in the thread that it is to be turned in.
pub struct Seat {
    host: Host,
    line: Line,
    front: Facing,
}

/// What stands in front of a worker.
enum Facing {
    /// It is the first.
    Driver(Driver),
    /// It is another.
    First(Outbox),
}

/// What a driver has for an HBA.
pub struct Driver {
    /// Virtio features that it accepted.
    pub features: u64,
    /// Its memory.
    pub memory: Arc<TenantMemory>,
    /// Its request rings, as many as there are workers.
    pub rings: Vec<DriverRing>,
}

/// A ring of a driver.
pub struct DriverRing {
    /// Where it is.
    pub setup: RingSetup,
    /// Where it is tracked, if it is.
    pub inflight: Option<Arc<Mapping>>,
    /// What the driver kicks by.
    pub kick: EventFd,
}

/// How often the driver was called for one worker's rings, in cache lines of its own as the eventfds
/// of a driver are.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Calls(AtomicU64);

/// Asks for what a driver needs, and counts how often that is called.
struct Counter {
    requests: VecDeque<Request>,
    calls: Arc<Calls>,
}

impl Front for Counter {
    fn hba(&self) -> &str {
        "measured"
    }

    fn request(&mut self) -> Result<Option<(Asked, Request)>, Gone> {
        let asked = Asked {
            sequence: 0,
            operation: 0,
        };
        Ok(self.requests.pop_front().map(|request| (asked, request)))
    }

    fn reply(&mut self, _: Asked, reply: Reply) -> Result<(), Gone> {
        assert!(!matches!(reply, Reply::Failed(_)), "{reply:?}");
        Ok(())
    }

    fn call(&self, _: u16) -> Called {
        self.calls.0.fetch_add(1, Ordering::Relaxed);
        Called::Signalled
    }

    fn retired(&self, ring: u16, violation: Violation) {
        panic!("ring {ring} was retired: {violation}");
    }
}

impl Side for Counter {
    fn hba(&self) -> &str {
        Front::hba(self)
    }

    fn call(&self, ring: u16) -> Called {
        Front::call(self, ring)
    }

    fn retired(&self, ring: u16, violation: Violation) {
        Front::retired(self, ring, violation);
    }
}

impl Seat {
    /// The places of the workers of an HBA that serves `unit` to `driver`, a worker for each of its
    /// rings.
    ///
    /// # Errors
    /// What making an eventfd reports.
    pub fn all(driver: Driver, unit: LogicalUnit) -> Result<Vec<Self>, Box<dyn Error>> {
        let initiator = Initiator {
            uuid: Uuid::nil(),
            number: 1,
        };
        let address = Address { target: 0, lun: 0 };
        let host = Host::new(initiator, [(address, Arc::new(unit))])?;
        let workers = Workers {
            count: driver.rings.len(),
            ..Workers::default()
        };
        let spread = Spread::by_ring(workers.count);
        let mut line = Line::new(Inbox::new()?, Arc::default(), [0; 16], workers);
        let others = line.split(spread)?;
        let first = line.team.first().clone();
        let mut seats = vec![Self {
            host: host.share(),
            line,
            front: Facing::Driver(driver),
        }];
        seats.extend(others.into_iter().map(|line| Self {
            host: host.share(),
            line,
            front: Facing::First(first.clone()),
        }));
        Ok(seats)
    }

    /// The place, from 0, of the worker that serves the driver's `nth` request ring, of so many.
    pub fn of_ring(nth: u16, workers: usize) -> usize {
        Spread::by_ring(workers).of_ring(FIRST_REQUEST_QUEUE + nth)
    }

    /// Takes the place. The first tells the others what the driver has, and hears of them, when
    /// each is turned once, and it itself last.
    ///
    /// # Errors
    /// What setting the loop up reports.
    ///
    /// # Panics
    /// If the driver's setup makes no sense.
    pub fn take(self) -> Result<Turned, Box<dyn Error>> {
        let calls = Arc::new(Calls::default());
        let mut counter = Counter {
            requests: VecDeque::new(),
            calls: Arc::clone(&calls),
        };
        let front: Box<dyn Front> = match self.front {
            Facing::First(first) => Box::new(Behind::new(counter, first)),
            Facing::Driver(driver) => {
                let rings = driver.rings.into_iter().map(|ring| {
                    Request::StartRing(Start {
                        setup: ring.setup,
                        kick: Some(ring.kick),
                        inflight: ring.inflight,
                        taken_over: false,
                    })
                });
                counter.requests = [
                    Request::SetFeatures(driver.features),
                    Request::SetMemory(Some(driver.memory)),
                ]
                .into_iter()
                .chain(rings)
                .collect();
                Box::new(counter)
            }
        };
        let (vector, stop) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        let vectors = Vectors::only(&vector);
        let mut worker = Worker::new(front, self.host, self.line, &vectors, &stop)?;
        worker.begin()?;
        Ok(Turned { worker, calls })
    }
}

impl Turned {
    /// One turn of the worker's loop, which sleeps where there is nothing to do.
    ///
    /// # Panics
    /// If the loop breaks.
    pub fn turn(&mut self) {
        let turned = self.worker.turn();
        assert!(matches!(turned, Ok(None)), "{turned:?}");
    }

    /// How often the driver was called.
    pub fn calls(&self) -> u64 {
        self.calls.0.load(Ordering::Relaxed)
    }
}
