//! BAR0 as a state machine: what the appliance reads and writes there, without any I/O.

use serde::{Deserialize, Serialize};
use spec::device::{self, MAX_RINGS, error, status};
use spec::mailbox::Request;
use spec::version::Version;

use super::event::{DeviceEvent, Refusal};
use super::profile::Profile;
use super::record;
use super::session_memory::BadReply;

/// A request that cannot be posted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// No appliance is attached; its BackendDown event was taken or is waiting.
    #[error("no appliance is attached")]
    NotAttached,
    /// The previous request has no reply yet.
    #[error("request {0} is still unanswered")]
    Busy(u32),
}

/// The registers, and what about them the supervisor was not told yet.
#[derive(Debug)]
pub(super) struct Registers {
    version: Version,
    rings: u16,
    hba: [u8; 16],
    tenant: [u8; 16],
    state: State,
}

/// What of the registers changes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    driver_version: u32,
    frontend_up: bool,
    memory_valid: bool,
    connection: u32,
    memory_generation: u32,
    vectors: usize,
    refused: Option<Refusal>,
    attached: Option<Attachment>,
    attachments: u64,
    /// The number given to the last request; numbers go on over all attachments, so a late reply
    /// to an earlier one is never taken for an answer.
    last_sequence: u32,
    /// The value of MAILBOX_REQUEST.
    mailbox_request: u32,
    #[serde(with = "record::outstanding")]
    outstanding: Option<(u32, Request)>,
    /// Rings reported as retired since the tenant's last reset, one bit each.
    retired: u128,
    untold: Untold,
}

/// An appliance between BACKEND_UP and its end.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Attachment {
    number: u64,
    #[serde(with = "record::version")]
    version: Version,
}

/// What happened since the supervisor last asked. One bit or value per fact, so it cannot grow.
#[derive(Debug, Serialize, Deserialize)]
struct Untold {
    reset: bool,
    refused: Option<Refusal>,
    reply: Option<u32>,
    retired: u128,
    #[serde(with = "record::reasons")]
    reasons: [u16; MAX_RINGS],
    doorbells: u128,
    /// The attachment that the supervisor knows of.
    told_attachment: Option<u64>,
    /// The number of vectors that the supervisor knows of.
    told_vectors: usize,
}

const _: () = assert!(MAX_RINGS <= 128, "one bit of a u128 for each ring");

impl Registers {
    pub(super) fn new(profile: &Profile) -> Self {
        Self {
            version: profile.version,
            rings: profile.rings,
            hba: *profile.hba.as_bytes(),
            tenant: profile.tenant.map_or([0; 16], |tenant| *tenant.as_bytes()),
            state: State {
                driver_version: 0,
                frontend_up: false,
                memory_valid: false,
                connection: 0,
                memory_generation: 0,
                vectors: 0,
                refused: None,
                attached: None,
                attachments: 0,
                last_sequence: 0,
                mailbox_request: 0,
                outstanding: None,
                retired: 0,
                untold: Untold {
                    reset: false,
                    refused: None,
                    reply: None,
                    retired: 0,
                    reasons: [0; MAX_RINGS],
                    doorbells: 0,
                    told_attachment: None,
                    told_vectors: 0,
                },
            },
        }
    }

    /// What a next supervisor is to go on from.
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Vrings that the tenant may use.
    pub(super) fn rings(&self) -> u16 {
        self.rings
    }

    /// Goes on from `state`.
    pub(super) fn restore(&mut self, state: State) {
        self.state = state;
    }

