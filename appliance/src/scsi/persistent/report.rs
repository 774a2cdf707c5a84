//! PERSISTENT RESERVE IN: what it returns (SPC-4, PERSISTENT RESERVE IN command).

use super::fenced::Fenced;
use super::list::{TRANSPORT_ID, transport_id};
use super::state::{Registration, Reservation, State};
use crate::scsi::port::Port;

/// Service actions of PERSISTENT RESERVE IN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Keys,
    Reservation,
    Capabilities,
    FullStatus,
}

/// The answer; `known` are the ports by which the unit is reached.
pub fn data(
    ask: Ask,
    state: &State,
    fenced: &Fenced,
    known: &[Port],
    can_persist: bool,
) -> Vec<u8> {
    let list = match ask {
        Ask::Capabilities => return capabilities(state, can_persist),
        Ask::Keys => keys(state, fenced),
        Ask::Reservation => reservation(state),
        Ask::FullStatus => full_status(state, fenced, known),
    };
    let mut data = state.generation.to_be_bytes().to_vec();
    // ADDITIONAL LENGTH: some thousand registrations of 48 bytes at most.
    data.extend(u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes());
    data.extend(list);
    data
}

fn keys(state: &State, fenced: &Fenced) -> Vec<u8> {
    let registrations = state.registrations.iter().copied();
    registrations
        .chain(fenced.registrations())
        .flat_map(|known| known.key.to_be_bytes())
        .collect()
}

fn reservation(state: &State) -> Vec<u8> {
    let Some(held) = state.reservation else {
        return Vec::new();
    };
    let mut holders = state.registrations.iter();
    let holder = holders.find(|known| known.who == held.holder);
    // With all registrants as holders there is no key to tell.
    let key = holder.filter(|_| !held.kind.is_for_all());
    let mut data = key.map_or(0, |known| known.key).to_be_bytes().to_vec();
    data.extend([0, 0, 0, 0, 0, held.kind as u8, 0, 0]);
    data
}

fn capabilities(state: &State, can_persist: bool) -> Vec<u8> {
    // CRH, SIP_C, ATP_C; PTPL_C.
    let supported = 0x10 | 0x08 | 0x04 | u8::from(can_persist);
    // TMV; ALLOW COMMANDS 011b: TEST UNIT READY is let through, and by Write Exclusive those that
    // only ask; PTPL_A.
    let more = 0x80 | 0x30 | u8::from(state.aptpl);
    // All six types.
    vec![0, 8, supported, more, 0xea, 0x01, 0, 0]
}

fn full_status(state: &State, fenced: &Fenced, known: &[Port]) -> Vec<u8> {
    let registrations = state.registrations.iter().map(|registration| {
        let held = state.reservation.filter(|_| state.holds(registration.who));
        (*registration, held)
    });
    registrations
        .chain(fenced.registrations().map(|gone| (gone, None)))
        .flat_map(|(registration, held)| full(registration, held, known))
        .collect()
}

/// The full status descriptor of a registration, and of the reservation if it is its.
fn full(registration: Registration, held: Option<Reservation>, known: &[Port]) -> Vec<u8> {
    let Registration { who, key } = registration;
    let mut data = key.to_be_bytes().to_vec();
    // ALL_TG_PT, R_HOLDER; SCOPE and TYPE.
    let flags = u8::from(who.target.is_none()) << 1 | u8::from(held.is_some());
    data.extend([0, 0, 0, 0, flags, held.map_or(0, |held| held.kind as u8)]);
    data.extend([0; 4]);
    // 0, which is no port's, for an HBA that does not see the unit any more.
    let port = known.iter().find(|port| who.is(**port));
    let port = port.filter(|_| who.target.is_some());
    data.extend(port.map_or(0, |port| port.relative()).to_be_bytes());
    data.extend([0, 0, 0, 24]);
    debug_assert_eq!(TRANSPORT_ID, 24);
    data.extend(transport_id(who.initiator));
    data
}
