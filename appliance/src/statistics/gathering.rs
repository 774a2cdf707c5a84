//! What the workers of an HBA tell, each for itself, made one.

use std::sync::{Mutex, PoisonError, mpsc};

use super::snapshot::{HbaSnapshot, UnitSnapshot};

/// Where workers leave what they tell. Whoever asked has it, added up, when the last of them has let
/// go of this; where the first has told nothing, nobody answers.
#[derive(Debug)]
pub(crate) struct Gathering {
    parts: Mutex<Vec<HbaSnapshot>>,
    to: mpsc::SyncSender<HbaSnapshot>,
}

impl Gathering {
    /// For who waits at the other end of `to`.
    pub fn new(to: mpsc::SyncSender<HbaSnapshot>) -> Self {
        let parts = Mutex::default();
        Self { parts, to }
    }

    /// Leaves what one worker tells.
    pub fn add(&self, part: HbaSnapshot) {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(part);
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        let parts = self.parts.get_mut();
        let parts = std::mem::take(parts.unwrap_or_else(PoisonError::into_inner));
        if let Some(all) = together(parts) {
            // Whoever no longer waits for it misses nothing.
            let _ = self.to.try_send(all);
        }
    }
}

/// What they tell together: what is known of the HBA as a whole comes from the first worker.
fn together(mut parts: Vec<HbaSnapshot>) -> Option<HbaSnapshot> {
    parts.sort_by_key(|part| part.workers.first().map(|worker| worker.place));
    let mut parts = parts.into_iter();
    let mut all = parts.next()?;
    if all.workers.first().is_none_or(|worker| worker.place != 0) {
        return None;
    }
    for part in parts {
        for unit in part.units {
            match all.units.iter_mut().find(|known| known.at == unit.at) {
                Some(known) => add(known, unit),
                None => all.units.push(unit),
            }
        }
        all.elsewhere += part.elsewhere;
        all.in_flight += part.in_flight;
        all.most_in_flight += part.most_in_flight;
        all.rings += part.rings;
        all.polls |= part.polls;
        all.tasks.extend(part.tasks);
        all.trace.extend(part.trace);
        all.workers.extend(part.workers);
    }
    all.tasks.sort_by_key(|task| std::cmp::Reverse(task.age_ms));
    all.trace.sort_by_key(|task| std::cmp::Reverse(task.ago_us));
    Some(all)
}

fn add(known: &mut UnitSnapshot, other: UnitSnapshot) {
    known.in_flight += other.in_flight;
    known.limited += other.limited;
    known.counters.add(&other.counters);
    known.pause = match (known.pause.take(), other.pause) {
        (Some(mut one), Some(other)) => {
            one.for_ms = one.for_ms.max(other.for_ms);
            one.held += other.held;
            Some(one)
        }
        (one, other) => one.or(other),
    };
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::snapshot::{CountersSnapshot, PauseSnapshot, TraceSnapshot, WorkerSnapshot};
    use super::*;

    fn part(place: usize, commands: u64, ago_us: u64) -> HbaSnapshot {
        HbaSnapshot {
            units: vec![UnitSnapshot {
                lun: "root".into(),
                at: "0:0".into(),
                in_flight: 2,
                limited: 1,
                counters: CountersSnapshot {
                    commands,
                    ..CountersSnapshot::default()
                },
                pause: Some(PauseSnapshot {
                    for_ms: commands,
                    held: 1,
                }),
            }],
            in_flight: 2,
            most_in_flight: 1024,
            rings: 1,
            trace: vec![TraceSnapshot {
                worker: place,
                number: 0,
                tag: commands,
                command: String::new(),
                ending: String::new(),
                good: true,
                bytes: 0,
                took_us: 1,
                ago_us,
            }],
            workers: vec![WorkerSnapshot {
                place,
                ..WorkerSnapshot::default()
            }],
            ..HbaSnapshot::default()
        }
    }

    #[test]
    fn who_asks_has_all_parts_as_one_when_the_last_worker_has_told() {
        let (to, told) = mpsc::sync_channel(1);
        let gathering = Arc::new(Gathering::new(to));
        let last = Arc::clone(&gathering);
        gathering.add(part(1, 30, 5));
        drop(gathering);
        assert!(told.try_recv().is_err(), "one is still to tell");
        last.add(part(0, 12, 9));
        drop(last);
        let all = told.try_recv().unwrap();
        assert_eq!((all.in_flight, all.most_in_flight, all.rings), (4, 2048, 2));
        assert_eq!(all.units.len(), 1);
        assert_eq!(
            (all.units[0].in_flight, all.units[0].counters.commands),
            (4, 42)
        );
        assert_eq!(all.units[0].limited, 2);
        let pause = all.units[0].pause.as_ref().unwrap();
        assert_eq!((pause.for_ms, pause.held), (30, 2));
        let places: Vec<_> = all.workers.iter().map(|worker| worker.place).collect();
        assert_eq!(places, [0, 1]);
        let tags: Vec<_> = all.trace.iter().map(|traced| traced.tag).collect();
        assert_eq!(tags, [12, 30], "the oldest first");
    }

    #[test]
    fn where_the_first_worker_does_not_tell_anything_nobody_is_answered() {
        let (to, told) = mpsc::sync_channel(1);
        let gathering = Gathering::new(to);
        gathering.add(part(1, 30, 5));
        drop(gathering);
        assert!(told.recv().is_err());
    }

    #[test]
    fn where_nobody_tells_anything_nobody_is_answered() {
        let (to, told) = mpsc::sync_channel(1);
        drop(Gathering::new(to));
        assert!(told.recv().is_err());
    }
}