    /// The register at `offset`; 0 where there is none or it cannot be read.
    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            device::MAGIC => device::MAGIC_VALUE,
            device::VERSION => self.version.to_register(),
            device::DRIVER_VERSION => self.state.driver_version,
            device::STATUS => self.status(),
            device::ERROR => match self.state.refused {
                Some(reason) => reason.code(),
                None if self.state.retired != 0 => error::RING,
                None => error::NONE,
            },
            device::DEVICE_TYPE => device::DEVICE_TYPE_SCSI,
            device::RINGS => u32::from(self.rings),
            device::VECTORS => u32::try_from(self.state.vectors).unwrap_or(u32::MAX),
            device::CONNECTION => self.state.connection,
            device::MEMORY_GENERATION => self.state.memory_generation,
            device::MAILBOX_REQUEST => self.state.mailbox_request,
            _ => uuid_word(&self.hba, device::HBA_UUID, offset)
                .or_else(|| uuid_word(&self.tenant, device::TENANT_UUID, offset))
                .unwrap_or(0),
        }
    }

    /// The appliance writes `value` to the register at `offset`; no effect where there is none
    /// or it cannot be written.
    pub(super) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            device::DRIVER_VERSION => self.state.driver_version = value,
            device::STATUS if value & status::BACKEND_UP != 0 => self.attach(),
            device::STATUS => self.detach(),
            device::MAILBOX_REPLY if self.state.outstanding.is_some() => {
                self.state.untold.reply = Some(value);
            }
            device::RING_ERROR => {
                let [a, b, c, d] = value.to_le_bytes();
                self.retire(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            }
            device::RESET if value == 1 => self.reset(),
            device::DOORBELLS.. => self.doorbell(offset - device::DOORBELLS),
            _ => {}
        }
    }

    /// Everything that the appliance did is undone.
    pub(super) fn reset(&mut self) {
        self.detach();
        self.state.driver_version = 0;
        self.state.refused = None;
        self.state.untold.reset = true;
    }

    /// The appliance is gone.
    pub(super) fn detach(&mut self) {
        self.state.attached = None;
        self.state.outstanding = None;
        self.state.mailbox_request = 0;
        self.state.untold.reply = None;
    }

    /// The attached appliance is turned away.
    pub(super) fn refuse(&mut self, reason: Refusal) {
        self.detach();
        self.state.refused = Some(reason);
    }

    pub(super) fn set_vectors(&mut self, vectors: usize) {
        self.state.vectors = vectors;
        if vectors == 0 {
            // Nothing could reach the appliance any more; its driver is closed or restarts.
            self.detach();
        }
    }

    pub(super) fn set_frontend_up(&mut self, up: bool) {
        if up && !self.state.frontend_up {
            self.state.connection = self.state.connection.wrapping_add(1);
        }
        self.state.frontend_up = up;
    }

    /// A new memory table is about to be published; its generation, never 0.
    pub(super) fn next_memory_generation(&mut self, valid: bool) -> u32 {
        self.state.memory_generation = after(self.state.memory_generation);
        self.state.memory_valid = valid;
        self.state.memory_generation
    }

    pub(super) fn clear_ring_errors(&mut self) {
        self.state.retired = 0;
        self.state.untold.retired = 0;
    }

    pub(super) fn backend_up(&self) -> bool {
        self.state.attached.is_some()
    }

    pub(super) fn post(&mut self, request: Request) -> Result<u32, PostError> {
        if self.state.attached.is_none() {
            return Err(PostError::NotAttached);
        }
        if let Some((sequence, _)) = self.state.outstanding {
            return Err(PostError::Busy(sequence));
        }
        self.state.last_sequence = after(self.state.last_sequence);
        self.state.mailbox_request = self.state.last_sequence;
        self.state.outstanding = Some((self.state.last_sequence, request));
        Ok(self.state.last_sequence)
    }

    /// The request that a reply numbered `sequence` answers; it is outstanding no longer.
    pub(super) fn answered(&mut self, sequence: u32) -> Result<Request, BadReply> {
        let (expected, request) = self
            .state
            .outstanding
            .take()
            .ok_or(BadReply::NothingAsked)?;
        if expected == sequence {
            Ok(request)
        } else {
            Err(BadReply::Sequence {
                expected,
                found: sequence,
            })
        }
    }

    /// The next thing to tell the supervisor.
    pub(super) fn take_event(&mut self) -> Option<DeviceEvent> {
        let untold = &mut self.state.untold;
        if std::mem::take(&mut untold.reset) {
            return Some(DeviceEvent::Reset);
        }
        let current = self.state.attached.map(|attachment| attachment.number);
        if untold.told_attachment.is_some() && untold.told_attachment != current {
            untold.told_attachment = None;
            return Some(DeviceEvent::BackendDown);
        }
        if untold.told_vectors != self.state.vectors {
            untold.told_vectors = self.state.vectors;
            return Some(DeviceEvent::VectorsChanged(self.state.vectors));
        }
        if let Some(reason) = untold.refused.take() {
            return Some(DeviceEvent::Refused(reason));
        }
        if let (None, Some(attachment)) = (untold.told_attachment, self.state.attached) {
            untold.told_attachment = Some(attachment.number);
            return Some(DeviceEvent::BackendUp {
                version: attachment.version,
            });
        }
        if let Some(sequence) = untold.reply.take() {
            return Some(DeviceEvent::Reply { sequence });
        }
        if let Some(ring) = take_lowest(&mut untold.retired) {
            let reason = untold.reasons.get(usize::from(ring)).copied()?;
            return Some(DeviceEvent::RingError { ring, reason });
        }
        take_lowest(&mut untold.doorbells).map(|ring| DeviceEvent::Doorbell { ring })
    }

    fn status(&self) -> u32 {
        [
            (self.state.attached.is_some(), status::BACKEND_UP),
            (self.state.frontend_up, status::FRONTEND_UP),
            (self.state.memory_valid, status::MEM_VALID),
            (self.state.refused.is_some(), status::REFUSED),
            (self.state.retired != 0, status::NEEDS_RESET),
        ]
        .into_iter()
        .filter_map(|(set, bit)| set.then_some(bit))
        .fold(0, |bits, bit| bits | bit)
    }

    fn attach(&mut self) {
        if self.state.attached.is_some() {
            return;
        }
        let appliance = Version::from_register(self.state.driver_version);
        self.state.refused = if !self.version.works_with(appliance) {
            Some(Refusal::Version {
                appliance,
                shim: self.version,
            })
        } else if self.state.vectors == 0 {
            Some(Refusal::NoVectors)
        } else {
            None
        };
        self.state.untold.refused = self.state.refused.or(self.state.untold.refused);
        if self.state.refused.is_none() {
            self.state.attachments += 1;
            self.state.attached = Some(Attachment {
                number: self.state.attachments,
                version: appliance,
            });
        }
    }

    fn retire(&mut self, ring: u16, reason: u16) {
        let bit = self.ring_bit(ring);
        if self.state.attached.is_none() || bit == 0 || self.state.retired & bit != 0 {
            return;
        }
        self.state.retired |= bit;
        self.state.untold.retired |= bit;
        if let Some(slot) = self.state.untold.reasons.get_mut(usize::from(ring)) {
            *slot = reason;
        }
    }

    fn doorbell(&mut self, offset: u64) {
        if self.state.attached.is_some() && offset.is_multiple_of(4) {
            let ring = u16::try_from(offset / 4).unwrap_or(u16::MAX);
            self.state.untold.doorbells |= self.ring_bit(ring);
        }
    }

    /// The bit of `ring`, or 0 if there is no such ring.
    fn ring_bit(&self, ring: u16) -> u128 {
        if ring < self.rings { 1 << ring } else { 0 }
    }
}

