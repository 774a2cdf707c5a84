//! The control queue: task management functions (virtio 1.3 §5.6.6.2).

use spec::virtio_scsi::{Control, response, task_management as function};

use crate::memory::Segments;
use crate::ring::{Chain, Violation};
use crate::scsi::{self, Address, Attention, Host, Place};
use crate::task::{Finished, Name, enough};

/// Response byte of a task management function that is complete.
const FUNCTION_COMPLETE: u8 = response::OK;
/// Bytes of a TMF request and of its response.
const TMF_LEN: (usize, usize) = (24, 1);
/// Bytes of an asynchronous notification request and of its response.
const NOTIFICATION_LEN: (usize, usize) = (16, 5);
/// Offset of the response byte after the granted events.
const NOTIFICATION_RESPONSE: usize = 4;

/// A control request that was fetched; it goes back to its ring by [`Self::answer`].
#[derive(Debug)]
#[must_use = "a request must go back to its ring"]
pub(crate) struct ControlRequest {
    head: u16,
    request: Control,
    response: Segments,
}

/// Which tasks a function is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The one of this unit with this tag.
    Task(Address, u64),
    /// Those of these units.
    Units(scsi::Scope),
}

impl Scope {
    /// Whether the command of that name is one of them.
    pub fn has(self, name: Name) -> bool {
        let Place::Unit(address) = name.place else {
            return false;
        };
        match self {
            Self::Task(unit, tag) => unit == address && tag == name.tag,
            Self::Units(scope) => scope.has(address),
        }
    }
}

/// What to do for a control request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Answer with this.
    Answer(u8),
    /// Answer whether there is such a task.
    Query(Scope),
    /// End these tasks with this virtio-scsi response, then answer that the function is complete.
    End(Scope, u8),
    /// The same for a reset of these units, after which their initiator is told this.
    Reset(scsi::Scope, Attention),
}

impl ControlRequest {
    /// The request in a chain.
    ///
    /// # Errors
    /// [`Violation::TooShort`] if request or response do not fit.
    pub fn parse(chain: Chain) -> Result<Self, Violation> {
        let Chain {
            head,
            readable,
            writable,
        } = chain;
        let mut bytes = [0; Control::MAX_LEN];
        let have = readable.read_at(0, &mut bytes);
        let request = Control::parse(&bytes[..have]).map_err(|_| Violation::TooShort {
            kind: "readable",
            have,
            need: TMF_LEN.0,
        })?;
        let (_, need) = match request {
            Control::TaskManagement { .. } | Control::Unknown(_) => TMF_LEN,
            Control::Notification { .. } => NOTIFICATION_LEN,
        };
        enough("writable", &writable, need)?;
        Ok(Self {
            head,
            request,
            response: writable,
        })
    }

    /// What to do.
    pub fn plan(&self, host: &Host) -> Plan {
        match self.request {
            Control::TaskManagement { function, lun, tag } => {
                plan_function(function, host.place(lun), tag)
            }
            // No event is ever granted: there are no media whose events one could ask for.
            Control::Notification { .. } => Plan::Answer(response::OK),
            Control::Unknown(_) => Plan::Answer(response::FUNCTION_REJECTED),
        }
    }

    /// Writes the response.
    pub fn answer(self, code: u8) -> Finished {
        let written = if let Control::Notification { .. } = self.request {
            self.response.write_at(0, &[0; NOTIFICATION_RESPONSE])
                + self.response.write_at(NOTIFICATION_RESPONSE, &[code])
        } else {
            self.response.write_at(0, &[code])
        };
        Finished {
            head: self.head,
            written: u32::try_from(written).unwrap_or(u32::MAX),
        }
    }
}

