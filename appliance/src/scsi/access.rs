//! Asymmetric logical unit access: how well each port reaches a unit (SPC-4, asymmetric logical
//! unit access).

use serde::Deserialize;

use super::command::Command;
use super::fault::Fault;
use super::port::Port;
use super::upkeep::Upkeep;

/// Asymmetric access state of a target port group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Access {
    /// The best way to the unit.
    #[default]
    ActiveOptimized = 0,
    /// One that works as well, but should not be used without need.
    ActiveNonOptimized = 1,
    /// The unit can be asked about itself, but not for its blocks.
    Standby = 2,
    /// Not even that.
    Unavailable = 3,
}

impl Access {
    /// The state with this ASYMMETRIC ACCESS STATE, if a port group can be put into it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::ActiveOptimized),
            1 => Some(Self::ActiveNonOptimized),
            2 => Some(Self::Standby),
            3 => Some(Self::Unavailable),
            _ => None,
        }
    }

    /// Checks that a command can be carried out in this state.
    ///
    /// # Errors
    /// [`Fault::NotAccessible`].
    pub(super) const fn check(self, command: &Command) -> Result<(), Fault> {
        let is_allowed = match self {
            Self::ActiveOptimized | Self::ActiveNonOptimized => true,
            Self::Standby => is_for_standby(command) || is_for_unavailable(command),
            Self::Unavailable => is_for_unavailable(command),
        };
        if is_allowed {
            Ok(())
        } else {
            Err(Fault::NotAccessible(self))
        }
    }
}

/// What every state allows (SPC-4, unavailable state).
const fn is_for_unavailable(command: &Command) -> bool {
    matches!(
        command,
        Command::Inquiry { .. }
            | Command::ReportLuns { .. }
            | Command::ReportPortGroups { .. }
            | Command::SetPortGroups { .. }
            | Command::RequestSense { .. }
    )
}

/// What the standby state allows beyond that (SPC-4, standby state). The standard leaves it open
/// whether the capacity is told: it is, or an initiator that starts on this port would take the
/// unit for an empty one after it is active. The same goes for what the unit can do.
const fn is_for_standby(command: &Command) -> bool {
    matches!(
        command,
        Command::ModeSense(_)
            | Command::ModeSelect { .. }
            | Command::ReserveIn { .. }
            | Command::ReserveOut { .. }
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::ReportOpcodes { .. }
            | Command::ReportTaskManagement { .. }
            | Command::Upkeep(
                Upkeep::LogSense(_)
                    | Upkeep::LogSelect { .. }
                    | Upkeep::SendDiagnostic { .. }
                    | Upkeep::ReceiveDiagnostic { .. }
                    | Upkeep::WriteEcho { .. }
                    | Upkeep::ReadEcho { .. }
                    | Upkeep::EchoDescriptor { .. }
            )
    )
}

/// A port by which a unit is reached, and how well, by the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The port.
    pub port: Port,
    /// How well.
    pub access: Access,
}

/// Why a group has the state that it has: STATUS CODE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Nothing = 0,
    SetTargetPortGroups = 1,
    Implicit = 2,
}

/// A target port group of a unit: the one port by which one HBA reaches it.
#[derive(Debug)]
struct Group {
    configured: Path,
    state: Access,
    cause: Cause,
}

/// The target port groups of a unit.
#[derive(Debug, Default)]
pub struct Groups(Vec<Group>);

/// The states that can be set: T_SUP, O_SUP and LBD_SUP are 0; U_SUP, S_SUP, AN_SUP, AO_SUP.
const SUPPORTED: u8 = 0x0f;
/// Bytes before the descriptors of SET TARGET PORT GROUPS.
const SET_HEADER: usize = 4;

