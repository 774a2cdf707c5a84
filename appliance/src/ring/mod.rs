//! A split virtqueue of the tenant (virtio 1.3 §2.7), read as hostile input.

mod chain;
mod descriptor;
mod habit;
mod parts;
mod violation;

use std::sync::atomic::{Ordering, fence};

use spec::mailbox::RingSetup;
use spec::ring::{EVENT_IDX, INDIRECT_DESC};

pub use chain::Chain;
pub(crate) use chain::MAX_PIECES;
pub use violation::Violation;

use self::habit::Habit;
use self::parts::{MAX_SIZE, Parts, UsedElement};
use crate::memory::{Hint, TenantMemory};

/// Bit of the avail ring's flags: the driver wants no interrupts (virtio 1.3 §2.7.6).
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Bit of the used ring's flags: the device wants no kicks (virtio 1.3 §2.7.8).
const USED_F_NO_NOTIFY: u16 = 1;

/// A running ring. Nothing of it is kept that the tenant could rewrite, but our own two indexes
/// and what the shim said about it.
#[derive(Debug)]
pub struct Ring {
    setup: RingSetup,
    event_idx: bool,
    indirect: bool,
    parts: Parts,
    hint: Hint,
    next_avail: u16,
    /// The used index that the driver sees.
    next_used: u16,
    /// What follows there.
    unpublished: Vec<UsedElement>,
    /// Elements published since the last question whether the driver wants an interrupt.
    unasked: u32,
    /// What the used ring tells the driver about kicks, if we know: the avail event with
    /// EVENT_IDX, the flags without.
    told: Option<u16>,
    habit: Habit,
}

impl Ring {
    /// The ring of `setup` in `memory`, with the tenant's accepted `features`.
    ///
    /// It goes on from its base, or from the used index where the setup has none.
    ///
    /// # Errors
    /// [`Violation::Configuration`] if its parts are not aligned, not all in memory, or one is
    /// not in one piece.
    pub fn new(setup: &RingSetup, features: u64, memory: &TenantMemory) -> Result<Self, Violation> {
        let parts = Parts::find(setup, memory).ok_or(Violation::Configuration)?;
        let used = parts.used_index();
        Ok(Self {
            setup: *setup,
            event_idx: features & EVENT_IDX != 0,
            indirect: features & INDIRECT_DESC != 0,
            parts,
            hint: Hint::default(),
            next_avail: setup.base.unwrap_or(used),
            next_used: used,
            unpublished: Vec::new(),
            unasked: 0,
            told: None,
            habit: Habit::default(),
        })
    }

    /// Finds the parts of the ring in `memory`; needed once for each new snapshot, before it is
    /// given to any other method. The old snapshot's mapping is let go.
    ///
    /// # Errors
    /// [`Violation::Configuration`] if they are not in it; the ring is of no more use then.
    pub fn check(&mut self, memory: &TenantMemory) -> Result<(), Violation> {
        self.parts = Parts::find(&self.setup, memory).ok_or(Violation::Configuration)?;
        self.told = None;
        Ok(())
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.setup.size
    }

    /// Avail index of the next request to fetch.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Index of the used ring, as we left it.
    pub fn used_index(&self) -> u16 {
        self.next_used
    }

    /// Elements that were put and not published.
    pub fn unpublished(&self) -> usize {
        self.unpublished.len()
    }

    /// Elements published since the last question whether the driver wants an interrupt.
    #[inline]
    pub fn unasked(&self) -> u32 {
        self.unasked
    }

    /// Whether the driver says by an event index which elements it wants interrupts for.
    #[inline]
    pub fn has_event_index(&self) -> bool {
        self.event_idx
    }

    /// Goes on with the request at this avail index.
    pub fn go_on_at(&mut self, next_avail: u16) {
        self.next_avail = next_avail;
    }

    /// Fetches the chain at `head` once more into `chains`: it was made available before, and
    /// not given back.
    ///
    /// # Errors
    /// [`Violation`] if the chain breaks the rules.
    pub fn fetch_again(
        &mut self,
        memory: &TenantMemory,
        head: u16,
        chains: &mut Vec<Chain>,
    ) -> Result<(), Violation> {
        self.parts(memory)?;
        let mut chain = Chain::empty(head, &self.parts);
        chain.read(&self.parts, memory, &mut self.hint, self.indirect)?;
        chains.push(chain);
        Ok(())
    }

    /// Fetches up to `limit` requests into `chains`.
    ///
    /// # Errors
    /// [`Violation`] if the ring or a chain breaks the rules; `chains` then has those before it.
    pub fn pop(
        &mut self,
        memory: &TenantMemory,
        limit: usize,
        chains: &mut Vec<Chain>,
    ) -> Result<(), Violation> {
        self.fetch(memory, 0, limit, chains)
    }

    /// As [`Self::pop`] after [`Self::waiting`], with one look at the avail index.
    ///
    /// # Errors
    /// Those of both.
    pub fn fetch(
        &mut self,
        memory: &TenantMemory,
        in_flight: usize,
        limit: usize,
        chains: &mut Vec<Chain>,
    ) -> Result<(), Violation> {
        let waiting = self.waiting(memory, in_flight)?;
        let count = u16::try_from(limit).map_or(waiting, |limit| limit.min(waiting));
        let first = self.next_avail;
        self.next_avail = first.wrapping_add(count);
        let Self {
            parts,
            hint,
            indirect,
            habit,
            next_used,
            ..
        } = self;
        if count == 1 {
            habit.prefetch(parts.mapping());
            parts.prefetch_used(*next_used);
        }
        let before = chains.len();
        parts.heads(first, count, |heads| {
            let heads = heads.iter().map(|head| u16::from_le_bytes(*head));
            chains.extend(heads.map(|head| Chain::empty(head, parts)));
        });
        // What of a request is in the driver's caches takes longer to come than all that is done with
        // it here.
        if count > 1 {
            for chain in &chains[before..] {
                chain.prefetch_table(parts, memory, hint);
            }
        }
        for index in before..chains.len() {
            // In its place: a chain is too large to be moved about.
            let table = match chains[index].read(parts, memory, hint, *indirect) {
                Ok(table) => table,
                Err(violation) => {
                    chains.truncate(index);
                    return Err(violation);
                }
            };
            let chain = &chains[index];
            if count == 1 {
                habit.learn(chain, table, parts);
            } else {
                chain.readable.prefetch();
                chain.writable.prefetch();
            }
        }
        Ok(())
    }