/// The number after `number` in a sequence that skips 0.
fn after(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}

/// The word of a UUID whose first register is at `start`, if `offset` is one of its registers.
fn uuid_word(uuid: &[u8; 16], start: u64, offset: u64) -> Option<u32> {
    let at = usize::try_from(offset.checked_sub(start)?).ok()?;
    let (words, _) = uuid.as_chunks::<4>();
    let word = words.get(at / 4)?;
    at.is_multiple_of(4).then(|| u32::from_le_bytes(*word))
}

/// Clears and returns the number of the lowest bit set.
fn take_lowest(bits: &mut u128) -> Option<u16> {
    let lowest = u16::try_from(bits.trailing_zeros()).ok()?;
    if lowest >= 128 {
        return None;
    }
    *bits &= *bits - 1;
    Some(lowest)
}

#[cfg(test)]
mod tests {
    use spec::version::CURRENT;
    use uuid::uuid;

    use super::*;

    const HBA: uuid::Uuid = uuid!("2f0c4fd2-4f6c-4b3c-9d3b-000102030405");

    fn registers() -> Registers {
        Registers::new(&Profile {
            rings: 6,
            ..Profile::new("hba0", HBA)
        })
    }

    fn attached() -> Registers {
        let mut registers = registers();
        registers.set_vectors(4);
        registers.write(device::DRIVER_VERSION, CURRENT.to_register());
        registers.write(device::STATUS, status::BACKEND_UP);
        while registers.take_event().is_some() {}
        assert!(registers.backend_up());
        registers
    }

    fn events(registers: &mut Registers) -> Vec<DeviceEvent> {
        std::iter::from_fn(|| registers.take_event()).collect()
    }

    // covers: VPCI-REG-1, VPCI-ID-3
    #[test]
    fn identity_can_be_read_before_anything_else() {
        let registers = registers();
        assert_eq!(registers.read(0x00).to_le_bytes(), *b"VPCI");
        assert_eq!(registers.read(0x04), 0x0001_0001);
        assert_eq!(registers.read(0x14), 8);
        assert_eq!(registers.read(0x18), 6);
        assert_eq!(registers.read(0x20).to_le_bytes(), [0x2f, 0x0c, 0x4f, 0xd2]);
        assert_eq!(registers.read(0x2c).to_le_bytes(), [2, 3, 4, 5]);
        assert_eq!(registers.read(0x30), 0);
        assert_eq!(registers.read(0x21), 0);
        assert_eq!(registers.read(0xfffc), 0);
    }

