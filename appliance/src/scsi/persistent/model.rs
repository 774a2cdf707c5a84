//! Random requests of random initiators, against a model that says it in other words.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::list::Request;
use super::state::{Asker, Kind, Registering, State};
use crate::scsi::conflict::Standing;
use crate::scsi::port::Port;
use crate::scsi::testing::initiator;

/// Four initiators with a port each.
const NEXUSES: u8 = 4;

fn port(nexus: u8) -> Port {
    Port {
        initiator: initiator(nexus + 1),
        target: nexus,
    }
}

/// The standard in a few lines: who has which key; the type with its single holder, if the type has
/// one.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    keys: BTreeMap<u8, u64>,
    held: Option<(u8, u8)>,
    generation: u32,
}

/// What a request came to.
#[derive(Debug, PartialEq)]
enum Came {
    Good,
    Conflict,
    Illegal,
}

const ALL_REGISTRANTS: [u8; 2] = [7, 8];
const WRITE_EXCLUSIVE: [u8; 3] = [1, 5, 7];

impl Model {
    fn is_holder(&self, nexus: u8) -> bool {
        match self.held {
            None => false,
            Some((kind, _)) if ALL_REGISTRANTS.contains(&kind) => self.keys.contains_key(&nexus),
            Some((_, holder)) => holder == nexus,
        }
    }

    fn drop_key(&mut self, nexus: u8) {
        let was_holder = self.is_holder(nexus);
        self.keys.remove(&nexus);
        let shared = matches!(self.held, Some((kind, _)) if ALL_REGISTRANTS.contains(&kind));
        if was_holder && (!shared || self.keys.is_empty()) {
            self.held = None;
        }
    }

    fn act(&mut self, nexus: u8, what: &Sent) -> Came {
        let mine = self.keys.get(&nexus).copied();
        let Sent {
            action,
            key,
            second,
            kind,
        } = *what;
        if action == 0 && mine.unwrap_or(0) != key || !matches!(action, 0 | 6) && mine != Some(key)
        {
            return Came::Conflict;
        }
        match action {
            0 | 6 => match (mine, second) {
                (None, 0) => return Came::Good,
                (_, 0) => self.drop_key(nexus),
                _ => drop(self.keys.insert(nexus, second)),
            },
            1 => {
                return match self.held {
                    None => {
                        self.held = Some((kind, nexus));
                        Came::Good
                    }
                    Some((held, _)) if self.is_holder(nexus) && held == kind => Came::Good,
                    Some(_) => Came::Conflict,
                };
            }
            2 => {
                if self.is_holder(nexus) {
                    if self.held.is_some_and(|(held, _)| held != kind) {
                        return Came::Illegal;
                    }
                    self.held = None;
                }
                return Came::Good;
            }
            3 => (self.keys, self.held) = (BTreeMap::new(), None),
            _ => {
                let shared =
                    matches!(self.held, Some((held, _)) if ALL_REGISTRANTS.contains(&held));
                if second == 0 && !shared {
                    return Came::Illegal;
                }
                let single = self.held.filter(|_| !shared);
                let takes = shared && second == 0
                    || single.is_some_and(|(_, holder)| self.keys[&holder] == second);
                if !takes && !self.keys.values().any(|key| *key == second) {
                    return Came::Conflict;
                }
                self.keys.retain(|&who, key| match takes {
                    true => who == nexus || second != 0 && *key != second,
                    false => *key != second,
                });
                if takes {
                    self.held = Some((kind, nexus));
                } else if self.keys.is_empty() {
                    self.held = None;
                }
            }
        }
        self.generation += 1;
        Came::Good
    }

    fn standing(&self, nexus: u8) -> Standing {
        let registrants_are_free = |kind| kind > 3;
        match self.held {
            None => Standing::Free,
            Some((kind, _)) if registrants_are_free(kind) && self.keys.contains_key(&nexus) => {
                Standing::Free
            }
            Some(_) if self.is_holder(nexus) => Standing::Free,
            Some((kind, _)) if WRITE_EXCLUSIVE.contains(&kind) => Standing::ReadOnly,
            Some(_) => Standing::Excluded,
        }
    }
}

