//! What initiators do to a unit as a whole.

use std::path::PathBuf;
use std::sync::PoisonError;

use super::{LogicalUnit, Outcome};
use crate::disk::Op;
use crate::scsi::Buffers;
use crate::scsi::attention::Attention;
use crate::scsi::clock;
use crate::scsi::command::Command;
use crate::scsi::diagnostic;
use crate::scsi::echo::{CAPACITY, Echo};
use crate::scsi::erase::{
    FormatUnit, Job, MAX_FORMAT_LIST, MAX_REASSIGN_LIST, Sanitize, blocks, format, sanitize,
};
use crate::scsi::fault::{During, Fault, Work};
use crate::scsi::log::{self, Facts};
use crate::scsi::nexus::Nexus;
use crate::scsi::pending::Then;
use crate::scsi::state_file::StateError;
use crate::scsi::upkeep::{LogPage, Upkeep};

impl LogicalUnit {
    /// With files in which identifying information, and what FORMAT UNIT and SANITIZE are at,
    /// outlive the appliance. What an appliance before this one had begun to erase is erased anew.
    ///
    /// # Errors
    /// [`StateError`] for a file that is damaged: which blocks were to be erased is not known. Of
    /// damaged identifying information only the log tells.
    pub fn with_upkeep(
        mut self,
        information: impl Into<PathBuf>,
        erasing: impl Into<PathBuf>,
    ) -> Result<Self, StateError> {
        let name = self.identity.name();
        if let Err(error) = self.information.set_file(information.into(), name) {
            tracing::error!(lun = name, "{error}");
        }
        self.erasing.set_file(erasing.into(), &self.disk)?;
        self.supports.state = true;
        Ok(self)
    }

    /// The fault with which commands at its blocks end because they are being erased, or could not
    /// be.
    pub(in crate::scsi) fn erasing(&self) -> Option<Fault> {
        self.erasing.condition()
    }

    /// Whether a command can be carried out though blocks are being erased, or none is.
    pub(in crate::scsi) fn check_not_erased(&self, command: &Command) -> Result<(), Fault> {
        self.erasing.check(command)
    }

    pub(super) fn upkeep(
        &self,
        nexus: &Nexus,
        command: Upkeep,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        let data = |mut data: Vec<u8>, allocation: usize| {
            data.truncate(allocation);
            Ok(Outcome::Data(data))
        };
        match command {
            Upkeep::LogSense(page) => data(self.log_page(&page)?, page.allocation),
            Upkeep::LogSelect {
                reset,
                page,
                subpage,
                len,
            } => {
                let provisioning = self.thresholds;
                if log::select(reset, (page, subpage), len, provisioning)? {
                    self.statistics.reset();
                    self.tell_others(nexus, Attention::LogChanged);
                }
                Ok(Outcome::Data(Vec::new()))
            }
            Upkeep::ReportIdentifying { kind, allocation } => {
                data(self.information.report(kind)?, allocation)
            }
            Upkeep::SetIdentifying { kind, len } => {
                self.information.check(kind, len)?;
                let Some(content) = list(len, buffers) else {
                    return Ok(Outcome::Overrun);
                };
                self.information.set(kind, content)?;
                self.tell_others(nexus, Attention::IdentifierChanged);
                Ok(Outcome::Done { moved: len })
            }
            Upkeep::ReportTimestamp { allocation } => data(self.clock.report(), allocation),
            Upkeep::SetTimestamp { len } => self.set_timestamp(nexus, len, buffers),
            Upkeep::SendDiagnostic {
                self_test,
                page_format,
                len,
            } => self.diagnose(self_test, page_format, len, buffers),
            Upkeep::ReceiveDiagnostic { page, allocation } => {
                data(diagnostic::page(page)?, allocation)
            }
            Upkeep::WriteEcho { len } => {
                if len > CAPACITY.into() {
                    return Err(Fault::InvalidField { byte: 6, bit: 7 });
                }
                let Some(content) = list(len, buffers) else {
                    return Ok(Outcome::Overrun);
                };
                nexus.echo().write(content);
                Ok(Outcome::Done { moved: len })
            }
            Upkeep::ReadEcho { allocation } => data(nexus.echo().read()?, allocation),
            Upkeep::EchoDescriptor { allocation } => data(Echo::descriptor(), allocation),
            Upkeep::Reassign {
                long_lba,
                long_list,
            } => self.reassign(long_lba, long_list, buffers),
            Upkeep::FormatUnit(command) => self.format(command, buffers),
            Upkeep::Sanitize(command) => self.sanitize(command, buffers),
            Upkeep::ExitFailureMode { len } => {
                if len > 0 {
                    return Err(Fault::InvalidField { byte: 7, bit: 7 });
                }
                self.erasing.exit_failure_mode()?;
                Ok(Outcome::Data(Vec::new()))
            }
        }
    }

