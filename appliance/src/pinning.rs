//! On which CPUs threads may be.

use std::io;
use std::thread::{Builder, JoinHandle};

use rustix::process::getpid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::HbaConfig;

/// A CPU on which a worker cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`pin` of HBA {hba:?} names CPU {cpu}, on which this program may not run; it may on {}",
    list(allowed)
)]
pub struct BadPin {
    /// Name of the HBA.
    pub hba: String,
    /// The CPU.
    pub cpu: usize,
    /// Those on which it may run.
    pub allowed: Vec<usize>,
}

/// CPUs as people write them: `0-3, 6`.
fn list(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let runs = runs.iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    runs.collect::<Vec<_>>().join(", ")
}

/// Checks that workers can be on the CPUs that their HBAs name.
///
/// # Errors
/// [`BadPin`] for the first that cannot.
pub(crate) fn check(hbas: &[HbaConfig]) -> Result<(), BadPin> {
    if hbas.iter().all(|hba| hba.workers.pin.is_empty()) {
        return Ok(());
    }
    // If the kernel does not say, it will when the thread is started.
    let Ok(set) = sched_getaffinity(None) else {
        return Ok(());
    };
    let allowed: Vec<_> = (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect();
    check_against(hbas, &allowed)
}

fn check_against(hbas: &[HbaConfig], allowed: &[usize]) -> Result<(), BadPin> {
    for hba in hbas {
        for cpu in &hba.workers.pin {
            if !allowed.contains(cpu) {
                return Err(BadPin {
                    hba: hba.name.clone(),
                    cpu: *cpu,
                    allowed: allowed.to_vec(),
                });
            }
        }
    }
    Ok(())
}

/// Keeps the calling thread on this CPU from now on, if one is said.
///
/// # Errors
/// What sched_setaffinity(2) reports.
pub(crate) fn keep_on(cpu: Option<usize>) -> io::Result<()> {
    let Some(cpu) = cpu.filter(|cpu| *cpu < CpuSet::MAX_CPU) else {
        return Ok(());
    };
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Starts a thread that may be wherever the program may, whichever thread starts it: one would stay
/// on its worker's CPU otherwise, and take that from it.
///
/// # Errors
/// As [`Builder::spawn`].
pub(crate) fn spawn_free(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(move || {
        // The first thread of a program has the program's number, and is no worker.
        let freed = sched_getaffinity(Some(getpid())).and_then(|set| sched_setaffinity(None, &set));
        if let Err(error) = freed {
            tracing::warn!("a thread stays on the CPU of the one that started it: {error}");
        }
        work();
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::config::{Coalesce, Limit, Poll, Workers};
    use crate::scsi::Access;

    fn pinned(pin: &[usize]) -> HbaConfig {
        HbaConfig {
            name: "tenant1".into(),
            uuid: Uuid::nil(),
            luns: BTreeMap::new(),
            access: Access::default(),
            port: None,
            poll: Poll::default(),
            limit: Limit::default(),
            limit_group: None,
            weight: 1,
            coalesce: Coalesce::default(),
            workers: Workers {
                count: pin.len(),
                pin: pin.to_vec(),
            },
        }
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named_with_those_that_are() {
        let allowed = [0, 1, 2, 5, 7, 8];
        assert_eq!(check_against(&[pinned(&[8, 0])], &allowed), Ok(()));
        let error = check_against(&[pinned(&[2, 6])], &allowed).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`pin` of HBA \"tenant1\" names CPU 6, on which this program may not run; it may on \
             0-2, 5, 7-8"
        );
    }

    #[test]
    fn a_thread_stays_where_it_is_told_to() {
        let allowed = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU)
            .rfind(|cpu| allowed.is_set(*cpu))
            .unwrap();
        let on = std::thread::spawn(move || {
            keep_on(Some(cpu)).unwrap();
            let set = sched_getaffinity(None).unwrap();
            (set.count(), set.is_set(cpu))
        });
        assert_eq!(on.join().unwrap(), (1, true));
    }

    #[test]
    fn what_a_thread_that_stays_on_one_cpu_starts_may_be_on_all() {
        let program = sched_getaffinity(Some(getpid())).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|cpu| program.is_set(*cpu));
        let (tell, told) = std::sync::mpsc::channel();
        let worker = std::thread::spawn(move || {
            keep_on(cpu).unwrap();
            let look = move || tell.send(sched_getaffinity(None).unwrap()).unwrap();
            spawn_free("helper", look).unwrap().join().unwrap();
            sched_getaffinity(None).unwrap().count()
        });
        assert_eq!(worker.join().unwrap(), 1);
        assert_eq!(told.recv().unwrap(), program);
    }
}