/// What a task management function means for a place (SAM-5 §7).
fn plan_function(code: u32, place: Place, tag: u64) -> Plan {
    let unit = match place {
        Place::NoTarget => return Plan::Answer(response::BAD_TARGET),
        Place::Unit(Address { target, .. }) | Place::NoUnit(target) | Place::ReportLuns(target)
            if code == function::I_T_NEXUS_RESET =>
        {
            return Plan::Reset(scsi::Scope::Target(target), Attention::NexusLoss);
        }
        Place::NoUnit(_) => return Plan::Answer(response::INCORRECT_LUN),
        // It never has a task under way.
        Place::ReportLuns(_) => return Plan::Answer(FUNCTION_COMPLETE),
        Place::Unit(unit) => unit,
    };
    let all = Scope::Units(scsi::Scope::Unit(unit));
    match code {
        function::ABORT_TASK => Plan::End(Scope::Task(unit, tag), response::ABORTED),
        function::ABORT_TASK_SET | function::CLEAR_TASK_SET => Plan::End(all, response::ABORTED),
        function::LOGICAL_UNIT_RESET => {
            Plan::Reset(scsi::Scope::Unit(unit), Attention::LogicalUnitReset)
        }
        function::QUERY_TASK => Plan::Query(Scope::Task(unit, tag)),
        function::QUERY_TASK_SET => Plan::Query(all),
        // CLEAR ACA: NACA is not supported. Others are not defined.
        _ => Plan::Answer(response::FUNCTION_REJECTED),
    }
}

/// A function that waits until the tasks it ends have gone back to their rings: the driver may
/// use their buffers and names again as soon as it sees the answer (virtio 1.3 §5.6.6.2).
#[derive(Debug)]
struct Waiting {
    ring: u16,
    memory: u64,
    tasks: usize,
    request: ControlRequest,
}

/// The functions of one HBA that wait for tasks to go back.
#[derive(Debug, Default)]
pub(crate) struct Functions {
    slots: Vec<Option<Waiting>>,
}

impl Functions {
    /// Most functions that may wait at a time: Linux has one a LUN in error handling.
    const LIMIT: usize = 256;

    /// A place for one more function, unless too many wait.
    pub fn vacancy(&mut self) -> Option<usize> {
        let free = self.slots.iter().position(Option::is_none);
        free.or_else(|| {
            (self.slots.len() < Self::LIMIT).then(|| {
                self.slots.push(None);
                self.slots.len() - 1
            })
        })
    }

    /// Keeps `request` of `ring` at a vacancy until `tasks` tasks have gone back.
    pub fn wait(
        &mut self,
        place: usize,
        ring: u16,
        memory: u64,
        tasks: usize,
        request: ControlRequest,
    ) {
        self.slots[place] = Some(Waiting {
            ring,
            memory,
            tasks,
            request,
        });
    }

    /// Counts one task that has gone back for the function at `place`; returns the function's
    /// ring and answer if that was the last.
    pub fn task_is_back(&mut self, place: usize) -> Option<(u16, Finished)> {
        let slot = self.slots.get_mut(place)?;
        let waiting = slot.as_mut()?;
        waiting.tasks = waiting.tasks.saturating_sub(1);
        if waiting.tasks > 0 {
            return None;
        }
        slot.take()
            .map(|over| (over.ring, over.request.answer(FUNCTION_COMPLETE)))
    }

    /// Whether a function has its buffers in a memory table older than `memory`.
    pub fn use_memory_before(&self, memory: u64) -> bool {
        self.slots
            .iter()
            .flatten()
            .any(|waiting| waiting.memory < memory)
    }

    /// Drops every function without an answer: their ring is gone.
    pub fn forget(&mut self) {
        self.slots.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::shared_memory;

    /// A control request of these bytes at offset 0, with its response at 0x100.
    fn request(bytes: &[u8], response_len: usize) -> Result<ControlRequest, Violation> {
        let memory = shared_memory(4096);
        memory.slice(0, bytes.len()).unwrap().copy_from(bytes);
        let buffer = |at, len| {
            let mut segments = Segments::new(memory.clone());
            segments.push(at, len).unwrap();
            segments
        };
        ControlRequest::parse(Chain {
            head: 5,
            readable: buffer(0, bytes.len()),
            writable: buffer(0x100, response_len),
        })
    }

    #[test]
    fn a_request_too_short_for_its_type_is_a_violation() {
        let too_short =
            |bytes: &[u8], response_len| request(bytes, response_len).unwrap_err().reason();
        let reason = spec::device::ring_error::TOO_SHORT;
        assert_eq!(too_short(&[0; 23], 1), reason);
        assert_eq!(too_short(&[1], 5), reason);
        let notification = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0];
        assert_eq!(too_short(&notification, 4), reason);
    }

