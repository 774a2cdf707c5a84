//! Who is registered with a unit, who holds its persistent reservation, what each request makes of
//! that (SPC-4, persistent reservations).

use uuid::Uuid;

use super::list::Request;
use crate::scsi::attention::Attention;
use crate::scsi::conflict::Standing;
use crate::scsi::fault::Fault;
use crate::scsi::port::Port;

/// Most registrations of a unit.
pub const MAX_REGISTRATIONS: usize = 1024;

/// Type of a persistent reservation. Their scope is always the logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

/// The I_T nexuses of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registrant {
    /// The HBA.
    pub initiator: Uuid,
    /// The target by which it is registered; `None` for all of them (ALL_TG_PT).
    pub target: Option<u8>,
}

/// A registrant with its key, which is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    pub who: Registrant,
    pub key: u64,
}

/// A persistent reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    pub kind: Kind,
    /// Who made it. Of the types for all registrants every one of them is a holder.
    pub holder: Registrant,
}

/// What REGISTER says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registering {
    /// The key that the initiator says it has; `None` if that does not matter.
    pub key: Option<u64>,
    /// The key that it is to have, 0 for none.
    pub new_key: u64,
    /// Others that are to be registered too (SPEC_I_PT).
    pub specified: Option<Vec<Uuid>>,
    pub all_ports: bool,
    pub aptpl: bool,
}

/// Registrations and reservation of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// PRGENERATION.
    pub generation: u32,
    pub registrations: Vec<Registration>,
    pub reservation: Option<Reservation>,
    /// Whether it is to survive a loss of power.
    pub aptpl: bool,
}

/// What comes of a request, beside another state.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Who is told what.
    pub tell: Vec<(Registrant, Attention)>,
    /// Whose commands are to be aborted.
    pub abort: Vec<Registrant>,
}

/// Who asks, and what there is to be asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    pub port: Port,
    /// The ports by which the unit is reached.
    pub known: &'a [Port],
    /// Whether anything can survive a loss of power.
    pub can_persist: bool,
}

impl Kind {
    /// Every type.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type in SCOPE and TYPE of a CDB.
    ///
    /// # Errors
    /// [`Fault::InvalidField`] for a scope or type that there is not.
    pub fn from_field(scope_and_type: u8) -> Result<Self, Fault> {
        // The only scope is that of the logical unit, 0.
        let mut kinds = Self::ALL.into_iter();
        kinds.find(|kind| *kind as u8 == scope_and_type).ok_or({
            let bit = if scope_and_type & 0xf0 == 0 { 3 } else { 7 };
            Fault::InvalidField { byte: 2, bit }
        })
    }

    /// Whether every registrant holds it.
    pub const fn is_for_all(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Whether it keeps no registrant away.
    pub const fn frees_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// What it leaves those whom it keeps away.
    const fn rest(self) -> Standing {
        match self {
            Self::WriteExclusive
            | Self::WriteExclusiveRegistrantsOnly
            | Self::WriteExclusiveAllRegistrants => Standing::ReadOnly,
            Self::ExclusiveAccess
            | Self::ExclusiveAccessRegistrantsOnly
            | Self::ExclusiveAccessAllRegistrants => Standing::Excluded,
        }
    }
}

impl Registrant {
    /// Whether a port is one of its.
    pub fn is(self, port: Port) -> bool {
        self.initiator == port.initiator.uuid
            && self.target.is_none_or(|target| target == port.target)
    }

    /// Whether a port could be one of both.
    pub fn overlaps(self, other: Self) -> bool {
        let same = self.target.is_none() || other.target.is_none() || self.target == other.target;
        self.initiator == other.initiator && same
    }

    fn of(port: Port, all_ports: bool) -> Self {
        Self {
            initiator: port.initiator.uuid,
            target: (!all_ports).then_some(port.target),
        }
    }
}

impl State {
    /// The registration of a port.
    pub fn registration(&self, port: Port) -> Option<Registration> {
        let mut registrations = self.registrations.iter();
        registrations.find(|known| known.who.is(port)).copied()
    }

    /// Whether a registrant holds the reservation.
    pub fn holds(&self, who: Registrant) -> bool {
        self.reservation
            .is_some_and(|held| held.kind.is_for_all() || held.holder == who)
    }

    /// What the reservation leaves a port.
    pub fn standing(&self, port: Port) -> Standing {
        let Some(Reservation { kind, .. }) = self.reservation else {
            return Standing::Free;
        };
        match self.registration(port) {
            Some(known) if kind.frees_registrants() || self.holds(known.who) => Standing::Free,
            _ => kind.rest(),
        }
    }

    /// What a request makes of it, and what else comes of that.
    ///
    /// # Errors
    /// [`Fault::Reserved`] for one who is not registered, or not with the key that it says;
    /// [`Fault::InvalidParameter`] or [`Fault::InvalidField`] for what makes no sense,
    /// [`Fault::InvalidRelease`], [`Fault::NoRoomToRegister`].
    pub fn after(&self, asker: Asker<'_>, request: &Request) -> Result<(Self, Effects), Fault> {
        let mut next = self.clone();
        let effects = next.act(asker, request)?;
        Ok((next, effects))
    }

