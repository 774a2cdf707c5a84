//! What the tenant does to its disk.

use serde::Serialize;

/// Bytes of a request.
pub const BLOCK: u32 = 4096;
/// Seconds that fio works before it measures.
pub const RAMP: u32 = 1;
/// Seconds that fio measures beyond those in which CPU time is taken, so that these lie within.
pub const MARGIN: f64 = 0.9;

/// Random requests, so many at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Load {
    pub writes: bool,
    pub depth: u16,
}

impl Load {
    pub fn name(self) -> String {
        let what = if self.writes { "writes" } else { "reads" };
        format!("{what}, depth {}", self.depth)
    }

    /// The shell command for `disk`, whose CPU time is taken over `seconds`.
    pub fn command(self, disk: &str, seconds: f64) -> String {
        let kind = if self.writes { "randwrite" } else { "randread" };
        let Self { depth, .. } = self;
        // Latency is that from submission: the doorbell is rung in there.
        format!(
            "fio --name=load --thread --filename={disk} --rw={kind} --bs={BLOCK} --iodepth={depth} \
             --ioengine=libaio --direct=1 --norandommap --randrepeat=0 --time_based \
             --ramp_time={RAMP} --runtime={:.0} --clat_percentiles=0 --lat_percentiles=1 \
             --output-format=json",
            (seconds + MARGIN).ceil()
        )
    }
}
