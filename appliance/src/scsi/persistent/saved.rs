//! What a persistent reservation is in the file in which it outlives the appliance.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::state::{Kind, MAX_REGISTRATIONS, Registrant, Registration, Reservation, State};
use crate::scsi::state_file::Kept;

/// What the file says: nothing, unless it was asked for (APTPL).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "Raw", into = "Raw")]
pub struct Saved {
    registrations: Vec<Registration>,
    reservation: Option<Reservation>,
}

/// The same as it stands there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    /// Type of the reservation.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<u8>,
    #[serde(default, rename = "registration")]
    registrations: Vec<RawRegistration>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegistration {
    hba: Uuid,
    /// None for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<u8>,
    /// In hexadecimal: TOML has no number as large.
    key: String,
    /// Whether it made the reservation.
    holder: bool,
}

impl Kept for Saved {
    const WHAT: &'static str = "persistent reservations";
    const WITHOUT: &'static str = "the LUN is not served without them, as whom they keep away could \
                                   write to it; mend the file, or remove it if nobody is to be \
                                   kept away";
    // A registration has about 100 bytes.
    const MAX_LEN: u64 = 256 * MAX_REGISTRATIONS as u64;
}

impl From<&State> for Saved {
    fn from(state: &State) -> Self {
        if state.aptpl {
            Self {
                registrations: state.registrations.clone(),
                reservation: state.reservation,
            }
        } else {
            Self::default()
        }
    }
}

impl From<Saved> for State {
    fn from(saved: Saved) -> Self {
        let Saved {
            registrations,
            reservation,
        } = saved;
        Self {
            // PRGENERATION starts anew at power on.
            generation: 0,
            aptpl: !registrations.is_empty(),
            registrations,
            reservation,
        }
    }
}

impl From<Saved> for Raw {
    fn from(saved: Saved) -> Self {
        let holder = saved.reservation.map(|held| held.holder);
        let registrations = saved.registrations.into_iter();
        Self {
            kind: saved.reservation.map(|held| held.kind as u8),
            registrations: registrations
                .map(|Registration { who, key }| RawRegistration {
                    hba: who.initiator,
                    target: who.target,
                    key: format!("{key:016x}"),
                    holder: holder == Some(who),
                })
                .collect(),
        }
    }
}

impl TryFrom<Raw> for Saved {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let mut registrations = Vec::new();
        let mut holder = None;
        if raw.registrations.len() > MAX_REGISTRATIONS {
            return Err(format!(
                "there are more than {MAX_REGISTRATIONS} registrations"
            ));
        }
        for known in raw.registrations {
            let key = u64::from_str_radix(&known.key, 16).ok();
            let key = key.filter(|key| *key != 0);
            let key = key.ok_or_else(|| format!("the key {:?} is none", known.key))?;
            let who = Registrant {
                initiator: known.hba,
                target: known.target,
            };
            let mut others = registrations.iter();
            if others.any(|other: &Registration| other.who.overlaps(who)) {
                return Err(format!("{} is registered twice by one target", known.hba));
            }
            if known.holder && holder.replace(who).is_some() {
                return Err("there are two holders".into());
            }
            registrations.push(Registration { who, key });
        }
        let reservation = match (raw.kind, holder) {
            (None, None) => None,
            (Some(kind), holder) => {
                let kind = Kind::from_field(kind)
                    .map_err(|_| format!("there is no reservation of type {kind}"))?;
                // One that is for all registrants may be left by whoever made it.
                let first = registrations.first().filter(|_| kind.is_for_all());
                let holder = holder.or(first.map(|known| known.who));
                let holder = holder.ok_or("the reservation has no holder")?;
                Some(Reservation { kind, holder })
            }
            (None, Some(_)) => return Err("there is a holder of no reservation".into()),
        };
        Ok(Self {
            registrations,
            reservation,
        })
    }
}