    fn act(&mut self, asker: Asker<'_>, request: &Request) -> Result<Effects, Fault> {
        let mine = |key| self.authorized(asker.port, key);
        match *request {
            Request::Register(ref registering) => self.register(asker, registering),
            Request::Move {
                key,
                new_key,
                to,
                relative,
                unregister,
                aptpl,
            } => {
                let me = mine(key)?;
                if aptpl && !asker.can_persist {
                    return Err(Fault::InvalidParameter { byte: 17, bit: 0 });
                }
                let to = destination(asker, to, relative)?;
                self.move_to(me, to, new_key, unregister)?;
                self.aptpl = aptpl;
                Ok(Effects::default())
            }
            Request::Reserve { key, kind } => {
                let me = mine(key)?;
                self.reserve(me, kind)?;
                Ok(Effects::default())
            }
            Request::Release {
                key,
                scope_and_type,
            } => {
                let me = mine(key)?;
                self.release(me, scope_and_type)
            }
            Request::Clear { key } => {
                let me = mine(key)?;
                let mut effects = Effects::default();
                self.tell_others(me, Attention::ReservationsPreempted, &mut effects);
                self.registrations.clear();
                self.reservation = None;
                self.count();
                Ok(effects)
            }
            Request::Preempt {
                key,
                victims,
                scope_and_type,
                abort,
            } => {
                let me = mine(key)?;
                let mut effects = self.preempt(me, victims, scope_and_type)?;
                if !abort {
                    effects.abort.clear();
                }
                Ok(effects)
            }
        }
    }

