//! The method that gives metrics to whoever cannot come for them by HTTP.

use super::look::Nothing;
use super::{Method, params, value};
use crate::control::protocol::{Failure, Metrics, code};

pub(super) const METRICS: Method = Method {
    name: "metrics",
    params: &[],
    result: "`Metrics`",
    about: "Gives what monitoring systems are told, as `docs/metrics.md` has it. At most five \
            times a second it is new.",
    run: |desk, given| {
        params::<Nothing>(given)?;
        let text = desk.page.text(desk).map_err(|error| {
            Failure::new(
                code::SYSTEM,
                format!("the metrics cannot be written: {error}"),
            )
        })?;
        value(Metrics {
            text: text.to_string(),
        })
    },
};