/// A request: service action, both keys, type.
#[derive(Debug, Clone)]
struct Sent {
    action: u8,
    key: u64,
    second: u64,
    kind: u8,
}

fn sent() -> impl Strategy<Value = (u8, Sent)> {
    let kind = prop::sample::select(vec![1, 3, 5, 6, 7, 8]);
    (0..NEXUSES, 0..7_u8, 0..4_u64, 0..4_u64, kind).prop_map(
        |(nexus, action, key, second, kind)| {
            let sent = Sent {
                action,
                key,
                second,
                kind,
            };
            (nexus, sent)
        },
    )
}

fn request(sent: &Sent) -> Request {
    let &Sent {
        action,
        key,
        second,
        kind,
    } = sent;
    match action {
        0 | 6 => Request::Register(Registering {
            key: (action == 0).then_some(key),
            new_key: second,
            specified: None,
            all_ports: false,
            aptpl: false,
        }),
        1 => Request::Reserve {
            key,
            kind: Kind::from_field(kind).unwrap(),
        },
        2 => Request::Release {
            key,
            scope_and_type: kind,
        },
        3 => Request::Clear { key },
        _ => Request::Preempt {
            key,
            victims: second,
            scope_and_type: kind,
            abort: action == 5,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn reservations_are_as_the_model_says(
        steps in prop::collection::vec(sent(), 1..60),
    ) {
        let known: Vec<_> = (0..NEXUSES).map(port).collect();
        let (mut state, mut model) = (State::default(), Model::default());
        for (nexus, mut sent) in steps {
            // Mostly the key that it has, or little would ever happen.
            if let (Some(key), false) = (model.keys.get(&nexus), sent.key == 3) {
                sent.key = *key;
            }
            let asker = Asker { port: port(nexus), known: &known, can_persist: false };
            let came = match state.after(asker, &request(&sent)) {
                Ok((next, effects)) => {
                    // Whoever lost a registration is told and, if asked for, aborted.
                    let lost = state.registrations.iter().map(|one| one.who).filter(|who| {
                        next.registrations.iter().all(|one| one.who != *who)
                            && !who.is(port(nexus))
                    });
                    let lost: Vec<_> = lost.collect();
                    for who in &lost {
                        prop_assert!(effects.tell.iter().any(|(told, _)| told == who));
                    }
                    prop_assert_eq!(effects.abort, if sent.action == 5 { lost } else { vec![] });
                    prop_assert!(effects.tell.iter().all(|(told, _)| !told.is(port(nexus))));
                    state = next;
                    Came::Good
                }
                Err(crate::scsi::fault::Fault::Reserved) => Came::Conflict,
                Err(_) => Came::Illegal,
            };
            prop_assert_eq!(came, model.act(nexus, &sent), "{:?}", sent);
            prop_assert_eq!(state.generation, model.generation);
            for nexus in 0..NEXUSES {
                let key = state.registration(port(nexus)).map(|one| one.key);
                prop_assert_eq!(key, model.keys.get(&nexus).copied());
                prop_assert_eq!(state.standing(port(nexus)), model.standing(nexus));
            }
        }
    }

    #[test]
    fn no_parameter_list_is_too_much(
        action in 0..8_u8,
        scope_and_type: u8,
        list in prop::collection::vec(prop_oneof![Just(0_u8), Just(4), Just(24), any::<u8>()], 0..120),
    ) {
        use super::list::{Action, parse};
        let action = [
            Action::Register, Action::Reserve, Action::Release, Action::Clear, Action::Preempt,
            Action::PreemptAndAbort, Action::RegisterAndIgnore, Action::RegisterAndMove,
        ][usize::from(action)];
        if let Ok(request) = parse(action, scope_and_type, &list) {
            let known = [port(0), port(1)];
            let asker = Asker { port: port(0), known: &known, can_persist: true };
            let _ = State::default().after(asker, &request);
        }
    }
}
