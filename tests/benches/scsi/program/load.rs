//! What is asked of a server.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::error::{Error, Result};
use super::slots::SECTOR;

/// A load.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Load {
    /// Requests under way on each queue.
    #[arg(long, default_value_t = 32)]
    pub depth: u16,
    /// Queues with a thread each.
    #[arg(long, default_value_t = 1)]
    pub queues: u16,
    /// Bytes of a request.
    #[arg(long = "block-size", value_name = "BYTES", default_value_t = 4096)]
    pub block_bytes: u32,
    /// Percent of the requests that are writes.
    #[arg(long = "writes", value_name = "PERCENT", default_value_t = 0)]
    pub write_percent: u8,
    /// One block after the other, in place of any.
    #[arg(long, conflicts_with = "verify")]
    pub sequential: bool,
    /// Looks for answers all the time, in place of sleeping until an interrupt.
    #[arg(long)]
    pub polled: bool,
    /// Writes data that says where it belongs, and checks all that is read. The disk's first
    /// 2048 blocks for each queue are overwritten.
    #[arg(long)]
    pub verify: bool,
    /// Entries of a ring.
    #[arg(long, value_name = "ENTRIES", default_value_t = 256)]
    pub ring_size: u16,
    /// Puts three descriptors into the ring for a request, in place of one with a table of its
    /// own.
    #[arg(long = "direct", action = clap::ArgAction::SetFalse)]
    pub indirect: bool,
    /// Does without event indices.
    #[arg(long = "no-event-idx", action = clap::ArgAction::SetFalse)]
    pub event_idx: bool,
    /// The LUN, of a virtio-scsi device.
    #[arg(long, default_value_t = 0)]
    pub lun: u8,
    /// Seconds of a measurement.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Seconds before a measurement that do not count.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.2)]
    pub warm_up: f64,
}

impl Load {
    /// Reads at random of 4 KiB on one queue, so many of them at a time, by interrupts.
    pub fn of_depth(depth: u16) -> Self {
        Self {
            depth,
            queues: 1,
            block_bytes: 4096,
            write_percent: 0,
            sequential: false,
            polled: false,
            verify: false,
            ring_size: 256,
            indirect: true,
            event_idx: true,
            lun: 0,
            seconds: 1.0,
            warm_up: 0.2,
        }
    }

    /// # Errors
    /// The load makes no sense.
    pub fn check(&self) -> Result<()> {
        let problem = if self.depth == 0 || self.queues == 0 {
            "--depth and --queues are at least 1"
        } else if self.block_bytes == 0 || !u64::from(self.block_bytes).is_multiple_of(SECTOR) {
            "--block-size is a multiple of 512"
        } else if self.block_bytes > 1 << 20 {
            "--block-size is at most 1 MiB"
        } else if self.write_percent > 100 {
            "--writes is at most 100"
        } else if !self.ring_size.is_power_of_two() || self.ring_size > 1 << 10 {
            "--ring-size is a power of two of at most 1024"
        } else if !(0.0..=3600.0).contains(&self.seconds) || !(0.0..=3600.0).contains(&self.warm_up)
        {
            "--seconds and --warm-up are between 0 and 3600"
        } else {
            return Ok(());
        };
        Err(Error::Usage(problem.to_owned()))
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up)
    }
}
