//! Marks in session memory of units whose writes may be in the storage VM's memory only.
//!
//! Session memory outlives the storage VM, so a mark that another boot of it left tells of writes
//! that were acknowledged and are lost. A tenant that runs on believes in them: such a unit must
//! not go on as if nothing had happened.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spec::session::{UNIT_MARKS, UnitMark};

use crate::disk::Op;
use crate::front::Front;
use crate::scsi::{LogicalUnit, Pending};

/// What a task has to do with the mark of its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marking {
    /// Nothing.
    None,
    /// It writes what may be in memory only when it is done.
    Write,
    /// It flushes, and was begun when so many writes had ended.
    Flush(u64),
}

/// The marks of one HBA, for all its workers: a flush on one ring is about writes on every ring. Only
/// where writes are cached does a command come here.
#[derive(Debug, Clone)]
pub(crate) struct Marks(Arc<Mutex<Slots>>);

impl Marks {
    /// None yet, in this boot.
    pub fn new(boot: [u8; 16]) -> Self {
        Self(Arc::new(Mutex::new(Slots {
            boot,
            units: Vec::new(),
        })))
    }

    /// Takes up what an appliance before this one left of `unit`.
    pub fn look_at(&self, unit: &Arc<LogicalUnit>, shim: &dyn Front) {
        self.slots().look_at(unit, shim);
    }

    /// Forgets a unit, and that it may have lost something: the operator has taken it away.
    pub fn forget(&self, unit: &Arc<LogicalUnit>, shim: &dyn Front) {
        self.slots().forget(unit, shim);
    }

    /// Sets the mark of the unit that `op` is for, if it needs one and before anything is written.
    /// Where there is no room for a mark, `op` becomes one that needs none.
    pub fn begin(&self, op: Op, pending: &mut Pending, shim: &dyn Front) -> (Op, Marking) {
        // What is copied is on stable storage when it is, whichever unit's it is.
        if pending.is_copy() || !pending.unit().disk().caches_writes() {
            return (op, Marking::None);
        }
        if !pending.relies_on_cache() && !flushes(&op) {
            // Such as a read: no other worker is to be waited for.
            return (op, Marking::None);
        }
        self.slots().begin(op, pending, shim)
    }

    /// Takes note of the end of a task: a flush without writes beside it clears the mark.
    pub fn end(&self, unit: &Arc<LogicalUnit>, marking: Marking, done: bool, shim: &dyn Front) {
        if marking != Marking::None {
            self.slots().end(unit, marking, done, shim);
        }
    }

    /// The units that have something to lose, should this boot end now.
    pub fn at_stake(&self) -> Vec<Arc<LogicalUnit>> {
        self.slots().at_stake()
    }

