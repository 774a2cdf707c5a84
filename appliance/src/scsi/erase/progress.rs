//! How far the blocks of a unit are erased.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use super::job::{Fill, Job, Kind, Saved};
use crate::scsi::fault::Fault;

/// What is done to a unit, for the sake of what is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Format,
    Sanitize,
}

/// How far a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing is going on.
    Ready,
    Formatting,
    Sanitizing,
    FormatFailed,
    /// EXIT FAILURE MODE ends it.
    SanitizeFailed,
    /// Only a SANITIZE of this kind ends it.
    SanitizeFailedRestricted,
    /// EXIT FAILURE MODE is at work, and is alone.
    Leaving,
}

impl Phase {
    const ALL: [Self; 7] = [
        Self::Ready,
        Self::Formatting,
        Self::Sanitizing,
        Self::FormatFailed,
        Self::SanitizeFailed,
        Self::SanitizeFailedRestricted,
        Self::Leaving,
    ];

    pub const fn during(kind: Kind) -> Self {
        match kind {
            Kind::Format => Self::Formatting,
            Kind::Sanitize | Kind::SanitizeUnrestricted => Self::Sanitizing,
        }
    }

    pub const fn failed(kind: Kind) -> Self {
        match kind {
            Kind::Format => Self::FormatFailed,
            Kind::Sanitize => Self::SanitizeFailedRestricted,
            Kind::SanitizeUnrestricted => Self::SanitizeFailed,
        }
    }

    /// What is written down of it, when nothing is under way.
    pub fn saved(self) -> Saved {
        let kind = match self {
            Self::Ready | Self::Formatting | Self::Sanitizing => return Saved::default(),
            Self::FormatFailed => Kind::Format,
            Self::SanitizeFailed | Self::Leaving => Kind::SanitizeUnrestricted,
            Self::SanitizeFailedRestricted => Kind::Sanitize,
        };
        // What it was to fill blocks with does not matter any more.
        let fill = Fill::Nothing;
        Saved {
            failed: true,
            job: Some(Job { kind, fill }),
        }
    }

    /// Whether a command of this kind may begin now (SBC-4, SANITIZE: AUSE).
    pub const fn lets_begin(self, kind: Kind) -> bool {
        match self {
            Self::Ready | Self::FormatFailed => true,
            Self::Formatting | Self::Sanitizing | Self::Leaving => false,
            Self::SanitizeFailed => !matches!(kind, Kind::Format),
            Self::SanitizeFailedRestricted => matches!(kind, Kind::Sanitize),
        }
    }
}

/// How far the blocks of a unit are erased, and whether anybody wants that.
#[derive(Debug)]
pub struct Progress {
    /// A [`Phase`].
    phase: AtomicU8,
    /// PROGRESS INDICATION: parts of 65536.
    parts: AtomicU16,
    unwanted: AtomicBool,
}

impl Progress {
    /// Nothing is going on.
    pub fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Ready as u8),
            parts: AtomicU16::new(0),
            unwanted: AtomicBool::new(false),
        }
    }

    /// Goes from one phase to another, if it still is in the first; whether it was.
    pub fn advance(&self, before: Phase, after: Phase) -> bool {
        let (before, after) = (before as u8, after as u8);
        let order = Ordering::SeqCst;
        let changed = self.phase.compare_exchange(before, after, order, order);
        if changed.is_ok() {
            self.parts.store(0, Ordering::Relaxed);
        }
        changed.is_ok()
    }

    /// Nobody wants it any more.
    pub fn give_up(&self) {
        self.unwanted.store(true, Ordering::Relaxed);
    }

    pub fn phase(&self) -> Phase {
        // REASSIGN BLOCKS stores that it is at work and then looks here; whoever claims the unit
        // does the same the other way round. One of them has to see the other.
        let number = usize::from(self.phase.load(Ordering::SeqCst));
        // Every number that is stored is one of them.
        Phase::ALL.get(number).copied().unwrap_or(Phase::Ready)
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// In this pass of so many, so many bytes of all are done.
    pub fn set(&self, (pass, passes): (u8, u8), done: u64, all: u64) {
        let (done, all) = (u128::from(done), u128::from(all.max(1)));
        let passed = u128::from(pass) * all + done;
        let parts = passed * 65536 / (all * u128::from(passes.max(1)));
        let parts = u16::try_from(parts).unwrap_or(u16::MAX);
        self.parts.store(parts, Ordering::Relaxed);
    }

    pub fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }

    /// The fault with which commands end now; `None` if nothing is the matter.
    pub fn fault(&self) -> Option<Fault> {
        // One load where nothing is the matter: this is on the path of every command.
        let phase = self.phase();
        let progress = || self.parts.load(Ordering::Relaxed);
        Some(match phase {
            Phase::Ready => return None,
            Phase::Formatting => Fault::Erasing(What::Format, progress()),
            Phase::Sanitizing => Fault::Erasing(What::Sanitize, progress()),
            Phase::FormatFailed => Fault::FormatCorrupted,
            Phase::SanitizeFailed | Phase::SanitizeFailedRestricted | Phase::Leaving => {
                Fault::EraseFailed(What::Sanitize)
            }
        })
    }
}
