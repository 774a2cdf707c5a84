//! What was counted about each HBA, for as long as the configuration has it.

use std::collections::HashMap;

use uuid::Uuid;

use super::Roster;
use crate::statistics::Totals;

/// The counts of the HBAs by their UUIDs.
pub(super) type Ledger = HashMap<Uuid, Totals>;

impl Roster {
    /// What was counted about an HBA so far, for a worker that begins to serve it and goes on
    /// counting.
    pub fn take_over(&self, hba: Uuid) -> Totals {
        let mut service = self.service();
        if !service.hbas.contains_key(&hba) {
            return Totals::default();
        }
        let totals = service.ledger.entry(hba).or_default();
        totals.attachments += 1;
        totals.clone()
    }

    /// Keeps what was counted about an HBA, unless something later is known.
    pub fn keep(&self, hba: Uuid, totals: Totals) {
        let mut service = self.service();
        if let Some(kept) = service.ledger.get_mut(&hba)
            && totals.is_later(kept)
        {
            *kept = totals;
        }
    }

    /// What is known to have been counted about an HBA, of LUNs that are served.
    pub fn totals(&self, hba: Uuid) -> Totals {
        let service = self.service();
        let mut totals = service.ledger.get(&hba).cloned().unwrap_or_default();
        totals
            .luns
            .retain(|name, _| service.luns.contains_key(name));
        totals
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Coalesce, Limit, Poll};
    use crate::roster::{Luns, SharedLimits, View, Views};
    use crate::scsi::{Access, Initiator};

    const HBA: Uuid = Uuid::from_u128(7);

    fn roster() -> Roster {
        let roster = Roster::default();
        let view = View {
            name: "hba".into(),
            initiator: Initiator {
                uuid: HBA,
                number: 1,
            },
            access: Access::default(),
            units: BTreeMap::new(),
            poll: Poll::default(),
            limit: Limit::default(),
            group: None,
            weight: 1,
            coalesce: Coalesce::default(),
        };
        roster.replace(
            Luns::new(),
            Views::from([(HBA, view)]),
            &SharedLimits::default(),
        );
        roster
    }

    #[test]
    fn a_worker_goes_on_where_the_one_before_it_ended() {
        let roster = roster();
        let mut first = roster.take_over(HBA);
        (first.turns, first.kicks) = (9, 5);
        roster.keep(HBA, first);
        let second = roster.take_over(HBA);
        assert_eq!((second.attachments, second.kicks), (2, 5));
    }

    #[test]
    fn what_is_known_never_becomes_less() {
        let roster = roster();
        let early = roster.take_over(HBA);
        let late = Totals {
            turns: 3,
            kicks: 2,
            ..early.clone()
        };
        roster.keep(HBA, late);
        // An answer that was under way when the worker ended.
        roster.keep(HBA, early);
        assert_eq!(roster.totals(HBA).kicks, 2);
    }

    #[test]
    fn an_hba_that_is_no_more_is_forgotten() {
        let roster = roster();
        let mut totals = roster.take_over(HBA);
        roster.replace(Luns::new(), Views::new(), &SharedLimits::default());
        totals.turns = 1;
        roster.keep(HBA, totals);
        assert_eq!(roster.totals(HBA), Totals::default());
        assert_eq!(roster.take_over(HBA), Totals::default());
    }
}
