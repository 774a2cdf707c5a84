//! Lists of system calls, made into programs for seccomp.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_long};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::SandboxError;

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// System calls, each with the arguments that it is about; one without is about all of them.
#[derive(Debug, Default)]
pub(super) struct Calls(BTreeMap<i64, Vec<SeccompRule>>);

impl Calls {
    /// The calls `numbers`, whatever their arguments.
    pub fn any(mut self, numbers: &[c_long]) -> Self {
        for &number in numbers {
            self.0.insert(number, Vec::new());
        }
        self
    }

    /// The call `number` if all of `conditions` hold. Said again, it is another alternative.
    pub fn when<const N: usize>(
        mut self,
        number: c_long,
        conditions: [Result<SeccompCondition, BackendError>; N],
    ) -> Result<Self, BackendError> {
        let conditions = conditions.into_iter().collect::<Result<_, _>>()?;
        self.0
            .entry(number)
            .or_default()
            .push(SeccompRule::new(conditions)?);
        Ok(self)
    }

    /// The program that does `action` for these calls, and `otherwise` for all others. Where
    /// several programs are applied, the harshest of their answers holds.
    pub fn program(
        self,
        action: SeccompAction,
        otherwise: SeccompAction,
    ) -> Result<BpfProgram, BackendError> {
        SeccompFilter::new(self.0, otherwise, action, ARCH)?.try_into()
    }
}

/// The ioctl behind `set_nonblocking`; the kernel takes 32 bits of it.
pub(super) const FIONBIO: u32 = 0x5421;

/// Bits of a flag in libc, as a register holds them.
pub(super) fn bits(flag: c_int) -> u64 {
    flag.unsigned_abs().into()
}

/// Argument `index`, of 32 bits, is `value`.
pub(super) fn is(index: u8, value: u32) -> Result<SeccompCondition, BackendError> {
    compare(
        index,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        value.into(),
    )
}

/// Argument `index`, of 32 bits, is not `value`.
pub(super) fn is_not(index: u8, value: u32) -> Result<SeccompCondition, BackendError> {
    compare(
        index,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        value.into(),
    )
}

/// Argument `index`, of 64 bits, has of the bits in `mask` those in `bits`.
pub(super) fn has(index: u8, mask: u64, bits: u64) -> Result<SeccompCondition, BackendError> {
    let operation = SeccompCmpOp::MaskedEq(mask);
    compare(index, SeccompCmpArgLen::Qword, operation, bits)
}

fn compare(
    index: u8,
    len: SeccompCmpArgLen,
    operation: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, len, operation, value)
}

/// Applies `programs` to this thread in their order, for good.
pub(super) fn apply(programs: &[BpfProgram]) -> Result<(), SandboxError> {
    for program in programs {
        seccompiler::apply_filter(program)?;
    }
    Ok(())
}