    #[test]
    fn a_notification_grants_no_events() {
        let notification = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0];
        let request = request(&notification, 5).unwrap();
        let response = request.response.clone();
        response.write_at(0, &[0xff; 5]);
        let finished = request.answer(response::OK);
        assert_eq!((finished.head, finished.written), (5, 5));
        let mut bytes = [1; 5];
        response.read_at(0, &mut bytes);
        assert_eq!(bytes, [0; 5]);
    }

    #[test]
    fn a_function_is_answered_when_the_last_of_its_tasks_is_back() {
        let mut functions = Functions::default();
        let place = functions.vacancy().unwrap();
        functions.wait(place, 0, 7, 2, request(&[0; 24], 1).unwrap());
        assert!(functions.use_memory_before(8) && !functions.use_memory_before(7));
        assert_eq!(functions.task_is_back(place), None);
        let finished = Finished {
            head: 5,
            written: 1,
        };
        assert_eq!(functions.task_is_back(place), Some((0, finished)));
        assert_eq!(functions.task_is_back(place), None);
    }

    #[test]
    fn so_many_functions_may_wait_and_no_more() {
        let mut functions = Functions::default();
        for _ in 0..Functions::LIMIT {
            let place = functions.vacancy().unwrap();
            functions.wait(place, 0, 0, 1, request(&[0; 24], 1).unwrap());
        }
        assert_eq!(functions.vacancy(), None);
        assert!(functions.task_is_back(3).is_some());
        assert_eq!(functions.vacancy(), Some(3));
    }

    const UNIT: Address = Address { target: 2, lun: 3 };

    #[test]
    fn a_function_on_no_target_or_no_unit_says_so() {
        let plan = |place| plan_function(function::ABORT_TASK, place, 1);
        assert_eq!(plan(Place::NoTarget), Plan::Answer(response::BAD_TARGET));
        assert_eq!(
            plan(Place::NoUnit(2)),
            Plan::Answer(response::INCORRECT_LUN)
        );
    }

    #[test]
    fn a_reset_ends_the_tasks_of_its_unit_with_reset_and_leaves_a_unit_attention() {
        assert_eq!(
            plan_function(function::LOGICAL_UNIT_RESET, Place::Unit(UNIT), 0),
            Plan::Reset(scsi::Scope::Unit(UNIT), Attention::LogicalUnitReset)
        );
    }

    #[test]
    fn a_nexus_reset_needs_a_target_but_no_unit() {
        for place in [Place::NoUnit(2), Place::Unit(UNIT), Place::ReportLuns(2)] {
            assert_eq!(
                plan_function(function::I_T_NEXUS_RESET, place, 0),
                Plan::Reset(scsi::Scope::Target(2), Attention::NexusLoss)
            );
        }
    }

    #[test]
    fn aborts_and_queries_name_their_task() {
        assert_eq!(
            plan_function(function::ABORT_TASK, Place::Unit(UNIT), 9),
            Plan::End(Scope::Task(UNIT, 9), response::ABORTED)
        );
        assert_eq!(
            plan_function(function::QUERY_TASK, Place::Unit(UNIT), 9),
            Plan::Query(Scope::Task(UNIT, 9))
        );
    }

    #[test]
    fn unknown_functions_are_rejected() {
        for code in [function::CLEAR_ACA, 8, u32::MAX] {
            assert_eq!(
                plan_function(code, Place::Unit(UNIT), 0),
                Plan::Answer(response::FUNCTION_REJECTED)
            );
        }
    }
}