    #[test]
    fn an_appliance_attaches_with_a_version_and_vectors() {
        let mut registers = registers();
        registers.set_vectors(4);
        registers.write(0x08, 0x0001_0001);
        registers.write(0x0c, 1);
        assert_eq!(registers.read(0x0c), 1);
        assert_eq!(
            events(&mut registers),
            [
                DeviceEvent::VectorsChanged(4),
                DeviceEvent::BackendUp { version: CURRENT }
            ]
        );
    }

    // covers: VPCI-VER-4, VPCI-STS-4
    #[test]
    fn an_appliance_two_minor_versions_away_is_refused() {
        let mut registers = Registers::new(&Profile {
            version: Version { major: 1, minor: 3 },
            ..Profile::new("hba0", HBA)
        });
        registers.set_vectors(1);
        registers.write(0x08, 0x0001_0001);
        registers.write(0x0c, 1);
        assert_eq!(registers.read(0x0c), status::REFUSED);
        assert_eq!(registers.read(0x10), error::VERSION);
        let refusal = Refusal::Version {
            appliance: CURRENT,
            shim: Version { major: 1, minor: 3 },
        };
        assert_eq!(
            events(&mut registers),
            [
                DeviceEvent::VectorsChanged(1),
                DeviceEvent::Refused(refusal)
            ]
        );
        registers.write(0x0c, 0);
        assert_eq!(registers.read(0x0c), status::REFUSED);
        // A later attempt with a version that works takes the refusal away.
        registers.write(0x08, 0x0001_0002);
        registers.write(0x0c, 1);
        assert_eq!(registers.read(0x0c), status::BACKEND_UP);
        assert_eq!(registers.read(0x10), error::NONE);
    }

    // covers: VPCI-VER-3
    #[test]
    fn one_minor_version_apart_works_either_way() {
        for minor in [0, 1, 2] {
            let mut registers = Registers::new(&Profile {
                version: Version { major: 1, minor: 1 },
                ..Profile::new("hba0", HBA)
            });
            registers.set_vectors(1);
            registers.write(0x08, 0x0001_0000 | minor);
            registers.write(0x0c, 1);
            assert!(registers.backend_up(), "minor version {minor}");
        }
    }

    // covers: VPCI-STS-1
    #[test]
    fn a_write_to_status_changes_backend_up_only() {
        let mut registers = registers();
        registers.set_vectors(1);
        registers.write(0x08, 0x0001_0000);
        registers.write(0x0c, u32::MAX);
        assert_eq!(registers.read(0x0c), status::BACKEND_UP);

        registers.set_frontend_up(true);
        registers.next_memory_generation(true);
        registers.write(0x50, 0x0001_0002);
        let live = status::FRONTEND_UP | status::MEM_VALID | status::NEEDS_RESET;
        registers.write(0x0c, status::BACKEND_UP);
        assert_eq!(registers.read(0x0c), status::BACKEND_UP | live);
        registers.write(0x0c, !status::BACKEND_UP);
        assert_eq!(registers.read(0x0c), live);
        registers.write(0x0c, 0);
        assert_eq!(registers.read(0x0c), live);
    }

    // covers: VPCI-STS-2
    #[test]
    fn an_appliance_without_interrupts_is_refused() {
        let mut registers = registers();
        registers.write(0x08, 0x0001_0000);
        registers.write(0x0c, 1);
        assert_eq!(registers.read(0x0c), status::REFUSED);
        assert_eq!(registers.read(0x10), error::NO_VECTORS);
        assert_eq!(
            events(&mut registers),
            [DeviceEvent::Refused(Refusal::NoVectors)]
        );
    }

    // covers: VPCI-RST-3
    #[test]
    fn an_appliance_is_gone_after_status_0_reset_or_without_vectors() {
        let ends: [fn(&mut Registers); 3] = [
            |registers| registers.write(0x0c, 0),
            |registers| registers.write(0x54, 1),
            |registers| registers.set_vectors(0),
        ];
        for end in ends {
            let mut registers = attached();
            registers.post(Request::Reset).unwrap();
            end(&mut registers);
            assert_eq!(registers.read(0x0c), 0);
            assert_eq!(registers.read(0x48), 0);
            assert!(events(&mut registers).contains(&DeviceEvent::BackendDown));
            assert_eq!(registers.post(Request::Reset), Err(PostError::NotAttached));
        }
    }

    #[test]
    fn an_appliance_that_comes_back_unnoticed_is_down_then_up() {
        let mut registers = attached();
        registers.write(0x0c, 0);
        registers.write(0x0c, 1);
        registers.write(0x0c, 0);
        registers.write(0x0c, 1);
        assert_eq!(
            events(&mut registers),
            [
                DeviceEvent::BackendDown,
                DeviceEvent::BackendUp { version: CURRENT }
            ]
        );
    }

