//! The machine that measures.

use std::fs;
use std::thread;

use serde::Serialize;

/// What it was measured on.
#[derive(Debug, Serialize)]
pub struct Machine {
    cpus: usize,
    model: String,
    kernel: String,
    /// Processes that wanted a CPU in the minute before the end; more than our two spoil figures.
    load: String,
}

impl Machine {
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        Self {
            cpus: thread::available_parallelism().map_or(1, usize::from),
            model: model.map_or_else(String::new, |(_, model)| model.to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }

    /// One line about it.
    pub fn line(&self) -> String {
        let Self {
            cpus,
            model,
            kernel,
            load,
        } = self;
        format!("{cpus} CPUs ({model}), Linux {kernel}, load {load}")
    }
}
