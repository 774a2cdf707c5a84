//! SCSI conformance: libiscsi's `iscsi-test-cu` in a tenant, against an expected list.
//!
//! * [`Profile`]: a kind of LUN, and the suites that are run on it ([`run`](Profile::start))
//! * [`Verdict`]: how a test ended; the tool counts a skipped test as passed, we do not ([`output`])
//! * [`Expected`]: the list in the repository, compared in both directions ([`expected`])

pub mod expected;
pub mod output;
pub mod profile;

pub use expected::Expected;
pub use output::Verdict;
pub use profile::Profile;

/// The suites of the tool's LINUX family: those that go through SG_IO.
pub const SUITES: &[&str] = &[
    "CompareAndWrite",
    "GetLBAStatus",
    "Inquiry",
    "Mandatory",
    "ModeSense6",
    "OrWrite",
    "Prefetch10",
    "Prefetch16",
    "Read10",
    "Read12",
    "Read16",
    "ReadCapacity10",
    "ReadCapacity16",
    "ReadDefectData10",
    "ReadDefectData12",
    "ReadOnly",
    "ReportSupportedOpcodes",
    "TestUnitReady",
    "Unmap",
    "Verify10",
    "Verify12",
    "Verify16",
    "Write10",
    "Write12",
    "Write16",
    "WriteAtomic16",
    "WriteSame10",
    "WriteSame16",
    "WriteVerify10",
    "WriteVerify12",
    "WriteVerify16",
    "MultipathIO",
];
