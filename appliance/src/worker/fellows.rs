//! What a worker does for the other workers of its HBA, and has them do.
//!
//! A driver knows one HBA, so whatever ends commands has to end them on every ring, and is answered
//! when those of all workers are back. Each worker ends its own, and drops a receipt then. What is
//! about the HBA as a whole (the session, which units there are, what is known to the control queue)
//! is the first worker's, which has the others follow and waits for them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Ended, Failure, Worker};
use crate::fellow::{Change, EndOwn, Fellow, ForFunction, Query, Told};
use crate::front::Asked;
use crate::inbox::{Come, EndTasks, Message, Question, Receipt, UnitChange};
use crate::scsi;
use crate::task::Fate;
use crate::task_management::{Owed, Scope};

/// Requests of the first worker have no numbers: there is one at a time.
const ASKED: Asked = Asked {
    sequence: 0,
    operation: 0,
};

impl Worker {
    /// Acts on what another worker of the HBA says.
    ///
    /// # Errors
    /// [`Failure::Fellow`] if that is its end and this is the first; others of its own.
    pub(super) fn hear(&mut self, fellow: Fellow) -> Result<(), Failure> {
        match fellow {
            Fellow::Asked(request) => self.act_on(ASKED, request)?,
            Fellow::Replied(reply) => self.line.team.replied(reply),
            Fellow::Ended if self.line.team.is_first() => return Err(Failure::Fellow),
            // The first worker's end is about to be told.
            Fellow::Ended => self.end = Some(Ended::Stopped),
            Fellow::EndForAnother(end, told) => self.end_for_another(end, &told),
            Fellow::Change(change) => self.follow(change),
            // It must find the tasks that it is about.
            early @ (Fellow::End(EndOwn {
                function: Some(_), ..
            })
            | Fellow::Query(_))
                if self.rings.has_commands_again() =>
            {
                self.early.push(early);
            }
            Fellow::End(end) => self.end_own(end),
            Fellow::Query(query) => {
                self.catch_up();
                let found = self.has_task(query.scope);
                self.rings.call(self.now, &*self.shim);
                query.answer(found);
            }
        }
        Ok(())
    }

    /// Does what came before commands that were to be fetched again.
    ///
    /// # Errors
    /// As [`Self::hear`].
    pub(super) fn hear_what_was_early(&mut self) -> Result<(), Failure> {
        if self.rings.has_commands_again() {
            return Ok(());
        }
        for fellow in std::mem::take(&mut self.early) {
            self.hear(fellow)?;
        }
        Ok(())
    }

    /// Ends tasks because the initiator, or a command of it on another ring, wants it.
    fn end_own(&mut self, end: EndOwn) {
        let EndOwn {
            scope,
            fate,
            function,
            receipt,
        } = end;
        let number = self.functions.number();
        if let Some(ForFunction { of_all, units }) = &function {
            self.catch_up();
            // Before they are cancelled: what is over then is not known any more.
            units.add(self.patience(scope, *of_all).units);
        }
        let mut count = self.end_tasks(scope, fate, number);
        if function.is_some() {
            count += self.wait_for_held(scope, number);
        }
        // What has ended before has to be back, too.
        self.rings.call(self.now, &*self.shim);
        // A command wants nothing to reach a disk any more. That they are back may depend on the
        // order of answers, and so on the very command that waits for them.
        let owed = if function.is_some() {
            Owed::Fellow(receipt)
        } else {
            Owed::Receipt(receipt)
        };
        // Dropped when there is nothing to wait for.
        let _ = self.functions.wait(number, count, owed);
    }

    /// Shows the units that the first worker will show when all others do.
    fn follow(&mut self, change: Change) {
        let Change { gone, come, shown } = change;
        for (address, receipt) in gone {
            let number = self.functions.number();
            let scope = Scope::Units(scsi::Scope::Unit(address));
            let count =
                self.end_tasks(scope, Fate::Gone, number) + self.wait_for_held(scope, number);
            self.host.hide(address);
            let _ = self.functions.wait(number, count, Owed::Fellow(receipt));
        }
        self.forget_what_is_served_no_more();
        for (address, bond) in come {
            self.statistics.begin(address, bond.unit().name());
            self.host.insert(address, bond);
            self.pauses.changed = true;
        }
        drop(shown);
    }

    /// A receipt that the function of this number waits for.
    fn receipt(&self, number: u64) -> Receipt {
        Receipt::for_fellow(number, self.line.inbox.outbox())
    }

    /// Has every other worker of the HBA end tasks of `scope`; function `number` waits for each of
    /// the workers. Returns how many they are.
    pub(super) fn end_at_fellows(
        &self,
        (scope, fate): (Scope, Fate),
        function: Option<ForFunction>,
        number: u64,
    ) -> usize {
        self.tell_fellows(|| {
            Message::Fellow(Fellow::End(EndOwn {
                scope,
                fate,
                function: function.clone(),
                receipt: self.receipt(number),
            }))
        })
    }

    /// Has every other worker end what another initiator wants to have ended; likewise.
    pub(super) fn pass_on_end(
        &self,
        end: impl Fn(Receipt) -> EndTasks,
        told: &Arc<Told>,
        number: u64,
    ) -> usize {
        self.tell_fellows(|| {
            let end = end(self.receipt(number));
            Message::Fellow(Fellow::EndForAnother(end, Arc::clone(told)))
        })
    }

    /// Asks every other worker whether there is a task of `scope`; likewise.
    pub(super) fn query_fellows(
        &self,
        scope: Scope,
        found: &Arc<AtomicBool>,
        number: u64,
    ) -> usize {
        self.tell_fellows(|| {
            Message::Fellow(Fellow::Query(Query {
                scope,
                found: Arc::clone(found),
                receipt: self.receipt(number),
            }))
        })
    }

    /// Has every other worker show other units; likewise.
    pub(super) fn change_at_fellows(&self, change: &UnitChange, number: u64) -> usize {
        self.tell_fellows(|| {
            let gone = change.gone.iter();
            let come = change.come.iter();
            Message::Fellow(Fellow::Change(Change {
                gone: gone
                    .map(|(address, number)| (*address, self.receipt(*number)))
                    .collect(),
                come: come
                    .filter_map(|(address, come)| match come {
                        Come::Bond(bond) => Some((*address, bond.clone())),
                        Come::Unit(_) => None,
                    })
                    .collect(),
                shown: self.receipt(number),
            }))
        })
    }

    /// Has every other worker know what the first is told from outside.
    pub(super) fn pass_on(&self, message: impl Fn() -> Message) {
        if self.line.team.is_first() {
            self.tell_fellows(message);
        }
    }

    /// Asks every other worker, where this is the first, what it was asked; whether none of them
    /// owes too many answers.
    pub(super) fn ask_fellows(&self, question: &Question) -> bool {
        let mut others = self.line.team.others();
        !self.line.team.is_first() || others.all(|other| other.ask(question.clone()))
    }

    /// Tells every other worker something; returns how many they are.
    fn tell_fellows(&self, message: impl Fn() -> Message) -> usize {
        let mut count = 0;
        for other in self.line.team.others() {
            other.send(message());
            count += 1;
        }
        count
    }
}
