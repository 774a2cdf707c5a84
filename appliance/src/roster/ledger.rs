//! What was counted about each HBA, for as long as the configuration has it.

use std::collections::HashMap;

use uuid::Uuid;

use super::Roster;
use crate::statistics::Totals;

/// The counts of the HBAs by their UUIDs, of each worker in its place.
pub(super) type Ledger = HashMap<Uuid, Vec<Totals>>;

impl Roster {
    /// What workers in this place have counted about an HBA so far, for one that begins to serve it
    /// and goes on counting.
    pub fn take_over(&self, hba: Uuid, place: usize) -> Totals {
        let mut service = self.service();
        if !service.hbas.contains_key(&hba) {
            return Totals::default();
        }
        let places = service.ledger.entry(hba).or_default();
        places.resize(places.len().max(place + 1), Totals::default());
        let totals = &mut places[place];
        totals.attachments += 1;
        totals.clone()
    }

    /// Keeps what the worker in this place has counted about an HBA, unless something later is known.
    pub fn keep(&self, hba: Uuid, place: usize, totals: Totals) {
        let mut service = self.service();
        let places = service.ledger.get_mut(&hba);
        if let Some(kept) = places.and_then(|places| places.get_mut(place))
            && totals.is_later(kept)
        {
            *kept = totals;
        }
    }

    /// What is known that all workers of an HBA have counted, of LUNs that are served.
    pub fn totals(&self, hba: Uuid) -> Totals {
        let service = self.service();
        let mut places = service.ledger.get(&hba).into_iter().flatten();
        let mut totals = places.next().cloned().unwrap_or_default();
        for other in places {
            totals.add(other);
        }
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
    use crate::config::{Coalesce, Limit, Poll, Workers};
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
            workers: Workers::default(),
        };
        let limits = SharedLimits::default();
        roster.replace(Luns::new(), Views::from([(HBA, view)]), &limits);
        roster
    }

    #[test]
    fn a_worker_goes_on_where_the_one_before_it_ended() {
        let roster = roster();
        let mut first = roster.take_over(HBA, 0);
        (first.turns, first.kicks) = (9, 5);
        roster.keep(HBA, 0, first);
        let second = roster.take_over(HBA, 0);
        assert_eq!((second.attachments, second.kicks), (2, 5));
    }

    #[test]
    fn what_is_known_never_becomes_less() {
        let roster = roster();
        let early = roster.take_over(HBA, 0);
        let late = Totals {
            turns: 3,
            kicks: 2,
            ..early.clone()
        };
        roster.keep(HBA, 0, late);
        // An answer that was under way when the worker ended.
        roster.keep(HBA, 0, early);
        assert_eq!(roster.totals(HBA).kicks, 2);
    }

    #[test]
    fn each_worker_goes_on_in_its_own_place_and_the_hba_has_the_sum() {
        let roster = roster();
        let mut first = roster.take_over(HBA, 0);
        let mut second = roster.take_over(HBA, 1);
        (first.turns, first.kicks) = (1, 5);
        (second.turns, second.kicks) = (9, 3);
        roster.keep(HBA, 1, second);
        roster.keep(HBA, 0, first);
        let totals = roster.totals(HBA);
        assert_eq!((totals.attachments, totals.kicks), (1, 8));
        let again = roster.take_over(HBA, 1);
        assert_eq!((again.attachments, again.kicks), (2, 3));
    }

    #[test]
    fn an_hba_that_is_no_more_is_forgotten() {
        let roster = roster();
        let mut totals = roster.take_over(HBA, 0);
        roster.replace(Luns::new(), Views::new(), &SharedLimits::default());
        totals.turns = 1;
        roster.keep(HBA, 0, totals);
        assert_eq!(roster.totals(HBA), Totals::default());
        assert_eq!(roster.take_over(HBA, 0), Totals::default());
    }
}
