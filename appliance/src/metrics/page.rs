//! The text that a scrape gets, kept for a moment.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::families::PREFIX;
use super::scrape::{Scrape, Unanswered};
use crate::control::Desk;

/// For how long a text is given again, so that workers are not asked more often than this however
/// many clients there are.
const FRESH: Duration = Duration::from_millis(200);

/// The metrics of one appliance as a text.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Locked while figures are asked for: whoever comes meanwhile gets the same.
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    text: Option<(Instant, Arc<str>)>,
    unanswered: Unanswered,
}

impl Page {
    /// The text about the appliance of `desk`, which has this page, in the OpenMetrics format;
    /// within about two seconds.
    ///
    /// # Errors
    /// What the encoder reports.
    pub fn text(&self, desk: &Desk) -> Result<Arc<str>, fmt::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = &last.text
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(text));
        }
        let scrape = Scrape::take(desk, &mut last.unanswered);
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(scrape));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        let text: Arc<str> = text.into();
        last.text = Some((Instant::now(), Arc::clone(&text)));
        Ok(text)
    }
}
