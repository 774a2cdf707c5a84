//! What fio measured.

use std::time::Duration;

use serde_json::Value;

use super::error::{Error, Result};

/// The result of a fio run with one job, or with `--group_reporting`.
#[derive(Debug, Clone, PartialEq)]
pub struct FioReport {
    /// Writes per second.
    pub write_iops: f64,
    /// Mean latency of a write.
    pub write_mean: Duration,
    /// 99 % of the writes were at least this quick.
    pub write_p99: Duration,
    /// Bytes read back and verified, if the job verified.
    pub read_bytes: u64,
}

impl FioReport {
    /// Reads what fio prints with `--output-format=json`.
    pub fn parse(text: &str) -> Result<Self> {
        // fio may print notes before the JSON.
        let json = text.find('{').map_or("", |start| &text[start..]);
        let report: Value = serde_json::from_str(json).map_err(|error| Error::Unexpected {
            what: "fio's report".to_owned(),
            problem: format!("{error}:\n{text}"),
        })?;
        let job = &report["jobs"][0];
        let write = &job["write"];
        let latency = &write["clat_ns"];
        let nanoseconds = |value: &Value| {
            Duration::try_from_secs_f64(value.as_f64().unwrap_or_default() / 1e9)
                .unwrap_or_default()
        };
        Ok(Self {
            write_iops: write["iops"].as_f64().unwrap_or_default(),
            write_mean: nanoseconds(&latency["mean"]),
            write_p99: nanoseconds(&latency["percentile"]["99.000000"]),
            read_bytes: job["read"]["io_bytes"].as_u64().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_after_a_note_is_read() {
        let text = r#"note: both iodepth >= 1 and synchronous I/O engine are selected
            {"jobs": [{"read": {"io_bytes": 4096}, "write": {"iops": 2.5,
             "clat_ns": {"mean": 1500.0, "percentile": {"99.000000": 2000}}}}]}"#;
        let report = FioReport::parse(text).unwrap();
        assert_eq!(report.write_mean, Duration::from_nanos(1500));
        assert_eq!(report.write_p99, Duration::from_nanos(2000));
        assert_eq!(report.read_bytes, 4096);
    }
}
