//! An I_T_L nexus: what one initiator was not told yet of one logical unit.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::access::Access;
use super::attention::Attention;
use super::conflict::Standing;
use super::copy::Records;
use super::echo::Echo;
use super::port::Port;

/// One initiator's relation to one logical unit.
#[derive(Debug)]
pub struct Nexus {
    id: u64,
    port: Port,
    /// What others' persistent reservations leave it: a [`Standing`].
    standing: AtomicU8,
    /// State of its port: an [`Access`].
    access: AtomicU8,
    /// Unit attentions that it was not told of, a bit for each of [`Attention::ALL`].
    attentions: AtomicU32,
    /// What became of its third-party copies.
    copies: Mutex<Records>,
    /// What it has written to be read again.
    echo: Echo,
}

impl Nexus {
    /// A nexus unlike every other; that its unit was powered on is all there is to be told.
    pub fn new(port: Port) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            port,
            standing: AtomicU8::new(Standing::default() as u8),
            access: AtomicU8::new(Access::default() as u8),
            attentions: AtomicU32::new(Attention::PowerOn.bit()),
            copies: Mutex::default(),
            echo: Echo::default(),
        }
    }

    /// What tells it from others; never 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The port by which the initiator reaches the unit.
    pub fn port(&self) -> Port {
        self.port
    }

    /// What it has written to be read again.
    pub fn echo(&self) -> &Echo {
        &self.echo
    }

    /// What others' persistent reservations leave it. A plain load: this is on the path of every
    /// command.
    pub fn standing(&self) -> Standing {
        Standing::from_number(self.standing.load(Ordering::Acquire))
    }

    /// Changes what others' persistent reservations leave it.
    pub fn set_standing(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Release);
    }

    /// The state of its port. A plain load, likewise.
    pub fn access(&self) -> Access {
        Access::from_number(self.access.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Changes the state of its port.
    pub fn set_access(&self, access: Access) {
        self.access.store(access as u8, Ordering::Release);
    }

    /// Whether it may do anything, and nothing is to be told before.
    #[inline]
    pub fn is_open(&self) -> bool {
        let is_usable = matches!(
            self.access(),
            Access::ActiveOptimized | Access::ActiveNonOptimized
        );
        is_usable && self.standing() == Standing::Free && !self.has_attention()
    }

    /// What became of its third-party copies.
    pub fn copies(&self) -> MutexGuard<'_, Records> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Establishes a unit attention.
    pub fn establish(&self, attention: Attention) {
        self.attentions.fetch_or(attention.bit(), Ordering::AcqRel);
    }

    /// Forgets a unit attention, because it is known by other means.
    pub fn forget(&self, attention: Attention) {
        self.attentions
            .fetch_and(!attention.bit(), Ordering::AcqRel);
    }

    /// That its unit was powered on is all there is to be told: whoever hears that asks for
    /// everything anew.
    pub fn restart(&self) {
        self.copies().forget();
        self.attentions
            .store(Attention::PowerOn.bit(), Ordering::Release);
    }

    /// Whether there is a unit attention to be told. A plain load: this is on the path of every
    /// command.
    pub fn has_attention(&self) -> bool {
        self.attentions.load(Ordering::Acquire) != 0
    }

    /// The most important unit attention, which is reported with that.
    pub fn take_attention(&self) -> Option<Attention> {
        Attention::ALL.into_iter().find(|attention| {
            self.attentions
                .fetch_and(!attention.bit(), Ordering::AcqRel)
                & attention.bit()
                != 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::testing::PORT;

    #[test]
    fn attentions_are_told_one_by_one_the_most_important_first() {
        let nexus = Nexus::new(PORT);
        nexus.establish(Attention::SoftThreshold);
        nexus.establish(Attention::NexusLoss);
        nexus.establish(Attention::NexusLoss);
        nexus.establish(Attention::ModeChanged);
        let told: Vec<_> = std::iter::from_fn(|| nexus.take_attention()).collect();
        assert_eq!(
            told,
            [
                Attention::PowerOn,
                Attention::NexusLoss,
                Attention::ModeChanged,
                Attention::SoftThreshold
            ]
        );
    }

    #[test]
    fn a_restart_makes_what_was_to_be_told_before_void() {
        let nexus = Nexus::new(PORT);
        assert_eq!(nexus.take_attention(), Some(Attention::PowerOn));
        nexus.establish(Attention::CapacityChanged);
        nexus.restart();
        assert_eq!(nexus.take_attention(), Some(Attention::PowerOn));
        assert_eq!(nexus.take_attention(), None);
    }
}
