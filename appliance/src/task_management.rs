//! The control queue: task management functions (virtio 1.3 §5.6.6.2).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use spec::virtio_scsi::{Control, response, task_management as function};

use crate::inbox::{Receipt, UnitChange};
use crate::memory::Segments;
use crate::ring::{Chain, Violation};
use crate::scsi::{self, Address, Attention, Host, Pending, Place};
use crate::task::{Command, Name, Task, Used, enough};
use crate::worker::Patience;

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

    /// Whether `task` is one of them: a copy belongs to the units that it copies from and to, too.
    pub fn takes(self, task: &Task) -> bool {
        match self {
            Self::Units(scope) if task.pending.copies_at(scope) => true,
            _ => self.has(task.name),
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
    /// End these tasks with [`response::ABORTED`], then answer that the function is complete.
    Abort(Scope),
    /// The same for all tasks of this unit, those of other initiators too.
    Clear(Address),
    /// End the tasks of this unit, whoever sent them, with [`response::RESET`]; everyone is told.
    ResetUnit(Address),
    /// End the tasks of this initiator and this target with [`response::RESET`].
    ResetNexus(u8),
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
            writable: mut response,
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
        enough("writable", &response, need)?;
        // A function may wait for long; what it does not need of its buffers is not kept.
        drop(response.split_off(need));
        Ok(Self {
            head,
            request,
            response,
        })
    }

    /// The code of the task management function, if it is one.
    pub fn function(&self) -> Option<u32> {
        match self.request {
            Control::TaskManagement { function, .. } => Some(function),
            Control::Notification { .. } | Control::Unknown(_) => None,
        }
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
    pub fn answer(self, code: u8) -> Used {
        let written = if let Control::Notification { .. } = self.request {
            self.response.write_at(0, &[0; NOTIFICATION_RESPONSE])
                + self.response.write_at(NOTIFICATION_RESPONSE, &[code])
        } else {
            self.response.write_at(0, &[code])
        };
        Used {
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
            return Plan::ResetNexus(target);
        }
        Place::NoUnit(_) => return Plan::Answer(response::INCORRECT_LUN),
        // It never has a task under way.
        Place::ReportLuns(_) => return Plan::Answer(FUNCTION_COMPLETE),
        Place::Unit(unit) => unit,
    };
    let all = Scope::Units(scsi::Scope::Unit(unit));
    match code {
        function::ABORT_TASK => Plan::Abort(Scope::Task(unit, tag)),
        function::ABORT_TASK_SET => Plan::Abort(all),
        function::CLEAR_TASK_SET => Plan::Clear(unit),
        function::LOGICAL_UNIT_RESET => Plan::ResetUnit(unit),
        function::QUERY_TASK => Plan::Query(Scope::Task(unit, tag)),
        function::QUERY_TASK_SET => Plan::Query(all),
        // NACA is not supported, so there is never an ACA condition to clear.
        function::CLEAR_ACA => Plan::Answer(FUNCTION_COMPLETE),
        _ => Plan::Answer(response::FUNCTION_REJECTED),
    }
}

/// What a reset does to units beside ending their tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reset {
    /// Which units.
    pub scope: scsi::Scope,
    /// What is told of it.
    pub attention: Attention,
}