    /// Clears the mark of a unit that has been flushed since its last acknowledged write.
    pub fn clear(&self, unit: &Arc<LogicalUnit>, shim: &dyn Front) {
        self.slots().clear(unit, shim);
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The marks, with what is under way.
#[derive(Debug)]
struct Slots {
    /// Which boot of the storage VM this is.
    boot: [u8; 16],
    units: Vec<Marked>,
}

/// A unit that has a mark.
#[derive(Debug)]
struct Marked {
    unit: Arc<LogicalUnit>,
    slot: usize,
    /// The mark says that this boot has something to lose.
    set: bool,
    /// Writes under way.
    under_way: usize,
    /// Writes that have ended.
    ended: u64,
}

impl Slots {
    fn look_at(&mut self, unit: &Arc<LogicalUnit>, shim: &dyn Front) {
        if !unit.disk().caches_writes() || self.of(unit).is_some() {
            return;
        }
        let Some((slot, mark)) = find(unit, shim) else {
            return;
        };
        if mark.boot == self.boot {
            // The page cache is still there, and what is in it.
            self.units.push(Marked {
                unit: Arc::clone(unit),
                slot,
                set: true,
                under_way: 0,
                ended: 0,
            });
        } else if unit.is_forgiven() {
            // Older than this boot, in which the operator has taken the unit away while we did
            // not serve it.
            shim.set_mark(slot, UnitMark::default());
        } else if unit.lose_writes() {
            tracing::error!(
                hba = shim.hba(),
                lun = unit.name(),
                "the storage VM ended without having flushed all that this write-back LUN had \
                 acknowledged: it fails until you have seen to its data; take it out of the \
                 configuration then, apply that, and add it again"
            );
        }
    }

    fn forget(&mut self, unit: &Arc<LogicalUnit>, shim: &dyn Front) {
        self.units.retain(|marked| !Arc::ptr_eq(&marked.unit, unit));
        // Any mark of it, another boot's too.
        if let Some((slot, _)) = find(unit, shim) {
            shim.set_mark(slot, UnitMark::default());
        }
    }

    fn begin(&mut self, op: Op, pending: &mut Pending, shim: &dyn Front) -> (Op, Marking) {
        let unit = pending.unit();
        if !pending.relies_on_cache() {
            let marking = match self.of(unit) {
                Some(marked) if flushes(&op) => Marking::Flush(marked.ended),
                _ => Marking::None,
            };
            return (op, marking);
        }
        if self.set(&Arc::clone(unit), shim) {
            (op, Marking::Write)
        } else {
            pending.rely_on_nothing();
            (op.stable(), Marking::None)
        }
    }

    /// Sets the mark for one more write; whether there is one.
    fn set(&mut self, unit: &Arc<LogicalUnit>, shim: &dyn Front) -> bool {
        let boot = self.boot;
        if self.of(unit).is_none() {
            let ours = |slot| self.units.iter().any(|marked| marked.slot == slot);
            let is_free = |slot: &usize| !ours(*slot) && shim.mark(*slot).is_free();
            let free = || (0..UNIT_MARKS).find(is_free);
            let Some(slot) = find(unit, shim).map(|(slot, _)| slot).or_else(free) else {
                return false;
            };
            self.units.push(Marked {
                unit: Arc::clone(unit),
                slot,
                set: false,
                under_way: 0,
                ended: 0,
            });
        }
        let Some(marked) = self.of(unit) else {
            return false;
        };
        marked.under_way += 1;
        if !std::mem::replace(&mut marked.set, true) {
            let mark = UnitMark {
                unit: unit.naa(),
                boot,
            };
            shim.set_mark(marked.slot, mark);
        }
        true
    }

    fn end(&mut self, unit: &Arc<LogicalUnit>, marking: Marking, done: bool, shim: &dyn Front) {
        let Some(marked) = self.of(unit) else {
            return;
        };
        match marking {
            Marking::None => {}
            Marking::Write => {
                marked.under_way = marked.under_way.saturating_sub(1);
                marked.ended += 1;
            }
            Marking::Flush(ended) => {
                if done && marked.under_way == 0 && marked.ended == ended {
                    self.clear(unit, shim);
                }
            }
        }
    }

    fn at_stake(&self) -> Vec<Arc<LogicalUnit>> {
        let set = self.units.iter().filter(|marked| marked.set);
        set.map(|marked| Arc::clone(&marked.unit)).collect()
    }

    fn clear(&mut self, unit: &Arc<LogicalUnit>, shim: &dyn Front) {
        if let Some(marked) = self.of(unit)
            && std::mem::replace(&mut marked.set, false)
        {
            // The slot stays the unit's: to find one takes many reads of session memory.
            shim.set_mark(marked.slot, UnitMark::default());
        }
    }

    fn of(&mut self, unit: &Arc<LogicalUnit>) -> Option<&mut Marked> {
        let mut units = self.units.iter_mut();
        units.find(|marked| Arc::ptr_eq(&marked.unit, unit))
    }
}

/// Whether `op`, which does not rely on a cache, takes all that was written before with it: what
/// is to be on stable storage does.
fn flushes(op: &Op) -> bool {
    *op == Op::Flush || op.changes_blocks()
}

/// The mark of a unit and its slot.
fn find(unit: &LogicalUnit, shim: &dyn Front) -> Option<(usize, UnitMark)> {
    let marks = (0..UNIT_MARKS).map(|slot| (slot, shim.mark(slot)));
    let mut used = marks.filter(|(_, mark)| !mark.is_free());
    used.find(|(_, mark)| mark.unit == unit.naa())
}