    fn log_page(&self, page: &LogPage) -> Result<Vec<u8>, Fault> {
        let usage = *self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = usage.filter(|_| self.thresholds);
        let facts = Facts {
            provisioning: usage.map(|usage| (usage, self.disk.geometry())),
            totals: self.statistics.totals(),
            up: self.clock.up(),
        };
        log::sense(page, &facts)
    }

    fn set_timestamp(
        &self,
        nexus: &Nexus,
        len: usize,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        if len == 0 {
            return Ok(Outcome::Data(Vec::new()));
        }
        if len != clock::LIST_LEN {
            return Err(Fault::ParameterListLength);
        }
        let Some(list) = list(len, buffers) else {
            return Ok(Outcome::Overrun);
        };
        self.clock.set(&list)?;
        self.tell_others(nexus, Attention::TimestampChanged);
        Ok(Outcome::Done { moved: len })
    }

    /// SEND DIAGNOSTIC. The default self-test reads the first block.
    fn diagnose(
        &self,
        self_test: bool,
        page_format: bool,
        len: usize,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        if self_test {
            if len > 0 {
                return Err(Fault::InvalidField { byte: 3, bit: 7 });
            }
            self.check_started()?;
            let block_size = self.disk.geometry().block_size;
            return Ok(Outcome::Disk {
                op: Op::Check {
                    offset: 0,
                    len: block_size.into(),
                },
                work: Work {
                    during: During::Read,
                    lba: 0,
                    blocks: 1,
                    block_size,
                },
                then: Then::Moved(0),
            });
        }
        if len == 0 {
            return Ok(Outcome::Data(Vec::new()));
        }
        if !page_format {
            // A list of a vendor's own; we have none.
            return Err(Fault::InvalidField { byte: 1, bit: 4 });
        }
        // The page for which a longer list would have room is not ours.
        let Some(head) = list(len.min(5), buffers).filter(|_| buffers.data_out.len() >= len) else {
            return Ok(Outcome::Overrun);
        };
        diagnostic::check(&head)?;
        Ok(Outcome::Done { moved: len })
    }

    /// Whether blocks may be changed now.
    fn check_writable(&self) -> Result<(), Fault> {
        if self.disk.geometry().read_only {
            return Err(Fault::WriteProtected);
        }
        self.check_started()?;
        if self.modes.current().write_protect {
            return Err(Fault::SoftwareWriteProtected);
        }
        Ok(())
    }

    fn format(&self, command: FormatUnit, buffers: Buffers<'_>) -> Result<Outcome, Fault> {
        self.check_writable()?;
        let most = if command.has_list { MAX_FORMAT_LIST } else { 0 };
        let list = what_there_is(most, buffers);
        let block_size = self.disk.geometry().block_size;
        let thin = self.supports.thin;
        // FMTPINFO was taken from the CDB, as PROTECT fields are.
        let tags = self.protection().map(|kind| (kind, buffers.tags.field));
        match format(command, tags, &list, block_size, thin)? {
            None => Ok(Outcome::Overrun),
            Some((job, immediate, moved)) => self.erase(job, immediate, moved),
        }
    }

    fn sanitize(&self, command: Sanitize, buffers: Buffers<'_>) -> Result<Outcome, Fault> {
        self.check_writable()?;
        command.check_len(self.disk.geometry().block_size)?;
        let Some(list) = list(command.len, buffers) else {
            return Ok(Outcome::Overrun);
        };
        self.erase(sanitize(command, &list)?, command.immediate, command.len)
    }

    fn erase(&self, job: Job, immediate: bool, moved: usize) -> Result<Outcome, Fault> {
        let ticket = self.erasing.claim(job, immediate)?;
        Ok(Outcome::Erase { ticket, moved })
    }

    fn reassign(
        &self,
        long_lba: bool,
        long_list: bool,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        self.check_writable()?;
        let list = what_there_is(MAX_REASSIGN_LIST, buffers);
        let geometry = self.disk.geometry();
        let Some((blocks, moved)) = blocks(&list, long_lba, long_list, geometry.blocks)? else {
            return Ok(Outcome::Overrun);
        };
        if blocks.is_empty() {
            return Ok(Outcome::Done { moved });
        }
        let (gate, ended, errand) = self.erasing.reassign(blocks, &self.disk)?;
        Ok(Outcome::Wait {
            gate,
            ended,
            errand,
            moved,
        })
    }
}

/// A parameter list of that length, read once; `None` if the buffer is shorter.
fn list(len: usize, buffers: Buffers<'_>) -> Option<Vec<u8>> {
    let list = what_there_is(len, buffers);
    (list.len() == len).then_some(list)
}

/// So many bytes of a parameter list, or as many as there are, read once.
fn what_there_is(most: usize, buffers: Buffers<'_>) -> Vec<u8> {
    let mut list = vec![0; most.min(buffers.data_out.len())];
    let read = buffers.data_out.read_at(0, &mut list);
    list.truncate(read);
    list
}
