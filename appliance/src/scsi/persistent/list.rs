//! PERSISTENT RESERVE OUT: its parameter lists (SPC-4, PERSISTENT RESERVE OUT command).

use uuid::Uuid;

use super::state::{Kind, Registering};
use crate::scsi::fault::Fault;

/// Bytes of the basic parameter list.
const BASIC: usize = 24;
/// Bytes before the TransportIDs of a list with SPEC_I_PT.
const SPECIFIED: usize = BASIC + 4;
/// Bytes of a TransportID as ours are.
pub const TRANSPORT_ID: usize = 24;
/// PROTOCOL IDENTIFIER of a TransportID: SCSI RDMA protocol, whose initiator ports have names of 16
/// bytes.
const SRP: u8 = 0x04;
/// Most bytes of a list: TransportIDs for more HBAs than there can be.
pub const MAX_LIST: usize = SPECIFIED + 256 * TRANSPORT_ID;

const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
const APTPL: u8 = 0x01;
/// UNREG of REGISTER AND MOVE, in another byte.
const UNREG: u8 = 0x02;

/// Service actions of PERSISTENT RESERVE OUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Register,
    Reserve,
    Release,
    Clear,
    Preempt,
    PreemptAndAbort,
    RegisterAndIgnore,
    RegisterAndMove,
}

/// What an initiator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// REGISTER, or REGISTER AND IGNORE EXISTING KEY.
    Register(Registering),
    /// REGISTER AND MOVE: the reservation is to be that of `to`.
    Move {
        key: u64,
        /// The key of `to`, from then on.
        new_key: u64,
        to: Uuid,
        /// RELATIVE TARGET PORT IDENTIFIER of the port by which `to` reaches the unit.
        relative: u16,
        /// The initiator itself is to be registered no more.
        unregister: bool,
        aptpl: bool,
    },
    Reserve {
        key: u64,
        kind: Kind,
    },
    /// With the type as it stands in the CDB: it is wrong only if there is something to release.
    Release {
        key: u64,
        scope_and_type: u8,
    },
    Clear {
        key: u64,
    },
    Preempt {
        key: u64,
        /// The key of those who are to be registered no more.
        victims: u64,
        scope_and_type: u8,
        abort: bool,
    },
}

/// What a parameter list asks for; `scope_and_type` is byte 2 of the CDB.
///
/// # Errors
/// [`Fault::ParameterListLength`], [`Fault::InvalidParameter`], or [`Fault::InvalidField`] for a
/// scope or type that there is not.
pub fn parse(action: Action, scope_and_type: u8, list: &[u8]) -> Result<Request, Fault> {
    if list.len() < BASIC {
        return Err(Fault::ParameterListLength);
    }
    let key = be64(list, 0);
    let second = be64(list, 8);
    if action == Action::RegisterAndMove {
        return parse_move(key, second, list);
    }
    let flags = list[20];
    if flags & !(SPEC_I_PT | ALL_TG_PT | APTPL) != 0 {
        return Err(Fault::InvalidParameter { byte: 20, bit: 7 });
    }
    let ignores_key = action == Action::RegisterAndIgnore;
    if flags & SPEC_I_PT != 0 && ignores_key {
        return Err(Fault::InvalidParameter { byte: 20, bit: 3 });
    }
    let is_register = action == Action::Register;
    let others = if flags & SPEC_I_PT != 0 && is_register {
        specified(list)?
    } else if list.len() == BASIC {
        Vec::new()
    } else {
        return Err(Fault::ParameterListLength);
    };
    Ok(match action {
        Action::Register | Action::RegisterAndIgnore | Action::RegisterAndMove => {
            Request::Register(Registering {
                key: (!ignores_key).then_some(key),
                new_key: second,
                specified: (flags & SPEC_I_PT != 0).then_some(others),
                all_ports: flags & ALL_TG_PT != 0,
                aptpl: flags & APTPL != 0,
            })
        }
        Action::Reserve => Request::Reserve {
            key,
            kind: Kind::from_field(scope_and_type)?,
        },
        Action::Release => Request::Release {
            key,
            scope_and_type,
        },
        Action::Clear => Request::Clear { key },
        Action::Preempt | Action::PreemptAndAbort => Request::Preempt {
            key,
            victims: second,
            scope_and_type,
            abort: action == Action::PreemptAndAbort,
        },
    })
}

/// REGISTER AND MOVE has a list of its own.
fn parse_move(key: u64, new_key: u64, list: &[u8]) -> Result<Request, Fault> {
    let flags = list[17];
    if flags & !(UNREG | APTPL) != 0 {
        return Err(Fault::InvalidParameter { byte: 17, bit: 7 });
    }
    if be32(list, 20) != list.len() - BASIC {
        return Err(Fault::ParameterListLength);
    }
    let id = list.get(BASIC..).filter(|id| id.len() == TRANSPORT_ID);
    let id = id.ok_or(Fault::ParameterListLength)?;
    Ok(Request::Move {
        key,
        new_key,
        to: named(id, BASIC)?,
        relative: u16::from_be_bytes([list[18], list[19]]),
        unregister: flags & UNREG != 0,
        aptpl: flags & APTPL != 0,
    })
}

/// The initiator ports that follow the basic list.
fn specified(list: &[u8]) -> Result<Vec<Uuid>, Fault> {
    let ids = list.get(SPECIFIED..).ok_or(Fault::ParameterListLength)?;
    if be32(list, BASIC) != ids.len() || ids.len() % TRANSPORT_ID != 0 {
        return Err(Fault::ParameterListLength);
    }
    let ids = ids.chunks_exact(TRANSPORT_ID).enumerate();
    ids.map(|(index, id)| named(id, SPECIFIED + index * TRANSPORT_ID))
        .collect()
}

/// The HBA in a TransportID, which begins `at` this byte of the list.
fn named(id: &[u8], at: usize) -> Result<Uuid, Fault> {
    let uuid = id
        .get(8..TRANSPORT_ID)
        .and_then(|uuid| uuid.try_into().ok());
    match uuid {
        // FORMAT CODE 00b; the rest of the header is reserved.
        Some(uuid) if id[0] == SRP && id[1..8] == [0; 7] => Ok(Uuid::from_bytes(uuid)),
        _ => Err(Fault::InvalidParameter {
            byte: u16::try_from(at).unwrap_or(u16::MAX),
            bit: 7,
        }),
    }
}

/// The TransportID of an HBA.
///
/// Virtio-scsi has no TransportID of its own. Of those that there are, only that of the SCSI RDMA
/// protocol names an initiator port by 16 bytes, as many as a UUID has.
pub fn transport_id(hba: Uuid) -> [u8; TRANSPORT_ID] {
    let mut id = [0; TRANSPORT_ID];
    id[0] = SRP;
    id[8..].copy_from_slice(hba.as_bytes());
    id
}

fn be64(list: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&list[at..at + 8]);
    u64::from_be_bytes(bytes)
}

/// Four bytes as a length; what does not fit a `usize` is the length of no list.
fn be32(list: &[u8], at: usize) -> usize {
    let number = u32::from_be_bytes([list[at], list[at + 1], list[at + 2], list[at + 3]]);
    usize::try_from(number).unwrap_or(usize::MAX)
}
