//! A worker that is turned by hand, so that what a request costs it can be counted.
//!
//! It is there with the feature `measure` alone, for the program `hot-path`.

use std::cell::Cell;
use std::collections::VecDeque;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;

use spec::mailbox::{Reply, RingSetup};
use uuid::Uuid;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::attachment::Line;
use crate::config::Workers;
use crate::front::{Asked, Called, Front, Gone, Request, Start};
use crate::inbox::Inbox;
use crate::memory::{Mapping, TenantMemory};
use crate::ring::Violation;
use crate::scsi::{Address, Host, Initiator, LogicalUnit};
use crate::worker::{Vectors, Worker};

/// One HBA with one unit, target 0 LUN 0, at work on one ring.
pub struct Turned {
    worker: Worker,
    calls: Rc<Cell<u64>>,
}

/// What a driver has for the worker.
pub struct Driver {
    /// Virtio features that it accepted.
    pub features: u64,
    /// Its memory.
    pub memory: Arc<TenantMemory>,
    /// Its ring.
    pub setup: RingSetup,
    /// Where the ring is tracked, if it is.
    pub inflight: Option<Arc<Mapping>>,
    /// What it kicks by.
    pub kick: EventFd,
}

/// Asks for what a driver needs, and counts how often that is called.
struct Counter {
    requests: VecDeque<Request>,
    calls: Rc<Cell<u64>>,
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
        self.calls.set(self.calls.get() + 1);
        Called::Signalled
    }

    fn retired(&self, ring: u16, violation: Violation) {
        panic!("ring {ring} was retired: {violation}");
    }
}

impl Turned {
    /// Serves `unit` to `driver`.
    ///
    /// # Errors
    /// What setting the loop up reports.
    ///
    /// # Panics
    /// If the driver's setup makes no sense.
    pub fn new(driver: Driver, unit: LogicalUnit) -> Result<Self, Box<dyn Error>> {
        let calls = Rc::new(Cell::new(0));
        let start = Start {
            setup: driver.setup,
            kick: Some(driver.kick),
            inflight: driver.inflight,
            taken_over: false,
        };
        let front = Counter {
            requests: VecDeque::from([
                Request::SetFeatures(driver.features),
                Request::SetMemory(Some(driver.memory)),
                Request::StartRing(start),
            ]),
            calls: Rc::clone(&calls),
        };
        let initiator = Initiator {
            uuid: Uuid::nil(),
            number: 1,
        };
        let address = Address { target: 0, lun: 0 };
        let host = Host::new(initiator, [(address, Arc::new(unit))])?;
        let line = Line::new(Inbox::new()?, Arc::default(), [0; 16], Workers::default());
        let (vector, stop) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        let mut worker = Worker::new(Box::new(front), host, line, &Vectors::only(&vector), &stop)?;
        worker.begin()?;
        Ok(Self { worker, calls })
    }

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
        self.calls.get()
    }
}