    /// The registrant behind a port, if its key is this one.
    fn authorized(&self, port: Port, key: u64) -> Result<Registrant, Fault> {
        match self.registration(port) {
            Some(known) if known.key == key => Ok(known.who),
            _ => Err(Fault::Reserved),
        }
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn tell_others(&self, me: Registrant, attention: Attention, effects: &mut Effects) {
        let others = self.registrations.iter().map(|known| known.who);
        let others = others.filter(|who| *who != me);
        effects.tell.extend(others.map(|who| (who, attention)));
    }

    // --- Registering -----------------------------------------------------------------------------

    fn register(&mut self, asker: Asker<'_>, new: &Registering) -> Result<Effects, Fault> {
        let known = self.registration(asker.port);
        // Whoever is not registered says so by a key of 0.
        let has = known.map_or(0, |known| known.key);
        if new.key.is_some_and(|key| key != has) {
            return Err(Fault::Reserved);
        }
        if new.aptpl && !asker.can_persist {
            return Err(Fault::InvalidParameter { byte: 20, bit: 0 });
        }
        if known.is_some() && new.specified.is_some() {
            return Err(Fault::InvalidParameter { byte: 20, bit: 3 });
        }
        let mut effects = Effects::default();
        match (known, new.new_key) {
            (None, 0) => return Ok(effects),
            (None, key) => {
                self.add(Registrant::of(asker.port, new.all_ports), key)?;
                for &initiator in new.specified.iter().flatten() {
                    let mut ports = asker.known.iter();
                    let port = ports.find(|port| port.initiator.uuid == initiator);
                    // One that does not see the unit is no initiator port of it.
                    let port = port.ok_or(Fault::InvalidParameter { byte: 24, bit: 7 })?;
                    if self.registration(*port).is_none() {
                        self.add(Registrant::of(*port, new.all_ports), key)?;
                    }
                }
            }
            (Some(known), 0) => self.unregister(known.who, &mut effects),
            (Some(known), key) => {
                let who = if new.all_ports {
                    Registrant::of(asker.port, true)
                } else {
                    known.who
                };
                self.rename(known.who, Registration { who, key });
            }
        }
        self.aptpl = new.aptpl;
        self.count();
        Ok(effects)
    }

    fn add(&mut self, who: Registrant, key: u64) -> Result<(), Fault> {
        if who.target.is_none() {
            self.absorb(who);
        }
        if self.registrations.len() >= MAX_REGISTRATIONS {
            return Err(Fault::NoRoomToRegister);
        }
        self.registrations.push(Registration { who, key });
        Ok(())
    }

    /// Takes the registrations of single ports of an HBA away that is to be registered for all of
    /// them; what they hold is its.
    fn absorb(&mut self, all: Registrant) {
        self.registrations
            .retain(|known| known.who.initiator != all.initiator);
        if let Some(held) = &mut self.reservation
            && held.holder.initiator == all.initiator
        {
            held.holder = all;
        }
    }

    /// Puts another registration in the place of one.
    fn rename(&mut self, old: Registrant, new: Registration) {
        if old != new.who {
            // From one port to all.
            self.absorb(new.who);
            self.registrations.push(new);
            return;
        }
        for known in &mut self.registrations {
            if known.who == old {
                *known = new;
            }
        }
    }

    /// Takes a registration away, with the reservation that it holds.
    fn unregister(&mut self, who: Registrant, effects: &mut Effects) {
        self.registrations.retain(|known| known.who != who);
        let Some(held) = self.reservation else {
            return;
        };
        if held.kind.is_for_all() {
            if self.registrations.is_empty() {
                self.reservation = None;
            }
        } else if held.holder == who {
            self.reservation = None;
            if held.kind.frees_registrants() {
                self.tell_others(who, Attention::ReservationsReleased, effects);
            }
        }
    }

    fn move_to(
        &mut self,
        me: Registrant,
        to: Port,
        key: u64,
        unregister: bool,
    ) -> Result<(), Fault> {
        match self.reservation {
            None => return Err(Fault::InvalidField { byte: 1, bit: 4 }),
            Some(held) if held.kind.is_for_all() => return Err(Fault::Reserved),
            Some(held) if held.holder != me => {
                return Err(Fault::InvalidField { byte: 1, bit: 4 });
            }
            Some(_) => {}
        }
        if me.is(to) {
            return Err(Fault::InvalidParameter { byte: 24, bit: 7 });
        }
        if key == 0 {
            return Err(Fault::InvalidParameter { byte: 8, bit: 7 });
        }
        let holder = match self.registration(to) {
            Some(known) => {
                self.rename(known.who, Registration { key, ..known });
                known.who
            }
            None => {
                let who = Registrant::of(to, false);
                self.add(who, key)?;
                who
            }
        };
        if let Some(held) = &mut self.reservation {
            held.holder = holder;
        }
        if unregister {
            self.registrations.retain(|known| known.who != me);
        }
        self.count();
        Ok(())
    }

    // --- Reserving -------------------------------------------------------------------------------

    fn reserve(&mut self, me: Registrant, kind: Kind) -> Result<(), Fault> {
        match self.reservation {
            None => {
                self.reservation = Some(Reservation { kind, holder: me });
                Ok(())
            }
            Some(held) if self.holds(me) && held.kind == kind => Ok(()),
            Some(_) => Err(Fault::Reserved),
        }
    }

    fn release(&mut self, me: Registrant, scope_and_type: u8) -> Result<Effects, Fault> {
        let mut effects = Effects::default();
        let Some(held) = self.reservation.filter(|_| self.holds(me)) else {
            return Ok(effects);
        };
        if held.kind as u8 != scope_and_type {
            return Err(Fault::InvalidRelease);
        }
        self.reservation = None;
        if held.kind.frees_registrants() {
            self.tell_others(me, Attention::ReservationsReleased, &mut effects);
        }
        Ok(effects)
    }

    fn preempt(
        &mut self,
        me: Registrant,
        victims: u64,
        scope_and_type: u8,
    ) -> Result<Effects, Fault> {
        let held = self.reservation;
        let for_all = held.is_some_and(|held| held.kind.is_for_all());
        if victims == 0 && !for_all {
            return Err(Fault::InvalidParameter { byte: 8, bit: 7 });
        }
        let takes_over = match held {
            Some(held) if held.kind.is_for_all() => victims == 0,
            Some(held) => self.key_of(held.holder) == Some(victims),
            None => false,
        };
        let kind = takes_over.then(|| Kind::from_field(scope_and_type));
        let kind = kind.transpose()?;
        let is_victim = |known: &Registration| {
            if takes_over {
                // Whoever takes a reservation over stays registered.
                known.who != me && (victims == 0 || known.key == victims)
            } else {
                known.key == victims
            }
        };
        let gone: Vec<_> = self
            .registrations
            .iter()
            .filter(|known| is_victim(known))
            .map(|known| known.who)
            .collect();
        if gone.is_empty() && !takes_over {
            return Err(Fault::Reserved);
        }
        self.registrations.retain(|known| !is_victim(known));
        let mut effects = Effects::default();
        let others = || gone.iter().copied().filter(|who| *who != me);
        let told = others().map(|who| (who, Attention::RegistrationsPreempted));
        effects.tell.extend(told);
        effects.abort.extend(others());
        if let Some(kind) = kind {
            let before = self.reservation.replace(Reservation { kind, holder: me });
            if before.is_some_and(|before| before.kind != kind) {
                self.tell_others(me, Attention::ReservationsReleased, &mut effects);
            }
        } else if self.registrations.is_empty() {
            // Only one for all registrants can be without a holder now.
            self.reservation = None;
        }
        self.count();
        Ok(effects)
    }

    fn key_of(&self, who: Registrant) -> Option<u64> {
        let mut registrations = self.registrations.iter();
        let known = registrations.find(|known| known.who == who);
        known.map(|known| known.key)
    }
}

/// The port of the HBA to which a reservation is to be moved.
fn destination(asker: Asker<'_>, to: Uuid, relative: u16) -> Result<Port, Fault> {
    let mut ports = asker.known.iter().filter(|port| port.initiator.uuid == to);
    let port = ports
        .next()
        .ok_or(Fault::InvalidParameter { byte: 24, bit: 7 })?;
    if port.relative() != relative {
        return Err(Fault::InvalidParameter { byte: 18, bit: 7 });
    }
    Ok(*port)
}
