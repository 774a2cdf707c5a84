//! What crosses the control socket: requests, replies, and the types of their results.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use crate::scsi::describe::sense_key;
pub use crate::statistics::{
    CountersSnapshot, HistogramSnapshot, TaskSnapshot, TraceSnapshot, UnitSnapshot, WorkerSnapshot,
};

/// The version of this protocol: it is another where a client of the one before would be misled.
/// Methods, optional parameters and members of results may be added within a version.
pub const VERSION: u32 = 1;
/// Most bytes of a request's line, its end left out: a large configuration fits.
pub const MAX_REQUEST: usize = 1 << 20;
/// Most bytes of a reply's line.
pub const MAX_REPLY: usize = 8 << 20;

/// Codes of errors; the others are those of JSON-RPC 2.0.
pub mod code {
    /// The line is no JSON, or too long.
    pub const PARSE: i32 = -32700;
    /// The object is no request.
    pub const REQUEST: i32 = -32600;
    /// There is no such method.
    pub const METHOD: i32 = -32601;
    /// The parameters are not those of the method.
    pub const PARAMS: i32 = -32602;
    /// What is named does not exist.
    pub const UNKNOWN: i32 = 1;
    /// A configuration is wrong, or cannot be put into force; nothing was changed.
    pub const REFUSED: i32 = 2;
    /// Something took too long, and may yet happen.
    pub const TIMEOUT: i32 = 3;
    /// Another change is under way.
    pub const BUSY: i32 = 4;
    /// The system refused.
    pub const SYSTEM: i32 = 5;
}

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// "2.0".
    pub jsonrpc: String,
    /// What the reply is told by; without it there is no reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// What to do.
    pub method: String,
    /// With what: an object.
    #[serde(default)]
    pub params: Value,
}

/// A reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// "2.0".
    pub jsonrpc: String,
    /// The request's; null if it had none that can be read.
    pub id: Value,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One of [`code`].
    pub code: i32,
    /// What is wrong with what, and the mend.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Result of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub protocol: u32,
    /// Of the appliance.
    pub version: String,
    /// Name of the appliance.
    pub name: String,
    /// The methods that there are.
    pub methods: Vec<String>,
}

/// Result of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the appliance.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Seconds since it was started.
    pub uptime_s: u64,
    /// The file that its configuration came from.
    pub config: Option<String>,
    /// Whether what is in force is what is in the file.
    pub saved: bool,
    /// A change that is under way, and for how many seconds.
    pub changing: Option<u64>,
    /// What is not as it should be, each with its mend.
    pub problems: Vec<String>,
    /// How many LUNs there are.
    pub luns: usize,
    /// The HBAs.
    pub tenants: Vec<Tenant>,
}

/// An HBA: one of the results of `hbas`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether it is there.
    pub state: TenantState,
    /// How good a way it is to what is shared.
    pub access: String,
    /// Microseconds for which its workers look for requests after work, or "always".
    pub poll: String,
    /// Name of the LUN at each TARGET:LUN.
    pub luns: BTreeMap<String, String>,
    /// Commands on which disks work or which wait.
    pub in_flight: usize,
    /// How many of these there may be.
    pub most_in_flight: usize,
    /// How the CPU reaches the tenant's memory through its window: "write-back", "in between" or
    /// "uncached"; nothing at a socket, or before a ring was started.
    #[serde(default)]
    pub memory: Option<String>,
    /// Rings that its driver has started.
    pub rings: usize,
    /// Whether a worker of it looks for requests without being kicked just now.
    pub polls: bool,
    /// Whether it takes no new commands.
    pub drained: bool,
    /// What it may do in a second.
    #[serde(default)]
    pub limit: Option<Limit>,
    /// The group whose limit it shares, and that limit.
    #[serde(default)]
    pub group: Option<(String, Option<Limit>)>,
    /// What it weighs against others with which it shares a limit.
    #[serde(default)]
    pub weight: u32,
    /// Commands to what is no LUN of it.
    pub elsewhere: u64,
    /// What was counted about each of its LUNs, since they came or it was attached.
    pub units: Vec<UnitSnapshot>,
    /// Its workers, if it is attached.
    #[serde(default)]
    pub workers: Vec<WorkerSnapshot>,
}

/// What something may do in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Operations a second.
    pub iops: Option<u64>,
    /// Bytes a second.
    pub bytes_per_second: Option<u64>,
    /// Milliseconds' worth of it that may be saved up.
    pub burst_ms: u64,
}

