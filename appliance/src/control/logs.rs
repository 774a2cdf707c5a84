//! The log as the control socket shows it: its last lines, and what is logged at all.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::protocol::{Failure, LogLevel, LogLine, LogPage, code};

/// Lines that are kept.
const KEPT: usize = 2000;
/// Most bytes of a line that are kept.
const MAX_LINE: usize = 1024;
/// Most lines that are given at once.
const MAX_PAGE: usize = 500;

/// The last lines of the log, and how to change what is logged.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    ring: Arc<Mutex<Ring>>,
    levels: Arc<Mutex<Option<Levels>>>,
}

#[derive(Debug, Default)]
struct Ring {
    gone: u64,
    lines: VecDeque<LogLine>,
}

#[derive(Debug)]
struct Levels {
    /// What the program was started with.
    base: String,
    /// What was said since, by target.
    changed: BTreeMap<String, String>,
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Levels {
    fn text(&self) -> String {
        let mut text = self.base.clone();
        for (target, level) in &self.changed {
            // Writing to a String cannot fail.
            let _ = write!(text, ",{target}={level}");
        }
        text
    }
}

impl Logs {
    /// The layer that keeps what is logged.
    pub fn layer<S: Subscriber>(&self) -> impl Layer<S> + use<S> {
        Keeper(Arc::clone(&self.ring))
    }

    /// The layer that decides what is logged: at first what `base` says.
    pub fn filter(&self, base: &str) -> impl Layer<Registry> + use<> {
        let (filter, handle) = reload::Layer::new(EnvFilter::new(base));
        let levels = Levels {
            base: base.to_owned(),
            changed: BTreeMap::new(),
            handle,
        };
        *self.levels() = Some(levels);
        filter
    }

    /// The lines from number `after` on, at most `most`.
    pub fn read(&self, after: u64, most: usize) -> LogPage {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let from = after.max(ring.gone);
        let skip = usize::try_from(from - ring.gone).unwrap_or(usize::MAX);
        let lines = ring.lines.iter().skip(skip).take(most.min(MAX_PAGE));
        let lines: Vec<_> = lines.cloned().collect();
        let next = lines.last().map(|line| line.number + 1);
        LogPage {
            next: next.unwrap_or(from.min(ring.gone + ring.lines.len() as u64)),
            missed: from - after,
            lines,
        }
    }

    /// The number that the next line will have.
    pub fn next(&self) -> u64 {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.gone + ring.lines.len() as u64
    }

    /// What is logged.
    pub fn level(&self) -> LogLevel {
        let levels = self.levels();
        LogLevel {
            filter: levels.as_ref().map(Levels::text).unwrap_or_default(),
        }
    }

    /// Logs `level` of `target`, a module such as `appliance::worker`, or everything.
    ///
    /// # Errors
    /// [`Failure`] for what is no level or no target.
    pub fn set_level(&self, target: &str, level: &str) -> Result<LogLevel, Failure> {
        const KNOWN: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let is_target = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
        if target.is_empty() || !target.bytes().all(is_target) {
            return Err(Failure::new(
                code::PARAMS,
                format!("{target:?} is no target; give a module, such as appliance::worker"),
            ));
        }
        if !KNOWN.contains(&level) {
            return Err(Failure::new(
                code::PARAMS,
                format!("{level:?} is no level; give one of {}", KNOWN.join(", ")),
            ));
        }
        let mut levels = self.levels();
        let Some(levels) = levels.as_mut() else {
            return Err(Failure::new(
                code::SYSTEM,
                "what this program logs cannot be changed; start it with another RUST_LOG",
            ));
        };
        levels.changed.insert(target.to_owned(), level.to_owned());
        let text = levels.text();
        let filter = EnvFilter::try_new(&text)
            .map_err(|error| Failure::new(code::PARAMS, error.to_string()))?;
        levels
            .handle
            .reload(filter)
            .map_err(|error| Failure::new(code::SYSTEM, error.to_string()))?;
        Ok(LogLevel { filter: text })
    }

    fn levels(&self) -> MutexGuard<'_, Option<Levels>> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Keeper(Arc<Mutex<Ring>>);

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let mut text = text.line();
        if text.len() > MAX_LINE {
            text.truncate(text.floor_char_boundary(MAX_LINE));
            text.push('…');
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let metadata = event.metadata();
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.lines.len() == KEPT {
            ring.lines.pop_front();
            ring.gone += 1;
        }
        let number = ring.gone + ring.lines.len() as u64;
        ring.lines.push_back(LogLine {
            number,
            at_ms,
            level: metadata.level().to_string(),
            target: metadata.target().to_owned(),
            text,
        });
    }
}

/// An event's message and fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn line(self) -> String {
        let text = self.message + &self.fields;
        // A line is a line, whatever a tenant or a file name brought into it.
        text.trim_start()
            .replace(|letter: char| letter.is_control(), " ")
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message += value;
        } else {
            // Writing to a String cannot fail.
            let _ = write!(self.fields, " {}={value}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_read_on_from_where_one_was() {
        let logs = Logs::default();
        let subscriber = tracing_subscriber::registry().with(logs.layer());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(lun = "a", "first\nhalf");
            for number in 0..KEPT {
                tracing::warn!(number, "more");
            }
        });
        let page = logs.read(0, 2);
        assert_eq!((page.missed, page.next, page.lines.len()), (1, 3, 2));
        assert_eq!(page.lines[0].text, "more number=0");
        let page = logs.read(logs.next() - 1, 10);
        assert_eq!((page.missed, page.lines.len()), (0, 1));
        let page = logs.read(page.next, 10);
        assert!(page.lines.is_empty() && page.next == logs.next());
        let page = logs.read(u64::MAX, 10);
        assert!(page.lines.is_empty() && page.next == logs.next());
    }

    #[test]
    fn a_target_is_given_another_level_while_the_program_runs() {
        let logs = Logs::default();
        let subscriber = tracing_subscriber::registry()
            .with(logs.filter("warn"))
            .with(logs.layer());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "appliance::worker", "not yet");
            let level = logs.set_level("appliance::worker", "info").unwrap();
            assert_eq!(level.filter, "warn,appliance::worker=info");
            tracing::info!(target: "appliance::worker", "now\nit is");
            tracing::info!(target: "appliance::other", "nor this");
        });
        let lines = logs.read(0, 10).lines;
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].text, "now it is");
        for (target, level) in [("a b", "info"), ("", "info"), ("a", "loud"), ("a=b", "off")] {
            let failure = logs.set_level(target, level).unwrap_err();
            assert_eq!(failure.code, code::PARAMS);
        }
    }
}