/// What is to be done when the tasks that a function waits for have gone back to their rings: the
/// driver may use their buffers and names again from then on (virtio 1.3 §5.6.6.2).
#[derive(Debug)]
pub(crate) enum Owed {
    /// Answering a request of the control queue.
    Answer {
        /// The queue.
        ring: u16,
        /// Which memory table its buffers were found with.
        memory: u64,
        /// The request.
        request: ControlRequest,
        /// Whether there is such a task, where that is what the driver wants to know.
        found: Option<Arc<AtomicBool>>,
        /// What is done then, once no worker of the HBA has tasks from before: they would be told
        /// of it.
        reset: Option<Reset>,
        /// What else it waits for, and how long.
        patience: Patience,
    },
    /// Going on with a command of a request queue: PREEMPT AND ABORT.
    Command(Box<Waiter>),
    /// Nothing any more: the queue of the request is gone, or the command was aborted.
    Nothing,
    /// Dropping this when they have ended, for a function of another HBA, or for a command that
    /// another worker of this one has.
    Receipt(#[expect(dead_code, reason = "dropping it is all that is done with it")] Receipt),
    /// Dropping this, for a function of another worker of this HBA.
    Fellow(#[expect(dead_code, reason = "dropping it is all that is done with it")] Receipt),
    /// Showing other units, now that every other worker does.
    Change(Box<UnitChange>),
    /// Telling the driver that the unit at this address is gone.
    Events {
        /// Where it was.
        gone: Address,
        /// Whether another has come there, which is told next.
        come: bool,
    },
}

/// A command that goes on when those of others have ended.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// The queue.
    pub ring: u16,
    /// What task management knows it by.
    pub name: Name,
    /// Which memory table its buffers were found with.
    pub memory: u64,
    /// The command.
    pub command: Command,
    /// How to finish it.
    pub pending: Pending,
    /// When it was begun.
    pub since: Instant,
}

#[derive(Debug)]
struct Waiting {
    /// Tasks here, and receipts of others, that are not back.
    count: usize,
    owed: Owed,
}

impl Waiting {
    /// Takes the request that is to be answered, if its patience is such, with the reset that is
    /// still to be done.
    fn take_answer(
        &mut self,
        of: impl Fn(&Patience) -> bool,
    ) -> Option<(u16, ControlRequest, Option<Reset>)> {
        match &self.owed {
            Owed::Answer { patience, .. } if of(patience) => {}
            _ => return None,
        }
        match std::mem::replace(&mut self.owed, Owed::Nothing) {
            Owed::Answer {
                ring,
                request,
                reset,
                ..
            } => Some((ring, request, reset)),
            _ => None,
        }
    }
}

/// The functions of one HBA that wait for tasks to go back, each with a number of its own.
#[derive(Debug, Default)]
pub(crate) struct Functions {
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
}

impl Functions {
    /// Most functions of the driver that may wait at a time: Linux has one a LUN in error handling.
    const LIMIT: usize = 256;

    /// Whether the driver may have one more function wait.
    pub fn has_room(&self) -> bool {
        // Those whose queue is gone count too: others may still work on them, and an HBA that is
        // reset again and again must not give these ever more to do.
        let asked = |waiting: &&Waiting| {
            matches!(
                waiting.owed,
                Owed::Answer { .. } | Owed::Command(_) | Owed::Nothing
            )
        };
        self.waiting.values().filter(asked).count() < Self::LIMIT
    }

    /// A number for one more function.
    pub fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Keeps what function `number` owes until so many tasks and receipts are back; without any
    /// it is returned at once.
    pub fn wait(&mut self, number: u64, count: usize, owed: Owed) -> Option<Owed> {
        if count == 0 {
            return Some(owed);
        }
        self.waiting.insert(number, Waiting { count, owed });
        None
    }