impl Limit {
    /// What is in force, if that limits anything.
    pub(crate) fn of(limit: crate::config::Limit) -> Option<Self> {
        limit.is_set().then(|| Self {
            iops: limit.iops,
            bytes_per_second: limit.bytes_per_second,
            burst_ms: u64::try_from(limit.burst.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

/// Whether an HBA is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantState {
    /// Nothing is attached as this HBA.
    Absent,
    /// Its worker works.
    Attached,
    /// Its worker has ended, and waits for what a disk does not finish.
    Ending,
    /// Its worker did not answer within a second.
    Silent,
}

/// One of the results of `luns`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lun {
    /// Its name.
    pub name: String,
    /// Where its blocks are.
    pub source: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// How it is cached: "direct" or "write-back".
    pub cache: String,
    /// Which way its data goes, and why.
    #[serde(default)]
    pub way: String,
    /// Whether tenants may only read it.
    pub read_only: bool,
    /// Whether several HBAs may see it.
    pub shared: bool,
    /// What all who see it may do in a second.
    #[serde(default)]
    pub limit: Option<Limit>,
    /// "ok", or what is wrong.
    pub state: String,
    /// Who sees it, and where: HBA and TARGET:LUN.
    pub seen_by: Vec<(String, String)>,
    /// Who keeps others away from it, and how.
    pub reserved_by: Option<String>,
    /// Commands on which its disk works or which wait.
    pub in_flight: usize,
    /// What was counted about it, over all who see it.
    pub counters: CountersSnapshot,
    /// Bytes that EXTENDED COPY and WRITE USING TOKEN have copied to it since its disk was opened;
    /// nothing where that is no file.
    #[serde(default)]
    pub copied: Option<Copied>,
}

/// Bytes that were copied to a disk, by the way that they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// By reference: the filesystem shares the blocks (FICLONERANGE).
    pub reflink: u64,
    /// By the filesystem (copy_file_range).
    pub filesystem: u64,
    /// Read and written by the appliance.
    pub pool: u64,
}

impl Copied {
    /// All of them.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.reflink
            .saturating_add(self.filesystem)
            .saturating_add(self.pool)
    }
}

/// One of the results of `disks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Name of its LUN.
    pub lun: String,
    /// Where it is.
    pub source: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes of a block that it is really written in.
    pub physical_block_size: u32,
    /// Whether blocks are given back.
    pub thin: bool,
    /// Bytes that it occupies of what is under it, where that is known.
    pub used: Option<u64>,
    /// Bytes that are left there.
    pub available: Option<u64>,
    /// "ok", or what is wrong.
    pub state: String,
}

/// A snapshot: one of the results of `lun.snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Name of the LUN.
    pub lun: String,
    /// What it is called.
    pub name: String,
    /// When it was taken, in UTC, as RFC 3339 writes it.
    pub created: String,
    /// How large the LUN's file was.
    pub bytes: u64,
    /// Bytes that it occupies, those among them that it shares with the LUN.
    pub used: u64,
}

/// Result of what changes the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// What is different now, in words.
    pub changes: Vec<String>,
    /// Whether what is in force is what is in the file.
    pub saved: bool,
}

/// Result of `config.diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// What would be different, each beginning with "+", "-" or "~".
    pub changes: Vec<String>,
    /// Why it cannot be applied as it is.
    pub refused: Option<String>,
}

/// Result of `config.get`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The configuration in force (TOML).
    pub text: String,
    /// The file that it came from.
    pub file: Option<String>,
    /// Whether that is what is in the file.
    pub saved: bool,
}

/// Result of `drain` and `resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Name of the HBA.
    pub hba: String,
    /// Whether it takes no new commands.
    pub drained: bool,
    /// Commands that are still under way.
    pub in_flight: usize,
}

/// Result of `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Name of the LUN.
    pub lun: String,
    /// What is to be said, the most important first.
    pub findings: Vec<String>,
    /// The oldest commands under way, with the HBA of each.
    pub tasks: Vec<(String, TaskSnapshot)>,
}

/// One of the results of `trace`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// Name of the HBA.
    pub hba: String,
    /// The command.
    #[serde(flatten)]
    pub command: TraceSnapshot,
}

/// Result of `metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// OpenMetrics 1.0.
    pub text: String,
}

/// Result of `log.read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// The lines.
    pub lines: Vec<LogLine>,
    /// What to give as `after` to go on.
    pub next: u64,
    /// Lines that came after `after` and are no longer kept.
    pub missed: u64,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its number, from 0.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// "ERROR", "WARN", "INFO", "DEBUG" or "TRACE".
    pub level: String,
    /// The module that wrote it.
    pub target: String,
    /// The rest.
    pub text: String,
}

/// Result of `log.level`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// What is logged, as RUST_LOG says it.
    pub filter: String,
}
