//! Persistent reservations of a unit, and what RESERVE and RELEASE are while there are any.

use std::sync::Weak;

use super::{LogicalUnit, Outcome};
use crate::scsi::Buffers;
use crate::scsi::fault::Fault;
use crate::scsi::nexus::Nexus;
use crate::scsi::persistent::{Action, Ask, Asker, MAX_LIST, State, parse};
use crate::scsi::port::Port;

impl LogicalUnit {
    /// RESERVE. While anyone is registered it is a conflict, or does nothing for whom a persistent
    /// reservation lets in (SPC-3, exceptions to SPC-2: CRH).
    pub(super) fn reserve(&self, nexus: &Nexus) -> Result<(), Fault> {
        let _steady = self.persistent.steady();
        if is_moot(&self.persistent.state(), nexus.port())? || self.reservation.take(nexus) {
            Ok(())
        } else {
            Err(Fault::Reserved)
        }
    }

    /// RELEASE, likewise.
    pub(super) fn release(&self, nexus: &Nexus) -> Result<(), Fault> {
        if !is_moot(&self.persistent.state(), nexus.port())? {
            self.lose(nexus);
        }
        Ok(())
    }

    /// PERSISTENT RESERVE IN.
    pub(super) fn persistent_data(&self, nexus: &Nexus, ask: Ask) -> Result<Vec<u8>, Fault> {
        self.check_not_reserved()?;
        let ports = self.ports(nexus);
        Ok(self.persistent.data(ask, &ports))
    }

    /// PERSISTENT RESERVE OUT, with byte 2 of its CDB and the length of its list.
    pub(super) fn change_persistent(
        &self,
        nexus: &Nexus,
        (action, scope_and_type): (Action, u8),
        len: usize,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        if len > MAX_LIST {
            return Err(Fault::ParameterListLength);
        }
        // Read once: the tenant may change it while we look.
        let mut list = vec![0; len];
        if buffers.data_out.read_at(0, &mut list) < len {
            return Ok(Outcome::Overrun);
        }
        let request = parse(action, scope_and_type, &list)?;
        let steady = self.persistent.steady();
        self.check_not_reserved()?;
        let known = self.ports(nexus);
        let asker = Asker {
            port: nexus.port(),
            known: &known,
            can_persist: self.persistent.can_persist(),
        };
        let aborting = self
            .persistent
            .apply(&steady, asker, &request, |state, effects| {
                // Before anyone is told to end commands: those that come now are refused.
                for other in self.nexuses().iter().filter_map(Weak::upgrade) {
                    other.set_standing(state.standing(other.port()));
                    let told = effects.tell.iter().filter(|(who, _)| who.is(other.port()));
                    told.for_each(|(_, attention)| other.establish(*attention));
                }
            })?;
        Ok(if aborting.who.is_empty() {
            Outcome::Done { moved: len }
        } else {
            Outcome::Preempted {
                who: aborting.who,
                fence: aborting.fence,
                moved: len,
            }
        })
    }

    /// Nothing of those whom this fence was about can reach the disk any more.
    pub(in crate::scsi) fn fence_is_through(&self, fence: u64) {
        self.persistent.fence_is_through(fence);
    }

    /// RESERVE and persistent reservations exclude each other, for its holder too (SPC-2,
    /// persistent reservations).
    fn check_not_reserved(&self) -> Result<(), Fault> {
        if self.reservation.is_held() {
            return Err(Fault::Reserved);
        }
        Ok(())
    }
}

/// Whether RESERVE and RELEASE do nothing, as the initiator is let in by a persistent reservation.
///
/// # Errors
/// [`Fault::Reserved`] for others, while anyone is registered.
fn is_moot(state: &State, port: Port) -> Result<bool, Fault> {
    if state.registrations.is_empty() {
        return Ok(false);
    }
    let known = state.registration(port);
    let is_let_in = state.reservation.is_some_and(|held| {
        known.is_some_and(|known| held.kind.frees_registrants() || state.holds(known.who))
    });
    if is_let_in {
        Ok(true)
    } else {
        Err(Fault::Reserved)
    }
}