    /// How many requests there are to be fetched.
    ///
    /// # Errors
    /// [`Violation::AvailIndex`] if these and the `in_flight` ones, which were fetched and not
    /// given back, are more than the ring has entries.
    pub fn waiting(&self, memory: &TenantMemory, in_flight: usize) -> Result<u16, Violation> {
        let avail = self.parts(memory)?.avail_index();
        let waiting = avail.wrapping_sub(self.next_avail);
        if usize::from(waiting).saturating_add(in_flight) > usize::from(self.size()) {
            return Err(Violation::AvailIndex);
        }
        Ok(waiting)
    }

    /// Gives the chain at `head` back, with `written` bytes in its buffers; the driver sees it after
    /// [`Self::publish`].
    ///
    /// # Errors
    /// [`Violation::DescriptorIndex`] if the ring has no such chain.
    pub fn put(&mut self, head: u16, written: u32) -> Result<(), Violation> {
        if head >= self.size() {
            return Err(Violation::DescriptorIndex {
                index: head,
                len: u32::from(self.size()),
            });
        }
        let [a, b, c, d] = u32::from(head).to_le_bytes();
        let [e, f, g, h] = written.to_le_bytes();
        self.unpublished.push([a, b, c, d, e, f, g, h]);
        Ok(())
    }

    /// Shows the driver what was [put](Self::put) since the last time.
    ///
    /// # Errors
    /// [`Violation::Configuration`] if the ring was not checked in `memory`.
    pub fn publish(&mut self, memory: &TenantMemory) -> Result<(), Violation> {
        self.parts(memory)?;
        let parts = &self.parts;
        let mut next = self.next_used;
        // More than the ring has are put only by who gives chains back twice, who must not have
        // us leave the ring.
        for elements in self.unpublished.chunks(usize::from(self.size())) {
            parts.write_used(next, elements);
            let count = u16::try_from(elements.len()).unwrap_or(MAX_SIZE);
            next = next.wrapping_add(count);
            self.unasked = self.unasked.saturating_add(u32::from(count));
            parts.set_used_index(next);
        }
        self.next_used = next;
        self.unpublished.clear();
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was published since the last question.
    ///
    /// # Errors
    /// [`Violation::Configuration`] if the ring was not checked in `memory`.
    pub fn wants_call(&mut self, memory: &TenantMemory) -> Result<bool, Violation> {
        let parts = self.parts(memory)?;
        // The driver must see our used index before we look what it wishes, as it looks at the
        // used index after it wrote its wish.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = parts.avail_flags();
            self.unasked = 0;
            return Ok(flags & AVAIL_F_NO_INTERRUPT == 0);
        }
        // virtio 1.3 §2.7.7.2: when the element at index used_event is among the new ones.
        let newest = self.next_used.wrapping_sub(1);
        let age = newest.wrapping_sub(parts.used_event());
        Ok(u32::from(age) < std::mem::take(&mut self.unasked))
    }

    /// Asks the driver for a kick with its next request; returns whether there is one already.
    ///
    /// # Errors
    /// [`Violation::Configuration`] if the ring was not checked in `memory`.
    pub fn enable_kicks(&mut self, memory: &TenantMemory) -> Result<bool, Violation> {
        let wish = if self.event_idx { self.next_avail } else { 0 };
        self.tell(memory, wish)?;
        // The driver must see our wish before we look for what it did without having seen it.
        fence(Ordering::SeqCst);
        Ok(self.parts(memory)?.avail_index() != self.next_avail)
    }

    /// Tells the driver that it need not kick.
    ///
    /// # Errors
    /// [`Violation::Configuration`] if the ring was not checked in `memory`.
    pub fn disable_kicks(&mut self, memory: &TenantMemory) -> Result<(), Violation> {
        if self.event_idx {
            // The driver kicks once when it passes the avail event, which stays behind.
            return Ok(());
        }
        self.tell(memory, USED_F_NO_NOTIFY)
    }

    /// Writes our wish about kicks where the driver reads it, unless it is there.
    fn tell(&mut self, memory: &TenantMemory, wish: u16) -> Result<(), Violation> {
        if self.told == Some(wish) {
            return Ok(());
        }
        let parts = self.parts(memory)?;
        if self.event_idx {
            parts.set_avail_event(wish);
        } else {
            parts.set_used_flags(wish);
        }
        self.told = Some(wish);
        Ok(())
    }

    /// The parts, if they were found in `memory`: those of another snapshot may be memory that
    /// the tenant has no more.
    #[inline]
    fn parts(&self, memory: &TenantMemory) -> Result<&Parts, Violation> {
        if self.parts.snapshot() == memory.snapshot() {
            Ok(&self.parts)
        } else {
            Err(Violation::Configuration)
        }
    }
}

#[cfg(test)]
mod equivalence;
#[cfg(test)]
mod event_index;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
