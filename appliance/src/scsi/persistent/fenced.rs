//! Who was preempted by PREEMPT AND ABORT while something of theirs may still reach the disk.
//!
//! A fence on a disk that hangs ends with an error, but the registrations are gone. Whoever fences
//! then looks whether the keys are still there (as the fence agents of clusters do), or sends the
//! command again. So those registrations are shown as if they were there until the fence is
//! through, though they let nobody in, and can be preempted again.

use super::list::Request;
use super::state::{Asker, Effects, MAX_REGISTRATIONS, Registrant, Registration, State};
use crate::scsi::fault::Fault;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Fenced {
    /// Each with the number of the last fence for it; a registrant is there once.
    known: Vec<(Registration, u64)>,
    last: u64,
}

/// Whose commands are to be aborted, and what tells when nothing of them is left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Aborting {
    pub who: Vec<Registrant>,
    pub fence: u64,
}

impl Fenced {
    /// The registrations, as initiators are to see them.
    pub fn registrations(&self) -> impl Iterator<Item = Registration> {
        self.known.iter().map(|(registration, _)| *registration)
    }

    /// What a request comes to that is at fault where only `state` counts: whoever is registered
    /// can preempt these again.
    ///
    /// # Errors
    /// `fault`, if it is something else.
    pub fn again(
        &self,
        state: &State,
        asker: Asker<'_>,
        request: &Request,
        fault: Fault,
    ) -> Result<(State, Effects), Fault> {
        let Request::Preempt { key, victims, .. } = *request else {
            return Err(fault);
        };
        let may = state.registration(asker.port).map(|known| known.key) == Some(key);
        let there = self.registrations().any(|known| known.key == victims);
        if fault != Fault::Reserved || !may || !there {
            return Err(fault);
        }
        let mut next = state.clone();
        next.generation = next.generation.wrapping_add(1);
        Ok((next, Effects::default()))
    }

    /// Takes note of a request that made `after` of `before`, with these to be aborted; returns
    /// all who are.
    pub fn note(
        &mut self,
        before: &State,
        after: &State,
        request: &Request,
        lost: Vec<Registrant>,
    ) -> Aborting {
        let mut aborting = Aborting::default();
        match *request {
            Request::Preempt {
                victims,
                abort: true,
                ..
            } => {
                self.known.retain(|(known, _)| !lost.contains(&known.who));
                let gone = before.registrations.iter();
                let gone = gone.filter(|known| lost.contains(&known.who));
                self.known.extend(gone.map(|known| (*known, 0)));
                self.last += 1;
                for (known, fence) in &mut self.known {
                    if victims == 0 || known.key == victims || lost.contains(&known.who) {
                        *fence = self.last;
                        aborting.who.push(known.who);
                    }
                }
                aborting.fence = self.last;
            }
            Request::Preempt { victims, .. } => {
                self.known.retain(|(known, _)| known.key != victims);
            }
            Request::Clear { .. } => self.known.clear(),
            _ => {}
        }
        // Who is registered again is known by that.
        self.known.retain(|(known, _)| {
            let mut registrations = after.registrations.iter();
            !registrations.any(|other| other.who.overlaps(known.who))
        });
        let excess = self.known.len().saturating_sub(MAX_REGISTRATIONS);
        self.known.drain(..excess);
        aborting
    }

    /// Nothing of those can reach the disk any more for whom the fence of this number was the last.
    pub fn is_through(&mut self, fence: u64) {
        self.known.retain(|(_, last)| *last != fence);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::scsi::port::{Initiator, Port};

    fn registration(initiator: u128, key: u64) -> Registration {
        let initiator = Uuid::from_u128(initiator);
        let target = Some(0);
        let who = Registrant { initiator, target };
        Registration { who, key }
    }

    fn state(registrations: &[Registration]) -> State {
        State {
            registrations: registrations.to_vec(),
            ..State::default()
        }
    }

    /// PREEMPT, AND ABORT or not, of key 2 by whoever has key 1.
    fn preempt(abort: bool) -> Request {
        Request::Preempt {
            key: 1,
            victims: 2,
            scope_and_type: 5,
            abort,
        }
    }

    /// Key 2 was fenced by key 1, and the fence is number 1.
    fn fenced() -> (Fenced, State) {
        let mut fenced = Fenced::default();
        let (one, two) = (registration(1, 1), registration(2, 2));
        let after = state(&[one]);
        let lost = vec![two.who];
        let aborting = fenced.note(&state(&[one, two]), &after, &preempt(true), lost);
        assert_eq!((aborting.who, aborting.fence), (vec![two.who], 1));
        (fenced, after)
    }

    fn keys(fenced: &Fenced) -> Vec<u64> {
        fenced.registrations().map(|known| known.key).collect()
    }

    #[test]
    fn a_fenced_key_is_known_until_its_last_fence_is_through() {
        let (mut fenced, state) = fenced();
        let again = fenced.note(&state, &state, &preempt(true), Vec::new());
        assert_eq!((again.who, again.fence), (vec![registration(2, 2).who], 2));
        fenced.is_through(1);
        assert_eq!(keys(&fenced), [2]);
        fenced.is_through(2);
        assert_eq!(keys(&fenced), [0_u64; 0]);
    }

    #[test]
    fn a_fenced_key_is_forgotten_by_preempt_clear_and_a_new_registration() {
        for request in [preempt(false), Request::Clear { key: 1 }] {
            let (mut fenced, state) = fenced();
            fenced.note(&state, &state, &request, Vec::new());
            assert_eq!(keys(&fenced), [0_u64; 0]);
        }
        let (mut fenced, before) = fenced();
        let after = state(&[registration(1, 1), registration(2, 7)]);
        let reserve = Request::Release {
            key: 1,
            scope_and_type: 5,
        };
        fenced.note(&before, &after, &reserve, Vec::new());
        assert_eq!(keys(&fenced), [0_u64; 0]);
    }

    #[test]
    fn only_who_is_registered_with_its_key_may_fence_again() {
        let (fenced, state) = fenced();
        let port = |initiator| Port {
            initiator: Initiator {
                uuid: Uuid::from_u128(initiator),
                number: 0,
            },
            target: 0,
        };
        let again = |initiator, request: &Request| {
            let asker = Asker {
                port: port(initiator),
                known: &[],
                can_persist: false,
            };
            fenced.again(&state, asker, request, Fault::Reserved)
        };
        let (next, effects) = again(1, &preempt(true)).unwrap();
        assert_eq!(next.generation, 1);
        assert_eq!(effects, Effects::default());
        assert_eq!(again(2, &preempt(true)), Err(Fault::Reserved));
        assert_eq!(again(1, &Request::Clear { key: 1 }), Err(Fault::Reserved));
        let other = Request::Preempt {
            key: 1,
            victims: 3,
            scope_and_type: 5,
            abort: true,
        };
        assert_eq!(again(1, &other), Err(Fault::Reserved));
    }
}
