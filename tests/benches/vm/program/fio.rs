//! What fio measured of one load.

use serde_json::Value;

use super::error::{Error, Result};

/// Of all requests of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub iops: f64,
    /// How many there were, after the ramp.
    pub requests: u64,
    /// Nanoseconds from submission to completion that half of the requests took at most.
    pub median_ns: f64,
    /// … that 99 % of them took at most.
    pub p99_ns: f64,
}

impl Figures {
    /// Reads what fio prints with `--output-format=json --lat_percentiles=1`.
    ///
    /// # Errors
    /// It is something else, or there was an error or no request.
    pub fn parse(text: &str, writes: bool) -> Result<Self> {
        let bad = |problem: String| Error::Fio {
            problem,
            text: text.to_owned(),
        };
        // Notes may come before it.
        let json = text.find('{').map_or("", |start| &text[start..]);
        let report: Value = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
        let job = &report["jobs"][0];
        if job["error"].as_u64() != Some(0) {
            return Err(bad("the job reports an error".to_owned()));
        }
        let requests = &job[if writes { "write" } else { "read" }];
        let figure = |value: &Value, name: &str| {
            let figure = value.as_f64().filter(|figure| *figure > 0.0);
            figure.ok_or_else(|| bad(format!("{name} is missing, or 0")))
        };
        let latency = &requests["lat_ns"]["percentile"];
        Ok(Self {
            iops: figure(&requests["iops"], "iops")?,
            requests: requests["total_ios"].as_u64().unwrap_or_default(),
            median_ns: figure(&latency["50.000000"], "the median of lat_ns")?,
            p99_ns: figure(&latency["99.000000"], "the 99th percentile of lat_ns")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"note: something
        {"jobs": [{"error": 0, "read": {"iops": 0.0},
          "write": {"iops": 812.5, "total_ios": 3250, "lat_ns": {"percentile":
            {"50.000000": 1122304, "99.000000": 4046848}}}}]}"#;

    #[test]
    fn figures_of_the_direction_that_was_loaded_are_read() {
        let figures = Figures::parse(REPORT, true).unwrap();
        assert_eq!(figures.iops, 812.5);
        assert_eq!(figures.requests, 3250);
        assert_eq!(figures.median_ns, 1_122_304.0);
        assert_eq!(figures.p99_ns, 4_046_848.0);
    }

    #[test]
    fn a_job_without_requests_or_with_an_error_is_no_figure() {
        let error = Figures::parse(REPORT, false).unwrap_err().to_string();
        assert!(error.contains("iops is missing, or 0"), "{error}");
        let failed = REPORT.replace("\"error\": 0", "\"error\": 5");
        let error = Figures::parse(&failed, true).unwrap_err().to_string();
        assert!(error.contains("reports an error"), "{error}");
    }
}
