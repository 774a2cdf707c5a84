//! Who has reserved a logical unit, for people.

use std::sync::Weak;

use uuid::Uuid;

use super::LogicalUnit;
use crate::scsi::persistent::Kind;

/// Whoever keeps others away from a logical unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The HBA; `None` if every registrant holds it.
    pub hba: Option<Uuid>,
    /// What kind of reservation it is.
    pub kind: &'static str,
}

impl LogicalUnit {
    /// Who has reserved it, if anybody has.
    pub fn holder(&self) -> Option<Holder> {
        if let Some(id) = self.reservation.holder() {
            let nexuses = self.nexuses();
            let mut nexuses = nexuses.iter().filter_map(Weak::upgrade);
            let nexus = nexuses.find(|nexus| nexus.id() == id);
            return Some(Holder {
                hba: nexus.map(|nexus| nexus.port().initiator.uuid),
                kind: "RESERVE",
            });
        }
        let reservation = self.persistent.state().reservation?;
        let kind = match reservation.kind {
            Kind::WriteExclusive => "Write Exclusive",
            Kind::ExclusiveAccess => "Exclusive Access",
            Kind::WriteExclusiveRegistrantsOnly => "Write Exclusive, Registrants Only",
            Kind::ExclusiveAccessRegistrantsOnly => "Exclusive Access, Registrants Only",
            Kind::WriteExclusiveAllRegistrants => "Write Exclusive, All Registrants",
            Kind::ExclusiveAccessAllRegistrants => "Exclusive Access, All Registrants",
        };
        let is_for_all = reservation.kind.is_for_all();
        Some(Holder {
            hba: (!is_for_all).then_some(reservation.holder.initiator),
            kind,
        })
    }
}
