//! An I_T_L nexus: what one initiator was not told yet of one logical unit.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::attention::Attention;

/// One initiator's relation to one logical unit.
#[derive(Debug)]
pub struct Nexus {
    id: u64,
    /// Unit attentions that it was not told of, a bit for each of [`Attention::ALL`].
    attentions: AtomicU32,
}

impl Nexus {
    /// A nexus unlike every other; nothing is to be told.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            attentions: AtomicU32::new(0),
        }
    }

    /// What tells it from others; never 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Establishes a unit attention.
    pub fn establish(&self, attention: Attention) {
        self.attentions.fetch_or(attention.bit(), Ordering::AcqRel);
    }

    /// The most important unit attention, which is reported with that.
    pub fn take_attention(&self) -> Option<Attention> {
        // A plain load first: this is on the path of every command.
        if self.attentions.load(Ordering::Acquire) == 0 {
            return None;
        }
        Attention::ALL.into_iter().find(|attention| {
            self.attentions
                .fetch_and(!attention.bit(), Ordering::AcqRel)
                & attention.bit()
                != 0
        })
    }
}