    // covers: VPCI-MBX-2, VPCI-MBX-9
    #[test]
    fn a_request_is_answered_by_its_own_number_once() {
        let mut registers = attached();
        let sequence = registers.post(Request::Reset).unwrap();
        assert_eq!(registers.read(0x48), sequence);
        assert_eq!(
            registers.post(Request::Disconnect),
            Err(PostError::Busy(sequence))
        );
        registers.write(0x4c, sequence);
        assert_eq!(events(&mut registers), [DeviceEvent::Reply { sequence }]);
        assert_eq!(registers.answered(sequence), Ok(Request::Reset));
        assert_eq!(registers.answered(sequence), Err(BadReply::NothingAsked));
        // A second reply to the same request is not even told.
        registers.write(0x4c, sequence);
        assert_eq!(events(&mut registers), []);
    }

    #[test]
    fn request_numbers_go_on_after_a_reset() {
        let mut registers = attached();
        let first = registers.post(Request::Reset).unwrap();
        registers.write(0x54, 1);
        registers.write(0x08, 0x0001_0000);
        registers.write(0x0c, 1);
        let second = registers.post(Request::Reset).unwrap();
        assert_ne!(first, second);
        assert_eq!(
            registers.answered(first),
            Err(BadReply::Sequence {
                expected: second,
                found: first
            })
        );
    }

    // covers: VPCI-MBX-3
    #[test]
    fn request_number_0_is_skipped() {
        let mut registers = attached();
        registers.state.last_sequence = u32::MAX;
        assert_eq!(registers.post(Request::Reset), Ok(1));
    }

    // covers: VPCI-STS-7, VPCI-RNG-5
    #[test]
    fn a_ring_is_reported_as_retired_once_until_the_tenant_resets() {
        let mut registers = attached();
        registers.write(0x50, 0x0005_0002);
        registers.write(0x50, 0x0001_0002);
        registers.write(0x50, 0x0001_0006);
        assert_eq!(
            events(&mut registers),
            [DeviceEvent::RingError { ring: 2, reason: 5 }]
        );
        registers.write(0x50, 0x0001_0002);
        assert_eq!(events(&mut registers), []);
        assert_eq!(
            registers.read(0x0c),
            status::BACKEND_UP | status::NEEDS_RESET
        );
        assert_eq!(registers.read(0x10), error::RING);
        registers.clear_ring_errors();
        assert_eq!(registers.read(0x0c), status::BACKEND_UP);
        assert_eq!(registers.read(0x10), error::NONE);
    }

    // covers: VPCI-BEL-5
    #[test]
    fn doorbells_of_existing_rings_are_told_once_each() {
        let mut registers = attached();
        for offset in [
            0x1000 + 4 * 5,
            0x1000,
            0x1000,
            0x1000 + 4 * 6,
            0x1002,
            0xfffc,
        ] {
            registers.write(offset, 1);
        }
        assert_eq!(
            events(&mut registers),
            [
                DeviceEvent::Doorbell { ring: 0 },
                DeviceEvent::Doorbell { ring: 5 }
            ]
        );
    }

    #[test]
    fn nobody_attached_rings_no_doorbell_and_retires_no_ring() {
        let mut registers = registers();
        registers.write(0x1000, 1);
        registers.write(0x50, 0x0001_0002);
        registers.write(0x4c, 1);
        assert_eq!(events(&mut registers), []);
        assert_eq!(registers.read(0x0c), 0);
    }

    // covers: VPCI-RST-1
    #[test]
    fn a_reset_leaves_the_tenants_side_alone() {
        let mut registers = attached();
        registers.set_frontend_up(true);
        let generation = registers.next_memory_generation(true);
        registers.write(0x50, 0x0001_0002);
        registers.write(0x54, 1);
        assert_eq!(
            registers.read(0x0c),
            status::FRONTEND_UP | status::MEM_VALID | status::NEEDS_RESET
        );
        assert_eq!(registers.read(0x40), 1);
        assert_eq!(registers.read(0x44), generation);
        assert_eq!(registers.read(0x08), 0);
    }

    // covers: VPCI-REG-2
    #[test]
    fn read_only_registers_ignore_writes() {
        let mut registers = attached();
        for offset in [0x00, 0x04, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x40, 0x44, 0x48] {
            let before = registers.read(offset);
            registers.write(offset, 0xdead_beef);
            assert_eq!(registers.read(offset), before, "offset {offset:#x}");
        }
    }
}