    /// Has function `number`, which waits, wait for so many more.
    pub fn wait_for_more(&mut self, number: u64, count: usize) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.count += count;
        }
    }

    /// Counts one more that is back for function `number`; returns what it owes if that was the
    /// last.
    pub fn is_back(&mut self, number: u64) -> Option<Owed> {
        let waiting = self.waiting.get_mut(&number)?;
        waiting.count = waiting.count.saturating_sub(1);
        if waiting.count > 0 {
            return None;
        }
        self.waiting.remove(&number).map(|waiting| waiting.owed)
    }

    /// Whether function `number` waits for anything.
    pub fn is_waiting(&self, number: u64) -> bool {
        self.waiting.contains_key(&number)
    }

    /// Lets it be told later that a unit has come to this address: it is still to be told that
    /// another is gone from there. Returns whether that is so.
    pub fn announce_later(&mut self, address: Address) -> bool {
        // The last, so that they are told in order.
        let mut waiting = self.waiting.values_mut().rev();
        waiting.any(|waiting| match &mut waiting.owed {
            Owed::Events { gone, come } if *gone == address => {
                *come = true;
                true
            }
            _ => false,
        })
    }

    /// The commands that wait.
    pub fn commands(&self) -> impl Iterator<Item = &Waiter> {
        self.waiting
            .values()
            .filter_map(|waiting| match &waiting.owed {
                Owed::Command(waiter) => Some(&**waiter),
                _ => None,
            })
    }

    /// Takes the commands that wait and are `wanted`, which are to be answered by the caller.
    pub fn take_commands(&mut self, wanted: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let mut taken = Vec::new();
        for waiting in self.waiting.values_mut() {
            match &waiting.owed {
                Owed::Command(waiter) if wanted(waiter) => {}
                _ => continue,
            }
            if let Owed::Command(waiter) = std::mem::replace(&mut waiting.owed, Owed::Nothing) {
                taken.push(*waiter);
            }
        }
        taken
    }

    /// Takes the request that a function is to answer, which is up to the caller then.
    /// Nothing else is owed: it has waited for disks, and a reset is done before.
    pub fn give_up(&mut self, number: u64) -> Option<(u16, ControlRequest)> {
        let waiting = self.waiting.get_mut(&number)?;
        let (ring, request, reset) = waiting.take_answer(|_| true)?;
        debug_assert!(reset.is_none(), "a reset that waits for disks");
        Some((ring, request))
    }

    /// Takes the requests that have waited too long, each with the number of its function, and the
    /// resets that are to be done all the same.
    pub fn take_late(&mut self, now: Instant) -> (Vec<(u64, u16, ControlRequest)>, Vec<Reset>) {
        let is_late =
            |patience: &Patience| now.saturating_duration_since(patience.since) >= patience.limit;
        let (mut late, mut resets) = (Vec::new(), Vec::new());
        for (&number, waiting) in &mut self.waiting {
            if let Some((ring, request, reset)) = waiting.take_answer(is_late) {
                late.push((number, ring, request));
                resets.extend(reset);
            }
        }
        (late, resets)
    }

    /// Whether a request of the driver waits that can become late.
    pub fn has_limits(&self) -> bool {
        let mut waiting = self.waiting.values();
        waiting.any(|waiting| matches!(waiting.owed, Owed::Answer { .. } | Owed::Command(_)))
    }

    /// Whether this function waits for tasks to end, not to go back: one of another HBA, or a
    /// command of another worker.
    pub fn waits_for_ends(&self, number: u64) -> bool {
        let waiting = self.waiting.get(&number);
        waiting.is_some_and(|waiting| matches!(waiting.owed, Owed::Receipt(_)))
    }

    /// Whether a function has its buffers in a memory table older than `memory`.
    pub fn use_memory_before(&self, memory: u64) -> bool {
        self.waiting.values().any(|waiting| match &waiting.owed {
            Owed::Answer { memory: its, .. } => *its < memory,
            Owed::Command(waiter) => waiter.memory < memory,
            Owed::Nothing
            | Owed::Receipt(_)
            | Owed::Fellow(_)
            | Owed::Change(_)
            | Owed::Events { .. } => false,
        })
    }

    /// Drops every request of the driver without an answer: its ring is gone. The others go on.
    /// Returns the resets that are to be done all the same.
    pub fn forget(&mut self) -> Vec<Reset> {
        let mut resets = Vec::new();
        for waiting in self.waiting.values_mut() {
            if let Owed::Answer { reset, .. } = &waiting.owed {
                resets.extend(*reset);
            }
            if matches!(waiting.owed, Owed::Answer { .. } | Owed::Command(_)) {
                waiting.owed = Owed::Nothing;
            }
        }
        resets
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    const RESET: Reset = Reset {
        scope: scsi::Scope::Target(2),
        attention: Attention::NexusLoss,
    };

    /// What is owed to a driver that resets something.
    fn answer() -> Owed {
        Owed::Answer {
            ring: 0,
            memory: 7,
            request: request(&[0; 24], 1).unwrap(),
            found: None,
            reset: Some(RESET),
            patience: Patience {
                units: Vec::new(),
                others: None,
                since: Instant::now(),
                limit: Duration::from_secs(1),
            },
        }
    }

    #[test]
    fn a_function_is_answered_when_the_last_of_its_tasks_is_back() {
        let mut functions = Functions::default();
        let number = functions.number();
        assert!(functions.wait(number, 2, answer()).is_none());
        assert!(functions.use_memory_before(8) && !functions.use_memory_before(7));
        assert!(functions.is_back(number).is_none());
        assert!(matches!(
            functions.is_back(number),
            Some(Owed::Answer { ring: 0, .. })
        ));
        assert!(functions.is_back(number).is_none());
    }

    #[test]
    fn a_function_that_waits_too_long_is_taken_once_and_keeps_its_room() {
        let mut functions = Functions::default();
        assert!(functions.wait(1, 1, answer()).is_none());
        let start = Instant::now();
        assert!(functions.has_limits());
        let (late, resets) = functions.take_late(start);
        assert!(late.is_empty() && resets.is_empty());
        let (late, resets) = functions.take_late(start + Duration::from_secs(1));
        assert!(matches!(late[..], [(1, 0, _)]));
        assert_eq!(resets, [RESET]);
        let (late, resets) = functions.take_late(start + Duration::from_secs(9));
        assert!(late.is_empty() && resets.is_empty());
        assert!(!functions.has_limits());
        // Who still works on it says so later.
        assert!(matches!(functions.is_back(1), Some(Owed::Nothing)));
    }

    #[test]
    fn a_function_without_tasks_is_answered_at_once() {
        let mut functions = Functions::default();
        assert!(functions.wait(1, 0, answer()).is_some());
    }

    #[test]
    fn so_many_functions_may_wait_and_no_more() {
        let mut functions = Functions::default();
        for _ in 0..Functions::LIMIT {
            assert!(functions.has_room());
            let number = functions.number();
            assert!(functions.wait(number, 1, answer()).is_none());
        }
        assert!(!functions.has_room());
        assert!(functions.is_back(3).is_some());
        assert!(functions.has_room());
    }

    #[test]
    fn a_ring_that_is_gone_takes_its_functions_along_and_no_others() {
        let mut functions = Functions::default();
        let events = Owed::Events {
            gone: UNIT,
            come: false,
        };
        assert!(functions.wait(1, 1, answer()).is_none());
        assert!(functions.wait(2, 1, events).is_none());
        assert_eq!(functions.forget(), [RESET], "which is done all the same");
        assert!(functions.forget().is_empty());
        assert!(!functions.use_memory_before(u64::MAX));
        assert!(matches!(functions.is_back(1), Some(Owed::Nothing)));
        let other = Address { target: 2, lun: 4 };
        assert!(!functions.announce_later(other));
        assert!(functions.announce_later(UNIT));
        assert!(matches!(
            functions.is_back(2),
            Some(Owed::Events {
                gone: UNIT,
                come: true
            })
        ));
    }

    #[test]
    fn functions_on_which_others_still_work_take_room_even_after_a_reset() {
        let mut functions = Functions::default();
        for _ in 0..Functions::LIMIT {
            let number = functions.number();
            assert!(functions.wait(number, 1, answer()).is_none());
        }
        assert_eq!(functions.forget().len(), Functions::LIMIT);
        assert!(!functions.has_room());
        assert!(functions.is_back(3).is_some());
        assert!(functions.has_room());
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
    fn a_reset_is_of_its_unit() {
        assert_eq!(
            plan_function(function::LOGICAL_UNIT_RESET, Place::Unit(UNIT), 0),
            Plan::ResetUnit(UNIT)
        );
    }

    #[test]
    fn a_nexus_reset_needs_a_target_but_no_unit() {
        for place in [Place::NoUnit(2), Place::Unit(UNIT), Place::ReportLuns(2)] {
            assert_eq!(
                plan_function(function::I_T_NEXUS_RESET, place, 0),
                Plan::ResetNexus(2)
            );
        }
    }

    #[test]
    fn aborts_and_queries_name_their_task() {
        assert_eq!(
            plan_function(function::ABORT_TASK, Place::Unit(UNIT), 9),
            Plan::Abort(Scope::Task(UNIT, 9))
        );
        assert_eq!(
            plan_function(function::QUERY_TASK, Place::Unit(UNIT), 9),
            Plan::Query(Scope::Task(UNIT, 9))
        );
    }

    #[test]
    fn a_task_set_is_aborted_for_one_initiator_and_cleared_for_all() {
        assert_eq!(
            plan_function(function::ABORT_TASK_SET, Place::Unit(UNIT), 0),
            Plan::Abort(Scope::Units(scsi::Scope::Unit(UNIT)))
        );
        assert_eq!(
            plan_function(function::CLEAR_TASK_SET, Place::Unit(UNIT), 0),
            Plan::Clear(UNIT)
        );
    }

    #[test]
    fn there_is_never_an_aca_condition_to_clear() {
        assert_eq!(
            plan_function(function::CLEAR_ACA, Place::Unit(UNIT), 0),
            Plan::Answer(FUNCTION_COMPLETE)
        );
    }

    #[test]
    fn unknown_functions_are_rejected() {
        for code in [8, u32::MAX] {
            assert_eq!(
                plan_function(code, Place::Unit(UNIT), 0),
                Plan::Answer(response::FUNCTION_REJECTED)
            );
        }
    }
}