impl Groups {
    /// The ports by which the unit is reached, in the order of their groups.
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        self.0.iter().map(|group| group.configured.port)
    }

    /// The state of a port; one that is not known is as good as any.
    pub fn state(&self, port: Port) -> Access {
        let mut groups = self.0.iter();
        let group = groups.find(|group| group.configured.port == port);
        group.map_or(Access::default(), |group| group.state)
    }

    /// Takes up what the configuration says. A group keeps the state that an initiator gave it
    /// until the configuration says something new about it. Returns whether the state of a group
    /// changed that there was before.
    pub fn configure(&mut self, paths: &[Path]) -> bool {
        let old = std::mem::take(&mut self.0);
        let mut has_changed = false;
        for &configured in paths {
            let mut before = old.iter();
            let before =
                before.find(|group| group.configured.port.group() == configured.port.group());
            let (state, cause) = match before {
                None => (configured.access, Cause::Nothing),
                Some(group) if group.configured.access == configured.access => {
                    (group.state, group.cause)
                }
                Some(group) => {
                    has_changed |= group.state != configured.access;
                    (configured.access, Cause::Implicit)
                }
            };
            self.0.push(Group {
                configured,
                state,
                cause,
            });
        }
        self.0.sort_by_key(|group| group.configured.port.group());
        has_changed
    }

    /// REPORT TARGET PORT GROUPS parameter data, with the longer header or the shorter one.
    pub fn report(&self, extended: bool) -> Vec<u8> {
        let mut rest = Vec::new();
        if extended {
            // FORMAT TYPE 001b; IMPLICIT TRANSITION TIME 0: a transition takes no time.
            rest.extend([0x10, 0, 0, 0]);
        }
        for group in &self.0 {
            let port = group.configured.port;
            rest.extend([group.state as u8, SUPPORTED]);
            rest.extend(port.group().to_be_bytes());
            rest.extend([0, group.cause as u8, 0, 1]); // TARGET PORT COUNT 1
            rest.extend([0, 0]);
            rest.extend(port.relative().to_be_bytes());
        }
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let mut data = len.to_be_bytes().to_vec();
        data.extend(rest);
        data
    }

    /// Does what a SET TARGET PORT GROUPS parameter list says, all of it or nothing. Returns
    /// whether the state of a group changed.
    ///
    /// # Errors
    /// [`Fault::ParameterListLength`], or [`Fault::InvalidParameter`] for a group that there is
    /// not, one that is named twice, or a state that cannot be set.
    pub fn set(&mut self, list: &[u8]) -> Result<bool, Fault> {
        if list.is_empty() {
            // SPC-4: no data is no error.
            return Ok(false);
        }
        let descriptors = list.get(SET_HEADER..).ok_or(Fault::ParameterListLength)?;
        if descriptors.len() % 4 != 0 {
            return Err(Fault::ParameterListLength);
        }
        let mut wanted: Vec<Option<Access>> = vec![None; self.0.len()];
        for (index, descriptor) in descriptors.chunks_exact(4).enumerate() {
            let at = SET_HEADER.saturating_add(index.saturating_mul(4));
            let byte = u16::try_from(at).unwrap_or(u16::MAX);
            // Offline (Eh) is about a port, and no port of ours can be put into it.
            let state = Access::from_number(descriptor[0] & 0x0f)
                .ok_or(Fault::InvalidParameter { byte, bit: 3 })?;
            let number = u16::from_be_bytes([descriptor[2], descriptor[3]]);
            let mut groups = self.0.iter();
            let group = groups.position(|group| group.configured.port.group() == number);
            match group.and_then(|group| wanted.get_mut(group)) {
                Some(slot @ None) => *slot = Some(state),
                Some(Some(_)) | None => {
                    let byte = byte.saturating_add(2);
                    return Err(Fault::InvalidParameter { byte, bit: 7 });
                }
            }
        }
        let mut has_changed = false;
        for (group, state) in self.0.iter_mut().zip(wanted) {
            if let Some(state) = state {
                has_changed |= group.state != state;
                group.state = state;
                group.cause = Cause::SetTargetPortGroups;
            }
        }
        Ok(has_changed)
    }
}
