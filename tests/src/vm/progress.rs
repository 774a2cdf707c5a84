//! What is going on, for whoever waits: a spinner on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps of a long job, of which the number is known.
#[derive(Debug)]
pub struct Progress {
    done: u64,
    total: u64,
}

impl Progress {
    /// A job of `total` steps.
    pub fn of(total: u64) -> Self {
        Self { done: 0, total }
    }

    /// Begins the next step; it ends when the value is dropped.
    pub fn step(&mut self, what: &str) -> Step {
        self.done += 1;
        begin(format!("[{}/{}] {what}", self.done, self.total))
    }
}

/// Begins a step that belongs to no job.
pub fn step(what: &str) -> Step {
    begin(what.to_owned())
}

/// A step under way.
#[derive(Debug)]
#[must_use = "the step ends when this is dropped"]
pub struct Step {
    what: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

fn begin(what: String) -> Step {
    let spinner = stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
        let spinner = ProgressBar::new_spinner().with_message(what.clone());
        spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        spinner.enable_steady_tick(Duration::from_millis(120));
        spinner
    });
    if spinner.is_none() {
        eprintln!("{what} ...");
    }
    Step {
        what,
        started: Instant::now(),
        spinner,
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!(
            "{}: {:.1} s",
            self.what,
            self.started.elapsed().as_secs_f64()
        );
    }
}
