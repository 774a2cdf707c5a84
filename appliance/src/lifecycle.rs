//! From functions that come and go on the PCI bus to attachments.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::appliance::Appliance;
use crate::attachment::{AttachError, Attachment, Ended};
use crate::device::discover::{BindError, Bus, Function};
use crate::device::{OpenError, VfioFunction};

/// Time between two looks at the bus. Looking costs a few small reads, and unlike a uevent it
/// also tells when a BAR has got its address.
const SCAN_PERIOD: Duration = Duration::from_millis(200);
/// How long a function may be without addresses before that is reported.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);
/// Shortest and longest time between two attempts to attach a function.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a function that was let go may stay on the bus before it is taken up again.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a function could not be attached.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl Problem {
    fn may_pass(&self) -> bool {
        match self {
            Self::Bind(_) | Self::Open(_) => true,
            Self::Attach(error) => error.may_pass(),
        }
    }
}

/// Where a function is on its way.
enum Stage {
    /// On the bus, perhaps without addresses.
    Found { at: Instant, reported: bool },
    /// In service.
    Attached(Attachment),
    /// To be tried again.
    Retry { at: Instant, pause: Duration },
    /// Not to be tried again before there is another configuration.
    Refused,
}

/// The functions of one bus, and the attachments of one appliance.
pub struct Lifecycle<'a> {
    appliance: &'a Appliance,
    bus: Bus,
    stages: HashMap<Function, Stage>,
    /// The last problem of each function, so that a repeated one is not reported again.
    problems: HashMap<Function, String>,
    bus_problem: Option<String>,
    /// Which configuration of the appliance functions were refused under.
    generation: u64,
}

impl<'a> Lifecycle<'a> {
    /// Attaches functions on `bus` to `appliance`.
    pub fn new(appliance: &'a Appliance, bus: Bus) -> Self {
        Self {
            appliance,
            bus,
            stages: HashMap::new(),
            problems: HashMap::new(),
            bus_problem: None,
            generation: appliance.generation(),
        }
    }

    /// Attaches and detaches until `stop` is set; every function is let go then, in order, so that
    /// this machine may be switched off.
    pub fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.scan();
            std::thread::sleep(SCAN_PERIOD);
        }
        // All of them first: their disks are flushed side by side.
        for stage in self.stages.values() {
            if let Stage::Attached(attachment) = stage {
                attachment.stop();
            }
        }
    }

    /// Looks at the bus once.
    fn scan(&mut self) {
        let functions = match self.bus.functions() {
            Ok(functions) => functions,
            Err(error) => {
                let text = error.to_string();
                if self.bus_problem.as_ref() != Some(&text) {
                    tracing::error!("the PCI bus cannot be read: {text}");
                    self.bus_problem = Some(text);
                }
                return;
            }
        };
        self.stages.retain(|known, _| functions.contains(known));
        self.problems.retain(|known, _| functions.contains(known));
        let generation = self.appliance.generation();
        let reconfigured = std::mem::replace(&mut self.generation, generation) != generation;
        for function in functions {
            let now = Instant::now();
            let stage = self.stages.remove(&function).unwrap_or_else(|| {
                tracing::info!(%function, "found");
                Stage::Found {
                    at: now,
                    reported: false,
                }
            });
            let stage = match stage {
                Stage::Refused if reconfigured => Stage::Retry {
                    at: now,
                    pause: RETRY.0,
                },
                stage => stage,
            };
            let stage = self.advance(&function, stage, now);
            self.stages.insert(function, stage);
        }
    }

    fn advance(&mut self, function: &Function, stage: Stage, now: Instant) -> Stage {
        match stage {
            Stage::Found { at, reported } => {
                if self.bus.has_addresses(function) {
                    return self.attach(function, now, RETRY.0);
                }
                let late = now.duration_since(at) > ADDRESS_PATIENCE;
                if late && !reported {
                    tracing::error!(
                        %function,
                        "its BARs have no addresses; give its root port a larger window (QEMU: \
                         -device pcie-root-port,pref64-reserve= twice the tenant's memory)"
                    );
                }
                Stage::Found {
                    at,
                    reported: reported || late,
                }
            }
            Stage::Attached(attachment) if attachment.is_over() => {
                let hba = attachment.hba().to_owned();
                let pause = match attachment.detach() {
                    Ok(Ended::Removed) => {
                        tracing::info!(
                            %function,
                            hba,
                            "let go: the HBA is no longer in the configuration"
                        );
                        // Should it be in it again by now, this attaches it.
                        return Stage::Retry {
                            at: now,
                            pause: RETRY.0,
                        };
                    }
                    Ok(Ended::Released | Ended::Stopped) => {
                        tracing::info!(%function, hba, "let go");
                        RELEASE_PATIENCE
                    }
                    Err(error) => {
                        tracing::error!(%function, hba, "detached: {error}");
                        RETRY.0
                    }
                };
                Stage::Retry {
                    at: now + pause,
                    pause: RETRY.0,
                }
            }
            Stage::Retry { at, pause } if now >= at => self.attach(function, now, pause),
            waiting @ (Stage::Attached(_) | Stage::Retry { .. } | Stage::Refused) => waiting,
        }
    }

    fn attach(&mut self, function: &Function, now: Instant, pause: Duration) -> Stage {
        match self.try_attach(function) {
            Ok(attachment) => {
                tracing::info!(%function, hba = attachment.hba(), "attached");
                self.problems.remove(function);
                Stage::Attached(attachment)
            }
            Err(problem) => {
                let text = problem.to_string();
                if self.problems.get(function) != Some(&text) {
                    tracing::error!(%function, "not attached: {text}");
                    self.problems.insert(function.clone(), text);
                }
                if problem.may_pass() {
                    Stage::Retry {
                        at: now + pause,
                        pause: (pause * 2).min(RETRY.1),
                    }
                } else {
                    Stage::Refused
                }
            }
        }
    }

    fn try_attach(&self, function: &Function) -> Result<Attachment, Problem> {
        self.bus.bind(function)?;
        let device = VfioFunction::open(&self.bus.path(function))?;
        Ok(self.appliance.attach(Arc::new(device))?)
    }
}
